//! Services: defaults and checks of one in itself, and what it is allocated.

mod allocate;
mod external_ips;
mod families;
mod validate;

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::{Map, Value, json};

use super::invalid::Findings;
use super::manifest::{child, children, set_default};

pub(crate) use allocate::Allocations;
pub use allocate::Exhausted;
pub use external_ips::ExternalIpCidrs;
pub(crate) use validate::validate;

/// The protocols of ports, the default one first.
pub(crate) const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

const CLIENT_IP_SECONDS: u32 = 10_800;

/// The types of Services.
pub(crate) mod service_type {
    pub(crate) const CLUSTER_IP: &str = "ClusterIP";
    pub(crate) const NODE_PORT: &str = "NodePort";
    pub(crate) const LOAD_BALANCER: &str = "LoadBalancer";
    pub(crate) const EXTERNAL_NAME: &str = "ExternalName";
}

/// The type of a Service with its defaults.
fn service_type_of(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or(service_type::CLUSTER_IP)
}

/// Fills in what Kubernetes fills in without looking at other objects.
pub(crate) fn set_defaults(object: &mut Map<String, Value>) {
    use service_type::{CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT};
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        set_default(spec, "type", CLUSTER_IP);
        set_default(spec, "sessionAffinity", "None");
        for port in children(spec, "ports") {
            set_default(port, "protocol", PROTOCOLS[0]);
            if let Some(number) = port.get("port").cloned() {
                set_default(port, "targetPort", number);
            }
        }
        if spec.get("sessionAffinity") == Some(&json!("ClientIP"))
            && let Some(client_ip) = child(spec, "sessionAffinityConfig").and_then(|config| child(config, "clientIP"))
        {
            set_default(client_ip, "timeoutSeconds", CLIENT_IP_SECONDS);
        }
        let service_type = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if service_type != EXTERNAL_NAME {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if [NODE_PORT, LOAD_BALANCER].contains(&service_type.as_str()) {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if service_type == LOAD_BALANCER {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
    }
    // A status that is absent means: keep the stored one. A new Service gets its empty one when it is written.
}

/// Checks the protocol of a port of a Service or EndpointSlice.
pub(crate) fn check_protocol(port_field: &str, protocol: Option<&str>, findings: &mut Findings) {
    if let Some(protocol) = protocol.filter(|protocol| !PROTOCOLS.contains(protocol)) {
        findings.wrong(format!("{port_field}.protocol"), protocol, format!("must be one of {}", PROTOCOLS.join(", ")));
    }
}
