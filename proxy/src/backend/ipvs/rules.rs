//! Chains of iptables and the rules that lead to them, compared with a listing, and the text that makes of the one the
//! other. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::style::{PREFIX, jumps};
use crate::backend::iptables::readback::{is_same, target};

/// Tables, in the order of writing.
const TABLES: [&str; 3] = ["filter", "nat", "mangle"];

/// A chain and its rules, as `iptables-save` writes them, without `-A` and the chain's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) table: &'static str,
    pub(crate) name: String,
    pub(crate) rules: Vec<String>,
}

/// A rule in a built-in chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Jump {
    pub(crate) table: &'static str,
    pub(crate) base: &'static str,
    pub(crate) rule: String,
}

/// What is ours in the tables of one family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing<'a> {
    chains: BTreeMap<(&'static str, &'a str), Vec<&'a str>>,
    /// Table, chain, rule.
    jumps: Vec<(&'static str, &'a str, &'a str)>,
}

/// Where rules that lead to ours are ours. In a chain that somebody made, they are his.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

impl<'a> Listing<'a> {
    /// Reads what `iptables-save` prints.
    pub(crate) fn read(text: &'a str) -> Self {
        let (mut listing, mut table) = (Self::default(), None);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = TABLES.into_iter().find(|table| *table == name);
            } else if let Some(table) = table {
                listing.line(table, line);
            }
        }
        listing
    }

    fn line(&mut self, table: &'static str, line: &'a str) {
        if let Some(declared) = line.strip_prefix(':') {
            let chain = declared.split(' ').next().unwrap_or_default();
            if chain.starts_with(PREFIX) {
                self.chains.entry((table, chain)).or_default();
            }
            return;
        }
        let Some((_, rest)) = line.split_once("-A ") else { return };
        let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
        if let Some(rules) = self.chains.get_mut(&(table, chain)) {
            rules.push(rule);
        } else if BUILT_IN.contains(&chain) && target(rule).is_some_and(|target| target.starts_with(PREFIX)) {
            self.jumps.push((table, chain, rule));
        }
    }

    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }
}

/// What makes of a listing these chains and their jumps: a text for `iptables-restore`, empty where nothing differs, and a
/// line for each thing that does.
pub(crate) fn changes(wanted: &[Chain], found: &Listing<'_>) -> (String, Vec<String>) {
    let (mut text, mut lines) = (String::new(), Vec::new());
    for table in TABLES {
        let mut written = Table::default();
        for chain in wanted.iter().filter(|chain| chain.table == table) {
            let rules = found.chains.get(&(table, chain.name.as_str()));
            let is_there = rules.is_some_and(|rules| {
                rules.len() == chain.rules.len() && rules.iter().zip(&chain.rules).all(|(found, it)| is_same(it, found))
            });
            if !is_there {
                lines.push(format!(
                    "chain {} of {table} {}",
                    chain.name,
                    if rules.is_some() { "was altered" } else { "was missing" }
                ));
                written.chain(chain);
            }
        }
        written.jumps(table, found, &mut lines);
        let is_wanted = |name: &str| wanted.iter().any(|chain| chain.table == table && chain.name == name);
        let gone = found.chains.keys().filter(|(of, name)| *of == table && !is_wanted(name));
        for (_, name) in gone.collect::<Vec<_>>() {
            lines.push(format!("chain {name} of {table} was not wanted"));
            written.deletion(name);
        }
        written.write(table, &mut text);
    }
    (text, lines)
}

/// The text that removes all that a listing has.
pub(crate) fn removal(found: &Listing<'_>) -> String {
    let mut text = String::new();
    for table in TABLES {
        let mut written = Table::default();
        for (_, base, rule) in found.jumps.iter().filter(|(of, ..)| *of == table) {
            let _ = writeln!(written.rules, "-D {base} {rule}");
        }
        found.chains.keys().filter(|(of, _)| *of == table).for_each(|(_, name)| written.deletion(name));
        written.write(table, &mut text);
    }
    text
}

/// The part of a text that is about one table.
#[derive(Default)]
struct Table {
    /// Chains must be known before a rule leads to them. One that is there is emptied by this.
    declarations: String,
    rules: String,
    deletions: String,
}

impl Table {
    fn chain(&mut self, chain: &Chain) {
        // Writing to a string does not fail.
        let _ = writeln!(self.declarations, ":{} - [0:0]", chain.name);
        for rule in &chain.rules {
            let _ = writeln!(self.rules, "-A {} {rule}", chain.name);
        }
    }

    /// Where a built-in chain has not just the jump it should have, all of ours there are made anew.
    fn jumps(&mut self, table: &str, found: &Listing<'_>, lines: &mut Vec<String>) {
        let wanted = jumps();
        let wanted = wanted.iter().filter(|jump| jump.table == table);
        let bases: BTreeSet<&str> = (wanted.clone().map(|jump| jump.base))
            .chain(found.jumps.iter().filter(|(of, ..)| *of == table).map(|(_, base, _)| *base))
            .collect();
        for base in bases {
            let wanted: Vec<_> = wanted.clone().filter(|jump| jump.base == base).collect();
            let found: Vec<_> = found
                .jumps
                .iter()
                .filter(|(of, chain, _)| (*of, *chain) == (table, base))
                .map(|(.., rule)| *rule)
                .collect();
            if wanted.len() == found.len() && wanted.iter().zip(&found).all(|(jump, rule)| is_same(&jump.rule, rule)) {
                continue;
            }
            lines.push(format!("the rules of {base} of {table} that lead to ours were not as they should be"));
            for rule in found {
                let _ = writeln!(self.rules, "-D {base} {rule}");
            }
            for jump in wanted {
                let _ = writeln!(self.rules, "-I {base} 1 {}", jump.rule);
            }
        }
    }

    fn deletion(&mut self, name: &str) {
        // Emptied before any goes: one may lead to another.
        let _ = writeln!(self.declarations, ":{name} - [0:0]");
        let _ = writeln!(self.deletions, "-X {name}");
    }

    fn write(self, table: &str, text: &mut String) {
        let Self { declarations, rules, deletions } = self;
        if !(declarations.is_empty() && rules.is_empty() && deletions.is_empty()) {
            let _ = write!(text, "*{table}\n{declarations}{rules}{deletions}COMMIT\n");
        }
    }
}
