//! Towards what nothing is masqueraded: pods of the cluster, and what is not routed at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use tollgate_nftables::IpFamily;
use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::element::Element;

/// Ranges of one family, without overlap and gaps of nothing, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceptions {
    family: IpFamily,
    ranges: Vec<(u128, u128)>,
}

impl Exceptions {
    /// Those of a family among `nets`, and multicast.
    pub fn new(family: IpFamily, nets: &[IpNet]) -> Self {
        let multicast: IpNet = match family {
            IpFamily::V4 => IpNet::new_assert(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
            IpFamily::V6 => IpNet::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
        };
        let mine = nets.iter().filter(|net| net.addr().is_ipv4() == (family == IpFamily::V4)).chain([&multicast]);
        let mut sorted: Vec<(u128, u128)> = mine.map(|net| (number(net.network()), number(net.broadcast()))).collect();
        sorted.sort_unstable();
        let mut ranges: Vec<(u128, u128)> = Vec::new();
        for (first, last) in sorted {
            match ranges.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        Self { family, ranges }
    }

    /// The name of their set.
    pub fn set_name(&self) -> String {
        format!("except-{}", self.hash())
    }

    /// The name of the chain that masquerades except towards them.
    pub fn chain_name(&self) -> String {
        format!("masquerade-{}", self.hash())
    }

    fn hash(&self) -> String {
        let hash = Sha256::digest(format!("{:?}", self.ranges));
        hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The set's elements: where each range begins and where it is over; one that goes on to the last address never is.
    pub fn elements(&self) -> impl Iterator<Item = Element> + '_ {
        let end = |last: u128| (last < self.maximum()).then(|| Element::new(self.bytes(last + 1)).end());
        self.ranges
            .iter()
            .flat_map(move |(first, last)| std::iter::once(Element::new(self.bytes(*first))).chain(end(*last)))
    }

    fn maximum(&self) -> u128 {
        match self.family {
            IpFamily::V4 => u32::MAX.into(),
            IpFamily::V6 => u128::MAX,
        }
    }

    fn bytes(&self, number: u128) -> Bytes {
        let bytes = number.to_be_bytes();
        match self.family {
            IpFamily::V4 => Bytes::new(&bytes[12..]),
            IpFamily::V6 => Bytes::new(&bytes),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exceptions(nets: &[&str]) -> Exceptions {
        Exceptions::new(IpFamily::V4, &nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn ranges_are_put_together() {
        let texts =
            |nets: &[&str]| exceptions(nets).ranges.iter().map(|(a, b)| format!("{a:x}-{b:x}")).collect::<Vec<_>>();
        assert_eq!(texts(&["10.1.1.0/24", "10.1.0.0/24", "fd00::/64"]), ["a010000-a0101ff", "e0000000-efffffff"]);
        assert_eq!(texts(&["10.1.0.0/16", "10.1.7.0/24", "240.0.0.0/4"]), ["a010000-a01ffff", "e0000000-ffffffff"]);
    }

    #[test]
    fn the_last_range_of_all_has_no_end() {
        let all = exceptions(&["240.0.0.0/4"]);
        let ends: Vec<bool> = all.elements().map(|element| element.is_end).collect();
        assert_eq!(ends, [false]);
    }

    #[test]
    fn names_are_by_what_they_are_of() {
        assert_eq!(exceptions(&["10.1.0.0/24", "10.2.0.0/24"]), exceptions(&["10.2.0.0/24", "10.1.0.0/24"]));
        assert_ne!(exceptions(&["10.1.0.0/24"]).chain_name(), exceptions(&["10.2.0.0/24"]).chain_name());
    }
}
