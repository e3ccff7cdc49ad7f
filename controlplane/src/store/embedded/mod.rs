//! The store of a single machine: one `redb` file.
//!
//! Tables change together in one transaction, so that object, history and position never disagree. redb syncs the file
//! before a commit returns (`Durability::Immediate`, its default), and after a crash opens the last commit that reached
//! the disk whole.
//!
//! ```text
//!  tollgate.redb           objects, history, times, meta, identity
//!  tollgate.acknowledged   how far writes have been acknowledged: see `watermark`
//! ```
//! Why redb. Measured against fjall 3.1 in one run, on a busy machine of two cores with the file on its disk, each store
//! behind one committing thread that takes what has queued up, objects and history in one commit of 1 kB objects:
//!
//! ```text
//!                                                        redb 4.6          fjall 3.1
//!  durable writes/s, 1 writer                            154 - 204         184 - 281
//!  durable writes/s, 16 writers                        3,500 - 6,200     3,500 - 22,800
//!  10,000 Services and slices of 10 endpoints: on disk   103 MiB            65 MiB
//!    open and read all objects                         30 - 170 ms       150 - 950 ms
//!    verify every page as well                        210 - 600 ms         -
//! ```
//! One writer waits for the disk with either. With many, fjall's log takes about twice as many, beyond anything that
//! Services change at; redb starts sooner, is one file without threads in the background, and its checksums can be
//! verified at a start. The first is worth less here than the others.
//!
//! The file's size. redb writes a page anew for every change and uses the old one again after the next commit; what is
//! free at the file's end is cut off by a commit once it is half of the file, and all of it when the file is closed. So
//! the file stays at what objects and history take, and some tens of percent; [`Retention`] bounds the history.
//!
//! Damage. Every page has a checksum, which redb looks at only in a repair. [`Embedded::open`] has all of them verified;
//! a file that fails is refused and stays as it was, byte for byte: see `held`.

mod compaction;
mod create;
mod held;
mod open;
mod watermark;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Change, Compaction, Error, History, Position, Record, Retention, Store, Usage, parse_path, path_of};
use compaction::{HISTORY_BYTES, Kept};
use open::open_sound;
use watermark::Watermark;

pub use watermark::WATERMARK_NAME;

/// The store's file in the data directory.
pub const FILE_NAME: &str = "tollgate.redb";

/// Path -> (revision of the last write, JSON).
const OBJECTS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("objects");
/// Revision -> (path, JSON; none for a removal).
const HISTORY: TableDefinition<u64, (&str, Option<&[u8]>)> = TableDefinition::new("history");
/// The numbers below.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// The store's id, under [`STORE_ID`].
const IDENTITY: TableDefinition<&str, &str> = TableDefinition::new("identity");
/// Written and removed again to learn whether there is room.
const PROBE: TableDefinition<u64, &[u8]> = TableDefinition::new("probe");

const STORE_ID: &str = "store-id";
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
const FORMAT: &str = "format";
/// Raised when a newer version stores what an older one would misread.
const FORMAT_VERSION: u64 = 1;

/// Reads are served from memory, so the page cache only has to carry the writes.
const CACHE_BYTES: usize = 64 << 20;
/// How many changes are removed at once while nobody writes.
const REMOVED_AT_ONCE: u64 = 1024;
/// Room that there must be before writes are taken again: for a large batch.
const PROBE_BYTES: usize = 256 << 10;

/// A store in a file of its own.
pub struct Embedded {
    data_dir: PathBuf,
    path: PathBuf,
    /// Taken apart only to open the file anew after a failed write. `None`: that failed as well.
    database: RwLock<Option<Database>>,
    store_id: Arc<str>,
    retention: Retention,
    watermark: Watermark,
    /// What the last write left.
    kept: Mutex<Kept>,
}

// === impl Embedded ===

impl Embedded {
    fn read<T>(&self, with: impl FnOnce(&ReadTransaction) -> Result<T, Failure>) -> Result<T, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = match database.as_ref() {
            Some(database) => database.begin_read().map_err(Failure::from).and_then(|transaction| with(&transaction)),
            None => Err(Failure::from(redb::Error::DatabaseClosed)),
        };
        result.map_err(|failure| failure.on("read", &self.path))
    }

    /// Runs a transaction and commits it, unless it says that nothing changed. After an error the file is opened anew.
    fn write<T>(&self, with: impl FnOnce(&WriteTransaction) -> Result<(T, bool), Failure>) -> Result<T, Error> {
        let run = || -> Result<T, Failure> {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else { return Err(Failure::from(redb::Error::DatabaseClosed)) };
            let transaction = database.begin_write()?;
            let (value, has_changed) = with(&transaction)?;
            if has_changed {
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(value)
        };
        run().map_err(|failure| {
            let error = failure.on("write to", &self.path);
            if let Err(error) = self.reopen() {
                tracing::error!(error = %crate::chain(&error), "the store stays closed");
            }
            error
        })
    }

    /// After a failed write redb refuses all further ones until the file is opened anew.
    fn reopen(&self) -> Result<(), Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file is locked against a second opening.
        drop(database.take());
        let acknowledged = Watermark::read(&self.data_dir)?;
        *database = Some(open_sound(&self.path, acknowledged.as_ref(), false)?.0);
        Ok(())
    }

    fn commit_at(&self, changes: &[Change], now: SystemTime) -> Result<u64, Error> {
        let kept = self.write(|transaction| {
            let revision = write_changes(transaction, changes)?;
            compaction::note_time(transaction, revision, now)?;
            let limit = compaction::share_of(changes.len());
            Ok((compaction::remove_excess(transaction, &self.retention, now, limit)?, true))
        })?;
        self.watermark.raise(kept.revision);
        self.set_kept(kept);
        Ok(kept.compacted)
    }

    fn compact_at(&self, now: SystemTime) -> Result<Compaction, Error> {
        let before = self.kept().compacted;
        let kept = self.write(|transaction| {
            let kept = compaction::remove_excess(transaction, &self.retention, now, REMOVED_AT_ONCE)?;
            Ok((kept, kept.compacted > before))
        })?;
        self.set_kept(kept);
        Ok(Compaction { compacted: kept.compacted, has_more: kept.has_excess })
    }

    fn kept(&self) -> Kept {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_kept(&self, kept: Kept) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
}

impl Store for Embedded {
    fn position(&self) -> Result<Position, Error> {
        self.read(|transaction| position_in(transaction, &self.store_id))
    }

    fn load(&self) -> Result<(Position, Vec<Record>), Error> {
        self.read(|transaction| {
            let position = position_in(transaction, &self.store_id)?;
            let mut records = Vec::new();
            for entry in transaction.open_table(OBJECTS)?.iter()? {
                let (path, value) = entry?;
                let (revision, json) = value.value();
                if revision == 0 || revision > position.revision {
                    return Err(Failure::Damaged(format!(
                        "{} is at revision {revision}, the store at {}",
                        path.value(),
                        position.revision
                    )));
                }
                records.push(Record { key: key_at(path.value())?, revision, json: json.into() });
            }
            Ok((position, records))
        })
    }

    fn commit(&self, changes: &[Change]) -> Result<u64, Error> {
        self.commit_at(changes, SystemTime::now())
    }

    fn compact(&self) -> Result<Compaction, Error> {
        self.compact_at(SystemTime::now())
    }

    fn history(&self, after: u64, limit: usize) -> Result<History, Error> {
        self.read(|transaction| {
            let position = position_in(transaction, &self.store_id)?;
            if after < position.compacted {
                return Ok(History::Compacted(position.compacted));
            }
            let table = transaction.open_table(HISTORY)?;
            let mut changes = Vec::new();
            let mut expected = after;
            for entry in table.range(after.saturating_add(1)..)?.take(limit) {
                let (revision, value) = entry?;
                expected += 1;
                if revision.value() != expected {
                    return Err(Failure::Damaged(format!("the change of revision {expected} is missing")));
                }
                let (path, json) = value.value();
                changes.push(change_of(expected, path, json)?);
            }
            Ok(History::Changes(changes))
        })
    }

    fn recover(&self) -> Result<Position, Error> {
        let is_open = self.is_open();
        if !is_open {
            self.reopen()?;
        }
        self.write(|transaction| {
            transaction.open_table(PROBE)?.insert(0, vec![0; PROBE_BYTES].as_slice())?;
            Ok(((), true))
        })?;
        self.write(|transaction| Ok(((), transaction.delete_table(PROBE)?)))?;
        self.position()
    }

    fn is_open(&self) -> bool {
        self.database.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn usage(&self) -> Usage {
        let kept = self.kept();
        Usage {
            // It can't be told while the file is out of reach, which other figures say.
            file_bytes: fs::metadata(&self.path).map_or(0, |metadata| metadata.len()),
            history_changes: kept.revision - kept.compacted,
            history_bytes: kept.bytes,
        }
    }
}

fn position_in(transaction: &ReadTransaction, store_id: &Arc<str>) -> Result<Position, Failure> {
    let meta = transaction.open_table(META)?;
    let number = |name: &str| -> Result<u64, Failure> {
        let value = meta.get(name)?.map(|guard| guard.value());
        value.ok_or_else(|| Failure::Damaged(format!("{name} is missing")))
    };
    let position = Position { store_id: store_id.clone(), revision: number(REVISION)?, compacted: number(COMPACTED)? };
    let newest = transaction.open_table(HISTORY)?.last()?.map_or(0, |(revision, _)| revision.value());
    if newest != position.revision {
        let what = format!("the newest change is of revision {newest}, the store at {}", position.revision);
        return Err(Failure::Damaged(what));
    }
    Ok(position)
}

/// Returns the newest revision.
fn write_changes(transaction: &WriteTransaction, changes: &[Change]) -> Result<u64, Failure> {
    let mut objects = transaction.open_table(OBJECTS)?;
    let mut history = transaction.open_table(HISTORY)?;
    let mut meta = transaction.open_table(META)?;
    let stored = |table: &redb::Table<'_, &str, u64>, name: &str| -> Result<u64, Failure> {
        Ok(table.get(name)?.map_or(0, |guard| guard.value()))
    };
    let mut revision = stored(&meta, REVISION)?;
    let mut bytes = stored(&meta, HISTORY_BYTES)?;
    for change in changes {
        revision += 1;
        if change.revision() != revision {
            return Err(Failure::Damaged(format!(
                "the next revision is {revision}, but {} was to be written at {}",
                change.key(),
                change.revision()
            )));
        }
        let path = path_of(change.key());
        let json = match change {
            Change::Apply(record) => {
                objects.insert(path.as_str(), (revision, &*record.json))?;
                Some(&*record.json)
            }
            Change::Delete { .. } => {
                objects.remove(path.as_str())?;
                None
            }
        };
        history.insert(revision, (path.as_str(), json))?;
        bytes += compaction::size(&path, json);
    }
    meta.insert(REVISION, revision)?;
    meta.insert(HISTORY_BYTES, bytes)?;
    Ok(revision)
}

fn key_at(path: &str) -> Result<tollgate_api::v1::Key, Failure> {
    parse_path(path).ok_or_else(|| Failure::Damaged(format!("{path:?} is no object's path")))
}

fn change_of(revision: u64, path: &str, json: Option<&[u8]>) -> Result<Change, Failure> {
    let key = key_at(path)?;
    Ok(match json {
        Some(json) => Change::Apply(Record { key, revision, json: json.into() }),
        None => Change::Delete { key, revision },
    })
}

/// A failure before it is known in which file.
enum Failure {
    Redb(Box<redb::Error>),
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Redb(Box::new(error.into()))
    }
}

impl Failure {
    fn on(self, action: &'static str, path: &Path) -> Error {
        let damaged = |what| Error::Damaged { path: path.to_owned(), what };
        match self {
            Failure::Damaged(what) => damaged(what),
            Failure::Redb(source) => match *source {
                redb::Error::Corrupted(what) => damaged(what),
                redb::Error::TableDoesNotExist(name) => damaged(format!("it has no table {name:?}")),
                redb::Error::Io(error) if is_full(&error) => Error::Full { path: path.to_owned(), source: error },
                source => Error::Io { action, path: path.to_owned(), source: Box::new(source) },
            },
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests;
