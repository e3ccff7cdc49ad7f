//! Numbers that the plan allots: of Service ports and of classes.

use std::collections::{BTreeMap, BTreeSet};

use super::object::{ChainName, ElementKey, Key, Objects, SetName, Value, Verdict};
use super::placement::Refusal;
use super::word::{Balance, LAST_NUMBER, Word, low};

/// The numbers of Service ports. A number that was freed comes last in turn, so that a packet on its way through the
/// rules during a change never meets another Service's endpoints.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    taken: BTreeSet<u32>,
    last: u32,
}

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
        if let Some(class) = self.balances.get_mut(&balance) {
            class.uses += 1;
            return Ok(class.number);
        }
        let last = self.last.max(low::FIRST_BALANCE - 1);
        let mut candidates = (last + 1..=low::LAST_CLASS).chain(low::FIRST_BALANCE..=last);
        let number = candidates.find(|number| !self.taken.contains(number));
        let number = number.ok_or(Refusal::Classes(low::LAST_CLASS - low::FIRST_BALANCE + 1))?;
        self.last = number;
        self.taken.insert(number);
        self.balances.insert(balance, Class { number, uses: 1 });
        Ok(number)
    }

    /// One use less. The class stays until [`sweep`](Self::sweep).
    pub(crate) fn leave(&mut self, balance: Balance) {
        if let Some(class) = self.balances.get_mut(&balance) {
            class.uses -= 1;
        }
    }

    /// Forgets the classes that nobody uses.
    pub(crate) fn sweep(&mut self) {
        let taken = &mut self.taken;
        self.balances.retain(|_, class| {
            if class.uses == 0 {
                taken.remove(&class.number);
            }
            class.uses > 0
        });
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
