//! A store file that is not written to until it has been judged sound.
//!
//! redb repairs a file while it opens it. Where the repair falls back to an older commit it would overwrite what is left of
//! the newer one, and a damaged file is to stay as it was found. So the file is opened through this backend: writes are held
//! in memory until [`HeldFile::release`], which puts them into the file; dropped before that, the file has not changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

/// Held writes are kept in blocks of this size; redb's pages are multiples of it.
const BLOCK: usize = 4096;

/// The backend; cloning makes another handle of the same file.
#[derive(Clone, Debug)]
pub(super) struct HeldFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: FileBackend,
    /// `None` once released: then reads and writes go straight to the file.
    held: RwLock<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    /// How long the file would be.
    len: u64,
    /// How much of the file itself still counts: what was cut off comes back as zeros if the file grows again.
    kept: u64,
    /// What the blocks would hold, by their number in the file.
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

// === impl HeldFile ===

impl HeldFile {
    /// Holds back what is written to the file.
    pub(super) fn new(file: File) -> Result<Self, DatabaseError> {
        let len = file.metadata().map_err(|error| DatabaseError::Storage(error.into()))?.len();
        let held = RwLock::new(Some(Held { len, kept: len, blocks: BTreeMap::new() }));
        Ok(HeldFile { shared: Arc::new(Shared { file: FileBackend::new(file)?, held }) })
    }

    /// Puts into the file what was held back, and everything from now on.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut held = self.write_lock();
        let Some(Held { len, kept, blocks }) = held.as_ref() else { return Ok(()) };
        let file = &self.shared.file;
        for wanted in [*kept, *len] {
            if file.len()? != wanted {
                file.set_len(wanted)?;
            }
        }
        // The first block, which says where everything is, comes last: until then the file stands as it stood.
        for (number, block) in blocks.iter().rev() {
            if *number == 0 {
                file.sync_data()?;
            }
            let offset = number * BLOCK as u64;
            let within = usize::try_from(len.saturating_sub(offset)).unwrap_or(BLOCK).min(BLOCK);
            file.write(offset, &block[..within])?;
        }
        file.sync_data()?;
        *held = None;
        Ok(())
    }

    // The state is whole between any two statements that can panic.
    fn read_lock(&self) -> RwLockReadGuard<'_, Option<Held>> {
        self.shared.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Option<Held>> {
        self.shared.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for HeldFile {
    fn len(&self) -> io::Result<u64> {
        match &*self.read_lock() {
            Some(held) => Ok(held.len),
            None => self.shared.file.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.read_lock() {
            Some(held) => held.read(&self.shared.file, offset, out),
            None => self.shared.file.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &mut *self.write_lock() {
            Some(held) => held.set_len(len),
            None => return self.shared.file.set_len(len),
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match &*self.read_lock() {
            Some(_) => Ok(()),
            None => self.shared.file.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Most writes come after the release; the lock is taken for good only where something is held.
        if self.read_lock().is_none() {
            return self.shared.file.write(offset, data);
        }
        match &mut *self.write_lock() {
            Some(held) => held.write(&self.shared.file, offset, data),
            None => self.shared.file.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.shared.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.shared.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.shared.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.shared.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.shared.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.shared.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.shared.file.query_lock_range(start, end)
    }
}

// === impl Held ===

impl Held {
    fn read(&self, file: &FileBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= self.len);
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        // What lies past the file's own end has been added by `set_len`, and is zero.
        let in_file = usize::try_from(self.kept.saturating_sub(offset)).unwrap_or(out.len()).min(out.len());
        file.read(offset, &mut out[..in_file])?;
        out[in_file..].fill(0);
        for (number, block) in self.blocks.range(offset / BLOCK as u64..end.div_ceil(BLOCK as u64)) {
            let start = number * BLOCK as u64;
            let (from, to) = (start.max(offset), (start + BLOCK as u64).min(end));
            out[distance(offset, from)..distance(offset, to)]
                .copy_from_slice(&block[distance(start, from)..distance(start, to)]);
        }
        Ok(())
    }

    fn write(&mut self, file: &FileBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        for number in offset / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            let start = number * BLOCK as u64;
            if !self.blocks.contains_key(&number) {
                let mut block = Box::new([0; BLOCK]);
                let within = distance(start, self.len.max(start)).min(BLOCK);
                self.read(file, start, &mut block[..within])?;
                self.blocks.insert(number, block);
            }
            let (from, to) = (start.max(offset), (start + BLOCK as u64).min(end));
            if let Some(block) = self.blocks.get_mut(&number) {
                block[distance(start, from)..distance(start, to)]
                    .copy_from_slice(&data[distance(offset, from)..distance(offset, to)]);
            }
        }
        self.len = self.len.max(end);
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        self.kept = self.kept.min(len);
        let blocks = len.div_ceil(BLOCK as u64);
        self.blocks.retain(|number, _| *number < blocks);
        if let (Some(block), tail @ 1..) = (self.blocks.get_mut(&(len / BLOCK as u64)), distance(0, len % BLOCK as u64))
        {
            block[tail..].fill(0);
        }
        self.len = len;
    }
}

/// How far `to` lies after `from`, within one read or write.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn nothing_reaches_the_file_before_the_release_and_everything_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let before: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        fs::write(&path, &before).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let held = HeldFile::new(file).unwrap();
        let mut expected = before.clone();
        for (offset, len) in [(0, 16), (4_090, 12), (9_000, 1_000), (4_096, 4_096), (9_999, 300), (20_000, 5)] {
            let data = vec![u8::try_from(offset % 251).unwrap(); len];
            if expected.len() < offset + len {
                held.set_len((offset + len) as u64).unwrap();
                expected.resize(offset + len, 0);
            }
            held.write(offset as u64, &data).unwrap();
            expected[offset..offset + len].copy_from_slice(&data);
        }
        held.set_len(9_500).unwrap();
        held.set_len(15_000).unwrap();
        expected.truncate(9_500);
        expected.resize(15_000, 0);
        let seen = |held: &HeldFile| {
            let mut seen = vec![1; usize::try_from(held.len().unwrap()).unwrap()];
            held.read(0, &mut seen).unwrap();
            seen
        };
        assert!(seen(&held) == expected);
        assert!(fs::read(&path).unwrap() == before);
        assert!(held.read(14_999, &mut [0; 2]).is_err());

        held.release().unwrap();
        assert!(fs::read(&path).unwrap() == expected && seen(&held) == expected);
        held.write(3, b"now").unwrap();
        assert_eq!(&fs::read(&path).unwrap()[3..6], b"now");
    }
}
