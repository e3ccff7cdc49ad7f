//! The objects that the controller decides on, and which Services a change of one of them touches.
//!
//! ```text
//!  Pod ──its labels, before and after──▶ Services that select it
//!  Node ──its pods, if its zone changed──▶ their Services
//!  EndpointSlice of ours ──▶ its Service, before and after
//! ```
//! A change costs what it touches: neither pods nor Services are ever searched through.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use tollgate_api::v1::{Key, Kind};

use super::object::{Labels, Pod, Service};
use super::{MANAGED_BY, MANAGER, SERVICE_NAME, ZONE};
use crate::registry::Snapshot;
use crate::store::{Change, Record};

/// Namespace and name.
pub(super) type Name = (String, String);

/// What is known, and how it hangs together.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Those that are to have slices.
    services: BTreeMap<Name, Service>,
    pods: BTreeMap<Name, Pod>,
    /// Of the Nodes that say theirs.
    zones: BTreeMap<String, String>,
    /// Ours.
    slices: BTreeMap<Name, Slice>,
    /// The Services whose selector begins with a label: enough to find all that may select a pod.
    selecting: Relation<Label, String>,
    /// The pods with a label.
    labelled: Relation<Label, String>,
    /// The pods of a Node.
    on_node: Relation<String, Name>,
    /// The slices of a Service.
    slices_of: Relation<Name, String>,
}

/// What there is to decide about one Service.
#[derive(Debug)]
pub(super) struct Input<'a> {
    /// `None`: it is to have no slices.
    pub(super) service: Option<&'a Service>,
    /// Those that it selects, with their zones.
    pub(super) pods: Vec<(&'a Pod, Option<&'a str>)>,
    /// Its slices that are ours.
    pub(super) slices: Vec<&'a EndpointSlice>,
}

/// A slice of ours.
#[derive(Debug)]
struct Slice {
    revision: u64,
    /// Empty where somebody has taken the label away.
    service: String,
    object: EndpointSlice,
}

/// A label in a namespace: namespace, key, value.
type Label = (String, String, String);

/// Many to many.
#[derive(Debug)]
struct Relation<K, V>(BTreeMap<K, BTreeSet<V>>);

// === impl Index ===

impl Index {
    /// Takes up everything.
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        let mut index = Index::default();
        for kind in [Kind::Node, Kind::Service, Kind::Pod, Kind::EndpointSlice] {
            for record in snapshot.list(kind, "") {
                index.set(&record.key, Some(&record));
            }
        }
        index
    }

    /// Every Service that has slices or is to have some.
    pub(super) fn services(&self) -> BTreeSet<Name> {
        self.services.keys().chain(self.slices_of.0.keys()).cloned().collect()
    }

    /// Takes up a change. Returns the Services that it touches.
    pub(super) fn apply(&mut self, change: &Change) -> BTreeSet<Name> {
        match change {
            Change::Apply(record) => self.set(&record.key, Some(record)),
            Change::Delete { key, .. } => self.set(key, None),
        }
    }

    /// What there is to decide about a Service.
    pub(super) fn input(&self, name: &Name) -> Input<'_> {
        let service = self.services.get(name);
        let slice = |slice: &String| self.slices.get(&(name.0.clone(), slice.clone()));
        Input {
            service,
            pods: service.map(|service| self.pods_of(service)).unwrap_or_default(),
            slices: self.slices_of.get(name).filter_map(slice).map(|slice| &slice.object).collect(),
        }
    }

    /// The revision of a slice of ours.
    pub(super) fn slice_revision(&self, slice: &Name) -> Option<u64> {
        self.slices.get(slice).map(|slice| slice.revision)
    }

    fn set(&mut self, key: &Key, record: Option<&Record>) -> BTreeSet<Name> {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind() {
            Kind::Service => self.set_service(name, record.and_then(read).and_then(Service::read)),
            Kind::Pod => self.set_pod(name, record.and_then(read).map(Pod::read)),
            Kind::Node => {
                let labels = record.and_then(read).and_then(|node: core::Node| node.metadata.labels);
                self.set_zone(name.1, labels.and_then(|mut labels| labels.remove(ZONE)))
            }
            Kind::EndpointSlice => self.set_slice(name, record.and_then(Slice::read)),
            Kind::Namespace | Kind::Unspecified => BTreeSet::new(),
        }
    }

    fn set_service(&mut self, name: Name, new: Option<Service>) -> BTreeSet<Name> {
        let old = self.services.remove(&name);
        let is_same = old == new;
        if let Some(label) = old.as_ref().and_then(|old| first_label(&name.0, &old.selector)) {
            self.selecting.remove(&label, &name.1);
        }
        if let Some(new) = new {
            if let Some(label) = first_label(&name.0, &new.selector) {
                self.selecting.insert(label, name.1.clone());
            }
            self.services.insert(name.clone(), new);
        }
        if is_same { BTreeSet::new() } else { [name].into() }
    }

    fn set_pod(&mut self, name: Name, new: Option<Pod>) -> BTreeSet<Name> {
        let old = self.pods.remove(&name);
        let is_same = old == new;
        let mut touched = BTreeSet::new();
        if let Some(old) = old {
            if !is_same {
                touched.extend(self.services_of(&name.0, &old.labels));
            }
            labels_of(&name.0, &old.labels).for_each(|label| self.labelled.remove(&label, &name.1));
            if let Some(node) = &old.node_name {
                self.on_node.remove(node, &name);
            }
        }
        if let Some(new) = new {
            if !is_same {
                touched.extend(self.services_of(&name.0, &new.labels));
            }
            labels_of(&name.0, &new.labels).for_each(|label| self.labelled.insert(label, name.1.clone()));
            if let Some(node) = &new.node_name {
                self.on_node.insert(node.clone(), name.clone());
            }
            self.pods.insert(name, new);
        }
        touched
    }

    fn set_zone(&mut self, node: String, new: Option<String>) -> BTreeSet<Name> {
        let old = match &new {
            Some(zone) => self.zones.insert(node.clone(), zone.clone()),
            None => self.zones.remove(&node),
        };
        if old == new {
            return BTreeSet::new();
        }
        let pods = self.on_node.get(&node).filter_map(|name| Some((&name.0, self.pods.get(name)?)));
        pods.flat_map(|(namespace, pod)| self.services_of(namespace, &pod.labels)).collect()
    }

    fn set_slice(&mut self, name: Name, new: Option<Slice>) -> BTreeSet<Name> {
        let mut touched = BTreeSet::new();
        if let Some(old) = self.slices.remove(&name) {
            let service = (name.0.clone(), old.service);
            self.slices_of.remove(&service, &name.1);
            touched.insert(service);
        }
        if let Some(new) = new {
            let service = (name.0.clone(), new.service.clone());
            self.slices_of.insert(service.clone(), name.1.clone());
            touched.insert(service);
            self.slices.insert(name, new);
        }
        touched
    }

    /// The Services that select a pod with these labels.
    fn services_of(&self, namespace: &str, labels: &Labels) -> Vec<Name> {
        labels_of(namespace, labels)
            .flat_map(|label| self.selecting.get(&label))
            .map(|service| (namespace.to_owned(), service.clone()))
            .filter(|name| self.services.get(name).is_some_and(|service| service.selects(labels)))
            .collect()
    }

    /// The pods that a Service selects, found by the rarest label of its selector.
    fn pods_of(&self, service: &Service) -> Vec<(&Pod, Option<&str>)> {
        let rarest = labels_of(&service.namespace, &service.selector).min_by_key(|label| self.labelled.count(label));
        let Some(rarest) = rarest else { return Vec::new() };
        let pods = self.labelled.get(&rarest);
        let pods = pods.filter_map(|pod| self.pods.get(&(service.namespace.clone(), pod.clone())));
        pods.filter(|pod| service.selects(&pod.labels)).map(|pod| (pod, self.zone_of(pod))).collect()
    }

    fn zone_of(&self, pod: &Pod) -> Option<&str> {
        self.zones.get(pod.node_name.as_ref()?).map(String::as_str)
    }
}

// === impl Slice ===

impl Slice {
    /// `None`: it is not ours.
    fn read(record: &Record) -> Option<Self> {
        let object: EndpointSlice = read(record)?;
        let labels = object.metadata.labels.as_ref()?;
        if labels.get(MANAGED_BY)? != MANAGER {
            return None;
        }
        let service = labels.get(SERVICE_NAME).cloned().unwrap_or_default();
        Some(Slice { revision: record.revision, service, object })
    }
}

// === impl Relation ===

impl<K: Ord, V: Ord> Relation<K, V> {
    fn insert(&mut self, key: K, value: V) {
        self.0.entry(key).or_default().insert(value);
    }

    fn remove(&mut self, key: &K, value: &V) {
        if let Some(values) = self.0.get_mut(key) {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    fn get(&self, key: &K) -> impl Iterator<Item = &V> + use<'_, K, V> {
        self.0.get(key).into_iter().flatten()
    }

    fn count(&self, key: &K) -> usize {
        self.0.get(key).map_or(0, BTreeSet::len)
    }
}

impl<K, V> Default for Relation<K, V> {
    fn default() -> Self {
        Relation(BTreeMap::new())
    }
}

fn labels_of<'a>(namespace: &'a str, labels: &'a Labels) -> impl Iterator<Item = Label> + use<'a> {
    labels.iter().map(|(key, value)| (namespace.to_owned(), key.clone(), value.clone()))
}

fn first_label(namespace: &str, labels: &Labels) -> Option<Label> {
    labels_of(namespace, labels).next()
}

/// The registry lets nothing in that its type can't be read from; a store of another version may hold some.
fn read<T: DeserializeOwned>(record: &Record) -> Option<T> {
    serde_json::from_slice(&record.json)
        .inspect_err(|error| tracing::warn!(object = %record.key, %error, "passed over: it can't be read"))
        .ok()
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
