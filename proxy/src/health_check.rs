//! What load balancers are told of each Service, on its health check node port.
//!
//! A load balancer asks every node by HTTP whether to send it the traffic of a Service with
//! `externalTrafficPolicy: Local`. The answer (codes, headers and body are those of kube-proxy's
//! `pkg/proxy/healthcheck/service_health.go`) is 200 where the node has a ready endpoint and the proxy does its work.
//!
//! One task follows the snapshots and opens and closes what changed. An endpoint counts once the kernel has it, and no longer
//! than it is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use imbl::OrdMap;
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tollgate_model::diff::{Change, diff};
use tollgate_model::name::NamespacedName;
use tollgate_model::snapshot::{HealthCheck, Snapshot};

use crate::health::Health;
use crate::metrics::Metrics;
use crate::sync::{Desired, chain};

/// How often a port that could not be opened is tried again: another process may let go of it at any time.
const RETRY: Duration = Duration::from_secs(2);

const EAFNOSUPPORT: i32 = 97;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// On which of the node's addresses health checks are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenOn {
    /// All: there are load balancers that ask under their own address, which the node has on no interface that counts.
    All,
    /// Those that answer NodePorts, as the operator has chosen them.
    NodePortAddresses,
}

/// The servers of one node, and what they follow.
pub struct HealthChecks {
    listen_on: ListenOn,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    servers: BTreeMap<NamespacedName, Server>,
    /// What the servers are made from.
    desired: Followed,
    /// What the kernel has.
    applied: Followed,
    addresses: BTreeSet<IpAddr>,
}

type Followed = OrdMap<NamespacedName, Arc<HealthCheck>>;

/// What one Service's health check node port is served by.
struct Server {
    node_port: u16,
    answers: Arc<Answers>,
    open: BTreeMap<SocketAddr, JoinHandle<()>>,
    /// Those that could not be opened; said once.
    failed: BTreeSet<SocketAddr>,
}

/// What a server says.
struct Answers {
    service: NamespacedName,
    ready_local: AtomicUsize,
    health: Arc<Health>,
}

/// The body of an answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Service<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Service<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Why a health check node port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot answer the health checks of Service {service} on its healthCheckNodePort, {address}: load balancers take this \
     node for unfit; does another process listen there (ss -ltnp)?"
)]
struct ListenError {
    service: NamespacedName,
    address: SocketAddr,
    #[source]
    cause: io::Error,
}

impl HealthChecks {
    /// Servers that follow nothing yet.
    #[must_use]
    pub fn new(listen_on: ListenOn, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        Self {
            listen_on,
            health,
            metrics,
            servers: BTreeMap::new(),
            desired: Followed::new(),
            applied: Followed::new(),
            addresses: BTreeSet::new(),
        }
    }

    /// Follows what is desired, and what of it the kernel has, until there is nothing more to come.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<Desired>>,
        mut applied: watch::Receiver<Option<Snapshot>>,
    ) {
        let mut retry_at = None;
        loop {
            let retry = async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                changed = desired.changed() => changed.is_ok(),
                changed = applied.changed() => changed.is_ok(),
                () = retry => true,
            };
            if !goes_on {
                return;
            }
            let newest = desired.borrow_and_update().as_ref().map(|desired| desired.snapshot.clone());
            let in_kernel = applied.borrow_and_update().as_ref().map(|snapshot| snapshot.health_checks.clone());
            let is_whole = self.follow(&newest.unwrap_or_default(), in_kernel.unwrap_or_default()).await;
            retry_at = (!is_whole).then(|| Instant::now() + RETRY);
        }
    }

    /// Brings the servers to what is desired. Returns whether all could be opened.
    async fn follow(&mut self, newest: &Snapshot, in_kernel: Followed) -> bool {
        let desired = std::mem::replace(&mut self.desired, newest.health_checks.clone());
        let applied = std::mem::replace(&mut self.applied, in_kernel);
        let mut touched: BTreeSet<&NamespacedName> = BTreeSet::new();
        for change in diff(&desired, &self.desired).chain(diff(&applied, &self.applied)) {
            let (Change::Added(name, _) | Change::Changed(name, ..) | Change::Removed(name, _)) = change;
            touched.insert(name);
        }
        // All that close do so before any opens: a port may pass from one Service to another.
        for name in &touched {
            let node_port = self.desired.get(*name).map(|check| check.node_port);
            if self.servers.get(*name).is_some_and(|server| Some(server.node_port) != node_port)
                && let Some(server) = self.servers.remove(*name)
            {
                server.close().await;
            }
        }
        for name in touched {
            let Some(check) = self.desired.get(name) else { continue };
            let server =
                self.servers.entry(name.clone()).or_insert_with(|| Server::new(name, check.node_port, &self.health));
            let in_kernel = self.applied.get(name).map_or(0, |check| check.ready_local);
            server.answers.ready_local.store(check.ready_local.min(in_kernel), Ordering::Relaxed);
        }
        self.listen(newest).await
    }

    /// Opens and closes what the servers listen on.
    async fn listen(&mut self, newest: &Snapshot) -> bool {
        let addresses = match self.listen_on {
            ListenOn::All => all_addresses(),
            ListenOn::NodePortAddresses => newest.node_port_addresses.as_ref().clone(),
        };
        let are_others = addresses != self.addresses;
        self.addresses = addresses;
        for server in self.servers.values_mut().filter(|server| are_others || !server.is_whole(&self.addresses)) {
            server.listen(&self.addresses).await;
        }
        let failed = self.servers.values().filter(|server| !server.failed.is_empty()).count();
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.health_check_node_ports.set(gauge(self.servers.len() - failed));
        self.metrics.health_check_node_ports_failed.set(gauge(failed));
        failed == 0
    }
}

impl Server {
    fn new(service: &NamespacedName, node_port: u16, health: &Arc<Health>) -> Self {
        let answers = Answers { service: service.clone(), ready_local: AtomicUsize::new(0), health: health.clone() };
        Self { node_port, answers: Arc::new(answers), open: BTreeMap::new(), failed: BTreeSet::new() }
    }

    fn is_whole(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        self.open.len() == addresses.len() && self.open.values().all(|server| !server.is_finished())
    }

    async fn listen(&mut self, addresses: &BTreeSet<IpAddr>) {
        let wanted: BTreeSet<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, self.node_port)).collect();
        let (open, rest) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(address, server)| wanted.contains(address) && !server.is_finished());
        self.open = open;
        for (_, server) in rest {
            end(server).await;
        }
        self.failed.retain(|address| wanted.contains(address));
        for address in wanted {
            if !self.open.contains_key(&address) {
                self.open(address);
            }
        }
    }

    fn open(&mut self, address: SocketAddr) {
        let service = &self.answers.service;
        match listener(address) {
            Ok(listener) => {
                let was_failed = self.failed.remove(&address);
                tracing::info!(%service, %address, was_failed, "answering health checks");
                let answers = self.answers.clone();
                let router = Router::new().fallback(move || {
                    let answers = answers.clone();
                    async move { answers.answer() }
                });
                let server = tokio::spawn(async move {
                    if let Err(error) = axum::serve(listener, router).await {
                        tracing::error!(%address, %error, "health checks are no longer answered");
                    }
                });
                self.open.insert(address, server);
            }
            Err(cause) => {
                let error = ListenError { service: service.clone(), address, cause };
                if self.failed.insert(address) {
                    tracing::error!(%service, %address, retry_in = ?RETRY, "{}", chain(&error));
                }
            }
        }
    }

    /// Returns when the port is free.
    async fn close(self) {
        tracing::info!(service = %self.answers.service, port = self.node_port, "no longer answering health checks");
        for server in self.open.into_values() {
            end(server).await;
        }
    }
}

async fn end(server: JoinHandle<()>) {
    server.abort();
    // Whether it was cancelled or had ended, the listener is gone now, and its connections end after the answer they are at.
    let _ended = server.await;
}

impl Answers {
    fn answer(&self) -> (StatusCode, HeaderMap, String) {
        let local_endpoints = self.ready_local.load(Ordering::Relaxed);
        let service_proxy_healthy = self.health.is_healthy();
        let fits = local_endpoints > 0 && service_proxy_healthy;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(WEIGHT, HeaderValue::from(local_endpoints));
        let service = Service { namespace: &self.service.namespace, name: &self.service.name };
        let body = Body { service, local_endpoints, service_proxy_healthy };
        (if fits { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, headers, indented(&body))
    }
}

/// JSON as kube-proxy writes it, with tabs: there are load balancers that look for a text in it.
fn indented(body: &Body<'_>) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let written = body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
    debug_assert!(written.is_ok(), "writing numbers and strings into memory does not fail");
    String::from_utf8(text).unwrap_or_default()
}

/// Both families, unless the kernel was told to go without IPv6 altogether.
fn all_addresses() -> BTreeSet<IpAddr> {
    let lacks_v6 = TcpSocket::new_v6().is_err_and(|error| error.raw_os_error() == Some(EAFNOSUPPORT));
    let v6 = (!lacks_v6).then_some(Ipv6Addr::UNSPECIFIED.into());
    [Ipv4Addr::UNSPECIFIED.into()].into_iter().chain(v6).collect()
}

/// One family alone, so that `0.0.0.0` and `::` stand side by side whatever `net.ipv6.bindv6only` says.
fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}
