//! A cgroup for each node of a lab: what is attached to it sees that node's sockets, and nobody else's.
//!
//! ```text
//! tollgate-lab-PID-XXXXXX   at the root of the cgroup2 hierarchy; inside it is the root, for there is a cgroup namespace
//! └─ threads                outside hosts, the fabric, and all that serves the lab itself
//!    ├─ node-1-XXXXXX       the threads of node 1 and of its pods, and the processes that they start
//!    └─ node-2-XXXXXX
//! ```
//!
//! A socket belongs to the cgroup of the task that makes it, for good (`cgroup_sk_alloc`, kernel/cgroup/cgroup.c), and an
//! accepted one to that of its listener (`sk_clone_lock`, net/core/sock.c). Since each namespace of a lab has a thread that
//! makes all its sockets and processes, it is enough to move that thread. Threads of one process may be in different
//! cgroups where those are threaded, and below the one that the process is in (cgroup-v2.rst, "Threads").
//!
//! Unlike namespaces, cgroups stay when their last process ends. So the caller, which outlives the lab, removes its folder
//! at the end, and whoever comes next removes those of callers that were killed: folders with the lab's name that have no
//! process in them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::Builder;

use crate::isolate;

/// How the names of labs' folders begin; the caller's pid follows.
const PREFIX: &str = "tollgate-lab-";
/// The folder of a lab's own threads, above those of its nodes.
const THREADS: &str = "threads";

/// The cgroup of all that belongs to no node; fails, with the reason, where this lab has no right to make cgroups.
pub fn of_the_lab() -> Result<&'static Path> {
    isolate::cgroup()
}

/// A lab's folder, held by the caller.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Removes what dead labs have left, and makes a folder whose name no other lab has.
    pub(crate) fn claim() -> Result<Self> {
        let root = hierarchy()?;
        sweep(&root);
        let folder = Builder::new().prefix(&format!("{PREFIX}{}-", process::id())).tempdir_in(&root);
        Ok(Self(folder.with_context(|| format!("can't make a cgroup in {}", root.display()))?.keep()))
    }

    /// Moves this process, which has one thread, into the folder, makes that the root of what it sees, and returns the cgroup
    /// that it is in then, as it sees it.
    pub(crate) fn enter(&self) -> Result<PathBuf> {
        self.join()?;
        let root = hierarchy()?;
        unshare(CloneFlags::CLONE_NEWCGROUP).context("can't make a cgroup namespace")?;
        // Whoever attaches a program to the root of the hierarchy attaches it to the lab's. Not a new mount of cgroup2, which
        // the kernel refuses over one of the same.
        mount(Some(&self.0), &root, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("can't mount {} over {}", self.0.display(), root.display()))?;
        let threads = root.join(THREADS);
        make(&threads)?;
        move_process_to(&threads).with_context(|| format!("can't move to cgroup {}", threads.display()))?;
        Ok(threads)
    }

    /// Until there is a process in it, another lab may take the folder for one that a dead lab has left.
    fn join(&self) -> Result<()> {
        for _ in 0..100 {
            match move_process_to(&self.0) {
                Err(error) if error.kind() == ErrorKind::NotFound => make(&self.0)?,
                moved => return moved.with_context(|| format!("can't move to cgroup {}", self.0.display())),
            }
        }
        bail!("cgroup {} is removed again and again", self.0.display())
    }

    /// Removes the folder and all below it, when every process of the lab has ended.
    pub(crate) fn remove(&self) {
        if let Err(error) = remove_tree(&self.0) {
            eprintln!("the lab leaves cgroup {} behind: {error}", self.0.display());
        }
    }
}

/// The cgroup of a node. Dropped, it is removed; until then, threads must have left it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    parent: &'static Path,
}

impl Cgroup {
    /// A new one in this lab, for threads; its name begins with that of the node.
    pub(crate) fn new(node: &str) -> Result<Arc<Self>> {
        let parent = isolate::cgroup()?;
        let folder = Builder::new().prefix(&format!("{node}-")).tempdir_in(parent);
        let folder = folder.with_context(|| format!("can't make a cgroup in {}", parent.display()));
        // Not to be cleaned up as other folders are: the files in it can't be removed.
        let cgroup = Self { path: folder?.keep(), parent };
        let kind = cgroup.path.join("cgroup.type");
        fs::write(&kind, "threaded").with_context(|| format!("can't write `threaded` to {}", kind.display()))?;
        Ok(Arc::new(cgroup))
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread into it; threads and processes that it starts from now on begin there.
    pub(crate) fn enter(&self) -> Result<()> {
        move_thread_to(&self.path)
    }

    /// Moves the calling thread out of it: a thread that has ended is still in its cgroup for a moment.
    pub(crate) fn leave(&self) -> Result<()> {
        move_thread_to(self.parent)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Where something is in it yet, the caller removes it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Where the cgroup2 hierarchy is mounted: in a hybrid system it is beside the others.
fn hierarchy() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("can't read /proc/self/mounts")?;
    // device, mount point, file system, ...
    let found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
    Ok(found.context("no cgroup2 hierarchy is mounted (mount -t cgroup2 cgroup2 /sys/fs/cgroup)")?[1].into())
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("can't make cgroup {}", folder.display()))
}

fn move_process_to(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), "0")
}

fn move_thread_to(folder: &Path) -> Result<()> {
    fs::write(folder.join("cgroup.threads"), "0")
        .with_context(|| format!("can't move a thread to cgroup {}", folder.display()))
}

/// Removes the folders of labs that have no process any more. It is no failure if one can't be removed: its lab may have come
/// to life, or another lab is just doing the same.
fn sweep(root: &Path) {
    let folders = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let is_lab = |name: &str| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
    };
    for folder in folders.filter(|folder| folder.file_name().to_str().is_some_and(is_lab)) {
        let events = fs::read_to_string(folder.path().join("cgroup.events")).unwrap_or_default();
        if events.lines().any(|line| line == "populated 0") {
            let _ = remove_tree(&folder.path());
        }
    }
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
