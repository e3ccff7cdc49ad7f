//! What a pod is as an endpoint of a Service: address, ports, conditions.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};

use super::object::{Pod, Service, ServicePort, Target};
use crate::registry::IpFamily;

/// The ports of a slice in a form that compares, ordered by name. Pods on which a named port is another number have
/// another one, and so slices of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortSet(Vec<Port>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    name: String,
    protocol: String,
    /// `None`, which only other hands write: every port.
    number: Option<i32>,
    app_protocol: Option<String>,
}

// === impl PortSet ===

impl PortSet {
    /// The Service's ports as this pod has them; without those that it has not.
    pub(super) fn of_pod(service: &Service, pod: &Pod) -> Self {
        let resolve = |port: &ServicePort| {
            let number = Some(resolve(port, pod)?);
            let ServicePort { name, protocol, app_protocol, .. } = port.clone();
            Some(Port { name, protocol, number, app_protocol })
        };
        Self::ordered(service.ports.iter().filter_map(resolve).collect())
    }

    /// The ports of a slice.
    pub(super) fn of_slice(ports: Option<&[EndpointPort]>) -> Self {
        let read = |port: &EndpointPort| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_default(),
            number: port.port,
            app_protocol: port.app_protocol.clone(),
        };
        Self::ordered(ports.unwrap_or_default().iter().map(read).collect())
    }

    /// As a slice has them.
    pub(super) fn to_slice(&self) -> Vec<EndpointPort> {
        let write = |port: &Port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.clone()),
            port: port.number,
            app_protocol: port.app_protocol.clone(),
        };
        self.0.iter().map(write).collect()
    }

    fn ordered(mut ports: Vec<Port>) -> Self {
        ports.sort();
        PortSet(ports)
    }
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target {
        Target::Number(number) => Some(*number),
        Target::Name(name) => {
            let found = pod.ports.iter().find(|known| known.name == *name && known.protocol == port.protocol);
            found.map(|found| found.number)
        }
    }
}

/// The endpoint that a pod is in a slice of a family; `None` where it has no address of it.
pub(super) fn endpoint(service: &Service, pod: &Pod, zone: Option<&str>, family: IpFamily) -> Option<Endpoint> {
    let address = pod.address(family)?;
    // Not the other way round: a Service that publishes what is not ready wants terminating pods as well.
    let is_ready = service.publishes_not_ready || (pod.is_ready && !pod.is_terminating);
    let is_of_service = pod.subdomain.as_deref() == Some(&service.name);
    Some(Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            serving: Some(pod.is_ready),
            terminating: Some(pod.is_terminating),
        }),
        hints: if is_ready { hints(service, pod, zone) } else { None },
        hostname: pod.hostname.clone().filter(|_| is_of_service),
        node_name: pod.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(service.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        zone: zone.map(str::to_owned),
        deprecated_topology: None,
    })
}

/// Where the Service asks for near endpoints: an endpoint is for its own zone, or its own node.
fn hints(service: &Service, pod: &Pod, zone: Option<&str>) -> Option<EndpointHints> {
    let wants_node = match service.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => false,
        Some("PreferSameNode") => true,
        _ => return None,
    };
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let node = pod.node_name.as_ref().filter(|_| wants_node);
    let for_nodes = node.map(|node| vec![ForNode { name: node.clone() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}
