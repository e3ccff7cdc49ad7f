//! The mutants: for each rule a change that breaks it, and one more for each mode that realises it by a line of its own.

use std::fmt;

use anyhow::{Result, ensure};

mod daemon;
mod ebpf;
mod iptables;
mod model;
mod nftables;

/// One change that breaks a rule.
#[derive(Debug)]
pub(super) struct Mutant {
    /// The rule, and the beginning of the names of its cases.
    pub(super) rule: &'static str,
    /// The file, from the root of the tree.
    pub(super) file: &'static str,
    /// What stands in the file once.
    find: &'static str,
    /// What takes its place.
    replace: &'static str,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: `{}` becomes `{}`", self.rule, self.file, self.find, self.replace)
    }
}

impl Mutant {
    /// The file's text with the change.
    pub(super) fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(self.find).count();
        ensure!(count == 1, "`{}` is {count} times in {}, and it must be there once", self.find, self.file);
        Ok(text.replacen(self.find, self.replace, 1))
    }
}

const fn mutant(rule: &'static str, file: &'static str, find: &'static str, replace: &'static str) -> Mutant {
    Mutant { rule, file, find, replace }
}

/// All of them.
pub(super) fn mutants() -> impl Iterator<Item = &'static Mutant> {
    [model::MUTANTS, daemon::MUTANTS, nftables::MUTANTS, iptables::MUTANTS, ebpf::MUTANTS].into_iter().flatten()
}

/// Rules, by the beginning of their cases' names, that no line of ours makes hold, and what does.
pub(super) const WITHOUT: &[(&str, &str)] = &[
    (
        "getpeername-vip",
        "in the netfilter modes the client's socket never hears of a translation: connection tracking undoes it by itself",
    ),
    ("sctp", "all transports go through the same lines, which the rules' own mutants break"),
    ("source-over-tls", "not a rule of Services"),
];

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn every_mutant_fits_the_tree() {
        for mutant in mutants() {
            let text = tree::read(mutant.file).unwrap();
            assert_ne!(mutant.apply(&text).unwrap(), text, "{mutant}");
        }
    }
}
