//! A store out of a backup.

use std::path::Path;

use serde_json::{Map, Value};
use tollgate_api::v1::Key;

use super::{Backup, Error, read};
use crate::registry::DEFAULT_NAMESPACE;
use crate::store::{Embedded, Position, Record};

/// How far a restored store is ahead of its backup: further than the old store can have gone on after it. So no
/// `resourceVersion` that the old store gave out is ever given out again, and a write that was meant for an object as it
/// stood there is refused.
pub const REVISION_GAP: u64 = 1_000_000_000;

/// What a restore has made.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Where the store stands that the backup is of.
    pub from: (String, u64),
    /// Where the new store stands.
    pub position: Position,
    /// How many objects it has.
    pub objects: usize,
}

/// Makes a store in a data directory that is empty or does not exist. The objects are those of the backup, uids and all,
/// but the store is another one: whoever comes with a resume token of the old one lists anew.
pub fn restore(file: &Path, data_dir: &Path) -> Result<Restored, Error> {
    let Backup { store_id, revision, mut records } = read(file)?;
    let damaged = |what: String| Error::Damaged { path: file.to_owned(), what };
    // Every revision is that of a write. The one that stands for the restore is of the object that every store has.
    let newest =
        revision.checked_add(REVISION_GAP).ok_or_else(|| damaged(format!("no revision follows {revision}")))?;
    let key = Key::namespace(DEFAULT_NAMESPACE);
    let at = records.iter().position(|record| record.key == key);
    let at = at.ok_or_else(|| damaged(format!("{key} is missing")))?;
    let last = at_revision(&records.swap_remove(at), newest)
        .map_err(|error| damaged(format!("{key} can't be read: {error}")))?;
    records.push(last);
    let position = Embedded::create(data_dir, &records)?;
    Ok(Restored { from: (store_id.to_string(), revision), position, objects: records.len() })
}

/// The record as a write at a revision leaves it.
fn at_revision(record: &Record, revision: u64) -> Result<Record, serde_json::Error> {
    let mut object: Map<String, Value> = serde_json::from_slice(&record.json)?;
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    let json = Value::Object(object).to_string().into_bytes().into();
    Ok(Record { key: record.key.clone(), revision, json })
}
