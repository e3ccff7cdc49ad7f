//! `cargo xtask bench control-plane`: how many writes the control plane takes, what a large cluster costs it, and how soon
//! watchers know.
//!
//! The real optimised program over gRPC, on this machine's disk. The clients run here as well and take their share of the
//! cores, so the figures are what one machine does as a whole.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::release;

mod load;
mod server;
mod watchers;
mod writes;

use server::Server;

/// Measure durable writes, a large load with its restart, and watchers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long writes are counted, with one client and with 16.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How many Services to load, each with a slice of 10 endpoints.
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    services: u32,
    /// How many watchers, each on a connection of its own.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    watchers: u32,
    /// How many changes each of them receives.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// How many changes are made in a second, if the disk can.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Where the stores go for the time of the bench; its disk is what is measured [default: the build folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Also write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    writes: Vec<writes::Writes>,
    load: load::Load,
    watchers: watchers::Watchers,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(code) = release::rerun()? {
        return Ok(code);
    }
    // Before the work, so that it is not done for nothing.
    let open = |path: &PathBuf| {
        fs::File::create(path).with_context(|| format!("cannot write the figures to {}", path.display()))
    };
    let json = args.json.as_ref().map(open).transpose()?;
    server::raise_file_limit()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let report = runtime.block_on(measure(args))?;
    if let Some(json) = json {
        serde_json::to_writer_pretty(json, &report).context("cannot write the figures")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args) -> Result<Report> {
    let base = match &args.dir {
        Some(dir) => dir.clone(),
        None => server::programs()?.to_owned(),
    };
    let dir = |name: &str| {
        tempfile::TempDir::with_prefix_in(format!("bench-{name}-"), &base)
            .with_context(|| format!("cannot make a folder in {}", base.display()))
    };
    let mut writes = Vec::new();
    for clients in [1, 16] {
        let dir = dir("writes")?;
        let server = Server::start(dir.path())?;
        let measured = writes::measure(&server, clients, args.seconds).await?;
        measured.print();
        writes.push(measured);
    }
    let dir = dir("load")?;
    let server = Server::start(dir.path())?;
    let (server, load) = load::measure(server, args.services).await?;
    load.print();
    let watchers = watchers::measure(&server, args.watchers, args.changes, args.rate).await?;
    watchers.print();
    Ok(Report { writes, load, watchers })
}

/// The middle and the slow end of some times, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Percentiles {
    fn of(mut milliseconds: Vec<f32>) -> Self {
        milliseconds.sort_unstable_by(f32::total_cmp);
        let at = |percent: usize| {
            let index = (milliseconds.len() * percent / 100).min(milliseconds.len().saturating_sub(1));
            milliseconds.get(index).map_or(f64::NAN, |time| f64::from(*time))
        };
        Percentiles { p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms", self.p50_ms, self.p99_ms, self.max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let of = Percentiles::of((1..=200_u16).rev().map(f32::from).collect());
        assert_eq!((of.p50_ms.round(), of.p99_ms.round(), of.max_ms.round()), (101.0, 199.0, 200.0));
        assert!(Percentiles::of(Vec::new()).p50_ms.is_nan());
    }
}
