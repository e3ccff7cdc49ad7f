//! The node's own addresses, read over netlink where no flag gives them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use tollgate_model::name::IpFamily;

/// An address of one of the node's links, with the reach that a primary address must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LinkAddress {
    link: u32,
    ip: IpAddr,
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

/// Why the node's addresses could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket to read the node's addresses")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("cannot read the node's {what} over netlink")]
    Read {
        /// Addresses or routes.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        cause: rtnetlink::Error,
    },
}

/// The node's primary address of each family that it has: the one that its default route uses, else the first that others
/// can reach.
///
/// # Errors
/// When the kernel can't be asked.
pub async fn primary() -> Result<Vec<IpAddr>, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
    let connection = tokio::spawn(connection);
    let result = async {
        let addresses = addresses(&handle).await?;
        let mut routes = default_routes(&handle, RouteMessageBuilder::<Ipv4Addr>::new().build()).await?;
        routes.extend(default_routes(&handle, RouteMessageBuilder::<Ipv6Addr>::new().build()).await?);
        Ok(IpFamily::ALL.iter().filter_map(|family| choose(*family, &addresses, &routes)).collect())
    }
    .await;
    connection.abort();
    result
}

fn choose(family: IpFamily, addresses: &[LinkAddress], routes: &[DefaultRoute]) -> Option<IpAddr> {
    let mut addresses = addresses.iter().filter(|address| IpFamily::from(address.ip) == family);
    let route = routes.iter().filter(|route| route.family == family).min_by_key(|route| route.metric);
    match route {
        Some(DefaultRoute { preferred_source: Some(ip), .. }) => Some(*ip),
        Some(route) => {
            let first = addresses.clone().next();
            addresses.find(|address| address.link == route.link).or(first).map(|address| address.ip)
        }
        None => addresses.next().map(|address| address.ip),
    }
}

async fn addresses(handle: &Handle) -> Result<Vec<LinkAddress>, Error> {
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|cause| Error::Read { what: "addresses", cause })?;
    Ok(messages.iter().filter_map(link_address).collect())
}

fn link_address(message: &AddressMessage) -> Option<LinkAddress> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    // On a point-to-point link IFA_ADDRESS is the other end's; IFA_LOCAL, where it is given, is always our own (rtnetlink(7)).
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let ip = local.or(address)?;
    (!ip.is_loopback()).then_some(LinkAddress { link: message.header.index, ip })
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
    use netlink_packet_route::AddressFamily;
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
        LinkAddress { link, ip: ip.parse().unwrap() }
    }

    fn route(link: u32, metric: u32) -> DefaultRoute {
        DefaultRoute { family: IpFamily::V4, link, metric, preferred_source: None }
    }

    #[test]
    fn the_primary_address_is_that_of_the_best_default_route() {
        let addresses = [address(2, "192.0.2.1"), address(3, "198.51.100.1"), address(3, "2001:db8::1")];
        let chosen = choose(IpFamily::V4, &addresses, &[route(2, 100), route(3, 50)]);
        assert_eq!(chosen, Some("198.51.100.1".parse().unwrap()));
    }

    #[test]
    fn without_a_default_route_the_first_address_is_taken() {
        let addresses = [address(2, "192.0.2.1"), address(3, "2001:db8::1")];
        assert_eq!(choose(IpFamily::V6, &addresses, &[route(2, 0)]), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(choose(IpFamily::V4, &[], &[route(2, 0)]), None);
    }

    #[test]
    fn a_route_s_preferred_source_wins() {
        let preferred = DefaultRoute { preferred_source: Some("192.0.2.9".parse().unwrap()), ..route(2, 0) };
        let chosen = choose(IpFamily::V4, &[address(2, "192.0.2.1")], &[preferred]);
        assert_eq!(chosen, Some("192.0.2.9".parse().unwrap()));
    }
}
