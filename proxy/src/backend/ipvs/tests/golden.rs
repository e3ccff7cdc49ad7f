//! Whole texts, as a reader of the layout expects them.

use super::*;

/// One of each sort that the layout tells apart.
fn sample() -> Snapshot {
    use FrontendOrigin::{ExternalIp, LoadBalancerIp};
    let services = [
        service("web", Protocol::Tcp, 1, &[1, 12, 13]),
        service("dns", Protocol::Udp, 10, &[1, 14]),
        service("signals", Protocol::Sctp, 6, &[11]),
        sticky(service("cart", Protocol::Tcp, 2, &[1, 12])),
        sticky(with_node_port(service("shared-cart", Protocol::Tcp, 14, &[1, 12]), 30_014)),
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
        with_address(service("own-address", Protocol::Tcp, 15, &[12]), ExternalIp, 4),
    ];
    Snapshot {
        node_addresses: std::sync::Arc::new(["10.200.0.4", "fd00:c8::4"].map(|ip| ip.parse().unwrap()).into()),
        ..snapshot(services, &["192.0.2.1", "2001:db8::1"])
    }
}

#[test]
fn a_plan_is_what_a_reader_of_the_layout_expects() {
    for (family, expected) in
        [(IpFamily::V4, include_str!("golden/v4.txt")), (IpFamily::V6, include_str!("golden/v6.txt"))]
    {
        let plan = placed(family, &sample());
        let (rules, lines) = rules::changes(&plan.style().chains(), &Listing::default());
        assert!(!lines.is_empty());
        let found = format!("{}\n# rules\n{rules}", text(&everything(&plan)));
        assert!(found == expected, "{family}: the text is now\n{found}");
        // A listing of just that is no difference.
        let is_saved = |line: &str| match line.strip_prefix("-I ").and_then(|rule| rule.split_once(" 1 ")) {
            Some((base, rule)) => format!("-A {base} {rule}\n"),
            None => format!("{line}\n"),
        };
        let saved: String = rules.lines().map(is_saved).collect();
        let (rules, lines) = rules::changes(&plan.style().chains(), &Listing::read(&saved));
        assert_eq!((rules, lines), (String::new(), Vec::new()));
    }
}

#[test]
fn a_change_is_made_in_an_order_that_refuses_nobody() {
    let before = snapshot(
        [
            service("web", Protocol::Tcp, 1, &[1, 2]),
            service("dns", Protocol::Udp, 2, &[1, 2]),
            service("old", Protocol::Tcp, 3, &[1]),
            service("old-dns", Protocol::Udp, 4, &[1]),
            with_address(service("moves", Protocol::Tcp, 5, &[1]), FrontendOrigin::ExternalIp, 1),
            service("dies", Protocol::Tcp, 6, &[1]),
        ],
        &[],
    );
    let after = snapshot(
        [
            service("web", Protocol::Tcp, 1, &[2, 3]),
            service("dns", Protocol::Udp, 2, &[2, 3]),
            with_address(service("moves", Protocol::Tcp, 5, &[1]), FrontendOrigin::ExternalIp, 2),
            service("dies", Protocol::Tcp, 6, &[]),
            service("new", Protocol::Tcp, 7, &[1]),
        ],
        &[],
    );
    let mut plan = placed(IpFamily::V4, &before);
    let applied = kernel(&plan);
    let names = before.service_ports.keys().chain(after.service_ports.keys()).cloned();
    let (touched, _) = plan.update(&after, names.collect::<Vec<_>>());
    let found = text(&changes::steps(&plan, &applied, &touched));
    let expected = include_str!("golden/change.txt");
    assert!(found == expected, "the text is now\n{found}");
}

#[test]
fn what_connections_go_on_by_stays_until_they_end_also_for_a_new_process() {
    let with = |hosts: &[u16]| {
        snapshot([with_address(service("web", Protocol::Tcp, 1, hosts), FrontendOrigin::ExternalIp, 1)], &[])
    };
    let mut plan = placed(IpFamily::V4, &with(&[1, 2]));
    let mut applied = kernel(&plan);
    let gone = snapshot([], &[]);
    let names: Vec<_> = with(&[1]).service_ports.keys().cloned().collect();
    let (touched, _) = plan.update(&gone, names);
    let steps = changes::steps(&plan, &applied, &touched);
    apply(&mut applied, &steps, |_, _| Ok(())).unwrap();
    let weights = |applied: &Applied| -> BTreeMap<ServiceKey, Vec<u32>> {
        let of = |service: &changes::AppliedService| service.destinations.values().map(|it| it.weight).collect();
        applied.services.iter().map(|(key, service)| (*key, of(service))).collect()
    };
    assert!(weights(&applied).values().all(|weights| *weights == [0, 0]), "{applied:?}");
    let route = Route { net: "10.200.0.1/32".parse().unwrap(), source: None };
    assert!(applied.routes.contains(&route), "the address stays the node's own");

    // A process that knows nothing finds the same, and leaves it alone.
    let mut next = self::plan(IpFamily::V4);
    next.update(&gone, []);
    let steps = changes::steps(&next, &applied, &changes::everything(&next, &applied));
    assert_eq!(steps, Steps::default());
    // One connection ends, and then all.
    let key = *applied.services.keys().next().unwrap();
    let idle = |applied: &mut Applied, all: bool| {
        for (of, service) in &mut applied.services {
            service
                .destinations
                .values_mut()
                .take(if all { 9 } else { 1 })
                .for_each(|it| it.is_idle = all || *of == key);
        }
    };
    idle(&mut applied, false);
    let steps = changes::steps(&next, &applied, &changes::everything(&next, &applied));
    assert_eq!(steps.len(), 1, "{}", text(&steps));
    apply(&mut applied, &steps, |_, _| Ok(())).unwrap();
    idle(&mut applied, true);
    let steps = changes::steps(&next, &applied, &changes::everything(&next, &applied));
    apply(&mut applied, &steps, |_, _| Ok(())).unwrap();
    assert_eq!(weights(&applied), BTreeMap::new());
    assert!(!applied.routes.contains(&route));
    assert_eq!(applied.elements, BTreeMap::new());
}

#[test]
fn a_mark_stays_with_its_service_port_over_a_restart_and_is_given_to_no_other() {
    let edge =
        |name: &str, vip, port| with_node_port(external_local(service(name, Protocol::Tcp, vip, &[1, 12])), port);
    let both = snapshot([edge("a", 1, 30_001), edge("b", 2, 30_002)], &["192.0.2.1"]);
    let plan = placed(IpFamily::V4, &both);
    let applied = kernel(&plan);
    let marks = |plan: &Plan| -> Vec<_> {
        let elements = kernel(plan).elements.into_iter();
        elements.filter(|(it, _)| it.set == SetName::Shortcut).map(|(it, value)| (it.port, value.mark)).collect()
    };
    // Only the second is there at the next start, and a third comes: the first's connections may go on by its mark.
    let later = snapshot([edge("b", 2, 30_002), edge("c", 3, 30_003)], &["192.0.2.1"]);
    let mut next = self::plan(IpFamily::V4);
    next.adopt(applied.elements.iter(), applied.services.keys());
    next.update(&later, later.service_ports.keys().cloned());
    let [first, second] = marks(&plan).try_into().unwrap();
    let [kept, fresh] = marks(&next).try_into().unwrap();
    assert_eq!(kept, second);
    assert!(fresh.1 != first.1 && fresh.1 != second.1, "{fresh:x?}");
}
