//! Figures are of optimised programs: the bench builds them, and itself, and goes on as the optimised one.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::build;
use crate::setup::{self, Mode};

/// Set for the optimised program, so that it does not build once more.
const IS_RELEASE: &str = "TOLLGATE_BENCH_RELEASE";

/// Builds everything optimised and runs this command again; `None` in the program that is the optimised one.
pub(crate) fn rerun() -> Result<Option<ExitCode>> {
    if std::env::var_os(IS_RELEASE).is_some() {
        return Ok(None);
    }
    // Every build of the proxy embeds the eBPF programs.
    setup::ensure(Mode::Nftables, false)?;
    println!("building optimised programs …");
    let packages = ["tollgate-proxy", "tollgate-controlplane", "xtask"].map(|package| ["--package", package]);
    build::run(&[&["build", "--release", "--quiet"], packages.as_flattened()].concat())?;
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let target = this.parent().and_then(|folder| folder.parent()).context("this program is not in a target folder")?;
    let program = target.join("release").join("xtask");
    let status = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .env(IS_RELEASE, "1")
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}
