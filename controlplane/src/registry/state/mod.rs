//! The objects as they stand, and what a write makes of them.

use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tollgate_api::v1::{Key, Kind, apply_response::Outcome};

use super::invalid::Findings;
use super::manifest::{DEFAULT_NAMESPACE, Manifest, child, set_default, typed};
use super::service::{Allocations, ExternalIpCidrs};
use super::{Error, endpoint_slice, node, pod, service};
use crate::metrics::RangeUsage;
use crate::store::{Change, Record};

/// Objects by kind, namespace and name. Cloning one costs nothing.
pub type Objects = OrdMap<Arc<Key>, Arc<Record>>;

type Object = Map<String, Value>;

/// Every object and every allocation. The writer alone changes it, on a clone that it keeps or drops.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// The objects.
    pub(crate) objects: Objects,
    /// The revision of the last write.
    pub(crate) revision: u64,
    allocations: Allocations,
    external_ips: ExternalIpCidrs,
}

/// What became of an apply.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The object as it now stands.
    pub record: Arc<Record>,
    /// Whether it was made, changed, or left as it was.
    pub outcome: Outcome,
}

// === impl Applied ===

impl Applied {
    /// The outcome in a word.
    pub(crate) fn outcome_name(&self) -> &'static str {
        match self.outcome {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
            Outcome::Unspecified => "unspecified",
        }
    }
}

// === impl State ===

impl State {
    /// The state of a store that holds these objects. `allocations` are those of an empty one.
    pub(crate) fn restore(
        revision: u64,
        records: Vec<Record>,
        mut allocations: Allocations,
        external_ips: ExternalIpCidrs,
    ) -> Result<Self, Error> {
        let mut objects = Objects::new();
        for record in records {
            let key = Arc::new(record.key.clone());
            if key.kind() == Kind::Service {
                let service = typed(&key, &object_of(&record)?)?;
                for (what, holder) in allocations.restore(&key, &service) {
                    tracing::error!(service = %key, %holder, "{what} is held twice; the first one keeps it");
                }
            }
            objects.insert(key, Arc::new(record));
        }
        Ok(State { objects, revision, allocations, external_ips })
    }

    /// How the ranges are used.
    pub(crate) fn range_usage(&self) -> Vec<RangeUsage> {
        self.allocations.usage()
    }

    /// Makes or replaces an object. After an error the state is to be thrown away.
    pub(crate) fn apply(
        &mut self,
        manifest: Manifest,
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) -> Result<Applied, Error> {
        let Manifest { key, mut object, resource_version, uid, findings } = manifest;
        let key = Arc::new(key);
        self.check_namespace(&key)?;
        let old = self.objects.get(&key).cloned();
        check_resource_version(&key, resource_version.as_deref(), old.as_deref())?;
        let old_object = old.as_deref().map(object_of).transpose()?;
        inherit(&key, &mut object, old_object.as_ref(), uid.as_deref(), now)?;
        self.admit(&key, &mut object, old_object.as_ref(), findings)?;
        if let (Some(old), Some(old_object)) = (&old, &old_object) {
            set_resource_version(&mut object, old.revision);
            if object == *old_object {
                return Ok(Applied { record: old.clone(), outcome: Outcome::Unchanged });
            }
        }
        self.revision += 1;
        set_resource_version(&mut object, self.revision);
        let json = Value::Object(object).to_string().into_bytes().into();
        let record = Record { key: (*key).clone(), revision: self.revision, json };
        changes.push(Change::Apply(record.clone()));
        let record = Arc::new(record);
        self.objects.insert(key, record.clone());
        Ok(Applied { record, outcome: if old.is_some() { Outcome::Configured } else { Outcome::Created } })
    }

    /// Checks an object that is right or wrong in itself also against the one that it replaces, and gives it what it
    /// needs.
    fn admit(
        &mut self,
        key: &Arc<Key>,
        object: &mut Object,
        old: Option<&Object>,
        found: Findings,
    ) -> Result<(), Error> {
        let mut findings = found;
        match key.kind() {
            Kind::Service => {
                return service::admit(key, object, old, &self.external_ips, &mut self.allocations, findings);
            }
            Kind::Node => node::inherit(object, old),
            Kind::Pod => pod::inherit(object, old),
            Kind::EndpointSlice | Kind::Namespace | Kind::Unspecified => {}
        }
        if let Some(old) = old {
            match key.kind() {
                Kind::EndpointSlice => endpoint_slice::validate_update(old, object, &mut findings),
                Kind::Node => node::validate_update(old, object, &mut findings),
                Kind::Pod => pod::validate_update(old, object, &mut findings),
                Kind::Service | Kind::Namespace | Kind::Unspecified => {}
            }
        }
        Ok(findings.into_result(key)?)
    }

    /// Removes an object; with a Namespace also what is in it. Returns the revision of the object's own removal. After
    /// an error the state is to be thrown away.
    pub(crate) fn delete(&mut self, key: &Key, revision: u64, changes: &mut Vec<Change>) -> Result<u64, Error> {
        let Some(record) = self.objects.get(key) else { return Err(Error::NotFound { key: key.clone() }) };
        if revision != 0 && revision != record.revision {
            return Err(Error::Conflict {
                key: key.clone(),
                asked: format!("revision {revision}"),
                current: Some(record.revision),
            });
        }
        if key.kind() == Kind::Namespace {
            if key.name == DEFAULT_NAMESPACE {
                let reason = "it is where objects without a namespace go";
                return Err(Error::Refused { key: key.clone(), reason });
            }
            let within: Vec<Arc<Key>> = Kind::ALL
                .into_iter()
                .filter(|kind| kind.is_namespaced())
                .flat_map(|kind| list(&self.objects, kind, &key.name))
                .map(|(key, _)| key.clone())
                .collect();
            for key in within {
                self.remove(&key, changes)?;
            }
        }
        self.remove(key, changes)
    }

    fn remove(&mut self, key: &Key, changes: &mut Vec<Change>) -> Result<u64, Error> {
        if let Some(record) = self.objects.remove(key)
            && key.kind() == Kind::Service
        {
            self.allocations.release(key, &typed(key, &object_of(&record)?)?);
        }
        self.revision += 1;
        changes.push(Change::Delete { key: key.clone(), revision: self.revision });
        Ok(self.revision)
    }

    fn check_namespace(&self, key: &Key) -> Result<(), Error> {
        if !key.kind().is_namespaced() || self.objects.contains_key(&Key::namespace(&key.namespace)) {
            return Ok(());
        }
        Err(Error::NamespaceNotFound { key: key.clone() })
    }
}

/// The objects of a kind in a namespace, or in all where it is empty, ordered by namespace and name.
pub(crate) fn list<'a>(
    objects: &'a Objects,
    kind: Kind,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a Arc<Key>, &'a Arc<Record>)> {
    let first = Key { kind: kind.into(), namespace: namespace.to_owned(), name: String::new() };
    let is_listed =
        move |key: &Key| key.kind == i32::from(kind) && (namespace.is_empty() || key.namespace == namespace);
    objects.range::<_, Key>(first..).take_while(move |(key, _)| is_listed(key))
}

/// What the server writes itself, and what a manifest that leaves it out does not take away.
fn inherit(
    key: &Key,
    object: &mut Map<String, Value>,
    old: Option<&Map<String, Value>>,
    asked_uid: Option<&str>,
    now: Timestamp,
) -> Result<(), Error> {
    let old_metadata = |field: &str| old.and_then(|old| old.get("metadata")?.get(field)).cloned();
    let uid = old_metadata("uid");
    if let (Some(asked), Some(Value::String(uid))) = (asked_uid, &uid)
        && asked != uid
    {
        return Err(Error::OtherUid { key: key.clone(), asked: asked.to_owned(), current: uid.clone() });
    }
    let created = old_metadata("creationTimestamp");
    if let Some(metadata) = child(object, "metadata") {
        metadata.insert("uid".to_owned(), uid.unwrap_or_else(|| uuid::Uuid::new_v4().to_string().into()));
        let now = || now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        metadata.insert("creationTimestamp".to_owned(), created.unwrap_or_else(now));
    }
    if let Some(status) = old.and_then(|old| old.get("status")) {
        set_default(object, "status", status.clone());
    } else if key.kind() == Kind::Service {
        set_default(object, "status", json!({"loadBalancer": {}}));
    }
    Ok(())
}

fn check_resource_version(key: &Key, asked: Option<&str>, old: Option<&Record>) -> Result<(), Error> {
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else { return Ok(()) };
    let current = old.map(|old| old.revision);
    if current.is_some_and(|current| asked == current.to_string()) {
        return Ok(());
    }
    Err(Error::Conflict { key: key.clone(), asked: format!("resourceVersion {asked}"), current })
}

fn set_resource_version(object: &mut Map<String, Value>, revision: u64) {
    if let Some(metadata) = child(object, "metadata") {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
}

fn object_of(record: &Record) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(&record.json)
        .map_err(|error| Error::Unreadable { key: record.key.clone(), reason: error.to_string() })
}

#[cfg(test)]
mod tests;
