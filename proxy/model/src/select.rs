//! Which endpoints this node may use for a Service port: functions from values to values.
//!
//! ```text
//! slices ─▶ candidates      those with the port's name, protocol and family; an address once
//!             ├─▶ cluster   ready, narrowed by hints; if none is ready, those that serve while terminating
//!             ├─▶ local     the same of this node's own, hints ignored
//!             └─▶ serving   all that still serve
//! ```

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoint::{Endpoint, EndpointSlice, SliceEndpoint};
use crate::name::{IpFamily, Protocol};
use crate::snapshot::EndpointSets;

/// Where this node is, as far as the choice of endpoints depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Its zone, if known.
    pub zone: Option<&'a str>,
}

/// Chooses the endpoints of one Service port and family among the slices of the Service.
///
/// The order of the slices, and that of the endpoints in them, makes no difference.
#[must_use]
pub fn endpoint_sets<'a>(
    location: Location<'_>,
    port: &str,
    protocol: Protocol,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> EndpointSets {
    let candidates = candidates(location, port, protocol, family, slices);
    let narrowing = narrowing(&candidates);
    let serving: Arc<[Endpoint]> = listed(&candidates, Candidate::serves);
    let cluster = share(chosen(&candidates, |candidate| candidate.is_within(narrowing)), &[&serving]);
    let local = share(chosen(&candidates, |candidate| candidate.is_local.0), &[&cluster, &serving]);
    EndpointSets { cluster, local, serving }
}

/// The addresses of this node's endpoints of one Service port and family that are ready, and not terminating, even where
/// they are published as ready regardless: what a load balancer's health check counts.
pub(crate) fn ready_local<'a>(
    location: Location<'_>,
    port: &str,
    protocol: Protocol,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> impl Iterator<Item = IpAddr> {
    let candidates = candidates(location, port, protocol, family, slices).into_iter();
    let ready = candidates.filter(|candidate| candidate.ready.0 && !candidate.terminating && candidate.is_local.0);
    ready.map(|candidate| candidate.ip)
}

/// The endpoints with the port's name, protocol and family, in order, each address and port once.
fn candidates<'a>(
    location: Location<'_>,
    port: &str,
    protocol: Protocol,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Vec<Candidate> {
    let slices = slices.into_iter().filter(|slice| slice.family == family);
    let mut candidates: Vec<Candidate> = slices
        .flat_map(|slice| {
            let ports = slice.ports.iter().filter(|own| &*own.name == port && own.protocol == protocol);
            ports.flat_map(|own| slice.endpoints.iter().map(|endpoint| Candidate::new(location, endpoint, own.port)))
        })
        .collect();
    candidates.sort_unstable();
    candidates.dedup_by_key(|candidate| (candidate.ip, candidate.port));
    candidates
}

/// An endpoint with all that the choice depends on.
///
/// The order is by address, and for one address by preference (booleans order `false` first): slices that tell of the same
/// address disagree while an endpoint moves from one to the other, and then the one that is not terminating is the newer.
/// What follows it only has to be settled somehow, whatever the order of the slices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    ip: IpAddr,
    port: u16,
    terminating: bool,
    ready: Reverse<bool>,
    serving: Reverse<bool>,
    is_local: Reverse<bool>,
    zone_hint: Hint,
    node_hint: Hint,
}

/// What a hint says of one endpoint, seen from here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// Nothing.
    Absent,
    /// It is meant for others.
    Elsewhere,
    /// It is meant for this node or zone.
    Here,
}

/// Which hints narrow the Cluster set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Narrowing {
    None,
    Zone,
    Node,
}

impl Candidate {
    fn new(location: Location<'_>, endpoint: &SliceEndpoint, port: u16) -> Self {
        let (zones, nodes) = endpoint.hints.as_ref().map_or((&[][..], &[][..]), |hints| (&hints.zones, &hints.nodes));
        Self {
            ip: endpoint.ip,
            port,
            terminating: endpoint.conditions.terminating,
            ready: Reverse(endpoint.conditions.ready),
            serving: Reverse(endpoint.conditions.serving),
            is_local: Reverse(endpoint.node.as_deref() == Some(location.node)),
            zone_hint: Hint::new(zones, location.zone),
            node_hint: Hint::new(nodes, Some(location.node)),
        }
    }

    fn serves_while_terminating(&self) -> bool {
        self.serving.0 && self.terminating
    }

    fn serves(&self) -> bool {
        self.ready.0 || self.serves_while_terminating()
    }

    fn is_within(&self, narrowing: Narrowing) -> bool {
        match narrowing {
            Narrowing::None => true,
            Narrowing::Zone => self.zone_hint == Hint::Here,
            Narrowing::Node => self.node_hint == Hint::Here,
        }
    }
}

impl Hint {
    fn new(places: &[Arc<str>], here: Option<&str>) -> Self {
        if places.is_empty() {
            Self::Absent
        } else if places.iter().any(|place| Some(&**place) == here) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

impl From<&Candidate> for Endpoint {
    fn from(candidate: &Candidate) -> Self {
        Self { ip: candidate.ip, port: candidate.port, is_local: candidate.is_local.0 }
    }
}

/// Hints hold only where every ready endpoint has them and one of them is for us: a part of the endpoints with hints means
/// that the control plane is between two states, and nobody for us means that it did not reckon with us. Node hints first.
fn narrowing(candidates: &[Candidate]) -> Narrowing {
    let holds = |hint: fn(&Candidate) -> Hint| {
        let mut hints = candidates.iter().filter(|candidate| candidate.ready.0).map(hint);
        hints.clone().any(|hint| hint == Hint::Here) && hints.all(|hint| hint != Hint::Absent)
    };
    if holds(|candidate| candidate.node_hint) {
        Narrowing::Node
    } else if holds(|candidate| candidate.zone_hint) {
        Narrowing::Zone
    } else {
        Narrowing::None
    }
}

/// The ready candidates of a set; if none is ready, those that serve while terminating.
fn chosen(candidates: &[Candidate], is_in_set: impl Fn(&Candidate) -> bool) -> Arc<[Endpoint]> {
    let ready = listed(candidates, |candidate| candidate.ready.0 && is_in_set(candidate));
    if !ready.is_empty() {
        return ready;
    }
    listed(candidates, |candidate| candidate.serves_while_terminating() && is_in_set(candidate))
}

fn listed(candidates: &[Candidate], is_in_list: impl Fn(&Candidate) -> bool) -> Arc<[Endpoint]> {
    candidates.iter().filter(|candidate| is_in_list(candidate)).map(Endpoint::from).collect()
}

/// Equal lists are one allocation: in the usual case, where every endpoint is ready, that halves the memory.
fn share(list: Arc<[Endpoint]>, others: &[&Arc<[Endpoint]>]) -> Arc<[Endpoint]> {
    others.iter().find(|other| ***other == list).map_or(list, |other| Arc::clone(other))
}
