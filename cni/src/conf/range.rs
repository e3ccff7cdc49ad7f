//! Ranges of addresses that the built-in IPAM gives out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::Error;

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet that they are in, without bits for the host.
    pub subnet: IpNet,
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
    /// The gateway, which is never given out.
    pub gateway: IpAddr,
}

/// Ranges of one family: a container gets an address from one of them.
pub type RangeSet = Vec<Range>;

/// A range, as a configuration has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawRange {
    pub(super) subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
}

impl Range {
    /// All of a subnet, with its first address as the gateway.
    pub fn of_subnet(subnet: IpNet, field: &str) -> Result<Self, Error> {
        if subnet.trunc() != subnet {
            let problem = format!("{subnet} has bits for the host; the subnet is {}", subnet.trunc());
            return Err(Error::field(field, problem));
        }
        // The network's own address and the broadcast address, a gateway, and a container.
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(Error::field(field, format!("{subnet} is too small for a gateway and a container")));
        }
        if subnet.addr().is_multicast() || subnet.addr().is_loopback() {
            return Err(Error::field(field, format!("no container can have an address of {subnet}")));
        }
        let first = above(subnet.network());
        let last = match subnet {
            IpNet::V4(subnet) => IpAddr::V4(Ipv4Addr::from(u32::from(subnet.broadcast()) - 1)),
            IpNet::V6(subnet) => IpAddr::V6(subnet.broadcast()),
        };
        Ok(Self { subnet, first, last, gateway: first })
    }

    pub(super) fn read(raw: &RawRange, place: &str) -> Result<Self, Error> {
        let field = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
        let Some(text) = &raw.subnet else { return Err(Error::field(field("subnet"), "is missing")) };
        let subnet = text
            .parse()
            .map_err(|_| Error::field(field("subnet"), format!("{text:?} is no subnet, as 10.1.0.0/16 is")))?;
        let mut range = Self::of_subnet(subnet, &field("subnet"))?;
        let address = |name: &str, text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            let ip: IpAddr = text.parse().map_err(|_| Error::field(field(name), format!("{text:?} is no address")))?;
            let is_broadcast = subnet.addr().is_ipv4() && ip == subnet.broadcast();
            let is_usable = subnet.contains(&ip) && ip != subnet.network() && !is_broadcast;
            is_usable
                .then_some(Some(ip))
                .ok_or_else(|| Error::field(field(name), format!("{ip} is no address of {subnet}")))
        };
        if let Some(first) = address("rangeStart", &raw.range_start)? {
            range.first = first;
        }
        if let Some(last) = address("rangeEnd", &raw.range_end)? {
            range.last = last;
        }
        if let Some(gateway) = address("gateway", &raw.gateway)? {
            range.gateway = gateway;
        }
        if range.first > range.last {
            return Err(Error::field(field("rangeEnd"), format!("{} comes before {}", range.last, range.first)));
        }
        Ok(range)
    }

    /// Whether an address may be given out.
    pub fn has(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4()
            && (self.first..=self.last).contains(&address)
            && address != self.gateway
    }

    /// Its addresses in order, without the gateway.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let next = |ip: &IpAddr| (*ip < self.last).then(|| above(*ip));
        std::iter::successors(Some(self.first), next).filter(|ip| *ip != self.gateway)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }
}

fn above(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).saturating_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).saturating_add(1)).into(),
    }
}

/// Sets of ranges that are of one family each and don't overlap.
pub(super) fn check_sets(sets: &[RangeSet], field: &str) -> Result<(), Error> {
    if sets.is_empty() || sets.iter().any(Vec::is_empty) {
        return Err(Error::field(field, "has a set without ranges"));
    }
    for (index, set) in sets.iter().enumerate() {
        if set.iter().any(|range| range.first.is_ipv4() != set[0].first.is_ipv4()) {
            let problem = "IPv4 and IPv6 in one set: a container would get one or the other; make it two sets for both";
            return Err(Error::field(format!("{field}[{index}]"), problem));
        }
    }
    let all: Vec<&Range> = sets.iter().flatten().collect();
    for (index, range) in all.iter().enumerate() {
        if let Some(other) = all[index + 1..].iter().find(|other| range.overlaps(other)) {
            let problem = format!("{}-{} and {}-{} overlap", range.first, range.last, other.first, other.last);
            return Err(Error::field(field, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::of_subnet(subnet.parse().unwrap(), "subnet").unwrap()
    }

    #[test]
    fn a_subnet_s_range_leaves_out_what_is_no_container_s() {
        let found: Vec<String> = range("10.1.0.0/29").addresses().map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        let found: Vec<String> = range("fd00::/126").addresses().map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["fd00::2", "fd00::3"]);
        assert!(range("fd00::/64").has("fd00::ffff".parse().unwrap()));
        assert!(!range("fd00::/64").has("fd00::1".parse().unwrap()));
        assert!(!range("10.0.0.0/8").has("fd00::2".parse().unwrap()));
    }

    #[test]
    fn ranges_at_the_end_of_all_addresses_end() {
        assert_eq!(range("255.255.255.252/30").addresses().count(), 1);
        assert_eq!(range("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126").addresses().count(), 2);
    }
}
