//! `cargo xtask bench`: figures, measured on this machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

mod release;
mod services;

/// Measure, and print the figures as a table.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Services(services::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Services(args) => services::run(args),
    }
}
