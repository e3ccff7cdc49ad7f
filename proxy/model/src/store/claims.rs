//! Who holds an address and port, or a NodePort, that several Services may claim: the oldest of them, but a cluster IP
//! before all else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::name::{NamespacedName, Protocol};

/// What only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// An address and port that clients dial, wherever it comes from.
    Frontend(IpAddr, u16, Protocol),
    /// A port of the node: a NodePort, or a health check's.
    NodePort(u16, Protocol),
}

/// On what ground a Service claims something. The order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ground {
    /// It is the Service's cluster IP, which the control plane allots. Whoever may write Services may list the cluster IP of
    /// another among its external IPs (CVE-2020-8554); were age to decide, it would have the address as soon as the other
    /// is made anew.
    ClusterIp,
    /// It says so.
    Other,
}

/// A Service with its ground and its age: the order is that of precedence, the older first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) ground: Ground,
    pub(super) created: i64,
    pub(super) service: NamespacedName,
}

/// Every claim with its claimants, in order of precedence. The first holds it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    claimants: BTreeMap<Claim, Vec<Claimant>>,
    /// Claims that have or had several claimants and changed since the last report.
    unreported: BTreeSet<Claim>,
    /// The conflicts as last reported.
    reported: BTreeMap<Claim, Vec<Claimant>>,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(ip, port, protocol) => write!(f, "{}/{protocol}", SocketAddr::new(*ip, *port)),
            Self::NodePort(port, protocol) => write!(f, "node port {port}/{protocol}"),
        }
    }
}

impl Claims {
    /// Whether the Service has it.
    pub(super) fn is_held_by(&self, service: &NamespacedName, claim: Claim) -> bool {
        self.claimants.get(&claim).and_then(|claimants| claimants.first()).is_some_and(|held| held.service == *service)
    }

    /// Puts the claims of a Service's new version in the place of those of its old one, and returns the other Services
    /// whose holdings that changes.
    pub(super) fn replace(
        &mut self,
        old: Option<&BTreeMap<Claim, Claimant>>,
        new: Option<&BTreeMap<Claim, Claimant>>,
    ) -> Vec<NamespacedName> {
        let mut affected = Vec::new();
        let is_in = |other: Option<&BTreeMap<Claim, Claimant>>, claim: &Claim, claimant: &Claimant| {
            other.and_then(|claims| claims.get(claim)) == Some(claimant)
        };
        for (claim, claimant) in old.into_iter().flatten().filter(|(claim, claimant)| !is_in(new, claim, claimant)) {
            affected.extend(self.remove(claimant, *claim));
        }
        for (claim, claimant) in new.into_iter().flatten().filter(|(claim, claimant)| !is_in(old, claim, claimant)) {
            affected.extend(self.add(claimant, *claim));
        }
        affected
    }

    /// Returns the Service that loses the claim to the new claimant.
    fn add(&mut self, claimant: &Claimant, claim: Claim) -> Option<NamespacedName> {
        let claimants = self.claimants.entry(claim).or_insert_with(|| Vec::with_capacity(1));
        let at = claimants.partition_point(|other| other < claimant);
        let loser = claimants.first().filter(|_| at == 0).map(|other| other.service.clone());
        claimants.insert(at, claimant.clone());
        if claimants.len() > 1 {
            self.unreported.insert(claim);
        }
        loser
    }

    /// Returns the Service that gets the claim.
    fn remove(&mut self, claimant: &Claimant, claim: Claim) -> Option<NamespacedName> {
        let claimants = self.claimants.get_mut(&claim)?;
        let at = claimants.iter().position(|other| other == claimant)?;
        claimants.remove(at);
        if self.reported.contains_key(&claim) {
            self.unreported.insert(claim);
        }
        if claimants.is_empty() {
            self.claimants.remove(&claim);
            return None;
        }
        claimants.first().filter(|_| at == 0).map(|heir| heir.service.clone())
    }

    /// Warns of every conflict once: when it comes up, and not again while it lasts. Called between events rather than in
    /// each of them, because while a list is applied piece by piece an address may seem to have two claimants.
    pub(super) fn warn_of_conflicts(&mut self) {
        for claim in std::mem::take(&mut self.unreported) {
            let claimants = self.claimants.get(&claim).map(Vec::as_slice).unwrap_or_default();
            let [holder, waiting @ ..] = claimants else {
                self.reported.remove(&claim);
                continue;
            };
            let reported = self.reported.get(&claim).map(Vec::as_slice).unwrap_or_default();
            let is_same_holder = reported.first() == Some(holder);
            for waiting in waiting.iter().filter(|waiting| !is_same_holder || !reported.contains(waiting)) {
                let why =
                    if holder.ground < waiting.ground { "has it as its cluster IP" } else { "is the older and has it" };
                let (holder, waiting) = (&holder.service, &waiting.service);
                tracing::warn!(
                    service = %holder,
                    refused = %waiting,
                    "Services {holder} and {waiting} both claim {claim}: {holder} {why}, \
                     {waiting} gets it when the other lets go",
                );
            }
            if waiting.is_empty() {
                self.reported.remove(&claim);
            } else {
                self.reported.insert(claim, claimants.to_vec());
            }
        }
    }
}
