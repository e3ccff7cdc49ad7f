//! Files with certificates and keys: whole or not at all, and keys for their owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The mode of a key's file.
pub(super) const SECRET: u32 = 0o600;
/// The mode of a certificate's file.
pub(super) const PUBLIC: u32 = 0o644;

/// A file that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", .path.display())]
pub struct Error {
    /// Which one.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Makes a directory that its owner alone can look into, unless it is there.
pub(super) fn ensure_dir(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error { path: path.to_owned(), source })
}

/// Writes a file that must not be there yet.
pub(super) fn create(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    write(path, content, mode).map_err(|source| Error { path: path.to_owned(), source })
}

/// Writes a file, in place of an earlier one of that name if there is one. Whoever reads it gets one of the two whole.
pub(super) fn replace(path: &Path, content: &str, mode: u32) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let part = PathBuf::from(name);
    let written = write(&part, content, mode).and_then(|()| fs::rename(&part, path));
    written.map_err(|source| {
        // It may not even have been made.
        let _ = fs::remove_file(&part);
        Error { path: path.to_owned(), source }
    })
}

fn write(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    // The mode is there with the file: no one can open it in between.
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}
