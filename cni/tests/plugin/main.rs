//! The plugin, called as runtimes call it, in namespaces that this test makes.

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::Trial;
use tollgate_lab::harness::run;
use tollgate_lab::isolate;

mod attach;
mod fault;
mod fuzz;
mod host_port;
mod node;
mod protocol;
mod spoof;

/// A case, by its name.
type Case = (&'static str, fn() -> Result<()>);

fn main() -> ExitCode {
    isolate();
    let all = [protocol::CASES, attach::CASES, host_port::CASES, spoof::CASES, fault::CASES, fuzz::CASES];
    let trial = |&(name, case): &Case| Trial::test(name, move || Ok(case().map_err(|error| format!("{error:#}"))?));
    run(all.into_iter().flatten().map(trial).collect())
}
