//! The eBPF backend: maps, and programs at a cgroup that translate a connection when a process makes it. The connection's path,
//! and why it is laid out like this: README.md beside this file.
//!
//! ```text
//! Snapshot ──▶ plan ──▶ Changes ──▶ kernel ──▶ maps
//!                ▲                    │
//!                └────── Objects ◀────┘  only for a full sync
//! ```
//!
//! - `slot`, `placement`, `plan`: Service ports to entries of the maps.
//! - `object`: the entries, what differs between two sets of them, and in which order that is written.
//! - `kernel`, `bpf`, `place`: maps, programs and links; the system call; where on the machine they are.
//! - `socket`, `netns`: connected sockets whose endpoint is gone, in every network namespace.
//! - `counter`: what the programs count.
//! - `observe`: what the maps hold, by Service port.
//!
//! What made no system call on this node, packets from outside and of pods with kernels of their own, meets the rules of the
//! nftables backend, which has the whole snapshot too.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_ebpf_abi::{AddressPort, SocketValue};
use tollgate_model::diff::{Change, diff};
use tollgate_model::endpoint::Endpoint;
use tollgate_model::name::{IpFamily, Protocol, ServicePortName};
use tollgate_model::snapshot::{ServicePort, Snapshot};

use self::kernel::{Kernel, Maps};
use self::object::Objects;
use self::place::Pins;
use self::plan::Plan;
use super::nftables::{self, Nftables};
use super::{Backend, NodeConfig, Observed, Report, Scope};
use crate::conntrack::{Serving, StaleFlows};

pub use self::counter::{Collector, Counter, Counters};
pub use self::kernel::Error as KernelError;
pub use self::place::DEFAULT_BPF_ROOT;

mod bpf;
mod counter;
mod kernel;
mod netns;
mod object;
mod observe;
mod place;
mod placement;
mod plan;
mod slot;
mod socket;

#[cfg(test)]
mod tests;

/// The programs, as `cargo xtask ebpf` has built them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tollgate.o"));

/// What the mode is told besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EbpfConfig {
    /// The cgroup whose sockets the programs see; `None`: the root of the cgroup2 file system that is mounted.
    pub cgroup: Option<PathBuf>,
    /// The directory of the pins.
    pub bpf_root: PathBuf,
    /// Whether TCP connections to endpoints that no longer serve are closed, as UDP sockets always are.
    pub close_stale_connections: bool,
}

/// The eBPF backend of the machine and the network namespace that it was opened in.
#[derive(Debug)]
pub struct Ebpf {
    /// A backend that only looks or cleans up has none.
    kernel: Option<Kernel>,
    pins: Pins,
    /// What packets meet.
    packets: Nftables,
    plan: Plan,
    /// What the plan holds.
    planned: Snapshot,
    /// Service ports of that which could not be realised, and why.
    refused: BTreeMap<ServicePortName, String>,
    /// Whether this process has written the maps once.
    has_synced: bool,
    /// Whether the kernel holds what the plan says, as far as is known. If not, only a full sync will do.
    is_settled: bool,
    /// Whether it holds that and nothing else, as far as is known.
    is_exact: bool,
    /// Whether every socket is to be looked at: which are stale is not known.
    owes_sockets: bool,
    closes_connections: bool,
    start: Instant,
}

/// Why the eBPF backend could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket layer.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The packet layer.
    #[error("the nftables tables that see to packets in ebpf mode")]
    Packets(#[source] Box<super::Error>),
    /// Something is left.
    #[error("cleanup is not complete: {}", join(.0))]
    Cleanup(Vec<(PathBuf, std::io::Error)>),
}

/// Which connected sockets have lost their endpoint.
#[derive(Debug, Default)]
struct Stale {
    /// What was dialled, and where it led.
    udp: HashSet<(SocketAddr, SocketAddr)>,
    /// By Service port and endpoint; empty where those may go on.
    tcp: HashSet<(u32, AddressPort)>,
}

impl Default for EbpfConfig {
    fn default() -> Self {
        Self { cgroup: None, bpf_root: DEFAULT_BPF_ROOT.into(), close_stale_connections: false }
    }
}

impl Ebpf {
    /// Opens the backend, and checks that this machine has what it takes. Changes no rule and attaches nothing.
    ///
    /// # Errors
    /// When the machine lacks something; the message says what, and how to get it.
    pub fn open(config: &NodeConfig) -> Result<Self, Error> {
        Self::open_with(config, OBJECT)
    }

    /// As [`Ebpf::open`], with programs of another build, such as those of another version.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(config: &NodeConfig, object: &'static [u8]) -> Result<Self, Error> {
        let EbpfConfig { cgroup, bpf_root, close_stale_connections } = &config.ebpf;
        let kernel = Kernel::open(object, cgroup.as_deref(), bpf_root)?;
        let packets = Nftables::open(config).map_err(packets_error)?;
        Ok(Self {
            kernel: Some(kernel),
            packets,
            plan: Plan::new(config),
            closes_connections: *close_stale_connections,
            ..Self::open_for_cleanup(config)?
        })
    }

    /// Opens a backend that is only asked to clean up or to observe.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open_for_cleanup(config: &NodeConfig) -> Result<Self, Error> {
        Ok(Self {
            kernel: None,
            pins: Pins::new(&config.ebpf.bpf_root),
            packets: Nftables::open_for_cleanup().map_err(packets_error)?,
            plan: Plan::new(config),
            planned: Snapshot::default(),
            refused: BTreeMap::new(),
            has_synced: false,
            is_settled: false,
            is_exact: false,
            owes_sockets: true,
            closes_connections: false,
            start: Instant::now(),
        })
    }

    /// Takes the programs away and leaves packets' rules to the mode that has them now.
    ///
    /// # Errors
    /// When something is left.
    pub fn leave(&mut self) -> Result<(), Error> {
        self.pins.remove().map_err(Error::Cleanup)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn kernel(&mut self) -> Result<&mut Kernel, Error> {
        self.kernel.as_mut().ok_or_else(|| KernelError::not_opened().into())
    }

    fn sync_changes(&mut self, desired: &Snapshot) -> Result<(usize, HashSet<(u32, AddressPort)>), Error> {
        let planned = std::mem::replace(&mut self.planned, desired.clone());
        let changes = between(&planned, desired);
        let stale = self.stale_connections(&planned, &changes);
        self.refused.retain(|name, _| !changes.iter().any(|(changed, _)| changed == &name));
        let now = self.now();
        let (changes, refused) = self.plan.update(desired, &changes, now);
        self.refused.extend(refused.into_iter().map(|(name, reason)| (name, reason.to_string())));
        let sizes = self.plan.sizes();
        self.kernel()?.commit(&changes, sizes)?;
        self.plan.committed(self.start.elapsed());
        Ok((changes.len(), stale))
    }

    fn sync_full(&mut self, desired: &Snapshot) -> Result<(usize, Vec<String>), Error> {
        // Until this has succeeded, what differs from the plan need not be anybody's doing.
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        let mut listed = self.kernel()?.list()?;
        let (mut repaired, mut drifted) = (Vec::new(), 0);
        if let Some(listed) = listed.as_mut().filter(|_| is_exact) {
            let wanted = self.plan.objects();
            let drift = owned(listed, &wanted).changes_to(&wanted);
            drifted = drift.len();
            repaired.extend(drift.describe());
        }
        if !self.has_synced {
            match &listed {
                Some(listed) => {
                    quiesce();
                    self.plan.adopt(Arc::new(listed.clone()));
                }
                // No program has translated anything yet.
                None => self.owes_sockets = false,
            }
        }
        self.replan_fully(desired);
        self.plan.forget_listed();
        let wanted = self.plan.objects();
        let listed = listed.map(|listed| owned(&listed, &wanted)).unwrap_or_default();
        let changes = listed.changes_to(&wanted);
        let sizes = self.plan.sizes();
        let kernel = self.kernel()?;
        kernel.commit(&changes, sizes)?;
        kernel.ensure_programs()?;
        if is_exact {
            repaired.extend(kernel.repair()?);
        } else {
            kernel.sweep_other_layouts();
        }
        self.plan.committed(self.start.elapsed());
        self.sweep_counters()?;
        (self.has_synced, self.is_exact) = (true, true);
        Ok((changes.len().saturating_sub(drifted), repaired))
    }

    /// Brings the plan to what is desired, what could not be realised included.
    fn replan_fully(&mut self, desired: &Snapshot) {
        let planned = std::mem::replace(&mut self.planned, desired.clone());
        let mut changes: BTreeMap<_, _> = between(&planned, desired).into_iter().collect();
        let again = self.refused.keys().filter_map(|name| desired.service_ports.get_key_value(name));
        changes.extend(again.map(|(name, wanted)| (name, Some(wanted.as_ref()))));
        let now = self.now();
        let changes: Vec<_> = changes.into_iter().collect();
        let (_, refused) = self.plan.update(desired, &changes, now);
        self.refused = refused.into_iter().map(|(name, reason)| (name, reason.to_string())).collect();
    }

    /// Which endpoints TCP connections may lose by these changes, if those are to be closed.
    fn stale_connections(
        &self,
        planned: &Snapshot,
        changes: &[(&ServicePortName, Option<&ServicePort>)],
    ) -> HashSet<(u32, AddressPort)> {
        let mut gone = HashSet::new();
        if !self.closes_connections {
            return gone;
        }
        for (name, after) in changes.iter().filter(|(name, _)| name.protocol == Protocol::Tcp) {
            let Some(before) = planned.service_ports.get(*name) else { continue };
            for family in IpFamily::ALL {
                let Some(id) = self.plan.id(name, family) else { continue };
                let after = after.map(|after| after.endpoints(family));
                let serves = |it: &Endpoint| after.is_some_and(|after| contains(&after.serving, it.ip, it.port));
                let endpoints = before.endpoints(family).serving.iter();
                gone.extend(endpoints.filter(|it| !serves(it)).map(|it| (id, object::address_port(it.ip, it.port))));
            }
        }
        gone
    }

    /// Destroys the connected sockets that have lost their endpoint; what fails is tried again with the next sync.
    fn destroy(&mut self, desired: &Snapshot, stale: &Stale) -> usize {
        let Some(kernel) = &mut self.kernel else { return 0 };
        let mut results = Vec::new();
        if self.owes_sockets {
            let serving = Serving::new(desired);
            // Of a frontend that is gone, everything.
            let is_served =
                |it: &SocketValue| serving.is_served(it.frontend.into(), it.endpoint.into()).unwrap_or(false);
            results.push(kernel.destroy_sockets(Protocol::Udp, |it| !is_served(it)));
        } else if !stale.udp.is_empty() {
            let is_stale = |it: &SocketValue| stale.udp.contains(&(it.frontend.into(), it.endpoint.into()));
            results.push(kernel.destroy_sockets(Protocol::Udp, is_stale));
        }
        if self.owes_sockets && self.closes_connections {
            let placements = self.plan.placements().map(|(name, family, it)| (it.id, (name, family)));
            let by_id: HashMap<_, _> = placements.collect();
            let is_served = |it: &SocketValue| {
                let (name, family) = by_id.get(&it.service_id)?;
                let endpoint = SocketAddr::from(it.endpoint);
                let sets = desired.service_ports.get(*name)?.endpoints(*family);
                Some(contains(&sets.serving, endpoint.ip(), endpoint.port()))
            };
            results.push(kernel.destroy_sockets(Protocol::Tcp, |it| !is_served(it).unwrap_or(false)));
        } else if !stale.tcp.is_empty() {
            let is_stale = |it: &SocketValue| stale.tcp.contains(&(it.service_id, it.endpoint));
            results.push(kernel.destroy_sockets(Protocol::Tcp, is_stale));
        }
        let (mut destroyed, mut failures) = (0, Vec::new());
        for result in results {
            match result {
                Ok((count, failed)) => {
                    destroyed += count;
                    failures.extend(failed);
                }
                Err(error) => failures.push(crate::sync::chain(&error)),
            }
        }
        for failure in &failures {
            tracing::error!(
                failure,
                "sockets whose endpoint is gone could not be destroyed: their datagrams may go nowhere until their owners \
                 connect anew; tried again with the next sync"
            );
        }
        self.owes_sockets = !failures.is_empty();
        destroyed
    }

    /// Deletes counters of who is gone.
    fn sweep_counters(&self) -> Result<(), Error> {
        let Some(maps) = self.kernel.as_ref().and_then(Kernel::maps) else { return Ok(()) };
        let placements: HashMap<_, _> = self.plan.placements().map(|(_, _, it)| (it.id, it)).collect();
        let is_counted = |service: u32, endpoint: u32| {
            let placement = placements.get(&service);
            service == 0 || placement.is_some_and(|it| endpoint == 0 || it.has_endpoint(endpoint))
        };
        Ok(counter::sweep(maps, is_counted)?)
    }
}

impl Backend for Ebpf {
    fn sync(&mut self, desired: &Snapshot, scope: Scope) -> Result<Report, super::Error> {
        // What happens from here to the commit is known again only once it has succeeded.
        let is_settled = std::mem::replace(&mut self.is_settled, false);
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        // A new Service is known to packets before a socket is told of it; what they do meanwhile with one that goes, or for which
        // there are other endpoints, is right as well.
        let mut report = self.packets.sync(desired, scope).map_err(|error| Error::Packets(Box::new(error)))?;
        let mut stale = Stale { udp: udp(&report.stale), ..Stale::default() };
        let scope = if is_settled { scope } else { Scope::Full };
        self.owes_sockets |= !is_settled;
        let (changed, repaired) = match scope {
            Scope::Changes => {
                let changed;
                (changed, stale.tcp) = self.sync_changes(desired)?;
                self.is_exact = is_exact;
                (changed, Vec::new())
            }
            Scope::Full => {
                self.is_exact = is_exact;
                self.sync_full(desired)?
            }
        };
        self.is_settled = true;
        self.owes_sockets |= !repaired.is_empty();
        report.changed += changed;
        report.repaired.extend(repaired);
        report.refused.extend(self.refused.iter().map(|(name, reason)| (name.clone(), reason.clone())));
        report.destroyed = self.destroy(desired, &stale);
        Ok(report)
    }

    fn observe(&self) -> Result<Observed, super::Error> {
        let maps = Maps::open(&self.pins.maps()).map_err(Error::from)?;
        let objects = maps.map(|maps| maps.list()).transpose().map_err(Error::from)?;
        Ok(objects.map(|objects| observe::observe(&objects)).unwrap_or_default())
    }

    fn cleanup(&mut self) -> Result<(), super::Error> {
        (self.is_settled, self.is_exact) = (false, false);
        let left = self.leave();
        let packets = self.packets.cleanup();
        left?;
        packets
    }
}

/// What differs between two snapshots.
fn between<'a>(before: &'a Snapshot, after: &'a Snapshot) -> Vec<(&'a ServicePortName, Option<&'a ServicePort>)> {
    let changes = diff(&before.service_ports, &after.service_ports).map(|change| match change {
        Change::Added(name, new) | Change::Changed(name, _, new) => (name, Some(new)),
        Change::Removed(name, _) => (name, None),
    });
    let changes: Vec<_> = changes.collect();
    for (name, wanted) in &changes {
        tracing::debug!(service = %name, is_wanted = wanted.is_some(), "changes");
    }
    changes
}

/// What is listed, but for slots that nobody wants: what those hold is nobody's business.
fn owned(listed: &Objects, wanted: &Objects) -> Objects {
    let mut owned = listed.clone();
    owned.slots.retain(|slot, _| wanted.slots.contains_key(slot));
    owned
}

/// Where UDP sockets lead that have lost their endpoint.
fn udp(stale: &[StaleFlows]) -> HashSet<(SocketAddr, SocketAddr)> {
    let pairs = stale.iter().flat_map(|it| it.to.iter().map(|to| (it.dialled, *to)));
    // Where it led nowhere, it was not translated.
    pairs.filter(|(dialled, to)| dialled != to).collect()
}

/// Whether an ordered list has that endpoint.
fn contains(endpoints: &[Endpoint], ip: std::net::IpAddr, port: u16) -> bool {
    endpoints.binary_search_by(|it| (it.ip, it.port).cmp(&(ip, port))).is_ok()
}

/// Waits until no program is running that began before.
fn quiesce() {
    // SAFETY: no pointers.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // A kernel with processors that are left alone (nohz_full) does not have it.
        std::thread::sleep(slot::REST);
    }
}

/// Waits for an RCU grace period (`sys_membarrier`, kernel/sched/membarrier.c), and programs of cgroups run in such a section.
const MEMBARRIER_CMD_GLOBAL: nix::libc::c_int = 1;

fn packets_error(error: nftables::Error) -> Error {
    Error::Packets(Box::new(error.into()))
}

fn join(errors: &[(PathBuf, std::io::Error)]) -> String {
    let errors: BTreeSet<_> = errors.iter().map(|(path, error)| format!("{}: {error}", path.display())).collect();
    errors.into_iter().collect::<Vec<_>>().join("; ")
}
