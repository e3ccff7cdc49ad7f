//! How long syncs of the nftables backend take on this machine's kernel, in a network namespace of its own; and the time that
//! this process has a processor, for itself and within the kernel, which says more where others use the machine as well.
//!
//! `cargo bench -p tollgate-proxy --bench nftables_sync [-- SERVICES]`; 10,000 Services with 10 endpoints each by default.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, NamespacedName, Protocol, ServicePortName};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::{EndpointSets, ServicePort, Snapshot, SourceRanges};
use tollgate_proxy::backend::nftables::Nftables;
use tollgate_proxy::backend::{Backend, NodeConfig, Scope};

const ENDPOINTS: u32 = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let services = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(10_000);
    unshare(CloneFlags::CLONE_NEWNET)?;
    let config = NodeConfig { families: vec![IpFamily::V4], ..NodeConfig::default() };
    let mut backend = Nftables::open(&config)?;
    println!("{services} Services x {ENDPOINTS} endpoints, IPv4");

    let mut held = Snapshot::default();
    held.service_ports.extend((0..services).map(|index| service(index, 0, ENDPOINTS)));
    row("initial load", &[sync(&mut backend, &held, Scope::Full)?]);
    row("nothing changed", &repeat(20, |_| sync(&mut backend, &held, Scope::Changes))?);

    let mut generation = 0;
    for (changed, rounds) in [(1, 1000), (100, 20), (services, 3)] {
        let times = repeat(rounds, |_| {
            generation += 1;
            held.service_ports.extend((0..changed).map(|index| service(index, generation, ENDPOINTS)));
            sync(&mut backend, &held, Scope::Changes)
        })?;
        row(&format!("{changed} Services exchange an endpoint"), &times);
    }
    let times = repeat(100, |round| {
        held.service_ports.extend([service(1, generation, ENDPOINTS + 1 + round % 2)]);
        sync(&mut backend, &held, Scope::Changes)
    })?;
    row("1 Service has one endpoint more or less", &times);
    let times = repeat(100, |round| {
        match service(services + round / 2, generation, ENDPOINTS) {
            (name, service) if round.is_multiple_of(2) => drop(held.service_ports.insert(name, service)),
            (name, _) => drop(held.service_ports.remove(&name)),
        }
        sync(&mut backend, &held, Scope::Changes)
    })?;
    row("1 Service comes or goes", &times);
    row("full sync, nobody has changed any table", &repeat(3, |_| sync(&mut backend, &held, Scope::Full))?);
    row("full sync of a new process", &repeat(3, |_| sync(&mut Nftables::open(&config)?, &held, Scope::Full))?);
    println!("peak memory of this process: {}", peak()?);
    Ok(())
}

fn repeat(rounds: u32, mut each: impl FnMut(u32) -> Result<Time, Box<dyn Error>>) -> Result<Vec<Time>, Box<dyn Error>> {
    (0..rounds).map(&mut each).collect()
}

/// How long something took, and how much of a processor.
#[derive(Clone, Copy)]
struct Time {
    elapsed: Duration,
    user: Duration,
    system: Duration,
}

fn sync(backend: &mut Nftables, desired: &Snapshot, scope: Scope) -> Result<Time, Box<dyn Error>> {
    let (start, (user, system)) = (Instant::now(), processor()?);
    backend.sync(desired, scope)?;
    let after = processor()?;
    Ok(Time { elapsed: start.elapsed(), user: after.0 - user, system: after.1 - system })
}

fn processor() -> Result<(Duration, Duration), Box<dyn Error>> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| time.num_microseconds().unsigned_abs());
    Ok((Duration::from_micros(user), Duration::from_micros(system)))
}

fn row(what: &str, times: &[Time]) {
    let mut elapsed: Vec<_> = times.iter().map(|time| time.elapsed).collect();
    elapsed.sort_unstable();
    // The best is what the work takes; the others also tell what else the machine was doing.
    let at = |percent: usize| elapsed[(elapsed.len() * percent / 100).min(elapsed.len() - 1)];
    let (best, median, p99) = (elapsed[0], at(50), at(99));
    let mean =
        |of: fn(&Time) -> Duration| times.iter().map(of).sum::<Duration>() / u32::try_from(times.len()).unwrap_or(1);
    let (user, system) = (mean(|time| time.user), mean(|time| time.system));
    println!(
        "{what:40} best {best:>9.2?}  median {median:>9.2?}  p99 {p99:>9.2?}  processor {user:>9.2?} + {system:>9.2?}  of {}",
        times.len()
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
