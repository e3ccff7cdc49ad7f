//! Opening a store's file: everything is verified before anything is written.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, RwLock};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend};

use super::compaction::{HISTORY_BYTES, Kept, TIMES, size};
use super::held::HeldFile;
use super::watermark::{Acknowledged, Watermark};
use super::{
    CACHE_BYTES, Embedded, FILE_NAME, FORMAT, FORMAT_VERSION, Failure, HISTORY, IDENTITY, META, STORE_ID,
    WATERMARK_NAME, create, position_in,
};
use crate::store::{Error, Position, Retention};

impl Embedded {
    /// Opens the store in a data directory; makes both where there are none. The whole file is verified. A store that is
    /// damaged, or behind what it has acknowledged, is refused and stays as it is.
    pub fn open(data_dir: &Path, retention: Retention) -> Result<Self, Error> {
        let in_dir = |source| Error::DataDir { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(in_dir)?;
        let path = data_dir.join(FILE_NAME);
        let acknowledged = Watermark::read(data_dir)?;
        if !path.try_exists().map_err(in_dir)? {
            if let Some(Acknowledged { revision, .. }) = acknowledged {
                return Err(Error::Missing { path, watermark: data_dir.join(WATERMARK_NAME), revision });
            }
            create::create_empty(data_dir)?;
        }
        // The file's name has to survive a power cut as well as what is in it.
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(in_dir)?;
        let (database, position) = open_sound(&path, acknowledged.as_ref(), true)?;
        let kept = take_up(&database, &position).map_err(|failure| failure.on("write to", &path))?;
        let watermark = Watermark::open(data_dir, &position.store_id, position.revision)?;
        Ok(Embedded {
            data_dir: data_dir.to_owned(),
            path,
            database: RwLock::new(Some(database)),
            store_id: position.store_id,
            retention,
            watermark,
            kept: Mutex::new(kept),
        })
    }
}

/// Opens a file, checks that it is a whole store of this version and not behind what was acknowledged, and only then lets
/// redb write to it. `verify`: also the checksums of all pages, which a file that was not closed in order has anyway.
pub(super) fn open_sound(
    path: &Path,
    acknowledged: Option<&Acknowledged>,
    verify: bool,
) -> Result<(Database, Position), Error> {
    let failed = |error: DatabaseError| Failure::from(error).on("open", path);
    let damaged = |what: String| Error::Damaged { path: path.to_owned(), what };
    let file = File::options().read(true).write(true).open(path).map_err(|error| failed(error.into()))?;
    let held = HeldFile::new(file).map_err(failed)?;
    if held.len().map_err(|error| failed(error.into()))? == 0 {
        // redb would make a new store of it.
        return Err(damaged("it is empty".to_owned()));
    }
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(verify);
    let database = builder.create_with_backend(held.clone()).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(source)) => match source.kind() {
            io::ErrorKind::InvalidData => damaged(format!("it is no redb file ({source})")),
            io::ErrorKind::UnexpectedEof => damaged("it has been cut off".to_owned()),
            _ => failed(DatabaseError::Storage(redb::StorageError::Io(source))),
        },
        DatabaseError::UpgradeRequired(version) => {
            damaged(format!("its pages are of format {version}, which this version has never written"))
        }
        other => failed(other),
    })?;
    let position = identify(&database).map_err(|failure| failure.on("read", path))?;
    if let Some(Acknowledged { store_id, revision }) = acknowledged {
        if **store_id != *position.store_id {
            let what = format!("it is store {}, {WATERMARK_NAME} beside it is of {store_id}", position.store_id);
            return Err(damaged(what));
        }
        if *revision > position.revision {
            let what = format!(
                "it stands at revision {}, but {revision} was acknowledged: its end is lost, or an older copy has taken \
                 its place; restore a backup, or remove {WATERMARK_NAME} to go on without the lost writes",
                position.revision
            );
            return Err(damaged(what));
        }
    }
    held.release().map_err(|error| failed(error.into()))?;
    Ok((database, position))
}

/// Which store it is and where it stands.
fn identify(database: &Database) -> Result<Position, Failure> {
    let transaction = database.begin_read()?;
    let format = transaction.open_table(META)?.get(FORMAT)?.map(|guard| guard.value());
    match format {
        Some(FORMAT_VERSION) => {}
        Some(other) => {
            let what = format!("it has format {other}, this version reads format {FORMAT_VERSION}");
            return Err(Failure::Damaged(what));
        }
        None => return Err(Failure::Damaged(format!("{FORMAT} is missing"))),
    }
    let id = transaction.open_table(IDENTITY)?.get(STORE_ID)?.map(|guard| guard.value().into());
    let id = id.ok_or_else(|| Failure::Damaged(format!("{STORE_ID} is missing")))?;
    position_in(&transaction, &id)
}

/// Adds to a store of an earlier version what it lacks. Returns what is kept of the history.
fn take_up(database: &Database, position: &Position) -> Result<Kept, Failure> {
    let stored = database.begin_read()?.open_table(META)?.get(HISTORY_BYTES)?.map(|guard| guard.value());
    let bytes = match stored {
        Some(bytes) => bytes,
        None => {
            let transaction = database.begin_write()?;
            let mut bytes = 0;
            for entry in transaction.open_table(HISTORY)?.iter()? {
                let (_, value) = entry?;
                let (path, json) = value.value();
                bytes += size(path, json);
            }
            transaction.open_table(TIMES)?;
            transaction.open_table(META)?.insert(HISTORY_BYTES, bytes)?;
            transaction.commit()?;
            bytes
        }
    };
    Ok(Kept { revision: position.revision, compacted: position.compacted, bytes, has_excess: false })
}
