//! One Service port to its virtual services and its members of sets, in one family. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::FrontendOrigin;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::{EndpointSets, ServicePort};

use super::comment::Comment;
use super::netlink::route::source;
use super::object::{Element, ElementValue, Scheduler, ServiceKey, ServiceSpec, SetName};
use super::style::Style;
use crate::backend::ObservedOrigin;

/// A virtual service that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) spec: ServiceSpec,
    pub(crate) protocol: Protocol,
    /// Whether it is a NodePort's.
    pub(crate) is_node_port: bool,
    /// Who gets new connections, in order.
    pub(crate) pool: Arc<[Endpoint]>,
    /// Who still serves, in order.
    pub(crate) serving: Arc<[Endpoint]>,
}

impl Wanted {
    /// Whether a destination gets new connections.
    pub(crate) fn has(&self, to: SocketAddr) -> bool {
        is_among(&self.pool, to)
    }

    /// Whether a destination that gets no new connections keeps those that it has. TCP's and SCTP's end by themselves; a
    /// datagram's sender goes on in the old flow for as long as it sends.
    pub(crate) fn keeps(&self, to: SocketAddr) -> bool {
        self.protocol != Protocol::Udp || is_among(&self.serving, to)
    }
}

/// What one Service port is in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) services: BTreeMap<ServiceKey, Wanted>,
    pub(crate) elements: BTreeMap<Element, ElementValue>,
}

/// One of its addresses.
struct Frontend {
    ip: IpAddr,
    port: u16,
    origin: ObservedOrigin,
    is_guarded: bool,
}

/// Whether what a Service port is depends on what the snapshot says of the node.
pub(crate) fn depends_on_node(service_port: &ServicePort) -> bool {
    is_external(service_port)
}

fn is_external(service_port: &ServicePort) -> bool {
    service_port.node_port.is_some()
        || service_port.frontends.iter().any(|frontend| frontend.origin != FrontendOrigin::ClusterIp)
}

/// Whether a Service port needs a mark: a virtual service for the Cluster set besides those of its external frontends, which
/// have the Local set.
pub(crate) fn needs_mark(service_port: &ServicePort, family: IpFamily) -> bool {
    service_port.external_traffic_policy == TrafficPolicy::Local
        && is_external(service_port)
        && !service_port.endpoints(family).cluster.is_empty()
}

/// External frontends and NodePorts of a family, by which a mark is found again.
pub(crate) fn external_frontends<'a>(
    service_port: &'a ServicePort,
    style: &'a Style,
) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    frontends(service_port, style)
        .filter(|frontend| frontend.origin != ObservedOrigin::ClusterIp)
        .map(|frontend| (frontend.ip, frontend.port))
}

/// The Service port's objects; empty where it has no frontend of the family.
pub(crate) fn objects(service_port: &ServicePort, style: &Style, mark: Option<u32>) -> Objects {
    let builder =
        Builder { service_port, style, sets: service_port.endpoints(style.family), objects: Objects::default() };
    builder.build(mark)
}

fn frontends<'a>(service_port: &'a ServicePort, style: &'a Style) -> impl Iterator<Item = Frontend> + 'a {
    let family = style.family;
    let is_of_family = move |ip: &IpAddr| IpFamily::from(*ip) == family;
    let has_ranges = match family {
        IpFamily::V4 => service_port.source_ranges.v4.is_some(),
        IpFamily::V6 => service_port.source_ranges.v6.is_some(),
    };
    let own = service_port.frontends.iter().filter(move |frontend| is_of_family(&frontend.ip));
    // A NodePort answers in the families that the Service has.
    let node_port = service_port.node_port.filter(|_| own.clone().next().is_some());
    // An external IP that is an address of this node comes before a NodePort.
    let is_taken = |ip: IpAddr, port: u16| service_port.frontends.iter().any(|it| (it.ip, it.port) == (ip, port));
    let node_ports = node_port.into_iter().flat_map(move |port| {
        let free = style.node_port_addresses.iter().filter(move |ip| !is_taken(**ip, port));
        free.map(move |ip| Frontend { ip: *ip, port, origin: ObservedOrigin::NodePort, is_guarded: false })
    });
    let own = own.map(move |frontend| Frontend {
        ip: frontend.ip,
        port: frontend.port,
        origin: match frontend.origin {
            FrontendOrigin::ClusterIp => ObservedOrigin::ClusterIp,
            FrontendOrigin::ExternalIp | FrontendOrigin::LoadBalancerIp => ObservedOrigin::External,
        },
        is_guarded: has_ranges && frontend.origin == FrontendOrigin::LoadBalancerIp,
    });
    own.chain(node_ports)
}

struct Builder<'a> {
    service_port: &'a ServicePort,
    style: &'a Style,
    sets: &'a EndpointSets,
    objects: Objects,
}

impl Builder<'_> {
    fn build(mut self, mark: Option<u32>) -> Objects {
        let service_port = self.service_port;
        let frontends: Vec<_> = frontends(service_port, self.style).collect();
        let is_shared = frontends.len() > 1;
        for frontend in &frontends {
            if frontend.origin != ObservedOrigin::NodePort && !self.style.own_addresses.contains(&frontend.ip) {
                self.objects.elements.insert(
                    Element { set: SetName::Vips, ip: frontend.ip, port: None, source: None },
                    ElementValue::default(),
                );
            }
            match frontend.origin {
                ObservedOrigin::ClusterIp => self.internal(frontend, is_shared),
                ObservedOrigin::External | ObservedOrigin::NodePort => self.external(frontend, is_shared, mark),
            }
        }
        if let Some(mark) = mark.filter(|_| needs_mark(service_port, self.style.family)) {
            // IPVS's own affinity does not translate ports for a virtual service that is known by a mark (the `dport` of
            // `ip_vs_sched_persist`); the client's address alone decides instead.
            let scheduler = if self.is_sticky() { self.hashing_scheduler() } else { self.scheduler() };
            let spec = ServiceSpec { scheduler, affinity: None };
            self.service(ServiceKey::Mark(mark), spec, false, &self.sets.cluster.clone());
        }
        self.objects
    }

    fn internal(&mut self, frontend: &Frontend, is_shared: bool) {
        let policy = self.service_port.internal_traffic_policy;
        let pool = self.pool(policy);
        if !pool.is_empty() {
            self.served(frontend, policy, is_shared, &pool);
        } else if self.sets.cluster.is_empty() {
            self.element(SetName::Reject, frontend, policy, None);
        } else {
            self.element(SetName::Drop, frontend, policy, None);
        }
    }

    fn external(&mut self, frontend: &Frontend, is_shared: bool, mark: Option<u32>) {
        let policy = self.service_port.external_traffic_policy;
        let pool = self.pool(policy);
        self.guard(frontend, policy);
        if !pool.is_empty() {
            self.served(frontend, policy, is_shared, &pool);
        } else if self.sets.cluster.is_empty() {
            self.element(SetName::Reject, frontend, policy, None);
        } else {
            self.element(SetName::Drop, frontend, policy, None);
        }
        if policy == TrafficPolicy::Cluster {
            self.element(SetName::Masquerade, frontend, policy, None);
        } else if !self.sets.cluster.is_empty() {
            self.element(SetName::Shortcut, frontend, policy, mark);
        }
    }

    fn guard(&mut self, frontend: &Frontend, policy: TrafficPolicy) {
        let ranges = match self.style.family {
            IpFamily::V4 => &self.service_port.source_ranges.v4,
            IpFamily::V6 => &self.service_port.source_ranges.v6,
        };
        let Some(ranges) = ranges.as_ref().filter(|_| frontend.is_guarded) else { return };
        self.element(SetName::Guarded, frontend, policy, None);
        let port = Some((self.service_port.name.protocol, frontend.port));
        // `hash:*net` takes no prefix of length 0; the model has made "everybody" of one.
        let admitted = ranges.iter().map(|range| Element {
            set: SetName::Admit,
            ip: frontend.ip,
            port,
            source: Some(range.trunc()),
        });
        // The node may dial it, the model says, if this address itself may. It does not choose its source by the way out then,
        // because there is none.
        let is_node_admitted = ranges.contains(&frontend.ip.into());
        let source = source(self.style.family);
        let own = self.style.own_addresses.iter().chain([&source]).filter(|_| is_node_admitted);
        let own = own.map(|ip| Element { set: SetName::Admit, ip: frontend.ip, port, source: Some((*ip).into()) });
        let all: Vec<_> = admitted.chain(own).map(|element| (element, ElementValue::default())).collect();
        self.objects.elements.extend(all);
    }

    fn served(&mut self, frontend: &Frontend, policy: TrafficPolicy, is_shared: bool, pool: &Arc<[Endpoint]>) {
        self.element(SetName::Frontends, frontend, policy, None);
        let protocol = self.service_port.name.protocol;
        let key = ServiceKey::Address { ip: frontend.ip, protocol, port: frontend.port };
        let affinity = self.service_port.affinity_timeout();
        let affinity = affinity.map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
        // Each virtual service remembers clients by itself. So that a client that comes by another address of the Service is
        // given the same endpoint, its own address decides.
        let scheduler = if affinity.is_some() && is_shared { self.hashing_scheduler() } else { self.scheduler() };
        let is_node_port = frontend.origin == ObservedOrigin::NodePort;
        self.service(key, ServiceSpec { scheduler, affinity }, is_node_port, pool);
    }

    fn service(&mut self, key: ServiceKey, spec: ServiceSpec, is_node_port: bool, pool: &Arc<[Endpoint]>) {
        let wanted = Wanted {
            spec,
            protocol: self.service_port.name.protocol,
            is_node_port,
            pool: Arc::clone(pool),
            serving: Arc::clone(&self.sets.serving),
        };
        self.objects.services.insert(key, wanted);
    }

    fn scheduler(&self) -> Scheduler {
        let own = self.service_port.ipvs_scheduler.as_deref().and_then(|name| name.parse().ok());
        own.filter(|scheduler| self.has(*scheduler)).unwrap_or(self.style.scheduler)
    }

    /// One by which a client's address decides.
    fn hashing_scheduler(&self) -> Scheduler {
        let known = [Scheduler::Mh, Scheduler::Sh].into_iter().find(|scheduler| self.has(*scheduler));
        known.unwrap_or(self.style.scheduler)
    }

    fn has(&self, scheduler: Scheduler) -> bool {
        !self.style.missing.contains(&scheduler)
    }

    fn is_sticky(&self) -> bool {
        self.service_port.affinity_timeout().is_some()
    }

    fn pool(&self, policy: TrafficPolicy) -> Arc<[Endpoint]> {
        Arc::clone(match policy {
            TrafficPolicy::Cluster => &self.sets.cluster,
            TrafficPolicy::Local => &self.sets.local,
        })
    }

    fn element(&mut self, set: SetName, frontend: &Frontend, policy: TrafficPolicy, mark: Option<u32>) {
        let name = &self.service_port.name;
        let element = Element { set, ip: frontend.ip, port: Some((name.protocol, frontend.port)), source: None };
        let is_listed = matches!(set, SetName::Frontends | SetName::Reject | SetName::Drop | SetName::Shortcut);
        let comment = is_listed.then(|| Comment::text(frontend.origin, policy, name));
        self.objects.elements.insert(element, ElementValue { mark, comment });
    }
}

/// All addresses that it may have virtual services at, in order.
pub(crate) fn addresses(objects: &Objects) -> BTreeSet<IpAddr> {
    objects.services.keys().filter_map(|key| key.ip()).chain(objects.elements.keys().map(|it| it.ip)).collect()
}

/// The list is ordered.
fn is_among(endpoints: &[Endpoint], to: SocketAddr) -> bool {
    endpoints.binary_search_by(|endpoint| (endpoint.ip, endpoint.port).cmp(&(to.ip(), to.port()))).is_ok()
}
