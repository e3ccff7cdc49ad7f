//! Connection tracking over nfnetlink: one socket, its requests and its answers. The only I/O of this module.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as IpProtocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use tollgate_model::name::IpFamily;

/// Messages and attributes of `nfnetlink_conntrack.h`. Requests are put together from these, because the crate writes
/// attributes that it has no words for without the flag that says they are nested, and the kernel insists on it.
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;

/// Which parts of a tuple a filter looks at (`net/netfilter/nf_internals.h`).
const IP_SRC: u32 = 1 << 0;
const IP_DST: u32 = 1 << 1;
const PROTO_NUM: u32 = 1 << 3;
const PROTO_SRC_PORT: u32 = 1 << 4;
const PROTO_DST_PORT: u32 = 1 << 5;

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// Connection tracking of the network namespace that the socket was opened in.
pub(super) struct Conntrack {
    socket: Socket,
    sequence: u32,
}

/// One UDP flow.
pub(super) struct Flow {
    /// What the client dialled.
    pub(super) dialled: SocketAddr,
    /// Who answers.
    pub(super) answers: SocketAddr,
    /// What names exactly this entry: its original tuple, its zone and its id, as the kernel told them.
    name: Vec<DefaultNla>,
}

/// What the kernel did with a filtered deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filtered {
    /// Deleted what matches.
    Done,
    /// Nothing: it does not know how.
    Unknown,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Deletes the IPv4 UDP flows from whoever dialled `dialled` to where `answers` answers.
    ///
    /// Linux honours the filter since 6.11. Before, a deletion that has an original tuple means the one entry with
    /// exactly that tuple, whatever the filter says; ours lacks the source, and is refused with EINVAL. A deletion without
    /// a tuple would flush everything: there is none in this file. IPv6 is not for this function, because the kernel's
    /// comparison of IPv6 addresses has been the wrong way round since 5.8, and matches all others.
    pub(super) fn delete_filtered(&mut self, dialled: SocketAddr, answers: SocketAddr) -> io::Result<Filtered> {
        let (SocketAddr::V4(_), SocketAddr::V4(_)) = (dialled, answers) else { return Ok(Filtered::Unknown) };
        let attributes = vec![
            tuple(
                CTA_TUPLE_ORIG,
                &[IPTuple::DestinationAddress(dialled.ip())],
                &[ProtoTuple::Protocol(IpProtocol::Udp), ProtoTuple::DestinationPort(dialled.port())],
            ),
            tuple(
                CTA_TUPLE_REPLY,
                &[IPTuple::SourceAddress(answers.ip())],
                &[ProtoTuple::Protocol(IpProtocol::Udp), ProtoTuple::SourcePort(answers.port())],
            ),
            filter(IP_DST | PROTO_NUM | PROTO_DST_PORT, IP_SRC | PROTO_NUM | PROTO_SRC_PORT),
        ];
        // Version 1: kernels may take the family for unspecified in a deletion of version 0, as old programs left it.
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 1, 0);
        match self.request(header, IPCTNL_MSG_CT_DELETE, attributes) {
            Ok(()) => Ok(Filtered::Done),
            Err(error) if is_one_of(&error, &[EINVAL, EOPNOTSUPP, ENOENT]) => Ok(Filtered::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Deletes one flow. One that is gone, or has given way to another of the same addresses, is no error; says whether
    /// it was there.
    pub(super) fn delete(&mut self, flow: &Flow) -> io::Result<bool> {
        let header = NetfilterHeader::new(family(flow.dialled.ip()), 0, 0);
        match self.request(header, IPCTNL_MSG_CT_DELETE, flow.name.clone()) {
            Ok(()) => Ok(true),
            Err(error) if is_one_of(&error, &[ENOENT]) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All UDP flows of a family that `is_wanted`. The kernel leaves out the other protocols (since 5.8; older ones tell
    /// all). Not the other addresses: see [`delete_filtered`](Self::delete_filtered).
    pub(super) fn flows(&mut self, of: IpFamily, is_wanted: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        let attributes = vec![
            nested(CTA_TUPLE_ORIG, &[Tuple::Proto(vec![ProtoTuple::Protocol(IpProtocol::Udp)])]),
            filter(PROTO_NUM, 0),
        ];
        let family = match of {
            IpFamily::V4 => NetfilterProtoFamily::IPv4,
            IpFamily::V6 => NetfilterProtoFamily::IPv6,
        };
        let header = NetfilterHeader::new(family, 0, 0);
        self.send(header, IPCTNL_MSG_CT_GET, attributes, NLM_F_DUMP)?;
        let mut flows = Vec::new();
        self.receive(|message| {
            flows.extend(flow(message).filter(&is_wanted));
        })?;
        Ok(flows)
    }

    fn request(&mut self, header: NetfilterHeader, kind: u8, attributes: Vec<DefaultNla>) -> io::Result<()> {
        self.send(header, kind, attributes, NLM_F_ACK)?;
        self.receive(|_| {})
    }

    fn send(
        &mut self,
        header: NetfilterHeader,
        message_type: u8,
        attributes: Vec<DefaultNla>,
        flags: u16,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut netlink = NetlinkHeader::default();
        netlink.flags = NLM_F_REQUEST | flags;
        netlink.sequence_number = self.sequence;
        let inner = NetfilterMessageInner::Other { subsys: NetfilterSubsystem::Conntrack, message_type, attributes };
        let mut message = NetlinkMessage::new(netlink, NetlinkPayload::from(NetfilterMessage::new(header, inner)));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads answers to the last request up to its end.
    fn receive(&self, mut each: impl FnMut(ConntrackMessage)) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                // Messages are padded to four bytes; the last one's padding may be missing.
                let length = usize::try_from(message.header.length).map_err(io::Error::other)?.next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::Conntrack(message),
                        ..
                    }) => each(message),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
    }
}

/// An attribute made of attributes.
fn nested<T: Nla>(kind: u16, parts: &[T]) -> DefaultNla {
    let mut value = vec![0; parts.buffer_len()];
    parts.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// A tuple, or a part of one.
fn tuple(kind: u16, addresses: &[IPTuple], protocol: &[ProtoTuple]) -> DefaultNla {
    nested(kind, &[Tuple::Ip(addresses.to_vec()), Tuple::Proto(protocol.to_vec())])
}

/// What a filter looks at.
fn filter(original: u32, reply: u32) -> DefaultNla {
    // These two are in the machine's byte order, unlike all else in this protocol.
    let flags = |kind, flags: u32| DefaultNla::new(kind, flags.to_ne_bytes().to_vec());
    nested(CTA_FILTER, &[flags(CTA_FILTER_ORIG_FLAGS, original), flags(CTA_FILTER_REPLY_FLAGS, reply)])
}

/// A flow, if that is a UDP one.
fn flow(message: ConntrackMessage) -> Option<Flow> {
    let ConntrackMessage::New(attributes) = message else { return None };
    let (mut dialled, mut answers, mut name) = (None, None, Vec::new());
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => {
                dialled = Ends::of(&tuple).destination();
                name.push(nested(CTA_TUPLE_ORIG, &tuple));
            }
            ConntrackAttribute::CtaTupleReply(tuple) => answers = Ends::of(&tuple).source(),
            ConntrackAttribute::Other(nla) if [CTA_ID, CTA_ZONE].contains(&nla.kind()) => name.push(nla),
            _ => {}
        }
    }
    Some(Flow { dialled: dialled?, answers: answers?, name })
}

/// What a tuple says.
#[derive(Default)]
struct Ends {
    is_udp: bool,
    source: (Option<IpAddr>, u16),
    destination: (Option<IpAddr>, u16),
}

impl Ends {
    fn of(tuple: &[Tuple]) -> Self {
        let mut ends = Self::default();
        for part in tuple {
            match part {
                Tuple::Ip(addresses) => addresses.iter().for_each(|address| match address {
                    IPTuple::SourceAddress(ip) => ends.source.0 = Some(*ip),
                    IPTuple::DestinationAddress(ip) => ends.destination.0 = Some(*ip),
                    _ => {}
                }),
                Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                    ProtoTuple::Protocol(protocol) => ends.is_udp = *protocol == IpProtocol::Udp,
                    ProtoTuple::SourcePort(port) => ends.source.1 = *port,
                    ProtoTuple::DestinationPort(port) => ends.destination.1 = *port,
                    _ => {}
                }),
                _ => {}
            }
        }
        ends
    }

    fn source(self) -> Option<SocketAddr> {
        self.source.0.filter(|_| self.is_udp).map(|ip| SocketAddr::new(ip, self.source.1))
    }

    fn destination(self) -> Option<SocketAddr> {
        self.destination.0.filter(|_| self.is_udp).map(|ip| SocketAddr::new(ip, self.destination.1))
    }
}

fn family(ip: IpAddr) -> NetfilterProtoFamily {
    match ip {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    }
}

fn is_one_of(error: &io::Error, codes: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
