//! A small model of how packets look up elements, over any sequence of snapshots.

use proptest::prelude::*;

use super::*;
use crate::backend::nftables::object::{ChainName, ElementKey, FixedChain, Key, SetName, Value, Verdict};
use crate::backend::nftables::word::{Balance, Kind, LAST_NUMBER, PoolKind, Word};

/// What becomes of packets to a frontend.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// One of these endpoints, the same one for a time if sticky.
    Balanced {
        endpoints: BTreeSet<(IpAddr, u16)>,
        timeout: Option<u32>,
    },
    Refused,
    Dropped,
}

/// Applies changes as the kernel does: what is deleted must be there, and what is added must not.
fn apply(objects: &mut Objects, changes: Changes) {
    for (key, value) in changes.delete {
        assert_eq!(objects.remove(&key), Some(value), "deleted {key}");
    }
    for (key, value) in changes.add {
        assert_eq!(objects.insert(key.clone(), value), None, "added {key}");
    }
}

fn element<'a>(objects: &'a Objects, set: &SetName, key: ElementKey) -> &'a Value {
    let key = Key::Element(set.clone(), key);
    objects.get(&key).unwrap_or_else(|| panic!("{key} is missing"))
}

fn word(value: &Value) -> Word {
    match value {
        Value::Word(word) | Value::Frontend(word, _) => *word,
        value => panic!("{value} is no word"),
    }
}

/// Who dials.
#[derive(Clone, Copy, Debug)]
struct Client {
    ip: IpAddr,
    /// Whether it is a local pod or a process of the node.
    is_here: bool,
}

/// One of each, and the outside one twice, because of source ranges.
fn clients(family: IpFamily) -> [Client; 3] {
    let ip = |v4: [u8; 4], v6: u16| match family {
        IpFamily::V4 => IpAddr::from(v4),
        IpFamily::V6 => IpAddr::from([0x2001, 0xdb8, v6, 0, 0, 0, 0, 1]),
    };
    [
        Client { ip: ip([10, 244, 0, 1], 1), is_here: true },
        Client { ip: ip([192, 0, 2, 1], 2), is_here: false },
        Client { ip: ip([198, 51, 100, 1], 3), is_here: false },
    ]
}

/// Follows the rules from the chain `dispatch` on; `None` where no element stands for what is dialled.
fn fate(objects: &Objects, dialled: &ElementKey, protocol: Protocol, client: Client) -> Option<Fate> {
    let set = match dialled {
        ElementKey::NodePort(..) => SetName::Nodeports,
        _ => SetName::Frontends,
    };
    let frontend = word(objects.get(&Key::Element(set, dialled.clone()))?);
    let (pool, class) = match Kind::of(frontend.low()) {
        None => (PoolKind::Cluster, frontend.low()),
        Some(kind) if kind.is_guarded() && !is_in_range(objects, frontend, client.ip) => return Some(Fate::Dropped),
        Some(kind) => {
            let pool = match kind {
                Kind::VipLocal => PoolKind::Local,
                Kind::ExtCluster | Kind::GuardedCluster => PoolKind::Cluster,
                Kind::ExtLocal | Kind::GuardedLocal if client.is_here => PoolKind::Cluster,
                Kind::ExtLocal | Kind::GuardedLocal => PoolKind::Local,
            };
            let found = element(objects, &SetName::Pools, ElementKey::Word(Word::pool(frontend.number(), pool)));
            assert_eq!(word(found).number(), frontend.number());
            assert_eq!(word(found).low() & 0x2000, pool.bit());
            (pool, word(found).low() & 0x1fff)
        }
    };
    let Value::Verdict(verdict) = element(objects, &SetName::Picks, ElementKey::Word(Word::class(class))) else {
        panic!("no verdict")
    };
    let Verdict::Goto(chain) = verdict else { return Some(Fate::Dropped) };
    assert!(objects.contains_key(&Key::Chain(chain.clone())), "{chain} is missing");
    let balance = match chain {
        ChainName::Fixed(FixedChain::Refuse) => return Some(Fate::Refused),
        ChainName::Balance(balance) => *balance,
        chain => panic!("{chain}"),
    };
    assert!(objects.contains_key(&Key::Chain(balance.again())));
    assert_eq!((balance.pool, balance.protocol), (pool, protocol));
    let endpoints = (0..balance.count).map(|index| drawn(objects, frontend.number(), balance, index)).collect();
    Some(Fate::Balanced { endpoints, timeout: balance.timeout })
}

fn is_in_range(objects: &Objects, frontend: Word, ip: IpAddr) -> bool {
    objects.keys().any(|key| match key {
        Key::Element(SetName::LbRanges, ElementKey::Range(word, range)) => *word == frontend && range.contains(&ip),
        _ => false,
    })
}

fn drawn(objects: &Objects, number: u32, balance: Balance, index: u32) -> (IpAddr, u16) {
    let key = ElementKey::Slot(Word::pool(number, balance.pool), u16::try_from(index).unwrap());
    let endpoint = match balance.timeout {
        None => element(objects, &SetName::slots(balance.protocol), key),
        Some(_) => {
            let reference = word(element(objects, &SetName::StickySlots, key));
            element(objects, &SetName::refs(balance.pool), ElementKey::Word(reference))
        }
    };
    let Value::Endpoint(ip, port) = endpoint else { panic!("{endpoint} is no endpoint") };
    (*ip, *port)
}

/// What the Service says.
fn expected(service: &ServicePort, family: IpFamily, origin: Option<FrontendOrigin>, client: Client) -> Fate {
    let sets = service.endpoints(family);
    let ranges = match family {
        IpFamily::V4 => &service.source_ranges.v4,
        IpFamily::V6 => &service.source_ranges.v6,
    };
    if origin == Some(FrontendOrigin::LoadBalancerIp)
        && ranges.as_ref().is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&client.ip)))
    {
        return Fate::Dropped;
    }
    let is_local = match origin {
        Some(FrontendOrigin::ClusterIp) => service.internal_traffic_policy == TrafficPolicy::Local,
        _ => service.external_traffic_policy == TrafficPolicy::Local && !client.is_here,
    };
    let used = if is_local { &sets.local } else { &sets.cluster };
    if used.is_empty() {
        return if is_local && !sets.cluster.is_empty() { Fate::Dropped } else { Fate::Refused };
    }
    let timeout = service.affinity_timeout().map(|timeout| u32::try_from(timeout.as_secs()).unwrap());
    Fate::Balanced { endpoints: used.iter().map(|it| (it.ip, it.port)).collect(), timeout }
}

/// Every frontend of every Service leads every client where the Service says.
fn assert_fates(objects: &Objects, services: &Services, family: IpFamily) {
    for service in services.values() {
        let protocol = service.name.protocol;
        let addresses = service.frontends.iter().filter(|it| it.family() == family);
        let mut dialled: Vec<_> =
            addresses.map(|it| (ElementKey::Frontend(it.ip, protocol, it.port), Some(it.origin))).collect();
        dialled.extend(service.node_port.map(|port| (ElementKey::NodePort(protocol, port), None)));
        for (key, origin) in dialled {
            for client in clients(family) {
                let found = fate(objects, &key, protocol, client);
                // Without an address or an endpoint in the family, a NodePort is the host's own port there.
                let is_absent = origin.is_none()
                    && !service.frontends.iter().any(|it| it.family() == family)
                    && service.endpoints(family).serving.is_empty();
                let expected = Some(expected(service, family, origin, client)).filter(|_| !is_absent);
                assert_eq!(found, expected, "{} by {key} from {client:?}", service.name);
            }
        }
    }
}

/// How many elements each set has: the same whatever the numbers. But for chains' classes and hairpins, which may stay.
fn sizes(objects: &Objects) -> BTreeMap<&SetName, usize> {
    let mut sizes = BTreeMap::new();
    for key in objects.keys() {
        if let Key::Element(set, _) = key
            && !matches!(set, SetName::Picks | SetName::Hairpin)
        {
            *sizes.entry(set).or_default() += 1;
        }
    }
    sizes
}

fn elements(objects: &Objects, of: SetName) -> BTreeSet<Key> {
    objects.keys().filter(|key| matches!(key, Key::Element(set, _) if *set == of)).cloned().collect()
}

/// What of a Service is drawn besides its endpoints.
#[derive(Clone, Debug)]
struct Shape {
    cluster_ips: u8,
    is_sticky: bool,
    is_local: bool,
    is_external_local: bool,
    has_external_ip: bool,
    has_load_balancer_ip: bool,
    has_node_port: bool,
    ranges: u8,
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let flags = prop::array::uniform6(any::<bool>());
    (0..3_u8, 0..4_u8, flags).prop_map(|(cluster_ips, ranges, [sticky, local, external_local, ip, lb, node_port])| {
        Shape {
            cluster_ips,
            is_sticky: sticky,
            is_local: local,
            is_external_local: external_local,
            has_external_ip: ip,
            has_load_balancer_ip: lb,
            has_node_port: node_port,
            ranges,
        }
    })
}

fn any_service(index: u16) -> impl Strategy<Value = Option<ServicePort>> {
    let endpoints = prop::collection::btree_set(1_u16..20, 0..6);
    (any::<bool>(), endpoints, any_shape()).prop_map(move |(is_there, endpoints, shape)| {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        is_there.then(|| shaped(index, &endpoints, &shape))
    })
}

fn shaped(index: u16, endpoints: &[u16], shape: &Shape) -> ServicePort {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(index % 3)];
    // Three neighbours, one of each protocol, share an address, and may share a NodePort.
    let vips = [index / 3, 100 + index];
    let vips = &vips[..usize::from(shape.cluster_ips)];
    let mut made = service(&format!("service-{index}"), protocol, vips, endpoints);
    if shape.has_external_ip {
        made = with_address(made, FrontendOrigin::ExternalIp, 1 + index / 3);
    }
    if shape.has_load_balancer_ip {
        made = with_address(made, FrontendOrigin::LoadBalancerIp, 100 + index);
    }
    if shape.has_node_port {
        made = with_node_port(made, 30_000 + index / 3);
    }
    made = match shape.ranges {
        0 => made,
        1 => with_ranges(made, &["192.0.2.0/24"], &[]),
        2 => with_ranges(made, &["192.0.2.0/25", "192.0.2.128/25", "10.0.0.0/8"], &["2001:db8:3::/48"]),
        _ => with_ranges(made, &["192.0.2.0/25", "192.0.2.0/24"], &["2001:db8:1::/48", "2001:db8:2::/48"]),
    };
    made = if shape.is_sticky { sticky(made) } else { made };
    made = if shape.is_local { local(made) } else { made };
    if shape.is_external_local { external_local(made) } else { made }
}

fn any_services() -> impl Strategy<Value = Services> {
    let each: Vec<_> = (0..9).map(any_service).collect();
    each.prop_map(|made| services(made.into_iter().flatten()))
}

proptest! {
    #[test]
    fn any_sequence_of_changes_leads_where_the_last_snapshot_alone_leads(
        steps in prop::collection::vec((any_services(), any::<bool>()), 1..8),
        family in prop::sample::select(IpFamily::ALL.to_vec()),
    ) {
        let mut plan = plan(family);
        let mut objects = Objects::new();
        apply(&mut objects, from_nothing(&mut plan, &Services::new()));
        let mut before = Services::new();
        let mut hairpins_before = BTreeSet::new();
        for (after, restarts) in steps {
            apply(&mut objects, update(&mut plan, &before, &after));
            assert_fates(&objects, &after, family);
            prop_assert_eq!(&plan.objects(), &objects, "what the plan says it holds");
            let mut anew = super::plan(family);
            update(&mut anew, &Services::new(), &after);
            let anew = anew.objects();
            prop_assert_eq!(sizes(&anew), sizes(&objects));
            prop_assert_eq!(elements(&anew, SetName::ClusterIps), elements(&objects, SetName::ClusterIps));
            let hairpins = elements(&objects, SetName::Hairpin);
            prop_assert!(elements(&anew, SetName::Hairpin).is_subset(&hairpins));
            prop_assert!(hairpins_before.is_subset(&hairpins), "a packet on its way may still ask for them");
            hairpins_before = hairpins;
            if restarts {
                plan = super::plan(family);
                plan.adopt(Arc::new(objects.clone()));
                update(&mut plan, &Services::new(), &after);
                plan.forget_listed();
                prop_assert_eq!(diff(&objects, &plan.objects()), Changes::default(), "a restart");
            }
            before = after;
        }
    }

    /// Numbers that are in the kernel twice, or where they don't belong, do no harm.
    #[test]
    fn whatever_the_kernel_holds_a_start_makes_it_right(
        found in any_services(),
        wanted in any_services(),
        swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..4),
        family in prop::sample::select(IpFamily::ALL.to_vec()),
    ) {
        let mut old = plan(family);
        update(&mut old, &Services::new(), &found);
        let mut listed = old.objects();
        let elements: Vec<_> =
            listed.keys().filter(|key| matches!(key, Key::Element(..))).cloned().collect();
        for (from, to) in swaps {
            let (from, to) = (from.get(&elements), to.get(&elements));
            if matches!((from, to), (Key::Element(a, _), Key::Element(b, _)) if a == b) {
                let value = listed[from].clone();
                listed.insert(to.clone(), value);
            }
        }
        let mut plan = plan(family);
        plan.adopt(Arc::new(listed.clone()));
        update(&mut plan, &Services::new(), &wanted);
        let changes = diff(&listed, &plan.objects());
        apply(&mut listed, changes);
        assert_fates(&listed, &wanted, family);
    }
}

#[test]
fn a_hairpin_goes_at_the_second_full_sync_after_its_endpoint() {
    let mut plan = plan(IpFamily::V4);
    let services = services([service("web", Protocol::Tcp, &[1], &[1, 2])]);
    update(&mut plan, &Services::new(), &services);
    let hairpins = elements(&plan.objects(), SetName::Hairpin);
    assert!(!hairpins.is_empty());
    // The endpoints go in a full sync, so that what is swept before them is not theirs.
    plan.sweep();
    update(&mut plan, &services, &Services::new());
    assert_eq!(elements(&plan.objects(), SetName::Hairpin), hairpins);
    plan.sweep();
    assert!(elements(&plan.objects(), SetName::Hairpin).is_empty());
}

/// A packet that read its word just before a change must not meet another Service's endpoints just after it. The second
/// time, numbers begin anew from 1, because the last one is taken.
#[test]
fn a_new_service_never_takes_the_number_of_one_that_changes_in_the_same_batch() {
    let web = |endpoints: &[u16]| service("web", Protocol::Tcp, &[1], endpoints);
    let other = || service("x", Protocol::Tcp, &[3], &[13]);
    let key = |host| Key::Element(SetName::Frontends, ElementKey::Frontend(vip(IpFamily::V4, host), Protocol::Tcp, 80));
    let before = services([web(&[11]), other()]);
    for (others_number, expected) in [(2, (1, 3)), (LAST_NUMBER, (1, 2))] {
        let mut old = plan(IpFamily::V4);
        update(&mut old, &Services::new(), &before);
        let mut listed = old.objects();
        listed.insert(key(3), Value::Frontend(Word::new(others_number, 0), "".into()));
        let mut plan = plan(IpFamily::V4);
        plan.adopt(Arc::new(listed));
        update(&mut plan, &Services::new(), &before);
        plan.forget_listed();
        // The new one comes first, in the order of names.
        update(&mut plan, &before, &services([service("a", Protocol::Tcp, &[2], &[12]), web(&[11, 13]), other()]));
        let objects = plan.objects();
        let number = |host| word(&objects[&key(host)]).number();
        assert_eq!((number(1), number(2)), expected);
        assert_eq!(number(3), others_number);
    }
}

#[test]
fn a_freed_number_comes_last_in_turn_after_a_restart_too() {
    let before = services([1, 2].map(|host| service(&format!("s{host}"), Protocol::Tcp, &[host], &[11])));
    let mut old = plan(IpFamily::V4);
    update(&mut old, &Services::new(), &before);
    let mut plan = plan(IpFamily::V4);
    plan.adopt(Arc::new(old.objects()));
    update(&mut plan, &Services::new(), &before);
    plan.forget_listed();
    let rest = services([service("s2", Protocol::Tcp, &[2], &[11])]);
    update(&mut plan, &before, &rest);
    let mut after = rest.clone();
    after.extend(services([service("new", Protocol::Tcp, &[3], &[12])]));
    update(&mut plan, &rest, &after);
    let key = ElementKey::Frontend(vip(IpFamily::V4, 3), Protocol::Tcp, 80);
    assert_eq!(word(&plan.objects()[&Key::Element(SetName::Frontends, key)]).number(), 3);
}
