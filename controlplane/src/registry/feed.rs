//! What has been written, for readers: the objects as they stand, the last changes, and a signal when there are more.
//!
//! All watchers share one queue of the last changes; a watcher is a cursor into it. So a change is kept once, a watcher
//! costs the others and the writer nothing however slow it is, and one that falls behind the queue's end has overrun
//! its bound.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use tokio::sync::watch;

use super::state::Objects;
use crate::store::{Change, Position};

/// How many changes a reader takes at once, so that none holds the lock for long.
const TAKEN_AT_ONCE: usize = 128;

/// Bounds of the queue that the watchers share: whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimit {
    /// Number of changes.
    pub changes: usize,
    /// About how much memory they take.
    pub bytes: usize,
}

/// The published state of the registry.
#[derive(Debug)]
pub struct Feed {
    inner: RwLock<Inner>,
    head: watch::Sender<u64>,
}

/// Everything at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The objects.
    pub objects: Objects,
    /// Where the store stands with them.
    pub position: Position,
}

/// What comes after a revision.
#[derive(Clone, Debug)]
pub enum Next {
    /// The changes right after it; empty: there are none yet.
    Changes(Vec<Queued>),
    /// They are no longer in the queue.
    Overrun,
}

/// A change on its way to the watchers.
#[derive(Clone, Debug)]
pub struct Queued {
    /// What happened; shared by all of them.
    pub change: Arc<Change>,
    /// When it could first be seen.
    pub since: Instant,
}

#[derive(Debug)]
struct Inner {
    snapshot: Snapshot,
    /// The last changes, revisions without a gap, the last one the snapshot's.
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    limit: QueueLimit,
}

// === impl Feed ===

impl Feed {
    pub(crate) fn new(snapshot: Snapshot, limit: QueueLimit) -> Self {
        let head = watch::Sender::new(snapshot.position.revision);
        Feed { inner: RwLock::new(Inner { snapshot, queue: VecDeque::new(), queued_bytes: 0, limit }), head }
    }

    /// Everything as it stands. Takes no time, whatever there is.
    pub fn snapshot(&self) -> Snapshot {
        self.read().snapshot.clone()
    }

    /// Where the store stands.
    pub fn position(&self) -> Position {
        self.read().snapshot.position.clone()
    }

    /// The next changes after a revision.
    pub fn after(&self, revision: u64) -> Next {
        let inner = self.read();
        let head = inner.snapshot.position.revision;
        let missing = head.saturating_sub(revision);
        match usize::try_from(missing) {
            Ok(missing) if missing <= inner.queue.len() => {
                let from = inner.queue.len() - missing;
                Next::Changes(inner.queue.range(from..).take(TAKEN_AT_ONCE).cloned().collect())
            }
            _ => Next::Overrun,
        }
    }

    /// Tells of new revisions.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Makes changes visible that are on disk.
    pub(crate) fn publish(&self, objects: Objects, changes: Vec<Change>, compacted: u64) {
        let Some(revision) = changes.last().map(Change::revision) else { return };
        {
            let mut inner = self.write();
            inner.snapshot.objects = objects;
            inner.snapshot.position.revision = revision;
            inner.snapshot.position.compacted = compacted;
            let batch = changes.len();
            let since = Instant::now();
            for change in changes {
                inner.queued_bytes += change.size();
                inner.queue.push_back(Queued { change: Arc::new(change), since });
            }
            inner.trim(batch);
        }
        self.head.send_replace(revision);
    }

    /// Changes up to this revision are no longer kept on disk.
    pub(crate) fn set_compacted(&self, compacted: u64) {
        self.write().snapshot.position.compacted = compacted;
    }

    // A panic while the lock is held can't leave half a change behind that matters more than serving on.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The newest batch stays, however large: nobody had a chance to take it yet.
    fn trim(&mut self, batch: usize) {
        while self.queue.len() > batch
            && (self.queue.len() > self.limit.changes || self.queued_bytes > self.limit.bytes)
        {
            if let Some(queued) = self.queue.pop_front() {
                self.queued_bytes -= queued.change.size();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tollgate_api::v1::Key;

    use super::*;

    fn feed(limit: QueueLimit) -> Feed {
        let position = Position { store_id: "s".into(), revision: 7, compacted: 0 };
        Feed::new(Snapshot { objects: Objects::new(), position }, limit)
    }

    fn publish(feed: &Feed, revisions: std::ops::RangeInclusive<u64>) {
        let changes = revisions.map(|revision| Change::Delete { key: Key::node("n"), revision }).collect();
        feed.publish(Objects::new(), changes, 0);
    }

    fn after(feed: &Feed, revision: u64) -> Option<Vec<u64>> {
        match feed.after(revision) {
            Next::Changes(changes) => Some(changes.iter().map(|queued| queued.change.revision()).collect()),
            Next::Overrun => None,
        }
    }

    #[test]
    fn a_cursor_gets_what_follows_it_or_has_overrun() {
        let feed = feed(QueueLimit { changes: 3, bytes: usize::MAX });
        assert_eq!(after(&feed, 7), Some(vec![]));
        assert_eq!(after(&feed, 6), None);
        publish(&feed, 8..=9);
        assert_eq!(after(&feed, 7), Some(vec![8, 9]));
        publish(&feed, 10..=12);
        assert_eq!(after(&feed, 12), Some(vec![]));
        assert_eq!(after(&feed, 9), Some(vec![10, 11, 12]));
        assert_eq!(after(&feed, 8), None);
        assert_eq!(feed.position().revision, 12);
    }

    #[test]
    fn the_queue_is_bounded_but_the_newest_batch_stays() {
        for limit in [QueueLimit { changes: 100, bytes: 1 }, QueueLimit { changes: 1, bytes: 1000 }] {
            let feed = feed(limit);
            publish(&feed, 8..=9);
            assert_eq!(after(&feed, 7), Some(vec![8, 9]));
            publish(&feed, 10..=10);
            assert_eq!(after(&feed, 9), Some(vec![10]));
            assert_eq!(after(&feed, 8), None);
        }
    }
}
