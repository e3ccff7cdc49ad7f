//! What the kernel holds of addresses, and which of it are the node's. `order` is pure, the rest asks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use tollgate_model::name::IpFamily;
use tollgate_model::node::NodeAddresses;

use super::Error;

/// Devices that hold Services' addresses, not the node's: the one of our own IPVS mode, and that of kube-proxy's, which a
/// node may still have that was switched over from it.
const SERVICE_DEVICES: [&str; 2] = ["tollgate-ipvs", "kube-ipvs0"];

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX` in include/net/flow.h).
const LOOPBACK: u32 = 1;

const ENODEV: i32 = 19;

/// An address of one of the node's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LinkAddress {
    link: u32,
    ip: IpAddr,
    rank: Rank,
    /// When it came, in hundredths of a second since the machine started; 0 for IPv4.
    created: u32,
}

/// How fit an address is to be a primary one, the fittest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Others can reach it, and will.
    Lasting,
    /// Others can reach it, but it need not stay: it is deprecated or temporary (RFC 4862, RFC 8981), or on the loopback
    /// device, which is where addresses are kept that move from node to node.
    Passing,
    /// Only the link or the node reaches it.
    Near,
}

/// A default route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DefaultRoute {
    family: IpFamily,
    link: u32,
    /// Lower wins.
    metric: u32,
    preferred_source: Option<IpAddr>,
}

/// The node's addresses, the primary one of each family first: the one that its default route uses, else the first that
/// others can reach.
pub(super) async fn addresses(handle: &Handle) -> Result<NodeAddresses, Error> {
    let mut left_out = Vec::new();
    for device in SERVICE_DEVICES {
        left_out.extend(index(handle, device).await?);
    }
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|cause| Error::Read { what: "addresses", cause })?;
    let addresses: Vec<_> =
        messages.iter().filter_map(link_address).filter(|address| !left_out.contains(&address.link)).collect();
    let mut routes = default_routes(handle, RouteMessageBuilder::<Ipv4Addr>::new().build()).await?;
    routes.extend(default_routes(handle, RouteMessageBuilder::<Ipv6Addr>::new().build()).await?);
    Ok(NodeAddresses { addresses: order(addresses, &routes) })
}

/// The index of a device, if it is there.
async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, Error> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(message) => Ok(message.map(|message| message.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -ENODEV => Ok(None),
        Err(cause) => Err(Error::Read { what: "links", cause }),
    }
}

/// Each address once, the primary ones first, then by rank, by link, and the oldest first: an address that comes must not
/// take the place of another. The kernel lists IPv4 addresses like that, but IPv6 ones the newest first.
fn order(addresses: Vec<LinkAddress>, routes: &[DefaultRoute]) -> Vec<IpAddr> {
    let (mut addresses, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.ip.is_ipv4());
    addresses.extend(v6.into_iter().rev());
    addresses.sort_by_key(|address| (address.rank, address.link, address.created));
    let primary = IpFamily::ALL.into_iter().filter_map(|family| choose(family, &addresses, routes));
    let mut seen = BTreeSet::new();
    let all: Vec<_> = primary.chain(addresses.iter().map(|address| address.ip)).collect();
    all.into_iter().filter(|ip| seen.insert(*ip)).collect()
}

/// A route's preferred source counts only where the node has it; the kernel removes such a route with the address, but not at
/// the same moment.
fn choose(family: IpFamily, addresses: &[LinkAddress], routes: &[DefaultRoute]) -> Option<IpAddr> {
    let of_family = addresses.iter().filter(|address| IpFamily::from(address.ip) == family);
    let fit = || of_family.clone().filter(|address| address.rank < Rank::Near);
    let route = routes.iter().filter(|route| route.family == family).min_by_key(|route| route.metric);
    let preferred = route.and_then(|route| route.preferred_source);
    let preferred = preferred.filter(|ip| of_family.clone().any(|address| address.ip == *ip));
    let on_link = route.and_then(|route| fit().find(|address| address.link == route.link));
    preferred.or_else(|| Some(on_link.or_else(|| fit().next())?.ip))
}

/// What the kernel itself does not take packets for is left out: an IPv6 address that is not known to be unique yet, or is
/// known not to be. The kernel tells of it again when it is.
fn link_address(message: &AddressMessage) -> Option<LinkAddress> {
    let (mut local, mut address, mut flags, mut created) = (None, None, AddressFlags::empty(), 0);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end's; IFA_LOCAL, where it is given, is always our own
            // (rtnetlink(7)).
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            // All of them; the header has room for the first eight alone.
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::CacheInfo(info) => created = info.cstamp,
            _ => {}
        }
    }
    let is_in_doubt = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    if is_in_doubt || flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    let ip = local.or(address)?;
    // IFA_F_TEMPORARY is IFA_F_SECONDARY by another name (linux/if_addr.h), and an IPv4 address that is secondary lasts.
    let is_temporary = ip.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let link = message.header.index;
    let passes = is_temporary || flags.contains(AddressFlags::Deprecated) || link == LOOPBACK;
    let rank = match message.header.scope {
        AddressScope::Universe if passes => Rank::Passing,
        AddressScope::Universe => Rank::Lasting,
        _ => Rank::Near,
    };
    let created = if ip.is_ipv6() { created } else { 0 };
    (!ip.is_loopback()).then_some(LinkAddress { link, ip, rank, created })
}

async fn default_routes(handle: &Handle, filter: RouteMessage) -> Result<Vec<DefaultRoute>, Error> {
    let messages: Vec<RouteMessage> = handle
        .route()
        .get(filter)
        .execute()
        .try_collect()
        .await
        .map_err(|cause| Error::Read { what: "routes", cause })?;
    Ok(messages.iter().filter_map(default_route).collect())
}

fn default_route(message: &RouteMessage) -> Option<DefaultRoute> {
    if message.header.destination_prefix_length != 0 || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let family = match message.header.address_family {
        AddressFamily::Inet => IpFamily::V4,
        AddressFamily::Inet6 => IpFamily::V6,
        _ => return None,
    };
    let (mut link, mut metric, mut preferred_source) = (None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(hops) => link = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => preferred_source = Some(IpAddr::V4(*ip)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => preferred_source = Some(IpAddr::V6(*ip)),
            _ => {}
        }
    }
    Some(DefaultRoute { family, link: link?, metric, preferred_source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(link: u32, ip: &str) -> LinkAddress {
        LinkAddress { link, ip: ip.parse().unwrap(), rank: Rank::Lasting, created: 0 }
    }

    fn route(link: u32, metric: u32) -> DefaultRoute {
        DefaultRoute { family: IpFamily::V4, link, metric, preferred_source: None }
    }

    fn ordered(addresses: &[LinkAddress], routes: &[DefaultRoute]) -> Vec<String> {
        order(addresses.to_vec(), routes).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_primary_address_is_that_of_the_best_default_route() {
        let addresses = [address(2, "192.0.2.1"), address(3, "198.51.100.1"), address(3, "2001:db8::1")];
        let expected = ["198.51.100.1", "2001:db8::1", "192.0.2.1"];
        assert_eq!(ordered(&addresses, &[route(2, 100), route(3, 50)]), expected);
    }

    #[test]
    fn without_a_default_route_the_first_address_is_taken() {
        let addresses = [address(2, "192.0.2.1"), address(3, "2001:db8::1"), address(3, "192.0.2.2")];
        assert_eq!(ordered(&addresses, &[]), ["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
        assert_eq!(ordered(&addresses, &[route(7, 0)]), ["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
        assert_eq!(ordered(&[], &[route(2, 0)]), [""; 0]);
    }

    #[test]
    fn a_route_s_preferred_source_wins_where_the_node_has_it() {
        let preferring = |ip: &str| DefaultRoute { preferred_source: Some(ip.parse().unwrap()), ..route(2, 0) };
        let addresses = [address(2, "192.0.2.1"), address(3, "192.0.2.9")];
        assert_eq!(ordered(&addresses, &[preferring("192.0.2.9")]), ["192.0.2.9", "192.0.2.1"]);
        assert_eq!(ordered(&addresses, &[preferring("192.0.2.8")]), ["192.0.2.1", "192.0.2.9"]);
    }

    #[test]
    fn addresses_that_pass_or_reach_nobody_are_primary_last() {
        let ranked = |ip: &str, rank| LinkAddress { rank, ..address(2, ip) };
        let addresses = [
            ranked("169.254.1.1", Rank::Near),
            ranked("2001:db8::1", Rank::Passing),
            ranked("2001:db8::2", Rank::Lasting),
            ranked("fe80::1", Rank::Near),
        ];
        assert_eq!(ordered(&addresses, &[]), ["2001:db8::2", "2001:db8::1", "169.254.1.1", "fe80::1"]);
        assert_eq!(ordered(&addresses[1..2], &[]), ["2001:db8::1"]);
    }

    #[test]
    fn the_oldest_address_is_the_primary_one() {
        let [newest, middle, oldest] = [("::3", 7), ("::2", 5), ("::1", 5)]
            .map(|(host, created)| LinkAddress { created, ..address(2, &format!("2001:db8{host}")) });
        assert_eq!(ordered(&[newest, middle, oldest], &[]), ["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
        assert_eq!(ordered(&[address(2, "192.0.2.1"), address(2, "192.0.2.2")], &[]), ["192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn an_address_on_two_links_counts_once() {
        assert_eq!(ordered(&[address(2, "192.0.2.1"), address(3, "192.0.2.1")], &[]), ["192.0.2.1"]);
    }
}
