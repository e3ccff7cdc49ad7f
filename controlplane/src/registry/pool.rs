//! Numbers that are handed out once: ClusterIPs of one family, node ports.

use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use tollgate_api::v1::Key;

/// A range of numbers and who holds which. Cloning one costs nothing, so that a refused write is undone by keeping the
/// clone from before.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    first: u128,
    last: u128,
    /// From here on numbers are handed out unasked; those below are left to people who ask for one, while there are
    /// others.
    dynamic: u128,
    /// The number to look at first. It only ever moves on, so that a released number stays unused for as long as
    /// possible: clients and conntrack entries of its former holder may still be around.
    cursor: u128,
    /// Holders, also of numbers outside of the range: it may have been another one when they were handed out.
    holders: OrdMap<u128, Arc<Key>>,
    /// How many numbers of the range are held.
    used: u64,
}

impl Pool {
    /// A pool of the numbers `first` to `last`, of which the first `reserved` are handed out last. `seed` chooses where
    /// handing out begins, so that a restart does not reuse what was released just before.
    pub(crate) fn new(first: u128, last: u128, reserved: u128, seed: u128) -> Self {
        let dynamic = first.saturating_add(reserved).min(last);
        let cursor = dynamic + seed % (last - dynamic + 1);
        Pool { first, last, dynamic, cursor, holders: OrdMap::new(), used: 0 }
    }

    /// The first number that is handed out unasked.
    #[cfg(test)]
    pub(crate) fn first_dynamic(&self) -> u128 {
        self.dynamic
    }

    /// Whether the range has this number.
    pub(crate) fn contains(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// Gives the number to `key`, unless another has it: then says who.
    pub(crate) fn claim(&mut self, number: u128, key: &Arc<Key>) -> Result<(), Arc<Key>> {
        match self.holders.get(&number) {
            Some(holder) if holder != key => Err(holder.clone()),
            Some(_) => Ok(()),
            None => {
                self.hold(number, key);
                Ok(())
            }
        }
    }

    /// Gives some free number to `key`; `None` when there is none left.
    pub(crate) fn take(&mut self, key: &Arc<Key>) -> Option<u128> {
        let number = self
            .first_free(self.cursor, self.last)
            .or_else(|| self.first_free(self.dynamic, self.cursor))
            .or_else(|| self.first_free(self.first, self.dynamic))?;
        self.cursor = if number >= self.last || number < self.dynamic { self.dynamic } else { number + 1 };
        self.hold(number, key);
        Some(number)
    }

    /// Takes the number back from `key`; does nothing where another holds it.
    pub(crate) fn release(&mut self, number: u128, key: &Key) {
        if self.holders.get(&number).is_some_and(|holder| **holder == *key) {
            self.holders.remove(&number);
            self.used -= u64::from(self.contains(number));
        }
    }

    /// How many numbers of the range are held, and how many there are.
    pub(crate) fn usage(&self) -> (u64, u128) {
        (self.used, (self.last - self.first).saturating_add(1))
    }

    fn hold(&mut self, number: u128, key: &Arc<Key>) {
        self.holders.insert(number, key.clone());
        self.used += u64::from(self.contains(number));
    }

    fn first_free(&self, from: u128, to: u128) -> Option<u128> {
        let mut free = from;
        for (held, _) in self.holders.range(from..=to) {
            if *held != free {
                break;
            }
            free = free.checked_add(1)?;
        }
        (free <= to).then_some(free)
    }
}

/// The range: `30000-32767`.
impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How many numbers at the start of a range of `size` Kubernetes leaves to those who ask for a certain one: one in
/// `share`, at least 16 and at most `most`; none of a range that is no larger than that least (KEP-3070 for ClusterIPs,
/// KEP-3668 for node ports).
pub(crate) fn static_part(size: u128, share: u128, most: u128) -> u128 {
    const LEAST: u128 = 16;
    if size <= LEAST { 0 } else { (size / share).clamp(LEAST, most) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> Arc<Key> {
        Arc::new(Key::service("default", name))
    }

    #[test]
    fn reserved_numbers_go_last_and_an_empty_pool_says_so() {
        let mut pool = Pool::new(1, 6, 2, 1);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take(&key("a"))).collect();
        assert_eq!(taken, [4, 5, 6, 3, 1, 2]);
    }

    #[test]
    fn released_numbers_are_not_reused_at_once() {
        let mut pool = Pool::new(0, 9, 0, 0);
        assert_eq!(pool.take(&key("a")), Some(0));
        pool.release(0, &key("a"));
        assert_eq!(pool.take(&key("a")), Some(1));
    }

    #[test]
    fn a_held_number_is_refused_with_its_holder() {
        let mut pool = Pool::new(0, 9, 0, 0);
        assert_eq!(pool.claim(3, &key("a")), Ok(()));
        assert_eq!(pool.claim(3, &key("a")), Ok(()));
        assert_eq!(pool.claim(3, &key("b")), Err(key("a")));
        pool.release(3, &key("b"));
        assert_eq!(pool.claim(3, &key("b")), Err(key("a")));
    }

    #[test]
    fn the_last_number_there_is_does_not_overflow() {
        let mut pool = Pool::new(u128::MAX - 1, u128::MAX, 0, 0);
        assert_eq!(pool.take(&key("a")), Some(u128::MAX - 1));
        assert_eq!(pool.take(&key("a")), Some(u128::MAX));
        assert_eq!(pool.take(&key("a")), None);
    }

    proptest! {
        #[test]
        fn no_number_is_held_twice(seed: u128, steps in proptest::collection::vec((any::<bool>(), 0..20_u128), 0..200)) {
            let mut pool = Pool::new(5, 19, 4, seed);
            let mut held = BTreeSet::new();
            for (take, number) in steps {
                if take {
                    match pool.take(&key("a")) {
                        Some(number) => prop_assert!((5..=19).contains(&number) && held.insert(number)),
                        None => prop_assert_eq!(held.len(), 15),
                    }
                } else {
                    pool.release(number, &key("a"));
                    held.remove(&number);
                }
                prop_assert_eq!(pool.usage(), (held.len() as u64, 15));
            }
        }
    }
}
