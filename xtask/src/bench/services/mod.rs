//! `cargo xtask bench services`: what a Service costs its clients, and how soon a change of it is in the kernel.
//!
//! Each size and mode gets a lab of its own: one node with a client pod and a server pod, beside a node that has no rules
//! at all. Everything is measured in one run, and what is compared takes turns, because machines are shared and noisy.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::release;
use crate::setup::{self, Mode as SetupMode};

mod change;
mod connect;
mod memory;
mod report;
mod scale;
mod server;

use report::{Measured, Report};
use scale::Scale;

/// Measure connections through Services, changes and cold starts at several sizes, against direct traffic.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The modes to measure [default: all].
    #[arg(long, value_name = "MODE,..", value_delimiter = ',', value_parser = parse_mode)]
    mode: Vec<tollgate_lab::Mode>,
    /// How many Services, with 10 endpoints each.
    #[arg(long, value_name = "COUNT,..", value_delimiter = ',', default_value = "10,1000,10000")]
    services: Vec<u32>,
    /// Connections to each target.
    #[arg(long, value_name = "COUNT", default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..))]
    connections: u32,
    /// Changes that are timed one by one.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..))]
    changes: u32,
    /// Also write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not ask before installing what is missing.
    #[arg(long)]
    yes: bool,
}

fn parse_mode(name: &str) -> Result<tollgate_lab::Mode, String> {
    tollgate_lab::Mode::parse(name).ok_or_else(|| {
        let names: Vec<_> = tollgate_lab::Mode::ALL.iter().map(|mode| mode.name()).collect();
        format!("the modes are {}", names.join(", "))
    })
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(SetupMode::All, args.yes)?;
    if let Some(code) = release::rerun()? {
        return Ok(code);
    }
    // The file is opened before the lab has a mount namespace of its own, and before the work is done for nothing.
    let json = args
        .json
        .as_ref()
        .map(|path| fs::File::create(path).with_context(|| format!("cannot write the figures to {}", path.display())));
    let json = json.transpose()?;
    tollgate_lab::isolate();
    let modes = if args.mode.is_empty() { tollgate_lab::Mode::ALL } else { &args.mode };
    let mut report = Report::default();
    let mut failed = 0;
    for &mode in modes {
        for &services in &args.services {
            println!("\n{mode}, {services} Services x {} endpoints", scale::ENDPOINTS);
            match measure(mode, services, args) {
                Ok(measured) => {
                    measured.print();
                    report.add(measured);
                }
                Err(error) => {
                    failed += 1;
                    eprintln!("error: {mode} at {services} Services: {error:#}");
                }
            }
        }
    }
    report.print_growth();
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("cannot write the figures")?;
    }
    if failed > 0 {
        bail!("{failed} of the measurements failed");
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(mode: tollgate_lab::Mode, services: u32, args: &Args) -> Result<Measured> {
    let mut scale = Scale::new(mode, services)?;
    let cold_start = scale.start_proxy()?;
    let measured = (|| {
        let connections = connect::measure(&scale, args.connections)?;
        let changes = change::measure(&scale, args.changes)?;
        anyhow::Ok((connections, changes))
    })();
    let (connections, changes) = measured.with_context(|| scale.logs())?;
    Ok(Measured { mode: mode.name(), services, cold_start, connections, changes, memory: scale.memory()? })
}
