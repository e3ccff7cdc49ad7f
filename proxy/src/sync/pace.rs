//! How long a change waits for others to come with it.
//!
//! A backend whose sync is quick applies each change at once. One whose sync takes the same long time for one change as for
//! many, as that of iptables does, would take it twice for a new Service, which comes just before its EndpointSlice: the first
//! sync would make it refuse, and the second would have to wait for the first. There, a small part of what the sync will
//! take anyway is spent on waiting for the rest.

use std::time::Duration;

/// A backend that is quicker than this waits for nothing.
const SLOW: Duration = Duration::from_millis(20);
/// One part in this many of what a sync takes.
const SHARE: u32 = 8;
/// A control plane writes two objects of one client within this time; a person notices nothing of it.
const LONGEST: Duration = Duration::from_millis(10);

/// What syncs of changes have taken lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Of two syncs, the quicker: a single slow one says more of what else the machine did.
    last: [Option<Duration>; 2],
}

impl Pace {
    /// Notes what a sync took that wrote something.
    pub(super) fn took(&mut self, elapsed: Duration) {
        self.last = [Some(elapsed), self.last[0]];
    }

    /// How long to wait for more before the next.
    pub(super) fn gathering(&self) -> Duration {
        match self.last {
            [Some(last), Some(before)] if last.min(before) >= SLOW => (last.min(before) / SHARE).min(LONGEST),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_backend_that_is_slow_each_time_waits_and_never_long() {
        let gathering = |took: &[u64]| {
            let mut pace = Pace::default();
            took.iter().for_each(|ms| pace.took(Duration::from_millis(*ms)));
            pace.gathering().as_micros()
        };
        for (took, waits) in [
            (&[][..], 0),
            (&[80], 0),
            (&[80, 40], 5_000),
            (&[80, 400], 10_000),
            (&[400, 400], 10_000),
            (&[1, 80], 0),
            (&[80, 1], 0),
            (&[80, 80, 1], 0),
            (&[19, 19], 0),
        ] {
            assert_eq!(gathering(took), waits, "{took:?}");
        }
    }
}
