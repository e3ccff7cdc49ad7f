//! The gRPC face of the registry.

mod control_plane;
mod requests;
pub(crate) mod security;
mod standard;
mod status;
mod watch;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::task::{JoinError, spawn_blocking};
use tollgate_api::v1::control_plane_server::ControlPlaneServer;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::registry::{self, Condition, ExternalIpCidrs, Options, QueueLimit, Registry, ServiceCidrs};
use crate::store::{self, Embedded, Retention};
use crate::{controllers, metrics};
use control_plane::Service;
use requests::Requests;
use security::{Authenticator, Incoming, Reloader};
pub use security::{Insecure, Security, ServerFiles};
use watch::Watchers;

/// Node ports as in Kubernetes.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// A dead peer is noticed after the two together, also when nothing is sent to it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Clients that do not take the end of their watches are left behind after this.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// How a control plane is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the store lies; made where it does not exist.
    pub data_dir: PathBuf,
    /// Where ClusterIPs come from.
    pub service_cidrs: ServiceCidrs,
    /// Where node ports come from.
    pub node_ports: RangeInclusive<u16>,
    /// Where Services may take external IPs from.
    pub external_ips: ExternalIpCidrs,
    /// Which changes a watch can resume over.
    pub retention: Retention,
    /// How far a watcher may fall behind before it is cut.
    pub queue: QueueLimit,
    /// How long a watch stays silent before it tells where it stands.
    pub progress_interval: Duration,
    /// Where `/metrics` is served; `None`: nowhere.
    pub metrics_bind_address: Option<SocketAddr>,
    /// Who may connect.
    pub security: Security,
}

/// Why the control plane could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener would not be protected, or can't be with these files.
    #[error(transparent)]
    Security(#[from] security::Error),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The store's objects can't be taken up.
    #[error("cannot take up what the store holds")]
    Registry(#[from] registry::Error),
    /// Connections can't be served.
    #[error("cannot serve connections")]
    Serve(#[source] tonic::transport::Error),
    /// A controller has panicked; to go on without it would leave traffic on endpoints that are gone.
    #[error("the EndpointSlice controller has ended")]
    Controller(#[source] JoinError),
    /// The writer has panicked; to go on without it would be to refuse every write for good.
    #[error("the thread that writes has ended; what it has acknowledged is on disk")]
    Writer,
    /// The contract that was built in can't be shown by reflection.
    #[error("cannot describe the gRPC services")]
    Reflection(#[source] Box<tonic_reflection::server::Error>),
    /// The metrics' address can't be listened on.
    #[error(
        "cannot serve metrics on {address}; is another control plane running here? (--metrics-bind-address picks another address)"
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The listener has no address.
    #[error("cannot tell the address that is listened on")]
    Listen(#[source] std::io::Error),
}

// === impl Config ===

impl Config {
    /// With what is not asked about a control plane by everyone.
    pub fn new(data_dir: PathBuf, service_cidrs: ServiceCidrs) -> Self {
        Config {
            data_dir,
            service_cidrs,
            node_ports: NODE_PORTS,
            external_ips: ExternalIpCidrs::default(),
            retention: Retention::default(),
            queue: QueueLimit { changes: 10_000, bytes: 64 << 20 },
            progress_interval: Duration::from_secs(10),
            metrics_bind_address: None,
            security: Security::default(),
        }
    }
}

/// Serves until `shutdown` is ready; then tells by the health service that it drains, ends the watches, lets requests
/// finish, and returns.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let address = listener.local_addr().map_err(Error::Listen)?;
    raise_file_limit();
    let Config { data_dir, service_cidrs, node_ports, external_ips, queue, security, .. } = config;
    security.check(address.ip()).map_err(security::Error::from)?;
    let (credentials, reloader) = security::open(&security)?;
    let (retention, progress_interval) = (config.retention, config.progress_interval);
    let metrics_listener = listen_for_metrics(config.metrics_bind_address).await?;
    let options = Options { service_cidrs, node_ports, external_ips, queue };
    let open = move || open(&data_dir, retention, options);
    let reflection = standard::reflection().map_err(Error::Reflection)?;
    let (registry, writer) = spawn_blocking(open).await.map_err(|_| registry::Error::Stopped)??;
    let position = registry.feed().position();
    tracing::info!(store = %position.store_id, revision = position.revision, %security, "listening on {address}");
    if security.insecure {
        tracing::warn!("--insecure: whoever reaches {address} can read and write everything");
    }

    let stopping = tokio::sync::watch::Sender::new(false);
    let mut controller = tokio::spawn(run_controllers(registry.clone(), stopping.subscribe()));
    let (health, health_service) = standard::health().await;
    let condition = registry.condition();
    let following = tokio::spawn(standard::follow(health.clone(), registry.condition()));
    let watchers = Arc::new(Watchers::default());
    let requests = Requests::new(registry.metrics().clone(), stopping.subscribe());
    let serving_metrics = metrics_listener.map(|listener| serve_metrics(listener, &registry, &watchers));
    let service = Service::new(registry.clone(), watchers, progress_interval, stopping.subscribe());
    let authenticator = Authenticator(credentials.clone());
    let incoming = Incoming::new(listener, credentials).into_stream();
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(requests)
        .add_service(ControlPlaneServer::with_interceptor(service, authenticator.clone()))
        // Open to all: probes have no identity, and what they learn is whether the server serves.
        .add_service(health_service)
        .add_service(InterceptedService::new(reflection, authenticator))
        .serve_with_incoming_shutdown(incoming, until(stopping.subscribe()));
    tokio::pin!(served);
    tokio::select! {
        result = &mut served => return result.map_err(Error::Serve),
        () = ended(condition) => return Err(Error::Writer),
        ended = &mut controller => return ended.map_err(Error::Controller),
        never = reload(reloader) => match never {},
        () = shutdown => tracing::info!("stopping"),
    }
    following.abort();
    // First, so that a watch of the health is told before it ends.
    standard::set_draining(&health).await;
    stopping.send_replace(true);
    match tokio::time::timeout(SHUTDOWN_PATIENCE, served).await {
        Ok(result) => result.map_err(Error::Serve)?,
        Err(_) => tracing::warn!("some clients did not take the end of their requests; leaving them"),
    }
    controller.await.map_err(Error::Controller)?;
    if let Some(serving) = serving_metrics {
        serving.abort();
        let _ = serving.await;
    }
    // Not by the end of its handles: the clients that were left behind still have some.
    registry.close();
    drop(registry);
    // Every acknowledged write is on disk already; the wait is for the store's file to be closed in order.
    let closed = spawn_blocking(move || writer.join());
    if tokio::time::timeout(SHUTDOWN_PATIENCE, closed).await.is_err() {
        tracing::warn!("the writer still has work; leaving it");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Every proxy is a connection, and the limit that processes begin with, often 1024, is for programs that use select(2).
fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

async fn listen_for_metrics(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Error> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Metrics { address, source })?;
    tracing::info!("metrics are served on {}", listener.local_addr().map_err(Error::Listen)?);
    Ok(Some(listener))
}

fn serve_metrics(listener: TcpListener, registry: &Registry, watchers: &Arc<Watchers>) -> tokio::task::JoinHandle<()> {
    let metrics = registry.metrics().clone();
    let (registry, watchers) = (registry.clone(), watchers.clone());
    tokio::spawn(metrics::serve(listener, metrics, move || registry.refresh_metrics(watchers.slowest())))
}

/// Follows the files of the listener, if it has any.
async fn reload(reloader: Option<Reloader>) -> Infallible {
    match reloader {
        Some(reloader) => reloader.run().await,
        None => std::future::pending().await,
    }
}

/// Opens the store and takes up what it holds.
fn open(data_dir: &Path, retention: Retention, options: Options) -> Result<(Registry, JoinHandle<()>), Error> {
    let store = Embedded::open(data_dir, retention)?;
    Ok(Registry::open(Arc::new(store), options)?)
}

/// Ready once the writer is no more.
async fn ended(mut condition: tokio::sync::watch::Receiver<Condition>) {
    while condition.changed().await.is_ok() {}
}

/// Until the server is to stop.
async fn run_controllers(registry: Registry, stopping: tokio::sync::watch::Receiver<bool>) {
    tokio::select! {
        // Ends by itself only if the registry takes no more writes; to say so is the server's business.
        () = controllers::run_endpoint_slices(registry) => until(stopping.clone()).await,
        () = until(stopping.clone()) => {}
    }
}

/// Ready once the server is to stop.
async fn until(mut stopping: tokio::sync::watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop as well.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}
