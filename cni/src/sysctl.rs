//! Settings below `/proc/sys/net`, of the network namespace that the plugin is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Sets a setting, if it is another, where the kernel has it. `path` is below `/proc/sys/net`.
pub(crate) fn set(path: &str, value: &str) -> Result<(), Error> {
    match get(path)? {
        Some(found) if found != value => {
            let path = full(path);
            fs::write(&path, value).map_err(|cause| Error::file("write", path, cause))
        }
        _ => Ok(()),
    }
}

/// Sets a setting of a link that was made just now, without looking first.
pub(crate) fn set_new(path: &str, value: &str) -> Result<(), Error> {
    let path = full(path);
    match fs::write(&path, value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("write", path, error)),
        _ => Ok(()),
    }
}

/// The value of a setting; nothing where the kernel does not have it.
pub(crate) fn get(path: &str) -> Result<Option<String>, Error> {
    let path = full(path);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::file("read", path, cause)),
    }
}

fn full(path: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(path)
}
