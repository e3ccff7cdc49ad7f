//! Sets and their members, over nfnetlink (`include/uapi/linux/netfilter/ipset/ip_set.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::NLA_F_NET_BYTEORDER;
use tollgate_model::name::{IpFamily, Protocol};

use super::super::object::{Element, ElementValue, SetName};
use super::socket::Messages;
use tollgate_nftables::attribute::{Writer, attributes, read_text};

const NFNL_SUBSYS_IPSET: u16 = 6;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `IPSET_PROTOCOL_MIN`, which Linux before 5.10 has and all after it take.
const PROTOCOL_VERSION: u8 = 6;

const IPSET_CMD_CREATE: u8 = 2;
const IPSET_CMD_DESTROY: u8 = 3;
const IPSET_CMD_FLUSH: u8 = 4;
const IPSET_CMD_LIST: u8 = 7;
const IPSET_CMD_ADD: u8 = 9;
const IPSET_CMD_DEL: u8 = 10;

const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_TYPENAME: u16 = 3;
const IPSET_ATTR_REVISION: u16 = 4;
const IPSET_ATTR_FAMILY: u16 = 5;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_ATTR_DATA: u16 = 7;
const IPSET_ATTR_ADT: u16 = 8;

const IPSET_ATTR_IP: u16 = 1;
const IPSET_ATTR_PORT: u16 = 4;
const IPSET_ATTR_PROTO: u16 = 7;
const IPSET_ATTR_CADT_FLAGS: u16 = 8;
const IPSET_ATTR_MAXELEM: u16 = 19;
const IPSET_ATTR_IP2: u16 = 20;
const IPSET_ATTR_CIDR2: u16 = 21;
const IPSET_ATTR_COMMENT: u16 = 26;
const IPSET_ATTR_SKBMARK: u16 = 27;

const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
const IPSET_ATTR_IPADDR_IPV6: u16 = 2;

const IPSET_FLAG_LIST_HEADER: u32 = 1 << 2;
const WITH_COMMENT: u32 = 1 << 4;
const WITH_SKBINFO: u32 = 1 << 6;

/// The most members of a set.
const MAX_ELEMENTS: u32 = 1 << 20;

/// A set's name and type, as the kernel lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedSet {
    pub(crate) name: String,
    pub(crate) kind: String,
}

/// A set's type, and the revision of it that brought `skbinfo`, which every later kernel takes as well.
pub(crate) fn kind(set: SetName) -> (&'static str, u8) {
    match set {
        SetName::Vips => ("hash:ip", 4),
        SetName::Admit => ("hash:ip,port,net", 7),
        SetName::Reject
        | SetName::Drop
        | SetName::Masquerade
        | SetName::Guarded
        | SetName::Shortcut
        | SetName::Frontends => ("hash:ip,port", 5),
    }
}

/// Makes a set; one that is there, and the same, is left alone.
pub(crate) fn push_create(messages: &mut Messages, family: IpFamily, set: SetName) {
    let (kind, revision) = kind(set);
    messages.push(message(IPSET_CMD_CREATE), 0, |it| {
        header(it, family, &set.text(family));
        it.put_text(IPSET_ATTR_TYPENAME, kind);
        it.put(IPSET_ATTR_REVISION, &[revision]);
        it.put(IPSET_ATTR_FAMILY, &[nfproto(family)]);
        it.nest(IPSET_ATTR_DATA, |it| {
            it.put_u32(IPSET_ATTR_CADT_FLAGS | NLA_F_NET_BYTEORDER, WITH_COMMENT | WITH_SKBINFO);
            it.put_u32(IPSET_ATTR_MAXELEM | NLA_F_NET_BYTEORDER, MAX_ELEMENTS);
        });
    });
}

/// Destroys a set, which no rule may name any more.
pub(crate) fn push_destroy(messages: &mut Messages, family: IpFamily, name: &str) {
    messages.push(message(IPSET_CMD_DESTROY), 0, |it| header(it, family, name));
}

/// Takes all members out of a set.
pub(crate) fn push_flush(messages: &mut Messages, family: IpFamily, name: &str) {
    messages.push(message(IPSET_CMD_FLUSH), 0, |it| header(it, family, name));
}

/// Adds a member, or gives it another value; without a value, takes it out. Neither minds what is there before.
pub(crate) fn push_element(messages: &mut Messages, family: IpFamily, element: &Element, value: Option<&ElementValue>) {
    let command = if value.is_some() { IPSET_CMD_ADD } else { IPSET_CMD_DEL };
    messages.push(message(command), 0, |it| {
        header(it, family, &element.set.text(family));
        it.nest(IPSET_ATTR_DATA, |it| {
            write_ip(it, IPSET_ATTR_IP, element.ip);
            if let Some((protocol, port)) = element.port {
                it.put(IPSET_ATTR_PORT | NLA_F_NET_BYTEORDER, &port.to_be_bytes());
                it.put(IPSET_ATTR_PROTO, &[protocol.number()]);
            }
            if let Some(source) = element.source {
                write_ip(it, IPSET_ATTR_IP2, source.network());
                it.put(IPSET_ATTR_CIDR2, &[source.prefix_len()]);
            }
            let Some(value) = value else { return };
            if let Some(mark) = value.mark {
                // The mark, and which of its bits are meant.
                let pair = u64::from(mark) << 32 | u64::from(u32::MAX);
                it.put(IPSET_ATTR_SKBMARK | NLA_F_NET_BYTEORDER, &pair.to_be_bytes());
            }
            if let Some(comment) = &value.comment {
                it.put_text(IPSET_ATTR_COMMENT, comment);
            }
        });
    });
}

/// Asks for the members of one set.
pub(crate) fn write_list_request(writer: &mut Writer, family: IpFamily, set: SetName) {
    header(writer, family, &set.text(family));
}

/// Asks for all sets, without their members.
pub(crate) fn write_sets_request(writer: &mut Writer) {
    writer.put_raw(&[NFPROTO_IPV4, 0, 0, 0]);
    writer.put(IPSET_ATTR_PROTOCOL, &[PROTOCOL_VERSION]);
    writer.put_u32(IPSET_ATTR_FLAGS | NLA_F_NET_BYTEORDER, IPSET_FLAG_LIST_HEADER);
}

/// The message that asks for either.
pub(crate) const LIST: u16 = message(IPSET_CMD_LIST);

const fn message(command: u8) -> u16 {
    NFNL_SUBSYS_IPSET << 8 | command as u16
}

fn header(writer: &mut Writer, family: IpFamily, name: &str) {
    writer.put_raw(&[nfproto(family), 0, 0, 0]);
    writer.put(IPSET_ATTR_PROTOCOL, &[PROTOCOL_VERSION]);
    writer.put_text(IPSET_ATTR_SETNAME, name);
}

fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

fn write_ip(writer: &mut Writer, kind: u16, ip: IpAddr) {
    writer.nest(kind, |it| match ip {
        IpAddr::V4(ip) => it.put(IPSET_ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &ip.octets()),
        IpAddr::V6(ip) => it.put(IPSET_ATTR_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, &ip.octets()),
    });
}

/// A set of a listing.
pub(crate) fn read_set(body: &[u8]) -> Option<ListedSet> {
    let find = |wanted| of(body).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| read_text(value));
    Some(ListedSet { name: find(IPSET_ATTR_SETNAME)?.to_owned(), kind: find(IPSET_ATTR_TYPENAME)?.to_owned() })
}

/// The members in one message of a listing; `None` for one that makes no sense.
pub(crate) fn read_elements(
    family: IpFamily,
    set: SetName,
    body: &[u8],
) -> impl Iterator<Item = Option<(Element, ElementValue)>> {
    let members = of(body).filter(|(kind, _)| *kind == IPSET_ATTR_ADT);
    members.flat_map(|(_, members)| attributes(members)).map(move |(_, member)| read_element(family, set, member))
}

fn of(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(body.get(4..).unwrap_or_default())
}

fn read_element(family: IpFamily, set: SetName, member: &[u8]) -> Option<(Element, ElementValue)> {
    let find = |wanted| attributes(member).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let ip = read_ip(family, find(IPSET_ATTR_IP)?)?;
    let port = match (find(IPSET_ATTR_PORT), find(IPSET_ATTR_PROTO)) {
        (Some(port), Some([protocol])) => Some((read_protocol(*protocol)?, u16::from_be_bytes(port.try_into().ok()?))),
        _ => None,
    };
    let source = match find(IPSET_ATTR_IP2) {
        None => None,
        Some(source) => {
            let source = read_ip(family, source)?;
            let all = if source.is_ipv4() { 32 } else { 128 };
            let length = find(IPSET_ATTR_CIDR2).and_then(|it| it.first().copied()).unwrap_or(all);
            Some(IpNet::new(source, length).ok()?)
        }
    };
    let mark = find(IPSET_ATTR_SKBMARK).and_then(|pair| pair.first_chunk()).map(|mark| u32::from_be_bytes(*mark));
    let comment = find(IPSET_ATTR_COMMENT).and_then(read_text).filter(|text| !text.is_empty()).map(Into::into);
    Some((Element { set, ip, port, source }, ElementValue { mark, comment }))
}

fn read_ip(family: IpFamily, value: &[u8]) -> Option<IpAddr> {
    let (_, octets) = attributes(value).next()?;
    Some(match family {
        IpFamily::V4 => Ipv4Addr::from(*octets.first_chunk::<4>()?).into(),
        IpFamily::V6 => Ipv6Addr::from(*octets.first_chunk::<16>()?).into(),
    })
}

fn read_protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|it| it.number() == number)
}
