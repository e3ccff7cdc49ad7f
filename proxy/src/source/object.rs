//! One object as the control plane sends it, made into the model's event. The only place where Kubernetes JSON is read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use tollgate_api::v1::{self as api, Key};
use tollgate_model::endpoint::EndpointSlice;
use tollgate_model::name::NamespacedName;
use tollgate_model::node::Node;
use tollgate_model::object::{InvalidObject, Kind};
use tollgate_model::service::Service;
use tollgate_model::store::{Event, Object};

/// When the change of an endpoint that led to this slice was made; set by EndpointSlice controllers (Kubernetes'
/// `v1.EndpointsLastChangeTriggerTime`).
const LAST_CHANGE_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The model's word for a kind; nothing for kinds that a proxy has no use for.
pub(super) fn kind(kind: api::Kind) -> Option<Kind> {
    match kind {
        api::Kind::Service => Some(Kind::Service),
        api::Kind::EndpointSlice => Some(Kind::EndpointSlice),
        api::Kind::Node => Some(Kind::Node),
        api::Kind::Namespace | api::Kind::Pod | api::Kind::Unspecified => None,
    }
}

/// What an object that was written means, and when the change behind it was made, where it says so. An object that can't be
/// read or does not validate is an event too: it must not go on with what it said before.
pub(super) fn applied(object: &api::Object) -> (Option<Event>, Option<Timestamp>) {
    let Some(key) = &object.key else { return (None, None) };
    match kind(key.kind()) {
        Some(Kind::Service) => parse::<v1::Service, Service>(Kind::Service, key, &object.json, Object::Service),
        Some(Kind::EndpointSlice) => parse::<discovery::EndpointSlice, EndpointSlice>(
            Kind::EndpointSlice,
            key,
            &object.json,
            Object::EndpointSlice,
        ),
        Some(Kind::Node) => parse::<v1::Node, Node>(Kind::Node, key, &object.json, Object::Node),
        Some(Kind::NodeAddresses) | None => (None, None),
    }
}

/// What the removal of an object means.
pub(super) fn deleted(key: &Key) -> Option<Event> {
    kind(key.kind()).map(|kind| Event::Delete(kind, name(key)))
}

fn name(key: &Key) -> NamespacedName {
    NamespacedName::new(key.namespace.as_str(), key.name.as_str())
}

fn parse<K, M>(kind: Kind, key: &Key, json: &[u8], object: fn(M) -> Object) -> (Option<Event>, Option<Timestamp>)
where
    K: DeserializeOwned + Metadata<Ty = ObjectMeta>,
    M: for<'a> TryFrom<&'a K, Error = InvalidObject>,
{
    let decoded: K = match serde_json::from_slice(json) {
        Ok(decoded) => decoded,
        Err(error) => return (Some(Event::Invalid(InvalidObject::undecodable(kind, name(key), error))), None),
    };
    let triggered = triggered(decoded.metadata().annotations.as_ref());
    let event = match M::try_from(&decoded) {
        Ok(valid) => Event::Apply(object(valid)),
        Err(invalid) => Event::Invalid(invalid),
    };
    (Some(event), triggered)
}

fn triggered(annotations: Option<&BTreeMap<String, String>>) -> Option<Timestamp> {
    annotations?.get(LAST_CHANGE_TRIGGER_TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: Key, json: &serde_json::Value) -> api::Object {
        api::Object { key: Some(key), revision: 1, json: json.to_string().into_bytes() }
    }

    #[test]
    fn a_service_is_applied() {
        let json = serde_json::json!({
            "metadata": { "namespace": "default", "name": "web" },
            "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{ "port": 80, "protocol": "TCP" }] },
        });
        let (event, _) = applied(&object(Key::service("default", "web"), &json));
        assert!(matches!(event, Some(Event::Apply(Object::Service(_)))), "{event:?}");
    }

    #[test]
    fn an_object_that_cannot_be_read_is_invalid_under_its_own_name() {
        let json = serde_json::json!({ "metadata": { "name": "web" }, "spec": { "ports": "none" } });
        let (event, _) = applied(&object(Key::service("default", "web"), &json));
        let Some(Event::Invalid(invalid)) = event else { panic!("{event:?}") };
        assert_eq!(invalid.name.to_string(), "default/web");
    }

    #[test]
    fn a_slice_says_when_its_change_was_made() {
        let json = serde_json::json!({
            "addressType": "IPv4",
            "endpoints": [],
            "metadata": {
                "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" },
                "annotations": { LAST_CHANGE_TRIGGER_TIME: "2026-01-02T03:04:05Z" },
            },
        });
        let (_, triggered) = applied(&object(Key::endpoint_slice("default", "web-1"), &json));
        assert_eq!(triggered, Some("2026-01-02T03:04:05Z".parse().unwrap()));
    }

    #[test]
    fn kinds_that_a_proxy_has_no_use_for_are_no_event() {
        assert!(deleted(&Key::namespace("default")).is_none());
    }
}
