//! Calling cargo on the workspace.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// A cargo command in the workspace's root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

/// Runs a cargo command whose output goes to the terminal.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let status = cargo(args).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed: {status}", args.join(" "));
    }
    Ok(())
}
