//! Services and Pods as the controller needs them: read once, without what does not matter to slices, so that a change
//! of anything else compares equal and costs nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::registry::{IpFamily, name, service_type};

/// Labels, and selectors, which are labels that must be there.
pub(super) type Labels = BTreeMap<String, String>;

const DEFAULT_PROTOCOL: &str = "TCP";

/// A Service whose slices are made here: it has a selector and is no ExternalName.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: Labels,
    /// Never empty.
    pub(super) selector: Labels,
    pub(super) families: Vec<IpFamily>,
    pub(super) ports: Vec<ServicePort>,
    /// No address on purpose.
    pub(super) is_headless: bool,
    /// Every pod counts as ready.
    pub(super) publishes_not_ready: bool,
    pub(super) traffic_distribution: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    /// Empty where the Service has one port only and gives it no name.
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
    pub(super) target: Target,
}

/// Which port of a pod is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(i32),
    /// The container port of that name, which may be another number on each pod.
    Name(String),
}

/// A pod that is or may become an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: Labels,
    pub(super) node_name: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) subdomain: Option<String>,
    /// The addresses that can be an endpoint's, at most one of a family.
    pub(super) addresses: Vec<IpAddr>,
    /// The containers' ports that have names.
    pub(super) ports: Vec<ContainerPort>,
    /// The Ready condition.
    pub(super) is_ready: bool,
    /// Deleted, but not gone yet.
    pub(super) is_terminating: bool,
    /// All its containers have ended, for good.
    pub(super) is_finished: bool,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContainerPort {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: i32,
}

// === impl Service ===

impl Service {
    /// `None`: the Service's slices are nobody's, or somebody else's business.
    pub(super) fn read(service: core::Service) -> Option<Self> {
        let spec = service.spec.unwrap_or_default();
        let selector = spec.selector.unwrap_or_default();
        if selector.is_empty() || spec.type_.as_deref() == Some(service_type::EXTERNAL_NAME) {
            return None;
        }
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        Some(Service {
            namespace: service.metadata.namespace.unwrap_or_default(),
            name: service.metadata.name.unwrap_or_default(),
            uid: service.metadata.uid.unwrap_or_default(),
            labels: service.metadata.labels.unwrap_or_default(),
            selector,
            families: spec.ip_families.iter().flatten().filter_map(|family| family.parse().ok()).collect(),
            is_headless: cluster_ip.is_empty() || cluster_ip == "None",
            ports: spec.ports.into_iter().flatten().map(ServicePort::read).collect(),
            publishes_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
            traffic_distribution: spec.traffic_distribution,
        })
    }

    /// Whether a pod with these labels is the Service's.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl ServicePort {
    fn read(port: core::ServicePort) -> Self {
        ServicePort {
            name: port.name.unwrap_or_default(),
            protocol: port.protocol.unwrap_or_else(|| DEFAULT_PROTOCOL.to_owned()),
            // A store of an earlier version may hold one that slices must not have.
            app_protocol: port.app_protocol.filter(|protocol| name::check_qualified_name(protocol).is_ok()),
            target: match port.target_port {
                Some(IntOrString::Int(number)) => Target::Number(number),
                Some(IntOrString::String(name)) => Target::Name(name),
                None => Target::Number(port.port),
            },
        }
    }
}

// === impl Pod ===

impl Pod {
    pub(super) fn read(pod: core::Pod) -> Self {
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let is_ready = |condition: &core::PodCondition| condition.type_ == "Ready" && condition.status == "True";
        Pod {
            name: pod.metadata.name.unwrap_or_default(),
            uid: pod.metadata.uid.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            addresses: addresses(&status),
            is_ready: status.conditions.iter().flatten().any(is_ready),
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
            is_finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ports: ports(&spec),
            // The registry would refuse the whole slice for one such word, and take the other pods' endpoints with it.
            node_name: spec.node_name.filter(|node| name::check_dns_1123_subdomain(node).is_ok()),
            hostname: spec.hostname.filter(|hostname| name::check_dns_1123_label(hostname).is_ok()),
            subdomain: spec.subdomain,
        }
    }

    /// Whether the pod is an endpoint of the Services that select it, ready or not.
    pub(super) fn is_endpoint(&self) -> bool {
        !self.is_finished && !self.addresses.is_empty()
    }

    /// The pod's address of a family.
    pub(super) fn address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| IpFamily::of(*address) == family)
    }
}

/// The first address of each family that traffic can be sent to. `podIP` alone is what people write by hand.
fn addresses(status: &core::PodStatus) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let texts = status.pod_ips.iter().flatten().map(|pod_ip| pod_ip.ip.as_str()).chain(status.pod_ip.as_deref());
    for address in texts.filter_map(|text| name::parse_ip(text).ok()) {
        let is_new = addresses.iter().all(|known| IpFamily::of(*known) != IpFamily::of(address));
        if is_new && name::check_routable(address).is_ok() {
            addresses.push(address);
        }
    }
    addresses
}

/// The ports of all containers that serve: the usual ones, and init containers that go on running beside them.
fn ports(spec: &core::PodSpec) -> Vec<ContainerPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| (1..=65535).contains(&port.container_port))
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| DEFAULT_PROTOCOL.to_owned());
            Some(ContainerPort { name: port.name.clone()?, protocol, number: port.container_port })
        })
        .collect()
}
