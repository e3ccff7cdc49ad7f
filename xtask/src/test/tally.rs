//! What test binaries say, added up.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How a test's line begins that is skipped because of the kernel: libtest-mimic prints a trial's kind in brackets.
const KERNEL_LACKS: &str = "[this kernel has no ";

/// What the test binaries said, added up.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    /// The skipped ones that need something which the kernel lacks.
    pub(super) lacking: Vec<Trial>,
    /// How long each binary took, by its name.
    pub(super) durations: Vec<(String, Duration)>,
    /// The binary that is running, and since when.
    running: Option<(PathBuf, Instant)>,
}

/// A test of a binary.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Trial {
    pub(super) binary: PathBuf,
    pub(super) name: String,
}

impl Tally {
    /// Takes in a line of cargo's or of a binary's.
    pub(super) fn add(&mut self, line: &str) {
        if let Some(path) = binary(line) {
            self.begin(path);
        } else if let Some(name) = lacking(line) {
            let binary = self.running.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
            self.lacking.push(Trial { binary, name: name.to_owned() });
        } else if let Some((_, counts)) =
            line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        {
            self.count(counts);
            if let Some((path, start)) = self.running.take() {
                self.durations.push((name(&path), start.elapsed()));
            }
        }
    }

    /// Lines are those of this binary from now on.
    pub(super) fn begin(&mut self, binary: PathBuf) {
        self.running = Some((binary, Instant::now()));
    }

    /// Adds up counts such as `12 passed; 0 failed; 1 ignored; ...`.
    fn count(&mut self, counts: &str) {
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    pub(super) fn line(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failed);
        if self.skipped > 0 {
            line += &format!(", {} skipped", self.skipped);
        }
        line
    }
}

/// The binary in a line such as `     Running unittests src/lib.rs (target/debug/deps/tollgate_model-0123)`.
fn binary(line: &str) -> Option<PathBuf> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} doc-tests").into());
    }
    let (_, path) = line.strip_prefix("Running ")?.rsplit_once('(')?;
    Some(path.trim_end_matches(')').into())
}

/// The name of a binary without its hash.
pub(super) fn name(binary: &std::path::Path) -> String {
    let file = binary.file_name().unwrap_or_default().to_string_lossy();
    let is_hash = |hash: &str| hash.chars().all(|c| c.is_ascii_hexdigit());
    file.rsplit_once('-').filter(|(_, hash)| is_hash(hash)).map_or(&*file, |(name, _)| name).to_owned()
}

/// The test in a line such as `test [this kernel has no SCTP] sctp::nftables::ipv4   ... ignored`.
fn lacking(line: &str) -> Option<&str> {
    let (_, rest) = line.trim_end().strip_prefix("test ")?.strip_prefix(KERNEL_LACKS)?.split_once("] ")?;
    Some(rest.strip_suffix(" ignored")?.strip_suffix("...")?.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut tally = Tally::default();
        tally.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        tally.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.add("test some::case ... ok");
        assert_eq!(tally.line(), "15 passed, 2 failed, 1 skipped");
        assert_eq!(tally.lacking, []);
    }

    #[test]
    fn a_skip_is_excused_only_by_the_kernel() {
        let mut tally = Tally::default();
        tally.add("     Running tests/behaviour/main.rs (target/debug/deps/behaviour-0123abcd)");
        tally.add("test [this kernel has no SCTP] sctp::nftables::ipv4   ... ignored");
        tally.add("test [this kernel has no SCTP] sctp::nftables::ipv6   ... ok");
        tally.add("test some::case ... ignored");
        tally.add("test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out");
        let trial =
            Trial { binary: "target/debug/deps/behaviour-0123abcd".into(), name: "sctp::nftables::ipv4".into() };
        assert_eq!((tally.skipped, tally.lacking), (2, vec![trial]));
        assert_eq!(tally.durations.len(), 1);
    }

    #[test]
    fn binaries_are_named_without_their_hash() {
        let line = "     Running unittests src/lib.rs (target/debug/deps/tollgate_model-0123abcd)";
        assert_eq!(binary(line).as_deref().map(name).as_deref(), Some("tollgate_model"));
        assert_eq!(binary("   Doc-tests tollgate_lab").as_deref().map(name).as_deref(), Some("tollgate_lab doc-tests"));
        assert_eq!(binary("running 3 tests"), None);
    }
}
