//! The link and its routes, over rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use tollgate_model::name::IpFamily;

use super::super::object::Route;
use super::socket::Messages;
use tollgate_nftables::attribute::Writer;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// Asks for a link.
pub(crate) const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
/// Asks for addresses.
pub(crate) const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// Asks for routes.
pub(crate) const RTM_GETROUTE: u16 = 26;

/// Where the kernel keeps what is for the node itself (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u8 = 255;
/// Of a route, so that one of the kernel's own for the same address, which has 0, comes first and neither replaces the other.
const PRIORITY: u32 = 7440;
/// Of the one that stays when the node loses the address that the other has as its source.
const PRIORITY_OF_LINK: u32 = 7441;
/// Who has made a route: a number that nobody has registered (`/etc/iproute2/rt_protos`).
const PROTOCOL: u8 = 174;

/// Makes the link, and sets it up.
pub(crate) fn push_link(messages: &mut Messages, name: &str) {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
    messages.push(RTM_NEWLINK, NLM_F_CREATE, |it| put(it, &link));
}

/// Deletes the link, and its routes with it.
pub(crate) fn push_link_deletion(messages: &mut Messages, name: &str) {
    let link = named(name);
    messages.push(RTM_DELLINK, 0, |it| put(it, &link));
}

/// Asks for the link of that name.
pub(crate) fn write_link_request(writer: &mut Writer, name: &str) {
    put(writer, &named(name));
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

/// The index of a link, and whether it is a dummy that is up.
pub(crate) fn read_link(body: &[u8]) -> Option<(u32, bool)> {
    let link = LinkMessage::parse(body).ok()?;
    let is_dummy = |info: &LinkInfo| *info == LinkInfo::Kind(InfoKind::Dummy);
    let is_dummy =
        link.attributes.iter().any(|it| matches!(it, LinkAttribute::LinkInfo(infos) if infos.iter().any(is_dummy)));
    Some((link.header.index, is_dummy && link.header.flags.contains(LinkFlags::Up)))
}

/// What the node itself has as its source when it dials a Service and has no address of its own to take: the kernel would take
/// the Service's address, or whichever is most like it. The address never leaves the node, and nobody else is to choose
/// it: of IPv4 it is good for this host alone, of IPv6 it is deprecated from the start.
pub(crate) fn source(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(169, 254, 74, 40).into(),
        // A unique local prefix that was drawn at random (RFC 4193).
        IpFamily::V6 => Ipv6Addr::new(0xfd5c, 0x91e2, 0x7440, 0, 0, 0, 0, 1).into(),
    }
}

/// Gives the link that address.
pub(crate) fn push_source(messages: &mut Messages, link: u32, family: IpFamily) {
    let ip = source(family);
    let mut message = AddressMessage::default();
    message.header.family = address_family(family);
    message.header.prefix_len = if ip.is_ipv4() { 32 } else { 128 };
    message.header.index = link;
    message.header.scope = AddressScope::Host;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if ip.is_ipv6() {
        message.header.scope = AddressScope::Universe;
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    messages.push(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, |it| put(it, &message));
}

/// Makes these addresses the node's own, in whichever way a packet comes for them; or takes them away.
pub(crate) fn push_route(messages: &mut Messages, link: u32, wanted: Route, is_wanted: bool) {
    let message = route(link, wanted);
    let (kind, flags) = if is_wanted { (RTM_NEWROUTE, NLM_F_CREATE) } else { (RTM_DELROUTE, 0) };
    messages.push(kind, flags, |it| put(it, &message));
}

fn route(link: u32, Route { net, source: own }: Route) -> RouteMessage {
    let (address_family, address) = match net.network() {
        IpAddr::V4(ip) => (AddressFamily::Inet, RouteAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, RouteAddress::Inet6(ip)),
    };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family,
        destination_prefix_length: net.prefix_len(),
        table: TABLE_LOCAL,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(address),
        RouteAttribute::Oif(link),
        RouteAttribute::Priority(if own.is_some() { PRIORITY } else { PRIORITY_OF_LINK }),
        RouteAttribute::PrefSource(own.unwrap_or_else(|| source(net.addr().into())).into()),
    ];
    message
}

/// Asks for all routes of a family.
pub(crate) fn write_routes_request(writer: &mut Writer, family: IpFamily) {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    put(writer, &message);
}

/// A route of ours on that link; `None` for others.
pub(crate) fn read_route(body: &[u8], link: u32) -> Option<Route> {
    let message = RouteMessage::parse(body).ok()?;
    let header = &message.header;
    let is_ours = header.kind == RouteType::Local
        && header.protocol == RouteProtocol::Other(PROTOCOL)
        && message.attributes.contains(&RouteAttribute::Oif(link));
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let (mut destination, mut preferred, mut priority) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => destination = address(ip),
            RouteAttribute::PrefSource(ip) => preferred = address(ip),
            RouteAttribute::Priority(number) => priority = Some(*number),
            _ => {}
        }
    }
    let net = IpNet::new(destination?, header.destination_prefix_length).ok().filter(|_| is_ours)?;
    // IPv6 leaves a route without its source where that has gone.
    let source = match (priority?, preferred?) {
        (PRIORITY, own) => Some(own),
        (PRIORITY_OF_LINK, of_link) if of_link == source(net.addr().into()) => None,
        _ => return None,
    };
    Some(Route { net, source })
}

/// Asks for all IPv4 addresses.
pub(crate) fn write_addresses_request(writer: &mut Writer) {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    put(writer, &message);
}

/// An address of a link, with the length of its prefix.
pub(crate) fn read_address(body: &[u8]) -> Option<IpNet> {
    let message = AddressMessage::parse(body).ok()?;
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })?;
    IpNet::new(local, message.header.prefix_len).ok()
}

fn address_family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

fn put(writer: &mut Writer, message: &impl Emitable) {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    writer.put_raw(&bytes);
}
