//! The last known objects, and what they come to on this node.
//!
//! ```text
//! Event ─▶ apply ─▶ objects, claims       and which Services that touches
//!                       │
//!                   snapshot ─▶ resolve   those Services alone
//! ```
//!
//! The snapshot depends on the objects alone, not on the order in which they came: an EndpointSlice may come before its
//! Service, and a list that replaces another leaves no trace of it.

mod claims;
mod event;
mod kept;
mod names;
mod own;
mod resolve;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use self::claims::Claims;
pub use self::event::{Event, Object};
use self::kept::{Edit, Kept};
use self::names::Names;
use self::own::Own;
use self::resolve::{Surroundings, claims_of, health_check, resolve};
use crate::endpoint::EndpointSlice;
use crate::name::{IpFamily, NamespacedName, Protocol, ServicePortName};
use crate::node::{Node, NodeAddresses};
use crate::object::{InvalidObject, Kind};
use crate::service::Service;
use crate::snapshot::{HealthCheck, ServicePort, Snapshot};

/// What the operator says about this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// This node's name in the cluster.
    pub node_name: Arc<str>,
    /// The zone, where the Node object does not say.
    pub zone: Option<Arc<str>>,
    /// The node's addresses, the primary one of each family first. They take precedence over the Node object's.
    pub node_ips: Vec<IpAddr>,
    /// Whether nobody keeps the Node object up to date. Then, of a family in which the node has lost all the addresses that
    /// the object tells, the primary address is that of the interfaces. Otherwise the node has none until the object or the
    /// interfaces change: NodePorts must not come up on a network for which nobody meant them.
    pub node_object_ages: bool,
    /// On which of the node's addresses NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// Where given, external IPs elsewhere are not served: `spec.externalIPs` lets whoever may write a Service take any
    /// address over (CVE-2020-8554).
    pub external_ip_cidrs: Option<Vec<IpNet>>,
}

/// On which of the node's addresses NodePorts answer. Never on loopback ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The primary one of each family.
    #[default]
    Primary,
    /// Those in the ranges.
    Within(Vec<IpNet>),
    /// All.
    All,
}

/// The last known objects of the cluster, as far as this node needs them.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    names: Names,
    services: Kept<Service>,
    slices: Kept<EndpointSlice>,
    nodes: Kept<Node>,
    /// Whether this node's Node object was there and has been deleted.
    node_is_gone: bool,
    interfaces: Option<NodeAddresses>,
    /// Each Service with each of its slices, whether the Service exists or not.
    slices_by_owner: BTreeSet<(NamespacedName, Arc<str>)>,
    claims: Claims,
    own: Own,
    /// The Services to resolve before the next snapshot.
    touched: BTreeSet<NamespacedName>,
    snapshot: Snapshot,
}

impl StoreConfig {
    fn admits_external_ip(&self, ip: IpAddr) -> bool {
        self.external_ip_cidrs.as_ref().is_none_or(|cidrs| cidrs.iter().any(|cidr| cidr.contains(&ip)))
    }
}

impl Store {
    /// A store that knows nothing yet.
    #[must_use]
    pub fn new(config: StoreConfig) -> Self {
        let own = Own::new(&config, None, None);
        Self {
            config,
            names: Names::default(),
            services: Kept::default(),
            slices: Kept::default(),
            nodes: Kept::default(),
            node_is_gone: false,
            interfaces: None,
            slices_by_owner: BTreeSet::new(),
            claims: Claims::default(),
            snapshot: Snapshot {
                service_ports: OrdMap::new(),
                node_port_addresses: Arc::clone(&own.node_port_addresses),
                node_addresses: Arc::clone(&own.node_addresses),
                pod_cidrs: Arc::clone(&own.pod_cidrs),
                health_checks: OrdMap::new(),
            },
            own,
            touched: BTreeSet::new(),
        }
    }

    /// Takes in what a source tells. Any order of events will do; an object that is the same as before is no change.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Init(kind) => self.init(kind),
            Event::Apply(object) => self.apply_object(object),
            Event::Delete(kind, name) => self.delete(kind, name),
            Event::Invalid(error) => {
                tracing::warn!(object = %error.name, field = %error.field, "skipped invalid {error}");
                self.delete(error.kind, error.name);
            }
            Event::InitDone(kind) => self.init_done(kind),
        }
    }

    /// What this node should do. `None` until the lists of Services, EndpointSlices and Nodes have each been complete once,
    /// because what a part of them comes to would take down what the kernel has of the rest.
    pub fn snapshot(&mut self) -> Option<Snapshot> {
        if self.waits_for().next().is_some() {
            return None;
        }
        self.claims.warn_of_conflicts();
        for service in std::mem::take(&mut self.touched) {
            self.resolve(&service);
        }
        Some(self.snapshot.clone())
    }

    /// The kinds whose first list is not complete yet.
    pub fn waits_for(&self) -> impl Iterator<Item = Kind> {
        let kinds = [
            (Kind::Service, self.services.is_complete()),
            (Kind::EndpointSlice, self.slices.is_complete()),
            (Kind::Node, self.nodes.is_complete()),
        ];
        kinds.into_iter().filter(|(_, is_complete)| !is_complete).map(|(kind, _)| kind)
    }

    /// This node's Node object.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.nodes.get(&self.node_key())
    }

    /// Whether this node is on its way out, so that load balancers should look elsewhere. A node that never had a Node
    /// object is not; one whose object has been deleted is.
    #[must_use]
    pub fn node_is_being_deleted(&self) -> bool {
        self.node().map_or(self.node_is_gone, Node::is_being_deleted)
    }

    fn node_key(&self) -> NamespacedName {
        NamespacedName::new("", Arc::clone(&self.config.node_name))
    }

    fn init(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services.init(),
            Kind::EndpointSlice => self.slices.init(),
            Kind::Node => self.nodes.init(),
            // One object that always comes whole: there is nothing to wait for.
            Kind::NodeAddresses => {}
        }
    }

    /// An object that the rules leave alone is to the store as one that does not exist.
    fn apply_object(&mut self, object: Object) {
        match object {
            Object::Service(mut service) => {
                self.names.share(&mut service.name.namespace);
                service.ports.iter_mut().for_each(|port| self.names.share(&mut port.name));
                let name = service.name.clone();
                let edit = self.services.buffer((name, Some(service).filter(Service::has_frontends)));
                self.edit_services(edit);
            }
            Object::EndpointSlice(mut slice) => {
                slice.share_names(|name| self.names.share(name));
                let name = slice.name.clone();
                let edit = self.slices.buffer((name, Some(slice).filter(|slice| slice.service.is_some())));
                self.edit_slices(edit);
            }
            Object::Node(node) if *node.name() == self.config.node_name => {
                let edit = self.nodes.buffer((node.key(), Some(node)));
                self.edit_nodes(edit);
            }
            Object::Node(_) => {}
            Object::NodeAddresses(addresses) => {
                self.interfaces = Some(addresses);
                self.refresh_own();
            }
        }
    }

    fn delete(&mut self, kind: Kind, name: NamespacedName) {
        match kind {
            Kind::Service => {
                let edit = self.services.buffer((name, None));
                self.edit_services(edit);
            }
            Kind::EndpointSlice => {
                let edit = self.slices.buffer((name, None));
                self.edit_slices(edit);
            }
            Kind::Node => {
                // Whatever namespace the source gave it, a Node has none.
                let edit = self.nodes.buffer((NamespacedName { namespace: Arc::default(), ..name }, None));
                self.edit_nodes(edit);
            }
            Kind::NodeAddresses => {
                self.interfaces = None;
                self.refresh_own();
            }
        }
    }

    fn init_done(&mut self, kind: Kind) {
        match kind {
            Kind::Service => {
                let edits = self.services.init_done();
                self.edit_services(edits);
            }
            Kind::EndpointSlice => {
                let edits = self.slices.init_done();
                self.edit_slices(edits);
            }
            Kind::Node => {
                let edits = self.nodes.init_done();
                self.edit_nodes(edits);
                if self.node().is_none() {
                    tracing::warn!(
                        node = %self.config.node_name,
                        "the cluster has no Node of this name: going on without topology, with addresses from the \
                         configuration or the interfaces",
                    );
                }
            }
            Kind::NodeAddresses => {}
        }
    }

    fn edit_services(&mut self, edits: impl IntoIterator<Item = Edit<Service>>) {
        for (name, service) in edits {
            let Some(old) = self.services.set(&name, service) else {
                continue;
            };
            let new = self.services.get(&name);
            if let Some(new) = new {
                warn_of_rejected(&new.rejected);
                warn_of_refused_external_ips(new, &self.config);
            }
            let old = old.map(|old| claims_of(&old, &self.config));
            let new = new.map(|new| claims_of(new, &self.config));
            let affected = self.claims.replace(old.as_ref(), new.as_ref());
            self.touched.extend(affected);
            self.touched.insert(name);
        }
    }

    fn edit_slices(&mut self, edits: impl IntoIterator<Item = Edit<EndpointSlice>>) {
        for (name, slice) in edits {
            let Some(old) = self.slices.set(&name, slice) else {
                continue;
            };
            let new = self.slices.get(&name);
            if let Some(new) = new {
                warn_of_rejected(&new.rejected);
            }
            let new_owner = new.and_then(EndpointSlice::owner);
            if let Some(owner) = old.and_then(|old| old.owner()) {
                self.touched.insert(owner.clone());
                self.slices_by_owner.remove(&(owner, Arc::clone(&name.name)));
            }
            if let Some(owner) = new_owner {
                self.touched.insert(owner.clone());
                self.slices_by_owner.insert((owner, name.name));
            }
        }
    }

    fn edit_nodes(&mut self, edits: impl IntoIterator<Item = Edit<Node>>) {
        for (name, node) in edits {
            if self.nodes.set(&name, node).is_none() {
                continue;
            }
            self.node_is_gone = self.nodes.get(&name).is_none();
            if let Some(node) = self.nodes.get(&name) {
                warn_of_rejected(node.rejected());
            }
            self.refresh_own();
        }
    }

    /// Every Service may depend on the zone and on the node's addresses: they are all resolved anew.
    fn refresh_own(&mut self) {
        let mut own = Own::new(&self.config, self.node(), self.interfaces.as_ref());
        if own == self.own {
            return;
        }
        if (&own.zone, own.primary) != (&self.own.zone, self.own.primary) {
            self.touched.extend(self.services.names().cloned());
        }
        if own.node_port_addresses == self.own.node_port_addresses {
            own.node_port_addresses = Arc::clone(&self.own.node_port_addresses);
        }
        self.snapshot.node_port_addresses = Arc::clone(&own.node_port_addresses);
        if own.node_addresses == self.own.node_addresses {
            own.node_addresses = Arc::clone(&self.own.node_addresses);
        }
        self.snapshot.node_addresses = Arc::clone(&own.node_addresses);
        if own.pod_cidrs == self.own.pod_cidrs {
            own.pod_cidrs = Arc::clone(&self.own.pod_cidrs);
        }
        self.snapshot.pod_cidrs = Arc::clone(&own.pod_cidrs);
        self.own = own;
        self.warn_of_addresses_elsewhere();
    }

    fn warn_of_addresses_elsewhere(&self) {
        let Some(interfaces) = &self.interfaces else { return };
        let aged = self.node().filter(|_| self.config.node_object_ages && self.config.node_ips.is_empty());
        let in_object = IpFamily::ALL.map(|family| aged?.primary_address(family));
        let told: BTreeSet<IpAddr> = self.own.primary.into_iter().chain(in_object).flatten().collect();
        for ip in told.iter().filter(|ip| !interfaces.addresses.contains(ip)) {
            tracing::warn!(node = %self.config.node_name, "the node's address {ip} is on none of its interfaces");
        }
    }

    /// Brings the snapshot's part of the Service up to date. What turns out the same keeps its allocation.
    fn resolve(&mut self, name: &NamespacedName) {
        let (resolved, health_check) = match self.services.get(name) {
            None => (Vec::new(), None),
            Some(service) => {
                let around = Surroundings { config: &self.config, own: &self.own, claims: &self.claims };
                let slices = self.slices_of(name);
                (resolve(service, slices.clone(), around), health_check(service, slices, around))
            }
        };
        self.set_health_check(name, health_check);
        let service_ports = &mut self.snapshot.service_ports;
        let first = ServicePortName { service: name.clone(), port: Arc::default(), protocol: Protocol::Tcp };
        let held = service_ports.range(first..).map(|(key, _)| key).take_while(|key| key.service == *name);
        let gone: Vec<ServicePortName> =
            held.filter(|key| !resolved.iter().any(|port| port.name == **key)).cloned().collect();
        for key in gone {
            service_ports.remove(&key);
        }
        for mut port in resolved {
            if let Some(old) = service_ports.get(&port.name) {
                if **old == port {
                    continue;
                }
                keep_allocations(old, &mut port);
            }
            service_ports.insert(port.name.clone(), Arc::new(port));
        }
    }

    fn set_health_check(&mut self, name: &NamespacedName, new: Option<HealthCheck>) {
        let health_checks = &mut self.snapshot.health_checks;
        if health_checks.get(name).map(|old| **old) == new {
            return;
        }
        match new {
            Some(new) => drop(health_checks.insert(name.clone(), Arc::new(new))),
            None => drop(health_checks.remove(name)),
        }
    }

    fn slices_of(&self, service: &NamespacedName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let names = self.slices_by_owner.range((service.clone(), Arc::default())..);
        names.take_while(move |(owner, _)| owner == service).filter_map(|(owner, name)| {
            self.slices.get(&NamespacedName { namespace: Arc::clone(&owner.namespace), name: Arc::clone(name) })
        })
    }
}

/// Endpoints that did not change keep their lists, so that the comparison in a backend is one of pointers.
fn keep_allocations(old: &ServicePort, new: &mut ServicePort) {
    if old.v4 == new.v4 {
        new.v4 = old.v4.clone();
    }
    if old.v6 == new.v6 {
        new.v6 = old.v6.clone();
    }
}

fn warn_of_rejected(rejected: &[InvalidObject]) {
    for error in rejected {
        tracing::warn!(object = %error.name, field = %error.field, "left out of {error}");
    }
}

fn warn_of_refused_external_ips(service: &Service, config: &StoreConfig) {
    for ip in service.external_ips.iter().filter(|ip| !config.admits_external_ip(**ip)) {
        tracing::warn!(
            object = %service.name,
            field = "spec.externalIPs",
            "external IP {ip} of Service {} is not in the configured ranges and not served",
            service.name,
        );
    }
}
