//! Where the object of the eBPF programs lies once it is built, and which sources it was made of.
//!
//! A module of two crates: of `xtask`, which builds the object, and of the build script of `tollgate-proxy`, which embeds it and
//! must not build it, since that takes a toolchain that cargo knows nothing of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The object, from the repository's root.
pub(crate) const OBJECT: &str = "ebpf/programs/target/tollgate.o";

/// What the object was made of: [`fingerprint`], and maybe more words after it.
pub(crate) const RECORD: &str = "ebpf/programs/target/tollgate.sources";

/// All that the object is made of, from the repository's root.
pub(crate) const SOURCES: [&str; 6] = [
    "ebpf/abi/Cargo.toml",
    "ebpf/abi/src",
    "ebpf/programs/.cargo/config.toml",
    "ebpf/programs/Cargo.lock",
    "ebpf/programs/Cargo.toml",
    "ebpf/programs/src",
];

/// Whether the object is there, and was made of the sources as they are now.
///
/// # Errors
/// When a source can't be read.
pub(crate) fn is_current(root: &Path) -> io::Result<bool> {
    if !root.join(OBJECT).is_file() {
        return Ok(false);
    }
    let Ok(record) = fs::read_to_string(root.join(RECORD)) else { return Ok(false) };
    Ok(record.split_whitespace().next() == Some(&fingerprint(root)?))
}

/// What tells these sources from any others.
///
/// # Errors
/// When a source can't be read.
pub(crate) fn fingerprint(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        list(&root.join(source), &mut files)?;
    }
    let mut hash = Sha256::new();
    for file in &files {
        let bytes = fs::read(file)?;
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy();
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The files of a folder, or the file itself, in the order of their names.
fn list(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    entries.iter().try_for_each(|entry| list(entry, files))
}
