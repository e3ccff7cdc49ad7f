//! Where objects and their history are kept, so that they outlive the process.
//!
//! A [`Store`] holds the objects as they stand, each under its `/registry/...` path as in Kubernetes, and the changes
//! that led there, one for every revision: the newest, within [`Retention`]. Its one writer hands it batches of changes;
//! a batch is on disk, whole, before [`Store::commit`] returns. What the objects mean is not known here.

mod embedded;
mod path;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tollgate_api::v1;

pub use embedded::{Embedded, FILE_NAME, WATERMARK_NAME};
pub use path::{parse_path, path_of};

/// An object as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which object.
    pub key: v1::Key,
    /// The revision of its last write.
    pub revision: u64,
    /// Kubernetes JSON; shared, because every watcher sends the same bytes.
    pub json: Arc<[u8]>,
}

/// One write. Every revision has exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object was made or replaced.
    Apply(Record),
    /// The object was removed.
    Delete {
        /// Which object.
        key: v1::Key,
        /// The revision of the removal.
        revision: u64,
    },
}

/// Where a store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Made once, when the store is made.
    pub store_id: Arc<str>,
    /// The newest revision; 0 in a store that was never written to.
    pub revision: u64,
    /// Changes after this revision are kept, those up to it are not.
    pub compacted: u64,
}

/// Changes in a row, out of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum History {
    /// The changes right after the revision that was asked for, without a gap; empty when there are none yet.
    Changes(Vec<Change>),
    /// They are no longer kept; the history begins after this revision.
    Compacted(u64),
}

/// Which changes are kept: a change that is over any of the limits goes. The newest change always stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// At most so many.
    pub changes: u64,
    /// None that is older.
    pub age: Option<Duration>,
    /// No more than paths and JSON of so many bytes.
    pub bytes: Option<u64>,
}

/// What a step of compaction left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Changes up to this revision are gone.
    pub compacted: u64,
    /// Whether there is more to remove.
    pub has_more: bool,
}

/// What a store takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The length of its file.
    pub file_bytes: u64,
    /// The changes in its history.
    pub history_changes: u64,
    /// Paths and JSON of those.
    pub history_bytes: u64,
}

/// A durable store of objects and their history. Its calls block on the disk.
pub trait Store: Send + Sync + 'static {
    /// Where the store stands now.
    fn position(&self) -> Result<Position, Error>;

    /// Every object, in no particular order, and the position at which they stand.
    fn load(&self) -> Result<(Position, Vec<Record>), Error>;

    /// Writes a batch of changes, whole or not at all; on disk when it returns. Their revisions follow the newest one,
    /// in order and without a gap. After an error it is unknown whether the batch was written: read the store again.
    ///
    /// A few changes that are over the limits of the history go with it. Returns the revision up to which the history is
    /// compacted.
    fn commit(&self, changes: &[Change]) -> Result<u64, Error>;

    /// Removes some of the changes that are over the limits of the history; for times without writes.
    fn compact(&self) -> Result<Compaction, Error>;

    /// At most `limit` changes right after revision `after`.
    fn history(&self, after: u64, limit: usize) -> Result<History, Error>;

    /// After a failed commit: makes sure that the store is open and takes writes, by writing something that does not
    /// count. Returns where it stands: the failed commit may be in it.
    fn recover(&self) -> Result<Position, Error>;

    /// Whether the history can be read; it can't be if the store could not be opened again after a failed commit.
    fn is_open(&self) -> bool;

    /// What the store takes now.
    fn usage(&self) -> Usage;
}

/// Why the store can't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory can't be made or reached.
    #[error("cannot use data directory {}", .path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A store was to be made where something is already.
    #[error("{} is not empty: it has {}; choose another --data-dir", .path.display(), .found.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What is in it, or some of that.
        found: PathBuf,
    },
    /// Another process has the store open.
    #[error("{} is in use by another tollgate-controlplane; stop that one or choose another --data-dir", .path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The file system or the quota of the store's file is used up.
    #[error("no space is left for the store {}; nothing is written until there is, what it holds can be read", .path.display())]
    Full {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store's file is gone, but what it has acknowledged is noted beside it.
    #[error("the store {} is missing, and it was at revision {revision}; put it back, restore a backup into another directory, or remove {} to begin anew", .path.display(), .watermark.display())]
    Missing {
        /// The store's file.
        path: PathBuf,
        /// The note.
        watermark: PathBuf,
        /// How far writes were acknowledged.
        revision: u64,
    },
    /// A read or a write failed.
    #[error("cannot {action} the store {}", .path.display())]
    Io {
        /// What was attempted: "open", "read", "write to".
        action: &'static str,
        /// The store's file.
        path: PathBuf,
        /// Why it failed.
        source: Box<redb::Error>,
    },
    /// The store holds something that it can't have written.
    #[error("the store {} is damaged: {what}", .path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

// === impl Retention ===

impl Retention {
    /// The newest so many changes, however old and large.
    pub fn newest(changes: u64) -> Self {
        Retention { changes, age: None, bytes: None }
    }
}

impl Default for Retention {
    /// About an hour of a busy cluster.
    fn default() -> Self {
        Retention { changes: 100_000, age: Some(Duration::from_hours(24)), bytes: Some(256 << 20) }
    }
}

// === impl Change ===

impl Change {
    /// Which object changed.
    pub fn key(&self) -> &v1::Key {
        match self {
            Change::Apply(record) => &record.key,
            Change::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> u64 {
        match self {
            Change::Apply(record) => record.revision,
            Change::Delete { revision, .. } => *revision,
        }
    }

    /// About how many bytes it takes to keep or send it.
    pub fn size(&self) -> usize {
        const ENVELOPE: usize = 128;
        match self {
            Change::Apply(record) => ENVELOPE + record.json.len(),
            Change::Delete { .. } => ENVELOPE,
        }
    }
}
