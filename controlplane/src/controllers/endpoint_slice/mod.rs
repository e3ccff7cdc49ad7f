//! Gives Services with a selector their EndpointSlices, out of Pods: what Kubernetes' EndpointSlice controller does.
//!
//! ```text
//!  Feed ──changes──▶ Index ──Services touched──▶ plan ──slices to apply, to delete──▶ Registry
//!    ▲                                           pure                                     │
//!    └──────────────────────────── the writes are changes as well ────────────────────────┘
//! ```
//! A slice is ours if its label `endpointslice.kubernetes.io/managed-by` says so; all others are left alone. Every write
//! names the revision that it was decided on, so one that somebody else has changed meanwhile is read again first. The
//! registry publishes a write before it answers, so the index is never behind the controller's own writes.

mod endpoint;
mod index;
mod object;
mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tollgate_api::v1::Key;

use crate::registry::{Error, Next, Registry};
use index::{Index, Input, Name};
use plan::{Plan, plan};

/// Of slices: the Service that they are of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Of slices: who writes them.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Us, in that label.
const MANAGER: &str = "endpointslice-controller.tollgate.dev";
/// Of slices: their Service is headless, and of no interest to proxies.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Of Nodes: where they are.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Annotation of slices: when the change was seen that they were written for. Proxies measure their delay by it.
const LAST_CHANGE_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// So many Services are written at once: their writes share commits, and leave the writer's queue to the clients.
const SYNCED_AT_ONCE: usize = 64;
/// After a failure that is no conflict, such as a full disk: doubled with each one that follows.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Services that wait for their turn, and when the first change was seen that they wait for.
type Waiting = BTreeMap<Name, Timestamp>;

struct Controller {
    registry: Registry,
    head: watch::Receiver<u64>,
    index: Index,
    /// The index holds everything up to this revision.
    cursor: u64,
    waiting: Waiting,
    /// Services that could not be written.
    failed: Waiting,
    retry: Duration,
    retry_at: Instant,
}

/// What became of the writes for one Service.
enum Synced {
    Done,
    /// An object has changed meanwhile.
    Conflict,
    Failed,
    /// The registry has.
    Stopped,
}

/// Keeps slices right until the registry stops. May be dropped at any time: whoever runs it next goes on.
pub(crate) async fn run(registry: Registry) {
    let mut controller = Controller::new(registry);
    let mut result = controller.start().await;
    while result.is_ok() {
        result = controller.turn().await;
    }
}

// === impl Controller ===

impl Controller {
    fn new(registry: Registry) -> Self {
        Controller {
            head: registry.feed().subscribe(),
            registry,
            index: Index::default(),
            cursor: 0,
            waiting: Waiting::new(),
            failed: Waiting::new(),
            retry: FIRST_RETRY,
            retry_at: Instant::now(),
        }
    }

    /// Takes up everything, and looks at every Service.
    async fn start(&mut self) -> Result<(), Error> {
        let snapshot = self.registry.feed().snapshot();
        let revision = snapshot.position.revision;
        // Seconds of reading where there is much.
        let read = spawn_blocking(move || Index::new(&snapshot));
        // Also those that only the old index knows: nobody else deletes their slices.
        self.wait_for(self.index.services());
        self.index = read.await.map_err(|_| Error::Stopped)?;
        self.cursor = revision;
        self.wait_for(self.index.services());
        Ok(())
    }

    /// Writes what waits, or waits for changes.
    async fn turn(&mut self) -> Result<(), Error> {
        self.follow().await?;
        if !self.failed.is_empty() && self.retry_at <= Instant::now() {
            let failed = std::mem::take(&mut self.failed);
            self.waiting.extend(failed);
        }
        if !self.waiting.is_empty() {
            return self.sync().await;
        }
        let cursor = self.cursor;
        let changed = self.head.wait_for(|head| *head > cursor);
        if self.failed.is_empty() {
            return changed.await.map(drop).map_err(|_| Error::Stopped);
        }
        match tokio::time::timeout_at(self.retry_at, changed).await {
            Ok(changed) => changed.map(drop).map_err(|_| Error::Stopped),
            Err(_) => Ok(()),
        }
    }

    /// Brings the index to the feed's end.
    async fn follow(&mut self) -> Result<(), Error> {
        loop {
            let changes = match self.registry.feed().after(self.cursor) {
                Next::Changes(changes) => changes,
                Next::Overrun => return self.start().await,
            };
            let Some(last) = changes.last() else { return Ok(()) };
            self.cursor = last.change.revision();
            for queued in changes {
                let touched = self.index.apply(&queued.change);
                self.wait_for(touched);
            }
            tokio::task::yield_now().await;
        }
    }

    fn wait_for(&mut self, services: impl IntoIterator<Item = Name>) {
        let now = Timestamp::now();
        for service in services {
            self.waiting.entry(service).or_insert(now);
        }
    }

    /// Plans and writes for all Services that wait; those that come meanwhile have their turn afterwards, so that none
    /// is overtaken forever.
    async fn sync(&mut self) -> Result<(), Error> {
        let mut round = std::mem::take(&mut self.waiting).into_iter();
        let mut has_failed = false;
        loop {
            let batch: Vec<(Name, Timestamp)> = round.by_ref().take(SYNCED_AT_ONCE).collect();
            if batch.is_empty() {
                break;
            }
            let writes = batch.iter().map(|(service, trigger)| {
                self.failed.remove(service);
                let plan = decide(&self.index, service, *trigger);
                write(&self.registry, &self.index, service, plan)
            });
            let synced = join_all(writes).await;
            for ((service, trigger), synced) in batch.into_iter().zip(synced) {
                match synced {
                    Synced::Done => {}
                    Synced::Conflict => drop(self.waiting.insert(service, trigger)),
                    Synced::Failed => {
                        has_failed = true;
                        self.failed.insert(service, trigger);
                    }
                    Synced::Stopped => return Err(Error::Stopped),
                }
            }
            self.follow().await?;
        }
        if has_failed {
            self.retry_at = Instant::now() + self.retry;
            self.retry = (self.retry * 2).min(LAST_RETRY);
        } else if self.failed.is_empty() {
            self.retry = FIRST_RETRY;
        }
        Ok(())
    }
}

fn decide(index: &Index, service: &Name, trigger: Timestamp) -> Plan {
    let Input { service, pods, slices } = index.input(service);
    plan(service, &pods, &slices, trigger)
}

/// Writes a plan: first what comes, then what goes, so that no endpoint is missing in between.
async fn write(registry: &Registry, index: &Index, service: &Name, plan: Plan) -> Synced {
    let (namespace, name) = service;
    let (applied, deleted) = (plan.apply.len(), plan.delete.len());
    if applied + deleted == 0 {
        return Synced::Done;
    }
    let results = join_all(plan.apply.into_iter().map(|slice| apply(registry, name, slice))).await;
    if let Err(error) = results.into_iter().collect::<Result<(), Error>>() {
        return synced(service, &error);
    }
    let deletes = plan.delete.into_iter().filter_map(|slice| {
        let slice = (namespace.clone(), slice);
        let revision = index.slice_revision(&slice)?;
        Some(registry.delete(Key::endpoint_slice(slice.0, slice.1), revision))
    });
    for result in join_all(deletes).await {
        match result {
            // It is gone, as it was to be.
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => return synced(service, &error),
        }
    }
    tracing::debug!(service = %Key::service(namespace, name), applied, deleted, "endpoint slices written");
    Synced::Done
}

/// Replaces a slice at the revision in its metadata, or makes it where it has no name yet.
async fn apply(registry: &Registry, service: &str, mut slice: EndpointSlice) -> Result<(), Error> {
    if slice.metadata.name.is_none() {
        let unique = uuid::Uuid::new_v4();
        slice.metadata.name = Some(format!("{service}-{}", suffix(unique.as_bytes())));
        // No object has it: if there is one of that name already, it is not written over.
        slice.metadata.uid = Some(unique.to_string());
    }
    let json = serde_json::to_value(&slice).map(|slice: Value| slice.to_string());
    let json = json.map_err(|error| Error::Unreadable {
        key: Key::endpoint_slice(slice.metadata.namespace.unwrap_or_default(), slice.metadata.name.unwrap_or_default()),
        reason: error.to_string(),
    })?;
    registry.apply(json.as_bytes()).await.map(drop)
}

fn synced(service: &Name, error: &Error) -> Synced {
    let service = Key::service(&service.0, &service.1);
    match error {
        Error::Stopped => Synced::Stopped,
        // With a namespace goes its Service, which the next look at the feed shows.
        Error::Conflict { .. } | Error::OtherUid { .. } | Error::NamespaceNotFound { .. } => {
            tracing::debug!(%service, %error, "endpoint slices have changed meanwhile");
            Synced::Conflict
        }
        _ => {
            tracing::warn!(%service, error = %crate::chain(error), "endpoint slices can't be written; will retry");
            Synced::Failed
        }
    }
}

/// Five letters and digits that make no words, as Kubernetes generates them.
fn suffix(random: &[u8]) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    random.iter().take(5).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests;
