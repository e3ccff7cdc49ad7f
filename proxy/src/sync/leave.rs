//! What a mode before this one has left, on its way out.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};

use super::chain;
use crate::backend::{self, Mode};

/// Removes what other modes have left; fails with what may be left, and why.
pub(super) type LeaveOthers = Box<dyn FnMut() -> Result<(), Vec<(Mode, backend::Error)>> + Send>;

const MIN_DELAY: Duration = Duration::from_secs(1);
/// What somebody else's rule keeps in place may stay for as long as that rule.
const MAX_DELAY: Duration = Duration::from_mins(10);

/// The removal, until it has succeeded.
pub(super) struct Leaving {
    leave: LeaveOthers,
    delays: <ExponentialBuilder as BackoffBuilder>::Backoff,
    /// When to try again; `None` before the first time.
    retry_at: Option<Instant>,
    /// What was logged last.
    told: Vec<(Mode, String)>,
}

impl Leaving {
    /// Not tried yet.
    pub(super) fn new(leave: LeaveOthers) -> Self {
        let delays = ExponentialBuilder::new().with_min_delay(MIN_DELAY).with_max_delay(MAX_DELAY);
        let delays = delays.with_jitter().without_max_times().build();
        Self { leave, delays, retry_at: None, told: Vec::new() }
    }

    /// Whether it was never tried.
    pub(super) fn is_new(&self) -> bool {
        self.retry_at.is_none()
    }

    /// When to try again what has failed.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries; whether nothing is left. A failure is logged when it is another than the last.
    pub(super) fn leave(&mut self) -> bool {
        let Err(errors) = (self.leave)() else {
            if !self.told.is_empty() {
                tracing::info!("what another mode had left is removed");
            }
            return true;
        };
        let delay = self.delays.next().unwrap_or(MAX_DELAY);
        self.retry_at = Some(Instant::now() + delay);
        let errors: Vec<_> = errors.into_iter().map(|(mode, error)| (mode, chain(&error))).collect();
        for (mode, error) in errors.iter().filter(|error| !self.told.contains(error)) {
            tracing::warn!(
                %mode, error, retry_in = ?delay,
                "cannot remove what another mode may have left; it is tried again now and then, and `tollgate-proxy cleanup` tries too"
            );
        }
        self.told = errors;
        false
    }
}
