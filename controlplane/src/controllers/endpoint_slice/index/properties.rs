//! What the index holds after any changes is what it would take up from the objects as they then are; and whose input a
//! change has changed is told.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::registry::Objects;
use crate::store::Position;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// An object, or the end of one.
fn change() -> impl Strategy<Value = (Key, Option<Value>)> {
    let name = || proptest::sample::select(&NAMES[..]);
    let labels = || {
        let label = (proptest::sample::select(&["app", "tier"][..]), name());
        proptest::collection::btree_map(label.0, label.1, 0..3)
    };
    let meta = |name: &str, labels: Value| json!({"namespace": "shop", "name": name, "labels": labels});
    let service = (name(), labels()).prop_map(move |(name, selector)| {
        let object = json!({"metadata": meta(name, json!({})), "spec": {"selector": selector}});
        (Key::service("shop", name), object)
    });
    let pod = (name(), labels(), name()).prop_map(move |(name, labels, node)| {
        let object = json!({"metadata": meta(name, json!(labels)), "spec": {"nodeName": node, "containers": []}});
        (Key::pod("shop", name), object)
    });
    let node = (name(), proptest::option::of(name())).prop_map(|(name, zone)| {
        (Key::node(name), json!({"metadata": {"name": name, "labels": {ZONE: zone.unwrap_or_default()}}}))
    });
    let slice = (name(), name(), any::<bool>()).prop_map(move |(name, service, is_ours)| {
        let manager = if is_ours { MANAGER } else { "somebody" };
        let labels = json!({SERVICE_NAME: service, MANAGED_BY: manager});
        (Key::endpoint_slice("shop", name), json!({"metadata": meta(name, labels), "addressType": "IPv4"}))
    });
    let object = prop_oneof![2 => service, 3 => pod, 1 => node, 1 => slice];
    (object, proptest::bool::weighted(0.75)).prop_map(|((key, object), stays)| (key, stays.then_some(object)))
}

/// All that is to be decided on, by Service.
fn inputs(index: &Index) -> BTreeMap<Name, String> {
    let names = NAMES.iter().map(|name| ("shop".to_owned(), (*name).to_owned()));
    names.map(|name| (name.clone(), format!("{:?}", index.input(&name)))).collect()
}

proptest! {
    #[test]
    fn an_index_that_follows_is_as_good_as_a_new_one(changes in proptest::collection::vec(change(), 1..60)) {
        let mut index = Index::default();
        let mut objects = Objects::new();
        let mut known = inputs(&index);
        for (revision, (key, object)) in (1..).zip(changes) {
            let change = match object {
                Some(object) => {
                    let json = object.to_string().into_bytes().into();
                    let record = Record { key: key.clone(), revision, json };
                    objects.insert(Arc::new(key), Arc::new(record.clone()));
                    Change::Apply(record)
                }
                None => {
                    objects.remove(&key);
                    Change::Delete { key, revision }
                }
            };
            let touched = index.apply(&change);
            let now = inputs(&index);
            for (name, input) in &now {
                prop_assert!(touched.contains(name) || known[name] == *input, "{name:?} was not touched by {change:?}");
            }
            known = now;
        }
        let position = Position { store_id: "s".into(), revision: 0, compacted: 0 };
        let new = Index::new(&Snapshot { objects, position });
        prop_assert_eq!(inputs(&new), known);
        prop_assert_eq!(new.services(), index.services());
        // Nothing is left behind by what has gone.
        prop_assert_eq!(format!("{:?}", index), format!("{:?}", new));
    }
}
