//! What the control plane counts, served at `/metrics`. The names are those of kube-apiserver and of gRPC's own libraries
//! where the meaning is the same.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tollgate_api::v1::Kind;

use crate::store::{Position, Usage};

type GaugeF64 = Gauge<f64, AtomicU64>;
type Requests = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// Every metric of the control plane. Shared by reference; each is updated where the thing happens, or when somebody looks.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// How long commits took, to the disk.
    pub(crate) commit_duration: Histogram,
    /// How many writes shared a commit.
    pub(crate) commit_writes: Histogram,
    /// Commits that failed.
    pub(crate) commit_failures: Counter,
    /// 1 while the store takes writes.
    pub(crate) store_writable: Gauge,
    /// Changes that were removed from the history.
    pub(crate) compacted_changes: Counter,
    /// Watches that are open.
    pub(crate) watchers: Gauge,
    /// From the moment that a change could be seen until a watch took it to be sent.
    pub(crate) watch_lag: Histogram,
    writes: Family<WriteLabels, Counter>,
    watches_ended: Family<EndLabels, Counter>,
    requests: Requests,
    allocated_ips: Family<CidrLabels, Gauge>,
    available_ips: Family<CidrLabels, GaugeF64>,
    allocated_ports: Gauge,
    available_ports: Gauge,
    objects: Family<KindLabels, Gauge>,
    revision: Gauge,
    compacted_revision: Gauge,
    file_bytes: Gauge,
    history_changes: Gauge,
    history_bytes: Gauge,
    watch_lag_revisions: Gauge,
}

/// How a range is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeUsage {
    /// The CIDR; `None`: node ports.
    pub(crate) cidr: Option<String>,
    pub(crate) used: u64,
    pub(crate) total: u128,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    grpc_method: &'static str,
    grpc_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CidrLabels {
    cidr: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Fresh metrics, all registered.
    pub(crate) fn new() -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            commit_duration: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            commit_writes: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            commit_failures: Counter::default(),
            store_writable: Gauge::default(),
            compacted_changes: Counter::default(),
            watchers: Gauge::default(),
            watch_lag: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            writes: Family::default(),
            watches_ended: Family::default(),
            requests: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 16))),
            allocated_ips: Family::default(),
            available_ips: Family::default(),
            allocated_ports: Gauge::default(),
            available_ports: Gauge::default(),
            objects: Family::default(),
            revision: Gauge::default(),
            compacted_revision: Gauge::default(),
            file_bytes: Gauge::default(),
            history_changes: Gauge::default(),
            history_bytes: Gauge::default(),
            watch_lag_revisions: Gauge::default(),
        };
        metrics.register_shared_names();
        metrics.register_store();
        metrics.register_watches();
        metrics
    }

    fn register_shared_names(&mut self) {
        let r = &mut self.registry;
        let started = GaugeF64::default();
        started.set(seconds_since_1970(Timestamp::now()));
        r.register_with_unit("process_start_time", "When the process started, since 1970", Unit::Seconds, started);
        r.register_with_unit(
            "grpc_server_handling",
            "How long requests took until their last byte, by method and status code",
            Unit::Seconds,
            self.requests.clone(),
        );
        let r = self.registry.sub_registry_with_prefix("kube_apiserver");
        r.register("clusterip_allocator_allocated_ips", "ClusterIPs held, by range", self.allocated_ips.clone());
        r.register("clusterip_allocator_available_ips", "ClusterIPs that are free", self.available_ips.clone());
        r.register("nodeport_allocator_allocated_ports", "Node ports held", self.allocated_ports.clone());
        r.register("nodeport_allocator_available_ports", "Node ports that are free", self.available_ports.clone());
    }

    fn register_store(&mut self) {
        let r = self.registry.sub_registry_with_prefix("tollgate_controlplane");
        r.register("writes", "Writes that were asked for, by kind and outcome", self.writes.clone());
        r.register_with_unit(
            "commit_duration",
            "How long commits took until they were on disk",
            Unit::Seconds,
            self.commit_duration.clone(),
        );
        r.register("commit_writes", "Writes that shared a commit", self.commit_writes.clone());
        r.register("commit_failures", "Commits that failed", self.commit_failures.clone());
        r.register("store_writable", "1 while the store takes writes", self.store_writable.clone());
        r.register_with_unit("store_file", "Length of the store's file", Unit::Bytes, self.file_bytes.clone());
        r.register("history_changes", "Changes that are kept for watches to resume", self.history_changes.clone());
        r.register_with_unit("history", "What these changes take", Unit::Bytes, self.history_bytes.clone());
        r.register("compacted_changes", "Changes removed from the history", self.compacted_changes.clone());
        r.register("objects", "Objects, by kind", self.objects.clone());
        r.register("revision", "The newest revision", self.revision.clone());
        r.register("compacted_revision", "Watches resume from here and later", self.compacted_revision.clone());
    }

    fn register_watches(&mut self) {
        let r = self.registry.sub_registry_with_prefix("tollgate_controlplane");
        r.register("watchers", "Watches that are open", self.watchers.clone());
        r.register_with_unit(
            "watch_lag",
            "From a commit until a watch took the change to be sent",
            Unit::Seconds,
            self.watch_lag.clone(),
        );
        r.register(
            "watch_lag_revisions",
            "How many revisions the slowest watch is behind",
            self.watch_lag_revisions.clone(),
        );
        r.register("watches_ended", "Watches that ended, by reason", self.watches_ended.clone());
    }

    /// Notes what became of a write.
    pub(crate) fn written(&self, kind: Kind, outcome: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind: kind.singular(), outcome }).inc();
    }

    /// Notes why a watch ended: `client`, `slow`, `relist`, `stopping`, `error`.
    pub(crate) fn watch_ended(&self, reason: &'static str) {
        self.watches_ended.get_or_create(&EndLabels { reason }).inc();
    }

    /// Notes a request's end.
    pub(crate) fn handled(&self, method: &'static str, code: &'static str, took: Duration) {
        let labels = RequestLabels { grpc_method: method, grpc_code: code };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Notes how the ranges are used.
    pub(crate) fn set_ranges(&self, ranges: Vec<RangeUsage>) {
        for RangeUsage { cidr, used, total } in ranges {
            let free = total.saturating_sub(used.into());
            match cidr {
                Some(cidr) => {
                    let labels = CidrLabels { cidr };
                    self.allocated_ips.get_or_create(&labels).set(gauge(used));
                    self.available_ips.get_or_create(&labels).set(approximate(free));
                }
                None => {
                    self.allocated_ports.set(gauge(used));
                    self.available_ports.set(gauge(u64::try_from(free).unwrap_or(u64::MAX)));
                }
            }
        }
    }

    /// Takes up what is looked at only when somebody asks.
    pub(crate) fn set_state(
        &self,
        position: &Position,
        usage: Usage,
        objects: impl Iterator<Item = (Kind, usize)>,
        slowest: Option<u64>,
    ) {
        self.revision.set(gauge(position.revision));
        self.compacted_revision.set(gauge(position.compacted));
        self.file_bytes.set(gauge(usage.file_bytes));
        self.history_changes.set(gauge(usage.history_changes));
        self.history_bytes.set(gauge(usage.history_bytes));
        for (kind, count) in objects {
            self.objects.get_or_create(&KindLabels { kind: kind.singular() }).set(gauge(count as u64));
        }
        let lag = slowest.map_or(0, |cursor| position.revision.saturating_sub(cursor));
        self.watch_lag_revisions.set(gauge(lag));
    }

    /// All metrics in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Serves `/metrics` on a listener until it is aborted. `refresh` brings the metrics up to date before each answer.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    refresh: impl Fn() + Clone + Send + Sync + 'static,
) {
    let answer = move || {
        refresh();
        let text = metrics.encode();
        async move {
            let content_type = [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            text.map(|text| (content_type, text)).map_err(|error| error.to_string())
        }
    };
    if let Err(error) = axum::serve(listener, Router::new().route("/metrics", get(answer))).await {
        tracing::error!(%error, "metrics are no longer served");
    }
}

fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "how many of 2^112 addresses are free is known well enough")]
fn approximate(number: u128) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "a time of day to the microsecond is what a gauge can hold")]
fn seconds_since_1970(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}
