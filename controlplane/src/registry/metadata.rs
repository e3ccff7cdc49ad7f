//! Checks of what objects of every kind have in common: name, labels, annotations, owners.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tollgate_api::v1::{Key, Kind};

use super::invalid::Findings;
use super::name;

/// Bytes of all annotations of an object together, names and values.
const MOST_ANNOTATION_BYTES: usize = 256 * 1024;

/// Checks an object's metadata.
pub(crate) fn validate(key: &Key, metadata: &ObjectMeta, findings: &mut Findings) {
    let check_name = match key.kind() {
        Kind::Service | Kind::Namespace => name::check_dns_1123_label,
        _ => name::check_dns_1123_subdomain,
    };
    findings.check("metadata.name", &key.name, check_name(&key.name));
    if key.kind().is_namespaced() {
        findings.check("metadata.namespace", &key.namespace, name::check_dns_1123_label(&key.namespace));
    }
    if let Some(generation) = metadata.generation.filter(|generation| *generation < 0) {
        findings.wrong("metadata.generation", generation, "must not be negative");
    }
    validate_labels("metadata.labels", metadata.labels.iter().flatten(), findings);
    validate_annotations(metadata, findings);
    validate_owners(metadata.owner_references.as_deref().unwrap_or_default(), findings);
    for (index, finalizer) in metadata.finalizers.iter().flatten().enumerate() {
        findings.check(format!("metadata.finalizers[{index}]"), finalizer, check_finalizer(finalizer));
    }
}

/// Checks labels, or a selector, which has the same form.
pub(crate) fn validate_labels<'a>(
    field: &str,
    labels: impl Iterator<Item = (&'a String, &'a String)>,
    findings: &mut Findings,
) {
    for (label, value) in labels {
        findings.check(field, label, name::check_qualified_name(label));
        findings.check(format!("{field}[{label}]"), value, name::check_label_value(value));
    }
}

fn validate_annotations(metadata: &ObjectMeta, findings: &mut Findings) {
    let mut bytes = 0;
    for (annotation, value) in metadata.annotations.iter().flatten() {
        findings.check("metadata.annotations", annotation, name::check_qualified_name(&annotation.to_lowercase()));
        bytes += annotation.len() + value.len();
    }
    if bytes > MOST_ANNOTATION_BYTES {
        let reason = format!("must be at most {MOST_ANNOTATION_BYTES} bytes together; they are {bytes}");
        findings.missing("metadata.annotations", reason);
    }
}

fn validate_owners(owners: &[OwnerReference], findings: &mut Findings) {
    let mut controller = None;
    for (index, owner) in owners.iter().enumerate() {
        let field = format!("metadata.ownerReferences[{index}]");
        let words =
            [("apiVersion", &owner.api_version), ("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)];
        for (word, _) in words.iter().filter(|(_, value)| value.is_empty()) {
            findings.missing(format!("{field}.{word}"), "is required");
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            findings.wrong(&field, "v1 Event", "must not be an Event: those own nothing");
        }
        if owner.controller == Some(true)
            && let Some(first) = controller.replace(owner.name.as_str())
        {
            let reason = format!("must be the only owner with controller true; {first} has it as well");
            findings.wrong(format!("{field}.controller"), true, reason);
        }
    }
}

/// Kubernetes has three finalizers without a prefix of its own; all others have one, to tell whose they are.
fn check_finalizer(finalizer: &str) -> Result<(), &'static str> {
    name::check_qualified_name(finalizer)?;
    let is_known = ["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer) || finalizer.contains('/');
    is_known.then_some(()).ok_or("must have a prefix, such as example.org/name")
}
