//! The one writer: takes writes from all clients in turn, and commits those that have queued up meanwhile together.
//!
//! A commit waits for the disk, some milliseconds; whoever comes during it shares the next one. Each write still has a
//! revision and an outcome of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tollgate_api::v1::{Key, Kind};

use super::feed::Feed;
use super::manifest::Manifest;
use super::service::Allocations;
use super::state::{Applied, State};
use super::{Condition, Error, Options};
use crate::metrics::Metrics;
use crate::store::{self, Change, Compaction, History, Position, Store};

/// At most so many writes share a commit; it bounds how long the first of them waits.
const LARGEST_BATCH: usize = 512;
/// How many changes are read back at once after a failed commit.
const READ_AT_ONCE: usize = 1024;
/// How often old history is looked for while nobody writes, and a store that takes no writes is tried again.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A write that waits for its turn.
pub(crate) enum Write {
    Apply { manifest: Box<Manifest>, reply: oneshot::Sender<Result<Applied, Error>> },
    Delete { key: Key, revision: u64, reply: oneshot::Sender<Result<u64, Error>> },
}

/// The writer's own, on a thread of its own.
pub(crate) struct Writer {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) options: Options,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) condition: watch::Sender<Condition>,
    /// What the last acknowledged write left.
    pub(crate) state: State,
    /// A commit failed; what is on disk must be looked at before anything else is written.
    pub(crate) failure: Option<Failure>,
}

/// Why nothing is written.
pub(crate) struct Failure {
    error: Error,
    /// When to look again; until then writes are refused with the error, so that a full disk is not asked for every one.
    retry_at: Instant,
}

/// An answer that is held back until the batch is on disk.
enum Reply {
    Apply(oneshot::Sender<Result<Applied, Error>>, Kind, Result<Applied, Error>),
    Delete(oneshot::Sender<Result<u64, Error>>, Kind, Result<u64, Error>),
}

// === impl Writer ===

impl Writer {
    /// Serves writes until nobody can send any more, or is to. `runtime` is for waiting alone.
    pub(crate) fn run(
        mut self,
        mut writes: mpsc::Receiver<Write>,
        mut closing: watch::Receiver<bool>,
        runtime: &Runtime,
    ) {
        let mut batch = Vec::new();
        let mut upkeep_at = Instant::now() + UPKEEP_INTERVAL;
        loop {
            let patience = upkeep_at.saturating_duration_since(Instant::now());
            // A write that waits already comes first, also when the upkeep is due.
            match runtime.block_on(async { timeout(patience, next(&mut writes, &mut closing)).await }) {
                Ok(Some(write)) => {
                    batch.push(write);
                    while batch.len() < LARGEST_BATCH {
                        let Ok(write) = writes.try_recv() else { break };
                        batch.push(write);
                    }
                    self.write(batch.drain(..));
                }
                Ok(None) => break,
                Err(_) => {
                    let has_more = self.keep_up();
                    upkeep_at = Instant::now() + if has_more { Duration::ZERO } else { UPKEEP_INTERVAL };
                }
            }
        }
    }

    fn write(&mut self, batch: impl Iterator<Item = Write>) {
        if let Err(error) = self.recover() {
            batch.map(Write::into_reply_to_failure).for_each(|reply| reply.fail(&error, &self.metrics));
            return;
        }
        let mut state = self.state.clone();
        let mut changes = Vec::new();
        let replies: Vec<Reply> = batch.map(|write| admit(&mut state, write, &mut changes)).collect();
        if changes.is_empty() {
            replies.into_iter().for_each(|reply| reply.send(&self.metrics));
            return;
        }
        let before = self.feed.position().compacted;
        let begun = Instant::now();
        match self.store.commit(&changes) {
            Ok(compacted) => {
                self.metrics.commit_duration.observe(begun.elapsed().as_secs_f64());
                self.metrics.commit_writes.observe(f64::from(u32::try_from(replies.len()).unwrap_or(u32::MAX)));
                self.metrics.compacted_changes.inc_by(compacted.saturating_sub(before));
                self.metrics.set_ranges(state.range_usage());
                self.feed.publish(state.objects.clone(), changes, compacted);
                self.state = state;
                replies.into_iter().for_each(|reply| reply.send(&self.metrics));
            }
            Err(error) => {
                let error = self.failed(error, "commit", changes.len());
                // Also the refusals: they may rest on writes that are undone.
                replies.into_iter().for_each(|reply| reply.fail(&error, &self.metrics));
            }
        }
    }

    /// What is due while nobody writes: a failed store is tried again, old history goes. Whether there is more of that.
    fn keep_up(&mut self) -> bool {
        if self.recover().is_err() {
            return false;
        }
        let before = self.feed.position().compacted;
        match self.store.compact() {
            Ok(Compaction { compacted, has_more }) => {
                if compacted > before {
                    self.metrics.compacted_changes.inc_by(compacted - before);
                    self.feed.set_compacted(compacted);
                }
                has_more
            }
            Err(error) => {
                self.failed(error, "compaction", 0);
                false
            }
        }
    }

    fn failed(&mut self, error: store::Error, what: &str, writes: usize) -> Error {
        tracing::error!(error = %crate::chain(&error), writes, "a {what} failed");
        self.metrics.commit_failures.inc();
        let error = Error::Store(Arc::new(error));
        // At once: what failed may have been this one commit.
        self.failure = Some(Failure { error: error.clone(), retry_at: Instant::now() });
        self.set_condition();
        error
    }

    /// After a failed commit: takes up what is on disk and makes sure that writes are taken again.
    fn recover(&mut self) -> Result<(), Error> {
        let Some(failure) = &self.failure else { return Ok(()) };
        if failure.retry_at > Instant::now() {
            return Err(failure.error.clone());
        }
        let recovered = self.store.recover().map_err(Error::from).and_then(|position| self.take_up(&position));
        match &recovered {
            Ok(()) => {
                tracing::info!(revision = self.state.revision, "the store takes writes");
                self.failure = None;
            }
            Err(error) => {
                tracing::warn!(%error, "the store still takes no writes");
                let retry_at = Instant::now() + UPKEEP_INTERVAL;
                self.failure = Some(Failure { error: error.clone(), retry_at });
            }
        }
        self.set_condition();
        recovered
    }

    /// The failed commit may have reached the disk after all: then its changes are changes like any other.
    fn take_up(&mut self, position: &Position) -> Result<(), Error> {
        let mut known = self.feed.position().revision;
        if position.revision < known {
            let what = format!("it is at revision {}, but {known} was acknowledged", position.revision);
            return Err(Error::Diverged { what });
        }
        if position.revision == known {
            return Ok(());
        }
        let state = restore(&*self.store, &self.options)?;
        while known < state.revision {
            let History::Changes(changes) = self.store.history(known, READ_AT_ONCE)? else {
                return Err(Error::Diverged { what: "its history ends too early".to_owned() });
            };
            let Some(last) = changes.last().map(Change::revision) else {
                return Err(Error::Diverged { what: format!("the change after revision {known} is missing") });
            };
            self.feed.publish(state.objects.clone(), changes, position.compacted);
            known = last;
        }
        self.metrics.set_ranges(state.range_usage());
        self.state = state;
        Ok(())
    }

    fn set_condition(&self) {
        let condition = match (&self.failure, self.store.is_open()) {
            (None, _) => Condition::Writable,
            (Some(_), true) => Condition::ReadOnly,
            (Some(_), false) => Condition::Closed,
        };
        self.metrics.store_writable.set((condition == Condition::Writable).into());
        self.condition.send_if_modified(|current| std::mem::replace(current, condition) != condition);
    }
}

/// The next write; `None` once there will be none. What waits at the close is still served.
async fn next(writes: &mut mpsc::Receiver<Write>, closing: &mut watch::Receiver<bool>) -> Option<Write> {
    let closed = async {
        // An error: nobody is left who could write.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    tokio::select! {
        biased;
        () = closed => {
            writes.close();
            writes.recv().await
        }
        write = writes.recv() => write,
    }
}

/// The state that a store holds.
pub(crate) fn restore(store: &dyn Store, options: &Options) -> Result<State, Error> {
    let (position, records) = store.load()?;
    let allocations = Allocations::new(options.service_cidrs.clone(), options.node_ports.clone());
    State::restore(position.revision, records, allocations, options.external_ips.clone())
}

/// Tries a write on the state; a refused one leaves no trace in it.
fn admit(state: &mut State, write: Write, changes: &mut Vec<Change>) -> Reply {
    let mut tried = state.clone();
    let written = changes.len();
    match write {
        Write::Apply { manifest, reply } => {
            let kind = manifest.key.kind();
            let result = tried.apply(*manifest, Timestamp::now(), changes);
            keep(state, tried, changes, written, result.is_ok());
            Reply::Apply(reply, kind, result)
        }
        Write::Delete { key, revision, reply } => {
            let result = tried.delete(&key, revision, changes);
            keep(state, tried, changes, written, result.is_ok());
            Reply::Delete(reply, key.kind(), result)
        }
    }
}

fn keep(state: &mut State, tried: State, changes: &mut Vec<Change>, written: usize, is_ok: bool) {
    if is_ok {
        *state = tried;
    } else {
        changes.truncate(written);
    }
}

impl Write {
    fn into_reply_to_failure(self) -> Reply {
        match self {
            Write::Apply { manifest, reply } => Reply::Apply(reply, manifest.key.kind(), Err(Error::Stopped)),
            Write::Delete { key, reply, .. } => Reply::Delete(reply, key.kind(), Err(Error::Stopped)),
        }
    }
}

impl Reply {
    // A client that has gone away does not want its answer.
    fn send(self, metrics: &Metrics) {
        match self {
            Reply::Apply(reply, kind, result) => {
                metrics.written(kind, result.as_ref().map_or_else(Error::outcome, Applied::outcome_name));
                drop(reply.send(result));
            }
            Reply::Delete(reply, kind, result) => {
                metrics.written(kind, result.as_ref().map_or_else(Error::outcome, |_| "deleted"));
                drop(reply.send(result));
            }
        }
    }

    fn fail(self, error: &Error, metrics: &Metrics) {
        match self {
            Reply::Apply(reply, kind, _) => Reply::Apply(reply, kind, Err(error.clone())),
            Reply::Delete(reply, kind, _) => Reply::Delete(reply, kind, Err(error.clone())),
        }
        .send(metrics);
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(Arc::new(error))
    }
}

#[cfg(test)]
mod tests;
