//! What the daemon counts, served at `/metrics`. The names are kube-proxy's where the meaning is the same.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::health;
use crate::source::Revision;

type GaugeF64 = Gauge<f64, AtomicU64>;

/// Every metric of the daemon. Shared by reference; each is updated where the thing happens.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// How long syncs that wrote something took, of either scope.
    pub sync_duration: Histogram,
    /// The same, of full syncs alone.
    pub full_sync_duration: Histogram,
    /// From a change at the source until the kernel had it, where the object carries the time of the change.
    programming_duration: Histogram,
    /// When a sync last succeeded, in seconds since 1970.
    pub last_sync: GaugeF64,
    /// When a change last came in to be synced, in seconds since 1970.
    pub last_queued: GaugeF64,
    /// Service events that came from the source.
    pub service_changes: Counter,
    /// EndpointSlice events that came from the source.
    pub endpoint_changes: Counter,
    /// Syncs that failed and are tried again.
    pub sync_failures: Counter,
    /// Kernel objects written or deleted because something changed.
    pub objects_changed: Counter,
    /// Kernel objects that somebody else had changed, and that were put right.
    pub objects_repaired: Counter,
    /// Service ports that the backend could not realise, as of the last sync.
    pub refused_service_ports: Gauge,
    /// UDP flows deleted because their endpoint no longer served.
    pub stale_flows_deleted: Counter,
    /// Connected sockets destroyed because their endpoint no longer served.
    pub stale_sockets_destroyed: Counter,
    /// How long it took to delete stale flows, where there was something to look for.
    pub flow_cleaning_duration: Histogram,
    /// Deletions of stale flows that failed and are tried again.
    pub flow_cleaning_failures: Counter,
    /// The source's revision up to which the kernel has everything; of which store, `applied_store` says.
    pub applied_revision: Gauge,
    applied_store: Family<Store, Gauge>,
    /// 1 while the watch of the source stands.
    pub source_connected: Gauge,
    /// Service ports in the newest snapshot.
    pub service_ports: Gauge,
    /// Addresses of the node's own.
    pub node_addresses: Gauge,
    /// Services whose health check node port is answered.
    pub health_check_node_ports: Gauge,
    /// Services whose health check node port can't be opened, and is tried again.
    pub health_check_node_ports_failed: Gauge,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
    pending: Mutex<Vec<Pending>>,
}

/// A change whose way into the kernel is being timed.
#[derive(Clone, Debug)]
struct Pending {
    revision: Revision,
    triggered: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Store {
    store_id: String,
}

/// Which health question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// `/healthz`
    Healthz,
    /// `/livez`
    Livez,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Fresh metrics, all registered.
    #[must_use]
    pub fn new() -> Self {
        // kube-proxy's buckets for syncs, from 1 ms, begun ten times finer: a change takes well under a millisecond of work.
        let sync_buckets = || exponential_buckets(0.0001, 2.0, 20);
        let mut metrics = Self {
            registry: Registry::default(),
            sync_duration: Histogram::new(sync_buckets()),
            full_sync_duration: Histogram::new(sync_buckets()),
            programming_duration: Histogram::new(exponential_buckets(0.001, 2.0, 20)),
            last_sync: GaugeF64::default(),
            last_queued: GaugeF64::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            sync_failures: Counter::default(),
            objects_changed: Counter::default(),
            objects_repaired: Counter::default(),
            refused_service_ports: Gauge::default(),
            stale_flows_deleted: Counter::default(),
            stale_sockets_destroyed: Counter::default(),
            flow_cleaning_duration: Histogram::new(sync_buckets()),
            flow_cleaning_failures: Counter::default(),
            applied_revision: Gauge::default(),
            applied_store: Family::default(),
            source_connected: Gauge::default(),
            service_ports: Gauge::default(),
            node_addresses: Gauge::default(),
            health_check_node_ports: Gauge::default(),
            health_check_node_ports_failed: Gauge::default(),
            healthz: Family::default(),
            livez: Family::default(),
            pending: Mutex::default(),
        };
        metrics.register_kube_proxy_names();
        metrics.register_own_names();
        metrics
    }

    /// Tells at `/metrics` what this collects, too.
    pub fn collect(&mut self, collector: impl Collector) {
        self.registry.register_collector(Box::new(collector));
    }

    fn register_kube_proxy_names(&mut self) {
        let r = self.registry.sub_registry_with_prefix("kubeproxy");
        let sync = "sync_proxy_rules";
        r.register_with_unit(
            format!("{sync}_duration"),
            "Duration of a sync that wrote something",
            Unit::Seconds,
            self.sync_duration.clone(),
        );
        r.register_with_unit(
            "sync_full_proxy_rules_duration",
            "Duration of a full sync",
            Unit::Seconds,
            self.full_sync_duration.clone(),
        );
        r.register_with_unit(
            "network_programming_duration",
            "From the change of an endpoint, by the object's last-change-trigger-time, until the kernel has it",
            Unit::Seconds,
            self.programming_duration.clone(),
        );
        r.register_with_unit(
            format!("{sync}_last_timestamp"),
            "When a sync last succeeded",
            Unit::Seconds,
            self.last_sync.clone(),
        );
        r.register_with_unit(
            format!("{sync}_last_queued_timestamp"),
            "When a change was last queued for a sync",
            Unit::Seconds,
            self.last_queued.clone(),
        );
        r.register_with_unit(
            "conntrack_reconciler_sync_duration",
            "How long it took to delete stale UDP flows",
            Unit::Seconds,
            self.flow_cleaning_duration.clone(),
        );
        r.register(format!("{sync}_service_changes"), "Service changes", self.service_changes.clone());
        r.register(format!("{sync}_endpoint_changes"), "EndpointSlice changes", self.endpoint_changes.clone());
        r.register("proxy_healthz", "Answers of /healthz by code", self.healthz.clone());
        r.register("proxy_livez", "Answers of /livez by code", self.livez.clone());
    }

    fn register_own_names(&mut self) {
        let r = self.registry.sub_registry_with_prefix("tollgate");
        r.register("sync_failures", "Syncs that failed and are tried again", self.sync_failures.clone());
        r.register("objects_changed", "Kernel objects written or deleted", self.objects_changed.clone());
        r.register(
            "objects_repaired",
            "Kernel objects that were found changed and put right",
            self.objects_repaired.clone(),
        );
        r.register(
            "refused_service_ports",
            "Service ports that the last sync could not realise",
            self.refused_service_ports.clone(),
        );
        r.register(
            "stale_udp_flows_deleted",
            "UDP flows deleted because their endpoint no longer served",
            self.stale_flows_deleted.clone(),
        );
        r.register(
            "stale_sockets_destroyed",
            "Connected sockets destroyed because their endpoint no longer served",
            self.stale_sockets_destroyed.clone(),
        );
        r.register(
            "stale_udp_flow_failures",
            "Deletions of stale UDP flows that failed and are tried again",
            self.flow_cleaning_failures.clone(),
        );
        r.register(
            "applied_revision",
            "The control plane's revision up to which the kernel has everything",
            self.applied_revision.clone(),
        );
        r.register(
            "applied_store_info",
            "The control plane's store that the applied revision is of: revisions of different stores say nothing of each other",
            self.applied_store.clone(),
        );
        r.register("source_connected", "1 while the watch of the control plane stands", self.source_connected.clone());
        r.register(
            "health_check_node_ports",
            "Services whose health check node port is answered",
            self.health_check_node_ports.clone(),
        );
        r.register(
            "health_check_node_ports_failed",
            "Services whose health check node port could not be opened",
            self.health_check_node_ports_failed.clone(),
        );
        r.register("node_addresses", "Addresses of the node's own", self.node_addresses.clone());
        r.register("service_ports", "Service ports in the newest snapshot", self.service_ports.clone());
    }

    /// Notes that a change came in, made at `triggered` if the object says so, to be timed until its revision is applied.
    pub fn queued(&self, revision: &Revision, triggered: Option<Timestamp>) {
        self.last_queued.set(seconds_since_1970(Timestamp::now()));
        if let Some(triggered) = triggered {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            // Of another store's changes nobody will say any more that they are applied.
            if pending.last().is_some_and(|last| last.revision.store != revision.store) {
                pending.clear();
            }
            pending.push(Pending { revision: revision.clone(), triggered });
        }
    }

    /// Notes that the kernel has everything up to `revision`.
    pub fn applied(&self, revision: &Revision) {
        let now = Timestamp::now();
        self.last_sync.set(seconds_since_1970(now));
        self.set_applied(revision);
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).retain(|pending| {
            let applied = pending.revision.store == revision.store && pending.revision.number <= revision.number;
            if applied {
                let duration = Duration::try_from(now.duration_since(pending.triggered)).unwrap_or_default();
                self.programming_duration.observe(duration.as_secs_f64());
            }
            !applied
        });
    }

    /// Who reads the metrics while the store changes may miss the revision's store, and never sees one store's revision with
    /// the other's name.
    fn set_applied(&self, revision: &Revision) {
        let label = Store { store_id: revision.store.to_string() };
        let is_same = self.applied_store.get(&label).is_some();
        if !is_same {
            self.applied_store.clear();
        }
        self.applied_revision.set(i64::try_from(revision.number).unwrap_or(i64::MAX));
        if !is_same && !label.store_id.is_empty() {
            self.applied_store.get_or_create(&label).set(1);
        }
    }

    /// Notes what a health question was answered.
    pub fn answered(&self, question: Question, code: u16) {
        let family = match question {
            Question::Healthz => &self.healthz,
            Question::Livez => &self.livez,
        };
        family.get_or_create(&Code { code }).inc();
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// Never, as far as the encoder's own code goes: it writes into memory.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time of day to the microsecond is what a gauge can hold")]
fn seconds_since_1970(time: Timestamp) -> f64 {
    time.as_microsecond() as f64 / 1e6
}

/// Serves `/metrics` until the process ends.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> Result<(), health::ServeError> {
    let answer = move || {
        let text = metrics.encode();
        async move {
            let content_type = [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            text.map(|text| (content_type, text)).map_err(|error| error.to_string())
        }
    };
    health::listen("metrics", address, Router::new().route("/metrics", get(answer))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kube_proxy() {
        let metrics = Metrics::new();
        metrics.sync_duration.observe(0.01);
        metrics.answered(Question::Livez, 200);
        let text = metrics.encode().unwrap();
        for name in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count",
            "kubeproxy_network_programming_duration_seconds_count",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }

    #[test]
    fn a_change_is_timed_once_its_revision_is_applied() {
        let metrics = Metrics::new();
        metrics.queued(&at("a", 7), Some(Timestamp::now()));
        metrics.queued(&at("a", 9), Some(Timestamp::now()));
        metrics.applied(&at("a", 8));
        assert!(metrics.encode().unwrap().contains("kubeproxy_network_programming_duration_seconds_count 1\n"));
        metrics.applied(&at("a", 9));
        assert!(metrics.encode().unwrap().contains("kubeproxy_network_programming_duration_seconds_count 2\n"));
    }

    #[test]
    fn revisions_of_another_store_are_other_revisions() {
        let metrics = Metrics::new();
        let lines = || {
            let text = metrics.encode().unwrap();
            text.lines().filter(|line| line.starts_with("tollgate_applied")).map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.applied(&at("", 0));
        assert_eq!(lines(), ["tollgate_applied_revision 0"]);
        metrics.queued(&at("a", 9), Some(Timestamp::now()));
        metrics.applied(&at("a", 8));
        assert_eq!(lines(), ["tollgate_applied_revision 8", "tollgate_applied_store_info{store_id=\"a\"} 1"]);
        metrics.queued(&at("b", 3), Some(Timestamp::now()));
        metrics.applied(&at("b", 2));
        assert_eq!(lines(), ["tollgate_applied_revision 2", "tollgate_applied_store_info{store_id=\"b\"} 1"]);
        let timed = "kubeproxy_network_programming_duration_seconds_count 0\n";
        assert!(metrics.encode().unwrap().contains(timed));
        metrics.applied(&at("b", 3));
        assert!(!metrics.encode().unwrap().contains(timed));
    }

    fn at(store: &str, number: u64) -> Revision {
        Revision { store: store.into(), number }
    }
}
