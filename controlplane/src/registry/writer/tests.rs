use std::sync::Mutex;

use serde_json::json;
use tempfile::TempDir;
use tollgate_api::v1::Key;

use super::*;
use crate::registry::{ExternalIpCidrs, Next, QueueLimit, Registry};
use crate::store::{Compaction, Embedded, History, Position, Record, Retention, Usage};

/// How a commit goes wrong.
#[derive(Clone, Copy)]
enum Fault {
    /// Nothing reaches the disk.
    Before,
    /// Everything does, but the answer is an error.
    After,
}

/// A store with one fault to come.
struct Faulty {
    store: Embedded,
    fault: Mutex<Option<Fault>>,
}

impl Store for Faulty {
    fn position(&self) -> Result<Position, store::Error> {
        self.store.position()
    }

    fn load(&self) -> Result<(Position, Vec<Record>), store::Error> {
        self.store.load()
    }

    fn commit(&self, changes: &[Change]) -> Result<u64, store::Error> {
        let fault = self.fault.lock().unwrap().take();
        if !matches!(fault, Some(Fault::Before)) {
            let compacted = self.store.commit(changes)?;
            if fault.is_none() {
                return Ok(compacted);
            }
        }
        Err(store::Error::DataDir { path: "data".into(), source: std::io::Error::other("no space left on device") })
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

fn open(dir: &TempDir) -> (Arc<Faulty>, Registry) {
    let store = Arc::new(Faulty {
        store: Embedded::open(dir.path(), Retention::newest(100)).unwrap(),
        fault: Mutex::new(None),
    });
    let queue = QueueLimit { changes: 100, bytes: 1 << 20 };
    let options = Options {
        service_cidrs: "10.96.0.0/29".parse().unwrap(),
        node_ports: 1..=2,
        external_ips: ExternalIpCidrs::default(),
        queue,
    };
    let (registry, _) = Registry::open(store.clone(), options).unwrap();
    (store, registry)
}

fn service(name: &str) -> Vec<u8> {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
           "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}})
    .to_string()
    .into_bytes()
}

/// What a watcher has been shown since the start.
fn shown(registry: &Registry) -> Vec<String> {
    let Next::Changes(changes) = registry.feed().after(1) else { panic!("overrun") };
    changes.iter().map(|queued| format!("{} {}", queued.change.revision(), queued.change.key())).collect()
}

#[tokio::test]
async fn a_failed_write_is_undone_and_the_next_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = open(&dir);
    *store.fault.lock().unwrap() = Some(Fault::Before);
    let error = registry.apply(&service("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot use data directory data: no space left on device");
    assert!(registry.get(&Key::service("default", "a")).is_err());
    // The address that the failed write was to get is free.
    let applied = registry.apply(&service("b")).await.unwrap();
    assert_eq!(applied.record.revision, 2);
    assert_eq!(shown(&registry), ["2 service default/b"]);
}

#[tokio::test]
async fn a_write_that_reached_the_disk_all_the_same_is_shown_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (store, registry) = open(&dir);
    *store.fault.lock().unwrap() = Some(Fault::After);
    registry.apply(&service("a")).await.unwrap_err();
    let error = registry.apply(&service("b")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service default/b is invalid: spec.clusterIPs[0]: \"10.96.0.1\": is held by service default/a"
    );
    registry.delete(Key::service("default", "a"), 0).await.unwrap();
    assert_eq!(shown(&registry), ["2 service default/a", "3 service default/a"]);
}
