//! The nftables backend on the real kernel, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::Snapshot;
use tollgate_proxy::backend::forward::{DropPolicy, drop_policies};
use tollgate_proxy::backend::nftables::Nftables;
use tollgate_proxy::backend::{
    Backend, DetectLocal, NodeConfig, ObservedFrontend, ObservedOrigin, ObservedPool, Report, Scope,
};

use crate::netns::isolated;
use crate::sample::{service, snapshot};
use crate::sorts::{cidrs, config, on_node, services};

mod netns;
mod sample;
mod sorts;

fn main() -> ExitCode {
    let tests: [(&str, fn()); 24] = [
        ("a_sync_makes_what_a_full_sync_finds_right", a_sync_makes_what_a_full_sync_finds_right),
        ("a_change_writes_only_what_it_changes", a_change_writes_only_what_it_changes),
        ("a_restart_with_the_same_snapshot_writes_nothing", a_restart_with_the_same_snapshot_writes_nothing),
        ("a_restart_with_another_snapshot_keeps_what_stays", a_restart_with_another_snapshot_keeps_what_stays),
        ("tables_that_nobody_has_changed_are_not_read", tables_that_nobody_has_changed_are_not_read),
        ("a_change_between_two_of_ours_is_noticed", a_change_between_two_of_ours_is_noticed),
        ("a_deleted_element_is_repaired", a_deleted_element_is_repaired),
        ("an_altered_element_is_repaired", an_altered_element_is_repaired),
        ("a_foreign_element_is_swept", a_foreign_element_is_swept),
        ("a_foreign_chain_and_set_in_our_table_are_swept", a_foreign_chain_and_set_in_our_table_are_swept),
        ("flushed_added_and_deleted_rules_are_repaired", flushed_added_and_deleted_rules_are_repaired),
        ("a_rule_replaced_under_the_same_comment_is_repaired", a_rule_replaced_under_the_same_comment_is_repaired),
        ("a_deleted_table_is_made_anew", a_deleted_table_is_made_anew),
        ("a_set_declared_otherwise_is_made_anew_in_place", a_set_declared_otherwise_is_made_anew_in_place),
        ("a_change_that_meets_drift_becomes_a_full_sync", a_change_that_meets_drift_becomes_a_full_sync),
        ("what_is_refused_holds_up_nobody", what_is_refused_holds_up_nobody),
        ("a_node_s_addresses_and_pod_ranges_are_followed", a_node_s_addresses_and_pod_ranges_are_followed),
        ("what_local_pods_are_told_by_is_changed_by_a_restart", what_local_pods_are_told_by_is_changed_by_a_restart),
        ("what_is_observed_is_what_was_synced", what_is_observed_is_what_was_synced),
        ("a_dump_needs_no_daemon", a_dump_needs_no_daemon),
        ("policies_that_drop_forwarded_packets_are_found", policies_that_drop_forwarded_packets_are_found),
        ("foreign_tables_are_untouched", foreign_tables_are_untouched),
        ("cleanup_is_complete_and_idempotent", cleanup_is_complete_and_idempotent),
        ("a_family_that_the_node_lacks_has_no_table", a_family_that_the_node_lacks_has_no_table),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, move || isolated(test)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

// === what is synced ===

fn open() -> Nftables {
    Nftables::open(&config()).unwrap()
}

// === what is asked ===

fn sync(backend: &mut Nftables, snapshot: &Snapshot, scope: Scope) -> Report {
    backend.sync(snapshot, scope).unwrap()
}

/// The elements of one set, in both tables.
fn elements(backend: &Nftables, set: &str) -> Vec<String> {
    let of_set = |line: &String| {
        let (_, rest) = line.split_once(" tollgate ")?;
        Some(rest.strip_prefix(set)?.strip_prefix(' ')?.to_owned())
    };
    backend.objects().unwrap().iter().filter_map(of_set).collect()
}

/// The last sync's result is what the kernel has, and another full sync agrees.
#[track_caller]
fn assert_right(backend: &mut Nftables, snapshot: &Snapshot) {
    // Where nobody has changed any table since, the kernel would not even be read.
    nft("add table ip bystander");
    nft("delete table ip bystander");
    let report = sync(backend, snapshot, Scope::Full);
    assert_eq!((report.changed, report.repaired), (0, vec![]));
}

#[track_caller]
fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Syncs, has something done to the kernel, and expects the next full sync to repair it, with these lines in its report.
#[track_caller]
fn assert_repairs(drift: &[&str], lines: &[&str]) {
    let (mut backend, wanted) = (open(), snapshot(services()));
    sync(&mut backend, &wanted, Scope::Full);
    let right = backend.objects().unwrap();
    drift.iter().for_each(|arguments| drop(nft(arguments)));
    let report = sync(&mut backend, &wanted, Scope::Full);
    assert_eq!((report.changed, report.repaired), (0, lines.iter().map(ToString::to_string).collect()));
    assert_eq!(backend.objects().unwrap(), right);
    assert_right(&mut backend, &wanted);
}

// === the tests ===

fn a_sync_makes_what_a_full_sync_finds_right() {
    let (mut backend, wanted) = (open(), snapshot(services()));
    assert!(sync(&mut backend, &wanted, Scope::Full).changed > 0);
    assert_right(&mut backend, &wanted);
    assert_eq!(elements(&backend, "frontends").len(), 20);
    assert_eq!(elements(&backend, "nodeports").len(), 4);
    assert_eq!(elements(&backend, "lb_ranges").len(), 3);
    // By changes, from nothing and back to nothing, it comes to the same.
    for wanted in [snapshot([]), wanted, snapshot([])] {
        sync(&mut backend, &wanted, Scope::Changes);
        let report = sync(&mut backend, &wanted, Scope::Full);
        assert_eq!(report.repaired, Vec::<String>::new());
    }
    assert_eq!(elements(&backend, "frontends").len(), 0);
}

fn a_change_writes_only_what_it_changes() {
    let web = |endpoints: &[u8]| snapshot([service("web", Protocol::Tcp, 1, endpoints)]);
    let mut backend = open();
    sync(&mut backend, &web(&[1, 2, 3]), Scope::Full);
    // In each family one slot and one hairpin element, since the local endpoint is another; the former one's stays a while.
    assert_eq!(sync(&mut backend, &web(&[1, 2, 4]), Scope::Changes).changed, 2 * 2);
    // One slot and the frontend's word; the count's chain was made with the table.
    assert_eq!(sync(&mut backend, &web(&[1, 2, 5, 4]), Scope::Changes).changed, 2 * 2);
    assert_eq!(sync(&mut backend, &web(&[1, 2, 4]), Scope::Changes).changed, 2 * 2);
    assert_eq!(sync(&mut backend, &web(&[1, 2, 4]), Scope::Changes).changed, 0);
    // More than was expected: seven slots and the word, and a chain and its element in `picks`.
    assert_eq!(sync(&mut backend, &web(&[1, 2, 3, 5, 6, 7, 8, 9, 10, 4]), Scope::Changes).changed, 2 * 10);
}

fn a_restart_with_the_same_snapshot_writes_nothing() {
    let wanted = snapshot(services());
    sync(&mut open(), &wanted, Scope::Full);
    // Slots that are not in the order of the snapshot any more.
    let mut backend = open();
    let mut moved = wanted.clone();
    moved.service_ports.extend(
        [service("web", Protocol::Tcp, 1, &[2, 3]), service("dns", Protocol::Udp, 2, &[1, 4, 5])]
            .map(|it| (it.name.clone(), Arc::new(it))),
    );
    sync(&mut backend, &moved, Scope::Full);
    sync(&mut backend, &moved, Scope::Full);
    let before = nft("-a -s list ruleset");
    let report = sync(&mut open(), &moved, Scope::Full);
    assert_eq!((report.changed, report.repaired), (0, vec![]));
    assert_eq!(nft("-a -s list ruleset"), before);
}

fn a_restart_with_another_snapshot_keeps_what_stays() {
    sync(&mut open(), &snapshot(services()), Scope::Full);
    let mut backend = open();
    let web = "fd00:96::1 . tcp . 80";
    let word = |backend: &Nftables| elements(backend, "frontends").into_iter().find(|it| it.starts_with(web)).unwrap();
    let before = word(&backend);
    // One Service is gone, and one is new that comes first.
    let mut wanted = services();
    wanted.retain(|it| &*it.name.service.name != "dns");
    wanted.push(service("a", Protocol::Tcp, 9, &[1, 2, 3]));
    let report = sync(&mut backend, &snapshot(wanted.clone()), Scope::Full);
    assert!(report.changed > 0);
    assert_eq!(report.repaired, Vec::<String>::new(), "at a start, nothing was this process's");
    assert_eq!(word(&backend), before);
    assert!(!elements(&backend, "frontends").iter().any(|it| it.starts_with("10.96.0.2 ")));
    sync(&mut backend, &snapshot(wanted.clone()), Scope::Full);
    assert_right(&mut backend, &snapshot(wanted));
}

fn tables_that_nobody_has_changed_are_not_read() {
    let mut backend = open();
    let mut wanted = snapshot(services());
    sync(&mut backend, &wanted, Scope::Full);
    let at_start = backend.reads();
    wanted = snapshot(services().into_iter().skip(1));
    assert!(sync(&mut backend, &wanted, Scope::Changes).changed > 0);
    for _ in 0..3 {
        let report = sync(&mut backend, &wanted, Scope::Full);
        assert_eq!(report.repaired, Vec::<String>::new());
    }
    // A full sync writes what the snapshot has anew, read or not.
    wanted = snapshot(services());
    assert!(sync(&mut backend, &wanted, Scope::Full).changed > 0);
    assert_eq!(backend.reads(), at_start);
    assert_right(&mut backend, &wanted);
    // Both tables, because somebody has changed another.
    assert_eq!(backend.reads(), at_start + 2);
}

/// Neither by the transaction after it, nor by the comparison after that, may it be taken for ours.
fn a_change_between_two_of_ours_is_noticed() {
    let mut backend = open();
    let wanted = snapshot(services());
    sync(&mut backend, &wanted, Scope::Full);
    nft("flush chain ip tollgate postrouting");
    let fewer = snapshot(services().into_iter().skip(1));
    assert!(sync(&mut backend, &fewer, Scope::Changes).changed > 0);
    let report = sync(&mut backend, &fewer, Scope::Full);
    assert!(report.repaired.iter().any(|line| line.contains("postrouting")), "{:?}", report.repaired);
}

fn a_deleted_element_is_repaired() {
    assert_repairs(
        &["delete element ip tollgate cluster_ips { 10.96.0.1 }", "flush map ip6 tollgate slots_udp"],
        &[
            "ip tollgate: cluster_ips { 10.96.0.1 } was missing",
            "ip6 tollgate: slots_udp { 0:4000 . 0 } was missing",
            "ip6 tollgate: slots_udp { 0:4000 . 1 } was missing",
        ],
    );
}

fn an_altered_element_is_repaired() {
    assert_repairs(
        &[
            "delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }",
            "add element ip tollgate frontends { 10.96.0.1 . tcp . 80 : 0:11 }",
        ],
        // It lacks the Service's name as well.
        &["ip tollgate: frontends { 10.96.0.1 . tcp . 80 } was 0:11 for "],
    );
}

fn a_foreign_element_is_swept() {
    assert_repairs(
        &[
            "add element ip tollgate frontends { 192.0.2.1 . tcp . 80 : 0:11 }",
            "add element ip tollgate frontends { 192.0.2.1 . 253 . 80 : none }",
            "add element ip tollgate picks { 0:99 : accept }",
            "add element ip tollgate lb_ranges { 2:6 . 192.0.2.3-192.0.2.9 }",
            "add element ip tollgate hairpin { 192.0.2.1 . 192.0.2.2 }",
            "add element ip tollgate service_cidrs { 10.1.0.3-10.1.0.9 }",
        ],
        &[
            "ip tollgate: service_cidrs { 10.1.0.3-10.1.0.9 } was not ours",
            "ip tollgate: hairpin { 192.0.2.1 . 192.0.2.2 } was not ours",
            "ip tollgate: lb_ranges { 2:6 . 192.0.2.3-192.0.2.9 } was not ours",
            "ip tollgate: frontends { 192.0.2.1 . tcp . 80 } was not ours",
            "ip tollgate: frontends { 192.0.2.1 . 253 . 80 } was not ours",
            "ip tollgate: picks { 0:99 } was not ours",
        ],
    );
}

fn a_foreign_chain_and_set_in_our_table_are_swept() {
    assert_repairs(
        &[
            "add chain ip tollgate intruder",
            "add rule ip tollgate intruder drop",
            "add set ip tollgate intruders { type ipv4_addr; }",
            "add element ip tollgate intruders { 192.0.2.1 }",
        ],
        &["ip tollgate: set intruders was not ours", "ip tollgate: chain intruder was not ours"],
    );
}

fn flushed_added_and_deleted_rules_are_repaired() {
    let (mut backend, wanted) = (open(), snapshot(services()));
    sync(&mut backend, &wanted, Scope::Full);
    let right = nft("-s list ruleset");
    nft("flush chain ip tollgate dispatch");
    nft("insert rule ip6 tollgate cluster-tcp-3 accept");
    nft("flush chain ip tollgate prerouting");
    nft("delete chain ip tollgate prerouting");
    let report = sync(&mut backend, &wanted, Scope::Full);
    assert_eq!(report.repaired.len(), 3, "{:?}", report.repaired);
    assert_eq!(lines(&nft("-s list ruleset")), lines(&right), "but for the order of chains");
    assert_right(&mut backend, &wanted);
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn a_rule_replaced_under_the_same_comment_is_repaired() {
    let mark = "meta mark set meta mark | 0x4000 comment \"off-cluster-masquerade\"";
    assert_repairs(
        &[
            "flush chain ip tollgate off-cluster",
            "add rule ip tollgate off-cluster ip saddr @local_pods drop comment \"pod-source-kept\"",
            &format!("add rule ip tollgate off-cluster {mark}"),
        ],
        &["ip tollgate: chain off-cluster was 2 rules: pod-source-kept, off-cluster-masquerade"],
    );
}

fn a_deleted_table_is_made_anew() {
    assert_repairs(&["delete table ip6 tollgate"], &["table ip6 tollgate was missing"]);
}

fn a_set_declared_otherwise_is_made_anew_in_place() {
    nft("add table ip tollgate");
    nft("add map ip tollgate frontends { type ipv4_addr . inet_service : verdict; }");
    nft("add chain ip tollgate dispatch");
    nft("add rule ip tollgate dispatch ip daddr . tcp dport vmap @frontends");
    nft("add chain ip tollgate prerouting { type nat hook prerouting priority -100; }");
    nft("add rule ip tollgate prerouting jump dispatch");
    let handle = |listing: &str| listing.lines().find(|it| it.contains("chain prerouting")).map(str::to_owned);
    let before = handle(&nft("-a list ruleset"));
    let (mut backend, wanted) = (open(), snapshot(services()));
    sync(&mut backend, &wanted, Scope::Full);
    assert_right(&mut backend, &wanted);
    assert_eq!(handle(&nft("-a list ruleset")), before, "the nat chain stays, and with it established connections");
}

fn a_change_that_meets_drift_becomes_a_full_sync() {
    let (mut backend, wanted) = (open(), snapshot(services()));
    sync(&mut backend, &wanted, Scope::Full);
    nft("delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }");
    nft("flush set ip tollgate hairpin");
    sync(&mut backend, &snapshot([]), Scope::Changes);
    assert_eq!(elements(&backend, "frontends"), Vec::<String>::new());
    sync(&mut backend, &snapshot([]), Scope::Full);
    assert_right(&mut backend, &snapshot([]));
}

fn what_is_refused_holds_up_nobody() {
    let mut all = services();
    all.push(service("zz-claims-what-web-has", Protocol::Tcp, 1, &[1]));
    let wanted = snapshot(all);
    let mut backend = open();
    for scope in [Scope::Full, Scope::Changes, Scope::Full] {
        let report = sync(&mut backend, &wanted, scope);
        let refused: Vec<_> = report.refused.iter().map(|(name, _)| &*name.service.name).collect();
        assert_eq!(refused, ["zz-claims-what-web-has"]);
        assert_eq!(elements(&backend, "frontends").len(), 20);
    }
    // It gets the frontend once the other lets go.
    let mut rest = wanted.clone();
    rest.service_ports.remove(&service("web", Protocol::Tcp, 1, &[]).name);
    sync(&mut backend, &rest, Scope::Changes);
    let report = sync(&mut backend, &rest, Scope::Full);
    assert_eq!(report.refused, vec![]);
    assert_eq!(elements(&backend, "frontends").len(), 20);
}

fn a_node_s_addresses_and_pod_ranges_are_followed() {
    let node = NodeConfig { detect_local: DetectLocal::NodeCidr, ..config() };
    let mut backend = Nftables::open(&node).unwrap();
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
        assert_eq!(elements(&backend, "nodeport_ips").len(), addresses.len());
        assert_eq!(elements(&backend, "local_pods").len(), pod_cidrs.len());
        assert_right(&mut backend, &wanted);
        let mut restarted = Nftables::open(&node).unwrap();
        assert_eq!(sync(&mut restarted, &wanted, Scope::Full).changed, 0);
    }
}

fn what_local_pods_are_told_by_is_changed_by_a_restart() {
    let wanted = snapshot(services());
    for detect_local in [
        DetectLocal::Nothing,
        DetectLocal::ClusterCidr(cidrs(&["10.244.0.0/16"])),
        DetectLocal::BridgeInterface("cbr0".to_owned()),
        DetectLocal::InterfaceNamePrefix("veth".to_owned()),
    ] {
        let mut backend = Nftables::open(&NodeConfig { detect_local, ..config() }).unwrap();
        let changed = sync(&mut backend, &wanted, Scope::Full).changed;
        assert!(changed > 0);
        assert_right(&mut backend, &wanted);
    }
    assert!(nft("list chain ip6 tollgate off-cluster").contains("iifname \"veth*\" return"));
}

fn what_is_observed_is_what_was_synced() {
    let mut backend = open();
    let wanted = on_node(snapshot(services()), &["192.0.2.1", "2001:db8::1"], &[]);
    sync(&mut backend, &wanted, Scope::Full);
    nft("add element ip tollgate picks { 0:99 : accept }");
    let observed = Nftables::open_for_cleanup().unwrap().observe().unwrap();
    assert_eq!(
        observed.node_port_addresses.iter().collect::<BTreeSet<_>>(),
        wanted.node_port_addresses.iter().collect()
    );
    assert_eq!(observed.foreign, ["ip tollgate: picks { 0:99 } accept"]);
    let names: Vec<_> = observed.service_ports.iter().map(|it| (it.name.as_str(), it.family)).collect();
    let expected: Vec<_> =
        wanted.service_ports.keys().flat_map(|name| IpFamily::ALL.map(|family| (name.to_string(), family))).collect();
    assert!(names.into_iter().eq(expected.iter().map(|(name, family)| (name.as_str(), *family))));
    let found = |name: &str| observed.service_ports.iter().find(|it| it.name == name).unwrap();
    let at = |hosts: &[u8]| hosts.iter().map(|host| ([10, 244, 0, *host], 8080).into()).collect();
    let edge = found("test/edge");
    assert_eq!(edge.cluster, Some(ObservedPool::Endpoints(at(&[3, 4, 5]))));
    assert_eq!(edge.local, Some(ObservedPool::Endpoints(at(&[5]))));
    assert_eq!(edge.affinity_timeout, Some(Duration::from_secs(10_800)));
    let frontend = |origin, ip: Option<&str>, port| ObservedFrontend {
        origin,
        ip: ip.map(|ip| ip.parse().unwrap()),
        port,
        traffic_policy: TrafficPolicy::Local,
        source_ranges: None,
        connections: Some(0),
    };
    let mut guarded = frontend(ObservedOrigin::External, Some("203.0.113.108"), 80);
    guarded.source_ranges = Some(cidrs(&["192.0.2.0/24", "198.51.100.7/32"]));
    let expected = [
        frontend(ObservedOrigin::External, Some("203.0.113.8"), 80),
        guarded,
        frontend(ObservedOrigin::NodePort, None, 30_008),
    ];
    assert_eq!(edge.frontends, expected);
    let local = found("test/local");
    assert_eq!((&local.cluster, &local.local), (&None, &Some(ObservedPool::Endpoints(at(&[9])))));
    assert_eq!(local.frontends, [frontend(ObservedOrigin::ClusterIp, Some("10.96.0.4"), 80)]);
    assert_eq!(found("test/empty").cluster, Some(ObservedPool::Reject));
}

fn a_dump_needs_no_daemon() {
    let dump = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-proxy"));
        let output = command.arg("dump").args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(dump(""), "the kernel holds nothing of Tollgate's\n");
    sync(&mut open(), &on_node(snapshot(services()), &["192.0.2.1"], &[]), Scope::Full);
    let table = dump("");
    assert!(table.starts_with("mode nftables, NodePorts answer on 192.0.2.1\n"), "{table}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let edge: Vec<_> = table.lines().map(words).filter(|line| line.starts_with("test/edge udp IPv4 ")).collect();
    let expected = [
        "External 203.0.113.8:80 Local 0 10800s",
        "External 203.0.113.108:80 Local 0 10800s 192.0.2.0/24,198.51.100.7/32",
        "NodePort *:30008 Local 0 10800s",
        "endpoint 10.244.0.3:8080 Cluster",
        "endpoint 10.244.0.4:8080 Cluster",
        "endpoint 10.244.0.5:8080 Cluster,Local",
    ];
    assert_eq!(edge, expected.map(|rest| format!("test/edge udp IPv4 {rest}")));
    let json: serde_json::Value = serde_json::from_str(&dump("-o json --proxy-mode nftables")).unwrap();
    assert_eq!(json["modes"][0]["servicePorts"].as_array().unwrap().len(), 16);
}

fn policies_that_drop_forwarded_packets_are_found() {
    let found_of = |families: &[IpFamily]| -> Vec<_> {
        let policies = drop_policies(families).into_iter();
        policies.map(|DropPolicy { chain, remedy }| format!("{chain}: {remedy}")).collect()
    };
    let found = || found_of(&IpFamily::ALL);
    sync(&mut open(), &snapshot(services()), Scope::Full);
    assert_eq!(found(), Vec::<String>::new(), "ours accepts");
    nft("add table inet firewall");
    nft("add chain inet firewall gate { type filter hook forward priority 10; policy drop; }");
    let expected = "the nftables chain inet firewall gate: nft insert rule inet firewall gate ct status dnat accept";
    assert_eq!(found(), [expected]);
    nft(expected.split_once(": nft ").unwrap().1);
    nft("add table bridge firewall");
    nft("add chain bridge firewall gate { type filter hook forward priority 10; policy drop; }");
    assert_eq!(found(), [expected], "a bridge's packets are not forwarded");
    for program in ["ip6tables-nft", "iptables-legacy"] {
        let output = Command::new(program).args(["-P", "FORWARD", "DROP"]).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }
    let legacy = "iptables-legacy's FORWARD: iptables-legacy -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT";
    let ip6 = "the nftables chain ip6 filter FORWARD: ip6tables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT";
    assert_eq!(found(), [ip6, expected, legacy]);
    assert_eq!(found_of(&[IpFamily::V4]), [expected, legacy]);
    for command in [legacy, ip6].map(|text| text.rsplit_once(": ").unwrap().1) {
        let mut words = command.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
}

fn foreign_tables_are_untouched() {
    nft("add table ip other");
    nft("add chain ip other prerouting { type nat hook prerouting priority -110; }");
    nft("add rule ip other prerouting ip daddr 192.0.2.1 dnat to 192.0.2.2");
    nft("add table inet tollgate");
    let before = nft("-a list ruleset");
    let (mut backend, wanted) = (open(), snapshot(services()));
    sync(&mut backend, &wanted, Scope::Full);
    sync(&mut backend, &snapshot([]), Scope::Full);
    backend.cleanup().unwrap();
    assert_eq!(nft("-a list ruleset"), before);
}

fn cleanup_is_complete_and_idempotent() {
    let (mut backend, wanted) = (open(), snapshot(services()));
    backend.cleanup().unwrap();
    sync(&mut backend, &wanted, Scope::Full);
    Nftables::open_for_cleanup().unwrap().cleanup().unwrap();
    assert_eq!(nft("list ruleset"), "");
    backend.cleanup().unwrap();
    assert_eq!(nft("list ruleset"), "");
    // Who cleans up and changes his mind gets it all back.
    sync(&mut backend, &wanted, Scope::Changes);
    assert_right(&mut backend, &wanted);
}

fn a_family_that_the_node_lacks_has_no_table() {
    sync(&mut open(), &snapshot(services()), Scope::Full);
    let mut backend = Nftables::open(&NodeConfig { families: vec![IpFamily::V4], ..config() }).unwrap();
    sync(&mut backend, &snapshot(services()), Scope::Full);
    assert_eq!(nft("list tables"), "table ip tollgate\n");
}
