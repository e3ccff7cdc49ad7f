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

use std::collections::VecDeque;
use std::sync::Arc;
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
    cursor: u64,
    /// Changes of the watched kinds after the last one sent, up to the cursor.
    pending: VecDeque<Arc<Change>>,
    head: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    progress_interval: Duration,
    last_sent: Instant,
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
    /// The last event has been sent.
    Ended,
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(
        registry: Registry,
        kinds: Vec<Kind>,
        resume: Option<ResumeToken>,
        client: String,
        progress_interval: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let position = registry.feed().position();
        tracing::info!(client, ?kinds, resume = resume.as_ref().map(|token| token.revision), "watch begins");
        Watch {
            head: registry.feed().subscribe(),
            registry,
            kinds,
            client,
            store_id: position.store_id,
            phase: Phase::Start(resume),
            cursor: 0,
            pending: VecDeque::new(),
            stopping,
            progress_interval,
            last_sent: Instant::now(),
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
            if *self.stopping.borrow() && !matches!(self.phase, Phase::Ended) {
                return Some(Err(stopping()));
            }
            if let Some(change) = self.pending.pop_front() {
                return Some(Ok(event_of(&change)));
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
                Phase::Ended => return None,
            };
            match step {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(status) => return Some(Err(status)),
            }
        }
    }

    fn start(&mut self, resume: Option<ResumeToken>) -> Option<Event> {
        let Some(resume) = resume else {
            let snapshot = self.registry.feed().snapshot();
            let records: Vec<_> = self.kinds.iter().flat_map(|kind| snapshot.list(*kind, "")).collect();
            let at = snapshot.position;
            self.cursor = at.revision;
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
        self.cursor = resume.revision;
        self.phase = Phase::CatchingUp { announce: true };
        None
    }

    /// The way to the shared queue: there already, or through a piece of the history on disk.
    async fn catch_up(&mut self, announce: bool) -> Result<Option<Event>, Status> {
        if let Next::Changes(changes) = self.registry.feed().after(self.cursor) {
            if !changes.is_empty() {
                self.take(changes);
                return Ok(None);
            }
            self.phase = Phase::Live;
            return Ok(announce.then(|| Event::Progress(Progress { at: Some(self.token()) })));
        }
        match self.registry.history(self.cursor, READ_AT_ONCE).await? {
            History::Changes(changes) => {
                self.take(changes.into_iter().map(Arc::new).collect());
                Ok(None)
            }
            History::Compacted(compacted) => Ok(Some(self.compacted(self.cursor, compacted))),
        }
    }

    /// The next changes from the shared queue, or the next sign of life.
    async fn live(&mut self) -> Result<Option<Event>, Status> {
        let cursor = self.cursor;
        let progress_due = self.last_sent + self.progress_interval;
        let Next::Changes(changes) = self.registry.feed().after(cursor) else {
            tracing::warn!(client = self.client, cursor, "watch cut: too slow");
            let message =
                format!("too slow: more changes than are queued came after revision {cursor}; resume from there");
            return Err(Status::resource_exhausted(message));
        };
        // Looked at before the changes, because other kinds may change without a pause.
        if progress_due <= Instant::now() {
            return Ok(Some(Event::Progress(Progress { at: Some(self.token()) })));
        }
        if !changes.is_empty() {
            self.take(changes);
            return Ok(None);
        }
        let is_idle = tokio::select! {
            changed = self.head.wait_for(|head| *head > cursor) => changed.map(|_| false).map_err(|_| stopping())?,
            () = until(self.stopping.clone()) => false,
            () = tokio::time::sleep_until(progress_due) => true,
        };
        Ok(is_idle.then(|| Event::Progress(Progress { at: Some(self.token()) })))
    }

    fn take(&mut self, changes: Vec<Arc<Change>>) {
        if let Some(last) = changes.last() {
            self.cursor = last.revision();
        }
        self.pending.extend(changes.into_iter().filter(|change| self.kinds.contains(&change.key().kind())));
    }

    fn compacted(&mut self, revision: u64, compacted: u64) -> Event {
        let message = format!("the token is at revision {revision}, the history begins after {compacted}");
        self.relist(Reason::Compacted, message)
    }

    fn relist(&mut self, reason: Reason, message: String) -> Event {
        tracing::info!(client = self.client, message, "watch must relist");
        self.phase = Phase::Ended;
        Event::Relist(Relist { reason: reason.into(), message })
    }

    fn token(&self) -> ResumeToken {
        ResumeToken { store_id: self.store_id.to_string(), revision: self.cursor }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        tracing::info!(client = self.client, cursor = self.cursor, "watch ends");
    }
}

fn event_of(change: &Change) -> Event {
    match change {
        Change::Apply(record) => Event::Apply(object(record)),
        Change::Delete { key, revision } => Event::Delete(Deleted { key: Some(key.clone()), revision: *revision }),
    }
}
