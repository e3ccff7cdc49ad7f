//! The node's side: the bridge, its addresses, and that packets are forwarded.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use super::Socket;
use super::message;
use crate::conf::Bridge;
use crate::conf::mac::Mac;
use crate::error::Error;
use crate::sysctl;

/// A link, as far as that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// The number of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// Text that it was given.
    pub alias: String,
    is_bridge: bool,
    is_up: bool,
    is_promiscuous: bool,
}

/// Documentation addresses (RFC 5737, RFC 3849), which no route is for but the default one.
const FAR_AWAY: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
/// Ethernet's, for a node without an uplink.
const USUAL_MTU: u32 = 1500;

impl Socket {
    /// The link of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let found =
            self.get(&format!("look for the link {name}"), message::get(message::link(name)), &[libc::ENODEV])?;
        Ok(found.and_then(Link::read))
    }

    fn link_at(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let found = self.get("look at a link", message::get(message::link_at(index)), &[libc::ENODEV])?;
        Ok(found.and_then(Link::read))
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let found = self.dump("list the links", message::get(LinkMessage::default()))?;
        Ok(found.into_iter().filter_map(Link::read).collect())
    }

    /// The addresses of a link.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, Error> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        let found = self.dump("list addresses", RouteNetlinkMessage::GetAddress(request))?;
        let mine = found.into_iter().filter_map(read_address).filter(|(of, _)| *of == index);
        Ok(mine.map(|(_, net)| net).collect())
    }

    /// All addresses of the node.
    pub fn local_addresses(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let found = self.dump("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(found.into_iter().filter_map(|message| read_address(message).map(|(_, net)| net.addr())).collect())
    }

    /// The MTU of the link that leads to the rest of the world.
    pub fn uplink_mtu(&mut self) -> Result<u32, Error> {
        for far in FAR_AWAY {
            const NO_ROUTE: [i32; 5] =
                [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES, libc::EAFNOSUPPORT];
            let route = self.get("look for the uplink", message::route_to(far), &NO_ROUTE)?;
            if let Some(RouteNetlinkMessage::NewRoute(route)) = route
                && let (_, _, Some(oif)) = message::read_route(&route)
                && let Some(link) = self.link_at(oif)?
                && link.name != "lo"
            {
                return Ok(link.mtu);
            }
        }
        Ok(USUAL_MTU)
    }

    /// Makes the bridge as it should be; `gateways` are the addresses that it should have.
    pub fn ensure_bridge(&mut self, conf: &Bridge, gateways: &[IpNet], mtu: u32) -> Result<Link, Error> {
        let name = &conf.name;
        let bridge = match self.link(name)? {
            Some(link) => link,
            None => self.make_bridge(name, gateways, mtu)?,
        };
        if !bridge.is_bridge {
            return Err(Error::Conflict(format!("bridge {name}: the node has a link of that name that is no bridge")));
        }
        let mut requests = Vec::new();
        if !bridge.is_up {
            let link = message::up(message::link_at(bridge.index));
            requests.push(message::change(format!("set the bridge {name} up"), link));
        }
        if conf.promiscuous && !bridge.is_promiscuous {
            let mut link = message::link_at(bridge.index);
            link.header.flags = LinkFlags::Promisc;
            link.header.change_mask = LinkFlags::Promisc;
            requests.push(message::change(format!("make the bridge {name} promiscuous"), link));
        }
        self.execute(requests)?;
        // Router advertisements from pods must not change the node's routes (CVE-2020-10749).
        sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        for gateway in gateways {
            self.ensure_gateway(conf, &bridge, *gateway)?;
        }
        Ok(bridge)
    }

    fn make_bridge(&mut self, name: &str, gateways: &[IpNet], mtu: u32) -> Result<Link, Error> {
        let mac = gateways.first().map(|gateway| Mac::of_address(gateway.addr()));
        let mut request = message::make(format!("make the bridge {name}"), message::bridge(name, mac, mtu));
        // Another ADD has been quicker.
        request.done_already = libc::EEXIST;
        self.execute(vec![request])?;
        // Nothing answers that could have the address too; and what is tentative is no gateway.
        sysctl::set_new(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        let gone = || Error::Conflict(format!("bridge {name}: it was made and then deleted by somebody else"));
        self.link(name)?.ok_or_else(gone)
    }

    /// Gives the bridge an address, unless another one that it has is in the way.
    fn ensure_gateway(&mut self, conf: &Bridge, bridge: &Link, gateway: IpNet) -> Result<(), Error> {
        let (name, index) = (&conf.name, bridge.index);
        if gateway.addr().is_ipv6() {
            sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        }
        let present = self.addresses_of_family(index, gateway)?;
        if present.contains(&gateway) {
            return Ok(());
        }
        let mut requests = Vec::new();
        let overlaps = |other: &&IpNet| other.contains(&gateway.trunc()) || gateway.contains(&other.trunc());
        for other in present.iter().filter(overlaps) {
            if !conf.force_address {
                return Err(Error::Conflict(format!(
                    "bridge {name}: it has the address {other}, and {gateway} is its gateway's; forceAddress would replace it"
                )));
            }
            let message = RouteNetlinkMessage::DelAddress(message::address_message(*other, index, true));
            requests.push(super::socket::Request {
                what: format!("take the address {other} from {name}"),
                message,
                flags: 0,
                done_already: libc::EADDRNOTAVAIL,
            });
        }
        let mut request = message::address(name, gateway, index, false);
        request.done_already = libc::EEXIST;
        requests.push(request);
        self.execute(requests)
    }

    fn addresses_of_family(&mut self, index: u32, like: IpNet) -> Result<Vec<IpNet>, Error> {
        let all = self.addresses(index)?;
        Ok(all.into_iter().filter(|net| net.addr().is_ipv4() == like.addr().is_ipv4()).collect())
    }

    /// Makes the node forward packets of the families of these addresses.
    pub fn ensure_forwarding(&mut self, gateways: &[IpNet]) -> Result<(), Error> {
        if gateways.iter().any(|gateway| gateway.addr().is_ipv4()) {
            sysctl::set("ipv4/ip_forward", "1")?;
        }
        if gateways.iter().any(|gateway| gateway.addr().is_ipv6())
            && sysctl::get("ipv6/conf/all/forwarding")?.is_some_and(|value| value == "0")
        {
            self.keep_router_advertisements()?;
            sysctl::set("ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    }

    /// A node that forwards takes no router advertisements any more, unless `accept_ra` is 2: links by which it has learned
    /// routes get that, or the node would lose them.
    fn keep_router_advertisements(&mut self) -> Result<(), Error> {
        let routes = self.dump("list the routes", message::routes(AddressFamily::Inet6))?;
        for route in routes {
            let RouteNetlinkMessage::NewRoute(route) = route else { continue };
            if route.header.protocol != RouteProtocol::Ra {
                continue;
            }
            let (_, _, Some(oif)) = message::read_route(&route) else { continue };
            let Some(link) = self.link_at(oif)? else { continue };
            let setting = format!("ipv6/conf/{}/accept_ra", link.name);
            if sysctl::get(&setting)?.is_some_and(|value| value == "1") {
                sysctl::set(&setting, "2")?;
            }
        }
        Ok(())
    }
}

/// An address and the number of the link that has it.
fn read_address(message: RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    Some((message.header.index, IpNet::new(local.or(address)?, message.header.prefix_len).ok()?))
}

impl Link {
    /// From the kernel's answer.
    pub(super) fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            is_up: flags.contains(LinkFlags::Up),
            is_promiscuous: flags.contains(LinkFlags::Promisc),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = Mac::from_bytes(&bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::LinkInfo(infos) => link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
                _ => {}
            }
        }
        Some(link)
    }
}
