//! What an update of a Service carries over from the stored one, and what it must not change.
//!
//! People change one word of what they have read from the server, or apply a manifest that says less than what is
//! stored. Both are to work, as in Kubernetes: what was allocated and is not mentioned stays, and what belonged to the
//! former type and was not touched goes with it. What was touched as well is left for validation to refuse.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::{Map, Value, json};

use super::service_type::{CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT};
use super::service_type_of;
use crate::registry::invalid::Findings;
use crate::registry::manifest::{children, set_default};
use crate::registry::name;

type Object = Map<String, Value>;

/// Brings in line what depends on other fields. `old` is the stored Service.
pub(super) fn carry_over(object: &mut Object, old: Option<&Object>) {
    let old_spec = old.and_then(|old| old.get("spec")?.as_object());
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    sync_cluster_ips(spec, old_spec);
    let Some(old_spec) = old_spec else { return };
    drop_type_dependent(spec, old_spec);
    if type_of(spec) == LOAD_BALANCER
        && type_of(old_spec) == LOAD_BALANCER
        && let Some(class) = old_spec.get("loadBalancerClass")
    {
        set_default(spec, "loadBalancerClass", class.clone());
    }
    let is_balanced = type_of(spec) == LOAD_BALANCER;
    let old_status = old.and_then(|old| old.get("status")?.get("loadBalancer"));
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        && !is_balanced
        && status.get("loadBalancer") == old_status
    {
        status.insert("loadBalancer".to_owned(), json!({}));
    }
}

/// Checks a Service against the one that it replaces; what families and addresses may become is decided with them.
pub(super) fn validate(spec: &ServiceSpec, old: &ServiceSpec, findings: &mut Findings) {
    let (is_balanced, was_balanced) = (service_type_of(spec) == LOAD_BALANCER, service_type_of(old) == LOAD_BALANCER);
    if is_balanced && was_balanced && spec.load_balancer_class != old.load_balancer_class {
        let reason =
            format!("must stay {}: it can't be changed, delete the Service first", shown(&old.load_balancer_class));
        findings.wrong("spec.loadBalancerClass", spec.load_balancer_class.as_deref(), reason);
    }
    let number = |spec: &ServiceSpec| spec.health_check_node_port.filter(|number| *number != 0);
    let has_health_port = |spec: &ServiceSpec| spec.external_traffic_policy.as_deref() == Some("Local");
    if is_balanced
        && was_balanced
        && has_health_port(spec)
        && has_health_port(old)
        && let (Some(new), Some(old)) = (number(spec), number(old))
        && new != old
    {
        findings.wrong("spec.healthCheckNodePort", new, format!("must stay {old}: it can't be changed"));
    }
}

fn shown(word: &Option<String>) -> String {
    word.as_ref().map_or_else(|| "absent".to_owned(), |word| format!("{word:?}"))
}

/// `clusterIPs` and `clusterIP`, which is the first of them, follow whichever of the two was changed.
fn sync_cluster_ips(spec: &mut Object, old: Option<&Object>) {
    spec.retain(|field, value| {
        !(["clusterIP", "clusterIPs", "ipFamilies"].contains(&field.as_str()) && is_empty(value))
    });
    for field in ["clusterIP", "clusterIPs"] {
        if let Some(value) = spec.get_mut(field) {
            canonicalize(value);
        }
    }
    let had = |field: &str| old.and_then(|old| old.get(field)).cloned();
    let had_list = had("clusterIPs");
    if spec.get("clusterIP") != had("clusterIP").as_ref()
        && had_list.is_some()
        && spec.get("clusterIPs") == had_list.as_ref()
    {
        spec.shift_remove("clusterIPs");
    }
    let (single, list) = (spec.get("clusterIP").cloned(), spec.get("clusterIPs").cloned());
    match (single, list) {
        (Some(single), None) => {
            // A manifest with `clusterIP` alone does not take the other family's address away.
            let kept = had_list.filter(|list| list.get(0) == Some(&single));
            spec.insert("clusterIPs".to_owned(), kept.unwrap_or_else(|| json!([single])));
        }
        (None, Some(list)) => {
            if let Some(first) = list.get(0) {
                spec.insert("clusterIP".to_owned(), first.clone());
            }
        }
        (None, None) if type_of(spec) != EXTERNAL_NAME => {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(had) = had(field) {
                    spec.insert(field.to_owned(), had);
                }
            }
        }
        _ => {}
    }
}

/// Takes away what the former type needed and this one does not, where it is still what was stored.
fn drop_type_dependent(spec: &mut Object, old: &Object) {
    let mut drop_same = |needed: fn(&Object) -> bool, fields: &[&str]| {
        if needed(old) && !needed(spec) {
            spec.retain(|field, value| !(fields.contains(&field.as_str()) && old.get(field) == Some(value)));
        }
    };
    drop_same(has_cluster_ip, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    drop_same(is_load_balancer, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    drop_same(is_reached_from_outside, &["externalTrafficPolicy"]);
    drop_same(has_health_check, &["healthCheckNodePort"]);
    if has_node_ports(old) && !has_node_ports(spec) && node_ports(old).is_superset(&node_ports(spec)) {
        children(spec, "ports").for_each(|port| drop(port.shift_remove("nodePort")));
    }
}

/// Writes addresses as they are stored, or one that was given in another spelling would count as a change later.
fn canonicalize(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Ok(address) = name::parse_ip(text) {
                *text = address.to_string();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(canonicalize),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    *value == "" || *value == json!([])
}

fn type_of(spec: &Object) -> &str {
    spec.get("type").and_then(Value::as_str).unwrap_or(CLUSTER_IP)
}

fn has_cluster_ip(spec: &Object) -> bool {
    type_of(spec) != EXTERNAL_NAME
}

fn is_load_balancer(spec: &Object) -> bool {
    type_of(spec) == LOAD_BALANCER
}

fn has_node_ports(spec: &Object) -> bool {
    [NODE_PORT, LOAD_BALANCER].contains(&type_of(spec))
}

/// Whether an address of the Service's is meant for clients outside of the cluster.
pub(super) fn is_reached_from_outside(spec: &Object) -> bool {
    let has_external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    has_node_ports(spec) || (type_of(spec) == CLUSTER_IP && has_external_ips)
}

fn has_health_check(spec: &Object) -> bool {
    is_load_balancer(spec) && spec.get("externalTrafficPolicy").is_some_and(|policy| policy == "Local")
}

fn node_ports(spec: &Object) -> BTreeSet<i64> {
    let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
    ports.filter_map(|port| port.get("nodePort")?.as_i64()).filter(|number| *number != 0).collect()
}
