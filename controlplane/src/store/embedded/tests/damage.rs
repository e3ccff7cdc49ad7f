//! Files that are not what was written.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tempfile::TempDir;

use super::applied;
use crate::store::{Change, Embedded, Error, FILE_NAME, History, Position, Record, Retention, Store, WATERMARK_NAME};

const PAGE: usize = 4096;
const KEEP: u64 = 80;

/// What a store holds.
type Content = (Position, Vec<Record>, History);

/// A directory with a store, and what the store holds.
struct Stored {
    dir: TempDir,
    file: Vec<u8>,
    content: Content,
}

impl Stored {
    /// `is_closed`: or left as `kill -9` leaves it.
    fn new(is_closed: bool) -> Self {
        // In memory: these tests open some thousand files, and wait for no disk.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = Embedded::open(dir.path(), Retention::newest(KEEP)).unwrap();
        for batch in 0..10_u64 {
            let changes: Vec<Change> = (1..=10).map(|n| large(batch * 10 + n)).collect();
            store.commit(&changes).unwrap();
        }
        store.commit(&[applied(101)]).unwrap();
        let content = content_of(&store);
        let left = fs::read(dir.path().join(FILE_NAME)).unwrap();
        drop(store);
        let file = if is_closed { fs::read(dir.path().join(FILE_NAME)).unwrap() } else { left };
        Stored { dir, file, content }
    }

    fn write(&self, bytes: &[u8]) {
        fs::write(self.dir.path().join(FILE_NAME), bytes).unwrap();
    }

    /// Opens a changed file. It has everything, or is refused by name and stays as it is. Whether it was refused.
    fn check(&self, bytes: &[u8], what: &str) -> bool {
        self.write(bytes);
        let watermark = fs::read(self.dir.path().join(WATERMARK_NAME)).unwrap();
        let opened = catch_unwind(AssertUnwindSafe(|| Embedded::open(self.dir.path(), Retention::newest(KEEP))));
        match opened.unwrap_or_else(|_| panic!("{what}: a panic")) {
            Ok(store) => {
                assert!(content_of(&store) == self.content, "{what}: other content");
                drop(store);
                fs::write(self.dir.path().join(WATERMARK_NAME), watermark).unwrap();
                false
            }
            Err(error) => {
                let text = crate::chain(&error);
                assert!(matches!(error, Error::Damaged { .. }) && text.contains(FILE_NAME), "{what}: {text}");
                assert!(fs::read(self.dir.path().join(FILE_NAME)).unwrap() == bytes, "{what}: the file was changed");
                true
            }
        }
    }
}

fn large(revision: u64) -> Change {
    let Change::Apply(mut record) = applied(revision) else { unreachable!() };
    record.key.name = format!("n{}", revision % 61);
    record.json = format!("{{\"n\":{revision},\"pad\":\"{}\"}}", "x".repeat(700)).into_bytes().into();
    Change::Apply(record)
}

fn content_of(store: &Embedded) -> Content {
    let (position, records) = store.load().unwrap();
    let history = store.history(position.compacted, 10_000).unwrap();
    (position, records, history)
}

#[test]
fn a_changed_byte_anywhere_is_noticed_or_does_not_matter() {
    for is_closed in [true, false] {
        let stored = Stored::new(is_closed);
        assert!(!stored.check(&stored.file, "as it was written"));
        let pages = stored.file.len() / PAGE;
        let mut refused = 0;
        // The header byte by byte, and some of every page.
        let places = (0..320)
            .step_by(if is_closed { 1 } else { 3 })
            .chain((1..pages).flat_map(|page| [1, 9, 2048, 4095].map(|at| page * PAGE + at)));
        for place in places {
            let mut bytes = stored.file.clone();
            bytes[place] ^= 1 << (place % 8);
            refused += usize::from(stored.check(&bytes, &format!("closed: {is_closed}, byte {place}")));
        }
        // Pages that are not in use hold nothing that could be missed; a good part of them is in use.
        assert!(refused > pages, "closed: {is_closed}: {refused} of {pages} pages");
    }
}

#[test]
fn a_file_that_is_cut_off_is_noticed_or_has_lost_nothing() {
    for is_closed in [true, false] {
        let stored = Stored::new(is_closed);
        let pages = stored.file.len() / PAGE;
        let lengths =
            (0..600).step_by(7).chain((1..pages).flat_map(|page| [0, 1, 2000, 4095].map(|at| page * PAGE + at)));
        let mut refused = 0;
        for length in lengths {
            let what = format!("closed: {is_closed}, cut to {length} of {}", stored.file.len());
            refused += usize::from(stored.check(&stored.file[..length], &what));
        }
        assert!(refused > pages, "closed: {is_closed}: {refused}");
    }
}

#[test]
fn an_older_copy_of_the_file_is_refused() {
    let stored = Stored::new(true);
    stored.write(&stored.file);
    let store = Embedded::open(stored.dir.path(), Retention::newest(KEEP)).unwrap();
    store.commit(&[applied(102)]).unwrap();
    drop(store);
    assert!(stored.check(&stored.file, "an older copy"));
    let error = Embedded::open(stored.dir.path(), Retention::newest(KEEP)).err().unwrap().to_string();
    assert!(error.contains("stands at revision 101, but 102 was acknowledged"), "{error}");
    // Another store's file is none of this directory.
    let other = Stored::new(true);
    assert!(stored.check(&other.file, "another store"));
    // Whoever wants to go on with what there is says so.
    stored.write(&stored.file);
    fs::remove_file(stored.dir.path().join(WATERMARK_NAME)).unwrap();
    let store = Embedded::open(stored.dir.path(), Retention::newest(KEEP)).unwrap();
    assert_eq!(store.position().unwrap().revision, 101);
}

#[test]
fn a_missing_or_empty_file_is_not_made_anew() {
    let stored = Stored::new(true);
    let path = stored.dir.path().join(FILE_NAME);
    fs::remove_file(&path).unwrap();
    let error = Embedded::open(stored.dir.path(), Retention::newest(1)).err().unwrap();
    assert!(matches!(error, Error::Missing { revision: 101, .. }) && error.to_string().contains(FILE_NAME), "{error}");
    assert!(!path.exists());
    assert!(stored.check(&[], "empty"));
    fs::remove_file(stored.dir.path().join(WATERMARK_NAME)).unwrap();
    let error = Embedded::open(stored.dir.path(), Retention::newest(1)).err().unwrap();
    assert!(error.to_string().ends_with("is damaged: it is empty"), "{error}");
}

#[test]
fn a_store_that_can_not_be_opened_again_is_opened_once_it_can() {
    let stored = Stored::new(true);
    stored.write(&stored.file);
    let store = Embedded::open(stored.dir.path(), Retention::newest(KEEP)).unwrap();
    let (path, elsewhere) = (stored.dir.path().join(FILE_NAME), stored.dir.path().join("elsewhere"));
    fs::rename(&path, &elsewhere).unwrap();
    // A revision out of turn: the transaction is undone and the file opened anew.
    assert!(store.commit(&[applied(500)]).is_err());
    assert!(!store.is_open() && store.position().is_err());
    assert!(store.recover().unwrap_err().to_string().contains(FILE_NAME));
    assert!(!path.exists());
    // A file that is not this store's newest state is not taken for it.
    fs::write(&path, &stored.file[..PAGE * 3]).unwrap();
    assert!(matches!(store.recover(), Err(Error::Damaged { .. })));
    assert!(!store.is_open());

    fs::rename(&elsewhere, &path).unwrap();
    assert_eq!(store.recover().unwrap().revision, 101);
    assert!(content_of(&store) == stored.content);
    store.commit(&[applied(102)]).unwrap();
}
