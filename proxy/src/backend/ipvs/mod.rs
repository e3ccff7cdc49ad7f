//! The ipvs backend: virtual services of the kernel's IPVS, a link that makes their addresses the node's own, sets, and a
//! constant number of rules. The packet's path, and why it is laid out like this: README.md beside this file.
//!
//! ```text
//! Snapshot ──▶ plan ──▶ changes ──Steps──▶ kernel ──▶ generic netlink, nfnetlink, rtnetlink; iptables-restore for rules
//!                          ▲                  │
//!                          └──── Applied ◀────┘  read for a full sync, remembered in between
//! ```
//!
//! - `object`: virtual services, members of sets, and what is done to them.
//! - `style`, `rules`: the rules, and how they are compared with a listing.
//! - `service`, `plan`: Service ports to objects. `comment`: what members of sets say of theirs.
//! - `changes`: what differs between a plan and the kernel, in an order in which every state on the way is harmless.
//! - `kernel`, `netlink`: the only I/O. `observe`: what the kernel holds, by Service port.
//! - `leave`: what stays for connections that are there when another mode takes over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;

use ipnet::IpNet;
use tollgate_model::diff::{Change, diff};
use tollgate_model::name::{IpFamily, ServicePortName};
use tollgate_model::snapshot::Snapshot;

use self::changes::{Applied, Steps};
use self::kernel::{Kernel, Rules};
use self::netlink::socket::Refusal;
use self::object::{Route, ServiceChange, ServiceStep};
use self::plan::{Plan, Touched};
use self::style::Style;
use super::{Backend, NodeConfig, Observed, Report, Scope, bridge};
use crate::conntrack;

pub use self::kernel::Error as KernelError;
pub use self::leave::Left;
pub use self::netlink::ipvs::Timeouts;
pub use self::object::Scheduler;

mod changes;
mod comment;
mod kernel;
mod leave;
mod netlink;
mod object;
mod observe;
mod plan;
mod rules;
mod service;
mod style;

#[cfg(test)]
mod tests;

/// Where the kernel says whether it takes TCP packets outside the window for valid ones.
const TCP_BE_LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
const ENOENT: i32 = 2;

/// What the ipvs mode is told besides what every mode is.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where Services have none of their own choice.
    pub scheduler: Scheduler,
    /// Of connections.
    pub timeouts: Timeouts,
    /// Virtual services at these addresses are somebody else's, whatever Services say.
    pub exclude_cidrs: Vec<IpNet>,
}

/// The ipvs backend of the network namespace it was opened in.
#[derive(Debug)]
pub struct Ipvs {
    kernel: Kernel,
    /// Of the variant that the node uses; none in a backend that only looks or cleans up.
    rules: Option<Rules>,
    /// One for each family that the node has.
    sides: Vec<Side>,
    timeouts: Timeouts,
    /// The link's index.
    link: u32,
    /// What the plans hold.
    planned: Snapshot,
    /// Service ports of that which could not be realised, and why.
    refused: BTreeMap<ServicePortName, String>,
    /// What the last sync that succeeded left in the kernel: its snapshot but for what was refused.
    synced: Option<Snapshot>,
    /// Whether the kernel holds what is remembered of it, as far as is known. If not, only a full sync will do.
    is_settled: bool,
    /// Whether it holds what the plans say, as far as is known.
    is_exact: bool,
}

/// One family.
#[derive(Debug)]
struct Side {
    plan: Plan,
    applied: Applied,
}

/// Why the ipvs backend could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel does not have the scheduler that is to be used where no other is asked for.
    #[error("--ipvs-scheduler {0}: the kernel has no such scheduler; load it with `modprobe ip_vs_{0}`")]
    NoScheduler(Scheduler),
    /// Bridged packets would bypass the rules.
    #[error(transparent)]
    Bridge(#[from] bridge::Error),
    /// Something is left.
    #[error("cleanup is not complete: {}", join(.0))]
    Cleanup(Vec<KernelError>),
}

/// Why a commit ended early.
enum Failure {
    /// The kernel can't be used.
    Kernel(Error),
    /// It does not hold what is remembered of it.
    Drift(String),
}

impl Ipvs {
    /// Opens the backend. Loads kernel modules where they are missing; changes nothing else but the switches of IPVS.
    ///
    /// # Errors
    /// When the machine lacks something.
    pub fn open(config: &NodeConfig) -> Result<Self, Error> {
        let kernel = Kernel::open()?;
        kernel.ensure_modules()?;
        let rules = Rules::open()?;
        bridge::ensure_calls_netfilter(&config.families)?;
        let drops_invalid = !fs::read_to_string(TCP_BE_LIBERAL).is_ok_and(|value| value.trim() != "0");
        let families = IpFamily::ALL.into_iter().filter(|family| config.families.contains(family));
        let side =
            |family| Side { plan: Plan::new(Style::new(family, config, drops_invalid)), applied: Applied::default() };
        let sides = families.map(side).collect();
        Ok(Self { kernel, rules: Some(rules), sides, timeouts: config.ipvs.timeouts, ..Self::open_for_cleanup()? })
    }

    /// Opens a backend that is only asked to clean up or to observe.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open_for_cleanup() -> Result<Self, Error> {
        Ok(Self {
            kernel: Kernel::open()?,
            rules: None,
            sides: Vec::new(),
            timeouts: Timeouts::default(),
            link: 0,
            planned: Snapshot::default(),
            refused: BTreeMap::new(),
            synced: None,
            is_settled: false,
            is_exact: false,
        })
    }

    fn sync_changes(&mut self, desired: &Snapshot) -> Result<Report, Failure> {
        let names = self.replan(desired, false);
        let mut changed = 0;
        for index in 0..self.sides.len() {
            let side = &mut self.sides[index];
            let old_style = side.plan.style().clone();
            let (touched, refused) = side.plan.update(desired, names.iter().cloned());
            self.refused.extend(refused.into_iter().map(|(name, reason)| (name, reason.to_string())));
            if !self.sides[index].plan.style().has_rules_of(&old_style) {
                changed += self.ensure_rules(index).map_err(Failure::from)?.len();
            }
            changed += self.bring_about(index, touched, false)?;
        }
        Ok(self.settle(desired, changed, Vec::new()))
    }

    fn sync_full(&mut self, desired: &Snapshot) -> Result<Report, Error> {
        // Until this has succeeded, what differs from the plans need not be anybody's doing.
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        let is_first = self.synced.is_none();
        if is_first {
            self.sweep_elsewhere()?;
            self.kernel.set_timeouts(self.timeouts)?;
        }
        self.kernel.ensure_switches()?;
        self.link = self.kernel.ensure_link(self.sides.iter().map(|side| side.plan.style().family))?;
        let (mut repaired, mut changed) = (Vec::new(), 0);
        for index in 0..self.sides.len() {
            let drift = self.read(index)?;
            repaired.extend(drift.into_iter().filter(|_| is_exact));
        }
        let names = self.replan(desired, true);
        for index in 0..self.sides.len() {
            let side = &mut self.sides[index];
            let (_, refused) = side.plan.update(desired, names.iter().cloned());
            self.refused.extend(refused.into_iter().map(|(name, reason)| (name, reason.to_string())));
            let lines = self.ensure_rules(index)?;
            changed += lines.len();
            let family = self.sides[index].plan.style().family;
            repaired.extend(lines.into_iter().filter(|_| is_exact).map(|line| format!("{family}: {line}")));
            let side = &self.sides[index];
            let touched = changes::everything(&side.plan, &side.applied);
            let strange = changes::strange_routes(&side.plan, &side.applied);
            changed += self.bring_about(index, touched, true).map_err(|failure| match failure {
                Failure::Kernel(error) => error,
                Failure::Drift(what) => {
                    KernelError::Refused { what, cause: "it changes all the time".to_owned() }.into()
                }
            })?;
            self.kernel.change_routes(self.link, &strange, false)?;
            let routes = &mut self.sides[index].applied.routes;
            routes.retain(|route| !strange.contains(route));
        }
        changed = changed.saturating_sub(repaired.len());
        let report = self.settle(desired, changed, repaired);
        self.is_exact = true;
        Ok(report)
    }

    /// Reads what the kernel holds of a family. Returns how that differs from the plan, a line each; what has ended by
    /// itself meanwhile is no difference.
    fn read(&mut self, index: usize) -> Result<Vec<String>, Error> {
        let Side { plan, applied } = &mut self.sides[index];
        let family = plan.style().family;
        self.kernel.ensure_sets(family)?;
        let listed = self.kernel.list(family, |key| plan.service(key).is_some())?;
        *applied = Applied::from(&listed);
        plan.adopt(applied.elements.iter(), applied.services.keys());
        let drift = changes::steps(plan, applied, &changes::everything(plan, applied));
        let lines = drift.unexpected().map(|line| format!("{family}: {line}"));
        Ok(lines.collect())
    }

    fn ensure_rules(&self, index: usize) -> Result<Vec<String>, Error> {
        let Some(rules) = &self.rules else { return Ok(Vec::new()) };
        Ok(rules.ensure(self.sides[index].plan.style())?)
    }

    /// Which Service ports are to be placed anew; what could not be realised is tried again if `tries_again`.
    fn replan(&mut self, desired: &Snapshot, tries_again: bool) -> BTreeSet<ServicePortName> {
        let planned = std::mem::replace(&mut self.planned, desired.clone());
        let mut names = BTreeSet::new();
        for change in diff(&planned.service_ports, &desired.service_ports) {
            let (name, new) = match change {
                Change::Added(name, new) | Change::Changed(name, _, new) => (name, Some(new)),
                Change::Removed(name, _) => (name, None),
            };
            tracing::debug!(service = %name, is_wanted = new.is_some(), "changes");
            let before = planned.service_ports.get(name).and_then(|old| old.ipvs_scheduler.clone());
            if let Some(new) = new.filter(|new| new.ipvs_scheduler != before)
                && let Some(scheduler) = Plan::unknown_scheduler(new)
            {
                let known = Scheduler::ALL.map(Scheduler::as_str).join(", ");
                tracing::error!(
                    service = %name,
                    scheduler,
                    "annotation tollgate.dev/ipvs-scheduler: there is no such scheduler (there are {known}); the default one is used",
                );
            }
            names.insert(name.clone());
        }
        if tries_again {
            names.extend(self.refused.keys().filter(|name| desired.service_ports.contains_key(*name)).cloned());
        }
        self.refused.retain(|name, _| !names.contains(name));
        names
    }

    /// Makes the kernel what one family's plan says, as far as was touched. What it refuses is left out, if it is about one
    /// Service port and the kernel has been read; its scheduler is left for the default one, if it is that.
    fn bring_about(&mut self, index: usize, touched: Touched, is_read: bool) -> Result<usize, Failure> {
        let mut changed = 0;
        let mut rest = vec![touched];
        while let Some(touched) = rest.pop() {
            let side = &self.sides[index];
            let steps = changes::steps(&side.plan, &side.applied, &touched);
            changed += steps.len();
            for (step, refusal) in self.commit(index, &steps)? {
                let again = self.refused_step(index, &step, &refusal, is_read)?;
                rest.extend(again);
            }
        }
        Ok(changed)
    }

    /// What is to be tried again after a step was refused.
    fn refused_step(
        &mut self,
        index: usize,
        step: &ServiceStep,
        refusal: &Refusal,
        is_read: bool,
    ) -> Result<Option<Touched>, Failure> {
        let plan = &mut self.sides[index].plan;
        let reason = kernel::describe(refusal.code, refusal.message.as_deref());
        let owner = plan.owner(step.key).cloned();
        if let ServiceChange::Add(spec) | ServiceChange::Set(spec) = step.change
            && refusal.code == ENOENT
        {
            if spec.scheduler == plan.style().scheduler {
                return Err(Failure::Kernel(Error::NoScheduler(spec.scheduler)));
            }
            let service = owner.map(|name| name.to_string()).unwrap_or_default();
            let reason = Kernel::describe_scheduler(spec.scheduler);
            tracing::error!(service, reason, "the default scheduler is used");
            return Ok(Some(plan.do_without(spec.scheduler)));
        }
        let reason = format!("{step}: {reason}");
        match owner.filter(|_| is_read) {
            None => Err(Failure::Drift(reason)),
            Some(name) => {
                let touched = plan.refuse(&name);
                self.refused.insert(name, reason);
                Ok(Some(touched))
            }
        }
    }

    /// Does the steps of one family. Returns those about virtual services that were refused; what comes after is about
    /// others.
    fn commit(&mut self, index: usize, steps: &Steps) -> Result<Vec<(ServiceStep, Refusal)>, Failure> {
        let mut refused = Vec::new();
        self.change_elements(index, &steps.before)?;
        self.change_services(index, &steps.adds, &mut refused)?;
        if !refused.is_empty() {
            return Ok(refused);
        }
        self.change_routes(index, &steps.new_routes, true)?;
        self.change_elements(index, &steps.after)?;
        self.change_services(index, &steps.removals, &mut refused)?;
        self.change_routes(index, &steps.old_routes, false)?;
        Ok(refused)
    }

    fn change_elements(
        &mut self,
        index: usize,
        steps: &[(object::Element, Option<object::ElementValue>)],
    ) -> Result<(), Failure> {
        let Side { plan, applied } = &mut self.sides[index];
        self.kernel.change_elements(plan.style().family, steps)?;
        steps.iter().for_each(|(element, value)| applied.apply_element(element, value.as_ref()));
        Ok(())
    }

    fn change_services(
        &mut self,
        index: usize,
        steps: &[ServiceStep],
        refused: &mut Vec<(ServiceStep, Refusal)>,
    ) -> Result<(), Failure> {
        let Side { plan, applied } = &mut self.sides[index];
        let refusals = self.kernel.change_services(plan.style().family, steps)?;
        let mut refusals = refusals.into_iter().peekable();
        for (place, step) in steps.iter().enumerate() {
            match refusals.next_if(|refusal| refusal.index == place) {
                None => applied.apply_service(step),
                Some(refusal) => refused.push((*step, refusal)),
            }
        }
        Ok(())
    }

    fn change_routes(&mut self, index: usize, routes: &[Route], is_wanted: bool) -> Result<(), Failure> {
        if routes.is_empty() {
            return Ok(());
        }
        if is_wanted {
            self.kernel.ensure_no_arp(routes.iter().map(|route| route.net).filter(|net| net.addr().is_ipv4()))?;
        }
        self.kernel.change_routes(self.link, routes, is_wanted)?;
        let applied = &mut self.sides[index].applied.routes;
        for route in routes {
            if is_wanted {
                applied.insert(*route)
            } else {
                applied.remove(route)
            };
        }
        Ok(())
    }

    /// What a process before this one left in families that the node has not, and in the other variant of iptables: that
    /// one's rules act beside ours.
    fn sweep_elsewhere(&self) -> Result<(), Error> {
        for rules in Rules::open_all() {
            for family in IpFamily::ALL {
                let is_ours = self.sides.iter().any(|side| side.plan.style().family == family);
                if !(is_ours && self.rules.as_ref().is_some_and(|own| own.is_same(&rules))) {
                    rules.remove(family)?;
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
        Report { changed, repaired, refused, stale, ..Report::default() }
    }
}

impl Backend for Ipvs {
    fn sync(&mut self, desired: &Snapshot, scope: Scope) -> Result<Report, super::Error> {
        // What happens from here to the end is known again only once it has succeeded.
        let is_settled = std::mem::replace(&mut self.is_settled, false);
        let is_exact = std::mem::replace(&mut self.is_exact, false);
        if scope == Scope::Changes && is_settled {
            match self.sync_changes(desired) {
                Ok(report) => {
                    self.is_exact = is_exact;
                    return Ok(report);
                }
                Err(Failure::Kernel(error)) => return Err(error.into()),
                Err(Failure::Drift(what)) => {
                    tracing::warn!(what, "refused; comparing with what the kernel holds");
                }
            }
        } else {
            self.is_exact = is_exact;
        }
        Ok(self.sync_full(desired)?)
    }

    fn observe(&self) -> Result<Observed, super::Error> {
        let mut observed = Observed::default();
        for family in IpFamily::ALL {
            let listed = self.kernel.list(family, |_| false).map_err(Error::from)?;
            observe::observe(family, &listed, &mut observed);
        }
        observed.service_ports.sort();
        Ok(observed)
    }

    fn cleanup(&mut self) -> Result<(), super::Error> {
        (self.is_settled, self.is_exact) = (false, false);
        let mut errors = Vec::new();
        // Connections end with their virtual services, and new ones must not take their place.
        for family in IpFamily::ALL {
            errors.extend(self.delete_services(family).err());
        }
        errors.extend(self.kernel.delete_link().err());
        for rules in Rules::open_all() {
            errors.extend(IpFamily::ALL.into_iter().filter_map(|family| rules.remove(family).err()));
        }
        errors.extend(IpFamily::ALL.into_iter().filter_map(|family| self.kernel.destroy_sets(family).err()));
        if errors.is_empty() { Ok(()) } else { Err(Error::Cleanup(errors).into()) }
    }
}

impl Ipvs {
    fn delete_services(&self, family: IpFamily) -> Result<(), KernelError> {
        let listed = self.kernel.list(family, |_| false)?;
        let deletion = |key| ServiceStep { key, change: ServiceChange::Delete };
        let steps: Vec<_> = listed.services.iter().map(|(service, _)| deletion(service.key)).collect();
        match self.kernel.change_services(family, &steps)?.into_iter().next() {
            None => Ok(()),
            Some(refusal) => {
                let what = steps.get(refusal.index).map(ToString::to_string).unwrap_or_default();
                Err(KernelError::Refused { what, cause: kernel::describe(refusal.code, refusal.message.as_deref()) })
            }
        }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Kernel(error)
    }
}

fn join(errors: &[impl fmt::Display]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
