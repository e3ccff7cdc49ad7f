//! A store that begins with objects out of a backup, or with none.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use redb::Database;

use super::compaction::{HISTORY_BYTES, TIMES, size};
use super::watermark::Watermark;
use super::{
    CACHE_BYTES, COMPACTED, Embedded, FILE_NAME, FORMAT, FORMAT_VERSION, Failure, HISTORY, IDENTITY, META, OBJECTS,
    REVISION, STORE_ID, path_of,
};
use crate::store::{Error, Position, Record};

impl Embedded {
    /// Makes a store of these objects in a directory that is empty or does not exist. The object that was written last
    /// is the store's newest revision, and where its history begins. The store has its name once it is on disk.
    pub fn create(data_dir: &Path, records: &[Record]) -> Result<Position, Error> {
        let in_dir = |source| Error::DataDir { path: data_dir.to_owned(), source };
        fs::create_dir_all(data_dir).map_err(in_dir)?;
        let entries = fs::read_dir(data_dir).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        let entries: Vec<OsString> = entries.map_err(in_dir)?;
        // A store says most about what this directory is.
        if let Some(found) = entries.iter().find(|name| *name == FILE_NAME).or(entries.first()) {
            return Err(Error::NotEmpty { path: data_dir.to_owned(), found: found.into() });
        }
        if records.is_empty() {
            let what = "it was to begin without any object".to_owned();
            return Err(Error::Damaged { path: data_dir.join(FILE_NAME), what });
        }
        let position = make(data_dir, records)?;
        Watermark::open(data_dir, &position.store_id, position.revision)?;
        Ok(position)
    }
}

/// Makes a store without any object.
pub(super) fn create_empty(data_dir: &Path) -> Result<Position, Error> {
    make(data_dir, &[])
}

/// A file that has the store's name is a whole store: nothing is ever made under that name.
fn make(data_dir: &Path, records: &[Record]) -> Result<Position, Error> {
    let in_dir = |source| Error::DataDir { path: data_dir.to_owned(), source };
    let part = data_dir.join(format!("{FILE_NAME}.part-{}", std::process::id()));
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(in_dir(error)),
        // What a process of the same number left when it was killed.
        _ => {}
    }
    let made = fill(&part, records).map_err(|failure| failure.on("make", &part)).and_then(|position| {
        match fs::hard_link(&part, data_dir.join(FILE_NAME)) {
            // Another process was faster; the store is that one.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(in_dir(error)),
            _ => {}
        }
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(in_dir)?;
        Ok(position)
    });
    // Also after an error, so that the next attempt finds the directory empty; it may not even have been made.
    let _ = fs::remove_file(&part);
    made
}

fn fill(path: &Path, records: &[Record]) -> Result<Position, Failure> {
    let store_id = uuid::Uuid::new_v4().to_string();
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let transaction = database.begin_write()?;
    let newest = records.iter().max_by_key(|record| record.revision);
    let revision = newest.map_or(0, |record| record.revision);
    // The newest change is kept: by it the store tells that none is missing.
    let compacted = revision.saturating_sub(1);
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for record in records {
            objects.insert(path_of(&record.key).as_str(), (record.revision, &*record.json))?;
        }
        let mut history = transaction.open_table(HISTORY)?;
        let mut bytes = 0;
        if let Some(newest) = newest {
            let (path, json) = (path_of(&newest.key), Some(&*newest.json));
            history.insert(revision, (path.as_str(), json))?;
            bytes = size(&path, json);
        }
        transaction.open_table(TIMES)?;
        transaction.open_table(IDENTITY)?.insert(STORE_ID, store_id.as_str())?;
        let mut meta = transaction.open_table(META)?;
        for (name, value) in
            [(FORMAT, FORMAT_VERSION), (REVISION, revision), (COMPACTED, compacted), (HISTORY_BYTES, bytes)]
        {
            meta.insert(name, value)?;
        }
    }
    transaction.commit()?;
    Ok(Position { store_id: store_id.into(), revision, compacted })
}
