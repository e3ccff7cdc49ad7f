//! What is still to be done about stale flows, with a backoff of its own: connection tracking that fails holds up no rule.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tollgate_model::snapshot::Snapshot;

use super::{Error, StaleFlows, delete, reconcile};

/// How many addresses whose flows could not be deleted are remembered. Those beyond are forgotten, the oldest first: where
/// connection tracking fails for ever, memory must not grow for ever, and a flow that nobody uses ends by itself.
const MAX_OWED: usize = 1 << 16;

/// What a cleaner asks of connection tracking. Returns the number of deletions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job<'a> {
    /// Delete these flows.
    Delete(&'a [StaleFlows]),
    /// Delete whatever leads elsewhere than the snapshot says, and of what was dialled and is no more, these.
    Reconcile(&'a Snapshot, &'a [StaleFlows]),
}

/// Who does a job.
pub(crate) type Perform = Box<dyn FnMut(Job<'_>) -> Result<usize, Error> + Send>;

/// Deletes stale flows, and remembers what it owes where that fails.
pub(crate) struct Cleaner {
    perform: Perform,
    /// Reported and not yet deleted.
    owed: Vec<StaleFlows>,
    /// Whether flows may be stale that nobody has reported.
    owes_reconcile: bool,
    backoff: Option<<ExponentialBuilder as BackoffBuilder>::Backoff>,
    retry_at: Option<Instant>,
}

impl Cleaner {
    /// A cleaner that owes a reconcile: what a proxy before this one left undone is in no report.
    pub(crate) fn new() -> Self {
        Self::with(Box::new(|job| match job {
            Job::Delete(stale) => delete(stale),
            Job::Reconcile(snapshot, gone) => reconcile(snapshot, gone),
        }))
    }

    /// The same, with somebody else who does the jobs.
    pub(crate) fn with(perform: Perform) -> Self {
        Self { perform, owed: Vec::new(), owes_reconcile: true, backoff: None, retry_at: None }
    }

    /// These are to be deleted.
    pub(crate) fn owe(&mut self, stale: Vec<StaleFlows>) {
        self.owed.extend(stale);
        let excess = self.owed.len().saturating_sub(MAX_OWED);
        self.owed.drain(..excess);
    }

    /// Flows may have been made that lead anywhere.
    pub(crate) fn owe_reconcile(&mut self) {
        self.owes_reconcile = true;
    }

    /// When to clean again, after a failure.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Deletes what is owed, now that the kernel holds `applied`. Does nothing while a failure waits for its retry. Returns
    /// the number of deletions; `None` where nothing was to be done.
    ///
    /// What once failed is judged anew by what holds by then: a flow that was stale may lead to an endpoint that serves
    /// again.
    ///
    /// # Errors
    /// With the time until the retry.
    pub(crate) fn clean(&mut self, applied: &Snapshot) -> Result<Option<usize>, (Error, Duration)> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) || !self.owes_reconcile && self.owed.is_empty() {
            return Ok(None);
        }
        let job = match self.owes_reconcile {
            true => Job::Reconcile(applied, &self.owed),
            false => Job::Delete(&self.owed),
        };
        match (self.perform)(job) {
            Ok(deleted) => {
                self.owed = Vec::new();
                self.owes_reconcile = false;
                (self.backoff, self.retry_at) = (None, None);
                Ok(Some(deleted))
            }
            Err(error) => {
                self.owes_reconcile = true;
                let delay = self.delay();
                self.retry_at = Some(Instant::now() + delay);
                Err((error, delay))
            }
        }
    }

    fn delay(&mut self) -> Duration {
        let backoff = self.backoff.get_or_insert_with(|| {
            ExponentialBuilder::new()
                .with_min_delay(Duration::from_millis(100))
                .with_max_delay(Duration::from_secs(30))
                .with_jitter()
                .without_max_times()
                .build()
        });
        backoff.next().unwrap_or(Duration::from_secs(30))
    }
}
