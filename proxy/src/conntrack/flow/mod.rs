//! Which flows are stale. Pure.
//!
//! A flow is known by what its client dialled and by who answers. Both sides are judged by address, never by Service port:
//! an address may pass from one Service port to another, and its endpoints with it (a port that is renamed), and then its
//! flows go on.
//!
//! Only UDP: the peers of other protocols notice by themselves (TCP resends and gives up, SCTP has heartbeats), while a
//! datagram's sender goes on in the old flow for as long as it sends. kube-proxy draws the line there as well.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tollgate_model::diff::{Change, diff};
use tollgate_model::endpoint::Endpoint;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::snapshot::{EndpointSets, ServicePort, Snapshot};

/// The UDP flows of one dialled address that must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleFlows {
    /// What the client dialled: a frontend, or a node address and NodePort.
    pub dialled: SocketAddr,
    /// Where those flows lead: endpoints that no longer serve it, or `dialled` itself (flows that were never translated).
    pub to: Vec<SocketAddr>,
}

/// The flows that lead nowhere once the kernel holds `desired` in the place of what was `applied`. Both are what the kernel
/// really holds: a Service port that the backend could not realise is in neither, see [`Snapshot::without`].
///
/// Flows to endpoints that still serve are left alone, whoever of them is chosen for new ones: also while they terminate,
/// and also on other nodes where a Local policy has come. The cost is that of what changed; where the node has gained or
/// lost an address, that of the Service ports with a UDP NodePort.
#[must_use]
pub fn stale_flows(applied: &Snapshot, desired: &Snapshot) -> Vec<StaleFlows> {
    let (mut before, mut after) = (Dialled::default(), Dialled::default());
    for change in diff(&applied.service_ports, &desired.service_ports) {
        let (old, new) = match change {
            Change::Added(_, new) => (None, Some(new)),
            Change::Changed(_, old, new) => (Some(old), Some(new)),
            Change::Removed(_, old) => (Some(old), None),
        };
        before.extend(old, &applied.node_port_addresses);
        after.extend(new, &desired.node_port_addresses);
    }
    if applied.node_port_addresses != desired.node_port_addresses {
        let lost = applied.node_port_addresses.difference(&desired.node_port_addresses);
        let gained = desired.node_port_addresses.difference(&applied.node_port_addresses);
        before.extend_node_ports(applied.service_ports.values().map(Arc::as_ref), lost);
        after.extend_node_ports(desired.service_ports.values().map(Arc::as_ref), gained);
    }
    let all: BTreeSet<SocketAddr> = before.0.keys().chain(after.0.keys()).copied().collect();
    let stale = |dialled: SocketAddr| {
        let to = destinations(dialled, before.0.get(&dialled).copied(), after.0.get(&dialled).copied());
        StaleFlows { dialled, to }
    };
    all.into_iter().map(stale).filter(|stale| !stale.to.is_empty()).collect()
}

/// Who serves each address that clients may dial by UDP: what tells a stale flow from another, at the cost of one look-up.
#[derive(Debug, Default)]
pub(crate) struct Serving<'a>(Dialled<'a>);

impl<'a> Serving<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot) -> Self {
        let mut dialled = Dialled::default();
        for service_port in snapshot.service_ports.values() {
            dialled.extend(Some(service_port), &snapshot.node_port_addresses);
        }
        Self(dialled)
    }

    /// Whether an endpoint that serves what was dialled is at `to`; `None` where nobody serves what was dialled.
    pub(crate) fn is_served(&self, dialled: SocketAddr, to: SocketAddr) -> Option<bool> {
        Some(serves(self.0.0.get(&dialled)?, to))
    }

    /// Whether there is anything to dial in the family.
    pub(super) fn has(&self, family: IpFamily) -> bool {
        self.0.0.keys().any(|dialled| IpFamily::from(dialled.ip()) == family)
    }
}

/// What clients may dial by UDP, and who answers for it.
#[derive(Debug, Default)]
struct Dialled<'a>(HashMap<SocketAddr, &'a EndpointSets>);

impl<'a> Dialled<'a> {
    fn extend(&mut self, service_port: Option<&'a ServicePort>, node_addresses: &BTreeSet<IpAddr>) {
        let Some(service_port) = service_port.filter(|it| it.name.protocol == Protocol::Udp) else { return };
        self.extend_node_ports([service_port], node_addresses.iter());
        for frontend in &service_port.frontends {
            let dialled = SocketAddr::new(frontend.ip, frontend.port);
            self.0.insert(dialled, service_port.endpoints(frontend.family()));
        }
    }

    /// An external IP that is an address of this node comes before a NodePort, as backends have it.
    fn extend_node_ports<'b>(
        &mut self,
        service_ports: impl IntoIterator<Item = &'a ServicePort>,
        addresses: impl Iterator<Item = &'b IpAddr> + Clone,
    ) {
        for service_port in service_ports.into_iter().filter(|it| it.name.protocol == Protocol::Udp) {
            let Some(node_port) = service_port.node_port else { continue };
            for ip in addresses.clone() {
                let sets = service_port.endpoints((*ip).into());
                self.0.entry(SocketAddr::new(*ip, node_port)).or_insert(sets);
            }
        }
    }
}

/// Where the stale flows of one dialled address lead, given who answered for it and who does now.
fn destinations(dialled: SocketAddr, before: Option<&EndpointSets>, after: Option<&EndpointSets>) -> Vec<SocketAddr> {
    let led_to = before.map(reachable).unwrap_or_default();
    let is_served = |to: SocketAddr| after.is_some_and(|after| serves(after, to));
    // Before the address was known, or had an endpoint, its datagrams may have gone out as they were.
    let untranslated = (led_to.is_empty() && after.is_some()).then_some(dialled);
    led_to.into_iter().chain(untranslated).filter(|to| !is_served(*to)).collect()
}

/// Every endpoint that flows may have been led to.
fn reachable(sets: &EndpointSets) -> BTreeSet<SocketAddr> {
    [&sets.cluster, &sets.local, &sets.serving].into_iter().flat_map(|set| set.iter()).map(address).collect()
}

/// Whether flows to this endpoint are left alone. The list is ordered.
fn serves(sets: &EndpointSets, to: SocketAddr) -> bool {
    sets.serving.binary_search_by(|endpoint| (endpoint.ip, endpoint.port).cmp(&(to.ip(), to.port()))).is_ok()
}

fn address(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.ip, endpoint.port)
}

#[cfg(test)]
mod tests;
