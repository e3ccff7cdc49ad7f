//! Defaults and checks of EndpointSlices.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde_json::{Map, Value};

use super::invalid::Findings;
use super::manifest::{children, set_default};
use super::metadata::validate_labels;
use super::name;
use super::service::{PROTOCOLS, check_protocol};
use super::service_cidr::IpFamily;

/// The limits of Kubernetes.
const MOST_ENDPOINTS: usize = 1000;
const MOST_PORTS: usize = 20_000;
const MOST_ADDRESSES: usize = 100;
const MOST_TOPOLOGY_LABELS: usize = 16;
const MOST_HINTS: usize = 8;

/// Fills in what Kubernetes fills in.
pub(crate) fn set_defaults(object: &mut Map<String, Value>) {
    for port in children(object, "ports") {
        set_default(port, "name", "");
        set_default(port, "protocol", PROTOCOLS[0]);
    }
    set_default(object, "endpoints", Value::Array(Vec::new()));
}

/// Checks a slice in itself.
pub(crate) fn validate(slice: &EndpointSlice, findings: &mut Findings) {
    let address_type = slice.address_type.as_str();
    findings.one_of("addressType", Some(address_type), &["IPv4", "IPv6", "FQDN"]);
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    // Thousands of findings about what is too much anyway help nobody.
    let is_too_much = too_many(findings, "endpoints", endpoints.len(), MOST_ENDPOINTS);
    let endpoints = if is_too_much { &[] } else { endpoints };
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(&format!("endpoints[{index}]"), address_type, endpoint, findings);
    }
    validate_ports(slice.ports.as_deref().unwrap_or_default(), findings);
}

/// Checks a slice against the one that it replaces.
pub(crate) fn validate_update(old: &Map<String, Value>, new: &Map<String, Value>, findings: &mut Findings) {
    let field = "addressType";
    if let (Some(old), Some(new)) = (old.get(field), new.get(field))
        && old != new
    {
        let reason = format!("must stay {old}: it can't be changed, delete the slice first");
        findings.wrong(field, new.clone(), reason);
    }
}

fn validate_endpoint(field: &str, address_type: &str, endpoint: &Endpoint, findings: &mut Findings) {
    if endpoint.addresses.is_empty() {
        findings.missing(format!("{field}.addresses"), "is required");
    }
    too_many(findings, format!("{field}.addresses"), endpoint.addresses.len(), MOST_ADDRESSES);
    for (index, address) in endpoint.addresses.iter().enumerate() {
        findings.check(format!("{field}.addresses[{index}]"), address, check_address(address_type, address));
    }
    if let Some(node_name) = &endpoint.node_name {
        findings.check(format!("{field}.nodeName"), node_name, name::check_dns_1123_subdomain(node_name));
    }
    if let Some(hostname) = &endpoint.hostname {
        findings.check(format!("{field}.hostname"), hostname, name::check_dns_1123_label(hostname));
    }
    let topology = endpoint.deprecated_topology.iter().flatten();
    too_many(findings, format!("{field}.deprecatedTopology"), topology.clone().count(), MOST_TOPOLOGY_LABELS);
    validate_labels(&format!("{field}.deprecatedTopology"), topology, findings);
    if let Some(hints) = &endpoint.hints {
        let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str());
        validate_hints(&format!("{field}.hints.forZones"), zones, name::check_label_value, findings);
        let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str());
        validate_hints(&format!("{field}.hints.forNodes"), nodes, name::check_dns_1123_subdomain, findings);
    }
}

fn validate_hints<'a>(
    field: &str,
    names: impl Iterator<Item = &'a str> + Clone,
    check: fn(&str) -> Result<(), &'static str>,
    findings: &mut Findings,
) {
    too_many(findings, field, names.clone().count(), MOST_HINTS);
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        let field = format!("{field}[{index}].name");
        findings.check(&field, name, check(name));
        if !seen.insert(name) {
            findings.wrong(field, name, "must be unique");
        }
    }
}

fn too_many(findings: &mut Findings, field: impl Into<String>, count: usize, most: usize) -> bool {
    if count > most {
        findings.wrong(field, count, format!("must be at most {most}"));
    }
    count > most
}

fn check_address(address_type: &str, address: &str) -> Result<(), &'static str> {
    let family = match address_type {
        "FQDN" => return name::check_fqdn(address),
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        // The finding about addressType says it all.
        _ => return Ok(()),
    };
    match (name::parse_ip(address), family) {
        (Ok(parsed), _) if IpFamily::of(parsed) == family => name::check_routable(parsed),
        (_, IpFamily::V4) => Err("must be an IPv4 address, as addressType says"),
        (_, IpFamily::V6) => Err("must be an IPv6 address, as addressType says"),
    }
}

fn validate_ports(ports: &[EndpointPort], findings: &mut Findings) {
    if too_many(findings, "ports", ports.len(), MOST_PORTS) {
        return;
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("ports[{index}]");
        let port_name = port.name.as_deref().unwrap_or_default();
        if !port_name.is_empty() {
            findings.check(format!("{field}.name"), port_name, name::check_dns_1123_label(port_name));
        }
        if !names.insert(port_name) {
            findings.wrong(format!("{field}.name"), port_name, "must be unique within the slice");
        }
        // Absent means every port.
        if let Some(number) = port.port {
            findings.port(format!("{field}.port"), number);
        }
        if let Some(protocol) = &port.app_protocol {
            findings.check(format!("{field}.appProtocol"), protocol, name::check_qualified_name(protocol));
        }
        check_protocol(&field, port.protocol.as_deref(), findings);
    }
}
