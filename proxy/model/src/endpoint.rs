//! Endpoints: where the traffic of a Service goes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::name::IpFamily;

/// One address and port that answers for a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address of the pod.
    pub ip: IpAddr,
    /// The port there.
    pub port: u16,
    /// Whether it runs on this node.
    pub is_local: bool,
}

impl Endpoint {
    /// The family of the address.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.ip.into()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", SocketAddr::new(self.ip, self.port))
    }
}
