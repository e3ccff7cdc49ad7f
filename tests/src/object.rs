//! Objects as people write them, in the few words that a case needs.
//!
//! Every pod has the same servers, so a Service's port names one of them, and every slice carries all of them:
//! `http` 8080, `tcp` 9090, `udp` 9091, and `sctp` 9092 where the kernel has it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::address::{DualStack, Family};
use crate::cluster::Pod;
use crate::probe::Protocol;
use crate::server::{HTTP_PORT, SCTP_PORT, TCP_PORT, UDP_PORT};

impl Protocol {
    /// The name of the port that it has in Services and slices.
    pub fn port_name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Sctp => "sctp",
        }
    }

    /// The port that a pod serves it on.
    pub fn pod_port(self) -> u16 {
        match self {
            Self::Tcp => TCP_PORT,
            Self::Udp => UDP_PORT,
            Self::Http => HTTP_PORT,
            Self::Sctp => SCTP_PORT,
        }
    }

    /// The protocol beneath, as Kubernetes writes it.
    pub fn kubernetes_name(self) -> &'static str {
        match self {
            Self::Tcp | Self::Http => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// A Node with a zone, if it is to have one.
pub fn node(name: &str, addresses: DualStack, zone: Option<&str>) -> Value {
    let labels = zone.map_or(json!({}), |zone| json!({ "topology.kubernetes.io/zone": zone }));
    let address = |family| json!({ "type": "InternalIP", "address": addresses.of(family).to_string() });
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels },
        "status": { "addresses": Family::ALL.map(address) },
    })
}

/// A Service being written, of type ClusterIP unless it is told otherwise.
#[derive(Clone, Debug)]
pub struct Service {
    namespace: String,
    name: String,
    labels: Map<String, Value>,
    ports: Vec<Value>,
    spec: Map<String, Value>,
    ingress: Vec<Value>,
}

impl Service {
    /// One of both families, as far as the control plane has both.
    pub fn new(namespace: &str, name: &str) -> Self {
        let mut spec = Map::new();
        spec.insert("ipFamilyPolicy".into(), "PreferDualStack".into());
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { namespace, name, labels: Map::new(), ports: Vec::new(), spec, ingress: Vec::new() }
    }

    /// Of one family only.
    #[must_use]
    pub fn family(self, family: Family) -> Self {
        self.spec("ipFamilyPolicy", json!("SingleStack")).spec("ipFamilies", json!([family.kubernetes_name()]))
    }

    /// Asks for an address instead of being given one; `None` makes it headless.
    #[must_use]
    pub fn cluster_ip(self, ip: &str) -> Self {
        self.spec("clusterIP", json!(ip))
    }

    /// Serves `port` by the pods' server of that protocol.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16) -> Self {
        self.ports.push(json!({
            "name": protocol.port_name(), "port": port,
            "protocol": protocol.kubernetes_name(), "targetPort": protocol.pod_port(),
        }));
        self
    }

    /// Serves every transport, the first on `port`, the next one on the port after it.
    #[must_use]
    pub fn transports(self, port: u16) -> Self {
        Protocol::transports().iter().zip(port..).fold(self, |service, (protocol, port)| service.port(*protocol, port))
    }

    /// `type: NodePort`.
    #[must_use]
    pub fn node_port(self) -> Self {
        self.spec("type", json!("NodePort"))
    }

    /// `type: LoadBalancer` with the address that a load balancer has given it.
    #[must_use]
    pub fn load_balancer(self, ip: IpAddr) -> Self {
        self.ingress(ip, None)
    }

    /// As [`Service::load_balancer`], with an `ipMode`.
    #[must_use]
    pub fn ingress(mut self, ip: IpAddr, mode: Option<&str>) -> Self {
        let mut ingress = json!({ "ip": ip.to_string() });
        if let Some(mode) = mode {
            ingress["ipMode"] = json!(mode);
        }
        self.ingress.push(ingress);
        self.spec("type", json!("LoadBalancer"))
    }

    /// `type: ExternalName`: only a name, without families.
    #[must_use]
    pub fn external_name(mut self, name: &str) -> Self {
        self.spec.retain(|field, _| !["ipFamilyPolicy", "ipFamilies"].contains(&field.as_str()));
        self.spec("type", json!("ExternalName")).spec("externalName", json!(name))
    }

    /// An external IP.
    #[must_use]
    pub fn external_ip(self, ip: IpAddr) -> Self {
        self.spec("externalIPs", json!([ip.to_string()]))
    }

    /// `loadBalancerSourceRanges`.
    #[must_use]
    pub fn source_ranges<R: fmt::Display>(self, ranges: impl IntoIterator<Item = R>) -> Self {
        let ranges: Vec<String> = ranges.into_iter().map(|range| range.to_string()).collect();
        self.spec("loadBalancerSourceRanges", json!(ranges))
    }

    /// `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    /// `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.spec("internalTrafficPolicy", json!("Local"))
    }

    /// `sessionAffinity: ClientIP` with a timeout.
    #[must_use]
    pub fn affinity(self, timeout: Duration) -> Self {
        let config = json!({ "clientIP": { "timeoutSeconds": timeout.as_secs() } });
        self.spec("sessionAffinity", json!("ClientIP")).spec("sessionAffinityConfig", config)
    }

    /// Sets any field of `spec`.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.into(), value);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

impl From<Service> for Value {
    fn from(service: Service) -> Self {
        let Service { namespace, name, labels, ports, mut spec, ingress } = service;
        if !ports.is_empty() {
            spec.insert("ports".into(), ports.into());
        }
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "spec": spec,
        });
        // A status that is absent leaves the stored one as it is.
        if !ingress.is_empty() {
            object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        }
        object
    }
}

/// One endpoint of a slice being written: a pod in a state.
#[derive(Clone, Debug)]
pub struct Endpoint {
    addresses: DualStack,
    node: String,
    zone: Option<String>,
    hints: Map<String, Value>,
    conditions: Value,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self::ready(pod)
    }
}

impl Endpoint {
    /// A pod that is ready.
    pub fn ready(pod: &Pod) -> Self {
        Self::with(pod, true, true, false)
    }

    /// A pod that is not ready, and not because it terminates.
    pub fn not_ready(pod: &Pod) -> Self {
        Self::with(pod, false, false, false)
    }

    /// A pod that terminates and still serves.
    pub fn terminating(pod: &Pod) -> Self {
        Self::with(pod, false, true, true)
    }

    /// A pod with these conditions.
    pub fn with(pod: &Pod, ready: bool, serving: bool, terminating: bool) -> Self {
        Self {
            addresses: pod.addresses(),
            node: pod.node_name(),
            zone: None,
            hints: Map::new(),
            conditions: json!({ "ready": ready, "serving": serving, "terminating": terminating }),
        }
    }

    /// In a zone, and hinted to it.
    #[must_use]
    pub fn hinted_to_zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone.into());
        self.hints.insert("forZones".into(), json!([{ "name": zone }]));
        self
    }

    /// Hinted to a node.
    #[must_use]
    pub fn hinted_to_node(mut self, node: &str) -> Self {
        self.hints.insert("forNodes".into(), json!([{ "name": node }]));
        self
    }

    fn json(&self, family: Family) -> Value {
        let mut value = json!({
            "addresses": [self.addresses.of(family).to_string()],
            "conditions": self.conditions,
            "nodeName": self.node,
        });
        if let Some(zone) = &self.zone {
            value["zone"] = json!(zone);
        }
        if !self.hints.is_empty() {
            value["hints"] = json!(self.hints);
        }
        value
    }
}

/// An EndpointSlice of one family being written.
#[derive(Clone, Debug)]
pub struct Slice {
    namespace: String,
    name: String,
    service: String,
    family: Family,
    labels: Map<String, Value>,
    endpoints: Vec<Endpoint>,
}

impl Slice {
    /// A slice of a Service, without endpoints; its name is the Service's and the family's.
    pub fn new(namespace: &str, service: &str, family: Family) -> Self {
        Self {
            namespace: namespace.into(),
            name: format!("{service}-{family}"),
            service: service.into(),
            family,
            labels: Map::new(),
            endpoints: Vec::new(),
        }
    }

    /// A slice for each family.
    pub fn both(namespace: &str, service: &str, pods: &[&Pod]) -> [Self; 2] {
        Family::ALL.map(|family| Self::new(namespace, service, family).endpoints(pods.iter().copied()))
    }

    /// Renames it: a Service may have any number of slices.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds endpoints.
    #[must_use]
    pub fn endpoints<E: Into<Endpoint>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }
}

impl From<Slice> for Value {
    fn from(slice: Slice) -> Self {
        let mut labels = slice.labels;
        labels.insert("kubernetes.io/service-name".into(), slice.service.into());
        let port = |protocol: Protocol| {
            json!({
                "name": protocol.port_name(), "port": protocol.pod_port(), "protocol": protocol.kubernetes_name(),
            })
        };
        let ports: Vec<_> = [Protocol::Http].iter().chain(Protocol::transports()).copied().map(port).collect();
        let endpoints: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.json(slice.family)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": slice.namespace, "name": slice.name, "labels": labels },
            "addressType": slice.family.kubernetes_name(),
            "ports": ports,
            "endpoints": endpoints,
        })
    }
}
