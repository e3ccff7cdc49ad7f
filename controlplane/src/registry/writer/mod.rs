//! The one writer: takes writes from all clients in turn, and commits those that have queued up meanwhile together.
//!
//! A commit waits for the disk, some milliseconds; whoever comes during it shares the next one. Each write still has a
//! revision and an outcome of its own.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tollgate_api::v1::Key;

use super::feed::Feed;
use super::manifest::Manifest;
use super::service::Allocations;
use super::state::{Applied, State};
use super::{Error, Options};
use crate::store::{self, Change, History, Store};

/// At most so many writes share a commit; it bounds how long the first of them waits.
const LARGEST_BATCH: usize = 512;
/// How many changes are read back at once after a failed commit.
const READ_AT_ONCE: usize = 1024;

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
    /// `None`: a commit failed, and what is on disk must be read before anything else is written.
    pub(crate) state: Option<State>,
}

/// An answer that is held back until the batch is on disk.
enum Reply {
    Apply(oneshot::Sender<Result<Applied, Error>>, Result<Applied, Error>),
    Delete(oneshot::Sender<Result<u64, Error>>, Result<u64, Error>),
}

// === impl Writer ===

impl Writer {
    /// Serves writes until nobody can send any more.
    pub(crate) fn run(mut self, mut writes: mpsc::Receiver<Write>) {
        let mut batch = Vec::new();
        while let Some(write) = writes.blocking_recv() {
            batch.push(write);
            while batch.len() < LARGEST_BATCH {
                let Ok(write) = writes.try_recv() else { break };
                batch.push(write);
            }
            self.write(batch.drain(..));
        }
    }

    fn write(&mut self, batch: impl Iterator<Item = Write>) {
        let mut state = match self.current_state() {
            Ok(state) => state,
            Err(error) => {
                batch.map(Write::into_reply_to_failure).for_each(|reply| reply.fail(&error));
                return;
            }
        };
        let mut changes = Vec::new();
        let replies: Vec<Reply> = batch.map(|write| admit(&mut state, write, &mut changes)).collect();
        if changes.is_empty() {
            replies.into_iter().for_each(Reply::send);
            return;
        }
        match self.store.commit(&changes) {
            Ok(compacted) => {
                self.feed.publish(state.objects.clone(), changes, compacted);
                self.state = Some(state);
                replies.into_iter().for_each(Reply::send);
            }
            Err(error) => {
                tracing::error!(error = %crate::chain(&error), writes = changes.len(), "a commit failed");
                self.state = None;
                // Also the refusals: they may rest on writes that are undone.
                let error = Error::Store(Arc::new(error));
                replies.into_iter().for_each(|reply| reply.fail(&error));
            }
        }
    }

    /// The state to write on; read from the store again after a failed commit.
    fn current_state(&mut self) -> Result<State, Error> {
        if let Some(state) = &self.state {
            return Ok(state.clone());
        }
        let state = restore(&*self.store, &self.options)?;
        // The failed commit may have reached the disk after all: then its changes are changes like any other.
        let mut known = self.feed.position().revision;
        if state.revision < known {
            let what = format!("it is at revision {}, but {known} was acknowledged", state.revision);
            return Err(Error::Diverged { what });
        }
        while known < state.revision {
            let History::Changes(changes) = self.store.history(known, READ_AT_ONCE)? else {
                return Err(Error::Diverged { what: "its history ends too early".to_owned() });
            };
            let Some(last) = changes.last().map(Change::revision) else {
                return Err(Error::Diverged { what: format!("the change after revision {known} is missing") });
            };
            let position = self.store.position()?;
            self.feed.publish(state.objects.clone(), changes, position.compacted);
            known = last;
        }
        tracing::info!(revision = state.revision, "the store was read again and takes writes");
        self.state = Some(state.clone());
        Ok(state)
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
            let result = tried.apply(*manifest, Timestamp::now(), changes);
            keep(state, tried, changes, written, result.is_ok());
            Reply::Apply(reply, result)
        }
        Write::Delete { key, revision, reply } => {
            let result = tried.delete(&key, revision, changes);
            keep(state, tried, changes, written, result.is_ok());
            Reply::Delete(reply, result)
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
            Write::Apply { reply, .. } => Reply::Apply(reply, Err(Error::Stopped)),
            Write::Delete { reply, .. } => Reply::Delete(reply, Err(Error::Stopped)),
        }
    }
}

impl Reply {
    // A client that has gone away does not want its answer.
    fn send(self) {
        match self {
            Reply::Apply(reply, result) => drop(reply.send(result)),
            Reply::Delete(reply, result) => drop(reply.send(result)),
        }
    }

    fn fail(self, error: &Error) {
        match self {
            Reply::Apply(reply, _) => drop(reply.send(Err(error.clone()))),
            Reply::Delete(reply, _) => drop(reply.send(Err(error.clone()))),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(Arc::new(error))
    }
}

#[cfg(test)]
mod tests;
