//! Whole texts, as a reader of the layout expects them.

use super::*;

/// One of each sort that the layout tells apart.
fn sample() -> Snapshot {
    use FrontendOrigin::{ExternalIp, LoadBalancerIp};
    let many: Vec<u16> = (100..140).collect();
    let services = [
        service("web", Protocol::Tcp, 1, &[1, 12, 13]),
        service("dns", Protocol::Udp, 10, &[1, 14]),
        service("signals", Protocol::Sctp, 6, &[11]),
        service("many", Protocol::Tcp, 12, &many),
        sticky(service("cart", Protocol::Tcp, 2, &[1, 12])),
        local(service("agent", Protocol::Tcp, 3, &[1, 15])),
        local(service("away", Protocol::Tcp, 4, &[15])),
        with_node_port(service("empty", Protocol::Udp, 5, &[]), 30_005),
        with_node_port(with_address(service("shop", Protocol::Tcp, 7, &[1, 12]), ExternalIp, 1), 30_007),
        with_node_port(external_local(service("edge", Protocol::Udp, 8, &[1, 12])), 30_008),
        with_node_port(external_local(service("edge-away", Protocol::Tcp, 13, &[12])), 30_009),
        with_ranges(
            with_address(service("guarded", Protocol::Tcp, 9, &[12]), LoadBalancerIp, 2),
            &["192.0.2.0/26", "198.51.100.7/32"],
            &["2001:db8:1::/48"],
        ),
        with_ranges(
            with_address(service("guarded-empty", Protocol::Tcp, 11, &[]), LoadBalancerIp, 3),
            &["192.0.2.0/24"],
            &[],
        ),
    ];
    snapshot(services, &["192.0.2.1", "2001:db8::1"])
}

#[test]
fn a_plan_is_written_as_a_reader_of_the_layout_expects() {
    for (family, expected) in
        [(IpFamily::V4, include_str!("golden/v4.txt")), (IpFamily::V6, include_str!("golden/v6.txt"))]
    {
        let (mut plan, sample) = (plan(family), sample());
        assert_eq!(plan.update(&sample, sample.service_ports.keys().cloned()).1, []);
        let found = text(&[everything(&plan)], usize::MAX);
        assert!(found == expected, "{family}: the text is now\n{found}");
    }
}

#[test]
fn a_change_writes_in_an_order_that_refuses_nobody() {
    let before = snapshot([service("web", Protocol::Tcp, 1, &[1]), service("old", Protocol::Tcp, 2, &[1])], &[]);
    let after = snapshot([sticky(service("web", Protocol::Tcp, 1, &[1])), service("new", Protocol::Tcp, 3, &[1])], &[]);
    let mut plan = plan(IpFamily::V4);
    plan.update(&before, before.service_ports.keys().cloned());
    let names = before.service_ports.keys().chain(after.service_ports.keys()).cloned();
    let (changes, _) = plan.update(&after, names.collect::<BTreeSet<_>>());
    let found = text(&[changes], usize::MAX);
    let expected = include_str!("golden/change.txt");
    assert!(found == expected, "the text is now\n{found}");
}
