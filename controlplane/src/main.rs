//! `tollgate-controlplane`: the server, and the verbs that talk to it.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use jiff::Span;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tollgate_api::v1::{Kind, ResumeToken};
use tollgate_controlplane::backup::{self, Restored};
use tollgate_controlplane::certs;
use tollgate_controlplane::chain;
use tollgate_controlplane::client::{self, Access, Client, Format, Output, Selection, WatchOptions};
use tollgate_controlplane::config::{Config, Settings};
use tollgate_controlplane::server;
use tracing_subscriber::EnvFilter;

/// The bundled Tollgate control plane: keeps Services, EndpointSlices, Nodes, Pods and Namespaces, and feeds the proxies.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the control plane until SIGTERM or SIGINT.
    ///
    /// All flags can also be keys of a YAML file: --config FILE.
    ///
    /// A Service with a selector gets its EndpointSlices from the Pods that it selects. They have the label
    /// endpointslice.kubernetes.io/managed-by: endpointslice-controller.tollgate.dev; slices without it are left alone.
    Serve(ServeArgs),
    /// Make or replace the objects in manifests.
    Apply(ApplyArgs),
    /// Show objects.
    Get(GetArgs),
    /// Remove objects; with a Namespace also what is in it.
    Delete(DeleteArgs),
    /// Show objects and then each change, a line for every event.
    Watch(WatchArgs),
    /// Write every object of a running control plane, as of one revision, to a file.
    ///
    /// The file has a JSON value on each line: a header, the objects, and a checksum of it all. It has its name once it is
    /// whole and on disk; an earlier file of that name is replaced.
    Backup(BackupArgs),
    /// Make the store of a new control plane out of a backup.
    ///
    /// The checksum is verified first. The objects keep their uids, addresses and ports, but the store is another one: its
    /// revisions go on far ahead of the backup's, and whoever watched the old one lists anew by itself.
    Restore(RestoreArgs),
    /// Make a certificate authority and certificates for a first set-up, or more certificates later.
    ///
    /// Without a CA in the directory one is made, with a certificate for the server and one for an operator. A CA that is
    /// there issues what is asked for; its key is never replaced, other certificates of the same name are. Keys are
    /// readable by their owner alone (0600). The command prints how to use each file.
    Certs(CertsArgs),
}

#[derive(Args)]
struct CertsArgs {
    /// Where they are, or go; made if it does not exist. Keep it where only you can read it: ca.key makes anyone an operator.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A certificate for the server, under these DNS names and addresses besides localhost, 127.0.0.1 and ::1.
    #[arg(long, value_name = "NAME|IP,..", value_delimiter = ',')]
    server_name: Vec<String>,
    /// For the proxy of each of these nodes: it may read what proxies need, and write its own Node.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    node: Vec<String>,
    /// For these people or programs, who may do everything [default with a new CA: operator].
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    operator: Vec<String>,
    /// For these people or programs, who may read everything: backups, dashboards.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    viewer: Vec<String>,
    /// How long the certificates are valid: 90d, 1y, 8760h. A new CA is valid for 10 years.
    #[arg(long, value_name = "DURATION", default_value = "1y")]
    validity: Span,
}

#[derive(Args)]
struct BackupArgs {
    /// Where to write it.
    file: PathBuf,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
struct RestoreArgs {
    /// What backup wrote.
    file: PathBuf,
    /// Directory of the new store, empty; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(Args)]
struct Server {
    /// The control plane to talk to.
    #[arg(long, value_name = "URL", env = "TOLLGATE_SERVER", default_value = "http://127.0.0.1:7440")]
    server: String,
    /// With https://, the CA that the server's certificate is to come from, PEM.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CERTIFICATE_AUTHORITY")]
    certificate_authority: Option<PathBuf>,
    /// The certificate that says who you are, PEM.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CLIENT_CERTIFICATE")]
    client_certificate: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_CLIENT_KEY")]
    client_key: Option<PathBuf>,
    /// A file with the bearer token that says who you are, where that is not a certificate.
    #[arg(long, value_name = "FILE", env = "TOLLGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Args)]
struct ApplyArgs {
    /// YAML or JSON, a directory of *.yaml, *.yml and *.json files, or - for standard input; may be given several times.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
    /// For objects that name no namespace [default: default].
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
struct GetArgs {
    /// services (svc), endpointslices (eps), nodes (no), namespaces (ns), pods (po); or KIND/NAME.
    kind: String,
    /// Only these.
    names: Vec<String>,
    /// Where to look [default: default].
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Look in all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to show them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
struct DeleteArgs {
    /// services (svc), endpointslices (eps), nodes (no), namespaces (ns), pods (po); or KIND/NAME.
    #[arg(required_unless_present = "filename", conflicts_with = "filename")]
    kind: Option<String>,
    /// Which ones.
    names: Vec<String>,
    /// Manifests whose objects to remove, as for apply.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Where they are [default: default].
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
struct WatchArgs {
    /// services (svc), endpointslices (eps), nodes (no), namespaces (ns), pods (po).
    #[arg(value_name = "KIND[,KIND...]", value_delimiter = ',', required = true)]
    kinds: Vec<Kind>,
    /// Where to look [default: default].
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Look in all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only what came after this token, which an earlier watch has shown.
    #[arg(long, value_name = "TOKEN")]
    resume: Option<ResumeToken>,
    #[command(flatten)]
    server: Server,
}

#[derive(Args)]
struct ServeArgs {
    /// A YAML file with the same keys as the flags below; a flag wins over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Settings,
}

impl Server {
    async fn connect(self, output: &mut Output<'_>) -> Result<Client, client::Error> {
        let Server { server, certificate_authority, client_certificate, client_key, token_file } = self;
        let access = Access { certificate_authority, client_certificate, client_key, token_file };
        for (path, mode) in access.exposed() {
            let path = path.display();
            writeln!(
                output.complaints,
                "warning: every user of this machine can read {path} (mode {mode}): chmod 600 it"
            )?;
        }
        client::connect(&server, &access).await
    }
}

fn main() -> ExitCode {
    let result = run(Cli::parse());
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.downcast_ref().is_some_and(client::Error::is_closed_pipe) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was asked for was done.
fn run(cli: Cli) -> anyhow::Result<bool> {
    if let Verb::Serve(args) = cli.verb {
        let runtime = Runtime::new().context("cannot start the async runtime")?;
        return runtime.block_on(serve(args)).map(|()| true);
    }
    if let Verb::Restore(RestoreArgs { file, data_dir }) = cli.verb {
        let Restored { from: (store_id, revision), position, objects } = backup::restore(&file, &data_dir)?;
        let new = format!("store {} at revision {}", position.store_id, position.revision);
        let line = format!("{objects} objects of store {store_id} at revision {revision} are now in {new}");
        writeln!(std::io::stdout(), "{line}").map_err(client::Error::Output)?;
        return Ok(true);
    }
    if let Verb::Certs(args) = cli.verb {
        return certs(args).map(|()| true);
    }
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")?;
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    let mut output = Output { results: &mut stdout, complaints: &mut std::io::stderr() };
    let is_done = runtime.block_on(ask(cli.verb, &mut output));
    // Also after an error: what was done is told.
    let flushed = stdout.flush().map_err(client::Error::Output);
    let is_done = is_done?;
    flushed?;
    Ok(is_done)
}

async fn ask(verb: Verb, output: &mut Output<'_>) -> Result<bool, client::Error> {
    match verb {
        Verb::Serve(_) | Verb::Restore(_) | Verb::Certs(_) => Ok(true),
        Verb::Apply(ApplyArgs { filename, namespace, server }) => {
            let client = server.connect(output).await?;
            client::apply(&client, &filename, namespace.as_deref(), output).await
        }
        Verb::Get(GetArgs { kind, names, namespace, all_namespaces, output: format, server }) => {
            let mut client = server.connect(output).await?;
            client::get(&mut client, &Selection { kind, names, namespace, all_namespaces }, format, output).await
        }
        Verb::Delete(DeleteArgs { kind, names, filename, namespace, server }) => {
            let mut client = server.connect(output).await?;
            match kind {
                Some(kind) => client::delete_named(&mut client, &kind, &names, namespace.as_deref(), output).await,
                None => client::delete_files(&mut client, &filename, namespace.as_deref(), output).await,
            }
        }
        Verb::Watch(WatchArgs { kinds, namespace, all_namespaces, resume, server }) => {
            let mut client = server.connect(output).await?;
            client::watch(&mut client, WatchOptions { kinds, namespace, all_namespaces, resume }, output).await
        }
        Verb::Backup(BackupArgs { file, server }) => {
            let mut client = server.connect(output).await?;
            client::backup(&mut client, &file, output).await
        }
    }
}

fn certs(args: CertsArgs) -> anyhow::Result<()> {
    let CertsArgs { dir, server_name, node, operator, viewer, validity } = args;
    // What is told about the files can be pasted anywhere.
    let dir = std::path::absolute(dir)?;
    let request = certs::Request {
        dir: dir.clone(),
        server_names: server_name,
        operators: operator,
        viewers: viewer,
        nodes: node,
        validity,
    };
    let made = certs::make(&request)?;
    Ok(certs::tell(&made, &dir, &mut std::io::stdout().lock()).map_err(client::Error::Output)?)
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let Config { listen, server } = Config::load(args.flags, args.config.as_deref())?;
    // Before the first wait, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    Ok(server::serve(server, listener, shutdown).await?)
}
