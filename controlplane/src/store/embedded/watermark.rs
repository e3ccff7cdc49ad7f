//! How far the store has acknowledged writes, noted in a small file beside it.
//!
//! By the store's file alone one can't tell that its newest commit is lost: when that is damaged after a crash, redb goes
//! back to the commit before it, as it must after a power cut in the middle of a commit. Nor that the whole file was
//! replaced by an older copy, or removed. Either would give out revisions and addresses a second time.
//!
//! The note is written after a commit has reached the disk, and is not synced: it can be behind the store, which means
//! nothing, but never ahead of it. It outlives `kill -9`; after a power cut it may miss the last writes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::store::Error;

/// The note's file in the data directory.
pub const WATERMARK_NAME: &str = "tollgate.acknowledged";

/// What the note says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) store_id: String,
    pub(super) revision: u64,
}

/// The note of an open store.
pub(super) struct Watermark {
    path: PathBuf,
    file: File,
    store_id: String,
}

// === impl Watermark ===

impl Watermark {
    /// What the note in a data directory says; `None` where there is none.
    pub(super) fn read(data_dir: &Path) -> Result<Option<Acknowledged>, Error> {
        let path = data_dir.join(WATERMARK_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::DataDir { path, source }),
        };
        let acknowledged = std::str::from_utf8(&text).ok().and_then(parse);
        let what =
            "it does not hold a store's id, a revision and their checksum; if the store beside it is the newest \
                    there is, remove this file"
                .to_owned();
        acknowledged.map(Some).ok_or(Error::Damaged { path, what })
    }

    /// Makes the note, or takes over the one that is there; it is on disk when this returns.
    pub(super) fn open(data_dir: &Path, store_id: &str, revision: u64) -> Result<Self, Error> {
        let path = data_dir.join(WATERMARK_NAME);
        if Self::read(data_dir)?.is_some_and(|found| found.store_id == store_id) {
            // In its place, because the disk may be full.
            let file = File::options().read(true).write(true).open(&path).and_then(|file| {
                file.write_all_at(line(store_id, revision).as_bytes(), 0)?;
                file.sync_all().map(|()| file)
            });
            let file = file.map_err(|source| Error::DataDir { path: path.clone(), source })?;
            return Ok(Watermark { path, file, store_id: store_id.to_owned() });
        }
        let part = data_dir.join(format!("{WATERMARK_NAME}.part"));
        let open = || -> io::Result<File> {
            let file = File::create(&part)?;
            file.write_all_at(line(store_id, revision).as_bytes(), 0)?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(data_dir)?.sync_all()?;
            Ok(file)
        };
        let file = open().map_err(|source| Error::DataDir { path: path.clone(), source })?;
        Ok(Watermark { path, file, store_id: store_id.to_owned() })
    }

    /// Notes that everything up to a revision is acknowledged, which is on disk already.
    pub(super) fn raise(&self, revision: u64) {
        // One write of a few bytes within one block: it is there or it is not.
        if let Err(error) = self.file.write_all_at(line(&self.store_id, revision).as_bytes(), 0) {
            tracing::warn!(path = %self.path.display(), revision, %error, "cannot note what is acknowledged");
        }
    }
}

fn line(store_id: &str, revision: u64) -> String {
    let words = format!("{store_id} {revision:020}");
    let sum = Sha256::digest(words.as_bytes());
    let sum: String = sum.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{words} {sum}\n")
}

fn parse(text: &str) -> Option<Acknowledged> {
    let mut words = text.split_whitespace();
    let (store_id, revision) = (words.next()?, words.next()?.parse().ok()?);
    (text == line(store_id, revision)).then(|| Acknowledged { store_id: store_id.to_owned(), revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_read_as_it_was_written_and_no_byte_of_it_may_change() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Watermark::read(dir.path()).unwrap(), None);
        let watermark = Watermark::open(dir.path(), "5f0c", 7).unwrap();
        watermark.raise(1_234);
        let expected = Acknowledged { store_id: "5f0c".to_owned(), revision: 1_234 };
        assert_eq!(Watermark::read(dir.path()).unwrap(), Some(expected));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let path = dir.path().join(WATERMARK_NAME);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(matches!(Watermark::read(dir.path()), Err(Error::Damaged { .. })), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(Watermark::read(dir.path()), Err(Error::Damaged { .. })), "cut to {at}");
        }
    }
}
