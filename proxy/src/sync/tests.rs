use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread::JoinHandle;

use std::sync::atomic::{AtomicBool, Ordering};

use tollgate_model::name::{NamespacedName, Protocol, ServicePortName};

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
        Self::start_with(outcomes, period, |sync| sync)
    }

    fn start_with(outcomes: Vec<Result<Report, Error>>, period: Duration, prepare: impl FnOnce(Sync) -> Sync) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (asked_sender, asked) = mpsc::channel();
        let (desired, newest) = watch::channel(None);
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new(Duration::from_hours(1)));
        let backend = Box::new(Scripted { outcomes: outcomes.into(), asked: asked_sender });
        let mut sync = prepare(Sync::new(backend, period, metrics.clone(), health));
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
        let revision = Revision { store: "test".into(), number: revision };
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

fn service_port_name() -> ServicePortName {
    ServicePortName { service: NamespacedName::new("test", "refused"), port: "".into(), protocol: Protocol::Tcp }
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
fn other_modes_are_left_after_the_first_sync_and_tried_again_without_a_sync() {
    let refusing = Report { refused: vec![(service_port_name(), "for a test".to_owned())], ..Report::default() };
    let (tried, tries) = mpsc::channel();
    let mut failures = 1;
    let mut running = Running::start_with(vec![Err(failure()), Ok(refusing)], LONG, |sync| {
        sync.taking_over(move || {
            tried.send(()).unwrap();
            failures -= 1;
            if failures < 0 { Ok(()) } else { Err(vec![(Mode::Iptables, failure())]) }
        })
    });
    running.want(1);
    for _ in 0..2 {
        tries.recv_timeout(Duration::from_secs(10)).expect("it is tried");
    }
    running.want(2);
    assert_eq!([running.asked(), running.asked(), running.asked()], [Scope::Full, Scope::Full, Scope::Changes]);
    running.stop();
    assert!(tries.try_recv().is_err(), "it had succeeded");
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
