//! Checks of a Service in itself. Each function looks at one concern, so that a new rule has one place to go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::service_type::{CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT};
use super::{check_protocol, service_type_of};
use crate::registry::invalid::Findings;
use crate::registry::metadata::validate_labels;
use crate::registry::name;

const LONGEST_AFFINITY_SECONDS: i32 = 86_400;
/// What came before `spec.loadBalancerSourceRanges`.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// What came before it.
const TOPOLOGY_AWARE_HINTS: &str = "service.kubernetes.io/topology-aware-hints";

/// Checks a Service, with its defaults; its families and ClusterIPs are checked with those.
pub(super) fn validate(service: &Service, findings: &mut Findings) {
    let Some(spec) = &service.spec else {
        findings.missing("spec", "is required");
        return;
    };
    let service_type = service_type_of(spec);
    findings.one_of("spec.type", Some(service_type), &[CLUSTER_IP, NODE_PORT, LOAD_BALANCER, EXTERNAL_NAME]);
    validate_annotations(&service.metadata, spec, findings);
    validate_ports(spec, service_type, findings);
    validate_affinity(spec, findings);
    validate_policies(spec, service_type, findings);
    validate_addresses(spec, service_type, findings);
    validate_load_balancer(spec, service_type, findings);
    validate_status(service, service_type, findings);
    if is_headless(spec) && [NODE_PORT, LOAD_BALANCER].contains(&service_type) {
        let reason = format!("must be an address, or absent, for a Service of type {service_type}");
        findings.wrong("spec.clusterIPs[0]", "None", reason);
    }
    validate_labels("spec.selector", spec.selector.iter().flatten(), findings);
}

/// Whether the Service has no address on purpose.
pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    let first = spec.cluster_ips.as_deref().unwrap_or_default().first();
    spec.cluster_ip.as_deref() == Some("None") || first.is_some_and(|ip| ip == "None")
}

fn validate_annotations(metadata: &ObjectMeta, spec: &ServiceSpec, findings: &mut Findings) {
    let annotation = |name: &str| metadata.annotations.as_ref()?.get(name);
    if let (Some(mode), Some(hints)) = (annotation(TOPOLOGY_MODE), annotation(TOPOLOGY_AWARE_HINTS))
        && mode != hints
    {
        let reason = format!("must be the same as annotation {TOPOLOGY_AWARE_HINTS}, {hints:?}, where both are given");
        findings.wrong(format!("metadata.annotations[{TOPOLOGY_MODE}]"), mode.as_str(), reason);
    }
    // Where the field is given, nobody reads the annotation.
    let has_field = spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
    let Some(ranges) = annotation(SOURCE_RANGES).filter(|_| !has_field) else { return };
    let field = format!("metadata.annotations[{SOURCE_RANGES}]");
    if service_type_of(spec) != LOAD_BALANCER {
        findings.wrong(&field, ranges.as_str(), "must be absent unless type is LoadBalancer");
    }
    for range in ranges.split(',').map(str::trim).filter(|_| !ranges.trim().is_empty()) {
        if range.parse::<IpNet>().is_err() {
            findings.wrong(&field, range, "must be CIDRs such as 203.0.113.0/24, with commas in between");
        }
    }
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
        findings.port(format!("{field}.port"), port.port);
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
            Some(IntOrString::Int(number)) => findings.port(format!("{field}.targetPort"), *number),
            Some(IntOrString::String(name)) => {
                findings.check(format!("{field}.targetPort"), name, name::check_port_name(name));
            }
            None => {}
        }
        if let Some(protocol) = &port.app_protocol {
            findings.check(format!("{field}.appProtocol"), protocol, name::check_qualified_name(protocol));
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
    findings.one_of("spec.sessionAffinity", spec.session_affinity.as_deref(), &["None", "ClientIP"]);
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
    if let Some(seconds) = seconds.filter(|seconds| !(1..=LONGEST_AFFINITY_SECONDS).contains(seconds)) {
        let reason = format!("must be between 1 and {LONGEST_AFFINITY_SECONDS}");
        findings.wrong("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, reason);
    }
}

fn validate_policies(spec: &ServiceSpec, service_type: &str, findings: &mut Findings) {
    let policies = &["Cluster", "Local"];
    findings.one_of("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), policies);
    let has_external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    let is_external =
        [NODE_PORT, LOAD_BALANCER].contains(&service_type) || (service_type == CLUSTER_IP && has_external_ips);
    match spec.external_traffic_policy.as_deref() {
        Some(policy) if !is_external => {
            let reason = "must be absent: nothing of the Service can be reached from outside";
            findings.wrong("spec.externalTrafficPolicy", policy, reason);
        }
        policy => findings.one_of("spec.externalTrafficPolicy", policy, policies),
    }
    let distributions = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    findings.one_of("spec.trafficDistribution", spec.traffic_distribution.as_deref(), distributions);
    let has_health_port = service_type == LOAD_BALANCER && spec.external_traffic_policy.as_deref() == Some("Local");
    if let Some(port) = spec.health_check_node_port.filter(|port| *port != 0 && !has_health_port) {
        let reason = "must be absent unless type is LoadBalancer and externalTrafficPolicy Local";
        findings.wrong("spec.healthCheckNodePort", port, reason);
    }
}

fn validate_addresses(spec: &ServiceSpec, service_type: &str, findings: &mut Findings) {
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        findings.check(field, ip, name::parse_ip(ip).and_then(name::check_routable));
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
    let given = spec.external_name.as_deref().unwrap_or_default();
    match given.strip_suffix('.').unwrap_or(given) {
        "" => findings.missing("spec.externalName", "is required for a Service of type ExternalName"),
        name => findings.check("spec.externalName", given, name::check_dns_1123_subdomain(name)),
    }
}

/// Fields that only Services of type LoadBalancer have.
fn validate_load_balancer(spec: &ServiceSpec, service_type: &str, findings: &mut Findings) {
    let is_balanced = service_type == LOAD_BALANCER;
    if let Some(allocate) = spec.allocate_load_balancer_node_ports.filter(|_| !is_balanced) {
        findings.wrong("spec.allocateLoadBalancerNodePorts", allocate, "must be absent unless type is LoadBalancer");
    }
    if let Some(class) = &spec.load_balancer_class {
        let checked = if is_balanced {
            name::check_qualified_name(class)
        } else {
            Err("must be absent unless type is LoadBalancer")
        };
        findings.check("spec.loadBalancerClass", class, checked);
    }
}

fn validate_status(service: &Service, service_type: &str, findings: &mut Findings) {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    if !ingress.is_empty() && service_type != LOAD_BALANCER {
        findings.missing("status.loadBalancer.ingress", "must be absent unless type is LoadBalancer");
    }
    for (index, ingress) in ingress.iter().enumerate() {
        validate_ingress(&format!("status.loadBalancer.ingress[{index}]"), ingress, findings);
    }
}

fn validate_ingress(field: &str, ingress: &LoadBalancerIngress, findings: &mut Findings) {
    let ip = ingress.ip.as_deref().filter(|ip| !ip.is_empty());
    if let Some(ip) = ip {
        findings.check(format!("{field}.ip"), ip, name::parse_ip(ip).map(drop));
    }
    match ingress.ip_mode.as_deref() {
        Some(mode) if ip.is_none() => findings.wrong(format!("{field}.ipMode"), mode, "must be absent where ip is"),
        mode => findings.one_of(format!("{field}.ipMode"), mode, &["VIP", "Proxy"]),
    }
    if let Some(hostname) = ingress.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
        let checked = if hostname.parse::<IpAddr>().is_ok() {
            Err("must be a DNS name, not an IP address")
        } else {
            name::check_dns_1123_subdomain(hostname)
        };
        findings.check(format!("{field}.hostname"), hostname, checked);
    }
}
