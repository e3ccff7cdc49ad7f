//! UDP flows that host ports leave stale: a client that goes on sending from the same port meets the old entry of connection
//! tracking and not the new rule, for as long as it goes on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use tollgate_nftables::attribute::{Writer, attributes};

use crate::conf::port::{HostIp, HostPort, Protocol};
use crate::error::Error;

/// Messages and attributes of `linux/netfilter/nfnetlink_conntrack.h`.
const CONNTRACK: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = CONNTRACK | 1;
const IPCTNL_MSG_CT_DELETE: u16 = CONNTRACK | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
/// Of a filter: the protocol only (`net/netfilter/nf_internals.h`).
const PROTO_NUM: u32 = 1 << 3;
const UDP: u8 = 17;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NETLINK_HEADER: usize = 16;
const NFNETLINK_HEADER: usize = 4;
const DATAGRAM: usize = 64 << 10;

/// Deletes the UDP flows that a client dialled one of these host ports with and that do not lead to `pod`: flows that began
/// before there was the host port, or that lead to whoever had it before. `is_local` says which addresses are the node's.
pub fn delete_stale(ports: &[HostPort], pod: IpAddr, is_local: impl Fn(IpAddr) -> bool) -> Result<(), Error> {
    delete(ports, pod, |flow| flow.answers != pod && is_local(flow.dialled))
}

/// Deletes the UDP flows that lead to `pod` through one of these host ports.
pub fn delete_of(ports: &[HostPort], pod: IpAddr) -> Result<(), Error> {
    delete(ports, pod, |flow| flow.answers == pod)
}

/// A flow of UDP.
struct Flow {
    /// What the client dialled.
    dialled: IpAddr,
    port: u16,
    /// Who answers.
    answers: IpAddr,
    /// The attributes that name exactly this entry, as they were told.
    name: Vec<(u16, Vec<u8>)>,
}

fn delete(ports: &[HostPort], like: IpAddr, is_stale: impl Fn(&Flow) -> bool) -> Result<(), Error> {
    let ports: Vec<&HostPort> =
        ports.iter().filter(|port| port.protocol == Protocol::Udp && port.host_ip.has_family_of(like)).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let is_dialled = |flow: &Flow| {
        ports.iter().any(|port| {
            flow.port == port.host_port && if let HostIp::One(ip) = port.host_ip { flow.dialled == ip } else { true }
        })
    };
    let run = || -> io::Result<()> {
        let socket = Conntrack::open(like)?;
        for flow in socket.flows()?.iter().filter(|flow| is_dialled(flow) && is_stale(flow)) {
            socket.delete(flow)?;
        }
        Ok(())
    };
    run().map_err(|cause| Error::Kernel { what: "delete UDP flows that are stale".into(), cause })
}

/// Connection tracking of one family.
struct Conntrack {
    socket: Socket,
    family: u8,
}

impl Conntrack {
    fn open(like: IpAddr) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let family = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        Ok(Self { socket, family: u8::try_from(family).unwrap_or_default() })
    }

    /// All flows of UDP. The kernel leaves out the other protocols (since 5.8; older ones tell all).
    fn flows(&self) -> io::Result<Vec<Flow>> {
        self.send(IPCTNL_MSG_CT_GET, NLM_F_DUMP, |writer| {
            writer.nest(CTA_TUPLE_ORIG, |tuple| tuple.nest(CTA_TUPLE_PROTO, |proto| proto.put(CTA_PROTO_NUM, &[UDP])));
            // In the machine's byte order, unlike all else in this protocol.
            writer.nest(CTA_FILTER, |filter| filter.put(CTA_FILTER_ORIG_FLAGS, &PROTO_NUM.to_ne_bytes()));
        })?;
        let mut flows = Vec::new();
        self.receive(|payload| flows.extend(read(payload)))?;
        Ok(flows)
    }

    /// Deletes a flow; one that is gone is no error.
    fn delete(&self, flow: &Flow) -> io::Result<()> {
        self.send(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, |writer| {
            // The kernel's own dump lacks the flag of nested attributes in none of these.
            flow.name.iter().for_each(|(kind, value)| match *kind {
                CTA_TUPLE_ORIG => writer.nest(CTA_TUPLE_ORIG, |tuple| tuple.put_raw(value)),
                kind => writer.put(kind, value),
            });
        })?;
        match self.receive(|_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }

    fn send(&self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> io::Result<()> {
        let mut writer = Writer::default();
        writer.put_raw(&[0; NETLINK_HEADER]);
        writer.put_raw(&[self.family, 0, 0, 0]);
        body(&mut writer);
        let length = u32::try_from(writer.len()).unwrap_or(u32::MAX);
        writer.patch(0, &length.to_ne_bytes());
        writer.patch(4, &kind.to_ne_bytes());
        writer.patch(6, &(NLM_F_REQUEST | flags).to_ne_bytes());
        self.socket.send(writer.as_slice(), 0).map(drop)
    }

    fn receive(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = &buffer[..];
            while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                let length = usize::try_from(message.length()).unwrap_or(rest.len());
                let payload = rest.get(NETLINK_HEADER..length).unwrap_or_default();
                match message.message_type() {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(payload.get(NFNETLINK_HEADER..).unwrap_or_default()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// A flow, if that is one of UDP.
fn read(payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut name) = (None, None, Vec::new());
    for (kind, value) in attributes(payload) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(value),
            CTA_TUPLE_REPLY => reply = Some(value),
            _ => {}
        }
        if matches!(kind, CTA_TUPLE_ORIG | CTA_ID | CTA_ZONE) {
            name.push((kind, value.to_vec()));
        }
    }
    let (_, dialled, port) = read_tuple(original?)?;
    let (answers, _, _) = read_tuple(reply?)?;
    Some(Flow { dialled, port, answers, name })
}

/// The source, destination and destination port of a tuple of UDP.
fn read_tuple(tuple: &[u8]) -> Option<(IpAddr, IpAddr, u16)> {
    let (mut source, mut destination, mut port, mut is_udp) = (None, None, None, false);
    for (kind, part) in attributes(tuple) {
        for (field, value) in attributes(part) {
            match (kind, field) {
                (CTA_TUPLE_IP, 1 | 3) => source = read_ip(value),
                (CTA_TUPLE_IP, 2 | 4) => destination = read_ip(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => is_udp = value == [UDP],
                (CTA_TUPLE_PROTO, 3) => port = value.try_into().ok().map(u16::from_be_bytes),
                _ => {}
            }
        }
    }
    is_udp.then_some((source?, destination?, port?))
}

fn read_ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}
