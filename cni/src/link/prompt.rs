//! Deleting a pair without waiting for the kernel to free it.
//!
//! The kernel answers a deletion only after a grace period of all processors and more (`netdev_run_todo`), 15 to 35 ms and
//! under load 100, while the link is gone from everybody's sight, closed and unlisted in both namespaces, after a fifth of
//! that. So a child process does the one system call and waits for its end, and this one goes on as soon as the kernel
//! tells everybody that the link is gone. The child has none of this process's files, so that nobody waits for it: neither
//! who reads this one's output, nor who wants its lock.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork, pipe2};

use super::{Socket, message};
use crate::error::Error;

/// `RTNLGRP_LINK`.
const LINK_GROUP: u32 = 1;
/// Where a message of links has the link's number: behind the header of netlink and four bytes.
const IFI_INDEX: u32 = 16 + 4;
const DATAGRAM: usize = 64 << 10;

impl Socket {
    /// Deletes the pair, by the node's end, and returns once it is gone from sight. That it isn't there is no error.
    ///
    /// `other` is a descriptor whose last close the child is left with, too.
    pub fn delete_veth_promptly(&mut self, host: &str, other: BorrowedFd<'_>) -> Result<(), Error> {
        let Some(link) = self.link(host)? else { return Ok(()) };
        match delete(host, link.index, other) {
            Ok(Outcome::Gone) => Ok(()),
            // Either the child has met an error, which this one then tells, or it was quicker than its notice.
            Ok(Outcome::Unknown) => self.delete_veth(host),
            Err(cause) => Err(Error::Kernel { what: format!("delete the link {host}"), cause }),
        }
    }
}

enum Outcome {
    Gone,
    Unknown,
}

fn delete(host: &str, index: u32, other: BorrowedFd<'_>) -> io::Result<Outcome> {
    let mut notices = NetlinkSocket::new(NETLINK_ROUTE)?;
    notices.bind_auto()?;
    // Before it hears anything: a hundred calls at once would all be woken for each other's links.
    only_of(&notices, index)?;
    notices.add_membership(LINK_GROUP)?;
    let mut requests = NetlinkSocket::new(NETLINK_ROUTE)?;
    requests.bind_auto()?;
    requests.connect(&SocketAddr::new(0, 0))?;
    let request = super::socket::bytes(message::delete(host));
    let (child_lives, held_by_child) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the plugin has one thread, and the child makes nothing but system calls.
    match unsafe { fork() }? {
        ForkResult::Child => run_child(&requests, &held_by_child, other, &request),
        ForkResult::Parent { .. } => {
            drop(held_by_child);
            wait(&notices, &child_lives, index)
        }
    }
}

/// Leaves the socket only the notices about one link.
fn only_of(notices: &NetlinkSocket, index: u32) -> io::Result<()> {
    // `ifi_index` of the first message, behind its header; loads are in network byte order, and messages are not.
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, IFI_INDEX),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, index.to_be()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: u16::try_from(steps.len()).unwrap_or_default(), filter: steps.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    // SAFETY: the program and its steps outlive the call, which copies them.
    let outcome = unsafe {
        let value = std::ptr::from_ref(&program).cast();
        libc::setsockopt(notices.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value, length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends the request, waits until that is over, and ends.
fn run_child(requests: &NetlinkSocket, held: &OwnedFd, other: BorrowedFd<'_>, request: &[u8]) -> ! {
    // SAFETY: system calls on descriptors that this process has, and on a buffer that outlives them.
    unsafe {
        let kept = [requests.as_raw_fd(), held.as_raw_fd(), other.as_raw_fd()];
        let highest = kept.into_iter().fold(2, i32::max);
        for (descriptor, free) in kept.into_iter().zip(highest + 1..) {
            libc::dup2(descriptor, free);
        }
        // All others, and the first three among them: whoever reads the output waits for its last writer.
        let first = libc::c_long::from(highest + 1);
        libc::syscall(libc::SYS_close_range, 0 as libc::c_long, first - 1, 0 as libc::c_long);
        libc::syscall(libc::SYS_close_range, first + 3, libc::c_long::from(i32::MAX), 0 as libc::c_long);
        // The kernel does it before this returns.
        libc::send(highest + 1, request.as_ptr().cast(), request.len(), 0);
        libc::_exit(0)
    }
}

/// Until the kernel tells everybody that the link is gone, or the child has ended.
fn wait(notices: &NetlinkSocket, child_lives: &OwnedFd, index: u32) -> io::Result<Outcome> {
    let mut buffer = Vec::with_capacity(DATAGRAM);
    loop {
        let notices_fd = notices.as_fd();
        let mut fds = [PollFd::new(notices_fd, PollFlags::POLLIN), PollFd::new(child_lives.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if !is_ready(&fds[0]) {
            return Ok(Outcome::Unknown);
        }
        buffer.clear();
        match notices.recv(&mut buffer, libc::MSG_DONTWAIT) {
            Ok(_) if is_gone(&buffer, index) => return Ok(Outcome::Gone),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // More happens than the buffer holds (ENOBUFS): the child's end will tell.
            Err(_) => return wait_for_child(child_lives),
        }
    }
}

fn wait_for_child(child_lives: &OwnedFd) -> io::Result<Outcome> {
    let mut fds = [PollFd::new(child_lives.as_fd(), PollFlags::POLLIN)];
    while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    Ok(Outcome::Unknown)
}

/// Whether a notice says so. A bridge tells that it has lost its port with a message of its own family.
fn is_gone(datagram: &[u8], index: u32) -> bool {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let length = usize::try_from(message.length()).unwrap_or(rest.len());
        if let Ok(parsed) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = parsed.payload
            && link.header.index == index
            && link.header.interface_family == netlink_packet_route::AddressFamily::Unspec
        {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}
