//! `cargo xtask bench`: figures, measured on this machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

mod cni;
mod control_plane;
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
    Cni(cni::Args),
    ControlPlane(control_plane::Args),
    Services(services::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Cni(args) => cni::run(args),
        What::ControlPlane(args) => control_plane::run(args),
        What::Services(args) => services::run(args),
    }
}
