//! Checks of a Service in itself. Each function looks at one concern, so that a new rule has one place to go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::service_type::{CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT};
use super::{check_protocol, families};
use crate::registry::invalid::Findings;
use crate::registry::name;

const LONGEST_AFFINITY_SECONDS: i32 = 86_400;

/// Checks a Service, with its defaults.
pub(crate) fn validate(service: &Service, findings: &mut Findings) {
    let Some(spec) = &service.spec else {
        findings.missing("spec", "is required");
        return;
    };
    let service_type = spec.type_.as_deref().unwrap_or_default();
    one_of(findings, "spec.type", Some(service_type), &[CLUSTER_IP, NODE_PORT, LOAD_BALANCER, EXTERNAL_NAME]);
    validate_ports(spec, service_type, findings);
    validate_affinity(spec, findings);
    validate_policies(spec, service_type, findings);
    validate_addresses(spec, service_type, findings);
    families::validate(spec, findings);
    for (label, value) in spec.selector.iter().flatten() {
        findings.check("spec.selector", label, name::check_qualified_name(label));
        findings.check(format!("spec.selector[{label}]"), value, name::check_label_value(value));
    }
}

/// Whether the Service has no address on purpose.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    let first = spec.cluster_ips.as_deref().unwrap_or_default().first();
    spec.cluster_ip.as_deref() == Some("None") || first.is_some_and(|ip| ip == "None")
}

fn validate_ports(spec: &ServiceSpec, service_type: &str, findings: &mut Findings) {
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() && service_type != EXTERNAL_NAME && !is_headless(spec) {
        findings.missing("spec.ports", "is required");
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let protocol = port.protocol.as_deref().unwrap_or_default();
        validate_port_name(&field, port, ports.len(), &mut names, findings);
        check_protocol(&field, Some(protocol), findings);
        check_port_number(findings, format!("{field}.port"), port.port);
        if !numbers.insert((protocol, port.port)) {
            findings.wrong(
                &field,
                format!("{protocol} {}", port.port),
                "must be unique: another port has this number and protocol",
            );
        }
        match &port.target_port {
            // Most often it is the default, and wrong because the port is: once is enough.
            Some(IntOrString::Int(number)) if *number == port.port => {}
            Some(IntOrString::Int(number)) => check_port_number(findings, format!("{field}.targetPort"), *number),
            Some(IntOrString::String(name)) => {
                findings.check(format!("{field}.targetPort"), name, name::check_port_name(name));
            }
            None => {}
        }
        let Some(node_port) = port.node_port.filter(|number| *number != 0) else { continue };
        let field = format!("{field}.nodePort");
        if ![NODE_PORT, LOAD_BALANCER].contains(&service_type) {
            findings.wrong(field, node_port, format!("must be absent for a Service of type {service_type}"));
        } else if !node_ports.insert((protocol, node_port)) {
            findings.wrong(field, node_port, "must be unique: another port has this nodePort and protocol");
        }
    }
}

fn validate_port_name<'a>(
    field: &str,
    port: &'a ServicePort,
    count: usize,
    names: &mut BTreeSet<&'a str>,
    findings: &mut Findings,
) {
    match port.name.as_deref().unwrap_or_default() {
        "" if count > 1 => findings.missing(format!("{field}.name"), "is required where there are several ports"),
        "" => {}
        name => {
            findings.check(format!("{field}.name"), name, name::check_dns_1123_label(name));
            if !names.insert(name) {
                findings.wrong(format!("{field}.name"), name, "must be unique within the Service");
            }
        }
    }
}

fn validate_affinity(spec: &ServiceSpec, findings: &mut Findings) {
    one_of(findings, "spec.sessionAffinity", spec.session_affinity.as_deref(), &["None", "ClientIP"]);
    let Some(config) = &spec.session_affinity_config else { return };
    if spec.session_affinity.as_deref() == Some("None") {
        findings.missing("spec.sessionAffinityConfig", "must be absent where sessionAffinity is None");
    }
    let seconds = config.client_ip.as_ref().and_then(|client_ip| client_ip.timeout_seconds);
    if let Some(seconds) = seconds.filter(|seconds| !(1..=LONGEST_AFFINITY_SECONDS).contains(seconds)) {
        let reason = format!("must be between 1 and {LONGEST_AFFINITY_SECONDS}");
        findings.wrong("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, reason);
    }
}

fn validate_policies(spec: &ServiceSpec, service_type: &str, findings: &mut Findings) {
    let policies = &["Cluster", "Local"];
    one_of(findings, "spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), policies);
    one_of(findings, "spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), policies);
    let has_external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let is_external =
        [NODE_PORT, LOAD_BALANCER].contains(&service_type) || (service_type == CLUSTER_IP && has_external_ips);
    if let Some(policy) = spec.external_traffic_policy.as_deref().filter(|_| !is_external) {
        let reason = "must be absent: nothing of the Service can be reached from outside";
        findings.wrong("spec.externalTrafficPolicy", policy, reason);
    }
    let distributions = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    one_of(findings, "spec.trafficDistribution", spec.traffic_distribution.as_deref(), distributions);
    let has_health_port = service_type == LOAD_BALANCER && spec.external_traffic_policy.as_deref() == Some("Local");
    if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0 && !has_health_port) {
        let reason = "must be absent unless type is LoadBalancer and externalTrafficPolicy Local";
        findings.wrong("spec.healthCheckNodePort", port, reason);
    }
}

fn validate_addresses(spec: &ServiceSpec, service_type: &str, findings: &mut Findings) {
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        match ip.parse::<IpAddr>() {
            Ok(parsed) => findings.check(field, ip, name::check_routable(parsed)),
            Err(_) => findings.wrong(field, ip.as_str(), "must be an IP address"),
        }
    }
    for (index, range) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        let field = format!("spec.loadBalancerSourceRanges[{index}]");
        if service_type != LOAD_BALANCER {
            findings.wrong(field, range.as_str(), "must be absent unless type is LoadBalancer");
        } else if range.trim().parse::<IpNet>().is_err() {
            findings.wrong(field, range.as_str(), "must be a CIDR such as 203.0.113.0/24");
        }
    }
    if service_type != EXTERNAL_NAME {
        return;
    }
    match spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.') {
        "" => findings.missing("spec.externalName", "is required for a Service of type ExternalName"),
        name => findings.check("spec.externalName", name, name::check_dns_1123_subdomain(name)),
    }
}

fn check_port_number(findings: &mut Findings, field: String, number: i32) {
    if !(1..=65535).contains(&number) {
        findings.wrong(field, number, "must be between 1 and 65535");
    }
}

fn one_of(findings: &mut Findings, field: &str, value: Option<&str>, known: &[&str]) {
    if let Some(value) = value.filter(|value| !known.contains(value)) {
        findings.wrong(field, Value::from(value), format!("must be one of {}", known.join(", ")));
    }
}
