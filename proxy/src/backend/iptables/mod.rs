//! The iptables backend: chains in the tables nat and filter of both families, and a few sets. The packet's path, and why it
//! is laid out like this: README.md beside this file.
//!
//! ```text
//! Snapshot ──▶ plan ──Changes──▶ transaction ──▶ kernel ──▶ ipset, iptables-restore --noflush
//!                ▲                                  │
//!                └─────────── readback ◀────────────┘  only for a full sync
//! ```
//!
//! - `name`: what chains and sets are called, and which are ours.
//! - `style`: the chains that there is one of.
//! - `service`: one Service port to its chains, its frontends and its members of sets.
//! - `tree`: frontends to a tree of chains.
//! - `plan`: all of that, and what a change of it changes; `object` has the words.
//! - `transaction`: changes to texts, in an order in which every state on the way is harmless.
//! - `kernel`, `readback`, `observe`: the commands and what they print.
//! - `variant`: which iptables the node uses.
//!
//! The `iptables` crate would run the command of one name for each rule, and can't choose its variant. The eight rules of
//! built-in chains are in the same listing and the same transaction as all others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;

use tollgate_model::diff::{Change, diff};
use tollgate_model::name::{IpFamily, ServicePortName};
use tollgate_model::snapshot::Snapshot;

use self::kernel::{Kernel, Saved};
use self::object::Changes;
use self::plan::Plan;
use self::style::Style;
use self::transaction::{BatchSize, Step};
use super::{Backend, NodeConfig, Observed, Report, Scope, bridge};
use crate::conntrack;

pub use self::kernel::Error as CommandError;
pub(super) use self::kernel::legacy_forward_drop;
pub use self::variant::Variant;

pub(super) mod kernel;
pub(super) mod name;
mod object;
mod observe;
mod plan;
pub(super) mod readback;
mod service;
pub(super) mod style;
pub(super) mod transaction;
mod tree;
mod variant;

#[cfg(test)]
pub(super) mod tests;

/// Where the kernel says whether it takes TCP packets outside the window for valid ones.
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// The iptables backend of the network namespace it was opened in.
#[derive(Debug)]
pub struct Iptables {
    /// Of the node's variant. A backend that only looks or cleans up has none: it looks into both.
    kernel: Option<Kernel>,
    /// One for each family that the node has.
    plans: Vec<Plan>,
    /// What the plans hold.
    planned: Snapshot,
    /// Service ports of that which could not be realised, and why.
    refused: BTreeMap<ServicePortName, String>,
    /// What the last sync that succeeded left in the kernel: its snapshot but for what was refused.
    synced: Option<Snapshot>,
    /// Whether the kernel holds what the plans say, as far as is known. If not, only a full sync will do.
    is_settled: bool,
    /// Whether it holds that and nothing else, as far as is known.
    is_exact: bool,
}

/// Why the iptables backend could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command could not be run, or refused.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The kernel has no sets, or not of all types.
    #[error(
        "the mode iptables keeps addresses in sets: load the kernel modules ip_set, ip_set_hash_ip, ip_set_hash_ipport and \
         ip_set_hash_ipportnet with modprobe, or, where the kernel was built without them, choose --proxy-mode nftables; \
         CAP_NET_ADMIN is needed, too"
    )]
    NoSets(#[source] CommandError),
    /// Bridged packets would bypass the rules.
    #[error(transparent)]
    Bridge(#[from] bridge::Error),
    /// Something is left.
    #[error("cleanup is not complete: {}", join(.0))]
    Cleanup(Vec<CommandError>),
}

impl Iptables {
    /// Opens the backend of the variant that the node uses. Changes no rule.
    ///
    /// # Errors
    /// When the machine lacks something.
    pub fn open(config: &NodeConfig) -> Result<Self, Error> {
        let kernel = Kernel::open()?;
        kernel.check_sets().map_err(Error::NoSets)?;
        bridge::ensure_calls_netfilter(&config.families)?;
        let drops_invalid = !is_tcp_liberal();
        let families = IpFamily::ALL.into_iter().filter(|family| config.families.contains(family));
        let plans = families.map(|family| Plan::new(Style::new(family, config, drops_invalid))).collect();
        Ok(Self { kernel: Some(kernel), plans, ..Self::open_for_cleanup() })
    }

    /// Opens a backend that is only asked to clean up or to observe.
    #[must_use]
    pub fn open_for_cleanup() -> Self {
        Self {
            kernel: None,
            plans: Vec::new(),
            planned: Snapshot::default(),
            refused: BTreeMap::new(),
            synced: None,
            is_settled: false,
            is_exact: false,
        }
    }

    /// The variant in use.
    #[must_use]
    pub fn variant(&self) -> Option<Variant> {
        self.kernel.as_ref().map(Kernel::variant)
    }

    fn kernel(&self) -> Result<&Kernel, CommandError> {
        self.kernel.as_ref().ok_or(CommandError::Missing("iptables", "iptables"))
    }

    fn sync_changes(&mut self, desired: &Snapshot) -> Result<Report, CommandError> {
        let names = self.replan(desired, false);
        let mut changes = Vec::new();
        for plan in &mut self.plans {
            let (changed, refused) = plan.update(desired, names.iter().cloned());
            changes.push(changed);
            self.refused.extend(refused.into_iter().map(|(name, reason)| (name, reason.to_string())));
        }
        let kernel = self.kernel()?;
        transaction::commit(&changes, kernel.batch_size(), |step| kernel.run(&step))?;
        let changed = changes.iter().map(Changes::len).sum();
        Ok(self.settle(desired, changed, Vec::new()))
    }

    fn sync_full(&mut self, desired: &Snapshot) -> Result<Report, CommandError> {
        // Until this has succeeded, what differs from the plans need not be anybody's doing.
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        let saved = self.save()?;
        let mut repaired = Vec::new();
        if is_exact {
            for (plan, saved) in self.plans.iter().zip(&saved) {
                repaired.extend(readback::compare(plan, &saved.listing(plan.style().family)).1);
            }
        }
        let names = self.replan(desired, true);
        for plan in &mut self.plans {
            let refused = plan.set(desired, names.iter().cloned());
            self.refused.extend(refused.into_iter().map(|(name, reason)| (name, reason.to_string())));
        }
        let mut changes = self.compare(&saved);
        let is_first = saved.iter().all(Saved::has_no_rules);
        drop(saved);
        let changed = changes.iter().map(Changes::len).sum::<usize>().saturating_sub(repaired.len());
        let members = if is_first { transaction::take_cluster_ips(&mut changes) } else { String::new() };
        let is_whole = self.commit_beside(changes, members)?;
        if self.synced.is_none() {
            self.sweep_elsewhere()?;
        }
        let report = self.settle(desired, changed, repaired);
        self.is_exact = is_whole;
        Ok(report)
    }

    fn save(&self) -> Result<Vec<Saved>, CommandError> {
        self.kernel()?.save(self.plans.iter().map(|plan| plan.style().family))
    }

    fn compare(&self, saved: &[Saved]) -> Vec<Changes> {
        let plans = self.plans.iter().zip(saved);
        plans.map(|(plan, saved)| readback::compare(plan, &saved.listing(plan.style().family)).0).collect()
    }

    /// Which Service ports are to be placed anew; what could not be realised is tried again if `tries_again`.
    fn replan(&mut self, desired: &Snapshot, tries_again: bool) -> BTreeSet<ServicePortName> {
        let planned = std::mem::replace(&mut self.planned, desired.clone());
        let changes = diff(&planned.service_ports, &desired.service_ports).map(|change| match change {
            Change::Added(name, _) | Change::Changed(name, ..) | Change::Removed(name, _) => name.clone(),
        });
        let mut names: BTreeSet<ServicePortName> = changes.collect();
        for name in &names {
            tracing::debug!(service = %name, is_wanted = desired.service_ports.contains_key(name), "changes");
        }
        if tries_again {
            names.extend(self.refused.keys().filter(|name| desired.service_ports.contains_key(*name)).cloned());
        }
        self.refused.retain(|name, _| !names.contains(name));
        names
    }

    /// The same, while another thread writes members of sets that no rule asks yet.
    fn commit_beside(&mut self, changes: Vec<Changes>, members: String) -> Result<bool, CommandError> {
        if members.is_empty() {
            return self.commit_or_isolate(changes);
        }
        let kernel = self.kernel()?.clone();
        std::thread::scope(|scope| {
            let members = scope.spawn(move || kernel.run(&Step::Sets(members)));
            let is_whole = self.commit_or_isolate(changes);
            members.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            is_whole
        })
    }

    /// Returns whether all of it was taken.
    fn commit_or_isolate(&mut self, changes: Vec<Changes>) -> Result<bool, CommandError> {
        let kernel = self.kernel()?;
        match transaction::commit(&changes, kernel.batch_size(), |step| kernel.run(&step)) {
            Ok(()) => return Ok(true),
            Err(CommandError::Refused { command, cause, .. }) => {
                tracing::warn!(command, cause, "refused; looking for the Services that it is about");
            }
            Err(error) => return Err(error),
        }
        let mut refused = BTreeMap::new();
        for changes in changes {
            refused.extend(apart(kernel, changes)?);
        }
        for name in refused.keys() {
            for plan in &mut self.plans {
                plan.refuse(name);
            }
        }
        self.refused.extend(refused);
        let kernel = self.kernel()?;
        for mut changes in self.compare(&self.save()?).into_iter().map(|changes| [changes]) {
            match transaction::commit(&changes, kernel.batch_size(), |step| kernel.run(&step)) {
                Err(CommandError::Refused { command, cause, .. }) => {
                    // Somebody's rule leads to one of them.
                    tracing::warn!(command, cause, "chains that should go are left, empty");
                    changes[0].empty_what_goes();
                    transaction::commit(&changes, kernel.batch_size(), |step| kernel.run(&step))?;
                }
                result => result?,
            }
        }
        Ok(false)
    }

    /// What a process before this one left in families that the node has not, and in the other variant: that one's rules act
    /// beside ours.
    fn sweep_elsewhere(&self) -> Result<(), CommandError> {
        let own = self.kernel()?;
        for kernel in Kernel::open_all()? {
            for family in IpFamily::ALL {
                let is_ours = self.plans.iter().any(|plan| plan.style().family == family);
                if kernel.variant() == own.variant() && is_ours {
                    continue;
                }
                let changes = leftovers(&kernel, family)?;
                if changes.len() > 0 {
                    tracing::info!(variant = %kernel.variant(), %family, "removes what Tollgate left there");
                    transaction::commit(&[changes], kernel.batch_size(), |step| kernel.run(&step))?;
                }
            }
        }
        Ok(())
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

impl Backend for Iptables {
    fn sync(&mut self, desired: &Snapshot, scope: Scope) -> Result<Report, super::Error> {
        // What happens from here to the commit is known again only once it has succeeded.
        let is_settled = std::mem::replace(&mut self.is_settled, false);
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        if scope == Scope::Changes && is_settled {
            match self.sync_changes(desired) {
                Ok(report) => {
                    self.is_exact = is_exact;
                    return Ok(report);
                }
                // The kernel may not hold what we left there.
                Err(CommandError::Refused { command, cause, .. }) => {
                    tracing::warn!(command, cause, "a change was refused; comparing with what the kernel holds");
                }
                Err(error) => return Err(Error::from(error).into()),
            }
        } else {
            self.is_exact = is_exact;
        }
        Ok(self.sync_full(desired).map_err(Error::from)?)
    }

    fn observe(&self) -> Result<Observed, super::Error> {
        let mut observed = Observed::default();
        for kernel in Kernel::open_all().map_err(Error::from)? {
            let saved = kernel.save(IpFamily::ALL).map_err(Error::from)?;
            for (family, saved) in IpFamily::ALL.into_iter().zip(&saved) {
                observe::observe(&saved.listing(family), saved.tables(), &mut observed);
            }
        }
        observed.service_ports.sort();
        Ok(observed)
    }

    fn cleanup(&mut self) -> Result<(), super::Error> {
        (self.is_settled, self.is_exact) = (false, false);
        let kernels = Kernel::open_all().map_err(Error::from)?;
        let mut errors = Vec::new();
        for kernel in &kernels {
            for family in IpFamily::ALL {
                let cleaned = leftovers(kernel, family)
                    .and_then(|changes| transaction::commit(&[changes], kernel.batch_size(), |step| kernel.run(&step)));
                errors.extend(cleaned.err());
            }
        }
        // Sets go last: no rule of any variant may name them.
        if let Some(kernel) = kernels.first() {
            match kernel.sets() {
                Ok(sets) => {
                    let ours = sets.keys().filter(|set| name::is_our_set(set));
                    errors.extend(ours.filter_map(|set| kernel.destroy(set).err()));
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Cleanup(errors).into()) }
    }
}

/// What it takes to remove all rules of ours.
fn leftovers(kernel: &Kernel, family: IpFamily) -> Result<Changes, CommandError> {
    let mut changes = Changes::new(family);
    let saved = kernel.save_rules(family)?;
    let listing = saved.listing(family);
    changes.deleted = listing.chains.keys().map(|(table, chain)| (*table, (*chain).to_owned())).collect();
    let jumps = listing.jumps.iter();
    changes.removed_jumps = jumps.map(|(table, base, rule)| (*table, (*base).to_owned(), (*rule).to_owned())).collect();
    Ok(changes)
}

/// Writes Service ports' own chains, to which nothing leads yet or which are as wanted anyway; halves what is refused until
/// it is one Service port. Returns those with what the command says.
fn apart(kernel: &Kernel, changes: Changes) -> Result<BTreeMap<ServicePortName, String>, CommandError> {
    let Changes { family, sets, services, .. } = changes;
    let write = |services: BTreeMap<_, _>| {
        let changes = Changes { services, ..Changes::new(family) };
        transaction::commit_own(&changes, BatchSize(usize::MAX), |step| kernel.run(&step))
    };
    let mut refused = BTreeMap::new();
    // Without these nothing can be written, so that nobody is to blame for them.
    let needs = Changes { sets, ..Changes::new(family) };
    transaction::commit(&[needs], kernel.batch_size(), |step| kernel.run(&step))?;
    let mut rest = vec![services];
    while let Some(mut services) = rest.pop() {
        match write(services.clone()) {
            Ok(()) => {}
            Err(CommandError::Refused { cause, .. }) if services.len() == 1 => {
                refused.extend(services.into_keys().map(|name| (name, cause.clone())));
            }
            Err(CommandError::Refused { .. }) => {
                let Some(middle) = services.keys().nth(services.len() / 2).cloned() else { continue };
                rest.push(services.split_off(&middle));
                rest.push(services);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

/// Whether INVALID packets may pass, as they may for kube-proxy. Where it can't be read, the kernel is at its default.
fn is_tcp_liberal() -> bool {
    fs::read_to_string(TCP_BE_LIBERAL).is_ok_and(|value| value.trim() != "0")
}

fn join(errors: &[impl fmt::Display]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
