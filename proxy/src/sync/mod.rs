//! The reconcile loop: makes the kernel match the newest snapshot, and go on matching it.
//!
//! It runs on a thread of its own, so that a slow kernel blocks neither the watch nor `/healthz`. The first change of a
//! quiet time is applied at once, or, where a sync is slow, a moment later (`pace`); what comes during a sync forms the
//! next one. After an error everything is compared anew, with backoff; now and then the kernel is compared with what it
//! should hold, and repaired. Stale flows are deleted after the rules, and where that fails, it waits for its retry alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tollgate_model::snapshot::Snapshot;

use self::leave::Leaving;
use self::pace::Pace;
use crate::backend::{self, Backend, Mode, Report, Scope};
use crate::conntrack::Cleaner;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::Revision;

mod leave;
mod pace;

/// The comparison with the kernel may take one part in this many of the time, however large the kernel's state is.
const FULL_SYNC_SHARE: u32 = 50;

/// The newest snapshot, and how far it goes.
#[derive(Clone, Debug)]
pub struct Desired {
    /// What the kernel should hold.
    pub snapshot: Snapshot,
    /// The source's revision that it contains.
    pub revision: Revision,
}

/// The loop and all that it owns.
pub struct Sync {
    backend: Box<dyn Backend>,
    period: Duration,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// What the next sync has to look at.
    scope: Scope,
    /// When the kernel is to be compared again.
    next_full: Instant,
    /// Whether this process has put everything into the kernel once: what that took says nothing of a comparison.
    has_loaded: bool,
    backoff: Option<<ExponentialBuilder as BackoffBuilder>::Backoff>,
    cleaner: Cleaner,
    pace: Pace,
    /// Removes what a mode before this one has left; `None` once that is done.
    leaving: Option<Leaving>,
    /// What the kernel holds, as far as is known.
    applied: watch::Sender<Option<Snapshot>>,
}

/// Why the loop woke.
enum Wake {
    Newer,
    Due,
    FlowsDue,
    LeavingDue,
    Stopped,
}

impl Sync {
    /// A loop that has not synced yet. Its first sync is a full one.
    #[must_use]
    pub fn new(backend: Box<dyn Backend>, period: Duration, metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self {
            backend,
            period,
            metrics,
            health,
            scope: Scope::Full,
            next_full: Instant::now(),
            has_loaded: false,
            backoff: None,
            cleaner: Cleaner::new(),
            pace: Pace::default(),
            leaving: None,
            applied: watch::Sender::new(None),
        }
    }

    /// Calls this after the first full sync that succeeds, and again now and then until it succeeds too.
    #[must_use]
    pub fn taking_over(
        mut self,
        leave_others: impl FnMut() -> Result<(), Vec<(Mode, backend::Error)>> + Send + 'static,
    ) -> Self {
        self.leaving = Some(Leaving::new(Box::new(leave_others)));
        self
    }

    /// What the kernel holds, after each sync that succeeded: the snapshot but for Service ports that could not be realised.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Option<Snapshot>> {
        self.applied.subscribe()
    }

    /// Syncs until the sender of snapshots is gone. Leaves the kernel as it is: a restart must not hurt.
    pub fn run(mut self, runtime: &Handle, mut desired: watch::Receiver<Option<Desired>>) {
        loop {
            match runtime.block_on(self.wait(&mut desired)) {
                // Changes that come without a pause must not put the comparison off for ever.
                Wake::Newer if Instant::now() >= self.next_full => self.scope = Scope::Full,
                Wake::Newer => std::thread::sleep(self.pace.gathering()),
                Wake::Due => self.scope = Scope::Full,
                Wake::FlowsDue => {
                    self.clean_flows();
                    continue;
                }
                Wake::LeavingDue => {
                    self.leave_others();
                    continue;
                }
                Wake::Stopped => return,
            }
            let newest = desired.borrow_and_update().clone();
            let Some(newest) = newest else { continue };
            let has_newer = || desired.has_changed().unwrap_or(false);
            match self.sync(&newest) {
                Ok(()) => {
                    self.backoff = None;
                    self.metrics.applied(&newest.revision);
                    self.health.synced(has_newer());
                }
                Err(delay) => {
                    self.scope = Scope::Full;
                    self.next_full = Instant::now() + delay;
                }
            }
        }
    }

    /// Until there is a newer snapshot, or the kernel is due to be compared. While an error waits for its retry, newer
    /// snapshots wait with it: they would meet the same error.
    async fn wait(&self, desired: &mut watch::Receiver<Option<Desired>>) -> Wake {
        let has_snapshot = desired.borrow().is_some();
        let due = async {
            if has_snapshot {
                tokio::time::sleep_until(self.next_full.into()).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        if self.backoff.is_some() {
            tokio::select! {
                () = due => return Wake::Due,
                () = closed(desired.clone()) => return Wake::Stopped,
            }
        }
        // Only here, where the rules are in place: flows must not be made anew from old ones.
        let flows_due = async {
            match self.cleaner.retry_at() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let leaving_due = async {
            match self.leaving.as_ref().and_then(Leaving::retry_at) {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = desired.changed() => if changed.is_ok() { Wake::Newer } else { Wake::Stopped },
            () = due => Wake::Due,
            () = flows_due => Wake::FlowsDue,
            () = leaving_due => Wake::LeavingDue,
        }
    }

    /// One sync. On failure, says how long to wait before the next.
    fn sync(&mut self, desired: &Desired) -> Result<(), Duration> {
        let scope = self.scope;
        let start = Instant::now();
        let report = match self.backend.sync(&desired.snapshot, scope) {
            Ok(report) => report,
            Err(error) => return Err(self.failed(&error)),
        };
        let elapsed = start.elapsed();
        self.scope = Scope::Changes;
        self.account(scope, elapsed, &report, desired);
        match scope {
            Scope::Full => {
                let took = if self.has_loaded { elapsed } else { Duration::ZERO };
                self.next_full = Instant::now() + self.period.max(took * FULL_SYNC_SHARE);
                self.has_loaded = true;
            }
            Scope::Changes if report.changed > 0 => self.pace.took(elapsed),
            Scope::Changes => {}
        }
        // Flows that began while the rules were not whole may lead anywhere.
        if self.backoff.is_some() || !report.repaired.is_empty() {
            self.cleaner.owe_reconcile();
        }
        self.cleaner.owe(report.stale);
        let applied = desired.snapshot.without(report.refused.iter().map(|(name, _)| name));
        self.applied.send_replace(Some(applied));
        if scope == Scope::Full && self.leaving.as_ref().is_some_and(Leaving::is_new) {
            // What this mode should have is there, whatever else there is to look for; and what that was may have made flows.
            self.clean_flows();
            self.metrics.applied(&desired.revision);
            self.leave_others();
            self.cleaner.owe_reconcile();
        }
        self.clean_flows();
        Ok(())
    }

    /// `mode-switch-clean`: after this mode's rules are in place, so that there is no moment without any.
    ///
    /// Also where some Services were refused. What the other mode has for these is never brought up to date again, and it has
    /// all the others as well: kept for the sake of one, it would send everybody's connections to endpoints that are gone.
    fn leave_others(&mut self) {
        if self.leaving.as_mut().is_some_and(Leaving::leave) {
            self.leaving = None;
        }
    }

    fn account(&self, scope: Scope, elapsed: Duration, report: &Report, desired: &Desired) {
        let metrics = &self.metrics;
        if scope == Scope::Full {
            metrics.full_sync_duration.observe(elapsed.as_secs_f64());
        }
        metrics.objects_changed.inc_by(report.changed as u64);
        metrics.objects_repaired.inc_by(report.repaired.len() as u64);
        metrics.stale_sockets_destroyed.inc_by(report.destroyed as u64);
        metrics.refused_service_ports.set(i64::try_from(report.refused.len()).unwrap_or(i64::MAX));
        metrics.service_ports.set(i64::try_from(desired.snapshot.service_ports.len()).unwrap_or(i64::MAX));
        for line in &report.repaired {
            tracing::warn!(object = line, "repaired: the kernel did not hold what this proxy had left there");
        }
        for (service_port, reason) in &report.refused {
            tracing::warn!(service = %service_port, reason, "not realised; all other Services are");
        }
        if report.changed > 0 || !report.repaired.is_empty() {
            metrics.sync_duration.observe(elapsed.as_secs_f64());
            let (changed, repaired, revision) = (report.changed, report.repaired.len(), desired.revision.number);
            tracing::info!(?scope, changed, repaired, revision, ?elapsed, "synced");
        }
    }

    /// After the commit: flows must not be made anew from the old rules.
    fn clean_flows(&mut self) {
        let Some(applied) = self.applied.borrow().clone() else { return };
        let start = Instant::now();
        match self.cleaner.clean(&applied) {
            Ok(None) => {}
            Ok(Some(deleted)) => {
                self.metrics.stale_flows_deleted.inc_by(deleted as u64);
                self.metrics.flow_cleaning_duration.observe(start.elapsed().as_secs_f64());
            }
            Err((error, delay)) => {
                self.metrics.flow_cleaning_failures.inc();
                tracing::error!(
                    error = %chain(&error), retry_in = ?delay,
                    "stale UDP flows are not deleted: datagrams of theirs may go to endpoints that are gone"
                );
            }
        }
    }

    fn failed(&mut self, error: &dyn std::error::Error) -> Duration {
        self.metrics.sync_failures.inc();
        // What failed waits, also where nothing new had come: `/healthz` must say so in time.
        self.health.queued();
        let backoff = self.backoff.get_or_insert_with(|| {
            ExponentialBuilder::new()
                .with_min_delay(Duration::from_millis(100))
                .with_max_delay(Duration::from_secs(30))
                .with_jitter()
                .without_max_times()
                .build()
        });
        let delay = backoff.next().unwrap_or(Duration::from_secs(30));
        tracing::error!(error = %chain(error), retry_in = ?delay, "sync failed; the kernel keeps what it had");
        delay
    }
}

/// Until the sender is gone.
async fn closed(mut desired: watch::Receiver<Option<Desired>>) {
    while desired.changed().await.is_ok() {}
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some libraries repeat the cause in their own message.
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
