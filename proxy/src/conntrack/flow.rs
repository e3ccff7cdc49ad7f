//! Which flows are stale. Pure.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::Frontend;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::snapshot::ServicePort;

/// The UDP flows of one frontend that must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFlows {
    /// The address that the client dialled.
    pub frontend: Frontend,
    /// Where those flows lead: an endpoint that no longer serves, or the frontend itself (flows that were never translated).
    pub to: Vec<SocketAddr>,
}

/// The flows that lead nowhere once a Service port that was `applied` has become what is `wanted`; either may be
/// nothing. Only UDP: the peers of other protocols notice by themselves, and a datagram's sender goes on in the old flow
/// for as long as it sends.
///
/// Flows to endpoints that still serve are left alone, chosen or not, also while they terminate.
#[must_use]
pub fn stale_flows(applied: Option<&ServicePort>, wanted: Option<&ServicePort>) -> Vec<StaleFlows> {
    let is_udp = |it: &&ServicePort| it.name.protocol == Protocol::Udp;
    let (applied, wanted) = (applied.filter(is_udp), wanted.filter(is_udp));
    let frontends = |of: Option<&ServicePort>| -> BTreeSet<Frontend> {
        of.into_iter().flat_map(|of| of.frontends.iter().copied()).collect()
    };
    let (had, has) = (frontends(applied), frontends(wanted));
    let stale = |frontend: &Frontend| {
        let before = applied.filter(|_| had.contains(frontend));
        let after = wanted.filter(|_| has.contains(frontend));
        StaleFlows { frontend: *frontend, to: destinations(frontend, before, after) }
    };
    had.union(&has).map(stale).filter(|stale| !stale.to.is_empty()).collect()
}

/// Where the stale flows of one frontend lead, given the Service port that had it and the one that has it.
fn destinations(frontend: &Frontend, before: Option<&ServicePort>, after: Option<&ServicePort>) -> Vec<SocketAddr> {
    let family = frontend.family();
    let led_to = before.map(|before| reachable(before, family)).unwrap_or_default();
    let serving = after.map(|after| serving(after, family)).unwrap_or_default();
    let mut stale: Vec<_> = led_to.difference(&serving).copied().collect();
    // Before the frontend was known, or had an endpoint, its datagrams may have gone out as they were.
    if led_to.is_empty() && after.is_some() {
        stale.push(SocketAddr::new(frontend.ip, frontend.port));
    }
    stale
}

/// Every endpoint that flows may have been led to.
fn reachable(service_port: &ServicePort, family: IpFamily) -> BTreeSet<SocketAddr> {
    let sets = service_port.endpoints(family);
    [&sets.cluster, &sets.local, &sets.serving].into_iter().flat_map(|set| set.iter()).map(address).collect()
}

/// The endpoints whose flows are left alone.
pub(super) fn serving(service_port: &ServicePort, family: IpFamily) -> BTreeSet<SocketAddr> {
    service_port.endpoints(family).serving.iter().map(address).collect()
}

fn address(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.ip, endpoint.port)
}
