//! Which slots of `ENDPOINTS` are whose: each pool has a contiguous run of them.
//!
//! ```text
//! free ──allot──▶ used ──retire──▶ leaving ──committed──▶ resting ──REST later──▶ free
//! ```
//!
//! A run is never written while anybody may read it. A program that looked up a Service's entry just before it was flipped
//! goes on to read the run that the entry named; so a run rests after the commit that took its last reader away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long a run rests. A program runs for microseconds, so that a second is for a processor that was taken away from a virtual
/// machine in the midst of it. It is no proof, and need not be one: each slot names the Service port that it is of, and a program
/// that finds another's there looks up anew.
pub(crate) const REST: Duration = Duration::from_secs(1);

/// Contiguous slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// The first.
    pub(crate) first: u32,
    /// How many; a run of none has no place.
    pub(crate) len: u32,
}

impl Run {
    /// The slot after the last.
    pub(crate) fn end(self) -> u32 {
        self.first + self.len
    }
}

/// All slots, and what has become of each.
#[derive(Debug)]
pub(crate) struct Slots {
    /// How many there may ever be.
    limit: u32,
    /// No slot from here on was ever in use.
    end: u32,
    /// Free runs below `end`, by their first slot; no two touch.
    free: BTreeMap<u32, u32>,
    /// The same by length.
    by_len: BTreeSet<(u32, u32)>,
    /// Given up, but the kernel may still lead to them.
    leaving: Vec<Run>,
    /// The kernel leads to them no more since that moment.
    resting: VecDeque<(Duration, Run)>,
}

impl Slots {
    /// None in use.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            end: 0,
            free: BTreeMap::new(),
            by_len: BTreeSet::new(),
            leaving: Vec::new(),
            resting: VecDeque::new(),
        }
    }

    /// Takes runs for used that the kernel leads to. They may overlap, if somebody else wrote them.
    pub(crate) fn adopt(&mut self, used: impl IntoIterator<Item = Run>) {
        let used: BTreeSet<_> = used.into_iter().filter(|run| run.len > 0).collect();
        for run in used {
            let run = Run { first: run.first.max(self.end), len: run.end().saturating_sub(run.first.max(self.end)) };
            if run.len == 0 || run.end() > self.limit {
                continue;
            }
            let gap = Run { first: self.end, len: run.first - self.end };
            self.end = run.end();
            self.insert_free(gap);
        }
    }

    /// The smallest free run that will do, or new slots behind all others; `None` where the limit is reached.
    pub(crate) fn allot(&mut self, len: u32) -> Option<Run> {
        if len == 0 {
            return Some(Run::default());
        }
        if let Some((found, first)) = self.by_len.range((len, 0)..).next().copied() {
            self.remove_free(first, found);
            self.insert_free(Run { first: first + len, len: found - len });
            return Some(Run { first, len });
        }
        let end = self.end.checked_add(len).filter(|end| *end <= self.limit)?;
        let run = Run { first: self.end, len };
        self.end = end;
        Some(run)
    }

    /// Gives a run up. It stays as it is until [`committed`](Self::committed).
    pub(crate) fn retire(&mut self, run: Run) {
        if run.len > 0 {
            self.leaving.push(run);
        }
    }

    /// The kernel leads to no run that was given up.
    pub(crate) fn committed(&mut self, now: Duration) {
        self.resting.extend(self.leaving.drain(..).map(|run| (now, run)));
    }

    /// Frees what has rested.
    pub(crate) fn wake(&mut self, now: Duration) {
        while let Some((since, run)) = self.resting.front().copied() {
            if now.saturating_sub(since) < REST {
                break;
            }
            self.resting.pop_front();
            self.insert_free(run);
        }
    }

    /// How many slots there must be.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    fn insert_free(&mut self, run: Run) {
        let Run { mut first, mut len } = run;
        if len == 0 {
            return;
        }
        if let Some((before, before_len)) = self.free.range(..first).next_back().map(|(a, b)| (*a, *b))
            && before + before_len == first
        {
            self.remove_free(before, before_len);
            (first, len) = (before, before_len + len);
        }
        if let Some(after_len) = self.free.get(&(first + len)).copied() {
            self.remove_free(first + len, after_len);
            len += after_len;
        }
        self.free.insert(first, len);
        self.by_len.insert((len, first));
    }

    fn remove_free(&mut self, first: u32, len: u32) {
        self.free.remove(&first);
        self.by_len.remove(&(len, first));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 1000;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_run_rests_from_its_commit_on() {
        let mut slots = Slots::new(LIMIT);
        let run = slots.allot(3).unwrap();
        slots.retire(run);
        slots.wake(at(100));
        assert_eq!(slots.allot(3).unwrap().first, 3, "not committed");
        slots.committed(at(100));
        slots.wake(at(100) + REST - Duration::from_nanos(1));
        assert_eq!(slots.allot(3).unwrap().first, 6, "it rests");
        slots.wake(at(100) + REST);
        assert_eq!(slots.allot(3).unwrap(), run, "it has rested");
    }

    #[test]
    fn the_limit_holds() {
        let mut slots = Slots::new(10);
        assert!(slots.allot(11).is_none());
        assert_eq!(slots.allot(10), Some(Run { first: 0, len: 10 }));
        assert!(slots.allot(1).is_none());
        assert_eq!(slots.allot(0), Some(Run::default()));
    }

    #[test]
    fn adopted_runs_are_used_and_what_lies_between_them_is_free() {
        let run = |first, len| Run { first, len };
        let mut slots = Slots::new(LIMIT);
        slots.adopt([run(20, 5), run(4, 6), run(8, 4), run(LIMIT, 1), run(0, 0)]);
        assert_eq!(slots.end(), 25);
        assert_eq!([slots.allot(4), slots.allot(8), slots.allot(1)], [run(0, 4), run(12, 8), run(25, 1)].map(Some));
    }

    proptest! {
        /// Runs in use or at rest never overlap, and all is one free run again in the end.
        #[test]
        fn no_slot_has_two_owners(ops in prop::collection::vec((0_u32..20, any::<prop::sample::Index>(), 0_u64..3), 1..200)) {
            let mut slots = Slots::new(LIMIT);
            let (mut used, mut resting, mut now) = (Vec::<Run>::new(), Vec::<(u64, Run)>::new(), 0);
            for (len, index, pause) in ops {
                now += pause;
                slots.wake(at(now));
                resting.retain(|(since, _)| at(now - since) < REST);
                if len > 10 && !used.is_empty() {
                    let run = used.swap_remove(index.index(used.len()));
                    slots.retire(run);
                    slots.committed(at(now));
                    resting.push((now, run));
                } else if let Some(run) = slots.allot(len) {
                    prop_assert_eq!(run.len, len);
                    let others = used.iter().chain(resting.iter().map(|(_, run)| run));
                    for other in others.filter(|other| other.len > 0 && run.len > 0) {
                        prop_assert!(run.end() <= other.first || other.end() <= run.first, "{:?} {:?}", run, other);
                    }
                    used.push(run);
                }
            }
            used.into_iter().for_each(|run| slots.retire(run));
            slots.committed(at(now));
            slots.wake(at(now) + REST);
            let whole: Vec<_> = slots.free.clone().into_iter().collect();
            prop_assert!(whole == [(0, slots.end())] || slots.end() == 0, "{:?} of {}", whole, slots.end());
        }
    }
}
