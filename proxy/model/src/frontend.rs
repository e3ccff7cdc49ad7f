//! Frontends: the addresses that clients dial.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::name::{IpFamily, Protocol};

/// One address that a client dials to reach a Service port. NodePorts are not listed one by one: a Service port has a
/// `node_port`, and the snapshot has the node addresses that answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address (the vip).
    pub ip: IpAddr,
    /// The port, as dialled.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Where the address comes from.
    pub origin: FrontendOrigin,
}

/// Which field of the Service an address comes from; the traffic policies depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendOrigin {
    /// `spec.clusterIPs`
    ClusterIp,
    /// `spec.externalIPs`
    ExternalIp,
    /// `status.loadBalancer.ingress`, where its `ipMode` is not `Proxy`
    LoadBalancerIp,
}

impl Frontend {
    /// The family of the address.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.ip.into()
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol)
    }
}
