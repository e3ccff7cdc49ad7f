//! Whole texts, as a reader of the layout expects them.

use super::*;
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
        assert_text(&family.to_string(), &render(style(family), &changes), expected);
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

#[test]
fn masquerading_follows_the_node() {
    let mark = |cluster_cidrs: &[&str], masquerade_all| {
        let detect_local = DetectLocal::ClusterCidr(cidrs(cluster_cidrs));
        let mut plan = Plan::new(IpFamily::V4, &NodeConfig { detect_local, masquerade_all, ..node() }, true);
        let changes = from_nothing(&mut plan, &sample());
        let text = render(plan.style(), &changes);
        let line = text.lines().find(|line| line.contains("cluster-tcp-3 ") && line.contains("meta mark"));
        line.and_then(|line| Some(line.split_once("cluster-tcp-3 ")?.1.split_once(" comment")?.0.to_owned()))
    };
    let all = "meta mark set meta mark | 0x4000".to_owned();
    assert_eq!(mark(&["10.244.0.0/16"], false), Some(format!("ip saddr != @local_pods {all}")));
    assert_eq!(mark(&["fd00:244::/48"], false), None, "of a family without a detector, nothing");
    assert_eq!(mark(&[], false), None);
    assert_eq!(mark(&[], true), Some(all.clone()));
    assert_eq!(mark(&["10.244.0.0/16"], true), Some(all));
}

/// What each change writes, in the words of the layout's table.
#[test]
fn changes_write_little() {
    let web = |endpoints: &[u16]| service("web", Protocol::Tcp, &[1], endpoints);
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
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 : 0:8012 }\n\
             add element ip tollgate slots_tcp { 0:8000 . 0 : 10.244.0.13 . 8080 }\n",
        ),
        (
            "an endpoint of this node comes: also a hairpin, and a chain for a count not seen before",
            services([web(&[11])]),
            services([web(&[1, 11])]),
            "add table ip tollgate\n\
             delete element ip tollgate frontends { 10.96.0.1 . tcp . 80 }\n\
             add chain ip tollgate cluster-tcp-2\n\
             add rule ip tollgate cluster-tcp-2 ip saddr != @local_pods meta mark set meta mark | 0x4000 comment \"off-cluster-masquerade 5fc6448d\"\n\
             add rule ip tollgate cluster-tcp-2 meta l4proto tcp dnat ip to meta priority & 0xffffe000 . numgen random mod 2 map @slots_tcp comment \"cb4a2b54\"\n\
             add rule ip tollgate cluster-tcp-2 goto again-cluster-tcp comment \"no-gap-on-update 2771b59c\"\n\
             add element ip tollgate hairpin { 10.244.0.1 . 10.244.0.1 }\n\
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 : 0:4013 }\n\
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
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 : 0:4010 }\n",
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
             add element ip tollgate frontends { 10.96.0.1 . tcp . 80 : 0:4012 }\n",
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
        (service("sctp", Protocol::Sctp, &[1], &[11]), "the nftables mode does not balance sctp yet"),
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
