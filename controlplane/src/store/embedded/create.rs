//! A store that begins with objects out of a backup.

use std::fs::{self, File};
use std::path::Path;

use redb::Database;

use super::{
    COMPACTED, Embedded, FILE_NAME, Failure, HISTORY, META, OBJECTS, REVISION, ensure_tables, open_database, path_of,
};
use crate::store::{Error, Position, Record};

/// The store's file while it is not whole.
const PART_NAME: &str = "tollgate.redb.part";

impl Embedded {
    /// Makes a store of these objects in a directory that is empty or does not exist. The object that was written last
    /// is the store's newest revision, and where its history begins. The store has its name once it is on disk.
    pub fn create(data_dir: &Path, records: &[Record]) -> Result<Position, Error> {
        let in_dir = |source| Error::DataDir { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(in_dir)?;
        if let Some(entry) = fs::read_dir(data_dir).map_err(in_dir)?.next() {
            let found = entry.map_err(in_dir)?.file_name();
            return Err(Error::NotEmpty { path: data_dir.to_owned(), found: found.into() });
        }
        let part = data_dir.join(PART_NAME);
        let created = fill(&part, records).and_then(|position| {
            fs::rename(&part, data_dir.join(FILE_NAME)).map_err(in_dir)?;
            File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(in_dir)?;
            Ok(position)
        });
        if created.is_err() {
            // So that the next attempt finds the directory empty; it may not even have been made.
            let _ = fs::remove_file(&part);
        }
        created
    }
}

fn fill(path: &Path, records: &[Record]) -> Result<Position, Error> {
    let database = open_database(path)?;
    let store_id = ensure_tables(&database, path)?;
    let revision = write(&database, records).map_err(|failure| failure.on("write to", path))?;
    Ok(Position { store_id: store_id.into(), revision, compacted: history_begins_after(revision) })
}

/// Returns the newest revision.
fn write(database: &Database, records: &[Record]) -> Result<u64, Failure> {
    let Some(newest) = records.iter().max_by_key(|record| record.revision) else {
        return Err(Failure::Damaged("it was to begin without any object".to_owned()));
    };
    let revision = newest.revision;
    let transaction = database.begin_write()?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for record in records {
            objects.insert(path_of(&record.key).as_str(), (record.revision, &*record.json))?;
        }
        let mut history = transaction.open_table(HISTORY)?;
        history.insert(revision, (path_of(&newest.key).as_str(), Some(&*newest.json)))?;
        let mut meta = transaction.open_table(META)?;
        meta.insert(REVISION, revision)?;
        meta.insert(COMPACTED, history_begins_after(revision))?;
    }
    transaction.commit()?;
    Ok(revision)
}

/// The newest change is kept: by it the store tells that none is missing.
fn history_begins_after(newest: u64) -> u64 {
    newest.saturating_sub(1)
}
