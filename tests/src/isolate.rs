//! Puts this process, and all that it will start, into namespaces of its own.
//!
//! ```text
//! caller          waits, exits as the worker did; when it dies in any way, the kernel kills `init`
//! └─ init         pid 1 of a pid namespace: when it ends, the kernel kills everything inside
//!    └─ worker    returns from `isolate`: network, mount, pid and cgroup namespaces of its own, /proc and /run its own
//! ```
//!
//! So nothing can be left behind: network namespaces, rules, mounts and processes go with the last process inside,
//! whether the worker returns, panics, is interrupted, or the caller is killed. Only of cgroups, empty ones may be left, for
//! the next lab to remove: [`cgroup`](crate::cgroup).

use std::env;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getegid, geteuid, pipe2};

use crate::cgroup::Folder;

/// Where the lab keeps its files: on a file system in memory that only this process tree sees.
pub(crate) const SCRATCH: &str = "/run/tollgate-lab";

/// Where pinned eBPF objects are, by custom.
const BPFFS: &str = "/sys/fs/bpf";

/// What is known inside.
#[derive(Debug)]
struct Inside {
    /// The worker's pid as the caller's pid namespace has it.
    outer_pid: u32,
    /// The caller was not root, so there is a user namespace too.
    user_namespace: bool,
    /// The cgroup that this process is in, below which it may make others; or why it can't.
    cgroup: Result<PathBuf, String>,
}

static INSIDE: OnceLock<Inside> = OnceLock::new();

/// This program's file, as it was before there was a mount namespace of its own: in a chroot, the kernel names a file of
/// the old one from the wrong root.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Call it first in `main`, while there is one thread: returns in a child that is isolated.
///
/// Ends the process with a sentence on stderr and status 1 where a privilege is missing.
pub fn isolate() {
    if let Err(error) = try_isolate() {
        eprintln!("the lab can't isolate itself: {error:#}");
        process::exit(1);
    }
}

/// This program's own file.
pub fn own_program() -> Result<PathBuf> {
    PROGRAM
        .get()
        .map_or_else(|| env::current_exe().context("can't find this program's own path"), |path| Ok(path.clone()))
}

/// The command with which a person enters the namespace behind `netns_fd` from a shell outside.
pub(crate) fn enter_command(netns_fd: i32) -> String {
    let Some(inside) = INSIDE.get() else {
        return "(not isolated)".into();
    };
    let pid = inside.outer_pid;
    let user = if inside.user_namespace { " --user --preserve-credentials" } else { "" };
    format!("nsenter --target {pid}{user} --mount --pid --net=/proc/{pid}/fd/{netns_fd}")
}

/// The cgroup that this process is in, below which it may make others; fails where it may not.
pub(crate) fn cgroup() -> Result<&'static Path> {
    ensure_isolated()?;
    let cgroup = &INSIDE.get().context("not isolated")?.cgroup;
    cgroup.as_deref().map_err(|why| anyhow!("the lab has no cgroups: {why}"))
}

/// Fails with a sentence where [`isolate`] was forgotten: a lab in the caller's own namespaces might leave traces.
pub(crate) fn ensure_isolated() -> Result<()> {
    ensure!(INSIDE.get().is_some(), "call tollgate_lab::isolate() first in main, before any lab is built");
    Ok(())
}

/// As [`isolate`], for a program that has something else to say where a privilege is missing.
pub fn try_isolate() -> Result<()> {
    let threads = fs::read_dir("/proc/self/task").context("can't list this process's threads")?.count();
    ensure!(threads == 1, "it must come first in main, but {threads} threads are running");
    let _ = PROGRAM.set(own_program()?);
    let user_namespace = !geteuid().is_root();
    if user_namespace {
        enter_user_namespace()?;
    }
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET)
        .context("can't make pid and network namespaces (CAP_SYS_ADMIN is needed)")?;
    let folder = Folder::claim();
    let (caller_lives, held_by_caller) = pipe2(OFlag::O_CLOEXEC).context("can't make a pipe")?;
    // SAFETY: there is one thread, checked above, so no lock is held by a thread that the child lacks.
    match unsafe { fork() }.context("can't fork")? {
        ForkResult::Parent { child } => {
            let status = exit_status_of(child);
            drop(held_by_caller);
            folder.iter().for_each(Folder::remove);
            process::exit(status);
        }
        ForkResult::Child => {
            drop(held_by_caller);
            become_init(&caller_lives, user_namespace, folder)
        }
    }
}

/// Maps the caller to root in a new user namespace, which is what gives the capabilities for the others.
fn enter_user_namespace() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "not root, and this system forbids user namespaces (kernel.unprivileged_userns_clone, user.max_user_namespaces, AppArmor)",
    )?;
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))
}

/// Pid 1: forks the worker, adopts and buries orphans, and ends as the worker ends.
fn become_init(caller_lives: &OwnedFd, user_namespace: bool, folder: Result<Folder>) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("can't ask to die with the caller")?;
    // The caller may have died before that request: then nobody holds the pipe's other end.
    let mut fds = [PollFd::new(caller_lives.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO).context("can't poll a pipe")? > 0 {
        process::exit(1);
    }
    // SAFETY: a child of a process with one thread has one thread.
    match unsafe { fork() }.context("can't fork")? {
        ForkResult::Parent { child } => process::exit(exit_status_of(child)),
        ForkResult::Child => become_worker(user_namespace, folder),
    }
}

fn become_worker(user_namespace: bool, folder: Result<Folder>) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("can't ask to die with init")?;
    // This is still the caller's /proc, where `self` is this process's pid as the caller sees it.
    let outer_pid = fs::read_link("/proc/self").context("can't read /proc/self")?;
    let outer_pid = outer_pid.to_string_lossy().parse().context("/proc/self is not a number")?;
    // Not the caller's, which removes the lab's cgroups at the end, where it has made them.
    unshare(CloneFlags::CLONE_NEWNS).context("can't make a mount namespace (CAP_SYS_ADMIN is needed)")?;
    mount_over("/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    mount_over("/proc", Some("proc"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)?;
    // Holds iptables' lock, iproute2's named namespaces and the lab's scratch files: all of it goes with the process.
    mount_over("/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    fs::create_dir(SCRATCH).with_context(|| format!("can't make {SCRATCH}"))?;
    if !user_namespace && Path::new(BPFFS).is_dir() {
        // An empty one: what is pinned on this machine is not the lab's business. In a user namespace nobody can pin anything,
        // nor mount it.
        mount_over(BPFFS, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)?;
    }
    let cgroup = match folder {
        Ok(folder) => Ok(folder.enter()?),
        // Without the right to it, as in a user namespace, a lab can do all but what takes a cgroup.
        Err(error) => Err(format!("{error:#}")),
    };
    if INSIDE.set(Inside { outer_pid, user_namespace, cgroup }).is_err() {
        bail!("isolate() was called twice");
    }
    Ok(())
}

fn mount_over(target: &str, filesystem: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(filesystem, Path::new(target), filesystem, flags, None::<&str>)
        .with_context(|| format!("can't mount {} at {target}", filesystem.unwrap_or("privately")))
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("can't write `{value}` to {path}"))
}

/// Waits for `child`, burying every other child on the way; a signal counts as in a shell.
fn exit_status_of(child: Pid) -> i32 {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return status,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                eprintln!("the lab lost its worker: {error}");
                return 1;
            }
        }
    }
}
