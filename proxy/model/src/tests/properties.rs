//! What holds for any objects, in any order.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use proptest::prelude::*;

use super::build::*;
use super::generate::{Given, Told, configs, histories};
use crate::diff::{Change, diff};
use crate::name::{IpFamily, NamespacedName, Protocol};
use crate::object::Kind;
use crate::snapshot::{EndpointSets, ServicePort, Snapshot};
use crate::store::{Event, Store, StoreConfig};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_snapshot_depends_on_the_final_objects_alone(
        config in configs(),
        history in histories(),
        order in Just(KINDS.to_vec()).prop_shuffle(),
        seed in any::<u64>(),
    ) {
        let mut store = Store::new(config.clone());
        let mut naive = Naive::default();
        for told in history.into_iter().chain(KINDS.map(Told::InitDone)) {
            naive.hear(&told);
            if let Some(snapshot) = tell(&mut store, told) {
                check(&snapshot)?;
            }
        }
        let snapshot = store.snapshot().expect("the lists are complete");
        check(&snapshot)?;
        prop_assert_eq!(snapshot, naive.at_once(config, &order, seed));
    }

    #[test]
    fn a_diff_is_exactly_what_changed(config in configs(), before in histories(), after in histories()) {
        let mut store = Store::new(config);
        for told in before.into_iter().chain(KINDS.map(Told::InitDone)) {
            tell(&mut store, told);
        }
        let old = store.snapshot().expect("the lists are complete");
        for told in after {
            tell(&mut store, told);
        }
        let new = store.snapshot().expect("the lists are complete");
        check_diff(&old.service_ports, &new.service_ports)?;
    }

    #[test]
    fn a_diff_of_large_maps_is_exactly_what_changed(
        first in proptest::collection::btree_map(0..3000_u16, any::<u8>(), 0..1500),
        edits in proptest::collection::vec((0..3000_u16, proptest::option::of(any::<u8>())), 0..60),
    ) {
        let old: OrdMap<u16, Arc<u8>> = first.into_iter().map(|(key, value)| (key, Arc::new(value))).collect();
        let mut new = old.clone();
        for (key, value) in edits {
            match value {
                Some(value) => new.insert(key, Arc::new(value)),
                None => new.remove(&key),
            };
        }
        check_diff(&old, &new)?;
        check_diff(&new, &old)?;
    }
}

/// What the events come to, as the documentation of [`Event`] says it, without any of the store's economies.
#[derive(Default)]
struct Naive {
    held: BTreeMap<Kind, BTreeMap<NamespacedName, Given>>,
    incoming: BTreeMap<Kind, BTreeMap<NamespacedName, Given>>,
    interfaces: Option<Vec<&'static str>>,
}

impl Naive {
    fn hear(&mut self, told: &Told) {
        match told {
            Told::Init(kind) => {
                self.incoming.insert(*kind, BTreeMap::new());
            }
            Told::Apply(given) => {
                self.list(given.kind()).insert(given.name(), given.clone());
            }
            Told::Delete(kind, name) => {
                self.list(*kind).remove(name);
            }
            Told::InitDone(kind) => {
                if let Some(incoming) = self.incoming.remove(kind) {
                    self.held.insert(*kind, incoming);
                }
            }
            Told::Interfaces(addresses) => self.interfaces = Some(addresses.clone()),
            Told::Snapshot => {}
        }
    }

    fn list(&mut self, kind: Kind) -> &mut BTreeMap<NamespacedName, Given> {
        self.incoming.get_mut(&kind).unwrap_or(self.held.entry(kind).or_default())
    }

    /// The snapshot of a store that is given the objects as they are now, in an order that the seed decides.
    fn at_once(&self, config: StoreConfig, kinds: &[Kind], seed: u64) -> Snapshot {
        let mut store = Store::new(config);
        if let Some(addresses) = &self.interfaces {
            store.apply(interfaces(addresses));
        }
        for kind in kinds {
            store.apply(Event::Init(*kind));
        }
        let mut objects: Vec<&Given> = self.held.values().flat_map(BTreeMap::values).collect();
        let mut state = seed;
        while !objects.is_empty() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let next = usize::try_from(state >> 33).unwrap() % objects.len();
            store.apply(objects.swap_remove(next).clone().into());
        }
        for kind in kinds {
            store.apply(Event::InitDone(*kind));
        }
        store.snapshot().expect("the lists are complete")
    }
}

fn tell(store: &mut Store, told: Told) -> Option<Snapshot> {
    match told {
        Told::Init(kind) => store.apply(Event::Init(kind)),
        Told::Apply(given) => store.apply(given.into()),
        Told::Delete(kind, name) => store.apply(Event::Delete(kind, name)),
        Told::InitDone(kind) => store.apply(Event::InitDone(kind)),
        Told::Interfaces(addresses) => store.apply(interfaces(&addresses)),
        Told::Snapshot => return store.snapshot(),
    }
    None
}

/// What holds for every snapshot: above all, that nothing has two holders.
fn check(snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let mut frontends: BTreeSet<(IpAddr, u16, Protocol)> = BTreeSet::new();
    let mut node_ports: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    let mut health_checks = BTreeMap::new();
    for (name, port) in &snapshot.service_ports {
        prop_assert_eq!(name, &port.name);
        prop_assert!(!port.frontends.is_empty() || port.node_port.is_some(), "{} has nothing to answer on", name);
        prop_assert!(port.frontends.is_sorted());
        for frontend in &port.frontends {
            let is_new = frontends.insert((frontend.ip, frontend.port, frontend.protocol));
            prop_assert!(is_new, "{} is held twice", frontend);
        }
        if let Some(node_port) = port.node_port {
            let is_new = node_ports.insert((node_port, name.protocol));
            prop_assert!(is_new, "node port {} is held twice", node_port);
        }
        if let Some(health_check) = port.health_check_node_port {
            let holder = health_checks.entry(health_check).or_insert(&name.service);
            prop_assert_eq!(*holder, &name.service, "two Services have one health check");
        }
        check_endpoints(port)?;
    }
    let are_apart = health_checks.keys().all(|port| !node_ports.contains(&(*port, Protocol::Tcp)));
    prop_assert!(are_apart, "a health check is a NodePort");
    for (service, port) in health_checks.iter().map(|(port, service)| (*service, *port)) {
        let told = snapshot.health_checks.get(service).map(|check| check.node_port);
        prop_assert_eq!(told, Some(port), "{} has a health check, and its ports agree", service);
    }
    Ok(())
}

fn check_endpoints(port: &ServicePort) -> Result<(), TestCaseError> {
    for family in IpFamily::ALL {
        let EndpointSets { cluster, local, serving } = port.endpoints(family);
        for list in [cluster, local, serving] {
            let is_ordered = list.windows(2).all(|pair| (pair[0].ip, pair[0].port) < (pair[1].ip, pair[1].port));
            prop_assert!(is_ordered, "{:?}", list);
            prop_assert!(list.iter().all(|endpoint| endpoint.family() == family));
            prop_assert!(list.iter().all(|endpoint| serving.contains(endpoint)), "chosen, but it does not serve");
        }
        prop_assert_eq!(cluster.is_empty(), serving.is_empty(), "who serves is chosen, if only as a last resort");
        prop_assert!(local.iter().all(|endpoint| endpoint.is_local));
        prop_assert_eq!(local.is_empty(), !serving.iter().any(|endpoint| endpoint.is_local));
        for (a, b) in [(cluster, serving), (local, serving), (local, cluster)] {
            prop_assert_eq!(a == b, Arc::ptr_eq(a, b) || a == b && a.is_empty(), "equal lists share their memory");
        }
    }
    Ok(())
}

fn check_diff<K, V>(old: &OrdMap<K, Arc<V>>, new: &OrdMap<K, Arc<V>>) -> Result<(), TestCaseError>
where
    K: Ord + Clone + std::fmt::Debug,
    V: PartialEq + Clone + std::fmt::Debug,
{
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    let naive: Vec<Change<'_, K, V>> = keys
        .into_iter()
        .filter_map(|key| match (old.get(key), new.get(key)) {
            (None, Some(new)) => Some(Change::Added(key, &**new)),
            (Some(old), None) => Some(Change::Removed(key, &**old)),
            (Some(old), Some(new)) if old != new => Some(Change::Changed(key, &**old, &**new)),
            _ => None,
        })
        .collect();
    let found: Vec<_> = diff(old, new).collect();
    prop_assert_eq!(&found, &naive);

    let mut patched = old.clone();
    for change in found {
        match change {
            Change::Added(key, value) | Change::Changed(key, _, value) => {
                patched.insert(key.clone(), Arc::new(value.clone()));
            }
            Change::Removed(key, _) => {
                patched.remove(key);
            }
        }
    }
    prop_assert_eq!(&patched, new);
    Ok(())
}

thread_local! {
    static COMPARISONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts how often it is compared. It is not `Eq`, so that an `Arc` of it takes no short cut.
#[derive(Debug)]
struct Counted(u32);

impl PartialEq for Counted {
    fn eq(&self, other: &Self) -> bool {
        COMPARISONS.set(COMPARISONS.get() + 1);
        self.0 == other.0
    }
}

#[test]
fn a_diff_does_not_visit_what_is_shared() {
    type Map = OrdMap<u32, Arc<Counted>>;
    type Edit = fn(&mut Map);
    let old: Map = (0..50_000).map(|i| (2 * i, Arc::new(Counted(i)))).collect();
    let edits: [(&str, Edit); 4] = [
        ("change", |map| drop(map.insert(50_000, Arc::new(Counted(7))))),
        ("add", |map| drop(map.insert(50_001, Arc::new(Counted(7))))),
        ("remove", |map| drop(map.remove(&50_000))),
        ("both ends", |map| {
            map.remove(&0);
            map.insert(99_999, Arc::new(Counted(7)));
        }),
    ];
    for (name, edit) in edits {
        let mut new = old.clone();
        edit(&mut new);
        COMPARISONS.set(0);
        let changes = diff(&old, &new).count();
        assert!((1..=2).contains(&changes), "{name}");
        assert!(COMPARISONS.get() < 500, "{name}: {} comparisons among 50,000", COMPARISONS.get());
    }
}
