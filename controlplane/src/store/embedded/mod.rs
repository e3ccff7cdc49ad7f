//! The store of a single machine: one `redb` file.
//!
//! Three tables change together in one transaction, so that object, history and position never disagree. redb syncs
//! the file before a commit returns (`Durability::Immediate`, its default), and after a crash opens the last commit that
//! reached the disk whole.

mod create;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::{Change, Error, History, Position, Record, Store, parse_path, path_of};

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

const STORE_ID: &str = "store-id";
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
const FORMAT: &str = "format";
/// Raised when a newer version stores what an older one would misread.
const FORMAT_VERSION: u64 = 1;

/// Reads are served from memory, so the page cache only has to carry the writes.
const CACHE_BYTES: usize = 64 << 20;
/// Removing old history costs the same once per so many revisions as for each one, but only then delays a commit.
const COMPACT_EVERY: u64 = 1024;

/// A store in a file of its own.
pub struct Embedded {
    path: PathBuf,
    /// Taken apart only to open the file anew after a failed write. `None`: that failed as well.
    database: RwLock<Option<Database>>,
    store_id: Arc<str>,
    /// How many changes the history keeps at least.
    keep: u64,
}

// === impl Embedded ===

impl Embedded {
    /// Opens the store in a data directory; makes both where there are none. `keep` is the number of changes that the
    /// history keeps at least; one it keeps always, to tell by it that none is missing.
    pub fn open(data_dir: &Path, keep: u64) -> Result<Self, Error> {
        let in_dir = |source| Error::DataDir { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(in_dir)?;
        let path = data_dir.join(FILE_NAME);
        let database = open_database(&path)?;
        // The file's name has to survive a power cut as well as what is in it.
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(in_dir)?;
        let store_id = ensure_tables(&database, &path)?;
        Ok(Embedded { path, database: RwLock::new(Some(database)), store_id: store_id.into(), keep: keep.max(1) })
    }

    fn read<T>(&self, with: impl FnOnce(&ReadTransaction) -> Result<T, Failure>) -> Result<T, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let result = match database.as_ref() {
            Some(database) => database.begin_read().map_err(Failure::from).and_then(|transaction| with(&transaction)),
            None => Err(Failure::from(redb::Error::DatabaseClosed)),
        };
        result.map_err(|failure| failure.on("read", &self.path))
    }

    fn write(&self, changes: &[Change]) -> Result<u64, Failure> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else { return Err(Failure::from(redb::Error::DatabaseClosed)) };
        let transaction = database.begin_write()?;
        let compacted = write_changes(&transaction, changes, self.keep)?;
        transaction.commit()?;
        Ok(compacted)
    }

    /// After a failed write redb refuses all further ones until the file is opened anew.
    fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file is locked against a second opening.
        drop(database.take());
        match open_database(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(error = %crate::chain(&error), "the store stays closed"),
        }
    }
}

impl Store for Embedded {
    fn position(&self) -> Result<Position, Error> {
        self.read(|transaction| self.position_in(transaction))
    }

    fn load(&self) -> Result<(Position, Vec<Record>), Error> {
        self.read(|transaction| {
            let position = self.position_in(transaction)?;
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
        self.write(changes).map_err(|failure| {
            let error = failure.on("write to", &self.path);
            self.reopen();
            error
        })
    }

    fn history(&self, after: u64, limit: usize) -> Result<History, Error> {
        self.read(|transaction| {
            let position = self.position_in(transaction)?;
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
}

impl Embedded {
    fn position_in(&self, transaction: &ReadTransaction) -> Result<Position, Failure> {
        let meta = transaction.open_table(META)?;
        let number = |name: &str| -> Result<u64, Failure> {
            let value = meta.get(name)?.map(|guard| guard.value());
            value.ok_or_else(|| Failure::Damaged(format!("{name} is missing")))
        };
        let position =
            Position { store_id: self.store_id.clone(), revision: number(REVISION)?, compacted: number(COMPACTED)? };
        let newest = transaction.open_table(HISTORY)?.last()?.map_or(0, |(revision, _)| revision.value());
        if newest != position.revision {
            return Err(Failure::Damaged(format!(
                "the newest change is of revision {newest}, the store at {}",
                position.revision
            )));
        }
        Ok(position)
    }
}

fn open_database(path: &Path) -> Result<Database, Error> {
    let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
    opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(source)) if source.kind() == io::ErrorKind::InvalidData => {
            Error::Damaged { path: path.to_owned(), what: format!("it is no redb file ({source})") }
        }
        DatabaseError::Storage(redb::StorageError::Corrupted(what)) => Error::Damaged { path: path.to_owned(), what },
        other => Error::Open { path: path.to_owned(), source: Box::new(other.into()) },
    })
}

/// Makes the tables of a new store; checks that an existing one can be read by this version. Returns the store's id.
fn ensure_tables(database: &Database, path: &Path) -> Result<String, Error> {
    let ensure = || -> Result<String, Failure> {
        let transaction = database.begin_write()?;
        let id = {
            transaction.open_table(OBJECTS)?;
            transaction.open_table(HISTORY)?;
            let mut meta = transaction.open_table(META)?;
            let mut identity = transaction.open_table(IDENTITY)?;
            let format = meta.get(FORMAT)?.map(|guard| guard.value());
            let id = identity.get(STORE_ID)?.map(|guard| guard.value().to_owned());
            match (format, id) {
                (Some(FORMAT_VERSION), Some(id)) => id,
                (None, None) => {
                    let id = uuid::Uuid::new_v4().to_string();
                    identity.insert(STORE_ID, id.as_str())?;
                    for (name, value) in [(FORMAT, FORMAT_VERSION), (REVISION, 0), (COMPACTED, 0)] {
                        meta.insert(name, value)?;
                    }
                    id
                }
                (Some(other), _) if other != FORMAT_VERSION => {
                    return Err(Failure::Damaged(format!(
                        "it has format {other}, this version reads format {FORMAT_VERSION}"
                    )));
                }
                _ => return Err(Failure::Damaged(format!("{STORE_ID} or {FORMAT} is missing"))),
            }
        };
        transaction.commit()?;
        Ok(id)
    };
    ensure().map_err(|failure| failure.on("write to", path))
}

fn write_changes(transaction: &WriteTransaction, changes: &[Change], keep: u64) -> Result<u64, Failure> {
    let mut objects = transaction.open_table(OBJECTS)?;
    let mut history = transaction.open_table(HISTORY)?;
    let mut meta = transaction.open_table(META)?;
    let stored = |table: &redb::Table<'_, &str, u64>, name: &str| -> Result<u64, Failure> {
        Ok(table.get(name)?.map_or(0, |guard| guard.value()))
    };
    let mut revision = stored(&meta, REVISION)?;
    let mut compacted = stored(&meta, COMPACTED)?;
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
        match change {
            Change::Apply(record) => {
                objects.insert(path.as_str(), (revision, &*record.json))?;
                history.insert(revision, (path.as_str(), Some(&*record.json)))?;
            }
            Change::Delete { .. } => {
                objects.remove(path.as_str())?;
                history.insert(revision, (path.as_str(), None))?;
            }
        }
    }
    let excess = revision.saturating_sub(compacted).saturating_sub(keep);
    if excess >= COMPACT_EVERY.min(keep) && excess > 0 {
        compacted += excess;
        history.retain_in(..=compacted, |_, _| false)?;
        meta.insert(COMPACTED, compacted)?;
    }
    meta.insert(REVISION, revision)?;
    Ok(compacted)
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
                source => Error::Io { action, path: path.to_owned(), source: Box::new(source) },
            },
        }
    }
}

#[cfg(test)]
mod tests;
