//! `tollgate-proxy`: flags, and what to do with them.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tollgate_proxy::backend::ebpf::{DEFAULT_BPF_ROOT, EbpfConfig};
use tollgate_proxy::backend::{self, Mode, NodeConfig, Observed};
use tollgate_proxy::config::{Config, Settings};
use tollgate_proxy::dump;
use tracing_subscriber::EnvFilter;

mod top;

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
    Cleanup {
        #[command(flatten)]
        pins: Pins,
    },
    /// Print what the kernel of this node holds, by Service port. It needs no running daemon, and changes nothing.
    Dump {
        /// Of that mode alone [default: of every mode that has something there].
        #[arg(long, value_enum)]
        proxy_mode: Option<Mode>,
        /// For people or for programs.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
        #[command(flatten)]
        pins: Pins,
    },
    /// Print what goes through Services in mode ebpf, most first, again and again. It needs no running daemon, and changes
    /// nothing.
    Top {
        /// Seconds from one table to the next.
        #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
        interval: u64,
        /// Print so many tables, and end [default: until interrupted].
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Print a line for each endpoint as well.
        #[arg(long)]
        endpoints: bool,
        #[command(flatten)]
        pins: Pins,
    },
}

#[derive(clap::Args)]
struct Pins {
    /// Where the mode ebpf has its pins, as the daemon was told.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPF_ROOT)]
    bpf_root: PathBuf,
}

impl Pins {
    fn config(self) -> NodeConfig {
        let ebpf = EbpfConfig { bpf_root: self.bpf_root, ..EbpfConfig::default() };
        NodeConfig { ebpf, ..NodeConfig::default() }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("TOLLGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(io::stderr).init();
    let result = match cli.command {
        Some(Command::Cleanup { pins }) => cleanup(&pins.config()),
        Some(Command::Dump { proxy_mode, output, pins }) => print_dump(proxy_mode, output, &pins.config()),
        Some(Command::Top { interval, count, endpoints, pins }) => {
            top::run(&pins.bpf_root, Duration::from_secs(interval), count, endpoints)
        }
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

fn cleanup(config: &NodeConfig) -> Result<()> {
    let clean = |mode| backend::open_for_cleanup(mode, config)?.cleanup();
    // Every mode's, whichever ran last: what is not there is no error, and what fails holds up nothing else.
    let failures = Mode::ALL.into_iter().filter_map(|mode| Some(format!("{mode}: {}", chain(&clean(mode).err()?))));
    let failures: Vec<_> = failures.collect();
    if !failures.is_empty() {
        bail!("cannot clean up (it needs CAP_NET_ADMIN): {}", failures.join("; "));
    }
    println!("removed all that is Tollgate's");
    Ok(())
}

fn print_dump(mode: Option<Mode>, output: Output, config: &NodeConfig) -> Result<()> {
    let observe = |mode: Mode| {
        let backend = backend::open_for_cleanup(mode, config)?;
        backend.observe()
    };
    let mut observed = Vec::new();
    for each in Mode::ALL.into_iter().filter(|each| mode.is_none_or(|mode| mode == *each)) {
        match observe(each) {
            Ok(found) if found == Observed::default() => {}
            Ok(found) => observed.push((each, found)),
            // Where no mode was asked for, one whose commands are not even installed is not in use.
            Err(error) if mode.is_none() => tracing::warn!(error = %chain(&error), "cannot look for the mode {each}"),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read what the mode {each} has in the kernel"));
            }
        }
    }
    let text = match output {
        Output::Table => dump::table(&observed),
        Output::Json => format!("{:#}\n", dump::json(&observed)),
    };
    print(&text).map(drop)
}

/// Says whether anybody still reads.
fn print(text: &str) -> Result<bool> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write to standard output"),
    }
}

/// An error with its causes.
fn chain(error: &backend::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
