//! One watch: a cursor that moves through the revisions as its client takes what it is sent.
//!
//! ```text
//!  no token ──▶ Listing (a snapshot at R) ──▶ CatchingUp (history on disk) ──▶ Live (the shared queue)
//!  token ──────────────────────────────────────▲                                │ overrun: cut
//! ```
//! The cursor says up to which revision everything has been sent or is of no interest. The list is a snapshot at one
//! revision and the cursor starts there, so nothing is missed between the two and nothing comes twice. The stream is
//! asked for its next event only when the client's flow-control window has room, so a slow client holds a cursor and
//! nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tollgate_api::v1::relist::Reason;
use tollgate_api::v1::watch_event::Event;
use tollgate_api::v1::{Deleted, Init, InitDone, Kind, Progress, Relist, ResumeToken, WatchEvent};
use tonic::Status;

use super::control_plane::{object, stopping, token};
use super::until;
use crate::registry::{Next, Registry};
use crate::store::{Change, History, Position, Record};

/// How many changes are read from disk at once.
const READ_AT_ONCE: usize = 256;

/// A watch of one client.
pub(super) struct Watch {
    registry: Registry,
    kinds: Vec<Kind>,
    client: String,
    store_id: Arc<str>,
    phase: Phase,
    /// Everything up to this revision has been sent, or is of other kinds.
    cursor: Cursor,
    /// Changes of the watched kinds after the last one sent, up to the cursor.
    pending: VecDeque<Arc<Change>>,
    head: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    progress_interval: Duration,
    last_sent: Instant,
    /// Why it ended, for the metrics; `client` until it is known better.
    end: &'static str,
}

/// Every open watch, by how far it is.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    cursors: Mutex<Cursors>,
}

#[derive(Debug, Default)]
struct Cursors {
    next: u64,
    revisions: BTreeMap<u64, Arc<AtomicU64>>,
}

/// How far one watch is, for everyone to see.
#[derive(Debug)]
pub(super) struct Cursor {
    id: u64,
    revision: Arc<AtomicU64>,
    watchers: Arc<Watchers>,
}

enum Phase {
    /// The first event has not been asked for.
    Start(Option<ResumeToken>),
    /// `Init` is sent, these objects are not.
    Listing { records: std::vec::IntoIter<Arc<Record>>, at: Position },
    /// On the way through the history, which ends in `Live`. `announce`: tell when it does.
    CatchingUp { announce: bool },
    /// At most the queue's length behind.
    Live,
    /// The server is to stop, and where the watch stands has been told.
    Stopping,
    /// The last event has been sent.
    Ended,
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(
        registry: Registry,
        cursor: Cursor,
        kinds: Vec<Kind>,
        resume: Option<ResumeToken>,
        client: String,
        progress_interval: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let position = registry.feed().position();
        tracing::info!(client, ?kinds, resume = resume.as_ref().map(|token| token.revision), "watch begins");
        registry.metrics().watchers.inc();
        Watch {
            head: registry.feed().subscribe(),
            registry,
            kinds,
            client,
            store_id: position.store_id,
            phase: Phase::Start(resume),
            cursor,
            pending: VecDeque::new(),
            stopping,
            progress_interval,
            last_sent: Instant::now(),
            end: "client",
        }
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Result<WatchEvent, Status>> {
        stream::unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            if event.is_err() {
                watch.phase = Phase::Ended;
            }
            watch.last_sent = Instant::now();
            Some((event.map(|event| WatchEvent { event: Some(event) }), watch))
        })
        .boxed()
    }

    /// The next event; `None` after the last one.
    async fn next(&mut self) -> Option<Result<Event, Status>> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Some(Ok(event_of(&change)));
            }
            if *self.stopping.borrow() && !matches!(self.phase, Phase::Ended) {
                self.end = "stopping";
                // So that the client resumes with what it has, whichever kinds were written last.
                let is_followed = matches!(self.phase, Phase::Live | Phase::CatchingUp { .. });
                self.phase = Phase::Stopping;
                return Some(if is_followed { Ok(self.progress()) } else { Err(stopping()) });
            }
            let step = match &mut self.phase {
                Phase::Start(resume) => {
                    let resume = resume.take();
                    Ok(self.start(resume))
                }
                Phase::Listing { records, at } => Ok(Some(match records.next() {
                    Some(record) => Event::Apply(object(&record)),
                    None => {
                        let at = token(at);
                        self.phase = Phase::CatchingUp { announce: false };
                        Event::InitDone(InitDone { at: Some(at) })
                    }
                })),
                Phase::CatchingUp { announce } => {
                    let announce = *announce;
                    self.catch_up(announce).await
                }
                Phase::Live => self.live().await,
                Phase::Stopping => Err(stopping()),
                Phase::Ended => return None,
            };
            match step {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(status) => {
                    if self.end == "client" {
                        self.end = "error";
                    }
                    return Some(Err(status));
                }
            }
        }
    }

    fn start(&mut self, resume: Option<ResumeToken>) -> Option<Event> {
        let Some(resume) = resume else {
            let snapshot = self.registry.feed().snapshot();
            let records: Vec<_> = self.kinds.iter().flat_map(|kind| snapshot.list(*kind, "")).collect();
            let at = snapshot.position;
            self.cursor.set(at.revision);
            let event = Event::Init(Init { at: Some(token(&at)) });
            self.phase = Phase::Listing { records: records.into_iter(), at };
            return Some(event);
        };
        let position = self.registry.feed().position();
        if *resume.store_id != *position.store_id {
            let message = format!("the token is of store {}, this is {}", resume.store_id, position.store_id);
            return Some(self.relist(Reason::OtherStore, message));
        }
        if resume.revision > position.revision {
            let message = format!("the token is at revision {}, the store at {}", resume.revision, position.revision);
            return Some(self.relist(Reason::Future, message));
        }
        if resume.revision < position.compacted {
            return Some(self.compacted(resume.revision, position.compacted));
        }
        self.cursor.set(resume.revision);
        self.phase = Phase::CatchingUp { announce: true };
        None
    }

    /// The way to the shared queue: there already, or through a piece of the history on disk.
    async fn catch_up(&mut self, announce: bool) -> Result<Option<Event>, Status> {
        if let Next::Changes(changes) = self.registry.feed().after(self.cursor.get()) {
            if !changes.is_empty() {
                self.take(changes.into_iter().map(|queued| queued.change));
                return Ok(None);
            }
            self.phase = Phase::Live;
            return Ok(announce.then(|| self.progress()));
        }
        match self.registry.history(self.cursor.get(), READ_AT_ONCE).await? {
            History::Changes(changes) => {
                self.take(changes.into_iter().map(Arc::new));
                Ok(None)
            }
            History::Compacted(compacted) => Ok(Some(self.compacted(self.cursor.get(), compacted))),
        }
    }

    /// The next changes from the shared queue, or the next sign of life.
    async fn live(&mut self) -> Result<Option<Event>, Status> {
        let cursor = self.cursor.get();
        let progress_due = self.last_sent + self.progress_interval;
        let Next::Changes(changes) = self.registry.feed().after(cursor) else {
            tracing::warn!(client = self.client, cursor, "watch cut: too slow");
            self.end = "slow";
            let message =
                format!("too slow: more changes than are queued came after revision {cursor}; resume from there");
            return Err(Status::resource_exhausted(message));
        };
        // Looked at before the changes, because other kinds may change without a pause.
        if progress_due <= Instant::now() {
            return Ok(Some(self.progress()));
        }
        if let Some(oldest) = changes.first() {
            self.registry.metrics().watch_lag.observe(oldest.since.elapsed().as_secs_f64());
            self.take(changes.into_iter().map(|queued| queued.change));
            return Ok(None);
        }
        let is_idle = tokio::select! {
            changed = self.head.wait_for(|head| *head > cursor) => changed.map(|_| false).map_err(|_| stopping())?,
            () = until(self.stopping.clone()) => false,
            () = tokio::time::sleep_until(progress_due) => true,
        };
        Ok(is_idle.then(|| self.progress()))
    }

    fn take(&mut self, changes: impl Iterator<Item = Arc<Change>>) {
        for change in changes {
            self.cursor.set(change.revision());
            if self.kinds.contains(&change.key().kind()) {
                self.pending.push_back(change);
            }
        }
    }

    fn compacted(&mut self, revision: u64, compacted: u64) -> Event {
        let message = format!("the token is at revision {revision}, the history begins after {compacted}");
        self.relist(Reason::Compacted, message)
    }

    fn relist(&mut self, reason: Reason, message: String) -> Event {
        tracing::info!(client = self.client, message, "watch must relist");
        self.phase = Phase::Ended;
        self.end = "relist";
        Event::Relist(Relist { reason: reason.into(), message })
    }

    /// Where the watch stands.
    fn progress(&self) -> Event {
        let at = ResumeToken { store_id: self.store_id.to_string(), revision: self.cursor.get() };
        Event::Progress(Progress { at: Some(at) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        tracing::info!(client = self.client, cursor = self.cursor.get(), reason = self.end, "watch ends");
        let metrics = self.registry.metrics();
        metrics.watchers.dec();
        metrics.watch_ended(self.end);
    }
}

// === impl Watchers ===

impl Watchers {
    /// The cursor of a new watch.
    pub(super) fn add(self: &Arc<Self>, revision: u64) -> Cursor {
        let revision = Arc::new(AtomicU64::new(revision));
        let mut cursors = self.lock();
        let id = cursors.next;
        cursors.next += 1;
        cursors.revisions.insert(id, revision.clone());
        Cursor { id, revision, watchers: self.clone() }
    }

    /// Where the watch stands that is furthest behind.
    pub(super) fn slowest(&self) -> Option<u64> {
        self.lock().revisions.values().map(|revision| revision.load(Ordering::Relaxed)).min()
    }

    fn lock(&self) -> MutexGuard<'_, Cursors> {
        // A map is whole between any two statements that can panic.
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cursor {
    fn get(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    fn set(&self, revision: u64) {
        self.revision.store(revision, Ordering::Relaxed);
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.watchers.lock().revisions.remove(&self.id);
    }
}

fn event_of(change: &Change) -> Event {
    match change {
        Change::Apply(record) => Event::Apply(object(record)),
        Change::Delete { key, revision } => Event::Delete(Deleted { key: Some(key.clone()), revision: *revision }),
    }
}
