//! Whatever several clients write at once: no address and no port is held twice, in any revision; what goes is free
//! again; and a restart finds all of it in the store.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use proptest::prelude::*;
use tokio::runtime::Builder;

use super::*;
use crate::store::{Change, History};

const ADDRESSES: usize = 30;
const NODE_PORTS: RangeInclusive<u16> = 30_000..=30_019;
const CLIENTS: usize = 4;
const KEPT_CHANGES: usize = 10_000;

/// A write of one of a few Services, so that clients meet at the same ones.
#[derive(Clone, Debug)]
enum Step {
    Apply(u8, Value),
    Delete(u8),
}

/// A spec of any type, with or without numbers that it asks for; some can't be had.
fn spec() -> impl Strategy<Value = Value> {
    let service_type = prop_oneof![
        3 => Just(json!({})),
        1 => Just(json!({"clusterIP": "None"})),
        1 => Just(json!({"type": "ExternalName", "externalName": "example.org"})),
        3 => Just(json!({"type": "NodePort"})),
        2 => Just(json!({"type": "LoadBalancer"})),
        2 => Just(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})),
        1 => Just(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false})),
    ];
    let policy = prop_oneof![
        Just(json!({})),
        Just(json!({"ipFamilyPolicy": "SingleStack"})),
        Just(json!({"ipFamilyPolicy": "PreferDualStack"})),
        Just(json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]})),
    ];
    let port = (0..3_u16, any::<bool>(), proptest::option::weighted(0.3, 0..20_u16));
    let ports = proptest::collection::vec(port, 1..4);
    let address = proptest::option::weighted(0.2, 0..32_u8);
    let health = proptest::option::weighted(0.2, 0..20_u16);
    (service_type, policy, ports, address, health).prop_map(|(mut spec, policy, ports, address, health)| {
        let has_node_ports = ["NodePort", "LoadBalancer"].iter().any(|known| spec["type"] == *known);
        let is_local = spec.get("externalTrafficPolicy").is_some();
        let port = |(index, (port, is_udp, number)): (usize, &(u16, bool, Option<u16>))| {
            let mut object = json!({"name": format!("p{index}"), "port": 80 + port, "protocol": if *is_udp { "UDP" } else { "TCP" }});
            if let Some(number) = number.filter(|_| has_node_ports) {
                object["nodePort"] = (30_000 + number).into();
            }
            object
        };
        spec["ports"] = ports.iter().enumerate().map(port).collect();
        if let Some(last) = address.filter(|_| spec.get("clusterIP").is_none()) {
            spec["clusterIP"] = format!("10.96.0.{last}").into();
        }
        if let Some(number) = health.filter(|_| is_local) {
            spec["healthCheckNodePort"] = (30_000 + number).into();
        }
        merge(spec, policy)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..8_u8;
    prop_oneof![3 => (name.clone(), spec()).prop_map(|(name, spec)| Step::Apply(name, spec)), 1 => name.prop_map(Step::Delete)]
}

fn named(name: &str, spec: Value) -> Vec<u8> {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}).to_string().into_bytes()
}

/// Without a runtime that the clients share: each waits for its own writes only.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Does a client's steps. Only what a client may be told goes wrong.
fn run(registry: &Registry, steps: Vec<Step>) {
    for step in steps {
        let result = match step {
            Step::Apply(name, spec) => block_on(registry.apply(&named(&format!("s{name}"), spec))).map(drop),
            Step::Delete(name) => block_on(registry.delete(Key::service("default", format!("s{name}")), 0)).map(drop),
        };
        match result {
            Ok(()) | Err(Error::Invalid(_) | Error::Exhausted(_) | Error::NotFound { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

/// What the Services of a revision hold, none of it twice.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    addresses: BTreeMap<String, String>,
    node_ports: BTreeMap<i64, String>,
}

impl Held {
    fn of(services: &BTreeMap<String, Value>) -> Self {
        let mut held = Held::default();
        for (name, spec) in services {
            held.take_addresses(name, spec);
            held.take_node_ports(name, spec);
        }
        held
    }

    fn take_addresses(&mut self, name: &str, spec: &Value) {
        let list = spec["clusterIPs"].as_array().cloned().unwrap_or_default();
        assert_eq!(spec.get("clusterIP"), list.first(), "{name}: {spec}");
        assert_eq!(list.is_empty(), spec["type"] == "ExternalName", "{name}: {spec}");
        if list == ["None"] {
            return;
        }
        assert_eq!(list.len(), spec["ipFamilies"].as_array().map_or(0, Vec::len), "{name}: {spec}");
        for (address, family) in list.iter().zip(spec["ipFamilies"].as_array().into_iter().flatten()) {
            let address = address.as_str().unwrap();
            assert_eq!(address.contains(':'), *family == "IPv6", "{name}: {spec}");
            let other = self.addresses.insert(address.to_owned(), name.to_owned());
            assert_eq!(other, None, "{name} and another one hold {address}");
        }
    }

    fn take_node_ports(&mut self, name: &str, spec: &Value) {
        let mut own = BTreeSet::new();
        let ports = spec["ports"].as_array().unwrap();
        let has_any = ["NodePort", "LoadBalancer"].iter().any(|known| spec["type"] == *known);
        let needs_all = has_any && spec["allocateLoadBalancerNodePorts"] != false;
        for port in ports {
            assert!(port.get("nodePort").is_some() || !needs_all, "{name}: {spec}");
            assert!(port.get("nodePort").is_none() || has_any, "{name}: {spec}");
            if let Some(number) = port["nodePort"].as_i64() {
                assert!(own.insert((port["protocol"].to_string(), number)), "{name} has {number} twice: {spec}");
            }
        }
        let mut numbers: BTreeSet<i64> = own.into_iter().map(|(_, number)| number).collect();
        let needs_health = spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
        assert_eq!(spec.get("healthCheckNodePort").is_some(), needs_health, "{name}: {spec}");
        if let Some(number) = spec["healthCheckNodePort"].as_i64() {
            assert!(numbers.insert(number), "{name} has {number} for its health check and a port: {spec}");
        }
        for number in numbers {
            assert!((30_000..=30_019).contains(&number), "{name}: {spec}");
            let other = self.node_ports.insert(number, name.to_owned());
            assert_eq!(other, None, "{name} and another one hold {number}");
        }
    }

    fn count(&self, is_v6: bool) -> usize {
        self.addresses.keys().filter(|address| address.contains(':') == is_v6).count()
    }
}

/// The specs of the Services that are stored.
fn stored(registry: &Registry) -> BTreeMap<String, Value> {
    let (records, _) = registry.list(Kind::Service, "");
    let spec = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap()["spec"].clone();
    records.iter().map(|record| (record.key.name.clone(), spec(&record.json))).collect()
}

/// What was held in each revision.
fn check_history(store: &Embedded) {
    let History::Changes(changes) = store.history(0, KEPT_CHANGES).unwrap() else { panic!("compacted") };
    let mut services = BTreeMap::new();
    for change in changes.into_iter().filter(|change| change.key().kind() == Kind::Service) {
        match change {
            Change::Apply(record) => {
                let object: Value = serde_json::from_slice(&record.json).unwrap();
                services.insert(record.key.name, object["spec"].clone());
            }
            Change::Delete { key, .. } => drop(services.remove(&key.name)),
        }
        Held::of(&services);
    }
}

/// Takes all that is left, and gives it back. Exactly what nobody holds is to be had.
fn check_free(registry: &Registry, held: &Held) {
    let v4 = json!({"ipFamilies": ["IPv4"], "ports": [{"port": 80}]});
    let v6 = json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]});
    // Of node ports there are fewer than of addresses; headless Services have no use for one.
    let free = [(&v4, ADDRESSES - held.count(false)), (&v6, ADDRESSES + 1 - held.count(true))];
    let mut made = Vec::new();
    for (family, (spec, free)) in free.into_iter().enumerate() {
        let names: Vec<String> = (0..=free).map(|n| format!("free-{family}-{n}")).collect();
        let writes: Vec<_> = names.iter().map(|name| named(name, spec.clone())).collect();
        let results = block_on(join_all(writes.iter().map(|write| registry.apply(write))));
        let refused: Vec<String> = results.into_iter().filter_map(|result| Some(result.err()?.to_string())).collect();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].contains("ClusterIP is left in"), "{refused:?}");
        made.extend(names);
    }
    Held::of(&stored(registry));
    release(registry, &made);

    let free = NODE_PORTS.len() - held.node_ports.len();
    let ports: Vec<Value> = (0..free).map(|n| json!({"name": format!("p{n}"), "port": 100 + n})).collect();
    // One Service may have them all, so it takes one address only; there may be none.
    let one = |count: usize| named("free", json!({"type": "NodePort", "ports": ports[..count]}));
    if held.count(false) < ADDRESSES && free > 0 {
        block_on(registry.apply(&one(free))).unwrap();
        Held::of(&stored(registry));
        let more = named("more", json!({"type": "NodePort", "ports": [{"port": 80}], "ipFamilies": ["IPv6"]}));
        if held.count(true) <= ADDRESSES {
            let refused = block_on(registry.apply(&more)).unwrap_err().to_string();
            assert_eq!(refused, "service default/more: no free node port is left in 30000-30019");
        }
        release(registry, &["free".to_owned()]);
    }
}

fn release(registry: &Registry, names: &[String]) {
    let deletes = names.iter().map(|name| registry.delete(Key::service("default", name), 0));
    block_on(join_all(deletes));
}

fn reopen(dir: &TempDir) -> (Arc<Embedded>, Registry, JoinHandle<()>) {
    let store = Arc::new(Embedded::open(dir.path(), Retention::newest(KEPT_CHANGES.try_into().unwrap())).unwrap());
    let options =
        Options { service_cidrs: "10.96.0.0/27,fd00:96::/123".parse().unwrap(), node_ports: NODE_PORTS, ..options() };
    let (registry, writer) = Registry::open(store.clone(), options).unwrap();
    (store, registry, writer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_held_twice_by_concurrent_writes_and_all_of_it_is_found_again(
        clients in proptest::collection::vec(proptest::collection::vec(step(), 1..25), CLIENTS)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (store, registry, writer) = reopen(&dir);
        std::thread::scope(|scope| {
            for steps in clients {
                let registry = &registry;
                scope.spawn(move || run(registry, steps));
            }
        });
        let services = stored(&registry);
        let held = Held::of(&services);
        check_free(&registry, &held);
        check_history(&store);
        drop((registry, store));
        writer.join().unwrap();

        let (store, registry, _) = reopen(&dir);
        prop_assert_eq!(&stored(&registry), &services);
        check_free(&registry, &held);
        let names: Vec<String> = services.into_keys().collect();
        release(&registry, &names);
        check_free(&registry, &Held::default());
        check_history(&store);
    }
}
