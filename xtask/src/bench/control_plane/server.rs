//! The control plane that is measured: a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tollgate_api::v1::control_plane_client::ControlPlaneClient;
use tonic::transport::{Channel, Endpoint};

pub(super) type Client = ControlPlaneClient<Channel>;

/// Lists of 10,000 slices are larger than what tonic takes unasked.
const LARGEST_MESSAGE: usize = 256 << 20;

/// A running server; killed when dropped.
pub(super) struct Server {
    child: Child,
    data_dir: PathBuf,
    url: String,
    /// From its start until it listens.
    pub(super) start: Duration,
}

impl Server {
    pub(super) fn start(data_dir: &Path) -> Result<Self> {
        let program = programs()?.join("tollgate-controlplane");
        let begun = Instant::now();
        let mut child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--metrics-bind-address", "", "--data-dir"])
            .arg(data_dir)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut log = BufReader::new(child.stderr.take().context("the server has no log")?);
        let mut line = String::new();
        let url = loop {
            line.clear();
            if log.read_line(&mut line).context("cannot read the server's log")? == 0 {
                bail!("the control plane did not start");
            }
            if let Some((_, rest)) = line.split_once("listening on ") {
                break format!("http://{}", rest.split_whitespace().next().unwrap_or_default());
            }
        };
        let start = begun.elapsed();
        // Or it would wait for room in the pipe.
        std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
        Ok(Server { child, data_dir: data_dir.to_owned(), url, start })
    }

    /// A connection of its own.
    pub(super) async fn client(&self) -> Result<Client> {
        let channel = Endpoint::from_shared(self.url.clone())?.tcp_nodelay(true).connect().await;
        let channel = channel.with_context(|| format!("cannot connect to {}", self.url))?;
        Ok(ControlPlaneClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE))
    }

    /// Ends it with a signal and starts it again over the same store.
    pub(super) fn restart(mut self, signal: Signal) -> Result<Self> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal).context("cannot signal the control plane")?;
        self.child.wait().context("cannot wait for the control plane")?;
        Server::start(&self.data_dir)
    }

    /// What it has in memory now, in bytes.
    pub(super) fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
        Ok(kib << 10)
    }

    /// How long its store's file is.
    pub(super) fn file(&self) -> Result<u64> {
        let path = self.data_dir.join("tollgate.redb");
        Ok(path.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the optimised programs: this one's.
pub(super) fn programs() -> Result<&'static Path> {
    static FOLDER: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    let folder = FOLDER.get_or_init(|| Some(std::env::current_exe().ok()?.parent()?.to_owned()));
    folder.as_deref().context("cannot find this program's own folder")
}

/// A thousand connections need more files than a shell allows.
pub(super) fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}
