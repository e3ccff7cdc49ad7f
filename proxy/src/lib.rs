//! The Tollgate daemon of one node: watches Services and EndpointSlices and makes the kernel balance every Service
//! address over its endpoints.
//!
//! Data goes one way:
//!
//! ```text
//! sources ──Event──▶ model::Store ──▶ model::Snapshot ──newest wins──▶ sync ──▶ backend ──▶ the kernel
//! ```
//!
//! - [`config`]: flags and config file, parsed and validated.
//! - [`source`]: turns the control plane's watch, and that of the node's own addresses, into the model's events.
//! - [`sync`]: the reconcile loop; the only part that knows both the model and a backend.
//! - [`backend`]: how a snapshot becomes kernel objects, by mode.
//! - [`conntrack`]: stale UDP flows.
//! - [`dump`]: what the kernel holds, printed by Service port.
//! - [`node`]: this node's object.
//! - [`health_check`]: what load balancers are told of each Service.
//! - [`health`], [`metrics`]: what else the outside can ask.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tollgate_model::store::Store;

use crate::config::Config;
use crate::health::Health;
use crate::health_check::{HealthChecks, ListenOn};
use crate::metrics::Metrics;
use crate::node::Registration;
use crate::source::address::Addresses;
use crate::source::grpc::Grpc;
use crate::sync::Sync;

pub mod backend;
pub mod config;
pub mod conntrack;
pub mod dump;
pub mod health;
pub mod health_check;
pub mod metrics;
pub mod node;
pub mod source;
pub mod sync;

/// How many updates may wait for the store: enough that the network is never waited for, few enough to bound memory.
const UPDATES: usize = 4096;

/// Why the daemon could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals can't be received.
    #[error("cannot receive signals")]
    Signal(#[source] std::io::Error),
    /// `/healthz` or `/metrics` can't be served.
    #[error(transparent)]
    Serve(#[from] health::ServeError),
    /// The node's addresses can't be read.
    #[error("the node's addresses can't be read")]
    Address(#[from] source::address::Error),
    /// The mode lacks something on this machine.
    #[error("the mode {mode} can't be used here")]
    Backend {
        /// The mode.
        mode: backend::Mode,
        /// What is missing.
        #[source]
        cause: backend::Error,
    },
    /// A part of the daemon that never ends has ended.
    #[error("{0} ended, which it never should; see the log above")]
    Ended(&'static str),
    /// No thread.
    #[error("cannot start a thread for the backend")]
    Thread(#[source] std::io::Error),
}

/// Runs the daemon until SIGTERM or SIGINT. Leaves the kernel as it is then: a restart must not hurt.
///
/// # Errors
/// When it can't start, or when a part of it that must go on has ended.
pub async fn run(config: Config) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;

    let mut metrics = Metrics::new();
    if config.mode == backend::Mode::Ebpf {
        let bpf_root = config.node.ebpf.bpf_root.clone();
        metrics.collect(backend::ebpf::Collector::new(bpf_root, config.metrics_services));
    }
    let metrics = Arc::new(metrics);
    let health = Arc::new(Health::new(2 * config.sync_period));
    if let Some(address) = config.healthz_bind_address {
        health::serve(address, health.clone(), metrics.clone()).await?;
    }
    if let Some(address) = config.metrics_bind_address {
        metrics::serve(address, metrics.clone()).await?;
    }
    let addresses = Addresses::open(metrics.clone()).await?;
    let node_ips = match &config.node_ips {
        given if given.is_empty() => addresses.primary(),
        given => watch::channel(given.clone()).1,
    };
    let (mode, node_config) = (config.mode, config.node.clone());
    let backend = backend::open(mode, &node_config).map_err(|cause| Error::Backend { mode, cause })?;
    tracing::info!(node = config.node_name, node_ips = ?*node_ips.borrow(), %mode, control_plane = %config.control_plane, version = env!("CARGO_PKG_VERSION"), "starting");

    let (updates, received) = mpsc::channel(UPDATES);
    let (desired, newest) = watch::channel(None);
    let sync = Sync::new(backend, config.sync_period, metrics.clone(), health.clone());
    let sync = sync.taking_over(move || backend::leave_others(mode, &node_config));
    let listen_on = match config.nodeport_addresses.is_empty() {
        true => ListenOn::All,
        false => ListenOn::NodePortAddresses,
    };
    let health_checks = HealthChecks::new(listen_on, health.clone(), metrics.clone());
    let health_checks = tokio::spawn(health_checks.run(newest.clone(), sync.applied()));
    let sync_ended = spawn(sync, newest).map_err(Error::Thread)?;
    let store = Store::new(config.store_config());
    let feed = tokio::spawn(source::feed(store, received, desired, metrics.clone(), health));
    let addresses = tokio::spawn(addresses.run(updates.clone()));
    let registration = config.register_node.then(|| Registration {
        name: config.node_name.clone(),
        ips: node_ips,
        zone: config.zone.clone(),
    });
    for (path, mode) in config.access.exposed() {
        tracing::warn!(file = %path.display(), mode, "every user of this machine can read this secret; chmod 600 it");
    }
    let client = format!("tollgate-proxy {}", config.node_name);
    let source =
        tokio::spawn(Grpc::new(config.control_plane, config.access, client, registration, updates, metrics).run());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = sync_ended => return Err(Error::Ended("the sync loop")),
        _ = feed => return Err(Error::Ended("the store")),
        _ = source => return Err(Error::Ended("the source")),
        _ = health_checks => return Err(Error::Ended("the server of health checks")),
        _ = addresses => return Err(Error::Ended("the watch of the node's addresses")),
    }
    tracing::info!("stopping; the rules stay in place");
    Ok(())
}

/// Starts the loop on a thread of its own; the receiver hears when it ends, also by a panic.
fn spawn(sync: Sync, newest: watch::Receiver<Option<sync::Desired>>) -> std::io::Result<oneshot::Receiver<()>> {
    let (ended, hears) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
        // Dropped when the thread ends in whichever way.
        let _ended: oneshot::Sender<()> = ended;
        sync.run(&runtime, newest);
    })?;
    Ok(hears)
}
