//! Services: defaults, checks of one in itself and against the one that it replaces, and what it is allocated.

mod allocate;
mod external_ips;
mod families;
mod update;
mod validate;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde_json::{Map, Value, json};
use tollgate_api::v1::Key;

use super::Error;
use super::invalid::Findings;
use super::manifest::{child, children, set_default, typed};

pub(crate) use allocate::Allocations;
pub use allocate::Exhausted;
pub use external_ips::ExternalIpCidrs;

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
    use service_type::{CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER};
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    // Absent, empty and 0 are one to Kubernetes, where the field is no pointer.
    drop_empty(spec, &["type", "sessionAffinity", "externalTrafficPolicy"]);
    set_default(spec, "type", CLUSTER_IP);
    set_default(spec, "sessionAffinity", "None");
    for port in children(spec, "ports") {
        drop_empty(port, &["protocol", "targetPort"]);
        set_default(port, "protocol", PROTOCOLS[0]);
        if let Some(number) = port.get("port").cloned() {
            set_default(port, "targetPort", number);
        }
    }
    if spec.get("sessionAffinity") == Some(&json!("None")) {
        spec.shift_remove("sessionAffinityConfig");
    } else if spec.get("sessionAffinity") == Some(&json!("ClientIP"))
        && let Some(client_ip) = child(spec, "sessionAffinityConfig").and_then(|config| child(config, "clientIP"))
    {
        set_default(client_ip, "timeoutSeconds", CLIENT_IP_SECONDS);
    }
    let service_type = spec.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if service_type != EXTERNAL_NAME {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if update::is_reached_from_outside(spec) {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if service_type != LOAD_BALANCER {
        return;
    }
    set_default(spec, "allocateLoadBalancerNodePorts", true);
    let balancer = object.get_mut("status").and_then(|status| status.get_mut("loadBalancer")?.as_object_mut());
    for ingress in balancer.into_iter().flat_map(|balancer| children(balancer, "ingress")) {
        if ingress.get("ip").is_some_and(|ip| *ip != "") {
            set_default(ingress, "ipMode", "VIP");
        }
    }
    // A status that is absent means: keep the stored one. A new Service gets its empty one when it is written.
}

fn drop_empty(object: &mut Map<String, Value>, fields: &[&str]) {
    object.retain(|field, value| !(fields.contains(&field.as_str()) && (*value == "" || *value == 0)));
}

/// Checks a Service that is about to be written, together with what was found about it before, and gives it what it
/// needs. `old` is the one that it replaces. After an error the allocations are to be thrown away.
pub(crate) fn admit(
    key: &Arc<Key>,
    object: &mut Map<String, Value>,
    old: Option<&Map<String, Value>>,
    external_ips: &ExternalIpCidrs,
    allocations: &mut Allocations,
    mut findings: Findings,
) -> Result<(), Error> {
    update::carry_over(object, old);
    let service: Service = typed(key, object)?;
    let old: Option<Service> = old.map(|old| typed(key, old)).transpose()?;
    let old_spec = old.as_ref().and_then(|old| old.spec.as_ref());
    validate::validate(&service, &mut findings);
    let Some(spec) = &service.spec else { return Ok(findings.into_result(key)?) };
    external_ips.check(spec, old_spec, &mut findings);
    if let Some(old_spec) = old_spec {
        update::validate(spec, old_spec, &mut findings);
        families::validate_update(spec, old_spec, &mut findings);
    }
    let found = findings.len();
    families::validate(spec, &mut findings);
    // Which families a Service is to have can't be told from words that are wrong.
    let resolved = if findings.len() == found { allocations.resolve(spec, old_spec, &mut findings) } else { None };
    allocations.settle(key, object, spec, old.as_ref(), resolved, findings)
}

/// Checks the protocol of a port of a Service or EndpointSlice.
pub(crate) fn check_protocol(port_field: &str, protocol: Option<&str>, findings: &mut Findings) {
    findings.one_of(format!("{port_field}.protocol"), protocol, &PROTOCOLS);
}
