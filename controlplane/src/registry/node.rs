//! Defaults and checks of Nodes.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, Taint};
use serde_json::{Map, Value, json};

use super::invalid::Findings;
use super::manifest::{child, set_default};
use super::name;
use super::service_cidr::IpFamily;

const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS"];
const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// Once set they stay: routes and pods on the Node depend on them.
const IMMUTABLE: [&str; 3] = ["podCIDR", "podCIDRs", "providerID"];

/// Fills in what Kubernetes fills in: the list of pod CIDRs and its first one, which older clients read, are made from
/// each other.
pub(crate) fn set_defaults(object: &mut Map<String, Value>) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let first = spec.get("podCIDRs").and_then(|cidrs| cidrs.get(0)).cloned();
    match (spec.get("podCIDR").filter(|cidr| *cidr != "").cloned(), first) {
        (None, Some(first)) => drop(spec.insert("podCIDR".to_owned(), first)),
        (Some(cidr), None) => drop(spec.insert("podCIDRs".to_owned(), json!([cidr]))),
        _ => {}
    }
}

/// What a manifest that leaves it out does not take away.
pub(crate) fn inherit(object: &mut Map<String, Value>, old: Option<&Map<String, Value>>) {
    let Some(old) = old.and_then(|old| old.get("spec")?.as_object()) else { return };
    for field in IMMUTABLE {
        if let (Some(value), Some(spec)) = (old.get(field), child(object, "spec")) {
            set_default(spec, field, value.clone());
        }
    }
}

/// Checks a Node in itself.
pub(crate) fn validate(node: &Node, findings: &mut Findings) {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    for (index, address) in addresses.iter().enumerate() {
        let field = format!("status.addresses[{index}]");
        validate_address(&field, address, findings);
        if addresses[..index].contains(address) {
            let shown = format!("{} {}", address.type_, address.address);
            findings.wrong(field, shown, "must be unique");
        }
    }
    if let Some(spec) = &node.spec {
        validate_pod_cidrs(spec, findings);
        validate_taints(spec.taints.as_deref().unwrap_or_default(), findings);
    }
}

/// Checks a Node against the one that it replaces.
pub(crate) fn validate_update(old: &Map<String, Value>, new: &Map<String, Value>, findings: &mut Findings) {
    let field = |object: &Map<String, Value>, field: &str| object.get("spec").and_then(|spec| spec.get(field)).cloned();
    for name in IMMUTABLE {
        if let Some(old) = field(old, name)
            && old != ""
            && let new = field(new, name)
            && new.as_ref() != Some(&old)
        {
            let reason = format!("must stay {old}: it can't be changed, delete the Node first");
            findings.wrong(format!("spec.{name}"), new.unwrap_or_default(), reason);
        }
    }
}

fn validate_address(field: &str, address: &NodeAddress, findings: &mut Findings) {
    let text = address.address.as_str();
    if !ADDRESS_TYPES.contains(&address.type_.as_str()) {
        findings.one_of(format!("{field}.type"), Some(&address.type_), &ADDRESS_TYPES);
    } else if address.type_.ends_with("IP") {
        match name::parse_ip(text) {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                findings.wrong(format!("{field}.address"), text, "must be the address of a host");
            }
            Ok(_) => {}
            Err(reason) => findings.wrong(format!("{field}.address"), text, reason),
        }
    } else {
        let lower = text.to_lowercase();
        findings.check(format!("{field}.address"), text, name::check_dns_1123_subdomain(&lower));
    }
}

fn validate_pod_cidrs(spec: &NodeSpec, findings: &mut Findings) {
    let cidrs = spec.pod_cidrs.as_deref().unwrap_or_default();
    if let (Some(single), Some(first)) = (spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty()), cidrs.first())
        && single != first
    {
        findings.wrong("spec.podCIDRs[0]", first.as_str(), format!("must be the same as spec.podCIDR, {single}"));
    }
    let mut families = BTreeSet::new();
    for (index, cidr) in cidrs.iter().enumerate() {
        let field = format!("spec.podCIDRs[{index}]");
        match cidr.parse::<IpNet>() {
            Ok(net) if families.insert(IpFamily::of(net.addr())) => {}
            Ok(_) => findings.wrong(field, cidr.as_str(), "must be of another family than the first"),
            Err(_) => findings.wrong(field, cidr.as_str(), "must be a CIDR such as 10.244.1.0/24"),
        }
    }
}

fn validate_taints(taints: &[Taint], findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let field = format!("spec.taints[{index}]");
        findings.check(format!("{field}.key"), &taint.key, name::check_qualified_name(&taint.key));
        let value = taint.value.as_deref().unwrap_or_default();
        findings.check(format!("{field}.value"), value, name::check_label_value(value));
        findings.one_of(format!("{field}.effect"), Some(&taint.effect), &TAINT_EFFECTS);
        if !seen.insert((&taint.key, &taint.effect)) {
            findings.wrong(field, format!("{}:{}", taint.key, taint.effect), "must be unique by key and effect");
        }
    }
}
