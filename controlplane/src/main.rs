//! `tollgate-controlplane`: the server, and the verbs that talk to it.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tollgate_controlplane::registry::ServiceCidrs;
use tollgate_controlplane::server::{self, Config};
use tracing_subscriber::EnvFilter;

/// The bundled Tollgate control plane: keeps Services, EndpointSlices, Nodes and Namespaces, and feeds the proxies.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the control plane until SIGTERM or SIGINT.
    Serve(ServeArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one, which the log names.
    #[arg(long, default_value = "127.0.0.1:7440")]
    listen: SocketAddr,
    /// Directory of the store; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where ClusterIPs come from: one range, or one of each family. The first is the default family.
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "10.96.0.0/16,fd00:96::/112")]
    service_cidr: ServiceCidrs,
    /// Where node ports come from.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = parse_ports)]
    node_port_range: RangeInclusive<u16>,
    /// How many changes to keep: a watch that lost its connection resumes if it missed no more than that.
    #[arg(long, value_name = "CHANGES", default_value_t = server::KEPT_CHANGES)]
    history: u64,
    /// How long a watch stays silent before it tells where it stands.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10_000, hide = true)]
    progress_interval: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    match cli.verb {
        Verb::Serve(args) => runtime.block_on(serve(args)).map(|()| ExitCode::SUCCESS),
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let mut config = Config::new(args.data_dir, args.service_cidr);
    config.node_ports = args.node_port_range;
    config.kept_changes = args.history;
    config.progress_interval = Duration::from_millis(args.progress_interval);
    // Before the first wait, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    Ok(server::serve(config, listener, shutdown).await?)
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    range.filter(|range| *range.start() > 0 && !range.is_empty()).ok_or_else(|| "give it as 30000-32767".to_owned())
}
