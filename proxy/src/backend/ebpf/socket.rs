//! Sockets that the programs have connected to an endpoint: which there are, and their end.
//!
//! A connected UDP socket is translated once. When its endpoint is gone, no hook runs again for it, and its datagrams would go
//! nowhere for ever; so it is destroyed: its owner sees ECONNABORTED at the next call and connects again.
//!
//! What a socket dialled, the programs have written into the socket itself (`SOCKETS`). An iterator tells that of all sockets of
//! the machine, whatever their network namespace; inet_diag then finds those that are to go, by their cookies, and destroys them.
//! (inet_diag tells socket storages too, but of TCP alone: `inet_sk_diag_fill`, net/ipv4/inet_diag.c.)

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Btf;
use aya_obj::btf::BtfKind;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use nix::libc;
use tollgate_ebpf_abi::{Address, AddressPort, SocketValue};
use tollgate_model::name::Protocol;

use super::{bpf, netns};

// include/uapi/linux/sock_diag.h, inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`
const REQUEST: usize = 56;
/// The length of `struct inet_diag_sockid`, its place in a request and in `struct inet_diag_msg`, and that message's length.
const SOCKET_ID: usize = 48;
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;
const ANSWER: usize = 72;
/// Where the cookie stands in a socket's id.
const COOKIE: usize = 40;

/// TCP states (include/net/tcp_states.h); a connected UDP socket is in the first.
const ESTABLISHED: u32 = 1 << 1;
const SYN_SENT: u32 = 1 << 2;
const CLOSE_WAIT: u32 = 1 << 8;

/// A socket, as inet_diag names it.
struct Found {
    family: u8,
    id: [u8; SOCKET_ID],
}

/// Tells what the programs have written into sockets. Loaded once, when it is first needed.
#[derive(Debug)]
pub(super) struct Iterator {
    program: OwnedFd,
}

impl Iterator {
    /// Loads it. Linux 5.12 with CONFIG_DEBUG_INFO_BTF takes it.
    pub(super) fn load() -> io::Result<Self> {
        let unsupported = |error: String| io::Error::new(io::ErrorKind::Unsupported, error);
        let btf = Btf::from_sys_fs().map_err(|error| unsupported(error.to_string()))?;
        let target = btf.id_by_type_name_kind("bpf_iter_bpf_sk_storage_map", BtfKind::Func);
        let target = target.map_err(|error| unsupported(error.to_string()))?;
        let value_size = u32::try_from(size_of::<SocketValue>()).map_err(io::Error::other)?;
        Ok(Self { program: bpf::load_socket_iterator(target, value_size)? })
    }

    /// The cookie of every socket that has an entry in that storage, and the entry.
    fn sockets(&self, storage: BorrowedFd<'_>) -> io::Result<Vec<(u64, SocketValue)>> {
        let mut bytes = Vec::new();
        bpf::iterate(self.program.as_fd(), storage)?.read_to_end(&mut bytes)?;
        let (entries, _) = bytes.as_chunks::<{ 8 + size_of::<SocketValue>() }>();
        let entries = entries.iter().filter_map(|entry| {
            let (cookie, value) = entry.split_first_chunk::<8>()?;
            Some((u64::from_ne_bytes(*cookie), socket_value(value)?))
        });
        Ok(entries.collect())
    }
}

/// Destroys the connected sockets of a protocol that the programs have translated and for which `is_stale` holds. Returns
/// how many, and what could not be done.
pub(super) fn destroy(
    iterator: &Iterator,
    storage: BorrowedFd<'_>,
    protocol: Protocol,
    is_stale: impl Fn(&SocketValue) -> bool,
) -> io::Result<(usize, Vec<String>)> {
    let all = iterator.sockets(storage)?.into_iter();
    let stale: HashMap<u64, SocketValue> = all.filter(|(_, value)| is_stale(value)).collect();
    if stale.is_empty() {
        return Ok((0, Vec::new()));
    }
    let results = netns::in_each(|| destroy_here(protocol, &stale))?;
    let (mut destroyed, mut failures) = (0, Vec::new());
    for result in results {
        match result {
            Ok(count) => destroyed += count,
            Err((path, error)) => failures.push(format!("{}: {error}", path.display())),
        }
    }
    Ok((destroyed, failures))
}

/// In this thread's network namespace.
fn destroy_here(protocol: Protocol, stale: &HashMap<u64, SocketValue>) -> io::Result<usize> {
    let mut diag = Diag::open()?;
    let mut destroyed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(io::Error::other)?;
        for socket in diag.list(family, protocol)? {
            // It may have been connected anew meanwhile.
            let Some(value) = stale.get(&socket.cookie()).filter(|value| value.endpoint == socket.peer()) else {
                continue;
            };
            let (dialled, led_to) = (SocketAddr::from(value.frontend), SocketAddr::from(value.endpoint));
            let was_there = diag.destroy(&socket, protocol)?;
            tracing::debug!(%dialled, %led_to, %protocol, was_there, "destroyed a socket whose endpoint serves no more");
            destroyed += usize::from(was_there);
        }
    }
    Ok(destroyed)
}

struct Diag {
    socket: Socket,
}

impl Diag {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Those that are connected.
    fn list(&mut self, family: u8, protocol: Protocol) -> io::Result<Vec<Found>> {
        let mut states = ESTABLISHED;
        if protocol == Protocol::Tcp {
            states |= SYN_SENT | CLOSE_WAIT;
        }
        self.send(
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            &request(family, protocol, states, &[0; SOCKET_ID]),
        )?;
        let mut found = Vec::new();
        self.receive(|answer| found.extend(Found::read(answer)))?;
        Ok(found)
    }

    /// Says whether it was there.
    fn destroy(&mut self, socket: &Found, protocol: Protocol) -> io::Result<bool> {
        let body = request(socket.family, protocol, u32::MAX, &socket.id);
        self.send(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &body)?;
        match self.receive(|_| ()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is built without CONFIG_INET_DIAG_DESTROY"))
            }
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence and port: there is one request at a time.
        message.extend([0; 8]);
        message.extend(body);
        self.socket.send(&message, 0)?;
        Ok(())
    }

    /// Reads to the end of an answer: that of a dump, or an acknowledgement.
    fn receive(&mut self, mut answer: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let Some(body) = rest.get(HEADER..length) else { break };
                match u16::from_ne_bytes([header[4], header[5]]) {
                    done if i32::from(done) == libc::NLMSG_DONE || i32::from(done) == libc::NLMSG_ERROR => {
                        let errno = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) };
                    }
                    _ => answer(body),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// `struct inet_diag_req_v2`
fn request(family: u8, protocol: Protocol, states: u32, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut body = vec![family, protocol.number(), 0, 0];
    body.extend(states.to_ne_bytes());
    debug_assert_eq!(body.len(), ID_IN_REQUEST);
    body.extend(id);
    debug_assert_eq!(body.len(), REQUEST);
    body
}

impl Found {
    fn read(answer: &[u8]) -> Option<Self> {
        let answer = answer.get(..ANSWER)?;
        Some(Self { family: *answer.first()?, id: *answer.get(ID_IN_ANSWER..)?.first_chunk()? })
    }

    fn cookie(&self) -> u64 {
        let word =
            |at: usize| u64::from(u32::from_ne_bytes([self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]]));
        word(COOKIE) | word(COOKIE + 4) << 32
    }

    /// Where it is connected to.
    fn peer(&self) -> AddressPort {
        let port = u16::from_ne_bytes([self.id[2], self.id[3]]);
        let (words, _) = self.id[20..36].as_chunks::<4>();
        let words: [u32; 4] = std::array::from_fn(|index| u32::from_ne_bytes(words[index]));
        let is_v4 = i32::from(self.family) == libc::AF_INET;
        AddressPort::new(if is_v4 { Address::from_v4(words[0]) } else { Address { words } }, port)
    }
}

fn socket_value(bytes: &[u8]) -> Option<SocketValue> {
    let bytes: &[u8; size_of::<SocketValue>()] = bytes.first_chunk()?;
    // SAFETY: the type holds integers only, has no padding, and is of that size; the bytes need not be aligned.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_read_as_inet_diag_tells_it() {
        let mut answer = vec![2, 1, 0, 0];
        answer.extend([0x30, 0x39, 0x00, 0x35]);
        answer.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        answer.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        answer.extend([0; 4]);
        answer.extend(7_u32.to_ne_bytes());
        answer.extend(1_u32.to_ne_bytes());
        answer.resize(ANSWER, 0);
        let found = Found::read(&answer).unwrap();
        assert_eq!(SocketAddr::from(found.peer()), "10.0.0.2:53".parse().unwrap());
        assert_eq!(found.cookie(), 1 << 32 | 7);
        assert!(Found::read(&answer[..ANSWER - 1]).is_none());
    }
}
