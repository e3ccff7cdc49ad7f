//! Where on this machine the mode has its place: the cgroup whose sockets it sees, and the directory of its pins.
//!
//! ```text
//! <bpf root>/v1/maps/<NAME>        the maps; `maps-next` while some of them are replaced by larger ones
//! <bpf root>/v1/links/<program>    what attaches the programs to the cgroup
//! ```
//!
//! A name on a bpf file system has no dot (`bpf_lookup`, kernel/bpf/inode.c).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use tollgate_ebpf_abi::LAYOUT_VERSION;

/// Where the pins are if nothing else is said.
pub const DEFAULT_BPF_ROOT: &str = "/sys/fs/bpf/tollgate";
/// The cgroup namespace that the machine starts with (`PROC_CGROUP_INIT_INO` of include/linux/proc_ns.h).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xeffffffb;

/// What the machine lacks, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup2 file system.
    #[error(
        "the ebpf mode attaches its programs to a cgroup v2, and none is mounted: mount one (`mount -t cgroup2 none DIR`), or name \
         one with --cgroup"
    )]
    NoCgroup,
    /// The root of what is mounted is this process's own.
    #[error(
        "this process has a cgroup namespace of its own, in which the node's cgroup root can't be told: give it with --cgroup (in a \
         container, a mount of the host's /sys/fs/cgroup)"
    )]
    OwnCgroupNamespace,
    /// The cgroup is none.
    #[error("{path} is not a directory of a cgroup v2 file system; --cgroup must name one")]
    NotCgroup {
        /// The path.
        path: PathBuf,
        /// What the kernel says, where it says something.
        #[source]
        source: Option<io::Error>,
    },
    /// The directory of the pins can't be made.
    #[error(
        "cannot make {path} on a bpf file system (mount one with `mount -t bpf bpf /sys/fs/bpf`, or name a directory of one with --bpf-root)"
    )]
    BpfRoot {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// A cgroup that programs are attached to.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
    pub(crate) directory: File,
    /// As links name it.
    pub(crate) id: u64,
}

/// The directories of the pins.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Cgroup {
    /// Opens the cgroup of that path, or the root of the cgroup2 file system that is mounted.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let path = path.map_or_else(mounted_root, |path| Ok(path.to_owned()))?;
        let not = |source| Error::NotCgroup { path: path.clone(), source };
        let found = statfs(&path).map_err(|errno| not(Some(errno.into())))?;
        if found.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(not(None));
        }
        let directory = File::open(&path).map_err(|error| not(Some(error)))?;
        // A cgroup's id is its directory's inode number (kernfs, since Linux 5.5, on 64 bits).
        let id = directory.metadata().map_err(|error| not(Some(error)))?.ino();
        Ok(Self { path, directory, id })
    }
}

/// In a cgroup namespace of one's own, the mount's root is one's own cgroup, not the node's.
fn mounted_root() -> Result<PathBuf, Error> {
    if fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() != INITIAL_CGROUP_NAMESPACE) {
        return Err(Error::OwnCgroupNamespace);
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    cgroup2_mount(&mounts).ok_or(Error::NoCgroup)
}

/// The first cgroup2 mount of a listing like /proc/mounts, where a blank in a path is `\040`.
fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let line = lines.find(|words| words.get(2) == Some(&"cgroup2"))?;
    Some(line.get(1)?.replace("\\040", " ").into())
}

impl Pins {
    /// Those below that directory.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// All that is pinned in this layout.
    pub(crate) fn version(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Maps that are to take the place of the others.
    pub(crate) fn next_maps(&self) -> PathBuf {
        self.version().join("maps-next")
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// Directories of any layout. At the root of a bpf file system, the kernel has files of its own.
    fn versions(&self) -> impl Iterator<Item = PathBuf> {
        let is_version = |name: &str| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok());
        let entries = fs::read_dir(&self.root).into_iter().flatten().filter_map(Result::ok);
        let versions = entries.filter(move |entry| entry.file_name().to_str().is_some_and(is_version));
        versions.map(|entry| entry.path())
    }

    /// Directories of other layouts.
    pub(crate) fn other_versions(&self) -> Vec<PathBuf> {
        self.versions().filter(|path| *path != self.version()).collect()
    }

    /// Makes the directories; mounts a bpf file system where there is none: at /sys/fs/bpf for a root below it, else at the root
    /// itself.
    pub(crate) fn ensure(&self) -> Result<(), Error> {
        let failed = |source| Error::BpfRoot { path: self.root.clone(), source };
        if !is_on_bpffs(&self.root) {
            let standard = Path::new("/sys/fs/bpf");
            let target = if self.root.starts_with(standard) { standard } else { &self.root };
            fs::create_dir_all(target).map_err(failed)?;
            let none: Option<&str> = None;
            mount(Some("bpf"), target, Some("bpf"), MsFlags::empty(), none).map_err(|errno| failed(errno.into()))?;
            tracing::info!(path = %target.display(), "mounted a bpf file system");
        }
        [self.maps(), self.links()].iter().try_for_each(fs::create_dir_all).map_err(failed)
    }

    /// Removes every pin and every directory, the root included. A file system that is mounted at the root itself is taken
    /// away.
    pub(crate) fn remove(&self) -> Result<(), Vec<(PathBuf, io::Error)>> {
        let mut failures = Vec::new();
        if self.root.is_dir() && is_on_bpffs(&self.root) {
            // Links first: without them no program runs.
            for version in self.versions() {
                remove(&version.join("links"), &mut failures);
                remove(&version, &mut failures);
            }
            match fs::remove_dir(&self.root) {
                // Mounted at the root itself, which is for nobody else.
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && failures.is_empty() => {
                    let unmounted = nix::mount::umount(&self.root).map_err(io::Error::from);
                    let removed = unmounted.and_then(|()| fs::remove_dir(&self.root));
                    failures.extend(removed.err().map(|error| (self.root.clone(), error)));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => failures.push((self.root.clone(), error)),
                _ => {}
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }
}

/// Removes a directory and all that is in it; what is not there is no failure.
pub(crate) fn remove(path: &Path, failures: &mut Vec<(PathBuf, io::Error)>) {
    let note = |result: io::Result<()>, path: &Path, failures: &mut Vec<_>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => failures.push((path.to_owned(), error)),
        _ => {}
    };
    if !path.is_dir() {
        note(fs::remove_file(path), path, failures);
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().filter_map(Result::ok) {
        remove(&entry.path(), failures);
    }
    note(fs::remove_dir(path), path, failures);
}

/// Whether a path, or the first of its ancestors that is there, is on a bpf file system.
fn is_on_bpffs(path: &Path) -> bool {
    let there = path.ancestors().find(|path| path.exists());
    there.and_then(|path| statfs(path).ok()).is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_wherever_it_is() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/my\\040unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/my unified".into()));
        assert_eq!(cgroup2_mount("proc /proc proc rw 0 0\n"), None);
    }
}
