//! The real proxy of a node.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail, ensure};

use nix::sys::signal::Signal;
use tollgate_api::connect::Access;

use crate::address;
use crate::binary;
use crate::cluster::Node;
use crate::isolate::SCRATCH;
use crate::mode::Mode;
use crate::netns::NetNs;
use crate::poll::eventually;
use crate::probe::http;
use crate::process::{Log, Process, Program};
use crate::runtime::block_on;

const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// The flag that says where eBPF objects are pinned.
const BPF_ROOT: &str = "--bpf-root";
/// Everything up to this revision is in the kernel.
const APPLIED_REVISION: &str = "tollgate_applied_revision";

/// A node's proxy, which can be stopped, killed and started again.
#[derive(Debug)]
pub struct Proxy {
    process: Option<Process>,
    program: Program,
    log: Log,
}

impl Proxy {
    /// Prepares a proxy for a node, not started yet; `extra` are flags that it gets besides, or instead.
    pub fn new(node: &Node, mode: Mode, control_plane: &str, extra: &[(&str, &str)]) -> Result<Self> {
        let (ips, lock) = (node.addresses().to_string(), format!("{SCRATCH}/xtables-{}.lock", node.netns().raw_fd()));
        let (pods, services) = (address::flag(address::cluster_cidr), address::flag(address::service_cidr));
        let flags = [
            ("--control-plane", control_plane),
            ("--node-name", node.name()),
            ("--node-ip", &ips),
            ("--cluster-cidr", &pods),
            ("--service-cidr", &services),
            ("--zone", &zone(node.number())),
            ("--healthz-bind-address", &HEALTHZ.to_string()),
            ("--metrics-bind-address", &METRICS.to_string()),
        ];
        let program = Program {
            name: format!("proxy of {}", node.name()),
            path: binary::locate(binary::PROXY)?,
            arguments: Vec::new(),
            // Nodes are machines of their own: one must not wait for another's iptables.
            environment: vec![("XTABLES_LOCKFILE".into(), lock)],
            netns: node.netns().clone(),
        };
        let mut this = Self { process: None, program, log: Log::default() };
        this.set_mode(node, mode)?;
        flags.iter().chain(extra).for_each(|(flag, value)| this.set_flag(flag, value));
        Ok(this)
    }

    /// Says which mode it runs in on its node, from its next start on. Where an earlier mode has pinned objects, it is still
    /// told, so that it can take over from that.
    pub fn set_mode(&mut self, node: &Node, mode: Mode) -> Result<()> {
        self.set_flag("--proxy-mode", mode.proxy_mode());
        if mode.is_attached() {
            let flags = [("--cgroup", node.cgroup()?), (BPF_ROOT, node.bpf_root()?)];
            flags.iter().for_each(|(flag, path)| self.set_flag(flag, &path.display().to_string()));
        }
        Ok(())
    }

    /// Gives a flag a value for the next start, in the place of the one that it had.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        self.unset_flag(flag);
        self.program.arguments.push(format!("{flag}={value}"));
    }

    /// Says with which files it gets into a control plane with TLS, from its next start on.
    pub fn set_access(&mut self, access: &Access) {
        let Access { certificate_authority, client_certificate, client_key, token_file } = access;
        for (flag, file) in [
            ("--certificate-authority", certificate_authority),
            ("--client-certificate", client_certificate),
            ("--client-key", client_key),
            ("--token-file", token_file),
        ] {
            if let Some(file) = file {
                self.set_flag(flag, &file.to_string_lossy());
            }
        }
    }

    /// Takes a flag away for the next start.
    pub fn unset_flag(&mut self, flag: &str) {
        self.program.arguments.retain(|argument| !is_flag(argument, flag));
    }

    /// Starts it, without waiting for anything.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} is running", self.program.name);
        self.process = Some(self.program.start(&self.log)?);
        Ok(())
    }

    /// Waits until it says that it is healthy, which it may be before it has heard of anything.
    pub fn wait_healthy(&mut self) -> Result<()> {
        let Self { process, program, .. } = self;
        let process = process.as_mut().with_context(|| format!("{} is not running", program.name))?;
        eventually(&format!("{} to be healthy", program.name), || {
            process.ensure_running()?;
            match healthz(&program.netns)? {
                (200, _) => Ok(()),
                (status, body) => bail!("healthz says {status}: {body}"),
            }
        })
    }

    /// Whether it is meant to be running.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// SIGTERM, as a service manager stops it.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::terminate)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), Process::kill9)
    }

    /// Stops it in its tracks (SIGSTOP), so that it neither sees nor does anything.
    pub fn freeze(&self) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(Signal::SIGSTOP))
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(Signal::SIGCONT))
    }

    /// Runs `tollgate-proxy cleanup` on the node.
    pub fn cleanup(&self) -> Result<(ExitStatus, String)> {
        let pins = self.program.arguments.iter().filter(|argument| is_flag(argument, BPF_ROOT));
        let program = Program {
            name: format!("cleanup of {}", self.program.name),
            arguments: std::iter::once("cleanup".to_owned()).chain(pins.cloned()).collect(),
            ..self.program.clone()
        };
        program.run()
    }

    /// Starts a script of bash on the node, in the same environment.
    pub fn start_beside(&self, script: &str) -> Result<Process> {
        let program = Program {
            name: format!("`{script}` beside {}", self.program.name),
            path: "bash".into(),
            arguments: vec!["-c".into(), script.into()],
            ..self.program.clone()
        };
        program.start(&self.log)
    }

    /// What it wrote, over all its runs.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// `/healthz`: the status and the body.
    pub fn healthz(&self) -> Result<(u16, String)> {
        healthz(&self.program.netns)
    }

    /// `/livez`: the status and the body.
    pub fn livez(&self) -> Result<(u16, String)> {
        get(&self.program.netns, HEALTHZ, "/livez")
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (status, body) = get(&self.program.netns, METRICS, "/metrics")?;
        ensure!(status == 200, "/metrics says {status}");
        let value = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("{} has no metric {name}", self.program.name))?;
        value.trim().parse().with_context(|| format!("metric {name} is `{value}`"))
    }

    /// Its pid, in the lab's pid namespace, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Whether everything up to a revision is in the kernel.
    pub fn has_applied(&self, revision: u64) -> Result<bool> {
        #[expect(clippy::cast_precision_loss, reason = "a lab writes far fewer than 2^52 objects")]
        let wanted = revision as f64;
        Ok(self.metric(APPLIED_REVISION)? >= wanted)
    }

    /// Waits until everything up to a revision is in the kernel.
    pub fn wait_applied(&self, revision: u64) -> Result<()> {
        eventually(&format!("{} to have applied revision {revision}", self.program.name), || {
            ensure!(self.has_applied(revision)?, "it has applied {}", self.metric(APPLIED_REVISION)?);
            Ok(())
        })
    }
}

fn is_flag(argument: &str, flag: &str) -> bool {
    argument.split_once('=').is_some_and(|(name, _)| name == flag)
}

/// Every node has a zone to itself.
pub fn zone(node: u8) -> String {
    format!("zone-{node}")
}

fn healthz(netns: &NetNs) -> Result<(u16, String)> {
    get(netns, HEALTHZ, "/healthz")
}

fn get(netns: &NetNs, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let response = block_on(http::get(netns, to, path)).with_context(|| format!("can't get {to}{path}"))?;
    Ok((response.status().as_u16(), response.into_body()))
}
