//! What is kept between calls, on the file system in memory that a reboot clears as it does the containers.
//!
//! ```text
//! /run/tollgate/cni/
//!   lock                                   byte ranges of it are locked: one for each attachment, one for each network
//!   networks/<network>/leases              which address is whose: `ipam::lease`
//!   networks/<network>/attachments/<container>:<interface>.json     `record`
//! /run/tollgate/pod-cidrs.json             written by the daemon: `handoff`
//! ```
//!
//! Files are replaced whole (written beside, then renamed), so that a reader sees the old or the new, whenever the plugin
//! is killed. Nothing is synced to a disk: there is none.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::Error;

pub mod handoff;
pub mod lock;
pub mod record;

/// The plugin's directory.
pub const STATE_DIR: &str = "/run/tollgate/cni";

/// How the name of a half-written file ends.
const BESIDE: &str = ".new";

/// A network's directory.
pub fn network_dir(network: &str) -> PathBuf {
    Path::new(STATE_DIR).join("networks").join(network)
}

/// Names of all networks that something is known about.
pub fn networks() -> Result<Vec<String>, Error> {
    let names = list(&Path::new(STATE_DIR).join("networks"))?;
    Ok(names.into_iter().filter(|name| crate::env::is_identifier(name)).collect())
}

/// Names in a directory, in order; none if it is not there.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome.map_err(|cause| Error::file("list", dir, cause)),
    }
}

/// Replaces a file, and makes its directory if need be. Only one at a time may do that to one file.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let beside = beside(path);
    let write = || -> io::Result<()> {
        let mut file = create(&beside)?;
        file.write_all(content)?;
        fs::rename(&beside, path)
    };
    write().map_err(|cause| Error::file("write", path, cause))
}

/// Where a file is written before it takes the other's place.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(BESIDE);
    beside.into()
}

/// Makes a file, or empties it, and makes its directory if need be.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    match File::create(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            File::create(path)
        }
        outcome => outcome,
    }
}

/// A file's text; nothing if it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::file("read", path, cause)),
    }
}

/// Removes a file; that it is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, error)),
        _ => Ok(()),
    }
}
