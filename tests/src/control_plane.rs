//! The real control plane, on a host of its own.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tollgate_api::connect::Access;

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
    /// Its certificates, if it has TLS.
    pki: Option<TempDir>,
    client: Client,
    log: Log,
}

impl ControlPlane {
    /// Starts one with an empty store, and waits until it answers.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, None)
    }

    /// As [`ControlPlane::start`], with TLS, and certificates for the proxies of these nodes.
    pub fn start_secured(host: &Host, nodes: &[&str]) -> Result<Self> {
        let pki = scratch("pki-")?;
        let dir = pki.path().display().to_string();
        let flags =
            ["certs", "--dir", &dir, "--server-name", &host.ip(Family::V4).to_string(), "--node", &nodes.join(",")];
        let (status, told) = program(host, flags.map(str::to_owned).to_vec())?.run()?;
        ensure!(status.success(), "no certificates: {told}");
        Self::start_with(host, Some(pki))
    }

    fn start_with(host: &Host, pki: Option<TempDir>) -> Result<Self> {
        let data = scratch("control-plane-")?;
        let listen = SocketAddr::new(host.ip(Family::V4), PORT);
        let program = program(host, arguments(listen, &data, pki.as_ref()))?;
        let access = pki.as_ref().map(|pki| access(pki, "operator"));
        let client = Client::new(host.netns(), listen, access.as_ref())?;
        let mut this = Self { process: None, program, data, pki, client, log: Log::default() };
        this.resume()?;
        Ok(this)
    }

    /// Where proxies find it.
    pub fn url(&self) -> String {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::new(address::CONTROL_PLANE.of(Family::V4), PORT))
    }

    /// The files with which the proxy of a node gets in; none without TLS.
    pub fn access(&self, node: &str) -> Option<Access> {
        self.pki.as_ref().map(|pki| access(pki, &format!("node-{node}")))
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
        self.data = scratch("control-plane-")?;
        let listen = SocketAddr::new(address::CONTROL_PLANE.of(Family::V4), PORT);
        self.program.arguments = arguments(listen, &self.data, self.pki.as_ref());
        self.client.forget_writes();
        self.resume()
    }
}

fn scratch(prefix: &str) -> Result<TempDir> {
    TempDir::with_prefix_in(prefix, SCRATCH).with_context(|| format!("can't make a folder in {SCRATCH}"))
}

fn program(host: &Host, arguments: Vec<String>) -> Result<Program> {
    Ok(Program {
        name: "control plane".into(),
        path: binary::locate(binary::CONTROL_PLANE)?,
        arguments,
        environment: Vec::new(),
        netns: host.netns().clone(),
    })
}

fn arguments(listen: SocketAddr, data: &TempDir, pki: Option<&TempDir>) -> Vec<String> {
    let (listen, data) = (listen.to_string(), data.path().display().to_string());
    let (services, external) = (address::flag(address::service_cidr), address::flag(address::external_cidr));
    let flags = ["--data-dir", &data, "--service-cidr", &services, "--allow-external-ips", &external];
    let file = |name: &str| pki.map(|pki| pki.path().join(name).display().to_string());
    let security =
        [("--tls-cert-file", "server.crt"), ("--tls-private-key-file", "server.key"), ("--client-ca-file", "ca.crt")];
    let mut security: Vec<String> =
        security.into_iter().filter_map(|(flag, name)| Some([flag.to_owned(), file(name)?])).flatten().collect();
    if security.is_empty() {
        // The network of the lab has nobody else on it.
        security.push("--insecure".to_owned());
    }
    let given = ["serve", "--listen", &listen].into_iter().chain(flags).map(str::to_owned);
    given.chain(security).collect()
}

fn access(pki: &TempDir, stem: &str) -> Access {
    let file = |name: &str| Some(pki.path().join(name));
    Access {
        certificate_authority: file("ca.crt"),
        client_certificate: file(&format!("{stem}.crt")),
        client_key: file(&format!("{stem}.key")),
        token_file: None,
    }
}
