//! The network namespaces of this machine: each has its own sockets, and only from inside can these be listed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sched::{CloneFlags, setns};

/// Where container runtimes and `ip netns` keep namespaces that need not have a process.
const NAMED: &str = "/run/netns";
/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h)
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of this thread's network namespace, by which programs know it. Linux 5.14 has it.
pub(super) fn own_cookie() -> io::Result<u64> {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let (mut cookie, mut length) = (0_u64, libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?);
    // SAFETY: both pointers are to variables that outlive the call, of the length that is told.
    let result = unsafe {
        let value = std::ptr::from_mut(&mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Runs `work` in every network namespace that a thread of this machine is in or that has a name, one after the other, on a
/// thread of its own. A namespace that ends meanwhile is left out. What else fails holds up no other.
pub(super) fn in_each<T: Send>(
    work: impl Fn() -> io::Result<T> + Send + Sync,
) -> io::Result<Vec<Result<T, (PathBuf, io::Error)>>> {
    let all = all();
    std::thread::scope(|scope| {
        let run = || {
            let enter = |path: &Path| {
                let file = File::open(path)?;
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(())
            };
            all.into_values()
                .filter_map(|path| match enter(&path) {
                    Err(error) if is_gone(&error) => None,
                    entered => Some(entered.and_then(|()| work()).map_err(|error| (path, error))),
                })
                .collect()
        };
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, run)?;
        thread.join().map_err(|_| io::Error::other("a thread that goes through network namespaces panicked"))
    })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// A path to each, by inode number. Threads and not only processes: a program may have threads in several.
fn all() -> BTreeMap<u64, PathBuf> {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let is_number =
        |entry: &fs::DirEntry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
    let processes = entries(Path::new("/proc")).filter(is_number);
    let threads = processes.flat_map(|process| entries(&process.path().join("task")));
    let of_threads = threads.map(|thread| thread.path().join("ns/net"));
    let named = entries(Path::new(NAMED)).map(|entry| entry.path());
    let mut all = BTreeMap::new();
    for path in named.chain(of_threads) {
        if let Ok(found) = fs::metadata(&path) {
            all.entry(found.ino()).or_insert(path);
        }
    }
    all
}
