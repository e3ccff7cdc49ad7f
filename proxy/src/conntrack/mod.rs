//! Stale UDP flows: which connection-tracking entries lead to endpoints that no longer serve, and their deletion.
//!
//! - `flow`: which flows a change leaves stale; pure.
//! - `netlink`: connection tracking over nfnetlink.
//!
//! Never a flush: other programs' flows, and other frontends', are not ours to cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::snapshot::Snapshot;

use self::netlink::{Conntrack, Filtered};

pub use self::flow::{StaleFlows, stale_flows};

mod flow;
mod netlink;

/// From how many deletions on one dump is cheaper: each filtered deletion walks the kernel's whole table, as a dump does.
const MANY: usize = 8;

/// What failed in connection tracking.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error(
        "cannot open a netlink socket to connection tracking (CAP_NET_ADMIN and the module nf_conntrack_netlink are needed)"
    )]
    Open(#[source] io::Error),
    /// The flows can't be listed.
    #[error("cannot list the {family} UDP flows")]
    List {
        /// Of which family.
        family: IpFamily,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Flows can't be deleted.
    #[error("cannot delete the UDP flows that dialled {dialled} and lead to {to}")]
    Delete {
        /// What was dialled.
        dialled: SocketAddr,
        /// Where they lead.
        to: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Whether the kernel is known to lack filtered deletion (Linux before 6.11). A kernel does not learn it later.
static LACKS_FILTER: AtomicBool = AtomicBool::new(false);

/// Deletes stale flows. Returns how many deletions the kernel was asked for and did: one may have taken several flows or,
/// where the kernel filters by itself, none.
///
/// # Errors
/// When the kernel can't be asked or refuses; some of the flows may be deleted then.
pub fn delete(stale: &[StaleFlows]) -> Result<usize, Error> {
    if stale.is_empty() {
        return Ok(0);
    }
    let mut conntrack = Conntrack::open().map_err(Error::Open)?;
    let pairs: BTreeSet<_> = stale.iter().flat_map(pairs).collect();
    let (mut deleted, mut exact) = (0, BTreeSet::new());
    let filters = pairs.iter().filter(|(dialled, _)| dialled.is_ipv4()).count() < MANY;
    for (dialled, to) in pairs {
        match filters && delete_filtered(&mut conntrack, dialled, to)? {
            true => deleted += 1,
            false => drop(exact.insert((dialled, to))),
        }
    }
    Ok(deleted + delete_exactly(&mut conntrack, |dialled, to| exact.contains(&(dialled, to)), &families(&exact))?)
}

/// Deletes every UDP flow that dialled a frontend of the snapshot and leads elsewhere than to an endpoint that serves
/// it: what a proxy that was killed has left undone. Returns how many.
///
/// # Errors
/// When the kernel can't be asked or refuses; some of the flows may be deleted then.
pub fn reconcile(snapshot: &Snapshot) -> Result<usize, Error> {
    let mut serving: BTreeMap<SocketAddr, BTreeSet<SocketAddr>> = BTreeMap::new();
    for service_port in snapshot.service_ports.values().filter(|it| it.name.protocol == Protocol::Udp) {
        for frontend in &service_port.frontends {
            let address = SocketAddr::new(frontend.ip, frontend.port);
            serving.insert(address, flow::serving(service_port, frontend.family()));
        }
    }
    if serving.is_empty() {
        return Ok(0);
    }
    let mut conntrack = Conntrack::open().map_err(Error::Open)?;
    let is_stale = |dialled, to| serving.get(&dialled).is_some_and(|serving| !serving.contains(&to));
    let families =
        IpFamily::ALL.into_iter().filter(|family| serving.keys().any(|it| IpFamily::from(it.ip()) == *family));
    delete_exactly(&mut conntrack, is_stale, &families.collect())
}

/// Whether the kernel did it.
fn delete_filtered(conntrack: &mut Conntrack, dialled: SocketAddr, to: SocketAddr) -> Result<bool, Error> {
    // IPv6 filters can't be trusted: see `Conntrack::delete_filtered`.
    if dialled.is_ipv6() || LACKS_FILTER.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let outcome = conntrack.delete_filtered(dialled, to).map_err(|source| Error::Delete { dialled, to, source })?;
    if outcome == Filtered::Unknown {
        LACKS_FILTER.store(true, Ordering::Relaxed);
        tracing::debug!("the kernel lacks filtered deletion of flows; they are listed and deleted one by one");
    }
    Ok(outcome == Filtered::Done)
}

/// Lists the flows of these families and deletes those that are stale, one by one.
fn delete_exactly(
    conntrack: &mut Conntrack,
    is_stale: impl Fn(SocketAddr, SocketAddr) -> bool,
    families: &BTreeSet<IpFamily>,
) -> Result<usize, Error> {
    let mut deleted = 0;
    for family in families {
        let flows = conntrack
            .flows(*family, |flow| is_stale(flow.dialled, flow.answers))
            .map_err(|source| Error::List { family: *family, source })?;
        for flow in flows {
            let (dialled, to) = (flow.dialled, flow.answers);
            let was_there = conntrack.delete(&flow).map_err(|source| Error::Delete { dialled, to, source })?;
            tracing::debug!(%dialled, %to, "deleted a stale UDP flow");
            deleted += usize::from(was_there);
        }
    }
    Ok(deleted)
}

fn pairs(stale: &StaleFlows) -> impl Iterator<Item = (SocketAddr, SocketAddr)> + '_ {
    let dialled = SocketAddr::new(stale.frontend.ip, stale.frontend.port);
    stale.to.iter().map(move |to| (dialled, *to))
}

fn families(pairs: &BTreeSet<(SocketAddr, SocketAddr)>) -> BTreeSet<IpFamily> {
    pairs.iter().map(|(dialled, _)| dialled.ip().into()).collect()
}
