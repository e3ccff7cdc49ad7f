//! Sockets of every kind, and what they meet.

use std::fmt;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// Nobody waits that long but for what never comes.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How a process dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A stream.
    Tcp,
    /// `connect`, then `send`.
    UdpConnected,
    /// `sendto`.
    UdpUnconnected,
}

/// The socket's family, and which addresses it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv6, given IPv4-mapped addresses.
    Mapped,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A server answered: the address that it was reached at, and the one that the socket says its peer has.
    Answer { by: SocketAddr, peer: SocketAddr },
    /// The call failed.
    Errno(i32),
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::UdpConnected, Self::UdpUnconnected];
}

impl Family {
    pub(crate) const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    pub(crate) fn is_v6(self) -> bool {
        self == Self::V6
    }

    /// An address as a socket of this family is given it.
    pub(crate) fn given(self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self == Self::Mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        }
    }

    pub(crate) fn socket(self, kind: Type) -> Socket {
        let domain = if self == Self::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, kind, None).unwrap();
        if domain == Domain::IPV6 {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::UdpConnected => "udp_connected",
            Self::UdpUnconnected => "udp_unconnected",
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
            Self::Mapped => "mapped",
        })
    }
}

/// Dials once. The addresses in the outcome are as the socket has them, an IPv4-mapped one so.
pub(crate) fn dial(kind: Kind, family: Family, to: SocketAddr) -> Outcome {
    try_dial(kind, family, to).unwrap_or_else(|error| {
        Outcome::Errno(error.raw_os_error().unwrap_or_else(|| panic!("{kind} to {to} by {family}: {error}")))
    })
}

fn try_dial(kind: Kind, family: Family, to: SocketAddr) -> io::Result<Outcome> {
    let to = SockAddr::from(family.given(to));
    if kind == Kind::Tcp {
        let mut socket = family.socket(Type::STREAM);
        socket.connect(&to)?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        return Ok(Outcome::Answer { by: text.parse().unwrap(), peer: peer(&socket) });
    }
    let socket = family.socket(Type::DGRAM);
    if kind == Kind::UdpUnconnected {
        socket.send_to(b"?", &to)?;
        let (by, peer) = receive(&socket)?;
        return Ok(Outcome::Answer { by, peer });
    }
    socket.connect(&to)?;
    socket.send(b"?")?;
    let (by, source) = receive(&socket)?;
    assert_eq!(source, peer(&socket), "where a datagram comes from, and who the peer is");
    Ok(Outcome::Answer { by, peer: source })
}

/// Who a connected socket says that it is connected to.
pub(crate) fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

/// A datagram: what it says, which is the address of the server that sent it, and where it is said to come from.
pub(crate) fn receive(socket: &Socket) -> io::Result<(SocketAddr, SocketAddr)> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 64];
    let (length, source) = socket.recv_from(&mut buffer)?;
    // SAFETY: the kernel has written so many bytes.
    let text: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
    Ok((String::from_utf8(text).unwrap().parse().unwrap(), source.as_socket().unwrap()))
}
