//! How long syncs of the iptables backend take on this machine's kernel, in a network namespace of its own; and the time that
//! this process and the commands it runs have a processor, which is what is left on a machine that does nothing else.
//!
//! `cargo bench -p tollgate-proxy --bench iptables_sync [-- VARIANT SERVICES]`; `nft` or `legacy`, 10,000 Services with 10
//! endpoints each by default.

use std::error::Error;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, NamespacedName, Protocol, ServicePortName};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::{EndpointSets, ServicePort, Snapshot, SourceRanges};
use tollgate_proxy::backend::iptables::{Iptables, Variant};
use tollgate_proxy::backend::{Backend, NodeConfig, Scope};

const ENDPOINTS: u32 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let services = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(10_000);
    let variant = std::env::args().find(|argument| argument == "legacy").unwrap_or_else(|| "nft".to_owned());
    unshare(CloneFlags::CLONE_NEWNET)?;
    // The namespace is a machine of its own, and so is its lock; the hint makes it one that uses the variant.
    let lock = tempfile::NamedTempFile::new()?;
    // SAFETY: no other thread has been started.
    unsafe { std::env::set_var("XTABLES_LOCKFILE", lock.path()) };
    let hint =
        Command::new(format!("iptables-{variant}")).args(["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]).status()?;
    assert!(hint.success(), "iptables-{variant} can't be used");
    let config = NodeConfig { families: vec![IpFamily::V4], ..NodeConfig::default() };
    let mut backend = Iptables::open(&config)?;
    println!("{services} Services x {ENDPOINTS} endpoints, IPv4, {}", backend.variant().map_or("", Variant::as_str));

    let mut held = Snapshot::default();
    held.service_ports.extend((0..services).map(|index| service(index, 0, ENDPOINTS)));
    row("initial load", &[sync(&mut backend, &held, Scope::Full)?]);
    println!("peak memory of this process after it: {}", peak()?);
    row("nothing changed", &repeat(20, |_| sync(&mut backend, &held, Scope::Changes))?);

    let mut generation = 0;
    for (changed, rounds) in [(1, 30), (100, 5), (services, 2)] {
        let times = repeat(rounds, |_| {
            generation += 1;
            held.service_ports.extend((0..changed).map(|index| service(index, generation, ENDPOINTS)));
            sync(&mut backend, &held, Scope::Changes)
        })?;
        row(&format!("{changed} Services exchange an endpoint"), &times);
    }
    let times = repeat(20, |round| {
        held.service_ports.extend([service(1, generation, ENDPOINTS + 1 + round % 2)]);
        sync(&mut backend, &held, Scope::Changes)
    })?;
    row("1 Service has one endpoint more or less", &times);
    let times = repeat(20, |round| {
        match service(services + round / 2, generation, ENDPOINTS) {
            (name, service) if round.is_multiple_of(2) => drop(held.service_ports.insert(name, service)),
            (name, _) => drop(held.service_ports.remove(&name)),
        }
        sync(&mut backend, &held, Scope::Changes)
    })?;
    row("1 Service comes or goes", &times);
    row("full sync, nothing to repair", &repeat(3, |_| sync(&mut backend, &held, Scope::Full))?);
    row("full sync of a new process", &repeat(3, |_| sync(&mut Iptables::open(&config)?, &held, Scope::Full))?);
    println!("peak memory of this process: {}", peak()?);
    Ok(())
}

/// How long something took, and how much of a processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Time {
    elapsed: Duration,
    cpu: Duration,
}

fn repeat(rounds: u32, mut each: impl FnMut(u32) -> Result<Time, Box<dyn Error>>) -> Result<Vec<Time>, Box<dyn Error>> {
    (0..rounds).map(&mut each).collect()
}

fn sync(backend: &mut Iptables, desired: &Snapshot, scope: Scope) -> Result<Time, Box<dyn Error>> {
    let (start, cpu_start) = (Instant::now(), cpu()?);
    backend.sync(desired, scope)?;
    Ok(Time { elapsed: start.elapsed(), cpu: cpu()?.saturating_sub(cpu_start) })
}

/// User and system time of this process and of those it has waited for, in steps of a clock tick of 10 ms (proc(5): fields 14 to 17).
fn cpu() -> Result<Duration, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    let ticks = fields.split_whitespace().skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

fn row(what: &str, times: &[Time]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    // The best is what the work takes; the others also tell what else the machine was doing.
    let (best, median, worst) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
    let cpu = times.iter().map(|time| time.cpu).sum::<Duration>() / count;
    println!(
        "{what:40} best {:>9.2?}  median {:>9.2?}  worst {:>9.2?}  processor {cpu:>9.2?}  of {count}",
        best.elapsed, median.elapsed, worst.elapsed
    );
}

/// A Service whose first endpoint is another in each generation.
fn service(index: u32, generation: u32, endpoints: u32) -> (ServicePortName, Arc<ServicePort>) {
    let protocol = Protocol::Tcp;
    let name = ServicePortName {
        service: NamespacedName::new("bench", format!("service-{index}")),
        port: "".into(),
        protocol,
    };
    let ip = |net: u32, host: u32| IpAddr::from(((net << 24) | host).to_be_bytes());
    let cluster: Arc<[Endpoint]> = (0..endpoints)
        .map(|number| {
            let host = index * 16 + number;
            let port = if number == 0 { 8080 + (generation % 1000) as u16 } else { 8080 };
            Endpoint { ip: ip(10, host), port, is_local: host.is_multiple_of(50) }
        })
        .collect();
    let service_port = ServicePort {
        name: name.clone(),
        frontends: vec![Frontend { ip: ip(11, index), port: 80, protocol, origin: FrontendOrigin::ClusterIp }],
        node_port: None,
        v4: EndpointSets { serving: cluster.clone(), cluster, ..EndpointSets::default() },
        v6: EndpointSets::default(),
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: SessionAffinity::None,
        source_ranges: SourceRanges::default(),
        health_check_node_port: None,
        ipvs_scheduler: None,
    };
    (name, Arc::new(service_port))
}

fn peak() -> std::io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.unwrap_or("unknown").trim().to_owned())
}
