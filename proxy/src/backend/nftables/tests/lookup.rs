//! A small model of how packets look up elements, over any sequence of snapshots.

use proptest::prelude::*;

use super::*;
use crate::backend::nftables::object::{ChainName, ElementKey, FixedChain, Key, SetName, Value, Verdict};
use crate::backend::nftables::word::{Balance, PoolKind, Word};

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
    let Value::Word(word) = value else { panic!("{value} is no word") };
    *word
}

/// Follows the rules from the chain `dispatch` on.
fn fate(objects: &Objects, ip: IpAddr, protocol: Protocol) -> Fate {
    let frontend = word(element(objects, &SetName::Frontends, ElementKey::Frontend(ip, protocol, 80)));
    let mut pool = PoolKind::Cluster;
    let mut class = frontend.low();
    if class == 1 {
        pool = PoolKind::Local;
        let key = ElementKey::Word(Word::new(frontend.number(), 0x2000));
        class = word(element(objects, &SetName::Pools, key)).low() & 0x1fff;
    }
    let Value::Verdict(verdict) = element(objects, &SetName::Picks, ElementKey::Word(Word::class(class))) else {
        panic!("no verdict")
    };
    let Verdict::Goto(chain) = verdict else { return Fate::Dropped };
    assert!(objects.contains_key(&Key::Chain(chain.clone())), "{chain} is missing");
    let balance = match chain {
        ChainName::Fixed(FixedChain::Refuse) => return Fate::Refused,
        ChainName::Balance(balance) => *balance,
        chain => panic!("{chain}"),
    };
    assert!(objects.contains_key(&Key::Chain(balance.again())));
    assert_eq!((balance.pool, balance.protocol), (pool, protocol));
    let endpoints = (0..balance.count).map(|index| drawn(objects, frontend.number(), balance, index)).collect();
    Fate::Balanced { endpoints, timeout: balance.timeout }
}

fn drawn(objects: &Objects, number: u32, balance: Balance, index: u32) -> (IpAddr, u16) {
    let key = ElementKey::Slot(Word::pool(number, balance.pool), u16::try_from(index).unwrap());
    let endpoint = match balance.timeout {
        None => element(objects, &SetName::slots(balance.protocol).unwrap(), key),
        Some(_) => {
            let reference = word(element(objects, &SetName::StickySlots, key));
            element(objects, &SetName::refs(balance.pool), ElementKey::Word(reference))
        }
    };
    let Value::Endpoint(ip, port) = endpoint else { panic!("{endpoint} is no endpoint") };
    (*ip, *port)
}

fn expected(service: &ServicePort, family: IpFamily) -> Fate {
    let sets = service.endpoints(family);
    let is_local = service.internal_traffic_policy == TrafficPolicy::Local;
    let used = if is_local { &sets.local } else { &sets.cluster };
    if used.is_empty() {
        return if is_local && !sets.cluster.is_empty() { Fate::Dropped } else { Fate::Refused };
    }
    let timeout = service.affinity_timeout().map(|timeout| u32::try_from(timeout.as_secs()).unwrap());
    Fate::Balanced { endpoints: used.iter().map(|it| (it.ip, it.port)).collect(), timeout }
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

fn any_service(index: u16) -> impl Strategy<Value = Option<ServicePort>> {
    let endpoints = prop::collection::btree_set(1_u16..20, 0..6);
    let many_vips = any::<bool>();
    (any::<bool>(), endpoints, many_vips, any::<bool>(), any::<bool>()).prop_map(
        move |(is_there, endpoints, many_vips, is_sticky, is_local)| {
            let protocol = if index.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
            // Two neighbours, one of each protocol, share an address.
            let vips = if many_vips { vec![index / 2, 100 + index] } else { vec![index / 2] };
            let endpoints: Vec<_> = endpoints.into_iter().collect();
            let mut made = service(&format!("service-{index}"), protocol, &vips, &endpoints);
            made = if is_sticky { sticky(made) } else { made };
            made = if is_local { local(made) } else { made };
            is_there.then_some(made)
        },
    )
}

fn any_services() -> impl Strategy<Value = Services> {
    let each: Vec<_> = (0..6).map(any_service).collect();
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
            for service in after.values() {
                for frontend in service.frontends.iter().filter(|it| it.family() == family) {
                    prop_assert_eq!(fate(&objects, frontend.ip, frontend.protocol), expected(service, family));
                }
            }
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
        for service in wanted.values() {
            for frontend in service.frontends.iter().filter(|it| it.family() == family) {
                prop_assert_eq!(fate(&listed, frontend.ip, frontend.protocol), expected(service, family));
            }
        }
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
