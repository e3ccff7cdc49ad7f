//! The container's side: its interface, addresses and routes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Socket;
use super::bridge::Link;
use super::message;
use crate::error::Error;
use crate::ipam::Addresses;
use crate::result::Route;
use crate::sysctl;

/// How long duplicate address detection may take: the kernel needs 1 to 2 s.
const DAD: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
const GROUP_PAUSE: Duration = Duration::from_micros(300);
/// The groups that interfaces have joined, of the network namespace that the plugin is in.
const GROUPS: &str = "/proc/self/net/igmp6";
/// IPv6 needs no less (RFC 8200, section 5).
pub const IPV6_MTU: u32 = 1280;

/// The routes that a container gets: those that are asked for, and a default one of each family where the bridge is the
/// default gateway. Those without a gateway go through that of their family's first address.
pub fn routes(addresses: &Addresses, is_default_gateway: bool) -> Vec<Route> {
    let gateway = |is_v4: bool| {
        let mine = addresses.ips.iter().filter(|ip| ip.address.addr().is_ipv4() == is_v4);
        mine.filter_map(|ip| ip.gateway).next()
    };
    let mut routes = addresses.routes.clone();
    if is_default_gateway {
        let all =
            [IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0), IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0)];
        for dst in all {
            if let Some(gateway) = gateway(dst.addr().is_ipv4())
                && !routes.iter().any(|route| route.dst == dst)
            {
                routes.push(Route::new(dst, Some(gateway)));
            }
        }
    }
    for route in &mut routes {
        route.gw = route.gw.or_else(|| gateway(route.dst.addr().is_ipv4()));
    }
    routes
}

impl Socket {
    /// Gives the container's interface its addresses and routes, and sets it up.
    ///
    /// The socket and the plugin are in the container's namespace.
    pub fn configure(
        &mut self,
        ifname: &str,
        addresses: &Addresses,
        routes: &[Route],
        dad: bool,
    ) -> Result<Link, Error> {
        let gone = || {
            Error::Conflict(format!("the container's interface {ifname} was made and then deleted by somebody else"))
        };
        let link = self.link(ifname)?.ok_or_else(gone)?;
        let setting = |name: &str| format!("ipv6/conf/{ifname}/{name}");
        if addresses.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
            sysctl::set(&setting("disable_ipv6"), "0")?;
        }
        // Nobody but the node tells a pod where to send to (CVE-2020-10749).
        sysctl::set_new(&setting("accept_ra"), "0")?;
        // The link-local address is the one that the spoof check expects, and is there at once.
        sysctl::set_new(&setting("addr_gen_mode"), "0")?;
        if !dad {
            sysctl::set_new(&setting("accept_dad"), "0")?;
        }
        let mut requests: Vec<_> =
            addresses.ips.iter().map(|ip| message::address(ifname, ip.address, link.index, dad)).collect();
        let up = message::up(message::link_at(link.index));
        requests.push(message::change(format!("set {ifname} up in the container"), up));
        requests.extend(routes.iter().map(|route| message::route(route.dst, route.gw, link.index)));
        self.execute(requests)?;
        Ok(link)
    }

    /// Waits until neighbours' questions for the addresses are heard: the kernel joins the group that they are sent to a little
    /// later than it has the address (`addrconf_dad_work`).
    ///
    /// The plugin is in the container's namespace.
    pub fn wait_for_groups(ifname: &str, addresses: &Addresses) -> Result<(), Error> {
        let groups: Vec<String> = addresses.ips.iter().filter_map(|ip| solicited_node(ip.address.addr())).collect();
        if groups.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        loop {
            let joined = fs::read_to_string(GROUPS).map_err(|cause| Error::file("read", GROUPS, cause))?;
            if has_all(&joined, ifname, &groups) {
                return Ok(());
            }
            if start.elapsed() > DAD {
                return Err(Error::Conflict(format!(
                    "the kernel does not join the groups {} of {ifname}",
                    groups.join(", ")
                )));
            }
            thread::sleep(GROUP_PAUSE);
        }
    }

    /// Waits until no address of the interface is tentative any more.
    ///
    /// # Errors
    /// If another machine has one of them, or that does not become known.
    pub fn wait_for_dad(&mut self, ifname: &str, index: u32) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let flags = self.ipv6_flags(index)?;
            if let Some((ip, _)) = flags.iter().find(|(_, flags)| flags.contains(AddressFlags::Dadfailed)) {
                return Err(Error::Conflict(format!("{ip}, which is to be that of {ifname}, is another's already")));
            }
            if !flags.iter().any(|(_, flags)| flags.contains(AddressFlags::Tentative)) {
                return Ok(());
            }
            if start.elapsed() > DAD {
                let seconds = DAD.as_secs();
                return Err(Error::Conflict(format!("addresses of {ifname} are still tentative after {seconds} s")));
            }
            thread::sleep(PAUSE);
        }
    }

    fn ipv6_flags(&mut self, index: u32) -> Result<Vec<(IpAddr, AddressFlags)>, Error> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet6;
        request.header.index = index;
        let found = self.dump("list addresses", RouteNetlinkMessage::GetAddress(request))?;
        let read = |message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            let (mut ip, mut flags) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Address(address) => ip = Some(*address),
                    AddressAttribute::Flags(found) => flags = Some(*found),
                    _ => {}
                }
            }
            (message.header.index == index).then_some((ip?, flags?))
        };
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// Whether the main table has a route.
    pub fn has_route(&mut self, route: &Route, index: u32) -> Result<bool, Error> {
        let family = if route.dst.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let found = self.dump("list the routes", message::routes(family))?;
        Ok(found.iter().any(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else { return false };
            let (dst, gw, oif) = message::read_route(message);
            let has_dst = match dst {
                Some(ip) => ip == route.dst.addr(),
                None => route.dst.addr().is_unspecified(),
            };
            has_dst
                && message.header.destination_prefix_length == route.dst.prefix_len()
                && (route.gw.is_none() || gw == route.gw)
                && oif == Some(index)
        }))
    }
}

/// The group that questions for an IPv6 address are sent to (RFC 4291, section 2.7.1), as the kernel writes it.
fn solicited_node(ip: IpAddr) -> Option<String> {
    let IpAddr::V6(ip) = ip else { return None };
    let [.., a, b, c] = ip.octets();
    Some(format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}"))
}

/// Whether an interface has joined these groups: each line has a number, the interface, and the group.
fn has_all(joined: &str, ifname: &str, groups: &[String]) -> bool {
    let mine = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        (words.next() == Some(ifname)).then(|| words.next().unwrap_or_default().to_owned())
    };
    let mine: Vec<String> = joined.lines().filter_map(mine).collect();
    groups.iter().all(|group| mine.contains(group))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::IpConfig;

    fn texts(asked: &[(&str, Option<&str>)], is_default_gateway: bool) -> Vec<String> {
        let ip = |address: &str, gateway: &str| IpConfig {
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
            interface: None,
        };
        let asked = asked.iter().map(|(dst, gw)| Route::new(dst.parse().unwrap(), gw.map(|gw| gw.parse().unwrap())));
        let addresses = Addresses {
            ips: vec![ip("10.1.0.2/24", "10.1.0.1"), ip("fd00::2/64", "fd00::1")],
            routes: asked.collect(),
            ..Addresses::default()
        };
        let text = |route: &Route| format!("{} {}", route.dst, route.gw.unwrap());
        routes(&addresses, is_default_gateway).iter().map(text).collect()
    }

    #[test]
    fn each_family_has_a_default_route() {
        assert_eq!(texts(&[], true), ["0.0.0.0/0 10.1.0.1", "::/0 fd00::1"]);
        assert!(texts(&[], false).is_empty());
    }

    #[test]
    fn what_is_asked_for_comes_first() {
        let asked = [("10.9.0.0/16", None), ("::/0", Some("fd00::9"))];
        assert_eq!(texts(&asked, true), ["10.9.0.0/16 10.1.0.1", "::/0 fd00::9", "0.0.0.0/0 10.1.0.1"]);
    }

    #[test]
    fn groups_are_those_of_the_interface() {
        let joined = "1    lo      ff020000000000000000000000000001     1 0000000C 0\n\
                      2    eth0    ff0200000000000000000001ff000002     1 00000004 0\n";
        let group = solicited_node("fd00:1::2".parse().unwrap()).unwrap();
        assert!(has_all(joined, "eth0", std::slice::from_ref(&group)));
        assert!(!has_all(joined, "lo", &[group]));
        assert_eq!(solicited_node("10.1.0.2".parse().unwrap()), None);
    }
}
