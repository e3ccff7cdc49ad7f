//! Small builders of Kubernetes objects, and a node that takes them in.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::warnings::listen;
use crate::endpoint::{Endpoint, EndpointSlice};
use crate::frontend::FrontendOrigin;
use crate::name::{NamespacedName, Protocol, ServicePortName};
use crate::node::{Node, NodeAddresses};
use crate::object::Kind;
use crate::service::Service;
use crate::snapshot::{ServicePort, Snapshot};
use crate::store::{Event, Store, StoreConfig};

/// A node `a` in zone `z1` that takes in objects.
pub(super) struct World {
    pub(super) store: Store,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    /// A world whose lists are complete, and empty.
    pub(super) fn with(config: StoreConfig) -> Self {
        let mut store = Store::new(config);
        for kind in KINDS {
            store.apply(Event::Init(kind));
            store.apply(Event::InitDone(kind));
        }
        Self { store }
    }

    /// A world with one Service and the endpoints that it has.
    pub(super) fn of(service: v1::Service, endpoints: Vec<discovery::Endpoint>) -> Self {
        let name = service.metadata.name.clone().unwrap();
        Self::new().and(service).and(slice(&format!("{name}-1"), &name, endpoints))
    }

    pub(super) fn and(mut self, object: impl Into<Event>) -> Self {
        self.apply(object);
        self
    }

    pub(super) fn apply(&mut self, object: impl Into<Event>) {
        self.store.apply(object.into());
    }

    pub(super) fn delete(&mut self, kind: Kind, name: &str) {
        self.store.apply(Event::Delete(kind, NamespacedName::new("default", name)));
    }

    pub(super) fn snapshot(&mut self) -> Snapshot {
        self.store.snapshot().expect("the lists are complete")
    }

    /// The unnamed TCP port of a Service.
    pub(super) fn port(&mut self, service: &str) -> Arc<ServicePort> {
        self.find(service).unwrap_or_else(|| panic!("{service} is not served"))
    }

    pub(super) fn find(&mut self, service: &str) -> Option<Arc<ServicePort>> {
        self.snapshot().service_ports.get(&port_name(service, "", Protocol::Tcp)).cloned()
    }

    /// The health check node port of a Service, and the number of endpoints that it tells.
    pub(super) fn health_check(&mut self, service: &str) -> Option<(u16, usize)> {
        let name = NamespacedName::new("default", service);
        self.snapshot().health_checks.get(&name).map(|check| (check.node_port, check.ready_local))
    }

    /// Whether the Service has a port that is served.
    pub(super) fn serves(&mut self, service: &str) -> bool {
        self.find(service).is_some()
    }
}

pub(super) const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

pub(super) fn config() -> StoreConfig {
    listen();
    StoreConfig { node_name: "a".into(), zone: Some("z1".into()), ..StoreConfig::default() }
}

pub(super) fn port_name(service: &str, port: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName { service: NamespacedName::new("default", service), port: port.into(), protocol }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `address:port` of each endpoint, to compare with.
pub(super) fn shown(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

/// The addresses alone.
pub(super) fn ips(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.ip.to_string()).collect()
}

/// The frontends of one origin.
pub(super) fn frontends(port: &ServicePort, origin: FrontendOrigin) -> Vec<String> {
    port.frontends.iter().filter(|frontend| frontend.origin == origin).map(ToString::to_string).collect()
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

pub(super) fn strings(values: &[&str]) -> Option<Vec<String>> {
    Some(values.iter().map(ToString::to_string).collect())
}

/// A Service on 10.96.0.1:80/TCP.
pub(super) fn service(name: &str) -> v1::Service {
    let spec = v1::ServiceSpec {
        cluster_ip: Some("10.96.0.1".into()),
        ports: Some(vec![v1::ServicePort { port: 80, ..v1::ServicePort::default() }]),
        ..v1::ServiceSpec::default()
    };
    v1::Service { metadata: metadata(name), spec: Some(spec), status: None }
}

/// How objects are told apart from the plain ones that the functions here make.
pub(super) trait ServiceExt: Sized {
    fn with(self, change: impl FnOnce(&mut v1::ServiceSpec)) -> Self;
    fn on(self, cluster_ips: &[&str]) -> Self;
    fn of_type(self, type_: &str) -> Self;
    fn node_port(self, port: i32) -> Self;
    fn external_ips(self, ips: &[&str]) -> Self;
    fn load_balancer(self, ips: &[&str]) -> Self;
    fn labelled(self, label: &str) -> Self;
    fn created(self, second: i64) -> Self;
}

impl ServiceExt for v1::Service {
    fn with(mut self, change: impl FnOnce(&mut v1::ServiceSpec)) -> Self {
        change(self.spec.as_mut().unwrap());
        self
    }

    fn on(self, cluster_ips: &[&str]) -> Self {
        self.with(|spec| {
            spec.cluster_ip = cluster_ips.first().map(ToString::to_string);
            spec.cluster_ips = strings(cluster_ips);
        })
    }

    fn of_type(self, type_: &str) -> Self {
        self.with(|spec| spec.type_ = Some(type_.into()))
    }

    fn node_port(self, port: i32) -> Self {
        self.of_type("NodePort").with(|spec| spec.ports.as_mut().unwrap()[0].node_port = Some(port))
    }

    fn external_ips(self, ips: &[&str]) -> Self {
        self.with(|spec| spec.external_ips = strings(ips))
    }

    fn load_balancer(mut self, ips: &[&str]) -> Self {
        let ingress = |ip: &&str| v1::LoadBalancerIngress { ip: Some(ip.to_string()), ..Default::default() };
        let status = v1::LoadBalancerStatus { ingress: Some(ips.iter().map(ingress).collect()) };
        self.status = Some(v1::ServiceStatus { load_balancer: Some(status), conditions: None });
        self.of_type("LoadBalancer")
    }

    fn labelled(mut self, label: &str) -> Self {
        self.metadata.labels.get_or_insert_default().insert(label.into(), "x".into());
        self
    }

    fn created(mut self, second: i64) -> Self {
        self.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
        self
    }
}

/// A slice of endpoints on TCP port 8080, of the family that its first endpoint has.
pub(super) fn slice(name: &str, owner: &str, endpoints: Vec<discovery::Endpoint>) -> discovery::EndpointSlice {
    let is_v6 = endpoints.first().is_some_and(|endpoint| endpoint.addresses[0].contains(':'));
    let mut metadata = metadata(name);
    metadata.labels.get_or_insert_default().insert("kubernetes.io/service-name".into(), owner.into());
    discovery::EndpointSlice {
        metadata,
        address_type: if is_v6 { "IPv6" } else { "IPv4" }.into(),
        endpoints: Some(endpoints),
        ports: Some(vec![discovery::EndpointPort { port: Some(8080), ..discovery::EndpointPort::default() }]),
    }
}

/// A ready endpoint.
pub(super) fn at(address: &str) -> discovery::Endpoint {
    discovery::Endpoint { addresses: vec![address.into()], ..discovery::Endpoint::default() }
}

pub(super) trait EndpointExt {
    fn on(self, node: &str) -> Self;
    fn conditions(self, ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self;
    fn not_ready(self) -> Self;
    fn terminating(self) -> Self;
    fn for_zone(self, zone: &str) -> Self;
    fn for_node(self, node: &str) -> Self;
}

impl EndpointExt for discovery::Endpoint {
    fn on(mut self, node: &str) -> Self {
        self.node_name = Some(node.into());
        self
    }

    fn conditions(mut self, ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>) -> Self {
        self.conditions = Some(discovery::EndpointConditions { ready, serving, terminating });
        self
    }

    fn not_ready(self) -> Self {
        self.conditions(Some(false), Some(false), Some(false))
    }

    /// Still serving, as long as it lasts.
    fn terminating(self) -> Self {
        self.conditions(Some(false), Some(true), Some(true))
    }

    fn for_zone(mut self, zone: &str) -> Self {
        let zones = &mut self.hints.get_or_insert_default().for_zones;
        zones.get_or_insert_default().push(discovery::ForZone { name: zone.into() });
        self
    }

    fn for_node(mut self, node: &str) -> Self {
        let nodes = &mut self.hints.get_or_insert_default().for_nodes;
        nodes.get_or_insert_default().push(discovery::ForNode { name: node.into() });
        self
    }
}

/// A Node with these internal addresses.
pub(super) fn node(name: &str, addresses: &[&str]) -> v1::Node {
    let address = |ip: &&str| v1::NodeAddress { address: ip.to_string(), type_: "InternalIP".into() };
    let addresses = Some(addresses.iter().map(address).collect());
    v1::Node {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        spec: None,
        status: Some(v1::NodeStatus { addresses, ..v1::NodeStatus::default() }),
    }
}

pub(super) fn with_pods_in(mut node: v1::Node, cidrs: &[&str]) -> v1::Node {
    node.spec.get_or_insert_default().pod_cidrs = strings(cidrs);
    node
}

pub(super) fn in_zone(mut node: v1::Node, zone: &str) -> v1::Node {
    node.metadata.labels.get_or_insert_default().insert("topology.kubernetes.io/zone".into(), zone.into());
    node
}

pub(super) fn interfaces(addresses: &[&str]) -> Event {
    let addresses = addresses.iter().map(|address| ip(address)).collect();
    Event::Apply(NodeAddresses { addresses }.into())
}

impl From<v1::Service> for Event {
    fn from(service: v1::Service) -> Self {
        Service::try_from(&service).into()
    }
}

impl From<discovery::EndpointSlice> for Event {
    fn from(slice: discovery::EndpointSlice) -> Self {
        EndpointSlice::try_from(&slice).into()
    }
}

impl From<v1::Node> for Event {
    fn from(node: v1::Node) -> Self {
        Node::try_from(&node).into()
    }
}
