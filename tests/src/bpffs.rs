//! A file system of its own for a node's pinned eBPF objects, as a machine has at `/sys/fs/bpf`.
//!
//! It is mounted in the lab's mount namespace alone. When it goes, so does what is pinned in it and held by nothing else:
//! programs are detached, maps freed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::isolate::SCRATCH;

/// A mounted bpffs. Dropped, it is unmounted.
#[derive(Debug)]
pub struct BpfFs {
    mount_point: TempDir,
    /// Not there before somebody makes it, as on a fresh machine.
    tollgate: PathBuf,
}

impl BpfFs {
    /// Mounts a new one; `name` is for people.
    pub(crate) fn mount(name: &str) -> Result<Self> {
        let folder = TempDir::with_prefix_in(format!("bpf-{name}-"), SCRATCH);
        let mount_point = folder.with_context(|| format!("can't make a folder in {SCRATCH}"))?;
        let path = mount_point.path();
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("can't mount a bpffs at {} (does this kernel have eBPF?)", path.display()))?;
        Ok(Self { tollgate: path.join("tollgate"), mount_point })
    }

    /// The folder in it that is for Tollgate, as `/sys/fs/bpf/tollgate` is on a machine.
    pub fn tollgate(&self) -> &Path {
        &self.tollgate
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // Lazily, so that it is gone for everybody even while a process has a file of it open.
        let _ = umount2(self.mount_point.path(), MntFlags::MNT_DETACH);
    }
}
