//! A network's leases: which address is whose, and which ones rest. Pure.
//!
//! As a text it is for people too: a line for each address.
//!
//! ```text
//! 10.1.0.2  3f2a9c  eth0  2026-11-24T08:00:00Z      taken since then
//! 10.1.0.3  -       -     2026-11-24T08:01:00Z      released then
//! ```
//!
//! The lowest address that is neither taken nor resting is given out next, so that the file has no more lines than there
//! are containers, and those that ended within the last minute.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::conf::range::{Range, RangeSet};
use crate::env::Attachment;

/// The leases of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    entries: BTreeMap<IpAddr, Lease>,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose it is; nobody's if it rests.
    pub holder: Option<Attachment>,
    /// Since when.
    pub since: OffsetDateTime,
}

/// A line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongLine {
    /// Which one, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// How long a released address rests, unless there is no other: others may still send to it, or remember where it was.
pub const REST: Duration = Duration::from_secs(60);
const NOBODY: &str = "-";

impl Leases {
    /// Reads the text.
    pub fn parse(text: &str) -> Result<Self, WrongLine> {
        let mut entries = BTreeMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let wrong = |problem: String| WrongLine { line, problem };
            let words: Vec<&str> = text.split_whitespace().collect();
            let [address, container_id, ifname, since] = words[..] else {
                return Err(wrong(format!("{} words, and not address, container, interface, time", words.len())));
            };
            let address: IpAddr = address.parse().map_err(|_| wrong(format!("{address:?} is no address")))?;
            let since = OffsetDateTime::parse(since, &Rfc3339).map_err(|_| wrong(format!("{since:?} is no time")))?;
            let holder = Attachment { container_id: container_id.into(), ifname: ifname.into() };
            let holder = (container_id != NOBODY).then_some(holder);
            if entries.insert(address, Lease { holder, since }).is_some() {
                return Err(wrong(format!("{address} is there twice")));
            }
        }
        Ok(Self { entries })
    }

    /// The text, for a network of that name.
    pub fn render(&self, network: &str) -> String {
        let mut text = format!(
            "# Addresses of the network {network}, kept by tollgate-cni. After a reboot all are free.\n\
             # address, container, interface, taken since; or address, -, -, released at\n"
        );
        for (address, lease) in &self.entries {
            let since = lease.since.format(&Rfc3339).unwrap_or_default();
            let (container, ifname) =
                lease.holder.as_ref().map_or((NOBODY, NOBODY), |holder| (&holder.container_id, &holder.ifname));
            // Writing to a string never fails.
            let _ = writeln!(text, "{address}\t{container}\t{ifname}\t{since}");
        }
        text
    }

    /// Takes an address of each set for `holder`: those that are asked for, and otherwise the lowest that is free and
    /// rested, or the one that has rested longest.
    ///
    /// # Errors
    /// A clause that says why not; then nothing is taken.
    pub fn take(
        &mut self,
        sets: &[RangeSet],
        asked: &[IpAddr],
        holder: &Attachment,
        now: OffsetDateTime,
    ) -> Result<Vec<IpAddr>, String> {
        let before = self.clone();
        // What there may be of an ADD that was killed.
        self.entries.retain(|_, lease| lease.holder.as_ref() != Some(holder));
        self.forget_rested(now);
        let taken = self.choose_all(sets, asked);
        match &taken {
            Ok(ips) => {
                let lease = || Lease { holder: Some(holder.clone()), since: now };
                self.entries.extend(ips.iter().map(|ip| (*ip, lease())));
            }
            Err(_) => *self = before,
        }
        taken
    }

    fn choose_all(&self, sets: &[RangeSet], asked: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        let mut asked: Vec<IpAddr> = asked.to_vec();
        let mut chosen = Vec::new();
        for set in sets {
            let mine = asked.iter().position(|ip| set.iter().any(|range| range.has(*ip)));
            chosen.push(match mine.map(|index| asked.remove(index)) {
                Some(ip) => self.free(ip)?,
                None => self.choose(set)?,
            });
        }
        if let Some(ip) = asked.first() {
            let is_second = sets.iter().flatten().any(|range| range.has(*ip));
            let why = if is_second { "is a second one of its range" } else { "is not one of its addresses" };
            return Err(format!("{ip}, which is asked for, {why}"));
        }
        Ok(chosen)
    }

    /// Lets go of all that `holder` has. Returns whether that was anything.
    pub fn release(&mut self, holder: &Attachment, now: OffsetDateTime) -> bool {
        let mut had_any = false;
        for lease in self.entries.values_mut().filter(|lease| lease.holder.as_ref() == Some(holder)) {
            *lease = Lease { holder: None, since: now };
            had_any = true;
        }
        had_any
    }

    /// The addresses that somebody has.
    pub fn of(&self, holder: &Attachment) -> Vec<IpAddr> {
        let mine = self.entries.iter().filter(|(_, lease)| lease.holder.as_ref() == Some(holder));
        mine.map(|(ip, _)| *ip).collect()
    }

    /// All who have addresses.
    pub fn holders(&self) -> impl Iterator<Item = &Attachment> {
        self.entries.values().filter_map(|lease| lease.holder.as_ref())
    }

    /// The address itself, if nobody has it.
    fn free(&self, ip: IpAddr) -> Result<IpAddr, String> {
        match self.entries.get(&ip).and_then(|lease| lease.holder.as_ref()) {
            None => Ok(ip),
            Some(holder) => Err(format!("{ip}, which is asked for, is that of {holder}")),
        }
    }

    fn choose(&self, set: &RangeSet) -> Result<IpAddr, String> {
        let mut all = set.iter().flat_map(Range::addresses);
        if let Some(rested) = all.find(|ip| !self.entries.contains_key(ip)) {
            return Ok(rested);
        }
        let resting = self.entries.iter().filter(|(_, lease)| lease.holder.is_none());
        let mine = resting.filter(|(ip, _)| set.iter().any(|range| range.has(**ip)));
        mine.min_by_key(|(_, lease)| lease.since).map(|(ip, _)| *ip).ok_or_else(|| {
            let ranges: Vec<String> = set.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
            format!("all of {} are taken", ranges.join(", "))
        })
    }

    fn forget_rested(&mut self, now: OffsetDateTime) {
        // A time to come means that the clock was set back: nobody knows how long that one has rested.
        self.entries.retain(|_, lease| lease.holder.is_some() || (now - lease.since).unsigned_abs() < REST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sets(subnets: &[&str]) -> Vec<RangeSet> {
        let set = |subnet: &&str| vec![Range::of_subnet(subnet.parse().unwrap(), "subnet").unwrap()];
        subnets.iter().map(set).collect()
    }

    fn holder(name: &str) -> Attachment {
        Attachment { container_id: name.into(), ifname: "eth0".into() }
    }

    fn at(second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000 + second).unwrap()
    }

    fn texts(ips: &[IpAddr]) -> Vec<String> {
        ips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_set_gives_an_address() {
        let mut leases = Leases::default();
        let taken = leases.take(&sets(&["10.1.0.0/24", "fd00::/64"]), &[], &holder("a"), at(0)).unwrap();
        assert_eq!(texts(&taken), ["10.1.0.2", "fd00::2"]);
        assert_eq!(leases.of(&holder("a")), taken);
    }

    #[test]
    fn a_released_address_rests_before_it_is_taken_again() {
        let (mut leases, sets) = (Leases::default(), sets(&["10.1.0.0/24"]));
        leases.take(&sets, &[], &holder("a"), at(0)).unwrap();
        assert!(leases.release(&holder("a"), at(1)));
        assert!(!leases.release(&holder("a"), at(1)));
        assert_eq!(texts(&leases.take(&sets, &[], &holder("b"), at(2)).unwrap()), ["10.1.0.3"]);
        assert_eq!(texts(&leases.take(&sets, &[], &holder("c"), at(62)).unwrap()), ["10.1.0.2"]);
    }

    #[test]
    fn where_nothing_else_is_left_the_longest_rested_is_taken() {
        let (mut leases, sets) = (Leases::default(), sets(&["10.1.0.0/29"]));
        for name in ["a", "b", "c", "d", "e"] {
            leases.take(&sets, &[], &holder(name), at(0)).unwrap();
        }
        leases.release(&holder("c"), at(1));
        leases.release(&holder("a"), at(2));
        assert_eq!(texts(&leases.take(&sets, &[], &holder("f"), at(3)).unwrap()), ["10.1.0.4"]);
        assert_eq!(texts(&leases.take(&sets, &[], &holder("g"), at(3)).unwrap()), ["10.1.0.2"]);
        let full = leases.take(&sets, &[], &holder("h"), at(3)).unwrap_err();
        assert_eq!(full, "all of 10.1.0.1-10.1.0.6 are taken");
    }

    #[test]
    fn what_is_asked_for_is_had_or_refused() {
        let (mut leases, sets) = (Leases::default(), sets(&["10.1.0.0/24", "fd00::/64"]));
        let ask = |leases: &mut Leases, ips: &[&str]| {
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            leases.take(&sets, &ips, &holder("a"), at(0)).map(|ips| texts(&ips))
        };
        assert_eq!(ask(&mut leases, &["fd00::7"]).unwrap(), ["10.1.0.2", "fd00::7"]);
        let ask = |leases: &mut Leases, ips: &[&str]| {
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            leases.take(&sets, &ips, &holder("b"), at(0)).map(|ips| texts(&ips))
        };
        let before = leases.clone();
        assert_eq!(
            ask(&mut leases, &["fd00::7"]).unwrap_err(),
            "fd00::7, which is asked for, is that of container a, interface eth0"
        );
        assert_eq!(
            ask(&mut leases, &["10.2.0.1"]).unwrap_err(),
            "10.2.0.1, which is asked for, is not one of its addresses"
        );
        assert_eq!(
            ask(&mut leases, &["10.1.0.1"]).unwrap_err(),
            "10.1.0.1, which is asked for, is not one of its addresses"
        );
        assert!(ask(&mut leases, &["10.1.0.8", "10.1.0.9"]).unwrap_err().contains("a second one"));
        assert_eq!(leases, before);
    }

    #[test]
    fn a_second_attempt_holds_nothing_twice() {
        let (mut leases, sets) = (Leases::default(), sets(&["10.1.0.0/24"]));
        leases.take(&sets, &[], &holder("a"), at(0)).unwrap();
        let again = leases.take(&sets, &[], &holder("a"), at(1)).unwrap();
        assert_eq!(leases.of(&holder("a")), again);
    }

    #[test]
    fn a_large_range_is_no_matter() {
        let (mut leases, sets) = (Leases::default(), sets(&["fd00::/8"]));
        for name in 0..300 {
            leases.take(&sets, &[], &holder(&format!("c{name}")), at(0)).unwrap();
        }
        assert_eq!(leases.holders().count(), 300);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, line) in [
            ("# fine\n10.1.0.2 a eth0", 2),
            ("10.1.0.300 a eth0 2026-11-24T08:00:00Z", 1),
            ("10.1.0.2 a eth0 yesterday", 1),
            ("10.1.0.2 a eth0 2026-11-24T08:00:00Z\n10.1.0.2 b eth0 2026-11-24T08:00:00Z", 2),
        ] {
            assert_eq!(Leases::parse(text).unwrap_err().line, line, "{text}");
        }
    }

    proptest! {
        /// Whatever comes and goes: no address is two containers', and the text keeps everything.
        #[test]
        fn no_address_is_given_out_twice(steps in prop::collection::vec((0u8..12, any::<bool>()), 1..60)) {
            let (mut leases, sets) = (Leases::default(), sets(&["10.1.0.0/29", "fd00::/125"]));
            let mut held: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
            for (second, (name, takes)) in (0..).zip(steps) {
                let who = holder(&format!("c{name}"));
                if takes && !held.contains_key(&name) {
                    if let Ok(ips) = leases.take(&sets, &[], &who, at(second)) {
                        prop_assert!(held.values().flatten().all(|ip| !ips.contains(ip)));
                        held.insert(name, ips);
                    } else {
                        prop_assert_eq!(held.len(), 5);
                    }
                } else if !takes {
                    prop_assert_eq!(leases.release(&who, at(second)), held.remove(&name).is_some());
                }
                leases = Leases::parse(&leases.render("pods")).unwrap();
                prop_assert_eq!(leases.holders().count(), 2 * held.len());
            }
        }
    }
}
