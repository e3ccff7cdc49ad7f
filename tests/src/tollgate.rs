//! A cluster with Tollgate on it: the control plane, and a proxy on every node.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::Value;
use tollgate_api::v1::Key;

use crate::cluster::{Cluster, Node};
use crate::control_plane::ControlPlane;
use crate::mode::Mode;
use crate::process::{Program, tail};
use crate::proxy::Proxy;

/// Lines of each program's log that a failed case shows.
const SHOWN_LINES: usize = 60;

/// A cluster with the real programs running in it.
#[derive(Debug)]
pub struct Tollgate {
    // In this order they go: programs before the network under them.
    proxies: Vec<Proxy>,
    control_plane: ControlPlane,
    cluster: Cluster,
}

impl Tollgate {
    /// Starts the control plane and a proxy on every node, and waits until every kernel has what the store has.
    pub fn start(cluster: Cluster, mode: Mode) -> Result<Self> {
        Self::start_with(cluster, mode, &[])
    }

    /// As [`Tollgate::start`], with flags that every proxy gets besides.
    pub fn start_with(cluster: Cluster, mode: Mode, proxy_flags: &[(&str, &str)]) -> Result<Self> {
        let control_plane = ControlPlane::start(cluster.control_host())?;
        Self::start_over(cluster, mode, control_plane, proxy_flags)
    }

    /// As [`Tollgate::start`], where the control plane has TLS, and each proxy its node's certificate.
    pub fn start_secured(cluster: Cluster, mode: Mode) -> Result<Self> {
        let nodes: Vec<&str> = cluster.nodes().iter().map(Node::name).collect();
        let control_plane = ControlPlane::start_secured(cluster.control_host(), &nodes)?;
        Self::start_over(cluster, mode, control_plane, &[])
    }

    fn start_over(
        cluster: Cluster,
        mode: Mode,
        control_plane: ControlPlane,
        proxy_flags: &[(&str, &str)],
    ) -> Result<Self> {
        let nodes = u8::try_from(cluster.nodes().len()).expect("node numbers are small");
        Self::prepare(&cluster, mode)?;
        let proxies = cluster.nodes().iter().map(|node| {
            let mut proxy = Proxy::new(node, mode, &control_plane.url(), proxy_flags)?;
            if let Some(access) = control_plane.access(node.name()) {
                proxy.set_access(&access);
            }
            Ok(proxy)
        });
        let mut this = Self { proxies: proxies.collect::<Result<_>>()?, control_plane, cluster };
        this.proxies.iter_mut().try_for_each(Proxy::start)?;
        (1..=nodes).try_for_each(|number| this.wait_ready(number))?;
        Ok(this)
    }

    /// Makes the nodes of a cluster of the kind that a mode is for.
    pub fn prepare(cluster: &Cluster, mode: Mode) -> Result<()> {
        let commands = || mode.prepare().iter();
        cluster.nodes().iter().try_for_each(|node| commands().try_for_each(|command| run_on(node, command)))
    }

    /// The network.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The control plane.
    pub fn control_plane(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The proxy of the node of that number, from 1.
    pub fn proxy(&mut self, number: u8) -> &mut Proxy {
        &mut self.proxies[usize::from(number) - 1]
    }

    /// Says which mode the proxy of a node runs in, from its next start on.
    pub fn set_mode(&mut self, number: u8, mode: Mode) -> Result<()> {
        self.proxies[usize::from(number) - 1].set_mode(self.cluster.node(number), mode)
    }

    /// Starts the proxy of a node, and waits until its kernel has what the store has.
    pub fn start_proxy(&mut self, number: u8) -> Result<()> {
        self.proxy(number).start()?;
        self.wait_ready(number)
    }

    /// Stops the proxy of a node as a service manager does, and starts it again.
    pub fn restart_proxy(&mut self, number: u8) -> Result<()> {
        self.proxy(number).stop()?;
        self.start_proxy(number)
    }

    fn wait_ready(&mut self, number: u8) -> Result<()> {
        let revision = self.control_plane.client().revision()?;
        let proxy = self.proxy(number);
        proxy.wait_healthy()?;
        proxy.wait_applied(revision)
    }

    /// Creates or replaces an object; returns it as stored.
    pub fn apply(&self, object: impl Into<Value>) -> Result<Value> {
        self.control_plane.client().apply(object)
    }

    /// Reads an object.
    pub fn object(&self, key: Key) -> Result<Value> {
        self.control_plane.client().get(key)
    }

    /// Removes an object.
    pub fn delete(&self, key: Key) -> Result<()> {
        self.control_plane.client().delete(key)
    }

    /// Waits until every running proxy has put everything that was written so far into its kernel.
    pub fn settle(&self) -> Result<()> {
        let revision = self.control_plane.client().newest_write();
        self.proxies.iter().filter(|proxy| proxy.is_running()).try_for_each(|proxy| proxy.wait_applied(revision))
    }

    /// The end of every program's log.
    pub fn logs(&self) -> String {
        let control_plane = [("control plane", self.control_plane.log())];
        let proxies = self.cluster.nodes().iter().zip(&self.proxies).map(|(node, proxy)| (node.name(), proxy.log()));
        control_plane.into_iter().chain(proxies).fold(String::new(), |mut text, (name, log)| {
            let _ = writeln!(text, "  log of {name}:\n{}", tail(log, SHOWN_LINES));
            text
        })
    }
}

/// Runs a command in a node's namespace to its end; its words are parted by blanks.
pub fn run_on(node: &Node, command: &str) -> Result<()> {
    let program = Program::words(command, node.netns());
    let (status, output) = program.run()?;
    ensure!(status.success(), "`{command}` on {}: {status}: {output}", node.name());
    Ok(())
}
