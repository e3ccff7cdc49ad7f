//! Stale UDP flows: which connection-tracking entries lead to endpoints that no longer serve, and their deletion.

use std::net::SocketAddr;

use tollgate_model::frontend::Frontend;

/// The UDP flows of one frontend that must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFlows {
    /// The address that the client dialled.
    pub frontend: Frontend,
    /// Where those flows lead: an endpoint that no longer serves, or the frontend itself (flows that were never translated).
    pub to: Vec<SocketAddr>,
}
