//! The ranges that ClusterIPs come from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::pool::{Pool, static_part};

/// One range of IPv4 or IPv6 addresses, or one of each. The first is the family that a Service gets unless it asks for
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidrs {
    primary: IpNet,
    secondary: Option<IpNet>,
}

/// Text that does not give the ranges.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCidrs {
    /// Not an address and prefix length.
    #[error("{given:?} is not a CIDR such as 10.96.0.0/16")]
    Syntax {
        /// The part that can't be read.
        given: String,
    },
    /// Address bits are set after the prefix.
    #[error("{given} has bits set after its prefix; did you mean {meant}?")]
    HostBits {
        /// As given.
        given: IpNet,
        /// Without those bits.
        meant: IpNet,
    },
    /// No room for Services.
    #[error("{given} is too small: it must hold at least two Services")]
    TooSmall {
        /// As given.
        given: IpNet,
    },
    /// Two ranges of one family, or more than two.
    #[error("give one IPv4 range, one IPv6 range, or one of each")]
    Families,
}

/// An IP family, named as Services name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum IpFamily {
    V4,
    V6,
}

// === impl ServiceCidrs ===

impl ServiceCidrs {
    /// The families, the preferred one first.
    pub(crate) fn families(&self) -> impl Iterator<Item = IpFamily> {
        self.nets().map(|net| IpFamily::of(net.addr()))
    }

    /// The range of a family.
    pub(crate) fn net(&self, family: IpFamily) -> Option<IpNet> {
        self.nets().find(|net| IpFamily::of(net.addr()) == family)
    }

    /// A pool of a family's addresses.
    pub(crate) fn pool(&self, family: IpFamily, seed: u128) -> Option<Pool> {
        let net = self.net(family)?;
        let (first, last) = usable(net)?;
        // The whole range counts, with the addresses that are not handed out.
        let size = 1_u128.checked_shl((net.max_prefix_len() - net.prefix_len()).into()).unwrap_or(u128::MAX);
        Some(Pool::new(first, last, static_part(size, 16, 256), seed))
    }

    fn nets(&self) -> impl Iterator<Item = IpNet> {
        [Some(self.primary), self.secondary].into_iter().flatten()
    }
}

/// 10.96.0.0/16, as kubeadm does, and a range of like form for IPv6.
impl Default for ServiceCidrs {
    fn default() -> Self {
        let primary = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
        let secondary = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), 112);
        ServiceCidrs { primary: primary.into(), secondary: Some(secondary.into()) }
    }
}

impl FromStr for ServiceCidrs {
    type Err = InvalidCidrs;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut nets = Vec::new();
        for part in text.split(',').map(str::trim) {
            let net = parse_cidr(part)?;
            if usable(net).is_none_or(|(first, last)| first == last) {
                return Err(InvalidCidrs::TooSmall { given: net });
            }
            nets.push(net);
        }
        match nets[..] {
            [primary] => Ok(ServiceCidrs { primary, secondary: None }),
            [primary, secondary] if IpFamily::of(primary.addr()) != IpFamily::of(secondary.addr()) => {
                Ok(ServiceCidrs { primary, secondary: Some(secondary) })
            }
            _ => Err(InvalidCidrs::Families),
        }
    }
}

impl fmt::Display for ServiceCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.primary)?;
        self.secondary.map_or(Ok(()), |secondary| write!(f, ",{secondary}"))
    }
}

// === impl IpFamily ===

impl IpFamily {
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            IpFamily::V4 => IpFamily::V6,
            IpFamily::V6 => IpFamily::V4,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        }
    }

    /// The address that a pool's number stands for.
    pub(crate) fn address(self, number: u128) -> Option<IpAddr> {
        match self {
            IpFamily::V4 => Some(IpAddr::V4(u32::try_from(number).ok()?.into())),
            IpFamily::V6 => Some(IpAddr::V6(number.into())),
        }
    }
}

impl FromStr for IpFamily {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [IpFamily::V4, IpFamily::V6].into_iter().find(|family| family.name() == text).ok_or(())
    }
}

/// A range without address bits after its prefix.
pub(crate) fn parse_cidr(text: &str) -> Result<IpNet, InvalidCidrs> {
    let net: IpNet = text.parse().map_err(|_| InvalidCidrs::Syntax { given: text.to_owned() })?;
    if net.trunc() == net { Ok(net) } else { Err(InvalidCidrs::HostBits { given: net, meant: net.trunc() }) }
}

/// The number that stands for an address in its family's pool.
pub(crate) fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// Without the network's own address and, for IPv4, the broadcast address.
fn usable(net: IpNet) -> Option<(u128, u128)> {
    let first = number_of(net.network()).checked_add(1)?;
    let last = match net {
        IpNet::V4(_) => number_of(net.broadcast()).checked_sub(1)?,
        IpNet::V6(_) => number_of(net.broadcast()),
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused_with_the_reason() {
        for (text, expected) in [
            ("10.96.0.0/16", "10.96.0.0/16"),
            ("10.96.0.0/16,fd00:96::/112", "10.96.0.0/16,fd00:96::/112"),
            ("fd00:96::/112, 10.96.0.0/16", "fd00:96::/112,10.96.0.0/16"),
            ("10.96.0.1/16", "10.96.0.1/16 has bits set after its prefix; did you mean 10.96.0.0/16?"),
            ("10.96.0.0", "\"10.96.0.0\" is not a CIDR such as 10.96.0.0/16"),
            ("", "\"\" is not a CIDR such as 10.96.0.0/16"),
            ("10.96.0.0/31", "10.96.0.0/31 is too small: it must hold at least two Services"),
            ("10.96.0.0/32", "10.96.0.0/32 is too small: it must hold at least two Services"),
            ("10.0.0.0/16,10.1.0.0/16", "give one IPv4 range, one IPv6 range, or one of each"),
        ] {
            let shown = match text.parse::<ServiceCidrs>() {
                Ok(cidrs) => cidrs.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{text}");
        }
    }

    #[test]
    fn network_and_broadcast_addresses_are_not_handed_out() {
        let cidrs: ServiceCidrs = "10.0.0.0/30,fd00::/126".parse().unwrap();
        let pool = cidrs.pool(IpFamily::V4, 0).unwrap();
        let inside: Vec<bool> = (0..4).map(|last| pool.contains(number_of([10, 0, 0, last].into()))).collect();
        assert_eq!(inside, [false, true, true, false]);
        let pool = cidrs.pool(IpFamily::V6, 0).unwrap();
        assert!(!pool.contains(number_of("fd00::".parse().unwrap())));
        assert!(pool.contains(number_of("fd00::3".parse().unwrap())));
        assert!(!pool.contains(number_of("fd00::4".parse().unwrap())));
    }

    #[test]
    fn the_first_part_of_a_range_is_left_to_those_who_ask() {
        // The sizes and bands that KEP-3070 gives as examples, and the smallest ranges.
        for (cidr, first_dynamic) in [
            ("10.0.0.0/28", "10.0.0.1"),
            ("10.0.0.0/27", "10.0.0.17"),
            ("10.0.0.0/24", "10.0.0.17"),
            ("10.0.0.0/20", "10.0.1.1"),
            ("10.0.0.0/16", "10.0.1.1"),
            ("fd00::/112", "fd00::101"),
            ("fd00::/64", "fd00::101"),
            ("::/0", "::101"),
        ] {
            let cidrs: ServiceCidrs = cidr.parse().unwrap();
            let family = cidrs.families().next().unwrap();
            let pool = cidrs.pool(family, 0).unwrap();
            assert_eq!(family.address(pool.first_dynamic()), first_dynamic.parse().ok(), "{cidr}");
        }
    }
}
