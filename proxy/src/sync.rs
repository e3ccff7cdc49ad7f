//! The reconcile loop: makes the kernel match the newest snapshot, and go on matching it.
//!
//! It runs on a thread of its own, so that a slow kernel blocks neither the watch nor `/healthz`. The first change of a
//! quiet time is applied at once; what comes during a sync forms the next one. After an error everything is compared
//! anew, with backoff; now and then the kernel is compared with what it should hold, and repaired. Stale flows are deleted
//! after the rules, and where that fails, it waits for its retry alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tollgate_model::snapshot::Snapshot;

use crate::backend::{self, Backend, Mode, Report, Scope};
use crate::conntrack::Cleaner;
use crate::health::Health;
use crate::metrics::Metrics;

/// The comparison with the kernel may take one part in this many of the time, however large the kernel's state is.
const FULL_SYNC_SHARE: u32 = 50;

/// The newest snapshot, and how far it goes.
#[derive(Clone, Debug)]
pub struct Desired {
    /// What the kernel should hold.
    pub snapshot: Snapshot,
    /// The source's revision that it contains.
    pub revision: u64,
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
    backoff: Option<<ExponentialBuilder as BackoffBuilder>::Backoff>,
    cleaner: Cleaner,
    /// Removes what a mode before this one has left; `None` once that is done.
    leave_others: Option<LeaveOthers>,
    /// What the kernel holds, as far as is known.
    applied: watch::Sender<Option<Snapshot>>,
}

/// Removes what other modes have left; fails with what may be left, and why.
type LeaveOthers = Box<dyn FnMut() -> Result<(), Vec<(Mode, backend::Error)>> + Send>;

/// Why the loop woke.
enum Wake {
    Newer,
    Due,
    FlowsDue,
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
            backoff: None,
            cleaner: Cleaner::new(),
            leave_others: None,
            applied: watch::Sender::new(None),
        }
    }

    /// Calls this after the first full sync that succeeds, and after later ones until it succeeds too.
    #[must_use]
    pub fn taking_over(
        mut self,
        leave_others: impl FnMut() -> Result<(), Vec<(Mode, backend::Error)>> + Send + 'static,
    ) -> Self {
        self.leave_others = Some(Box::new(leave_others));
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
                Wake::Newer => {}
                Wake::Due => self.scope = Scope::Full,
                Wake::FlowsDue => {
                    self.clean_flows();
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
                    self.metrics.applied(newest.revision);
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
        tokio::select! {
            biased;
            changed = desired.changed() => if changed.is_ok() { Wake::Newer } else { Wake::Stopped },
            () = due => Wake::Due,
            () = flows_due => Wake::FlowsDue,
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
        if scope == Scope::Full {
            self.next_full = Instant::now() + self.period.max(elapsed * FULL_SYNC_SHARE);
        }
        // Flows that began while the rules were not whole may lead anywhere.
        if self.backoff.is_some() || !report.repaired.is_empty() {
            self.cleaner.owe_reconcile();
        }
        self.cleaner.owe(report.stale);
        let applied = desired.snapshot.without(report.refused.iter().map(|(name, _)| name));
        self.applied.send_replace(Some(applied));
        if scope == Scope::Full {
            self.leave_others();
        }
        self.clean_flows();
        Ok(())
    }

    /// `mode-switch-clean`: after this mode's rules are in place, so that there is no moment without any.
    fn leave_others(&mut self) {
        let Some(leave) = &mut self.leave_others else { return };
        match leave() {
            Ok(()) => self.leave_others = None,
            Err(errors) => {
                for (mode, error) in errors {
                    let error = chain(&error);
                    tracing::warn!(%mode, error, "cannot remove what another mode may have left; `tollgate-proxy cleanup` tries too");
                }
            }
        }
    }

    fn account(&self, scope: Scope, elapsed: Duration, report: &Report, desired: &Desired) {
        let metrics = &self.metrics;
        if scope == Scope::Full {
            metrics.full_sync_duration.observe(elapsed.as_secs_f64());
        }
        metrics.objects_changed.inc_by(report.changed as u64);
        metrics.objects_repaired.inc_by(report.repaired.len() as u64);
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
            let (changed, repaired, revision) = (report.changed, report.repaired.len(), desired.revision);
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
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc;
    use std::thread::JoinHandle;

    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::backend::{Error, Observed};
    use crate::conntrack::{self, Job, StaleFlows};

    /// A kernel that fails when told to; says what was asked of it.
    struct Scripted {
        outcomes: VecDeque<Result<Report, Error>>,
        asked: mpsc::Sender<Scope>,
    }

    impl Backend for Scripted {
        fn sync(&mut self, _: &Snapshot, scope: Scope) -> Result<Report, Error> {
            self.asked.send(scope).unwrap();
            self.outcomes.pop_front().unwrap_or_else(|| Ok(Report::default()))
        }

        fn observe(&self) -> Result<Observed, Error> {
            Ok(Observed::default())
        }

        fn cleanup(&mut self) -> Result<(), Error> {
            Ok(())
        }
    }

    /// A job of the cleaner's: `reconcile` or `delete`, and the flows.
    #[derive(Debug, PartialEq)]
    struct FlowJob {
        what: &'static str,
        flows: Vec<StaleFlows>,
        fails: bool,
    }

    struct Running {
        desired: Option<watch::Sender<Option<Desired>>>,
        asked: mpsc::Receiver<Scope>,
        metrics: Arc<Metrics>,
        flow_jobs: mpsc::Receiver<FlowJob>,
        /// Whether connection tracking fails.
        flows_fail: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
        _runtime: tokio::runtime::Runtime,
    }

    impl Running {
        fn start(outcomes: Vec<Result<Report, Error>>, period: Duration) -> Self {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let (asked_sender, asked) = mpsc::channel();
            let (desired, newest) = watch::channel(None);
            let metrics = Arc::new(Metrics::new());
            let health = Arc::new(Health::new(Duration::from_hours(1)));
            let backend = Box::new(Scripted { outcomes: outcomes.into(), asked: asked_sender });
            let mut sync = Sync::new(backend, period, metrics.clone(), health);
            let (flow_job_sender, flow_jobs) = mpsc::channel();
            let flows_fail = Arc::new(AtomicBool::new(false));
            let fails = flows_fail.clone();
            sync.cleaner = Cleaner::with(Box::new(move |job| {
                let (what, flows) = match job {
                    Job::Reconcile(_, gone) => ("reconcile", gone.to_vec()),
                    Job::Delete(stale) => ("delete", stale.to_vec()),
                };
                // Looked at before the test hears of the job, and changes it for the next.
                let fails = fails.load(Ordering::Relaxed);
                let count = flows.len();
                flow_job_sender.send(FlowJob { what, flows, fails }).unwrap();
                match fails {
                    true => Err(conntrack::Error::Open(std::io::ErrorKind::PermissionDenied.into())),
                    false => Ok(count),
                }
            }));
            let handle = runtime.handle().clone();
            let thread = Some(std::thread::spawn(move || sync.run(&handle, newest)));
            Self { desired: Some(desired), asked, metrics, flow_jobs, flows_fail, thread, _runtime: runtime }
        }

        fn want(&self, revision: u64) {
            let desired = Desired { snapshot: Snapshot::default(), revision };
            self.desired.as_ref().unwrap().send_replace(Some(desired));
        }

        fn asked(&self) -> Scope {
            self.asked.recv_timeout(Duration::from_secs(10)).expect("the loop syncs")
        }

        fn flow_job(&self) -> FlowJob {
            self.flow_jobs.recv_timeout(Duration::from_secs(10)).expect("the cleaner works")
        }

        /// Ends the loop and waits for it, so that what it did last is seen.
        fn stop(&mut self) {
            self.desired = None;
            self.thread.take().unwrap().join().unwrap();
        }
    }

    fn failure() -> Error {
        Error::Nftables(backend::nftables::Error::for_test())
    }

    const LONG: Duration = Duration::from_hours(1);

    #[test]
    fn the_first_sync_is_full_and_the_next_looks_at_changes() {
        let mut running = Running::start(vec![], LONG);
        running.want(1);
        assert_eq!(running.asked(), Scope::Full);
        running.want(2);
        assert_eq!(running.asked(), Scope::Changes);
        running.stop();
        assert_eq!(running.metrics.applied_revision.get(), 2);
    }

    #[test]
    fn a_failed_sync_is_tried_again_in_full() {
        let mut running = Running::start(vec![Ok(Report::default()), Err(failure()), Err(failure())], LONG);
        running.want(1);
        assert_eq!(running.asked(), Scope::Full);
        running.want(2);
        assert_eq!(running.asked(), Scope::Changes);
        assert_eq!(running.asked(), Scope::Full);
        assert_eq!(running.asked(), Scope::Full);
        running.stop();
        assert_eq!(running.metrics.sync_failures.get(), 2);
        assert_eq!(running.metrics.applied_revision.get(), 2);
    }

    #[test]
    fn the_kernel_is_compared_again_when_nothing_changes() {
        let mut running = Running::start(vec![], Duration::from_millis(1));
        running.want(1);
        for _ in 0..3 {
            assert_eq!(running.asked(), Scope::Full);
        }
        running.stop();
    }

    #[test]
    fn nothing_is_synced_before_the_first_snapshot() {
        let mut running = Running::start(vec![], Duration::from_millis(1));
        running.stop();
        assert!(running.asked.try_recv().is_err());
        assert_eq!(running.metrics.applied_revision.get(), 0);
    }

    fn stale() -> Vec<StaleFlows> {
        let dialled = "10.96.0.1:53".parse().unwrap();
        vec![StaleFlows { dialled, to: vec!["10.0.0.1:53".parse().unwrap()] }]
    }

    fn job(what: &'static str, flows: Vec<StaleFlows>) -> FlowJob {
        FlowJob { what, flows, fails: false }
    }

    #[test]
    fn flows_are_reconciled_at_the_start_after_a_repair_and_after_a_failure() {
        let drifted = Report { repaired: vec!["table ip tollgate was missing".to_owned()], ..Report::default() };
        let with_stale = Report { stale: stale(), ..Report::default() };
        let outcomes = vec![Ok(Report::default()), Ok(with_stale), Ok(drifted), Err(failure()), Ok(Report::default())];
        let mut running = Running::start(outcomes, LONG);
        for (revision, what, flows) in [(1, "reconcile", vec![]), (2, "delete", stale()), (3, "reconcile", vec![])] {
            running.want(revision);
            running.asked();
            assert_eq!(running.flow_job(), job(what, flows), "{revision}");
        }
        running.want(4);
        assert_eq!(running.flow_job(), job("reconcile", vec![]));
        running.stop();
        assert_eq!(running.metrics.stale_flows_deleted.get(), 1);
    }

    #[test]
    fn a_failed_deletion_of_flows_holds_up_no_rules_and_is_judged_anew() {
        let with_stale = || Ok(Report { stale: stale(), ..Report::default() });
        let mut running = Running::start(vec![Ok(Report::default()), with_stale(), with_stale()], LONG);
        running.want(1);
        assert_eq!(running.flow_job(), job("reconcile", vec![]));
        assert_eq!(running.asked(), Scope::Full);
        running.flows_fail.store(true, Ordering::Relaxed);
        running.want(2);
        assert_eq!(running.flow_job(), FlowJob { fails: true, ..job("delete", stale()) });
        running.want(3);
        assert_eq!([running.asked(), running.asked()], [Scope::Changes; 2]);
        let all = || [stale(), stale()].concat();
        while running.flow_job() != (FlowJob { fails: true, ..job("reconcile", all()) }) {}
        running.flows_fail.store(false, Ordering::Relaxed);
        // Tried again by itself; one more attempt may have begun just before.
        while running.flow_job() != job("reconcile", all()) {}
        running.want(4);
        assert_eq!(running.asked(), Scope::Changes);
        running.stop();
        assert!(running.flow_jobs.try_recv().is_err(), "nothing is owed any more");
        let metrics = &running.metrics;
        assert_eq!((metrics.applied_revision.get(), metrics.sync_failures.get()), (4, 0));
        assert!(metrics.flow_cleaning_failures.get() >= 2);
        assert_eq!(metrics.stale_flows_deleted.get(), 2);
    }
}
