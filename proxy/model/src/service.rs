//! Services, as the API has them.

use std::time::Duration;

/// Which endpoints a kind of traffic may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// The endpoints of this node.
    Local,
}

/// Whether a client address stays with one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionAffinity {
    /// Each connection is spread anew.
    #[default]
    None,
    /// One client address goes to one endpoint until `timeout` has passed since its last new connection.
    ClientIp {
        /// Whole seconds, 1 to 86,400.
        timeout: Duration,
    },
}
