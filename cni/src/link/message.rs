//! Requests to the kernel. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nix::libc;

use super::socket::Request;
use crate::conf::mac::Mac;

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A link by its name.
pub(super) fn link(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message
}

/// A link by its number.
pub(super) fn link_at(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// As a question, without statistics.
pub(super) fn get(mut link: LinkMessage) -> RouteNetlinkMessage {
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(link)
}

/// Changes a link.
pub(super) fn change(what: impl Into<String>, link: LinkMessage) -> Request {
    Request { what: what.into(), message: RouteNetlinkMessage::NewLink(link), flags: 0, done_already: 0 }
}

/// Makes a link that must not be there.
pub(super) fn make(what: impl Into<String>, link: LinkMessage) -> Request {
    let message = RouteNetlinkMessage::NewLink(link);
    Request { what: what.into(), message, flags: NLM_F_CREATE | NLM_F_EXCL, done_already: 0 }
}

/// Deletes a link; that it is not there is no error.
pub(super) fn delete(name: &str) -> Request {
    let message = RouteNetlinkMessage::DelLink(link(name));
    Request { what: format!("delete the link {name}"), message, flags: 0, done_already: libc::ENODEV }
}

/// The link, set up.
pub(super) fn up(mut link: LinkMessage) -> LinkMessage {
    link.header.change_mask = LinkFlags::Up;
    link.header.flags = LinkFlags::Up;
    link
}

/// A bridge of that name.
pub(super) fn bridge(name: &str, mac: Option<Mac>, mtu: u32) -> LinkMessage {
    let mut message = link(name);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    // Otherwise it would have the lowest of its ports', which come and go.
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    let data = LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), data]));
    message
}

/// A pair: one end here, the other in the namespace of that descriptor.
pub(super) fn veth(host: &str, ifname: &str, mac: Mac, mtu: u32, netns: i32) -> LinkMessage {
    let mut peer = link(ifname);
    peer.attributes.push(LinkAttribute::Mtu(mtu));
    peer.attributes.push(LinkAttribute::Address(mac.octets().to_vec()));
    peer.attributes.push(LinkAttribute::NetNsFd(netns));
    let mut message = link(host);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]));
    message
}

/// Settings of a port of a bridge.
pub(super) fn port(name: &str, settings: Vec<InfoBridgePort>) -> LinkMessage {
    let mut message = link(name);
    let kind = LinkInfo::PortKind(InfoPortKind::Bridge);
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![kind, LinkInfo::PortData(InfoPortData::BridgePort(settings))]));
    message
}

/// An address of a link, as a message.
pub(super) fn address_message(address: IpNet, index: u32, does_dad: bool) -> AddressMessage {
    let ip = address.addr();
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.extend([AddressAttribute::Local(ip), AddressAttribute::Address(ip)]);
    match address {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V6(_) if !does_dad => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
        _ => {}
    }
    message
}

/// Gives a link an address that it has not.
pub(super) fn address(link: &str, address: IpNet, index: u32, does_dad: bool) -> Request {
    let message = RouteNetlinkMessage::NewAddress(address_message(address, index, does_dad));
    let what = format!("give {link} the address {address}");
    Request { what, message, flags: NLM_F_CREATE | NLM_F_EXCL, done_already: 0 }
}

/// Adds a route through a gateway, or to what is directly reachable.
pub(super) fn route(dst: IpNet, gateway: Option<IpAddr>, index: u32) -> Request {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(dst.addr()),
        destination_prefix_length: dst.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if dst.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(dst.addr().into()));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.push(RouteAttribute::Oif(index));
    let through = gateway.map_or(String::new(), |gateway| format!(" through {gateway}"));
    Request {
        what: format!("add the route to {dst}{through} in the container"),
        message: RouteNetlinkMessage::NewRoute(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        done_already: libc::EEXIST,
    }
}

/// Asks by which route packets to an address would go.
pub(super) fn route_to(ip: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(ip.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// Asks for all routes of a family.
pub(super) fn routes(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    RouteNetlinkMessage::GetRoute(message)
}

/// The destination, gateway and link of a route of the main table.
pub(super) fn read_route(message: &RouteMessage) -> (Option<IpAddr>, Option<IpAddr>, Option<u32>) {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let (mut dst, mut gateway, mut oif) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => oif = Some(*index),
            _ => {}
        }
    }
    (dst, gateway, oif)
}
