//! `tollgate-proxy`: flags, and what to do with them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tollgate_proxy::backend::{self, Mode, NodeConfig};
use tollgate_proxy::config::{Config, Settings};
use tracing_subscriber::EnvFilter;

/// Makes the kernel of this node balance every Service address over its endpoints.
///
/// SIGTERM, a crash and kill -9 leave the rules in place: traffic goes on, and the next start takes over. `cleanup` removes
/// them.
#[derive(Parser)]
#[command(version, max_term_width = 120, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// A YAML file with the same keys as the flags below; a flag wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Remove all that any mode of Tollgate made on this node, and only that.
    Cleanup,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("TOLLGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Some(Command::Cleanup) => cleanup(),
        None => run(&cli.flags, cli.config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Settings, file: Option<PathBuf>) -> Result<()> {
    let config = Config::load(flags, file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(tollgate_proxy::run(config))?;
    Ok(())
}

fn cleanup() -> Result<()> {
    // Every mode's, whichever ran last: what is not there is no error.
    for mode in Mode::ALL {
        let mut backend = backend::open_for_cleanup(mode, NodeConfig::default())?;
        backend.cleanup().with_context(|| format!("cannot clean up after the mode {mode} (it needs CAP_NET_ADMIN)"))?;
    }
    println!("removed all that is Tollgate's");
    Ok(())
}
