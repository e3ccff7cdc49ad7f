//! The objects: read, defaulted, checked, given what they need, and handed to whoever wants to know.
//!
//! ```text
//!  Apply ── Manifest::parse ──▶ Writer ── State::apply ──▶ Store::commit ──▶ Feed ──▶ Get, List, Watch
//!             in itself           in turn    with others       on disk         visible
//! ```
//! One thread writes. Readers never wait for it: they take snapshots of the [`Feed`], which shows only what is on disk.

mod endpoint_slice;
mod feed;
mod invalid;
mod manifest;
mod metadata;
pub(crate) mod name;
mod namespace;
mod node;
mod pod;
mod pool;
mod service;
mod service_cidr;
mod state;
mod writer;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread::JoinHandle;

use jiff::Timestamp;
use serde_json::json;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tollgate_api::v1::{Key, Kind};

pub use feed::{Feed, Next, QueueLimit, Queued, Snapshot};
pub use invalid::{Finding, Invalid};
pub use manifest::DEFAULT_NAMESPACE;
pub(crate) use manifest::Manifest;
pub(crate) use service::service_type;
pub use service::{Exhausted, ExternalIpCidrs};
pub(crate) use service_cidr::IpFamily;
pub use service_cidr::{InvalidCidrs, ServiceCidrs};
pub use state::{Applied, Objects};

use crate::metrics::Metrics;
use crate::store::{self, History, Position, Record, Store};
use writer::{Write, Writer};

/// Writes that wait for their turn; more wait in their clients.
const WAITING_WRITES: usize = 1024;

/// What the registry gives out, and how much it keeps for watchers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where ClusterIPs come from.
    pub service_cidrs: ServiceCidrs,
    /// Where node ports come from.
    pub node_ports: RangeInclusive<u16>,
    /// Where Services may take external IPs from.
    pub external_ips: ExternalIpCidrs,
    /// The changes that a watcher may be behind.
    pub queue: QueueLimit,
}

/// The objects, over a store. Cloning makes another handle.
#[derive(Clone)]
pub struct Registry {
    writes: mpsc::Sender<Write>,
    /// Whether the writer is to end.
    closing: Arc<watch::Sender<bool>>,
    feed: Arc<Feed>,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    condition: watch::Receiver<Condition>,
}

/// What the store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All of it.
    Writable,
    /// A commit failed, and nothing can be written yet; objects, changes and history can be read.
    ReadOnly,
    /// Nor can the file be opened again: objects and the last changes are served from memory, older history is not.
    Closed,
}

/// Why a request of the registry was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The object is not valid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no such object.
    #[error("{key} does not exist")]
    NotFound {
        /// Which one.
        key: Key,
    },
    /// The object's namespace does not exist.
    #[error("{key} can't be written: namespace {:?} does not exist; apply a Namespace of that name first", .key.namespace)]
    NamespaceNotFound {
        /// The object.
        key: Key,
    },
    /// The write was meant for another revision of the object.
    #[error("{key} was to be written at {asked}, but {}; read it again and retry", current_text(.current))]
    Conflict {
        /// The object.
        key: Key,
        /// What the write was meant for.
        asked: String,
        /// The object's revision; `None`: it does not exist.
        current: Option<u64>,
    },
    /// The write was meant for another object of the same name.
    #[error("{key} was to be written with uid {asked}, but has {current}: it was made anew; read it again and retry")]
    OtherUid {
        /// The object.
        key: Key,
        /// What the write was meant for.
        asked: String,
        /// The object's uid.
        current: String,
    },
    /// The object must stay.
    #[error("{key} can't be deleted: {reason}")]
    Refused {
        /// The object.
        key: Key,
        /// Why.
        reason: &'static str,
    },
    /// Nothing is left to allocate.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The store failed.
    #[error("{}", crate::chain(.0))]
    Store(Arc<store::Error>),
    /// A stored object can't be read.
    #[error("{key} is stored, but can't be read: {reason}")]
    Unreadable {
        /// The object.
        key: Key,
        /// Why.
        reason: String,
    },
    /// The store holds less than what was acknowledged.
    #[error("the store does not hold what it held: {what}")]
    Diverged {
        /// How it was noticed.
        what: String,
    },
    /// The writer has no thread.
    #[error("cannot start the writer's thread: {reason}")]
    Thread {
        /// Why not.
        reason: String,
    },
    /// The registry takes no more writes.
    #[error("the server is stopping")]
    Stopped,
}

// === impl Registry ===

impl Registry {
    /// Takes up what a store holds, and starts the writer. The thread ends once the last handle is dropped, or
    /// one is closed.
    pub fn open(store: Arc<dyn Store>, options: Options) -> Result<(Self, JoinHandle<()>), Error> {
        let mut state = writer::restore(&*store, &options)?;
        if !state.objects.contains_key(&Key::namespace(DEFAULT_NAMESPACE)) {
            let json = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": DEFAULT_NAMESPACE}});
            let mut changes = Vec::new();
            state.apply(Manifest::parse(json.to_string().as_bytes())?, Timestamp::now(), &mut changes)?;
            store.commit(&changes)?;
        }
        let metrics = Arc::new(Metrics::new());
        metrics.set_ranges(state.range_usage());
        metrics.store_writable.set(1);
        let snapshot = Snapshot { objects: state.objects.clone(), position: store.position()? };
        let feed = Arc::new(Feed::new(snapshot, options.queue));
        let (writes, waiting) = mpsc::channel(WAITING_WRITES);
        let (condition, watched) = watch::channel(Condition::Writable);
        let (closing, closed) = watch::channel(false);
        let writer = Writer {
            store: store.clone(),
            feed: feed.clone(),
            options,
            metrics: metrics.clone(),
            condition,
            state,
            failure: None,
        };
        let no_thread = |error: std::io::Error| Error::Thread { reason: error.to_string() };
        let runtime = Builder::new_current_thread().enable_time().build().map_err(no_thread)?;
        let thread = std::thread::Builder::new().name("writer".to_owned());
        let thread = thread.spawn(move || writer.run(waiting, closed, &runtime)).map_err(no_thread)?;
        let closing = Arc::new(closing);
        Ok((Registry { writes, closing, feed, store, metrics, condition: watched }, thread))
    }

    /// Ends the writer when it has done what waits for it; whoever writes later is told that the server is stopping.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Makes or replaces the object in a manifest. It is on disk when this returns.
    pub async fn apply(&self, manifest: &[u8]) -> Result<Applied, Error> {
        self.apply_manifest(self.read(manifest)?).await
    }

    /// Reads a manifest: for whoever wants to know the object's key before he applies it.
    pub(crate) fn read(&self, manifest: &[u8]) -> Result<Manifest, Error> {
        let read = Manifest::parse(manifest).inspect_err(|_| self.metrics.written(Kind::Unspecified, "invalid"));
        Ok(read?)
    }

    /// The same as [`Registry::apply`] for a manifest that has been read.
    pub(crate) async fn apply_manifest(&self, manifest: Manifest) -> Result<Applied, Error> {
        let manifest = Box::new(manifest);
        let (reply, answer) = oneshot::channel();
        self.writes.send(Write::Apply { manifest, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Removes an object, at a certain revision where that is not 0. Returns the revision of the removal, which is on
    /// disk then. With a Namespace goes what is in it.
    pub async fn delete(&self, key: Key, revision: u64) -> Result<u64, Error> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(Write::Delete { key, revision, reply }).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Result<Arc<Record>, Error> {
        self.feed.snapshot().objects.get(key).cloned().ok_or_else(|| Error::NotFound { key: key.clone() })
    }

    /// The objects of a kind in a namespace, or in all where it is empty, ordered by namespace and name; and where the
    /// store stands with them.
    pub fn list(&self, kind: Kind, namespace: &str) -> (Vec<Arc<Record>>, Position) {
        let snapshot = self.feed.snapshot();
        (snapshot.list(kind, namespace), snapshot.position)
    }

    /// What has been written, and is.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// What the store can do, from now on.
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }

    /// What is counted.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Brings those metrics up to date that are looked at only when somebody asks. `slowest`: the revision up to which
    /// the slowest watch is.
    pub(crate) fn refresh_metrics(&self, slowest: Option<u64>) {
        let snapshot = self.feed.snapshot();
        let count = |kind| (kind, state::list(&snapshot.objects, kind, "").count());
        let objects = Kind::ALL.into_iter().map(count);
        self.metrics.set_state(&snapshot.position, self.store.usage(), objects, slowest);
    }

    /// At most `limit` changes right after a revision, from disk.
    pub async fn history(&self, after: u64, limit: usize) -> Result<History, Error> {
        let store = self.store.clone();
        let read = spawn_blocking(move || store.history(after, limit));
        Ok(read.await.map_err(|_| Error::Stopped)??)
    }
}

impl Error {
    /// What became of a write that was refused, in a word.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Error::Invalid(_) => "invalid",
            Error::NotFound { .. } | Error::NamespaceNotFound { .. } => "not_found",
            Error::Conflict { .. } | Error::OtherUid { .. } => "conflict",
            Error::Refused { .. } => "refused",
            Error::Exhausted(_) => "exhausted",
            Error::Store(_) | Error::Unreadable { .. } | Error::Diverged { .. } => "store_failed",
            Error::Thread { .. } | Error::Stopped => "stopped",
        }
    }
}

impl Snapshot {
    /// The objects of a kind in a namespace, or in all where it is empty, ordered by namespace and name.
    pub fn list(&self, kind: Kind, namespace: &str) -> Vec<Arc<Record>> {
        state::list(&self.objects, kind, namespace).map(|(_, record)| record.clone()).collect()
    }
}

fn current_text(current: &Option<u64>) -> String {
    match current {
        Some(revision) => format!("it is at {revision}"),
        None => "it does not exist".to_owned(),
    }
}

#[cfg(test)]
mod tests;
