//! Whole texts, as a reader of the layout expects them.

use std::process::Command;

use FrontendOrigin::{ExternalIp, LoadBalancerIp};

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::backend::nftables::kernel::Kernel;
use crate::backend::nftables::object::{ChainName, FixedChain, Key, SetName, Value};
use crate::backend::nftables::transaction::TableChanges;
use crate::backend::nftables::word::Balance;

/// One of each sort that the layout tells apart.
fn sample() -> Services {
    services([
        service("web", Protocol::Tcp, &[1], &[1, 12, 13]),
        service("dns", Protocol::Udp, &[10], &[1, 14]),
        sticky(service("cart", Protocol::Tcp, &[2], &[11, 12])),
        local(service("agent", Protocol::Tcp, &[3], &[1, 15])),
        local(service("away", Protocol::Tcp, &[4], &[15])),
        service("empty", Protocol::Udp, &[5], &[]),
        service("signals", Protocol::Sctp, &[6], &[11]),
        with_node_port(with_address(service("shop", Protocol::Tcp, &[7], &[1, 12]), ExternalIp, 1), 30_007),
        external_local(sticky(with_node_port(service("edge", Protocol::Udp, &[8], &[1, 2, 12]), 30_008))),
        with_ranges(
            with_address(service("guarded", Protocol::Tcp, &[9], &[12, 13]), LoadBalancerIp, 2),
            &["192.0.2.0/26", "192.0.2.64/26", "198.51.100.7/32"],
            &["2001:db8:1::/48"],
        ),
        with_ranges(
            external_local(with_address(service("guarded-away", Protocol::Tcp, &[11], &[12]), LoadBalancerIp, 3)),
            &["192.0.2.0/24"],
            &[],
        ),
    ])
}

/// Runs a test on a thread that has a network namespace of its own; what it starts inherits that.
fn isolated<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root, or under `unshare -rn`");
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[track_caller]
fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_text(name: &str, found: &str, expected: &str) {
    assert!(found == expected, "{name}: the text is now\n{found}");
}

/// Commits what makes a table of nothing, in a network namespace of its own.
fn committed<T: Send + 'static>(plan: &Plan, then: impl FnOnce(Kernel) -> T + Send + 'static) -> T {
    let changes = diff(&Objects::new(), &plan.objects());
    let tables = [TableChanges { style: plan.style().clone(), changes }];
    isolated(move || {
        let kernel = Kernel::open().unwrap();
        kernel.commit(&tables).unwrap();
        then(kernel)
    })
}

fn listing(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => include_str!("golden/ip.nft"),
        IpFamily::V6 => include_str!("golden/ip6.nft"),
    }
}

fn sample_plan(family: IpFamily) -> Plan {
    let mut plan = plan(family);
    from_nothing(&mut plan, &sample());
    plan
}

/// The files are nft 1.0.6's listings.
#[test]
fn a_table_is_listed_as_its_reader_expects() {
    for family in IpFamily::ALL {
        let found = committed(&sample_plan(family), |_| nft(&["-s", "list", "ruleset"]));
        assert_text(&family.to_string(), &found, listing(family));
    }
}

#[test]
fn what_was_written_is_read_back() {
    for family in IpFamily::ALL {
        let plan = sample_plan(family);
        let listed = committed(&plan, move |kernel| kernel.list(family).unwrap().unwrap());
        assert_eq!(diff(&listed.objects, &plan.objects()), Changes::default(), "{family}");
    }
}

/// Rule for rule and element for element, what nft itself would send for the listing is what was sent.
#[test]
fn nft_means_the_same_by_what_it_lists() {
    for family in IpFamily::ALL {
        let listed = isolated(move || {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, listing(family)).unwrap();
            nft(&["-f", &file.path().to_string_lossy()]);
            Kernel::open().unwrap().list(family).unwrap().unwrap()
        });
        let mut changes = diff(&listed.objects, &sample_plan(family).objects());
        if family == IpFamily::V6 {
            // nft 1.0.6 sends other registers for updates of keys of more than 16 bytes: `Rule::update`.
            let is_sticky = |(key, _): &(Key, Value)| {
                matches!(key, Key::Chain(ChainName::Balance(Balance { timeout: Some(_), .. })))
            };
            changes.delete.retain(|object| !is_sticky(object));
            changes.add.retain(|object| !is_sticky(object));
        }
        assert_eq!(changes, Changes::default(), "{family}");
    }
}

/// The rules of a chain as nft lists them, without their comments.
fn rules(chain: FixedChain) -> Vec<String> {
    let listed = nft(&["list", "chain", "ip", "tollgate", chain.as_str()]);
    let is_rule = |line: &&str| line.starts_with("\t\t");
    let without_comment = |line: &str| line.split(" comment ").next().unwrap_or_default().trim().to_owned();
    listed.lines().filter(is_rule).map(without_comment).collect()
}

#[test]
fn masquerading_follows_the_node() {
    let chains = |detect_local: DetectLocal, masquerade_all| {
        let node = NodeConfig { detect_local, masquerade_all, masquerade_mark: 1 << 31, ..node() };
        let plan = Plan::new(IpFamily::V4, &node, true);
        committed(&plan, |_| (rules(FixedChain::OffCluster), rules(FixedChain::ExtLocal)))
    };
    let mark = "meta mark set meta mark | 0x80000000";
    let tests = |found: Option<&str>| {
        let off_cluster = found.iter().flat_map(|it| [format!("{it} return"), mark.to_owned()]).collect();
        let mut ext_local: Vec<_> = found.iter().map(|it| format!("{it} goto ext-shortcut")).collect();
        ext_local.extend([
            format!("fib saddr type local {mark} goto ext-shortcut"),
            "meta priority set meta priority & ffff:e000 | 0:2000".to_owned(),
            "goto pool".to_owned(),
        ]);
        (off_cluster, ext_local)
    };
    let by_cidr = |texts: &[&str]| DetectLocal::ClusterCidr(cidrs(texts));
    assert_eq!(chains(DetectLocal::Nothing, false), tests(None));
    assert_eq!(chains(by_cidr(&["10.244.0.0/16"]), false), tests(Some("ip saddr @local_pods")));
    assert_eq!(chains(by_cidr(&["fd00:244::/48"]), false), tests(None), "of a family without a detector, nothing");
    assert_eq!(chains(DetectLocal::NodeCidr, false), tests(None), "before the snapshot says");
    assert_eq!(chains(DetectLocal::BridgeInterface("br0".to_owned()), false), tests(Some("iifname \"br0\"")));
    assert_eq!(chains(DetectLocal::InterfaceNamePrefix("veth".to_owned()), false), tests(Some("iifname \"veth*\"")));
    let all = format!("ip daddr @cluster_ips {mark}");
    assert_eq!(chains(by_cidr(&["10.244.0.0/16"]), true).0, [all.as_str()]);
    assert_eq!(chains(DetectLocal::Nothing, true).0, [all.as_str()]);
}

/// Addresses and pod ranges come and go while the proxy runs.
#[test]
fn the_tables_follow_the_node() {
    let mut plan = Plan::new(IpFamily::V4, &NodeConfig { detect_local: DetectLocal::NodeCidr, ..node() }, true);
    let mut step = |addresses: &[&str], pod_cidrs: &[&str]| {
        let snapshot = Snapshot {
            node_port_addresses: Arc::new(addresses.iter().map(|ip| ip.parse().unwrap()).collect()),
            pod_cidrs: cidrs(pod_cidrs).into(),
            ..Snapshot::default()
        };
        let mut edit = Edit::default();
        plan.update_node(&snapshot, &mut edit);
        let mut anew = Plan::new(IpFamily::V4, &NodeConfig { detect_local: DetectLocal::NodeCidr, ..node() }, true);
        anew.update_node(&snapshot, &mut Edit::default());
        assert_eq!(anew.objects(), plan.objects());
        text(&edit.changes())
    };
    assert_eq!(step(&["192.0.2.1", "2001:db8::1"], &[]), "add element nodeport_ips { 192.0.2.1 }\n");
    assert_eq!(step(&["192.0.2.1", "2001:db8::2"], &["fd00:1::/64"]), "", "all that is the other family's");
    let text = step(&["192.0.2.1"], &["10.1.0.0/24"]);
    assert!(text.contains("add chain off-cluster with 2 rules: pod-source-kept, off-cluster-masquerade"), "{text}");
    assert!(text.contains("add chain ext-local with 4 rules: "), "{text}");
    assert!(text.ends_with("add element local_pods { 10.1.0.0/24 }\n"), "{text}");
    assert_eq!(
        step(&["192.0.2.2"], &["10.1.0.0/16"]),
        "delete element local_pods { 10.1.0.0/24 }\n\
         delete element nodeport_ips { 192.0.2.1 }\n\
         add element local_pods { 10.1.0.0/16 }\n\
         add element nodeport_ips { 192.0.2.2 }\n"
    );
    let text = step(&[], &[]);
    assert!(text.contains("add chain off-cluster with 0 rules"), "{text}");
    assert_eq!(step(&[], &[]), "");
}

/// Changes for readers: elements of a set in one line.
fn text(changes: &Changes) -> String {
    let mut lines = Vec::new();
    for (verb, objects) in [("delete", &changes.delete), ("add", &changes.add)] {
        let mut elements: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for (key, value) in objects {
            let is_added = verb == "add";
            let Key::Element(set, key) = key else {
                lines.push(format!("{verb} {key} with {value}"));
                continue;
            };
            elements.entry(set).or_default().push(match value {
                Value::Frontend(word, name) if is_added => format!("{key} comment \"{name}\" : {word}"),
                Value::Present => key.to_string(),
                value if is_added => format!("{key} : {value}"),
                _ => key.to_string(),
            });
        }
        let line =
            |(set, keys): (&SetName, Vec<_>)| format!("{verb} element {} {{ {} }}", set.as_str(), keys.join(", "));
        lines.extend(elements.into_iter().map(line));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// What each change writes, in the words of the layout's table.
#[test]
fn changes_write_little() {
    let web = |endpoints: &[u16]| service("web", Protocol::Tcp, &[1], endpoints);
    let guarded = |ranges: &[&str]| with_ranges(with_address(web(&[11]), LoadBalancerIp, 1), ranges, &[]);
    let cart = |endpoints: &[u16]| sticky(service("cart", Protocol::Tcp, &[2], endpoints));
    let cases = [
        (
            "an endpoint is exchanged: one slot",
            services([web(&[11, 12, 13])]),
            services([web(&[11, 13, 14])]),
            "delete element slots_tcp { 0:4000 . 1 }\n\
             add element slots_tcp { 0:4000 . 1 : 10.244.0.14 . 8080 }\n",
        ),
        (
            "an endpoint goes: the last moves into the hole",
            services([web(&[11, 12, 13]), service("other", Protocol::Tcp, &[9], &[21, 22])]),
            services([web(&[12, 13]), service("other", Protocol::Tcp, &[9], &[21, 22])]),
            "delete element frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element slots_tcp { 0:8000 . 0, 0:8000 . 2 }\n\
             add element frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:8012 }\n\
             add element slots_tcp { 0:8000 . 0 : 10.244.0.13 . 8080 }\n",
        ),
        (
            "an endpoint of this node comes: also a hairpin, and a chain for a count not seen before",
            services([web(&[11])]),
            services([web(&[1, 11])]),
            "delete element frontends { 10.96.0.1 . tcp . 80 }\n\
             add chain cluster-tcp-2 with 3 rules: no-gap-on-update\n\
             add element hairpin { 10.244.0.1 . 10.244.0.1 }\n\
             add element frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:4013 }\n\
             add element picks { 0:13 : goto cluster-tcp-2 }\n\
             add element slots_tcp { 0:4000 . 1 : 10.244.0.1 . 8080 }\n",
        ),
        (
            "with affinity, a new endpoint has a new ref",
            services([cart(&[11, 12])]),
            services([cart(&[12, 13])]),
            "delete element sticky_slots { 0:4000 . 0 }\n\
             delete element refs { 0:4010 }\n\
             add element sticky_slots { 0:4000 . 0 : 0:4012 }\n\
             add element refs { 0:4012 : 10.244.0.13 . 8080 }\n",
        ),
        (
            "the last endpoint goes: refused from now on",
            services([web(&[11])]),
            services([web(&[])]),
            "delete element frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element slots_tcp { 0:4000 . 0 }\n\
             add element frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:4010 }\n",
        ),
        (
            "a Service goes; its ClusterIP has another port and stays",
            services([web(&[11]), service("web-udp", Protocol::Udp, &[1], &[11])]),
            services([web(&[11])]),
            "delete element frontends { 10.96.0.1 . udp . 80 }\n\
             delete element slots_udp { 0:8000 . 0 }\n",
        ),
        (
            "a frontend moves from one Service to another",
            services([web(&[11]), service("next", Protocol::Tcp, &[2], &[11])]),
            services([service("next", Protocol::Tcp, &[1, 2], &[11])]),
            "delete element frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element slots_tcp { 0:8000 . 0 }\n\
             add element frontends { 10.96.0.1 . tcp . 80 comment \"test/next\" : 0:4012 }\n",
        ),
        (
            "an external policy changes: the Local pool comes",
            services([with_node_port(web(&[1, 11]), 30_001)]),
            services([external_local(with_node_port(web(&[1, 11]), 30_001))]),
            "delete element nodeports { tcp . 30001 }\n\
             add chain local-tcp-1 with 2 rules: no-gap-on-update\n\
             add chain again-local-tcp with 2 rules\n\
             add element nodeports { tcp . 30001 comment \"test/web\" : 0:4003 }\n\
             add element pools { 0:6000 : 0:6013 }\n\
             add element picks { 0:13 : goto local-tcp-1 }\n\
             add element slots_tcp { 0:6000 . 0 : 10.244.0.1 . 8080 }\n",
        ),
        (
            "an endpoint goes where frontends have kinds: the pool's class changes with the ClusterIP's",
            services([with_node_port(web(&[11, 12]), 30_001), service("other", Protocol::Tcp, &[9], &[21])]),
            services([with_node_port(web(&[11]), 30_001), service("other", Protocol::Tcp, &[9], &[21])]),
            "delete element frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element pools { 0:8000 }\n\
             delete element slots_tcp { 0:8000 . 1 }\n\
             add element frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:8012 }\n\
             add element pools { 0:8000 : 0:8012 }\n",
        ),
        (
            "a source range is exchanged",
            services([guarded(&["192.0.2.0/24"])]),
            services([guarded(&["192.0.2.0/25"])]),
            "delete element lb_ranges { 0:4006 . 192.0.2.0/24 }\n\
             add element lb_ranges { 0:4006 . 192.0.2.0/25 }\n",
        ),
        ("nothing changes", services([web(&[11])]), services([web(&[11])]), ""),
    ];
    for (name, before, after, expected) in cases {
        let mut plan = plan(IpFamily::V4);
        from_nothing(&mut plan, &before);
        let changes = update(&mut plan, &before, &after);
        assert_text(name, &text(&changes), expected);
    }
}

#[test]
fn what_can_not_be_realised_is_refused_with_a_reason() {
    let many: Vec<u16> = (0..=u16::MAX).collect();
    let mut too_many = service("huge", Protocol::Tcp, &[1], &many);
    let one_more = Endpoint { port: 8081, ..endpoint(IpFamily::V4, 9) };
    too_many.v4.cluster = too_many.v4.cluster.iter().copied().chain([one_more]).collect();
    let cases = [
        (too_many, "65537 IPv4 endpoints are more than the 65536 that a Service port can have in nftables mode"),
        (
            sticky(service("sticky", Protocol::Tcp, &[1], &many[..16_369])),
            "16369 IPv4 endpoints are more than the 16368 that a Service port can have in nftables mode",
        ),
    ];
    for (refused, reason) in cases {
        let mut plan = plan(IpFamily::V4);
        let mut edit = Edit::default();
        let found = plan.update(&[(&refused.name, Some(&refused))], &mut edit);
        let found: Vec<_> = found.iter().map(|(name, reason)| (name, reason.to_string())).collect();
        assert_eq!(found, [(&refused.name, reason.to_owned())]);
        assert_eq!(edit.changes(), Changes::default());
    }
}
