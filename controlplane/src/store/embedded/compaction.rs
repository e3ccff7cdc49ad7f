//! How much history is kept, and how the rest goes: a few changes with every commit, so that no write waits long.

use std::time::{Duration, SystemTime};

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::{COMPACTED, Failure, HISTORY, META, REVISION};
use crate::store::Retention;

/// Newest revision of a commit -> when it was made, in seconds since 1970; at most one for a second.
pub(super) const TIMES: TableDefinition<u64, u64> = TableDefinition::new("times");
/// How many bytes paths and JSON of the history take.
pub(super) const HISTORY_BYTES: &str = "history-bytes";

/// How many changes a commit removes beyond twice those that it adds: enough to catch up after the limits were lowered.
const REMOVED_WITH_A_COMMIT: u64 = 32;

/// What is left of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The newest revision.
    pub(super) revision: u64,
    /// Changes up to this revision are gone.
    pub(super) compacted: u64,
    /// What the others take.
    pub(super) bytes: u64,
    /// Whether there is more to remove.
    pub(super) has_excess: bool,
}

/// How many changes to remove together with a commit of so many.
pub(super) fn share_of(changes: usize) -> u64 {
    (changes as u64).saturating_mul(2).saturating_add(REMOVED_WITH_A_COMMIT)
}

/// Notes when the changes up to a revision were made.
pub(super) fn note_time(transaction: &WriteTransaction, revision: u64, now: SystemTime) -> Result<(), Failure> {
    let mut times = transaction.open_table(TIMES)?;
    let now = seconds(now);
    let is_new_second = times.last()?.is_none_or(|(_, last)| last.value() < now);
    if is_new_second {
        times.insert(revision, now)?;
    }
    Ok(())
}

/// Removes at most `limit` changes that are over one of the limits. The newest change stays: by it the store tells that
/// none is missing.
pub(super) fn remove_excess(
    transaction: &WriteTransaction,
    retention: &Retention,
    now: SystemTime,
    limit: u64,
) -> Result<Kept, Failure> {
    let mut meta = transaction.open_table(META)?;
    let number = |meta: &Table<'_, &str, u64>, name: &str| -> Result<u64, Failure> {
        Ok(meta.get(name)?.map_or(0, |guard| guard.value()))
    };
    let revision = number(&meta, REVISION)?;
    let before = number(&meta, COMPACTED)?;
    let mut kept = Kept { revision, compacted: before, bytes: number(&meta, HISTORY_BYTES)?, has_excess: false };
    let too_many = revision.saturating_sub(retention.changes.max(1));
    let gone = too_many.max(too_old(transaction, retention.age, now, limit)?).min(revision.saturating_sub(1));
    let mut history = transaction.open_table(HISTORY)?;
    loop {
        let next = kept.compacted + 1;
        let is_too_large = retention.bytes.is_some_and(|bytes| kept.bytes > bytes) && next < revision;
        if next > gone && !is_too_large {
            break;
        }
        if kept.compacted - before == limit {
            kept.has_excess = true;
            break;
        }
        let removed = history.remove(next)?;
        let removed = removed.ok_or_else(|| Failure::Damaged(format!("the change of revision {next} is missing")))?;
        let (path, json) = removed.value();
        kept.bytes = kept.bytes.saturating_sub(size(path, json));
        kept.compacted = next;
    }
    if kept.compacted > before {
        meta.insert(COMPACTED, kept.compacted)?;
        meta.insert(HISTORY_BYTES, kept.bytes)?;
        transaction.open_table(TIMES)?.retain_in(..=kept.compacted, |_, _| false)?;
    }
    Ok(kept)
}

/// What a change counts for in the history's bytes.
pub(super) fn size(path: &str, json: Option<&[u8]>) -> u64 {
    (path.len() + json.map_or(0, <[u8]>::len)) as u64
}

/// The newest revision that is older than the age, or one that is `limit` changes on; 0 where none is older.
fn too_old(transaction: &WriteTransaction, age: Option<Duration>, now: SystemTime, limit: u64) -> Result<u64, Failure> {
    let Some(oldest) = age.and_then(|age| now.checked_sub(age)).map(seconds) else { return Ok(0) };
    let times = transaction.open_table(TIMES)?;
    let mut newest = 0;
    // Each stands for one change at least, and no more than `limit` are removed.
    for entry in times.iter()?.take(usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1)) {
        let (revision, time) = entry?;
        if time.value() >= oldest {
            break;
        }
        newest = revision.value();
    }
    Ok(newest)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
