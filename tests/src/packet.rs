//! Single TCP segments, made by hand and seen as they arrive: what no well-behaved socket sends.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::NetNs;

/// Length of a TCP header without options.
const HEADER: usize = 20;
const ACK: u8 = 0x10;

/// A TCP segment without data, as far as a test looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it comes from.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
}

impl Segment {
    /// Sends it from a namespace that has its source address, as an acknowledgement.
    pub fn send(&self, netns: &NetNs) -> Result<()> {
        let (from, to, bytes) = (self.from, self.to, self.bytes());
        let send = move || -> std::io::Result<()> {
            let socket = raw_socket(to.ip())?;
            // A raw socket takes the header from us; the port in its addresses means nothing.
            socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0)))?;
            socket.send_to(&bytes, &SockAddr::from(SocketAddr::new(to.ip(), 0)))?;
            Ok(())
        };
        netns.run(send).with_context(|| format!("can't send {self:?} from {}", netns.name()))
    }

    /// RFC 9293, 3.1.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(1u32.to_be_bytes()); // acknowledgement
        bytes.extend([5 << 4, ACK]); // five words of header
        bytes.extend(1024u16.to_be_bytes()); // window
        bytes.extend([0; 4]); // checksum, urgent pointer
        let checksum = checksum(self.from.ip(), self.to.ip(), &bytes);
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// Over the pseudo header and the segment: RFC 9293, 3.1, and RFC 8200, 8.1. The two differ in where the zeros are.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(segment.len()).expect("a header without data").to_be_bytes();
    let bytes = [octets(from), octets(to), vec![0, 6], length.to_vec(), segment.to_vec()].concat();
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it has been folded")
}

fn raw_socket(family_of: IpAddr) -> std::io::Result<Socket> {
    let domain = if family_of.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    Socket::new(domain, Type::RAW, Some(Protocol::TCP))
}

/// Everything of TCP that arrives in a namespace, from when it is opened.
#[derive(Debug)]
pub struct Sniffer {
    socket: Socket,
    ip: IpAddr,
}

impl Sniffer {
    /// Listens for what arrives at `ip`.
    pub fn open(netns: &NetNs, ip: IpAddr) -> Result<Self> {
        let socket = netns.run(move || raw_socket(ip)).with_context(|| format!("can't sniff in {}", netns.name()))?;
        socket.set_nonblocking(true).context("can't make a socket non-blocking")?;
        Ok(Self { socket, ip })
    }

    /// What has arrived since the last call.
    pub fn take(&self) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 2048];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    // SAFETY: the kernel has written that many bytes.
                    let bytes = unsafe { &*(std::ptr::from_ref(&buffer[..length]) as *const [u8]) };
                    let from = from.as_socket().context("not an IP address")?.ip();
                    segments.extend(parse(bytes, from, self.ip));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(segments),
                Err(error) => return Err(error).context("can't read from a raw socket"),
            }
        }
    }
}

/// An IPv4 raw socket hands out the IP header too; an IPv6 one does not.
fn parse(bytes: &[u8], from: IpAddr, to: IpAddr) -> Option<Segment> {
    let header = if to.is_ipv4() { usize::from(bytes.first()? & 0xf) * 4 } else { 0 };
    let tcp = bytes.get(header..header + HEADER)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    Some(Segment { from: (from, port(0)).into(), to: (to, port(2)).into(), sequence })
}
