//! Whole texts, as a reader of the layout expects them.

use FrontendOrigin::{ExternalIp, LoadBalancerIp};

use super::*;
use crate::backend::nftables::object::{ChainName, FixedChain};
use crate::backend::nftables::readback;
use crate::backend::nftables::render::render;

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

#[track_caller]
fn assert_text(name: &str, found: &str, expected: &str) {
    assert!(found == expected, "{name}: the text is now\n{found}");
}

#[test]
fn a_new_table_has_rules_before_elements() {
    for (family, expected) in
        [(IpFamily::V4, include_str!("golden/ip.nft")), (IpFamily::V6, include_str!("golden/ip6.nft"))]
    {
        let changes = from_nothing(&mut plan(family), &sample());
        assert_text(&family.to_string(), &render(&style(family), &changes), expected);
    }
}

/// The listings are nft 1.0.6's of the texts of the test above.
#[test]
fn what_was_written_is_read_back() {
    for (family, listing) in
        [(IpFamily::V4, include_str!("golden/ip.json")), (IpFamily::V6, include_str!("golden/ip6.json"))]
    {
        let mut plan = plan(family);
        from_nothing(&mut plan, &sample());
        let listed = readback::parse(listing.as_bytes()).unwrap();
        assert_eq!(diff(&listed.objects, &plan.objects()), Changes::default(), "{family}");
    }
}

/// The rules of a chain, without their comments.
fn rules(plan: &Plan, chain: FixedChain) -> Vec<String> {
    plan.style().rules(&ChainName::Fixed(chain)).into_iter().map(|rule| rule.text).collect()
}

#[test]
fn masquerading_follows_the_node() {
    let chains = |detect_local: DetectLocal, masquerade_all| {
        let node = NodeConfig { detect_local, masquerade_all, masquerade_mark: 1 << 31, ..node() };
        let plan = Plan::new(IpFamily::V4, &node, true);
        (rules(&plan, FixedChain::OffCluster), rules(&plan, FixedChain::ExtLocal))
    };
    let mark = "meta mark set meta mark | 0x80000000";
    let tests = |found: Option<&str>| {
        let off_cluster = found.iter().flat_map(|it| [format!("{it} return"), mark.to_owned()]).collect();
        let mut ext_local: Vec<_> = found.iter().map(|it| format!("{it} goto ext-shortcut")).collect();
        ext_local.extend([
            format!("fib saddr type local {mark} goto ext-shortcut"),
            "meta priority set meta priority & 0xffffc000 | 0x2000".to_owned(),
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
    assert_eq!(chains(by_cidr(&["10.244.0.0/16"]), true).0, [mark]);
    assert_eq!(chains(DetectLocal::Nothing, true).0, [mark]);
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
        render(plan.style(), &edit.changes())
    };
    assert_eq!(
        step(&["192.0.2.1", "2001:db8::1"], &[]),
        "add table ip tollgate\nadd element ip tollgate nodeport_ips { 192.0.2.1 }\n"
    );
    assert_eq!(step(&["192.0.2.1", "2001:db8::2"], &["fd00:1::/64"]), "", "all that is the other family's");
    let text = step(&["192.0.2.1"], &["10.1.0.0/24"]);
    assert!(text.contains("add rule ip tollgate off-cluster ip saddr @local_pods return"), "{text}");
    assert!(text.contains("add rule ip tollgate ext-local ip saddr @local_pods goto ext-shortcut"), "{text}");
    assert!(text.ends_with("add element ip tollgate local_pods { 10.1.0.0/24 }\n"), "{text}");
    assert_eq!(
        step(&["192.0.2.2"], &["10.1.0.0/16"]),
        "add table ip tollgate\n\
         delete element ip tollgate local_pods { 10.1.0.0/24 }\n\
         delete element ip tollgate nodeport_ips { 192.0.2.1 }\n\
         add element ip tollgate local_pods { 10.1.0.0/16 }\n\
         add element ip tollgate nodeport_ips { 192.0.2.2 }\n"
    );
    let text = step(&[], &[]);
    assert!(!text.contains("add rule ip tollgate off-cluster"), "{text}");
    assert_eq!(step(&[], &[]), "");
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
            "add table ip tollgate\n\
             delete element ip tollgate slots_tcp { 0:4000 . 1 }\n\
             add element ip tollgate slots_tcp { 0:4000 . 1 : 10.244.0.14 . 8080 }\n",
        ),
        (
            "an endpoint goes: the last moves into the hole",
            services([web(&[11, 12, 13]), service("other", Protocol::Tcp, &[9], &[21, 22])]),
            services([web(&[12, 13]), service("other", Protocol::Tcp, &[9], &[21, 22])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element ip tollgate slots_tcp { 0:8000 . 0, 0:8000 . 2 }\n\
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:8012 }\n\
             add element ip tollgate slots_tcp { 0:8000 . 0 : 10.244.0.13 . 8080 }\n",
        ),
        (
            "an endpoint of this node comes: also a hairpin, and a chain for a count not seen before",
            services([web(&[11])]),
            services([web(&[1, 11])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }\n\
             add chain ip tollgate cluster-tcp-2\n\
             add rule ip tollgate cluster-tcp-2 jump off-cluster comment \"e1d6d7b5\"\n\
             add rule ip tollgate cluster-tcp-2 meta l4proto tcp dnat ip to meta priority & 0xffffe000 . numgen random mod 2 map @slots_tcp comment \"cb4a2b54\"\n\
             add rule ip tollgate cluster-tcp-2 goto again-cluster-tcp comment \"no-gap-on-update 2771b59c\"\n\
             add element ip tollgate hairpin { 10.244.0.1 . 10.244.0.1 }\n\
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:4013 }\n\
             add element ip tollgate picks { 0:13 : goto cluster-tcp-2 }\n\
             add element ip tollgate slots_tcp { 0:4000 . 1 : 10.244.0.1 . 8080 }\n",
        ),
        (
            "with affinity, a new endpoint has a new ref",
            services([cart(&[11, 12])]),
            services([cart(&[12, 13])]),
            "add table ip tollgate\n\
             delete element ip tollgate sticky_slots { 0:4000 . 0 }\n\
             delete element ip tollgate refs { 0:4010 }\n\
             add element ip tollgate sticky_slots { 0:4000 . 0 : 0:4012 }\n\
             add element ip tollgate refs { 0:4012 : 10.244.0.13 . 8080 }\n",
        ),
        (
            "the last endpoint goes: refused from now on",
            services([web(&[11])]),
            services([web(&[])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element ip tollgate slots_tcp { 0:4000 . 0 }\n\
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:4010 }\n",
        ),
        (
            "a Service goes; its ClusterIP has another port and stays",
            services([web(&[11]), service("web-udp", Protocol::Udp, &[1], &[11])]),
            services([web(&[11])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . udp . 80 }\n\
             delete element ip tollgate slots_udp { 0:8000 . 0 }\n",
        ),
        (
            "a frontend moves from one Service to another",
            services([web(&[11]), service("next", Protocol::Tcp, &[2], &[11])]),
            services([service("next", Protocol::Tcp, &[1, 2], &[11])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element ip tollgate slots_tcp { 0:8000 . 0 }\n\
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 comment \"test/next\" : 0:4012 }\n",
        ),
        (
            "an external policy changes: the Local pool comes",
            services([with_node_port(web(&[1, 11]), 30_001)]),
            services([external_local(with_node_port(web(&[1, 11]), 30_001))]),
            "add table ip tollgate\n\
             delete element ip tollgate nodeports { tcp . 30001 }\n\
             add chain ip tollgate local-tcp-1\n\
             add chain ip tollgate again-local-tcp\n\
             add rule ip tollgate local-tcp-1 meta l4proto tcp dnat ip to meta priority & 0xffffe000 . numgen random mod 1 map @slots_tcp comment \"1919962f\"\n\
             add rule ip tollgate local-tcp-1 goto again-local-tcp comment \"no-gap-on-update dc065689\"\n\
             add rule ip tollgate again-local-tcp meta l4proto tcp dnat ip to meta priority & 0xffffe000 . numgen random mod 1 map @slots_tcp comment \"1919962f\"\n\
             add rule ip tollgate again-local-tcp drop comment \"2d77fcca\"\n\
             add element ip tollgate nodeports { tcp . 30001 comment \"test/web\" : 0:4003 }\n\
             add element ip tollgate pools { 0:6000 : 0:6013 }\n\
             add element ip tollgate picks { 0:13 : goto local-tcp-1 }\n\
             add element ip tollgate slots_tcp { 0:6000 . 0 : 10.244.0.1 . 8080 }\n",
        ),
        (
            "an endpoint goes where frontends have kinds: the pool's class changes with the ClusterIP's",
            services([with_node_port(web(&[11, 12]), 30_001), service("other", Protocol::Tcp, &[9], &[21])]),
            services([with_node_port(web(&[11]), 30_001), service("other", Protocol::Tcp, &[9], &[21])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }\n\
             delete element ip tollgate pools { 0:8000 }\n\
             delete element ip tollgate slots_tcp { 0:8000 . 1 }\n\
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 comment \"test/web\" : 0:8012 }\n\
             add element ip tollgate pools { 0:8000 : 0:8012 }\n",
        ),
        (
            "a source range is exchanged",
            services([guarded(&["192.0.2.0/24"])]),
            services([guarded(&["192.0.2.0/25"])]),
            "add table ip tollgate\n\
             delete element ip tollgate lb_ranges { 0:4006 . 192.0.2.0/24 }\n\
             add element ip tollgate lb_ranges { 0:4006 . 192.0.2.0/25 }\n",
        ),
        ("nothing changes", services([web(&[11])]), services([web(&[11])]), ""),
    ];
    for (name, before, after, expected) in cases {
        let mut plan = plan(IpFamily::V4);
        from_nothing(&mut plan, &before);
        let changes = update(&mut plan, &before, &after);
        assert_text(name, &render(plan.style(), &changes), expected);
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
