//! The iptables backend on the real kernel, in both variants, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::Snapshot;
use tollgate_proxy::backend::iptables::{Iptables, Variant};
use tollgate_proxy::backend::{Backend, DetectLocal, NodeConfig, ObservedOrigin, ObservedPool, Report, Scope};

use crate::netns::isolated;
use crate::sample::{service, snapshot};
use crate::sorts::{cidrs, config, on_node, services};

mod netns;
mod sample;
mod sorts;

/// A test on a node that uses a variant.
type Test = fn(Node);

fn main() -> ExitCode {
    // The namespaces are machines of their own: one must not wait for another's lock, nor for that of this machine.
    let lock = tempfile::NamedTempFile::new().unwrap();
    // SAFETY: no other thread has been started.
    unsafe { std::env::set_var("XTABLES_LOCKFILE", lock.path()) };
    let tests: [(&str, Test); 19] = [
        ("the_node_s_variant_is_used", the_node_s_variant_is_used),
        ("a_start_tries_sets_and_leaves_none", a_start_tries_sets_and_leaves_none),
        ("a_sync_makes_what_a_full_sync_finds_right", a_sync_makes_what_a_full_sync_finds_right),
        ("a_restart_with_the_same_snapshot_writes_nothing", a_restart_with_the_same_snapshot_writes_nothing),
        ("a_change_writes_only_what_it_changes", a_change_writes_only_what_it_changes),
        ("changes_come_to_the_same_as_a_full_sync", changes_come_to_the_same_as_a_full_sync),
        ("many_services_are_written_in_batches", many_services_are_written_in_batches),
        ("drift_is_repaired", drift_is_repaired),
        ("rules_flushed_by_a_firewall_are_repaired", rules_flushed_by_a_firewall_are_repaired),
        ("jumps_are_there_once_and_in_order", jumps_are_there_once_and_in_order),
        ("a_change_that_is_refused_becomes_a_full_sync", a_change_that_is_refused_becomes_a_full_sync),
        ("a_set_that_others_use_holds_up_nobody", a_set_that_others_use_holds_up_nobody),
        ("what_the_plan_refuses_holds_up_nobody", what_the_plan_refuses_holds_up_nobody),
        ("what_the_kernel_refuses_holds_up_nobody", what_the_kernel_refuses_holds_up_nobody),
        ("a_node_s_addresses_and_pod_ranges_are_followed", a_node_s_addresses_and_pod_ranges_are_followed),
        ("addresses_chosen_to_make_the_tree_deep_load", addresses_chosen_to_make_the_tree_deep_load),
        ("what_is_observed_is_what_was_synced", what_is_observed_is_what_was_synced),
        ("cleanup_is_complete_and_leaves_others_alone", cleanup_is_complete_and_leaves_others_alone),
        ("what_was_left_elsewhere_is_swept", what_was_left_elsewhere_is_swept),
    ];
    let trials = tests.into_iter().flat_map(|(name, test)| {
        let trial = move |variant: Variant| {
            Trial::test(format!("{name}::{variant}"), move || isolated(move || test(Node::using(variant))))
        };
        Variant::ALL.map(trial)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// The namespace that a test is in.
#[derive(Clone, Copy)]
struct Node {
    variant: Variant,
}

impl Node {
    /// One whose kubelet uses the variant.
    fn using(variant: Variant) -> Self {
        let node = Self { variant };
        node.ip4("iptables", "-t mangle -N KUBE-IPTABLES-HINT");
        node
    }

    #[track_caller]
    fn ip4(self, program: &str, arguments: &str) -> String {
        let (name, verb) =
            program.split_once('-').map_or((program, String::new()), |(name, verb)| (name, format!("-{verb}")));
        run(&format!("{name}-{}{verb}", self.variant), arguments)
    }

    /// Everything that both families hold, without counters and comments.
    fn rules(self) -> String {
        let saved = ["iptables-save", "ip6tables-save"].map(|program| self.ip4(program, ""));
        let lines = saved.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
        let without_counters = lines.map(|line| line.split(" [").next().unwrap_or_default());
        without_counters.collect::<Vec<_>>().join("\n")
    }

    /// The same, and the sets with their members.
    fn state(self) -> BTreeSet<String> {
        let sets = run("ipset", "save");
        let sets = sets.lines().map(|line| line.split(" bucketsize").next().unwrap_or_default());
        self.rules().lines().chain(sets).map(str::to_owned).collect()
    }

    fn open(self) -> Iptables {
        self.open_with(&config())
    }

    fn open_with(self, config: &NodeConfig) -> Iptables {
        let backend = Iptables::open(config).unwrap();
        assert_eq!(backend.variant(), Some(self.variant));
        backend
    }
}

/// Prints what differs alone: the whole is long.
#[track_caller]
fn assert_state(node: Node, right: &BTreeSet<String>, what: &str) {
    let now = node.state();
    let (gone, come): (Vec<_>, Vec<_>) = (right.difference(&now).collect(), now.difference(right).collect());
    assert!(gone.is_empty() && come.is_empty(), "{what}: gone {gone:#?}, come {come:#?}");
}

#[track_caller]
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn sync(backend: &mut Iptables, snapshot: &Snapshot, scope: Scope) -> Report {
    backend.sync(snapshot, scope).unwrap()
}

/// The last sync's result is what the kernel has, and another full sync agrees.
#[track_caller]
fn assert_right(backend: &mut Iptables, snapshot: &Snapshot) {
    let report = sync(backend, snapshot, Scope::Full);
    assert_eq!((report.changed, report.repaired), (0, vec![]));
}

/// All sorts of Service ports, on a node with addresses for NodePorts.
fn wanted() -> Snapshot {
    on_node(snapshot(services()), &["192.0.2.1", "192.0.2.2", "2001:db8:2::1"], &[])
}

fn without(snapshot: &Snapshot, services: &[&str]) -> Snapshot {
    let mut rest = snapshot.clone();
    let gone: Vec<_> = rest.service_ports.keys().filter(|it| services.contains(&&*it.service.name)).cloned().collect();
    for name in gone {
        rest.service_ports.remove(&name);
    }
    rest
}

// === the tests ===

fn the_node_s_variant_is_used(node: Node) {
    let mut backend = node.open();
    sync(&mut backend, &wanted(), Scope::Full);
    assert!(node.rules().contains("-A PREROUTING -j TOLLGATE-SERVICES"));
    // What was used once is kept, although the kubelet's chain is gone.
    node.ip4("iptables", "-t mangle -X KUBE-IPTABLES-HINT");
    node.open();
}

fn a_start_tries_sets_and_leaves_none(node: Node) {
    run("ipset", "create mine hash:net");
    // One whose start was killed has left this.
    run("ipset", "create TG-A4-check-AAAAAAAAAAAAA hash:ip,port,net");
    let before = node.rules();
    let _backend = node.open();
    assert_eq!(run("ipset", "list -name").trim(), "mine");
    assert_eq!(node.rules(), before);
}

fn a_sync_makes_what_a_full_sync_finds_right(node: Node) {
    let (mut backend, wanted) = (node.open(), wanted());
    let report = sync(&mut backend, &wanted, Scope::Full);
    assert!(report.changed > 0);
    assert_eq!((report.repaired, report.refused), (vec![], vec![]));
    assert_right(&mut backend, &wanted);
}

fn a_restart_with_the_same_snapshot_writes_nothing(node: Node) {
    sync(&mut node.open(), &wanted(), Scope::Full);
    let before = node.state();
    assert_eq!(sync(&mut node.open(), &wanted(), Scope::Full).changed, 0);
    assert_state(node, &before, "in the end");
}

fn a_change_writes_only_what_it_changes(node: Node) {
    let web = |endpoints: &[u8]| {
        let mut all = wanted();
        let web = service("web", Protocol::Tcp, 1, endpoints);
        all.service_ports.insert(web.name.clone(), Arc::new(web));
        all
    };
    let mut backend = node.open();
    sync(&mut backend, &web(&[1, 2, 3]), Scope::Full);
    let changed = |backend: &mut Iptables, endpoints: &[u8]| sync(backend, &web(endpoints), Scope::Changes).changed;
    assert_eq!(changed(&mut backend, &[1, 2, 4]), 2, "the chain of its endpoints, in each family");
    assert_eq!(changed(&mut backend, &[1, 2, 4]), 0);
    assert_eq!(changed(&mut backend, &[]), 2, "it has no endpoint, and its rule stays");
    assert_right(&mut backend, &web(&[]));
    let mut rest = wanted();
    rest.service_ports.remove(&service("web", Protocol::Tcp, 1, &[]).name);
    assert_eq!(
        sync(&mut backend, &rest, Scope::Changes).changed,
        6,
        "its chain, the node of the tree and the ClusterIP, in each family"
    );
    assert_right(&mut backend, &rest);
}

fn changes_come_to_the_same_as_a_full_sync(node: Node) {
    let mut backend = node.open();
    sync(&mut backend, &snapshot([]), Scope::Full);
    let empty = node.state();
    sync(&mut backend, &wanted(), Scope::Changes);
    let by_changes = node.state();
    assert_right(&mut backend, &wanted());
    sync(&mut backend, &on_node(snapshot([]), &[], &[]), Scope::Changes);
    assert_state(node, &empty, "in the end");
    backend.cleanup().unwrap();
    sync(&mut node.open(), &wanted(), Scope::Full);
    assert_state(node, &by_changes, "in the end");
}

/// More chains than go into one transaction of the nft variant, twice over.
fn many_services_are_written_in_batches(node: Node) {
    let many = |of: std::ops::Range<u16>, port: u16| {
        snapshot(of.map(|index| {
            let mut it = service(&format!("s{index}"), Protocol::Tcp, 0, &[1, 2]);
            let [high, low] = index.to_be_bytes();
            for frontend in &mut it.frontends {
                frontend.port = port;
                frontend.ip = match frontend.ip {
                    IpAddr::V4(_) => [10, 96, high, low].into(),
                    IpAddr::V6(_) => [0xfd00, 0x96, 0, 0, 0, 0, 0, index].into(),
                };
            }
            it
        }))
    };
    let mut backend = node.open();
    sync(&mut backend, &many(0..2_500, 80), Scope::Full);
    assert_right(&mut backend, &many(0..2_500, 80));
    // Nearly everything changes: other frontends, half of them gone, others come.
    sync(&mut backend, &many(1_200..3_700, 81), Scope::Changes);
    assert_right(&mut backend, &many(1_200..3_700, 81));
    backend.cleanup().unwrap();
    assert!(!node.rules().contains("TG-"));
}

fn drift_is_repaired(node: Node) {
    let (mut backend, wanted) = (node.open(), wanted());
    sync(&mut backend, &wanted, Scope::Full);
    let right = node.state();
    let chain = |prefix: &str| {
        let rules = node.rules();
        let chains = rules.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        chains.map(str::to_owned).find(|chain| chain.starts_with(prefix)).unwrap()
    };
    let (web, sticky) = (chain("TG-S-web"), chain("TG-S-sticky"));
    for (drift, lines) in [
        (format!("iptables -t nat -F {web}"), vec![format!("IPv4: chain {web} was altered")]),
        (format!("iptables -t nat -I {web} -j RETURN"), vec![format!("IPv4: chain {web} was altered")]),
        (format!("iptables -t nat -D {sticky} 1"), vec![format!("IPv4: chain {sticky} was altered")]),
        (
            "iptables -t nat -N TG-S-other-AAAAAAAAAAAAA".to_owned(),
            vec!["IPv4: chain TG-S-other-AAAAAAAAAAAAA was not wanted".to_owned()],
        ),
        ("ip6tables -F TOLLGATE-FILTER".to_owned(), vec!["IPv6: chain TOLLGATE-FILTER was altered".to_owned()]),
        (
            "iptables -t nat -D PREROUTING -j TOLLGATE-SERVICES".to_owned(),
            vec!["IPv4: the rules of PREROUTING that lead to ours were not as they should be".to_owned()],
        ),
        (
            "ipset del TOLLGATE-4-CLUSTER-IPS 10.96.0.1".to_owned(),
            vec!["IPv4: set TOLLGATE-4-CLUSTER-IPS: 10.96.0.1 was missing".to_owned()],
        ),
        (
            "ipset add TOLLGATE-6-DROP 2001:db8::1,tcp:80".to_owned(),
            vec!["IPv6: set TOLLGATE-6-DROP: 2001:db8::1,tcp:80 was not wanted".to_owned()],
        ),
        (
            "ipset add TOLLGATE-4-REJECT 192.0.2.1,icmp:8/0".to_owned(),
            vec!["IPv4: set TOLLGATE-4-REJECT: 192.0.2.1,icmp:echo-request was not ours".to_owned()],
        ),
        (
            "ipset create TG-A4-other-AAAAAAAAAAAAA hash:ip".to_owned(),
            vec!["IPv4: set TG-A4-other-AAAAAAAAAAAAA was not wanted".to_owned()],
        ),
    ] {
        match drift.split_once(' ').unwrap() {
            ("ipset", arguments) => drop(run("ipset", arguments)),
            (program, arguments) => drop(node.ip4(program, arguments)),
        }
        let report = sync(&mut backend, &wanted, Scope::Full);
        assert_eq!((report.changed, report.repaired), (0, lines), "{drift}");
        assert_state(node, &right, &drift);
    }
}

fn rules_flushed_by_a_firewall_are_repaired(node: Node) {
    let (mut backend, wanted) = (node.open(), wanted());
    sync(&mut backend, &wanted, Scope::Full);
    let right = node.state();
    for program in ["iptables", "ip6tables"] {
        for table in ["nat", "filter"] {
            node.ip4(program, &format!("-t {table} -F"));
            node.ip4(program, &format!("-t {table} -X"));
        }
    }
    let report = sync(&mut backend, &wanted, Scope::Full);
    assert!(!report.repaired.is_empty());
    assert_state(node, &right, "in the end");
}

fn jumps_are_there_once_and_in_order(node: Node) {
    let mut backend = node.open();
    sync(&mut backend, &wanted(), Scope::Full);
    let right = node.rules();
    for command in [
        "-A FORWARD -m conntrack --ctstate NEW -j TOLLGATE-FILTER",
        "-I FORWARD 1 -j TOLLGATE-FORWARD",
        "-t nat -A INPUT -j TOLLGATE-SERVICES",
        "-D FORWARD -j TOLLGATE-FORWARD",
        "-D FORWARD 1",
    ] {
        // A jump into the nat chains from INPUT is refused by the kernel where these hold DNAT: no drift then.
        if Command::new(format!("iptables-{}", node.variant)).args(command.split(' ')).status().unwrap().success() {
            sync(&mut backend, &wanted(), Scope::Full);
            assert_eq!(node.rules(), right, "{command}");
        }
    }
    let of_forward: Vec<_> = right.lines().filter(|line| line.starts_with("-A FORWARD")).collect();
    assert_eq!(
        of_forward[..2],
        ["-A FORWARD -m conntrack --ctstate NEW -j TOLLGATE-FILTER", "-A FORWARD -j TOLLGATE-FORWARD"]
    );
}

/// A chain that is to go can't: somebody's rule leads to it.
fn a_change_that_is_refused_becomes_a_full_sync(node: Node) {
    let (mut backend, wanted) = (node.open(), wanted());
    sync(&mut backend, &wanted, Scope::Full);
    let rules = node.rules();
    let chains = rules.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    let chain = chains.clone().find(|chain| chain.starts_with("TG-S-sticky")).unwrap();
    node.ip4("iptables", "-t nat -N OTHER");
    node.ip4("iptables", &format!("-t nat -A OTHER -g {chain}"));
    let other = {
        let mut other = without(&wanted, &["sticky"]);
        let late = service("late", Protocol::Tcp, 20, &[1]);
        other.service_ports.insert(late.name.clone(), Arc::new(late));
        other
    };
    let report = sync(&mut backend, &other, Scope::Changes);
    assert_eq!(report.refused, vec![], "nobody is to blame");
    let rules = node.rules();
    assert!(rules.contains("test/late") && !rules.contains("test/sticky"));
    let of_chain: Vec<_> = rules.lines().filter(|line| line.contains(chain)).collect();
    assert_eq!(of_chain, [format!(":{chain} -"), format!("-A OTHER -g {chain}")], "emptied");
    node.ip4("iptables", "-t nat -F OTHER");
    node.ip4("iptables", "-t nat -X OTHER");
    sync(&mut backend, &other, Scope::Full);
    assert!(!node.rules().contains(chain));
    assert_right(&mut backend, &other);
}

fn a_set_that_others_use_holds_up_nobody(node: Node) {
    let (mut backend, wanted) = (node.open(), wanted());
    sync(&mut backend, &wanted, Scope::Full);
    let set = run("ipset", "list -name").lines().find(|it| it.starts_with("TG-A4-sticky")).unwrap().to_owned();
    node.ip4("iptables", "-N OTHER");
    node.ip4("iptables", &format!("-A OTHER -m set --match-set {set} src -j RETURN"));
    sync(&mut backend, &without(&wanted, &["sticky"]), Scope::Changes);
    assert!(!node.rules().contains("test/sticky"));
    assert!(run("ipset", "list -name").contains(&set));
    node.ip4("iptables", "-F OTHER");
    node.ip4("iptables", "-X OTHER");
    sync(&mut backend, &without(&wanted, &["sticky"]), Scope::Full);
    assert!(!run("ipset", "list -name").contains(&set));
}

fn what_the_plan_refuses_holds_up_nobody(node: Node) {
    let mut wanted = wanted();
    let second = service("zz-claims-what-web-has", Protocol::Tcp, 1, &[1]);
    wanted.service_ports.insert(second.name.clone(), Arc::new(second));
    let mut backend = node.open();
    for scope in [Scope::Full, Scope::Changes, Scope::Full] {
        let report = sync(&mut backend, &wanted, scope);
        let refused: Vec<_> = report.refused.iter().map(|(name, _)| &*name.service.name).collect();
        assert_eq!(refused, ["zz-claims-what-web-has"]);
    }
    // It gets the frontend once the other lets go.
    wanted.service_ports.remove(&service("web", Protocol::Tcp, 1, &[]).name);
    sync(&mut backend, &wanted, Scope::Changes);
    assert_eq!(sync(&mut backend, &wanted, Scope::Full).refused, vec![]);
    assert!(node.rules().contains("--comment \"test/zz-claims-what-web-has\""));
}

/// Somebody has made a set of another type under the name that clients of one Service's endpoint are kept under, and uses it:
/// it can't be replaced.
fn what_the_kernel_refuses_holds_up_nobody(node: Node) {
    let (mut backend, wanted) = (node.open(), wanted());
    sync(&mut backend, &wanted, Scope::Full);
    let set = run("ipset", "list -name").lines().find(|it| it.starts_with("TG-A4-sticky")).unwrap().to_owned();
    let right = node.state();
    backend.cleanup().unwrap();
    run("ipset", &format!("create {set} hash:net,port"));
    node.ip4("iptables", "-t filter -N OTHER");
    node.ip4("iptables", &format!("-A OTHER -m set --match-set {set} src,src -j RETURN"));
    for scope in [Scope::Full, Scope::Changes, Scope::Full] {
        let report = sync(&mut backend, &wanted, scope);
        let refused: Vec<_> = report.refused.iter().map(|(name, _)| &*name.service.name).collect();
        assert_eq!(refused, ["sticky"], "{:?}", report.refused);
        assert!(node.rules().contains("--comment \"test/web\""));
        assert!(!node.rules().contains("--comment \"test/sticky\""));
    }
    // The transaction after one that was refused is as quick as any, which nf_tables alone does not see to.
    node.ip4("iptables", "-t filter -F OTHER");
    node.ip4("iptables", "-t filter -X OTHER");
    run("ipset", &format!("destroy {set}"));
    let report = sync(&mut backend, &wanted, Scope::Full);
    assert_eq!(report.refused, vec![]);
    assert_state(node, &right, "in the end");
}

fn a_node_s_addresses_and_pod_ranges_are_followed(node: Node) {
    let node_config = NodeConfig { detect_local: DetectLocal::NodeCidr, ..config() };
    let mut backend = node.open_with(&node_config);
    let bare = snapshot(services());
    sync(&mut backend, &bare, Scope::Full);
    for (addresses, pod_cidrs) in [
        (&["192.0.2.1", "2001:db8::1"][..], &["10.244.1.0/24"][..]),
        (&["192.0.2.1", "192.0.2.2"], &["10.244.0.0/16", "fd00:244:1::/64"]),
        (&["192.0.2.2"], &["10.244.2.0/23"]),
        (&[], &[]),
    ] {
        let wanted = on_node(bare.clone(), addresses, pod_cidrs);
        sync(&mut backend, &wanted, Scope::Changes);
        let rules = node.rules();
        assert_eq!(rules.matches("-g TOLLGATE-NODEPORTS").count(), addresses.len());
        assert_eq!(rules.matches("-A TOLLGATE-OFF-CLUSTER -s ").count(), pod_cidrs.len());
        assert_right(&mut backend, &wanted);
        assert_eq!(sync(&mut node.open_with(&node_config), &wanted, Scope::Full).changed, 0);
    }
}

/// Each parts from the rest at another digit, so that a tree without a bound would be as deep as an address has digits: more
/// than the nft variant takes.
fn addresses_chosen_to_make_the_tree_deep_load(node: Node) {
    let mut all = Vec::new();
    let mut add = |ip: IpAddr| {
        let mut it = service(&format!("deep-{}", all.len()), Protocol::Tcp, 0, &[1]);
        it.node_port = Some(30_000 + u16::try_from(all.len()).unwrap());
        it.frontends = vec![Frontend { ip, port: 80, protocol: Protocol::Tcp, origin: FrontendOrigin::ExternalIp }];
        it.external_traffic_policy = TrafficPolicy::Local;
        all.push(it);
    };
    let base: u128 = 0x2001_0db8 << 96;
    for digit in 0..30 {
        add(IpAddr::from((base | 1_u128 << (4 * digit)).to_be_bytes()));
    }
    for last in 0..40 {
        add(IpAddr::from((base | (last << 120) >> 120).to_be_bytes()));
    }
    for digit in 0..8 {
        add(IpAddr::from((0xc000_0000_u32 | 1 << (4 * digit)).to_be_bytes()));
    }
    for last in 0..40_u8 {
        add([192, 0, 0, 64 + last].into());
    }
    all.sort_by(|a, b| a.frontends.cmp(&b.frontends));
    all.dedup_by(|a, b| a.frontends == b.frontends);
    let wanted = on_node(snapshot(all), &["192.0.2.1", "2001:db8:2::1"], &[]);
    // Somebody jumps to ours.
    let mut backend = node.open();
    assert_eq!(sync(&mut backend, &wanted, Scope::Full).refused, vec![]);
    assert_right(&mut backend, &wanted);
    for program in ["iptables", "ip6tables"] {
        for (chain, to) in [("OTHER", "TOLLGATE-SERVICES"), ("ANOTHER", "OTHER")] {
            node.ip4(program, &format!("-t nat -N {chain}"));
            node.ip4(program, &format!("-t nat -A {chain} -j {to}"));
        }
        node.ip4(program, "-t nat -A PREROUTING -j ANOTHER");
    }
    sync(&mut backend, &snapshot([]), Scope::Changes);
    sync(&mut backend, &wanted, Scope::Changes);
}

fn what_is_observed_is_what_was_synced(node: Node) {
    let wanted = wanted();
    sync(&mut node.open(), &wanted, Scope::Full);
    let observed = Iptables::open_for_cleanup().observe().unwrap();
    assert_eq!(
        observed.node_port_addresses.iter().collect::<BTreeSet<_>>(),
        wanted.node_port_addresses.iter().collect()
    );
    assert_eq!(observed.foreign, Vec::<String>::new());
    let names: Vec<_> = observed.service_ports.iter().map(|it| (it.name.as_str(), it.family)).collect();
    let expected: Vec<_> =
        wanted.service_ports.keys().flat_map(|name| IpFamily::ALL.map(|family| (name.to_string(), family))).collect();
    assert!(names.iter().copied().eq(expected.iter().map(|(name, family)| (name.as_str(), *family))), "{names:?}");
    let found = |name: &str| observed.service_ports.iter().find(|it| it.name == name).unwrap();
    let at = |hosts: &[u8]| hosts.iter().map(|host| ([10, 244, 0, *host], 8080).into()).collect();
    let edge = found("test/edge");
    assert_eq!(edge.cluster, Some(ObservedPool::Endpoints(at(&[3, 4, 5]))));
    assert_eq!(edge.local, Some(ObservedPool::Endpoints(at(&[5]))));
    assert_eq!(edge.affinity_timeout, Some(Duration::from_secs(10_800)));
    let frontends: Vec<_> =
        edge.frontends.iter().map(|it| (it.origin, it.ip.map(|ip| ip.to_string()), it.port)).collect();
    let external = |ip: &str| (ObservedOrigin::External, Some(ip.to_owned()), 80);
    assert_eq!(
        frontends,
        [external("203.0.113.8"), external("203.0.113.108"), (ObservedOrigin::NodePort, None, 30_008)]
    );
    assert_eq!(edge.frontends[1].source_ranges, Some(cidrs(&["192.0.2.0/24", "198.51.100.7/32"])));
    assert_eq!(edge.frontends[0].source_ranges, None);
    assert!(edge.frontends.iter().all(|it| it.traffic_policy == TrafficPolicy::Local && it.connections == Some(0)));
    let local = found("test/local");
    assert_eq!((&local.cluster, &local.local), (&None, &Some(ObservedPool::Endpoints(at(&[9])))));
    assert_eq!(found("test/empty").cluster, Some(ObservedPool::Reject));
    assert_eq!(found("test/shop").frontends[0].traffic_policy, TrafficPolicy::Cluster);
}

fn cleanup_is_complete_and_leaves_others_alone(node: Node) {
    for command in ["-t nat -N TG-OTHER", "-t nat -A POSTROUTING -j TG-OTHER", "-N TOLLGATE", "-A FORWARD -j TOLLGATE"]
    {
        node.ip4("iptables", command);
    }
    run("ipset", "create TG-A-other hash:ip");
    run("ipset", "add TG-A-other 192.0.2.1");
    let (mut backend, wanted) = (node.open(), wanted());
    // Tables and their built-in chains are everybody's, and stay.
    sync(&mut backend, &snapshot([]), Scope::Full);
    backend.cleanup().unwrap();
    let before = node.state();
    backend.cleanup().unwrap();
    sync(&mut backend, &wanted, Scope::Full);
    Iptables::open_for_cleanup().cleanup().unwrap();
    assert_state(node, &before, "in the end");
    assert!(before.contains("-A POSTROUTING -j TG-OTHER") && before.contains("add TG-A-other 192.0.2.1"));
    backend.cleanup().unwrap();
    assert_state(node, &before, "in the end");
    // Who cleans up and changes his mind gets it all back.
    sync(&mut backend, &wanted, Scope::Changes);
    assert_right(&mut backend, &wanted);
}

fn what_was_left_elsewhere_is_swept(node: Node) {
    sync(&mut node.open(), &wanted(), Scope::Full);
    let mut backend = node.open_with(&NodeConfig { families: vec![IpFamily::V4], ..config() });
    sync(&mut backend, &wanted(), Scope::Full);
    assert!(!node.ip4("ip6tables-save", "").contains("TOLLGATE"));
    assert!(node.ip4("iptables-save", "").contains("TOLLGATE"));
    // The kubelet has changed to the other variant, and so does a proxy that starts then.
    let other = Node::using(node.variant.other());
    node.ip4("iptables", "-t mangle -X KUBE-IPTABLES-HINT");
    let mut backend = other.open();
    sync(&mut backend, &wanted(), Scope::Full);
    assert!(!node.rules().contains("TOLLGATE"));
    assert_right(&mut backend, &wanted());
}
