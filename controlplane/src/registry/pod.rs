//! Defaults and checks of Pods, as far as the service network reads them: where a pod is, how it is reached, and how
//! it fares. What runs in it is nobody's business here.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec, PodStatus};
use serde_json::{Map, Value, json};

use super::invalid::Findings;
use super::manifest::{child, children, set_default};
use super::name;
use super::service::{PROTOCOLS, check_protocol};
use super::service_cidr::IpFamily;

const PHASES: [&str; 5] = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
const CONDITION_STATUSES: [&str; 3] = ["True", "False", "Unknown"];

/// Fills in what Kubernetes fills in.
pub(crate) fn set_defaults(object: &mut Map<String, Value>) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        for containers in ["initContainers", "containers"] {
            for port in children(spec, containers).flat_map(|container| children(container, "ports")) {
                set_default(port, "protocol", PROTOCOLS[0]);
            }
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        default_addresses(status, "podIP", "podIPs");
    }
}

/// A list of addresses and its first one, which older clients read, are made from each other.
fn default_addresses(status: &mut Map<String, Value>, single: &str, list: &str) {
    let first = status.get(list).and_then(|ips| ips.get(0)?.get("ip")).cloned();
    match (status.get(single).filter(|ip| *ip != ""), first) {
        (None, Some(first)) => drop(status.insert(single.to_owned(), first)),
        (Some(ip), None) => {
            let ips = json!([{"ip": ip}]);
            status.insert(list.to_owned(), ips);
        }
        _ => {}
    }
}

/// What a manifest that leaves it out does not take away: the node, and at first a phase.
pub(crate) fn inherit(object: &mut Map<String, Value>, old: Option<&Map<String, Value>>) {
    let Some(old) = old else {
        if let Some(status) = child(object, "status") {
            set_default(status, "phase", PHASES[0]);
        }
        return;
    };
    if let (Some(node), Some(spec)) = (node_name(old).map(str::to_owned), child(object, "spec")) {
        set_default(spec, "nodeName", node);
    }
}

/// Checks a Pod in itself.
pub(crate) fn validate(pod: &Pod, findings: &mut Findings) {
    match &pod.spec {
        Some(spec) => validate_spec(spec, findings),
        None => findings.missing("spec", "is required"),
    }
    if let Some(status) = &pod.status {
        validate_status(status, findings);
    }
}

/// Checks a Pod against the one that it replaces.
pub(crate) fn validate_update(old: &Map<String, Value>, new: &Map<String, Value>, findings: &mut Findings) {
    if let Some(old) = node_name(old)
        && node_name(new) != Some(old)
    {
        let reason = format!("must stay {old:?}: a pod does not move, delete the Pod first");
        findings.wrong("spec.nodeName", node_name(new), reason);
    }
}

fn node_name(object: &Map<String, Value>) -> Option<&str> {
    object.get("spec")?.get("nodeName")?.as_str().filter(|name| !name.is_empty())
}

fn validate_spec(spec: &PodSpec, findings: &mut Findings) {
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        findings.check("spec.nodeName", node, name::check_dns_1123_subdomain(node));
    }
    for (field, label) in [("spec.hostname", &spec.hostname), ("spec.subdomain", &spec.subdomain)] {
        if let Some(label) = label.as_deref().filter(|label| !label.is_empty()) {
            findings.check(field, label, name::check_dns_1123_label(label));
        }
    }
    let is_host = spec.host_network == Some(true);
    let mut names = BTreeSet::new();
    let init = spec.init_containers.iter().flatten();
    for (list, containers) in
        [("initContainers", init.collect::<Vec<_>>()), ("containers", spec.containers.iter().collect())]
    {
        for (index, container) in containers.into_iter().enumerate() {
            validate_container(&format!("spec.{list}[{index}]"), container, is_host, &mut names, findings);
        }
    }
}

fn validate_container<'a>(
    field: &str,
    container: &'a Container,
    is_host: bool,
    names: &mut BTreeSet<&'a str>,
    findings: &mut Findings,
) {
    if container.name.is_empty() {
        findings.missing(format!("{field}.name"), "is required");
    } else {
        findings.check(format!("{field}.name"), &container.name, name::check_dns_1123_label(&container.name));
        if !names.insert(&container.name) {
            findings.wrong(format!("{field}.name"), container.name.as_str(), "must be unique within the Pod");
        }
    }
    let mut port_names = BTreeSet::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        validate_port(&format!("{field}.ports[{index}]"), port, is_host, &mut port_names, findings);
    }
}

fn validate_port<'a>(
    field: &str,
    port: &'a ContainerPort,
    is_host: bool,
    names: &mut BTreeSet<&'a str>,
    findings: &mut Findings,
) {
    if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
        findings.check(format!("{field}.name"), port_name, name::check_port_name(port_name));
        if !names.insert(port_name) {
            findings.wrong(format!("{field}.name"), port_name, "must be unique within the container");
        }
    }
    findings.port(format!("{field}.containerPort"), port.container_port);
    if let Some(host_port) = port.host_port.filter(|number| *number != 0) {
        findings.port(format!("{field}.hostPort"), host_port);
        if is_host && host_port != port.container_port {
            let reason = format!("must be the containerPort, {}, where hostNetwork is true", port.container_port);
            findings.wrong(format!("{field}.hostPort"), host_port, reason);
        }
    }
    check_protocol(field, port.protocol.as_deref(), findings);
}

fn validate_status(status: &PodStatus, findings: &mut Findings) {
    findings.one_of("status.phase", status.phase.as_deref().filter(|phase| !phase.is_empty()), &PHASES);
    let first = status.pod_ips.iter().flatten().next();
    if let (Some(single), Some(first)) = (status.pod_ip.as_deref().filter(|ip| !ip.is_empty()), first)
        && single != first.ip
    {
        let reason = format!("must be the same as status.podIP, {single}");
        findings.wrong("status.podIPs[0].ip", first.ip.as_str(), reason);
    }
    let mut families = BTreeSet::new();
    for (index, pod_ip) in status.pod_ips.iter().flatten().enumerate() {
        let field = format!("status.podIPs[{index}].ip");
        match name::parse_ip(&pod_ip.ip) {
            Ok(ip) if families.insert(IpFamily::of(ip)) => {}
            Ok(_) => findings.wrong(field, pod_ip.ip.as_str(), "must be of another family than the first"),
            Err(reason) => findings.wrong(field, pod_ip.ip.as_str(), reason),
        }
    }
    for (index, condition) in status.conditions.iter().flatten().enumerate() {
        let field = format!("status.conditions[{index}].status");
        findings.one_of(field, Some(&condition.status), &CONDITION_STATUSES);
    }
}
