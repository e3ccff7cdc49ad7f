//! Numbers that the plan allots: of Service ports and of classes.

use std::collections::{BTreeMap, BTreeSet};

use tollgate_model::name::Protocol;

use super::object::{ChainName, ElementKey, Key, Objects, SetName, Value, Verdict};
use super::placement::Refusal;
use super::word::{Balance, LAST_NUMBER, PoolKind, Word, low};

/// The numbers of Service ports. A number that was freed comes last in turn, so that a packet on its way through the
/// rules during a change never meets another Service's endpoints.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    taken: BTreeSet<u32>,
    last: u32,
}

/// Spare classes are no fewer and no more than up to these counts.
const MIN_SPARES: u32 = 8;
const MAX_SPARES: u32 = 256;

/// The numbers of classes.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    balances: BTreeMap<Balance, Class>,
    taken: BTreeSet<u16>,
    last: u16,
}

#[derive(Debug)]
struct Class {
    number: u16,
    /// How many pools are in it.
    uses: usize,
}

impl Numbers {
    /// A number that nobody has, and that is not in the kernel either.
    pub(crate) fn allot(&mut self, listed: &BTreeSet<u32>) -> Result<u32, Refusal> {
        let mut candidates = (self.last + 1..=LAST_NUMBER).chain(1..=self.last.min(LAST_NUMBER));
        let number = candidates.find(|number| !self.taken.contains(number) && !listed.contains(number));
        let number = number.ok_or(Refusal::Numbers(LAST_NUMBER))?;
        self.last = number;
        self.taken.insert(number);
        Ok(number)
    }

    /// Takes a number that the kernel has; false if somebody else did.
    pub(crate) fn take(&mut self, number: u32) -> bool {
        let is_free = (1..=LAST_NUMBER).contains(&number) && self.taken.insert(number);
        if is_free {
            self.last = self.last.max(number);
        }
        is_free
    }

    /// Gives a number back.
    pub(crate) fn free(&mut self, number: u32) {
        self.taken.remove(&number);
    }
}

impl Classes {
    /// The classes that the kernel has: each may keep its number.
    pub(crate) fn adopt(&mut self, listed: &Objects) {
        let from = Key::Element(SetName::Picks, ElementKey::Word(Word::class(low::FIRST_BALANCE)));
        let to = Key::Element(SetName::Picks, ElementKey::Word(Word::class(low::LAST_CLASS)));
        for (key, value) in listed.range(from..=to) {
            let Key::Element(_, ElementKey::Word(word)) = key else { continue };
            let Value::Verdict(Verdict::Goto(ChainName::Balance(balance))) = value else { continue };
            if !self.balances.contains_key(balance) {
                self.balances.insert(*balance, Class { number: word.low(), uses: 0 });
                self.taken.insert(word.low());
                self.last = self.last.max(word.low());
            }
        }
    }

    /// The class of a balance; a new one if it has none yet.
    pub(crate) fn enter(&mut self, balance: Balance) -> Result<u16, Refusal> {
        let number = self.add(balance)?;
        self.balances.entry(balance).and_modify(|class| class.uses += 1);
        Ok(number)
    }

    fn add(&mut self, balance: Balance) -> Result<u16, Refusal> {
        if let Some(class) = self.balances.get(&balance) {
            return Ok(class.number);
        }
        let last = self.last.max(low::FIRST_BALANCE - 1);
        let mut candidates = (last + 1..=low::LAST_CLASS).chain(low::FIRST_BALANCE..=last);
        let number = candidates.find(|number| !self.taken.contains(number));
        let number = number.ok_or(Refusal::Classes(low::LAST_CLASS - low::FIRST_BALANCE + 1))?;
        self.last = number;
        self.taken.insert(number);
        self.balances.insert(balance, Class { number, uses: 0 });
        Ok(number)
    }

    /// One use less. The class stays until [`sweep`](Self::sweep).
    pub(crate) fn leave(&mut self, balance: Balance) {
        if let Some(class) = self.balances.get_mut(&balance) {
            class.uses -= 1;
        }
    }

    /// Adds classes for endpoint counts that nobody has and somebody may come to have: for each combination in use, up to
    /// twice its largest count.
    pub(crate) fn add_spares(&mut self) {
        for (combination, largest) in self.largest_counts() {
            let (pool, protocol, timeout) = combination;
            for count in 1..=spares(largest) {
                // Never at the cost of a class that somebody needs.
                if self.taken.len() < usize::from(low::LAST_CLASS / 2) {
                    let _ = self.add(Balance { pool, protocol, count, timeout });
                }
            }
        }
    }

    /// Forgets the classes that nobody uses, and that are not spares.
    pub(crate) fn sweep(&mut self) {
        let largest = self.largest_counts();
        let taken = &mut self.taken;
        self.balances.retain(|balance, class| {
            let stays = class.uses > 0
                || largest.get(&combination(*balance)).is_some_and(|largest| balance.count <= spares(*largest));
            if !stays {
                taken.remove(&class.number);
            }
            stays
        });
    }

    fn largest_counts(&self) -> BTreeMap<Combination, u32> {
        let mut largest = BTreeMap::new();
        for (balance, _) in self.balances.iter().filter(|(_, class)| class.uses > 0) {
            let found = largest.entry(combination(*balance)).or_insert(0);
            *found = balance.count.max(*found);
        }
        largest
    }

    /// All classes with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Balance, u16)> {
        self.balances.iter().map(|(balance, class)| (*balance, class.number))
    }

    /// Whether a balance has a class.
    pub(crate) fn contains(&self, balance: Balance) -> bool {
        self.balances.contains_key(&balance)
    }
}

/// What balances have in common that differ only in their count.
type Combination = (PoolKind, Protocol, Option<u32>);

fn combination(balance: Balance) -> Combination {
    (balance.pool, balance.protocol, balance.timeout)
}

/// Up to which count there are spares, given the largest in use.
fn spares(largest: u32) -> u32 {
    largest.saturating_mul(2).clamp(MIN_SPARES, MAX_SPARES)
}
