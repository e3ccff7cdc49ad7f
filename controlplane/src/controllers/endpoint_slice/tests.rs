use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tempfile::TempDir;
use tollgate_api::v1::Kind;

use super::*;
use crate::registry::{ExternalIpCidrs, Options, QueueLimit};
use crate::store::{self, Change, Compaction, Embedded, History, Position, Record, Retention, Store, Usage};

/// A store whose disk can be full.
struct Disk {
    store: Embedded,
    is_full: AtomicBool,
}

impl Store for Disk {
    fn position(&self) -> Result<Position, store::Error> {
        self.store.position()
    }

    fn load(&self) -> Result<(Position, Vec<Record>), store::Error> {
        self.store.load()
    }

    fn commit(&self, changes: &[Change]) -> Result<u64, store::Error> {
        if self.is_full.load(Ordering::SeqCst) {
            let source = std::io::Error::other("no space left on device");
            return Err(store::Error::DataDir { path: "data".into(), source });
        }
        self.store.commit(changes)
    }

    fn history(&self, after: u64, limit: usize) -> Result<History, store::Error> {
        self.store.history(after, limit)
    }

    fn compact(&self) -> Result<Compaction, store::Error> {
        self.store.compact()
    }

    fn recover(&self) -> Result<Position, store::Error> {
        self.store.recover()
    }

    fn is_open(&self) -> bool {
        self.store.is_open()
    }

    fn usage(&self) -> Usage {
        self.store.usage()
    }
}

/// A Service, its one pod and its slice, with a controller that moves when it is told to.
async fn world(dir: &TempDir) -> (Arc<Disk>, Registry, Controller) {
    let store = Embedded::open(dir.path(), Retention::newest(100)).unwrap();
    let disk = Arc::new(Disk { store, is_full: AtomicBool::new(false) });
    let queue = QueueLimit { changes: 100, bytes: 1 << 20 };
    let options = Options {
        service_cidrs: "10.96.0.0/24".parse().unwrap(),
        node_ports: 1..=2,
        external_ips: ExternalIpCidrs::default(),
        queue,
    };
    let (registry, _) = Registry::open(disk.clone(), options).unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                         "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    registry.apply(service.to_string().as_bytes()).await.unwrap();
    pod(&registry, "10.0.0.1").await;
    let mut controller = Controller::new(registry.clone());
    controller.start().await.unwrap();
    controller.turn().await.unwrap();
    assert_eq!(address(&registry), "10.0.0.1");
    // Its own write is a change, too.
    controller.turn().await.unwrap();
    (disk, registry, controller)
}

async fn pod(registry: &Registry, ip: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"app": "web"}},
                     "spec": {"containers": []}, "status": {"podIP": ip}});
    registry.apply(pod.to_string().as_bytes()).await.unwrap();
}

/// The one slice.
fn slice(registry: &Registry) -> Value {
    let (slices, _) = registry.list(Kind::EndpointSlice, "");
    assert_eq!(slices.len(), 1);
    serde_json::from_slice(&slices[0].json).unwrap()
}

/// The address of its one endpoint.
fn address(registry: &Registry) -> String {
    slice(registry)["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_slice_that_has_changed_meanwhile_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_, registry, mut controller) = world(&dir).await;
    pod(&registry, "10.0.0.2").await;
    controller.follow().await.unwrap();
    let mut by_hand = slice(&registry);
    by_hand["metadata"]["annotations"]["note"] = "kept".into();
    registry.apply(by_hand.to_string().as_bytes()).await.unwrap();
    controller.sync().await.unwrap();
    assert_eq!((address(&registry).as_str(), controller.waiting.len()), ("10.0.0.1", 1));
    controller.turn().await.unwrap();
    assert_eq!(address(&registry), "10.0.0.2");
    assert_eq!(slice(&registry)["metadata"]["annotations"]["note"], "kept");
}

#[tokio::test]
async fn a_slice_that_has_gone_meanwhile_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (_, registry, mut controller) = world(&dir).await;
    pod(&registry, "10.0.0.2").await;
    controller.follow().await.unwrap();
    let name = slice(&registry)["metadata"]["name"].as_str().unwrap().to_owned();
    registry.delete(Key::endpoint_slice("default", &name), 0).await.unwrap();
    controller.sync().await.unwrap();
    controller.turn().await.unwrap();
    assert_eq!(address(&registry), "10.0.0.2");
    assert_ne!(slice(&registry)["metadata"]["name"], name.as_str());
}

#[tokio::test]
async fn a_failed_write_is_tried_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, registry, mut controller) = world(&dir).await;
    pod(&registry, "10.0.0.2").await;
    disk.is_full.store(true, Ordering::SeqCst);
    controller.turn().await.unwrap();
    assert_eq!((controller.waiting.len(), controller.failed.len()), (0, 1));
    let waits = controller.retry;
    assert_eq!(waits, FIRST_RETRY * 2);
    disk.is_full.store(false, Ordering::SeqCst);
    while !controller.failed.is_empty() {
        controller.turn().await.unwrap();
    }
    assert_eq!(address(&registry), "10.0.0.2");
    assert_eq!(controller.retry, FIRST_RETRY);
}

#[tokio::test]
async fn a_name_that_is_taken_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (_, registry, _) = world(&dir).await;
    let mut taken: EndpointSlice = serde_json::from_value(slice(&registry)).unwrap();
    taken.metadata.resource_version = None;
    taken.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    let refused = apply(&registry, "web", taken).await.unwrap_err();
    assert!(matches!(synced(&("default".to_owned(), "web".to_owned()), &refused), Synced::Conflict), "{refused}");
}
