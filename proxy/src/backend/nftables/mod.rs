//! The nftables backend: two tables, `ip tollgate` and `ip6 tollgate`, whose maps hold all Services. The packet's path,
//! and why it is laid out like this: README.md beside this file.
//!
//! ```text
//! Snapshot ──▶ plan ──▶ object::diff ──▶ transaction ──▶ encode ──▶ kernel
//!                            ▲                                        │
//!                            └────────────── readback ◀───────────────┘  only for a full sync
//! ```
//!
//! - `word`: the 32 bits that a packet carries from rule to rule.
//! - `object`: the kernel objects of a table, and what differs between two sets of them.
//! - `chain`: the layout's sets and rules.
//! - `plan`, `placement`, `number`: Service ports to objects.
//! - `transaction`: what one commit changes, and smaller ones when it is refused.
//! - `encode`, `readback`, `element`: objects to the kernel's messages, and back.
//! - `kernel`: the socket; the crate `tollgate-nftables` has what goes over it.
//! - `observe`: what the kernel holds, by Service port.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;

use tollgate_model::diff::{Change, diff};
use tollgate_model::name::{IpFamily, ServicePortName};
use tollgate_model::snapshot::{ServicePort, Snapshot};

use self::kernel::{Generation, Kernel};
use self::object::{Key, Objects, SetName, Value};
use self::plan::{Edit, Plan};
use self::readback::Listed;
use self::transaction::TableChanges;
use super::{Backend, DetectLocal, NodeConfig, Observed, Report, Scope, bridge, forward};
use crate::conntrack;
use tollgate_nftables::rule::Rule;

pub use self::kernel::Error as KernelError;

mod chain;
mod element;
mod encode;
mod kernel;
mod number;
mod object;
mod observe;
mod placement;
mod plan;
mod readback;
mod transaction;
mod word;

#[cfg(test)]
mod tests;

/// Where the kernel says whether it takes TCP packets outside the window for valid ones.
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// The nftables backend of the network namespace it was opened in.
#[derive(Debug)]
pub struct Nftables {
    kernel: Kernel,
    /// One for each family that the node has.
    plans: Vec<Plan>,
    /// The families that it has not.
    other_families: Vec<IpFamily>,
    /// What the plans hold.
    planned: Snapshot,
    /// Service ports of that which could not be realised, and why.
    refused: Refused,
    /// What the last sync that succeeded left in the kernel: its snapshot but for what was refused.
    synced: Option<Snapshot>,
    /// Whether local pods are told by the node's pod CIDRs.
    needs_pod_cidrs: bool,
    /// Whether there are none of these.
    lacks_pod_cidrs: bool,
    /// Whether the kernel holds what the plans say, as far as is known. If not, only a full sync will do.
    is_settled: bool,
    /// Whether it holds that and nothing else, as far as is known.
    is_exact: bool,
    /// Where the kernel's tables stood when it did, if nobody else changed any table meanwhile. As long as they stand there,
    /// a comparison would find nothing.
    generation: Option<Generation>,
}

type Refused = BTreeMap<ServicePortName, String>;

/// Why the nftables backend could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel lacks something that the rules need.
    #[error("this machine does not take Tollgate's {family} rules (Linux 5.10 and CAP_NET_ADMIN are needed)")]
    Unsupported {
        /// The family.
        family: IpFamily,
        /// What the kernel says.
        #[source]
        source: KernelError,
    },
    /// Bridged packets would bypass the rules.
    #[error(transparent)]
    Bridge(#[from] bridge::Error),
    /// Something is left.
    #[error("cleanup is not complete: {}", join(.0))]
    Cleanup(Vec<KernelError>),
}

impl Nftables {
    /// Opens the backend, and checks that this machine takes its rules. Changes no rule.
    ///
    /// # Errors
    /// When the machine lacks something.
    pub fn open(config: &NodeConfig) -> Result<Self, Error> {
        let drops_invalid = !is_tcp_liberal();
        let mut backend = Self::open_for_cleanup()?;
        backend.needs_pod_cidrs = config.detect_local == DetectLocal::NodeCidr;
        backend.other_families.retain(|family| !config.families.contains(family));
        let families = IpFamily::ALL.into_iter().filter(|family| config.families.contains(family));
        backend.plans = families.map(|family| Plan::new(family, config, drops_invalid)).collect();
        for plan in &backend.plans {
            let family = plan.style().family;
            let checked = backend.kernel.check(plan.style(), &plan.sample());
            checked.map_err(|source| Error::Unsupported { family, source })?;
        }
        bridge::ensure_calls_netfilter(&config.families)?;
        forward::warn_of_drop_policies(&config.families);
        Ok(backend)
    }

    /// Opens a backend that is only asked to clean up or to observe.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open_for_cleanup() -> Result<Self, Error> {
        Ok(Self {
            kernel: Kernel::open()?,
            plans: Vec::new(),
            other_families: IpFamily::ALL.to_vec(),
            planned: Snapshot::default(),
            refused: Refused::new(),
            synced: None,
            needs_pod_cidrs: false,
            lacks_pod_cidrs: false,
            is_settled: false,
            is_exact: false,
            generation: None,
        })
    }

    /// Every object that the kernel holds, one line each: what a sync writes, in more detail than [`Backend::observe`] tells.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn objects(&self) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        for family in IpFamily::ALL {
            let Listed { objects, .. } = self.kernel.list(family)?.unwrap_or_default();
            let table = chain::table(family);
            lines.extend(objects.iter().map(|(key, value)| match key {
                Key::Element(set, key) => format!("{table} {} {key} : {value}", set.as_str()),
                key => format!("{table} {key} : {value}"),
            }));
        }
        Ok(lines)
    }

    /// How often a table of the kernel was read as a whole, which takes long where there is much in it.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.kernel.reads()
    }

    fn sync_changes(&mut self, desired: &Snapshot, known: Option<Generation>) -> Result<Report, Error> {
        let edits = self.replan(desired, Scope::Changes);
        let mut tables = self.tables(edits.into_iter().map(Edit::changes));
        let changed = tables.iter().map(|table| table.changes.len()).sum();
        let before = self.kernel.generation()?;
        let transactions = self.commit(&mut tables)?;
        let after = self.generation_after(before, transactions)?;
        self.generation = after.filter(|_| known == Some(before));
        Ok(self.settle(desired, changed, Vec::new()))
    }

    /// Where the tables stand after so many transactions, unless somebody else has changed them since `before`.
    fn generation_after(&self, before: Generation, transactions: usize) -> Result<Option<Generation>, Error> {
        let expected = (0..transactions).fold(before, |generation, _| generation.next());
        Ok(Some(self.kernel.generation()?).filter(|after| *after == expected))
    }

    fn sync_full(&mut self, desired: &Snapshot, known: Option<Generation>) -> Result<Report, Error> {
        // Until this has succeeded, what differs from the plans need not be anybody's doing.
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        // What a process before this one left there; nobody else makes these tables.
        for family in self.other_families.iter().filter(|_| self.synced.is_none()) {
            self.kernel.delete(*family)?;
        }
        let before = self.kernel.generation()?;
        let is_untouched = is_exact && known == Some(before);
        let (mut listed, mut drifted, mut repaired) = (Vec::new(), 0, Vec::new());
        for plan in &mut self.plans {
            if is_untouched {
                listed.push(Arc::new(plan.objects()));
                plan.sweep();
                continue;
            }
            let table = self.kernel.list(plan.style().family)?;
            let is_missing = table.is_none();
            let objects = Arc::new(table.map(|table| table.objects).unwrap_or_default());
            if is_exact {
                let drift = object::diff(&objects, &plan.objects());
                drifted += drift.len();
                let table = plan.style().table();
                match is_missing {
                    true => repaired.push(format!("table {table} was missing")),
                    false => repaired.extend(drift.describe().map(|line| format!("{table}: {line}"))),
                }
            }
            plan.sweep();
            if self.synced.is_none() {
                plan.adopt(objects.clone());
            }
            listed.push(objects);
        }
        self.replan(desired, Scope::Full);
        for (plan, listed) in self.plans.iter_mut().zip(&listed) {
            plan.forget_listed();
            if listed.is_empty() {
                plan.add_spares();
            }
        }
        let changes = self.plans.iter().zip(listed).map(|(plan, listed)| {
            let mut listed = Arc::unwrap_or_clone(listed);
            forget_what_goes_with_its_set(&mut listed, plan);
            object::into_changes(listed, plan.objects())
        });
        let tables = self.tables(changes.collect::<Vec<_>>());
        let changed = tables.iter().map(|table| table.changes.len()).sum::<usize>().saturating_sub(drifted);
        let transactions = self.commit_or_isolate(tables)?;
        let is_whole = transactions.is_some();
        self.generation = match transactions {
            Some(transactions) => self.generation_after(before, transactions)?,
            None => None,
        };
        let report = self.settle(desired, changed, repaired);
        self.is_exact = is_whole;
        Ok(report)
    }

    /// Brings the plans to what is desired. For a full sync, what could not be realised is tried again, and what changes is
    /// not gathered.
    fn replan(&mut self, desired: &Snapshot, scope: Scope) -> Vec<Edit> {
        let planned = std::mem::replace(&mut self.planned, desired.clone());
        let mut changes: BTreeMap<&ServicePortName, Option<&ServicePort>> =
            diff(&planned.service_ports, &desired.service_ports)
                .map(|change| match change {
                    Change::Added(name, new) | Change::Changed(name, _, new) => (name, Some(new)),
                    Change::Removed(name, _) => (name, None),
                })
                .collect();
        for (name, wanted) in &changes {
            tracing::debug!(service = %name, is_wanted = wanted.is_some(), "changes");
        }
        if scope == Scope::Full {
            let refused = self.refused.keys().filter_map(|name| desired.service_ports.get_key_value(name));
            changes.extend(refused.map(|(name, wanted)| (name, Some(wanted.as_ref()))));
        }
        self.refused.retain(|name, _| !changes.contains_key(name));
        let changes: Vec<_> = changes.into_iter().collect();
        self.warn_without_pod_cidrs(desired);
        let mut edits = Vec::new();
        for plan in &mut self.plans {
            let mut edit = if scope == Scope::Full { Edit::ignored() } else { Edit::default() };
            plan.update_node(desired, &mut edit);
            for (name, reason) in plan.update(&changes, &mut edit) {
                self.refused.insert(name, reason.to_string());
            }
            edits.push(edit);
        }
        edits
    }

    /// Once for each time that they are missing.
    fn warn_without_pod_cidrs(&mut self, desired: &Snapshot) {
        let lacks = self.needs_pod_cidrs && desired.pod_cidrs.is_empty();
        if lacks && !self.lacks_pod_cidrs {
            tracing::warn!(
                "detect-local-mode is NodeCIDR and this node's Node object has no pod CIDRs: until it has, no traffic counts as \
                 local pods', and none is masqueraded for being off-cluster",
            );
        }
        self.lacks_pod_cidrs = lacks;
    }

    fn tables(&self, changes: impl IntoIterator<Item = object::Changes>) -> Vec<TableChanges> {
        let styles = self.plans.iter().map(Plan::style);
        styles.zip(changes).map(|(style, changes)| TableChanges { style: style.clone(), changes }).collect()
    }

    /// Returns in how many transactions. Leaves of `tables` what the last of them has.
    fn commit(&self, tables: &mut [TableChanges]) -> Result<usize, KernelError> {
        let chains = transaction::take_new_chains(tables);
        let mut transactions = 0;
        for part in [&chains, &*tables].into_iter().filter(|part| !is_empty(part)) {
            self.kernel.commit(part)?;
            transactions += 1;
        }
        Ok(transactions)
    }

    /// Returns in how many transactions, if all of it was taken.
    fn commit_or_isolate(&mut self, tables: Vec<TableChanges>) -> Result<Option<usize>, KernelError> {
        let (mut stages, mut transactions) = (transaction::stages(tables).into_iter(), 0);
        let tables = loop {
            let Some(mut stage) = stages.next() else { return Ok(Some(transactions)) };
            match self.commit(&mut stage) {
                Ok(committed) => {
                    transactions += committed;
                    if stages.len() > 0 {
                        std::thread::sleep(transaction::TURN);
                    }
                }
                Err(KernelError::Refused { cause, .. }) => {
                    tracing::warn!(
                        cause,
                        "the kernel refused a transaction; looking for the Services that it is about"
                    );
                    break transaction::rejoin(std::iter::once(stage).chain(stages));
                }
                Err(error) => return Err(error),
            }
        };
        let owner = |(family, number)| {
            let plan = self.plans.iter().find(|plan| plan.style().family == family)?;
            plan.owner(number).cloned()
        };
        let refused = transaction::commit_apart(tables, |it| owner(it).is_some(), |tables| self.kernel.commit(tables))?;
        let refused: Vec<_> = refused.into_iter().filter_map(|(it, cause)| Some((owner(it)?, cause))).collect();
        for (name, cause) in refused {
            for plan in &mut self.plans {
                plan.update(&[(&name, None)], &mut Edit::ignored());
            }
            self.refused.insert(name, cause);
        }
        Ok(None)
    }

    /// After a commit: what is now in the kernel.
    fn settle(&mut self, desired: &Snapshot, changed: usize, repaired: Vec<String>) -> Report {
        let synced = desired.without(self.refused.keys());
        let stale = self.synced.as_ref().map(|before| conntrack::stale_flows(before, &synced)).unwrap_or_default();
        self.synced = Some(synced);
        self.is_settled = true;
        let refused = self.refused.iter().map(|(name, reason)| (name.clone(), reason.clone())).collect();
        Report { changed, repaired, refused, stale, destroyed: 0 }
    }
}

impl Backend for Nftables {
    fn sync(&mut self, desired: &Snapshot, scope: Scope) -> Result<Report, super::Error> {
        // What happens from here to the commit is known again only once it has succeeded.
        let is_settled = std::mem::replace(&mut self.is_settled, false);
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        let known = self.generation.take();
        if scope == Scope::Changes && is_settled {
            match self.sync_changes(desired, known) {
                Ok(report) => {
                    self.is_exact = is_exact;
                    return Ok(report);
                }
                // The kernel may not hold what we left there.
                Err(Error::Kernel(KernelError::Refused { cause, .. })) => {
                    tracing::warn!(cause, "the kernel refused a change; comparing with what the kernel holds");
                }
                Err(error) => return Err(error.into()),
            }
        } else {
            self.is_exact = is_exact;
        }
        Ok(self.sync_full(desired, known)?)
    }

    fn observe(&self) -> Result<Observed, super::Error> {
        let mut observed = Observed::default();
        for family in IpFamily::ALL {
            let listed = self.kernel.observe(family).map_err(Error::from)?.unwrap_or_default();
            observe::observe(family, &listed, &mut observed);
        }
        observed.service_ports.sort();
        Ok(observed)
    }

    fn cleanup(&mut self) -> Result<(), super::Error> {
        (self.is_settled, self.is_exact, self.generation) = (false, false, None);
        let errors: Vec<_> = IpFamily::ALL.into_iter().filter_map(|family| self.kernel.delete(family).err()).collect();
        if errors.is_empty() { Ok(()) } else { Err(Error::Cleanup(errors).into()) }
    }
}

#[cfg(test)]
impl Error {
    /// Some error, for tests of who handles it.
    pub(crate) fn for_test() -> Self {
        Self::Kernel(KernelError::Open(std::io::Error::other("a test")))
    }
}

/// A set that is declared otherwise than it should be, as another version did it, is made anew: its elements go with
/// it, and no rule may name it meanwhile, so that all rules are written again.
fn forget_what_goes_with_its_set(listed: &mut Objects, plan: &Plan) {
    let is_other = |set: &SetName| {
        let found = listed.get(&Key::Set(set.clone()));
        found.is_some_and(|found| *found != Value::Set(plan.style().set(set).shape.into()))
    };
    let others: Vec<_> = SetName::ALL.into_iter().filter(is_other).collect();
    if others.is_empty() {
        return;
    }
    listed.retain(|key, _| !matches!(key, Key::Element(set, _) if others.contains(set)));
    for value in listed.values_mut() {
        if let Value::Chain(chain) = value {
            // Differs from any chain of ours.
            chain.rules = vec![Rule::new()];
        }
    }
}

fn is_empty(tables: &[TableChanges]) -> bool {
    tables.iter().all(|table| table.changes.is_empty())
}

/// Whether INVALID packets may pass, as they may for kube-proxy. Where it can't be read, the kernel is at its default.
fn is_tcp_liberal() -> bool {
    fs::read_to_string(TCP_BE_LIBERAL).is_ok_and(|value| value.trim() != "0")
}

fn join(errors: &[impl fmt::Display]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
