//! Stale UDP flows: which connection-tracking entries lead to endpoints that no longer serve, and their deletion.
//!
//! - `flow`: which flows a change leaves stale; pure. Every backend that translates by connection tracking asks it.
//! - `cleaner`: what is still to be done about them.
//! - `netlink`: connection tracking over nfnetlink.
//!
//! Never a flush: other programs' flows, and other frontends', are not ours to cut.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tollgate_model::name::IpFamily;
use tollgate_model::snapshot::Snapshot;

use self::netlink::{Conntrack, Filtered};

pub(crate) use self::cleaner::Cleaner;
#[cfg(test)]
pub(crate) use self::cleaner::Job;
pub(crate) use self::flow::Serving;
pub use self::flow::{StaleFlows, stale_flows};

mod cleaner;
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

/// Deletes every UDP flow that dialled what the snapshot has (frontends and NodePorts) and leads elsewhere than to an
/// endpoint that serves it: what a proxy that was killed has left undone, or a time without our rules. And of what the
/// snapshot does not have, the flows in `gone`. Returns how many. Costs one list of the UDP flows of each family, and a
/// look-up each.
///
/// # Errors
/// When the kernel can't be asked or refuses; some of the flows may be deleted then.
pub fn reconcile(snapshot: &Snapshot, gone: &[StaleFlows]) -> Result<usize, Error> {
    let serving = Serving::new(snapshot);
    let gone: HashSet<_> = gone.iter().flat_map(pairs).collect();
    let is_gone_from = |family| gone.iter().any(|(dialled, _)| IpFamily::from(dialled.ip()) == family);
    let families = IpFamily::ALL.into_iter().filter(|family| serving.has(*family) || is_gone_from(*family));
    let families: BTreeSet<_> = families.collect();
    if families.is_empty() {
        return Ok(0);
    }
    let mut conntrack = Conntrack::open().map_err(Error::Open)?;
    let is_stale = |dialled, to| match serving.is_served(dialled, to) {
        Some(is_served) => !is_served,
        None => gone.contains(&(dialled, to)),
    };
    delete_exactly(&mut conntrack, is_stale, &families)
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
    stale.to.iter().map(|to| (stale.dialled, *to))
}

fn families(pairs: &BTreeSet<(SocketAddr, SocketAddr)>) -> BTreeSet<IpFamily> {
    pairs.iter().map(|(dialled, _)| dialled.ip().into()).collect()
}
