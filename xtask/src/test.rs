//! `cargo xtask test`: every test, from the unit to the lab, and one line that counts them.

use std::io::{self, BufRead, BufReader};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::build;
use crate::setup::{self, Mode};

/// The test binaries that work in network namespaces.
const NAMESPACED: [&str; 4] = ["behaviour", "lab", "nftables", "conntrack"];

/// How a test's line begins that is skipped because of the kernel: libtest-mimic prints a trial's kind in brackets.
const KERNEL_LACKS: &str = "test [this kernel has no ";

/// Run every test: units, and the behaviour of the whole in network namespaces.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do not ask before installing what is missing.
    #[arg(long)]
    yes: bool,
    /// Run only tests whose name contains this.
    filter: Option<String>,
}

/// What the test binaries said, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Of those, the ones that need something which this machine's kernel lacks.
    excused: u64,
    /// How long each binary took, by its name.
    durations: Vec<(String, Duration)>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(Mode::All, args.yes)?;
    let start = Instant::now();
    build::run(&["test", "--workspace", "--no-run", "--quiet"])?;
    let build_time = start.elapsed();

    let mut cargo_args = vec!["test", "--workspace", "--no-fail-fast", "--color=never"];
    if let Some(filter) = &args.filter {
        cargo_args.extend(["--", filter]);
    }
    let (mut tally, is_success) = watch(&cargo_args)?;

    let namespaced = tally.durations.iter().filter(|(name, _)| NAMESPACED.contains(&name.as_str()));
    let namespaces_time: Duration = namespaced.map(|(_, duration)| *duration).sum();
    println!("\nbuild: {}, namespaces: {}, the longest:", seconds(build_time), seconds(namespaces_time));
    tally.durations.sort_by_key(|(_, duration)| std::cmp::Reverse(*duration));
    for (name, duration) in tally.durations.iter().take(6) {
        println!("  {name}: {}", seconds(*duration));
    }
    // A skipped test proves nothing: CI has all that the tests need, but for what its kernel lacks.
    let is_ci = std::env::var_os("CI").is_some();
    let has_forbidden_skips = is_ci && tally.skipped > tally.excused;
    if has_forbidden_skips {
        let (skipped, excused) = (tally.skipped, tally.excused);
        eprintln!("error: {skipped} skipped, and in CI only those may be that the kernel can't run ({excused})");
    }
    if !is_success && tally.failed == 0 {
        // A binary that died before it could count.
        eprintln!("error: cargo test failed beyond the counted tests; see above");
        tally.failed = 1;
    }
    let is_ok = is_success && tally.failed == 0 && !has_forbidden_skips;
    println!("{}", tally.line());
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs cargo, passes its output on, and adds up what it says.
fn watch(cargo_args: &[&str]) -> Result<(Tally, bool)> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    // Both streams through one pipe keep the order between cargo's lines and the tests'.
    let mut command = build::cargo(cargo_args);
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cannot run cargo")?;
    // The command holds the pipe's writing end: without dropping it, the reader below would never see the end.
    drop(command);
    let mut tally = Tally::default();
    let mut running: Option<(String, Instant)> = None;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(name) = binary_name(&line) {
            running = Some((name, Instant::now()));
        }
        if tally.add(&line)
            && let Some((name, start)) = running.take()
        {
            tally.durations.push((name, start.elapsed()));
        }
    }
    Ok((tally, child.wait()?.success()))
}

/// The binary in a line such as `     Running unittests src/lib.rs (target/debug/deps/tollgate_model-0123)`.
fn binary_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} doc-tests"));
    }
    let (_, path) = line.strip_prefix("Running ")?.rsplit_once('(')?;
    let file = path.trim_end_matches(')').rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

impl Tally {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; ...`; false for any other line.
    fn add(&mut self, line: &str) -> bool {
        if line.starts_with(KERNEL_LACKS) && line.trim_end().ends_with(" ignored") {
            self.excused += 1;
            return false;
        }
        let Some((_, counts)) = line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return false;
        };
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
        true
    }

    fn line(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failed);
        if self.skipped > 0 {
            line += &format!(", {} skipped", self.skipped);
        }
        line
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut tally = Tally::default();
        assert!(
            tally.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s")
        );
        assert!(tally.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out"));
        assert!(!tally.add("test some::case ... ok"));
        assert_eq!(tally.line(), "15 passed, 2 failed, 1 skipped");
        assert_eq!(tally.excused, 0);
    }

    #[test]
    fn a_skip_is_excused_only_by_the_kernel() {
        let mut tally = Tally::default();
        assert!(!tally.add("test [this kernel has no SCTP] sctp::nftables::ipv4   ... ignored"));
        assert!(!tally.add("test [this kernel has no SCTP] sctp::nftables::ipv6   ... ok"));
        assert!(!tally.add("test some::case ... ignored"));
        assert!(tally.add("test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out"));
        assert_eq!((tally.skipped, tally.excused), (2, 1));
    }

    #[test]
    fn binaries_are_named_without_their_hash() {
        let line = "     Running unittests src/lib.rs (target/debug/deps/tollgate_model-0123abcd)";
        assert_eq!(binary_name(line).as_deref(), Some("tollgate_model"));
        assert_eq!(binary_name("   Doc-tests tollgate_lab").as_deref(), Some("tollgate_lab doc-tests"));
        assert_eq!(binary_name("running 3 tests"), None);
    }
}
