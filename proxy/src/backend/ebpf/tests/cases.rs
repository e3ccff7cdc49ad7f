//! What certain changes write.

use super::*;

fn wanted(specs: &[Spec]) -> Moment {
    Moment {
        specs: specs.iter().cloned().map(Some).collect(),
        node_ports_answer: true,
        pause: Duration::from_secs(5),
        restarts: false,
    }
}

fn plain(vip: u8, cluster: u8) -> Spec {
    Spec {
        vip,
        external: None,
        node_port: false,
        cluster,
        local: 0,
        serving: cluster,
        is_local: false,
        affinity: false,
        ranges: false,
    }
}

fn at(changes: &Changes, number: u8) -> ServiceValue {
    let key = service_key(vip(number, IpFamily::V4).into(), 80, Protocol::Tcp);
    changes.services.put.iter().find(|(found, _)| *found == key).expect("it is written").1
}

#[test]
fn a_change_of_endpoints_is_a_fresh_run_and_one_entry() {
    let mut running = Running::new();
    let first = at(&running.go_to(&wanted(&[plain(1, 0b111)])), 1);
    let changes = running.go_to(&wanted(&[plain(1, 0b1011)]));
    let second = at(&changes, 1);
    assert!(cluster(&second));
    assert_eq!(second.service_id, first.service_id);
    let runs = |value: ServiceValue| value.first_slot..value.first_slot + value.slots;
    assert!(runs(second).all(|slot| !runs(first).contains(&slot)));
    // In both families.
    assert_eq!((changes.slots.len(), changes.services.put.len(), changes.len()), (6, 2, 8));
}

#[test]
fn endpoints_keep_their_ids_and_ids_are_not_given_twice() {
    let mut running = Running::new();
    let ids = |running: &Running| -> BTreeMap<IpAddr, u32> {
        let slots = running.maps.0.slots.values().map(|slot| (slot.address.into(), slot.endpoint_id));
        slots.filter(|(ip, _): &(IpAddr, _)| ip.is_ipv4()).collect()
    };
    running.go_to(&wanted(&[plain(1, 0b011)]));
    let before = ids(&running);
    running.go_to(&wanted(&[plain(1, 0b110)]));
    running.go_to(&wanted(&[plain(1, 0b111)]));
    let after = ids(&running);
    assert_eq!(before[&pod(1, IpFamily::V4).ip], after[&pod(1, IpFamily::V4).ip], "it stayed");
    assert_eq!(after.values().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn a_service_that_comes_after_another_went_has_an_id_of_its_own() {
    let mut running = Running::new();
    let first = at(&running.go_to(&wanted(&[plain(1, 1)])), 1);
    running.go_to(&wanted(&[]));
    let again = Moment { restarts: true, ..wanted(&[plain(1, 1)]) };
    let second = at(&running.go_to(&again), 1);
    assert!(second.service_id > first.service_id, "also after a restart");
}

#[test]
fn slots_that_rest_are_used_again() {
    let mut running = Running::new();
    for round in 0..200_u32 {
        running.go_to(&wanted(&[plain(1, if round.is_multiple_of(2) { 0b111 } else { 0b1011 })]));
    }
    assert!(running.plan.sizes().slots <= 18, "{:?}", running.plan.sizes());
}

#[test]
fn a_clusterip_refuses_unknown_ports_and_an_external_address_does_not() {
    let mut running = Running::new();
    let spec = Spec { external: Some(2), ..plain(1, 1) };
    running.go_to(&wanted(&[spec]));
    let find = |number, port| running.maps.find(vip(number, IpFamily::V4), port, Protocol::Tcp);
    assert_eq!((find(1, 81), find(2, 81)), (Found::Unknown, Found::Kept));
    let run = |found| match found {
        Found::Value(value) => (value.service_id, value.first_slot, value.slots),
        other => panic!("{other:?}"),
    };
    assert_eq!(run(find(1, 80)), run(find(2, 80)), "one Service, one run");
}

#[test]
fn masquerade_all_leaves_clusterips_to_packets() {
    let mut plan = Plan::new(&NodeConfig { masquerade_all: true, ..config() });
    let snapshot = wanted(&[plain(1, 1)]).snapshot();
    let all: Vec<_> = snapshot.service_ports.iter().map(|(name, wanted)| (name, Some(wanted.as_ref()))).collect();
    plan.update(&snapshot, &all, Duration::ZERO);
    let objects = plan.objects();
    assert!(!objects.services.is_empty() && objects.slots.is_empty());
    assert!(objects.services.values().all(|value| value.flags & service_flags::LEAVE_TO_PACKETS != 0));
}

#[test]
fn loopback_answers_no_node_ports() {
    let mut running = Running::new();
    let mut snapshot = wanted(&[Spec { node_port: true, ..plain(1, 1) }]).snapshot();
    snapshot.node_port_addresses = Arc::new(["127.0.0.1", "192.0.2.1"].map(|ip| ip.parse().unwrap()).into());
    running.plan.update(&snapshot, &[], Duration::ZERO);
    let addresses: Vec<IpAddr> = running.plan.objects().addresses.into_keys().map(IpAddr::from).collect();
    assert_eq!(addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}
