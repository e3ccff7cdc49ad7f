//! Defaults and checks of Namespaces.

use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Map, Value};
use tollgate_api::v1::Key;

use super::invalid::Findings;
use super::manifest::{child, set_default};

/// Kubernetes puts each Namespace's name into this label of it, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Fills in what Kubernetes fills in.
pub(crate) fn set_defaults(key: &Key, object: &mut Map<String, Value>) {
    if let Some(labels) = child(object, "metadata").and_then(|metadata| child(metadata, "labels")) {
        labels.insert(NAME_LABEL.to_owned(), key.name.clone().into());
    }
    if let Some(status) = child(object, "status") {
        set_default(status, "phase", "Active");
    }
}

/// Checks a Namespace in itself.
pub(crate) fn validate(namespace: &Namespace, findings: &mut Findings) {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    if namespace.metadata.deletion_timestamp.is_none() && phase.is_some_and(|phase| phase != "Active") {
        let reason = "must be \"Active\": Namespaces are deleted by deleting them, and go at once";
        findings.wrong("status.phase", phase, reason);
    }
}
