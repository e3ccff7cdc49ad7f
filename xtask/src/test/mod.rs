//! `cargo xtask test`: every test, from the unit to the lab, and one line that counts them.

use std::io::{self, BufRead, BufReader};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::build;
use crate::setup::{self, Mode};
use crate::vm;

mod guest;
mod tally;

use tally::Tally;

/// The test binaries that work in network namespaces.
const NAMESPACED: [&str; 6] = ["behaviour", "lab", "nftables", "conntrack", "ebpf_programs", "plugin"];

/// Run every test: units, and the behaviour of the whole in network namespaces.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do not ask before installing what is missing.
    #[arg(long)]
    yes: bool,
    /// Run only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(Mode::All, args.yes)?;
    vm::ensure(vm::Kernel::Uml, args.yes)?;
    let start = Instant::now();
    build::run(&["test", "--workspace", "--no-run", "--quiet"])?;
    let build_time = start.elapsed();

    let mut cargo_args = vec!["test", "--workspace", "--no-fail-fast", "--color=never"];
    if let Some(filter) = &args.filter {
        cargo_args.extend(["--", filter]);
    }
    let mut tally = Tally::default();
    let is_success = watch(build::cargo(&cargo_args), &mut tally)?;
    if !is_success && tally.failed == 0 {
        // A binary that died before it could count.
        eprintln!("error: cargo test failed beyond the counted tests; see above");
        tally.failed = 1;
    }
    let guests_start = Instant::now();
    guest::run(&mut tally)?;
    let guests_time = guests_start.elapsed();

    let namespaced = tally.durations.iter().filter(|(name, _)| NAMESPACED.contains(&name.as_str()));
    let namespaces_time: Duration = namespaced.map(|(_, duration)| *duration).sum();
    let (build, namespaces, guests) = (seconds(build_time), seconds(namespaces_time), seconds(guests_time));
    println!("\nbuild: {build}, namespaces: {namespaces}, guests: {guests}, the longest:");
    tally.durations.sort_by_key(|(_, duration)| std::cmp::Reverse(*duration));
    for (name, duration) in tally.durations.iter().take(6) {
        println!("  {name}: {}", seconds(*duration));
    }
    if !tally.lacking.is_empty() {
        println!("{} need a kernel that has more than this one and user-mode Linux:", tally.lacking.len());
        for trial in &tally.lacking {
            let (binary, name) = (trial.binary.display(), &trial.name);
            println!("  cargo xtask vm --kernel 6.1 --env TOLLGATE_LAB_SLOWNESS=10 -- {binary} {name}");
        }
    }
    // A skipped test proves nothing: CI has all that the tests need, but for what neither its kernel nor the guest's has.
    let is_ci = std::env::var_os("CI").is_some();
    let excused = u64::try_from(tally.lacking.len())?;
    let has_forbidden_skips = is_ci && tally.skipped > excused;
    if has_forbidden_skips {
        let skipped = tally.skipped;
        eprintln!("error: {skipped} skipped, and in CI only those may be that the kernel can't run ({excused})");
    }
    let is_ok = is_success && tally.failed == 0 && !has_forbidden_skips;
    println!("{}", tally.line());
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a command, passes its output on, and adds up what it says; true if it succeeded.
fn watch(mut command: Command, tally: &mut Tally) -> Result<bool> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    // Both streams through one pipe keep the order between cargo's lines and the tests'.
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    // The command holds the pipe's writing end: without dropping it, the reader below would never see the end.
    drop(command);
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add(&line);
    }
    Ok(child.wait()?.success())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
