//! Addresses, and which of them are frontends' at all.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The key of [`ADDRESSES`](crate::map::ADDRESSES): an address of either family, IPv4 as IPv4-mapped IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The 16 bytes of the address in their order, read as four words of memory: each is in network byte order, as the hooks
    /// give them.
    pub words: [u32; 4],
}

/// An address and a port: a frontend, or an endpoint.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPort {
    /// The address.
    pub address: Address,
    /// The port, in network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// What an address is to Services.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressValue {
    /// Of [`address_flags`].
    pub flags: u32,
    /// Under which Service port refusals of unknown ports are counted: for a ClusterIP, the id of any of its Service's ports;
    /// 0 where there is none.
    pub service_id: u32,
}

/// Flags of [`AddressValue::flags`].
pub mod address_flags {
    /// It has entries of its own in `SERVICES`: a ClusterIP, an external IP or a load-balancer IP.
    pub const VIP: u32 = 1 << 0;
    /// It is a node address on which NodePorts answer: `SERVICES` has them under the address zero.
    pub const NODE_PORT: u32 = 1 << 1;
    /// A port or protocol that `SERVICES` does not have is refused (`unknown-port-on-vip`); without it, such traffic is
    /// left alone.
    pub const REFUSE_UNKNOWN: u32 = 1 << 2;
}

// === impl Address ===

impl Address {
    /// Zero: the address under which `SERVICES` has NodePorts, and what an IPv6 socket binds to for all addresses.
    pub const ZERO: Self = Self { words: [0; 4] };

    /// The third word of every IPv4-mapped address, in network byte order.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// An IPv4 address as the hooks give it, in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(ip: u32) -> Self {
        Self { words: [0, 0, Self::MAPPED, ip] }
    }

    /// The IPv4 address that it maps, in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn to_v4(self) -> Option<u32> {
        match self.words {
            [0, 0, Self::MAPPED, ip] => Some(ip),
            _ => None,
        }
    }

    /// Whether it stands for every address, in either family: what sockets bind to by default.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(self) -> bool {
        matches!(self.words, [0, 0, 0, 0] | [0, 0, Self::MAPPED, 0])
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let (words, _) = octets.as_chunks();
        Self { words: core::array::from_fn(|index| u32::from_ne_bytes(words[index])) }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        let (words, _) = octets.as_chunks_mut();
        for (octets, word) in words.iter_mut().zip(address.words) {
            *octets = word.to_ne_bytes();
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}

// === impl AddressPort ===

impl AddressPort {
    /// An address and a port in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: u16) -> Self {
        Self { address, port, pad: 0 }
    }
}

impl From<SocketAddr> for AddressPort {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().into(), address.port().to_be())
    }
}

impl From<AddressPort> for SocketAddr {
    fn from(it: AddressPort) -> Self {
        Self::new(it.address.into(), u16::from_be(it.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_go_there_and_back() {
        for text in ["10.96.0.10", "0.0.0.0", "255.255.255.255", "fd00:96::a", "::", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip, "{text}");
        }
    }

    #[test]
    fn an_ipv4_address_is_the_same_from_a_hook_and_from_the_daemon() {
        let from_hook = u32::from_ne_bytes([10, 96, 0, 10]);
        let address = Address::from(IpAddr::from([10, 96, 0, 10]));
        assert_eq!(Address::from_v4(from_hook), address);
        assert_eq!(address.to_v4(), Some(from_hook));
        assert_eq!(Address::from("fd00::1".parse::<IpAddr>().unwrap()).to_v4(), None);
    }

    #[test]
    fn both_families_have_an_address_for_all() {
        for (text, is) in [("0.0.0.0", true), ("::", true), ("::1", false), ("0.0.0.1", false)] {
            assert_eq!(Address::from(text.parse::<IpAddr>().unwrap()).is_unspecified(), is, "{text}");
        }
    }
}
