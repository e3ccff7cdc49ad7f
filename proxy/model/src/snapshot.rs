//! The desired state of one node: every Service port, resolved for this node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use ipnet::IpNet;

use crate::endpoint::Endpoint;
use crate::frontend::Frontend;
use crate::name::{IpFamily, NamespacedName, ServicePortName};
use crate::service::{SessionAffinity, TrafficPolicy};

/// What this node should do, at one moment. Cheap to clone: unchanged parts are shared with the snapshot before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every Service port that has a frontend or a NodePort. No two hold the same frontend.
    pub service_ports: OrdMap<ServicePortName, Arc<ServicePort>>,
    /// The node's own addresses on which NodePorts answer.
    pub node_port_addresses: Arc<BTreeSet<IpAddr>>,
    /// All addresses that this node has on its interfaces, but for those that it has only for Services. Empty where they are
    /// not known.
    pub node_addresses: Arc<BTreeSet<IpAddr>>,
    /// Where the pods of this node have their addresses, by its Node object; empty where that does not say.
    pub pod_cidrs: Arc<[IpNet]>,
    /// What load balancers are told of each Service that has a health check node port and holds it.
    pub health_checks: OrdMap<NamespacedName, Arc<HealthCheck>>,
}

/// What a load balancer's health check of one Service is told on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of the node that answers it.
    pub node_port: u16,
    /// How many endpoints of this node are ready and not terminating. An address counts once, however many ports of the
    /// Service it serves. A pod has an address in each family and should count once as well, so the family counts that has
    /// more of them; kube-proxy counts each family apart.
    pub ready_local: usize,
}

/// One Service port, resolved for this node: what backends realise, and all that they need to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, also its key in the snapshot.
    pub name: ServicePortName,
    /// The addresses it answers on, ordered, each held by this Service port alone.
    pub frontends: Vec<Frontend>,
    /// Its NodePort, if it has one and holds it.
    pub node_port: Option<u16>,
    /// Who serves IPv4 frontends.
    pub v4: EndpointSets,
    /// Who serves IPv6 frontends.
    pub v6: EndpointSets,
    /// The pool of ClusterIP traffic.
    pub internal_traffic_policy: TrafficPolicy,
    /// The pool of outside traffic to NodePort, external IP and load-balancer IP.
    pub external_traffic_policy: TrafficPolicy,
    /// Whether a client stays with one endpoint.
    pub session_affinity: SessionAffinity,
    /// Who may dial the load-balancer IPs.
    pub source_ranges: SourceRanges,
    /// The node port that answers a load balancer's health checks of the whole Service, see [`Snapshot::health_checks`].
    pub health_check_node_port: Option<u16>,
    /// How IPVS is asked to balance it, as its annotation says; see [`IPVS_SCHEDULER`](crate::service::IPVS_SCHEDULER).
    pub ipvs_scheduler: Option<Arc<str>>,
}

/// The endpoints of one Service port in one family. Each list is ordered and holds an address once. Lists that are equal
/// share their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSets {
    /// The Cluster set: topology and the terminating fallback applied. Empty: no endpoint serves anywhere.
    pub cluster: Arc<[Endpoint]>,
    /// The Local set: endpoints of this node, the terminating fallback applied to them alone, hints ignored.
    pub local: Arc<[Endpoint]>,
    /// Every endpoint that still serves, chosen or not, also while terminating: flows to these are left alone.
    pub serving: Arc<[Endpoint]>,
}

/// `loadBalancerSourceRanges`, judged for one family at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    /// `None`: every IPv4 source is admitted.
    pub v4: Option<Arc<[IpNet]>>,
    /// `None`: every IPv6 source is admitted.
    pub v6: Option<Arc<[IpNet]>>,
}

impl Snapshot {
    /// The snapshot but for some Service ports: what the kernel holds where a backend could not realise those.
    #[must_use]
    pub fn without<'a>(&self, names: impl IntoIterator<Item = &'a ServicePortName>) -> Self {
        let mut rest = self.clone();
        for name in names {
            rest.service_ports.remove(name);
        }
        rest
    }
}

impl ServicePort {
    /// The endpoints that frontends of this family reach.
    #[must_use]
    pub fn endpoints(&self, family: IpFamily) -> &EndpointSets {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    /// How long a client stays with its endpoint, if it does.
    #[must_use]
    pub fn affinity_timeout(&self) -> Option<Duration> {
        match self.session_affinity {
            SessionAffinity::None => None,
            SessionAffinity::ClientIp { timeout } => Some(timeout),
        }
    }
}
