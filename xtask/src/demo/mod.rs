//! `cargo xtask demo`: a cluster on this machine, real packets, and what happens when things change or die.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tollgate_api::v1::Key;
use tollgate_lab::object::Slice;
use tollgate_lab::probe::Protocol;
use tollgate_lab::process::Program;
use tollgate_lab::{Cluster, Connection, Counters, Family, Load, Pod, Tollgate, Topology, binary};

use crate::build;
use crate::setup::{self, Mode};

mod screen;

use screen::{Progress, bars, heading, holds, say};

const MANIFEST: &str = include_str!("manifest.yaml");
const NAMESPACE: &str = "shop";
const SERVICE: &str = "web";

/// The stream of connections under which things change and die.
const PER_SECOND: u32 = 1_200;
/// A claim that none fails is made of at least as many.
const CONNECTIONS: u64 = 10_000;
/// Connections between two changes of the endpoints, or two looks at how it goes.
const BETWEEN_CHANGES: u64 = 150;
/// Connections before and after each other event.
const SOME: u64 = 5_100;

const PODS: [&str; 4] = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"];

/// Make a cluster of two nodes and four pods, and show what Tollgate does when things change or die.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How the proxies balance.
    #[arg(long, value_enum, default_value_t = DemoMode::Nftables)]
    mode: DemoMode,
    /// Do not ask before installing what is missing.
    #[arg(long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum DemoMode {
    Nftables,
    Iptables,
    Ebpf,
}

impl DemoMode {
    fn needs(self) -> Mode {
        match self {
            Self::Nftables => Mode::Nftables,
            Self::Iptables => Mode::Iptables,
            Self::Ebpf => Mode::Ebpf,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ebpf => "ebpf",
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(args.mode.needs(), args.yes)?;
    println!("building …");
    build::run(&["build", "--quiet", "--package", "tollgate-proxy", "--package", "tollgate-controlplane"])?;
    // Network, mount and pid namespaces of its own, which end with this process, however it ends.
    tollgate_lab::isolate();
    let start = Instant::now();
    let mode = tollgate_lab::Mode::parse(args.mode.name());
    let mode = mode.with_context(|| format!("the lab has no mode {}", args.mode.name()))?;
    Demo::start(mode)?.show()?;
    println!("\nAll of it held, in {:.0} s. The cluster is gone again.", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// The cluster, and where its Service is.
struct Demo {
    tollgate: Tollgate,
    /// The Service's addresses, IPv4 and IPv6, once it has them.
    addresses: Vec<IpAddr>,
}

impl Demo {
    fn start(mode: tollgate_lab::Mode) -> Result<Self> {
        heading("Two nodes with two pods each, a control plane, and a proxy on each node");
        let start = Instant::now();
        let cluster = Cluster::new(Topology::default())?;
        for pod in cluster.pods() {
            say(format!("{} on {}: {} and {}", pod.name(), pod.node_name(), pod.ip(Family::V4), pod.ip(Family::V6)));
        }
        let tollgate = Tollgate::start(cluster, mode)?;
        say(format!("up in {:.1} s", start.elapsed().as_secs_f64()));
        Ok(Self { tollgate, addresses: Vec::new() })
    }

    /// Every step; when one fails, shows what the programs logged.
    fn show(mut self) -> Result<()> {
        let steps = [
            Self::apply_the_manifest,
            Self::spread,
            Self::endpoints_come_and_go,
            Self::the_proxy_is_killed,
            Self::the_control_plane_is_stopped,
        ];
        let shown = steps.iter().try_for_each(|step| step(&mut self));
        shown.inspect_err(|_| eprintln!("{}", self.tollgate.logs()))
    }

    fn apply_the_manifest(&mut self) -> Result<()> {
        heading("A manifest is applied, as people already have it: a Service and its endpoints");
        let file = tempfile::Builder::new().prefix("shop-").suffix(".yaml").tempfile();
        let file = file.context("cannot make a file for the manifest")?;
        std::fs::write(file.path(), MANIFEST).context("cannot write the manifest")?;
        self.verb(&["apply", "-f", &file.path().to_string_lossy()])?;
        let written = Instant::now();
        let revision = self.tollgate.control_plane().client().revision()?;
        for node in 1..=2 {
            self.tollgate.proxy(node).wait_applied(revision)?;
        }
        holds(format!("both kernels have it, {:.0?} later", written.elapsed()));
        self.verb(&["get", "services", "--namespace", NAMESPACE])?;
        self.verb(&["get", "endpointslices", "--namespace", NAMESPACE])?;
        let service = self.tollgate.control_plane().client().get(Key::service(NAMESPACE, SERVICE))?;
        let addresses = service["spec"]["clusterIPs"].as_array().context("the Service has no clusterIPs")?;
        self.addresses =
            addresses.iter().map(|ip| Ok(ip.as_str().unwrap_or_default().parse()?)).collect::<Result<_>>()?;
        Ok(())
    }

    /// Runs a client verb as a person would, and shows what it prints.
    fn verb(&mut self, arguments: &[&str]) -> Result<()> {
        say(format!("$ tollgate-controlplane {}", arguments.join(" ")));
        let program = Program {
            name: format!("tollgate-controlplane {}", arguments[0]),
            path: binary::locate(binary::CONTROL_PLANE)?,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: vec![("TOLLGATE_SERVER".to_owned(), self.tollgate.control_plane().url())],
            netns: self.tollgate.cluster().control_host().netns().clone(),
        };
        let (status, output) = program.run()?;
        say(&output);
        ensure!(status.success(), "{} failed: {status}", program.name);
        Ok(())
    }

    fn spread(&mut self) -> Result<()> {
        for (what, protocol, family, count) in [
            ("2,000 TCP connections over IPv4", Protocol::Tcp, Family::V4, 2_000),
            ("1,000 UDP flows over IPv6", Protocol::Udp, Family::V6, 1_000),
        ] {
            let to = self.service(family, protocol)?;
            heading(&format!("{what} from pod-1a to the Service's address {to}"));
            let spread = self.tollgate.cluster().pod("pod-1a").probe().spread(protocol, to, count);
            bars(spread.by.iter().map(|(name, count)| (name, *count as u64)));
            spread.ensure_even(&PODS)?;
            holds("evenly spread: each within 5 standard deviations of random choice");
        }
        Ok(())
    }

    fn endpoints_come_and_go(&mut self) -> Result<()> {
        heading(&format!("Endpoints come and go under {PER_SECOND} new connections a second"));
        let load = self.load()?;
        let mut progress = Progress::new();
        let mut changes = 0;
        while load.counters().started < CONNECTIONS + CONNECTIONS / 10 {
            let away = PODS[changes / 2 % PODS.len()];
            let is_back = changes % 2 == 1;
            self.serve_by(|pod| is_back || pod.name() != away)?;
            changes += 1;
            load.run_for(BETWEEN_CHANGES)?;
            progress.show(&load.counters());
        }
        self.serve_by(|_| true)?;
        let counters = load.stop();
        progress.end();
        bars(counters.by.iter().map(|(name, count)| (name, *count)));
        say(format!("{changes} changes of the endpoints, each live on both nodes before the next"));
        none_failed(&counters, CONNECTIONS)
    }

    fn the_proxy_is_killed(&mut self) -> Result<()> {
        heading("Node 1's proxy is killed (kill -9) and started again: the same stream, and a connection held open");
        let load = self.load()?;
        let mut held = self.held_connection()?;
        watch(&load, SOME)?;
        self.tollgate.proxy(1).kill9()?;
        say("killed");
        watch(&load, SOME)?;
        held.ping().context("the held connection while no proxy runs")?;
        self.tollgate.proxy(1).start()?;
        self.serve_by(|pod| pod.name() != "pod-2b")?;
        say("started again, and it follows the endpoints again");
        watch(&load, SOME)?;
        held.ping().context("the held connection after the restart")?;
        self.serve_by(|_| true)?;
        none_failed(&load.stop(), CONNECTIONS)?;
        holds(format!("the connection to {} that was open all the time is still open", held.by()));
        Ok(())
    }

    fn the_control_plane_is_stopped(&mut self) -> Result<()> {
        heading("The control plane is stopped, and then node 1's proxy is restarted without it");
        let load = self.load()?;
        self.tollgate.control_plane().stop()?;
        say("stopped");
        watch(&load, SOME)?;
        self.tollgate.proxy(1).stop()?;
        self.tollgate.proxy(1).start()?;
        self.tollgate.proxy(1).wait_healthy()?;
        say("proxy restarted");
        watch(&load, SOME)?;
        none_failed(&load.stop(), CONNECTIONS)?;
        holds("the Service still answers");
        Ok(())
    }

    fn service(&self, family: Family, protocol: Protocol) -> Result<SocketAddr> {
        let ip = self.addresses.iter().find(|ip| Family::of(**ip) == family);
        let ip = *ip.with_context(|| format!("the Service has no address of {family}"))?;
        Ok(SocketAddr::new(ip, if protocol == Protocol::Udp { 53 } else { 80 }))
    }

    /// New connections to the Service from every pod in turn.
    fn load(&self) -> Result<Load> {
        let to = self.service(Family::V4, Protocol::Tcp)?;
        Ok(Load::start(to, self.tollgate.cluster().pods().map(Pod::netns), PER_SECOND))
    }

    /// Makes just these pods the Service's endpoints, and waits until both kernels have it.
    fn serve_by(&self, serves: impl Fn(&Pod) -> bool) -> Result<()> {
        let pods: Vec<&Pod> = self.tollgate.cluster().pods().filter(|pod| serves(pod)).collect();
        for slice in Slice::both(NAMESPACE, SERVICE, &pods) {
            self.tollgate.apply(slice)?;
        }
        self.tollgate.settle()
    }

    /// A connection from node 1 to an endpoint that stays.
    fn held_connection(&self) -> Result<Connection> {
        let to = self.service(Family::V4, Protocol::Tcp)?;
        let probe = self.tollgate.cluster().pod("pod-1a").probe();
        loop {
            let connection = probe.open(to)?;
            if connection.by() != "pod-2b" {
                return Ok(connection);
            }
        }
    }
}

/// Waits until `count` more connections have begun, and shows how it goes.
fn watch(load: &Load, count: u64) -> Result<()> {
    let mut progress = Progress::new();
    for _ in 0..count.div_ceil(BETWEEN_CHANGES) {
        load.run_for(BETWEEN_CHANGES)?;
        progress.show(&load.counters());
    }
    progress.end();
    Ok(())
}

fn none_failed(counters: &Counters, at_least: u64) -> Result<()> {
    counters.ensure_none_failed()?;
    ensure!(counters.answered >= at_least, "only {} connections were answered", counters.answered);
    holds(format!("{} connections at {:.0} a second, none failed", counters.answered, counters.per_second()));
    Ok(())
}
