//! What holds for every Service, any pods, and whatever slices are there.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::tests::carried_out;
use super::*;
use crate::controllers::endpoint_slice::object::{ContainerPort, ServicePort, Target};

fn service(is_dual: bool) -> Service {
    let port = |name: &str, target| ServicePort {
        name: name.to_owned(),
        protocol: "TCP".to_owned(),
        app_protocol: None,
        target,
    };
    let mut families = vec![IpFamily::V4];
    families.extend(is_dual.then_some(IpFamily::V6));
    Service {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "u1".to_owned(),
        labels: Labels::new(),
        selector: Labels::from([("app".to_owned(), "web".to_owned())]),
        families,
        ports: vec![port("a", Target::Number(80)), port("b", Target::Name("b".to_owned()))],
        is_headless: false,
        publishes_not_ready: false,
        traffic_distribution: None,
    }
}

/// What of a pod varies: readiness, and which number the named port is, if it has it.
type Variant = (bool, Option<u8>);

fn pod(number: u16, (is_ready, port): Variant) -> Pod {
    Pod {
        name: format!("web-{number}"),
        uid: format!("uid-{number}"),
        addresses: vec![
            Ipv4Addr::from(0x0a00_0000 + u32::from(number)).into(),
            std::net::Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(number)).into(),
        ],
        ports: port
            .map(|port| ContainerPort {
                name: "b".to_owned(),
                protocol: "TCP".to_owned(),
                number: 9000 + i32::from(port),
            })
            .into_iter()
            .collect(),
        is_ready,
        ..Pod::default()
    }
}

/// Mostly one set of ports, sometimes another.
fn variant() -> impl Strategy<Value = Variant> {
    (any::<bool>(), prop_oneof![8 => Just(Some(0)), 1 => Just(Some(1)), 1 => Just(None)])
}

fn pods() -> impl Strategy<Value = BTreeMap<u16, Variant>> {
    prop_oneof![
        proptest::collection::btree_map(0..40_u16, variant(), 0..20),
        proptest::collection::btree_map(0..500_u16, variant(), 0..350),
    ]
}

/// What a slice may have come to by other hands: which pods, of which ports and family, whether its metadata is ours,
/// and whether the endpoints are as the pods were once.
type Found = (Vec<u16>, Variant, bool, bool);

fn found() -> impl Strategy<Value = Vec<Found>> {
    let numbers = prop_oneof![
        proptest::collection::vec(0..40_u16, 0..30),
        proptest::collection::vec(0..500_u16, 0..150),
        Just((0..100).collect()),
    ];
    proptest::collection::vec((numbers, variant(), any::<bool>(), any::<bool>()), 0..8)
}

fn slices(service: &Service, found: &[Found]) -> Vec<EndpointSlice> {
    let common = Common { service, labels: labels(service), owner: owner(service), trigger: Timestamp::UNIX_EPOCH };
    let slice = |(n, (numbers, variant, is_v6, is_ours)): (usize, &Found)| {
        let family = if *is_v6 { IpFamily::V6 } else { IpFamily::V4 };
        let mut metadata = common.metadata(None);
        metadata.name = Some(format!("web-{n}"));
        if !is_ours {
            metadata.owner_references = None;
        }
        let endpoint = |number: &u16| endpoint(service, &pod(*number, *variant), None, family).unwrap();
        EndpointSlice {
            address_type: family.name().to_owned(),
            metadata,
            ports: Some(PortSet::of_pod(service, &pod(0, *variant)).to_slice()),
            endpoints: Some(numbers.iter().map(endpoint).collect()),
        }
    };
    found.iter().enumerate().map(slice).collect()
}

fn planned(service: &Service, pods: &BTreeMap<u16, Variant>, existing: &[EndpointSlice]) -> Plan {
    let pods: Vec<Pod> = pods.iter().map(|(number, variant)| pod(*number, *variant)).collect();
    let pods: Vec<_> = pods.iter().map(|pod| (pod, None)).collect();
    plan(Some(service), &pods, &existing.iter().collect::<Vec<_>>(), Timestamp::UNIX_EPOCH)
}

/// Each endpoint with family and ports, as often as it is there.
fn held(slices: &[EndpointSlice]) -> Vec<String> {
    let mut held: Vec<String> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten().map(move |endpoint| (slice, endpoint)))
        .map(|(slice, endpoint)| format!("{} {:?} {endpoint:?}", slice.address_type, slice.ports))
        .collect();
    held.sort();
    held
}

/// Whether some of the slices with the same ports are more than twice as many as it takes, or would be with an endpoint
/// less.
fn is_sparse(slices: &[EndpointSlice]) -> bool {
    let mut counts: BTreeMap<PortSet, (usize, usize)> = BTreeMap::new();
    for slice in slices {
        let (slices, endpoints) = counts.entry(PortSet::of_slice(slice.ports.as_deref())).or_default();
        *slices += 1;
        *endpoints += slice.endpoints.as_ref().unwrap().len();
    }
    counts.values().any(|(slices, endpoints)| *slices > 2 * (endpoints - 1).div_ceil(MOST_ENDPOINTS))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn one_pass_makes_any_slices_right(is_dual: bool, pods in pods(), found in found()) {
        let service = service(is_dual);
        let existing = slices(&service, &found);
        let slices = carried_out(planned(&service, &pods, &existing), &existing);
        // Every endpoint exactly once, as from nothing.
        let fresh = carried_out(planned(&service, &pods, &[]), &[]);
        prop_assert_eq!(held(&slices), held(&fresh));
        let families = if is_dual { 2 } else { 1 };
        prop_assert_eq!(held(&slices).len(), pods.len() * families);
        for slice in &slices {
            let count = slice.endpoints.as_ref().unwrap().len();
            prop_assert!((1..=MOST_ENDPOINTS).contains(&count), "{} has {count}", name_of(slice));
        }
        prop_assert_eq!(planned(&service, &pods, &slices), Plan::default());
        // From nothing it takes as few slices as there can be: not full is one of each family and set of ports.
        let not_full = fresh.iter().filter(|slice| slice.endpoints.as_ref().unwrap().len() < MOST_ENDPOINTS);
        prop_assert!(not_full.count() <= 3 * families);
    }

    #[test]
    fn a_change_of_one_pod_is_one_write(
        pods in pods(), found in found(), number in 0..500_u16, change in proptest::option::of(variant())
    ) {
        let service = service(false);
        let existing = slices(&service, &found);
        let before = carried_out(planned(&service, &pods, &existing), &existing);
        let mut after = pods.clone();
        match change {
            Some(variant) => after.insert(number, variant),
            None => after.remove(&number),
        };
        let plan = planned(&service, &after, &before);
        // A pod whose ports have changed leaves one slice and enters another.
        let moves = pods.get(&number).zip(change).is_some_and(|(old, new)| old.1 != new.1);
        let most = 1 + usize::from(moves);
        // Each that is written may empty another one, where slices are sparse.
        let packs = if is_sparse(&before) { plan.apply.len() } else { 0 };
        let writes = plan.apply.len() + plan.delete.len();
        prop_assert!(plan.apply.len() <= most && writes <= most + packs, "{plan:?}");
        prop_assert_eq!(writes == 0, pods.get(&number) == after.get(&number));
    }
}
