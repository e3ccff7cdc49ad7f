//! A stream of new connections at an even rate, in the background.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::netns::NetNs;
use crate::poll::eventually;
use crate::probe::{Outcome, Probe, tcp};
use crate::runtime::{block_on, runtime};

/// Connections under way at one time. The stream falls behind its rate rather than have more.
const CONCURRENT: usize = 1024;
/// How often connections are started: those that are due since the last time, together.
const TICK: Duration = Duration::from_millis(2);
/// As long as TCP takes to send a SYN again: whoever takes longer lost one.
const FIRST_RETRANSMISSION: Duration = Duration::from_secs(1);

/// What came of a stream so far.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Connections begun.
    pub started: u64,
    /// Connections that were answered.
    pub answered: u64,
    /// Of those, the ones that took so long that TCP must have sent its first packet again.
    pub retransmitted: u64,
    /// Answers by pod.
    pub by: BTreeMap<String, u64>,
    /// Every connection that was not answered.
    pub failures: Vec<Arc<Failure>>,
    /// The longest that an answered connection took.
    pub slowest: Duration,
    /// The time from the start until now, or until the stream ended.
    pub elapsed: Duration,
}

/// A connection that was not answered.
#[derive(Debug)]
pub struct Failure {
    /// When it began, from the start of the stream.
    pub at: Duration,
    /// The client's namespace.
    pub from: String,
    /// What it dialled.
    pub to: SocketAddr,
    /// What it saw instead of an answer.
    pub outcome: Outcome,
    /// The error of the socket behind it, if there was one.
    pub error: Option<std::io::Error>,
    /// When it saw that, from when it began.
    pub after: Duration,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, from, to, outcome, error, after } = self;
        write!(f, "{:.3} s: from {from} to {to}: {outcome} after {after:.1?}", at.as_secs_f64())?;
        error.iter().try_for_each(|error| write!(f, " ({error})"))
    }
}

impl Counters {
    /// Fails with the first failures if there is any.
    pub fn ensure_none_failed(&self) -> Result<()> {
        let first: Vec<String> = self.failures.iter().take(5).map(ToString::to_string).collect();
        ensure!(
            first.is_empty(),
            "{} of {} connections failed: {}",
            self.failures.len(),
            self.started,
            first.join("; ")
        );
        Ok(())
    }

    /// New connections a second, on average.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn per_second(&self) -> f64 {
        self.started as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections in {:.1} s ({:.0}/s), {} answered, {} failed, {} retransmitted, slowest {:.1?}",
            self.started,
            self.elapsed.as_secs_f64(),
            self.per_second(),
            self.answered,
            self.failures.len(),
            self.retransmitted,
            self.slowest
        )
    }
}

/// New TCP connections from several namespaces in turn, until it is stopped or dropped.
///
/// Each connects, reads who answers, and closes by a reset: nothing stays in TIME_WAIT and ports do not run out.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    pacer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Who dials what, in turn.
    dials: Vec<(NetNs, SocketAddr)>,
    per_second: u32,
    began: Instant,
    stopping: AtomicBool,
    counters: Mutex<Counters>,
}

impl Load {
    /// Starts `per_second` connections a second to `to`.
    pub fn start<'a>(to: SocketAddr, clients: impl IntoIterator<Item = &'a NetNs>, per_second: u32) -> Self {
        Self::start_each(clients.into_iter().map(|client| (client, to)), per_second)
    }

    /// Starts `per_second` connections a second, where each client dials an address of its own.
    pub fn start_each<'a>(dials: impl IntoIterator<Item = (&'a NetNs, SocketAddr)>, per_second: u32) -> Self {
        let shared = Arc::new(Shared {
            dials: dials.into_iter().map(|(client, to)| (client.clone(), to)).collect(),
            per_second,
            began: Instant::now(),
            stopping: AtomicBool::new(false),
            counters: Mutex::default(),
        });
        assert!(!shared.dials.is_empty(), "a stream of connections needs a client");
        let pacer = runtime().spawn(pace(shared.clone()));
        Self { shared, pacer: Some(pacer) }
    }

    /// What came of it so far.
    pub fn counters(&self) -> Counters {
        Counters { elapsed: self.shared.began.elapsed(), ..self.shared.lock().clone() }
    }

    /// Waits until `count` more connections have begun.
    pub fn run_for(&self, count: u64) -> Result<()> {
        let target = self.shared.lock().started + count;
        eventually("the stream of connections to go on", || {
            let started = self.shared.lock().started;
            ensure!(started >= target, "{started} of {target} connections have begun");
            Ok(())
        })
    }

    /// Ends the stream, waits for what is under way, and returns what came of it all.
    pub fn stop(mut self) -> Counters {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let elapsed = self.shared.began.elapsed();
        if let Some(pacer) = self.pacer.take() {
            block_on(pacer).expect("the pacer does not panic");
        }
        Counters { elapsed, ..self.shared.lock().clone() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(pacer) = self.pacer.take() {
            pacer.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        // The counters are whole after every statement, so a panic elsewhere does not spoil them.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections should have begun by now.
    fn due(&self) -> u64 {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        micros.saturating_mul(self.per_second.into()) / 1_000_000
    }
}

async fn pace(shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0;
    while !shared.stopping.load(Ordering::Relaxed) {
        ticks.tick().await;
        while number < shared.due() && !shared.stopping.load(Ordering::Relaxed) {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            tokio::spawn(connect(shared.clone(), number, slot));
            number += 1;
        }
    }
    // All slots are free again when the last connection has ended.
    let all = u32::try_from(CONCURRENT).expect("a small number");
    let _all = slots.acquire_many(all).await;
}

async fn connect(shared: Arc<Shared>, number: u64, _slot: OwnedSemaphorePermit) {
    let dials = u64::try_from(shared.dials.len()).expect("a small number");
    let (client, to) = &shared.dials[usize::try_from(number % dials).expect("an index")];
    shared.lock().started += 1;
    let began = Instant::now();
    let result = timeout(Probe::PATIENCE, tcp::exchange(client, None, *to)).await;
    let elapsed = began.elapsed();
    let mut counters = shared.lock();
    let (outcome, error) = match result {
        Ok(Ok(answer)) => {
            counters.answered += 1;
            counters.retransmitted += u64::from(elapsed >= FIRST_RETRANSMISSION);
            counters.slowest = counters.slowest.max(elapsed);
            *counters.by.entry(answer.by).or_default() += 1;
            return;
        }
        Ok(Err(error)) => (Outcome::from(&error), Some(error)),
        Err(_) => (Outcome::Timeout, None),
    };
    let at = began.duration_since(shared.began);
    let (from, to) = (client.name().to_owned(), *to);
    counters.failures.push(Arc::new(Failure { at, from, to, outcome, error, after: elapsed }));
}
