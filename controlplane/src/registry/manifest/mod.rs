//! From bytes to an object: read, defaulted, checked in itself. What depends on other objects, such as the one that it
//! replaces or a free ClusterIP, is settled later by the writer.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tollgate_api::v1::{Key, Kind};

use super::invalid::{Findings, Invalid};
use super::{endpoint_slice, metadata, namespace, node, pod, service};

/// The namespace of manifests that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An object as a client gave it, with defaults.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// Which object.
    pub(crate) key: Key,
    /// The whole object, with what this version does not know.
    pub(crate) object: Map<String, Value>,
    /// Not `None`: the write is meant for the object at this revision only.
    pub(crate) resource_version: Option<String>,
    /// Not `None`: the write is meant for the object with this uid only.
    pub(crate) uid: Option<String>,
    /// What is wrong with it in itself. It is told together with what is wrong in the light of the object that it
    /// replaces, so that several mistakes are told at once.
    pub(crate) findings: Findings,
}

// === impl Manifest ===

impl Manifest {
    /// Reads a manifest in JSON. Fails where it can't be told what it is, or a field holds another type of value; all
    /// else that is wrong is among the findings.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Invalid> {
        let unnamed = "the manifest";
        let value = serde_json::from_slice(json)
            .map_err(|error| Invalid::one(unnamed, "(root)", None, format!("is not JSON: {error}")))?;
        let Value::Object(mut object) = value else {
            return Err(Invalid::one(unnamed, "(root)", Some(value), "must be an object"));
        };
        strip_nulls(&mut object);
        let kind = kind_of(&object)?;
        let key = key_of(kind, &mut object)?;
        let metadata: ObjectMeta = check_types(&key, &object)?;
        let mut findings = Findings::default();
        metadata::validate(&key, &metadata, &mut findings);
        apply_rules(&key, &mut object, &mut findings)?;
        Ok(Manifest { key, object, resource_version: metadata.resource_version, uid: metadata.uid, findings })
    }
}

/// Reads an object, or a part of it, as a Kubernetes type. Only for what [`Manifest::parse`] has let through.
pub(crate) fn typed<T: DeserializeOwned>(key: &Key, object: &Map<String, Value>) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        Invalid::one(key, if path == "." { "(root)".to_owned() } else { path }, None, reason)
    })
}

/// Fills a field of an object where it has none.
pub(crate) fn set_default(object: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    if !object.contains_key(field) {
        object.insert(field.to_owned(), value.into());
    }
}

/// A field that is an object; made where it is absent.
pub(crate) fn child<'a>(object: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    set_default(object, field, json!({}));
    object.get_mut(field).and_then(Value::as_object_mut)
}

/// The objects in a field that is a list of them; none where it is absent.
pub(crate) fn children<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Kubernetes takes a field that is null as absent.
fn strip_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
    for value in object.values_mut() {
        strip_nulls_within(value);
    }
}

fn strip_nulls_within(value: &mut Value) {
    match value {
        Value::Object(object) => strip_nulls(object),
        Value::Array(items) => items.iter_mut().for_each(strip_nulls_within),
        _ => {}
    }
}

fn kind_of(object: &Map<String, Value>) -> Result<Kind, Invalid> {
    let word = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (word("apiVersion"), word("kind"));
    let name = object.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Value::as_str);
    let object = match name {
        Some(name) if !kind.is_empty() => format!("{} {name}", kind.to_lowercase()),
        _ => "the manifest".to_owned(),
    };
    for (field, given) in [("apiVersion", api_version), ("kind", kind)] {
        if given.is_empty() {
            return Err(Invalid::one(&object, field, None, "is required"));
        }
    }
    if let Some(kind) = Kind::of_manifest(api_version, kind) {
        return Ok(kind);
    }
    Err(match Kind::ALL.iter().find(|known| known.name() == kind) {
        Some(known) => {
            let reason = format!("must be {:?} for kind {kind}", known.api_version());
            Invalid::one(&object, "apiVersion", Some(api_version.into()), reason)
        }
        None => {
            let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            let reason = format!("is not supported here; supported are {}", known.join(", "));
            Invalid::one(&object, "kind", Some(kind.into()), reason)
        }
    })
}

/// Reads the object's name and namespace, and writes the namespace back where it was left out.
fn key_of(kind: Kind, object: &mut Map<String, Value>) -> Result<Key, Invalid> {
    let unnamed = format!("the {kind}");
    let Some(Value::Object(metadata)) = object.get_mut("metadata") else {
        return Err(Invalid::one(unnamed, "metadata", None, "is required"));
    };
    let mut words = [String::new(), String::new()];
    for (field, word) in ["name", "namespace"].into_iter().zip(&mut words) {
        match metadata.get(field) {
            Some(Value::String(given)) => word.clone_from(given),
            Some(other) => {
                return Err(Invalid::one(
                    unnamed,
                    format!("metadata.{field}"),
                    Some(other.clone()),
                    "must be a string",
                ));
            }
            None => {}
        }
    }
    let [name, namespace] = words;
    if name.is_empty() {
        let reason = if metadata.contains_key("generateName") {
            "is required; generateName is not supported"
        } else {
            "is required"
        };
        return Err(Invalid::one(unnamed, "metadata.name", None, reason));
    }
    if !kind.is_namespaced() && !namespace.is_empty() {
        let reason = format!("must be absent: {} lie in no namespace", kind.plural());
        return Err(Invalid::one(format!("{kind} {name}"), "metadata.namespace", Some(namespace.into()), reason));
    }
    if kind.is_namespaced() && namespace.is_empty() {
        metadata.insert("namespace".to_owned(), DEFAULT_NAMESPACE.into());
        return Ok(Key::new(kind, DEFAULT_NAMESPACE, name));
    }
    Ok(Key::new(kind, namespace, name))
}

/// Fields that Kubernetes knows hold what it expects there; afterwards reading the object as its type can't fail.
fn check_types(key: &Key, object: &Map<String, Value>) -> Result<ObjectMeta, Invalid> {
    match key.kind() {
        Kind::Service => typed::<core::Service>(key, object).map(|service| service.metadata),
        Kind::EndpointSlice => typed::<discovery::EndpointSlice>(key, object).map(|slice| slice.metadata),
        Kind::Node => typed::<core::Node>(key, object).map(|node| node.metadata),
        Kind::Namespace => typed::<core::Namespace>(key, object).map(|namespace| namespace.metadata),
        Kind::Pod => typed::<core::Pod>(key, object).map(|pod| pod.metadata),
        Kind::Unspecified => Err(Invalid::one(key, "kind", None, "is required")),
    }
}

/// Defaults, then checks, of each kind. Services are checked when they are written: what is right depends on the one
/// that is replaced.
fn apply_rules(key: &Key, object: &mut Map<String, Value>, findings: &mut Findings) -> Result<(), Invalid> {
    match key.kind() {
        Kind::Service => service::set_defaults(object),
        Kind::EndpointSlice => {
            endpoint_slice::set_defaults(object);
            endpoint_slice::validate(&typed(key, object)?, findings);
        }
        Kind::Node => {
            node::set_defaults(object);
            node::validate(&typed(key, object)?, findings);
        }
        Kind::Namespace => {
            namespace::set_defaults(key, object);
            namespace::validate(&typed(key, object)?, findings);
        }
        Kind::Pod => {
            pod::set_defaults(object);
            pod::validate(&typed(key, object)?, findings);
        }
        Kind::Unspecified => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
