//! A network namespace without a name: it lives as long as somebody holds it.
//!
//! Each has a thread of its own that never leaves it. Whatever must be made inside (sockets, child processes) is made
//! by a closure on that thread; a socket then stays in its namespace, whoever uses it. A thread, and not a guard that
//! moves the caller in and out, because a child process dies with the thread that made it, and because the thread of a
//! node's namespace, or of its pods', is in the node's [cgroup](crate::cgroup), which its sockets then belong to.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4RecvErr, Ipv6RecvErr};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::oneshot;

use crate::cgroup::Cgroup;
use crate::isolate;
use crate::link::Links;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace and the thread that lives in it; clones are the same namespace.
#[derive(Clone, Debug)]
pub struct NetNs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    /// Keeps the namespace while no thread or socket does, and is its address for `nsenter`.
    file: File,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    links: OnceLock<Links>,
}

impl NetNs {
    /// A new namespace with its loopback device up; `name` is for people.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        Self::new_within(name, None)
    }

    /// As [`NetNs::new`]; what is made inside belongs to `cgroup`.
    pub(crate) fn new_within(name: impl Into<String>, cgroup: Option<Arc<Cgroup>>) -> Result<Self> {
        isolate::ensure_isolated()?;
        let name = name.into();
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, opened) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let file = enter_new(cgroup.as_deref());
                let made = file.is_ok();
                // The other end waits for exactly this one message.
                let _ = ready.send(file);
                if made {
                    inbox.into_iter().for_each(|job: Job| job());
                }
                // Before this thread lets go of the cgroup: it can be removed when nobody is in it.
                if let Some(Err(error)) = cgroup.as_ref().map(|cgroup| cgroup.leave()) {
                    eprintln!("{error:#}");
                }
            })
            .context("can't start a thread")?;
        let file = opened.recv().context("a namespace's thread ended before it had one")??;
        let inner = Inner { name, file, jobs: Some(jobs), thread: Some(thread), links: OnceLock::new() };
        let netns = Self(Arc::new(inner));
        netns.links()?.up("lo")?;
        Ok(netns)
    }

    /// The name it was given, for people.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The command that opens a shell in this namespace from outside, while the lab lives.
    pub fn enter_command(&self) -> String {
        isolate::enter_command(self.0.file.as_raw_fd())
    }

    /// A path that stands for the namespace, for programs that are given one, as long as this process lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.raw_fd()).into()
    }

    /// Runs `f` on the namespace's thread and waits for it; a panic in `f` goes on in the caller.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, result) = mpsc::channel();
        self.send(move || {
            // Nobody listens any more if the caller has gone.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(f)));
        });
        result.recv().expect("the thread answers every job").unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// As [`NetNs::run`], for callers that must not block.
    pub(crate) async fn run_async<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, result) = oneshot::channel();
        self.send(move || {
            let _ = reply.send(catch_unwind(AssertUnwindSafe(f)));
        });
        result.await.expect("the thread answers every job").unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Sets a sysctl of this namespace; `key` is its path under `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let (path, value) = (format!("/proc/sys/{key}"), value.to_owned());
        self.run(move || fs::write(&path, &value).with_context(|| format!("can't write `{value}` to {path}")))
    }

    /// Reads a sysctl of this namespace; `key` is its path under `/proc/sys`.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/{key}");
        let text = self.run(move || fs::read_to_string(&path).with_context(|| format!("can't read {path}")))?;
        Ok(text.trim_end().to_owned())
    }

    /// This namespace's links, addresses and routes.
    pub fn links(&self) -> Result<&Links> {
        if let Some(links) = self.0.links.get() {
            return Ok(links);
        }
        let links = self.run(Links::open).with_context(|| format!("can't open rtnetlink in {}", self.name()))?;
        Ok(self.0.links.get_or_init(|| links))
    }

    /// A socket that does not block, made inside, bound to `from` where that is given.
    pub(crate) async fn socket(
        &self,
        to: IpAddr,
        kind: Type,
        protocol: Protocol,
        from: Option<SocketAddr>,
    ) -> std::io::Result<Socket> {
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        self.run_async(move || {
            let socket = Socket::new(domain, kind, Some(protocol))?;
            socket.set_nonblocking(true)?;
            // Otherwise "no route" is kept from a UDP socket, and from a TCP one until its first retransmission.
            if to.is_ipv4() {
                setsockopt(&socket, Ipv4RecvErr, &true)?;
            } else {
                setsockopt(&socket, Ipv6RecvErr, &true)?;
            }
            if let Some(from) = from {
                // A case dials again and again from one port: the last connection may still be in TIME_WAIT.
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(from))?;
            }
            Ok(socket)
        })
        .await
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.0.file.as_raw_fd()
    }

    fn send(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.0.jobs.as_ref().expect("the channel is there until drop");
        jobs.send(Box::new(job)).map_err(|_| anyhow!("gone")).expect("the thread lives until drop");
    }
}

/// Puts the calling thread into a namespace of its own, and into a cgroup.
fn enter_new(cgroup: Option<&Cgroup>) -> Result<File> {
    cgroup.map_or(Ok(()), Cgroup::enter)?;
    unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace (CAP_SYS_ADMIN is needed)")?;
    File::open("/proc/thread-self/ns/net").context("can't open /proc/thread-self/ns/net")
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends when nobody can send to it, and with it the child processes that it made.
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() != thread::current().id() {
            // A panic was handed to whoever ran the job.
            let _ = thread.join();
        }
    }
}
