//! Defaults and checks of EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde_json::{Map, Value};
use tollgate_api::v1::Key;

use super::invalid::{Findings, Invalid};
use super::manifest::{children, set_default, typed};
use super::name;
use super::service::{PROTOCOLS, check_protocol};
use super::service_cidr::IpFamily;

/// The limits of Kubernetes.
const MOST_ENDPOINTS: usize = 1000;
const MOST_PORTS: usize = 20_000;
const MOST_ADDRESSES: usize = 100;

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
    if !["IPv4", "IPv6", "FQDN"].contains(&address_type) {
        findings.wrong("addressType", address_type, "must be IPv4, IPv6 or FQDN");
    }
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    if endpoints.len() > MOST_ENDPOINTS {
        findings.wrong("endpoints", endpoints.len(), format!("must be at most {MOST_ENDPOINTS}"));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(&format!("endpoints[{index}]"), address_type, endpoint, findings);
    }
    validate_ports(slice.ports.as_deref().unwrap_or_default(), findings);
}

/// Checks a slice against the one that it replaces.
pub(crate) fn validate_update(key: &Key, old: &Map<String, Value>, new: &Map<String, Value>) -> Result<(), Invalid> {
    let old: EndpointSlice = typed(key, old)?;
    let new: EndpointSlice = typed(key, new)?;
    if old.address_type == new.address_type {
        return Ok(());
    }
    let reason = format!("must stay {:?}: it can't be changed, delete the slice first", old.address_type);
    Err(Invalid::one(key, "addressType", Some(new.address_type.into()), reason))
}

fn validate_endpoint(field: &str, address_type: &str, endpoint: &Endpoint, findings: &mut Findings) {
    match endpoint.addresses.len() {
        0 => findings.missing(format!("{field}.addresses"), "is required"),
        1..=MOST_ADDRESSES => {}
        more => findings.wrong(format!("{field}.addresses"), more, format!("must be at most {MOST_ADDRESSES}")),
    }
    for (index, address) in endpoint.addresses.iter().enumerate() {
        findings.check(format!("{field}.addresses[{index}]"), address, check_address(address_type, address));
    }
    if let Some(node_name) = &endpoint.node_name {
        findings.check(format!("{field}.nodeName"), node_name, name::check_dns_1123_subdomain(node_name));
    }
    if let Some(hostname) = &endpoint.hostname {
        findings.check(format!("{field}.hostname"), hostname, name::check_dns_1123_label(hostname));
    }
}

fn check_address(address_type: &str, address: &str) -> Result<(), &'static str> {
    let parsed = address.parse::<IpAddr>().ok();
    match (address_type, parsed) {
        ("FQDN", _) => name::check_dns_1123_subdomain(address),
        ("IPv4", Some(parsed)) if IpFamily::of(parsed) == IpFamily::V4 => name::check_routable(parsed),
        ("IPv6", Some(parsed)) if IpFamily::of(parsed) == IpFamily::V6 => name::check_routable(parsed),
        ("IPv4", _) => Err("must be an IPv4 address, as addressType says"),
        ("IPv6", _) => Err("must be an IPv6 address, as addressType says"),
        // The finding about addressType says it all.
        _ => Ok(()),
    }
}

fn validate_ports(ports: &[EndpointPort], findings: &mut Findings) {
    if ports.len() > MOST_PORTS {
        findings.wrong("ports", ports.len(), format!("must be at most {MOST_PORTS}"));
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
        if let Some(number) = port.port.filter(|number| !(1..=65535).contains(number)) {
            findings.wrong(format!("{field}.port"), number, "must be between 1 and 65535");
        }
        check_protocol(&field, port.protocol.as_deref(), findings);
    }
}
