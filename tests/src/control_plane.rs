//! The real control plane, on a host of its own.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::address::{self, Family};
use crate::binary;
use crate::client::Client;
use crate::cluster::Host;
use crate::isolate::SCRATCH;
use crate::poll::eventually;
use crate::process::{Log, Process, Program};

const PORT: u16 = 7440;

/// A control plane that can be stopped and started again.
#[derive(Debug)]
pub struct ControlPlane {
    process: Option<Process>,
    program: Program,
    data: TempDir,
    client: Client,
    log: Log,
}

impl ControlPlane {
    /// Starts one with an empty store, and waits until it answers.
    pub fn start(host: &Host) -> Result<Self> {
        let data = data_dir()?;
        let listen = SocketAddr::new(host.ip(Family::V4), PORT);
        let program = Program {
            name: "control plane".into(),
            path: binary::locate(binary::CONTROL_PLANE)?,
            arguments: arguments(listen, &data),
            environment: Vec::new(),
            netns: host.netns().clone(),
        };
        let client = Client::new(host.netns(), listen);
        let mut this = Self { process: None, program, data, client, log: Log::default() };
        this.resume()?;
        Ok(this)
    }

    /// Where proxies find it.
    pub fn url(&self) -> String {
        format!("http://{}", SocketAddr::new(address::CONTROL_PLANE.of(Family::V4), PORT))
    }

    /// Reads and writes its objects.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it wrote, over all its runs.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Stops it as a service manager does.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::terminate)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill9)
    }

    /// Starts it again with the store that it had.
    pub fn resume(&mut self) -> Result<()> {
        let mut process = self.program.start(&self.log)?;
        eventually("the control plane to answer", || {
            process.ensure_running()?;
            self.client.revision()
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it again with an empty store: everything that proxies know is gone.
    pub fn start_anew(&mut self) -> Result<()> {
        self.stop()?;
        self.data = data_dir()?;
        self.program.arguments = arguments(SocketAddr::new(address::CONTROL_PLANE.of(Family::V4), PORT), &self.data);
        self.client.forget_writes();
        self.resume()
    }
}

fn data_dir() -> Result<TempDir> {
    TempDir::with_prefix_in("control-plane-", SCRATCH).with_context(|| format!("can't make a folder in {SCRATCH}"))
}

fn arguments(listen: SocketAddr, data: &TempDir) -> Vec<String> {
    let (listen, data) = (listen.to_string(), data.path().display().to_string());
    let (services, external) = (address::flag(address::service_cidr), address::flag(address::external_cidr));
    let flags = ["--data-dir", &data, "--service-cidr", &services, "--allow-external-ips", &external];
    // The network of the lab has nobody else on it.
    ["serve", "--listen", &listen, "--insecure"].into_iter().chain(flags).map(str::to_owned).collect()
}
