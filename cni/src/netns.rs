//! Network namespaces: the container's, and back.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

use crate::error::Error;

/// A network namespace, kept for as long as this is.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

/// The time in another namespace; it ends when this is dropped.
#[derive(Debug)]
pub struct Stay<'a> {
    home: &'a NetNs,
}

/// The type of the file system that namespaces are files of (`NSFS_MAGIC` of `linux/magic.h`).
const NSFS: FsType = FsType(0x6e73_6673);
const OWN: &str = "/proc/self/ns/net";

impl NetNs {
    /// The namespace that the plugin was called in: the node's.
    pub fn own() -> Result<Self, Error> {
        let file = File::open(OWN).map_err(|cause| Error::file("open", OWN, cause))?;
        Ok(Self { file })
    }

    /// The namespace at a path, which must be another than the node's.
    pub fn open(path: &Path, own: &Self) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Netns { path: path.into(), problem };
        let file = File::open(path).map_err(|error| wrong(format!("can't be opened: {error}")))?;
        let kind = fstatfs(&file).map_err(|errno| wrong(format!("can't be looked at: {errno}")))?.filesystem_type();
        if kind != NSFS {
            return Err(wrong("is a file of another kind; has it been unmounted?".into()));
        }
        let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino()));
        let (theirs, ours) = (identity(&file), identity(&own.file));
        if theirs.is_ok() && theirs.ok() == ours.ok() {
            return Err(wrong("is the node's own: a container with the node's network has no place in another".into()));
        }
        Ok(Self { file })
    }

    /// Goes there: from now on sockets, and files below `/proc/sys/net`, are that namespace's.
    ///
    /// The plugin has one thread, so that this holds for all of it.
    pub fn enter<'a>(&self, path: &Path, home: &'a Self) -> Result<Stay<'a>, Error> {
        self.go().map_err(|errno| Error::Netns { path: path.into(), problem: format!("can't be entered: {errno}") })?;
        Ok(Stay { home })
    }

    fn go(&self) -> Result<(), Errno> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
    }

    /// For messages about it.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        // It worked on the way there. Nothing may go on in the wrong namespace.
        if let Err(errno) = self.home.go() {
            eprintln!("cannot return to the node's network namespace: {errno}");
            std::process::abort();
        }
    }
}
