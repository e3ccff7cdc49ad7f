//! Where a mode does not do what a rule says: all of it, in one place.
//!
//! The case of a deviation runs as every other, and has to fail as it is said here: when it passes, the line has to go. The
//! README shows the list to users, which a trial sees to.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tollgate_lab::Mode;

/// One case that a mode fails.
pub(crate) struct Deviation {
    /// The mode, by its name.
    pub(crate) mode: &'static str,
    /// The case, by the name that it has in the list of cases.
    pub(crate) case: &'static str,
    /// Words of the error that it fails with.
    pub(crate) symptom: &'static str,
    /// Why, for users.
    pub(crate) reason: &'static str,
}

/// Every deviation of every mode.
pub(crate) const DEVIATIONS: &[Deviation] = &[
    Deviation { mode: "ebpf", case: "hairpin-masqueraded", symptom: "expected a source of", reason: WITHIN_THE_POD },
    Deviation {
        mode: "ebpf",
        case: "hairpin-external-masqueraded",
        symptom: "expected a source of",
        reason: WITHIN_THE_POD,
    },
    Deviation {
        mode: "ebpf",
        case: "hairpin-masqueraded-no-detection",
        symptom: "expected a source of",
        reason: WITHIN_THE_POD,
    },
    Deviation {
        mode: "ebpf",
        case: "invalid-dropped",
        symptom: "the answer itself is seen",
        reason: "a socket is connected to its endpoint, so nothing has to be translated back: what conntrack calls INVALID comes \
                 from the address that the socket knows, and TCP itself ignores it",
    },
];

const WITHIN_THE_POD: &str = "a pod that is handed itself is connected to itself, inside the pod: there is no packet to \
                              masquerade, and it sees its own address";

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const HEADING: &str = "### Where a mode deviates";
const NONE: &str = "Nowhere: every mode keeps every rule.";

/// That of a case on a mode, if there is one.
pub(crate) fn of(mode: Mode, case: &str) -> Option<&'static Deviation> {
    DEVIATIONS.iter().find(|deviation| deviation.mode == mode.name() && deviation.case == case)
}

impl Deviation {
    /// Turns what came of the case around.
    pub(crate) fn judge(&self, result: Result<(), String>) -> Result<(), String> {
        match result {
            Err(error) if error.contains(self.symptom) => Ok(()),
            Err(error) => Err(format!("it fails, but not by {:?} as its deviation says: {error}", self.symptom)),
            Ok(()) => Err(format!("{} keeps {}: its line in the list of deviations has to go", self.mode, self.case)),
        }
    }

    /// As a row of the README's table.
    fn row(&self) -> String {
        format!("| `{}` | `{}` | {} |", self.mode, self.case, self.reason)
    }
}

/// The README has exactly this list, and the list has only modes and cases that there are.
pub(crate) fn check(cases: &[&str]) -> Result<()> {
    for Deviation { mode, case, .. } in DEVIATIONS {
        ensure!(Mode::parse(mode).is_some(), "there is no mode {mode}");
        ensure!(cases.contains(case), "there is no case {case}");
    }
    let readme = std::fs::read_to_string(Path::new(README)).context("can't read the README")?;
    let (_, section) = readme.split_once(HEADING).with_context(|| format!("the README has no {HEADING:?}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = DEVIATIONS.iter().map(Deviation::row).collect();
    if rows != expected {
        bail!("below {HEADING:?} the README must have:\n{}", expected.join("\n"));
    }
    ensure!(section.contains(NONE) == expected.is_empty(), "the README says {NONE:?} only where it is so");
    Ok(())
}
