//! Who has which address in a lab. Every lab has the same: their namespaces do not see each other.
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | node N on the fabric | `192.0.2.N/24` | `2001:db8::N/64` |
//! | outside host N | `192.0.2.(100+N)` | `2001:db8::(100+N)` |
//! | control plane, gateway | `192.0.2.250`, `.254` | `2001:db8::250`, `::254` |
//! | bridge of node N, its pods | `10.244.N.1/24`, from `.10` | `fd00:244:0:N::1/64`, from `::10` |
//! | second address of node N, on `lo` | `172.31.0.N/32` | `fd00:31::N/128` |
//! | Services | `10.96.0.0/16` | `fd00:96::/112` |
//! | external and load-balancer IPs | `198.18.0.0/16` | `2001:db8:18::/112` |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The word that Kubernetes has for it in `ipFamilies` and `addressType`.
    pub fn kubernetes_name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualStack {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl DualStack {
    /// The address of one family.
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub(crate) fn nets(&self, v4_prefix: u8, v6_prefix: u8) -> [IpNet; 2] {
        [(self.of(Family::V4), v4_prefix), (self.of(Family::V6), v6_prefix)]
            .map(|(address, prefix)| IpNet::new(address, prefix).expect("the lab's prefixes are in range"))
    }
}

impl fmt::Display for DualStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.v4, self.v6)
    }
}

/// The Service addresses of a family.
pub fn service_cidr(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16).into(),
        Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), 112).into(),
    }
}

/// Where a family's external IPs and load-balancer IPs are taken from.
pub fn external_cidr(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16).into(),
        Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0), 112).into(),
    }
}

/// The pod addresses of a family, of all nodes together.
pub fn cluster_cidr(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16).into(),
        Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0), 48).into(),
    }
}

/// The pod addresses of one node, of a family.
pub fn pod_cidr(node: u8, family: Family) -> IpNet {
    let bridge = bridge(node);
    match family {
        Family::V4 => Ipv4Net::new_assert(bridge.v4, 24).trunc().into(),
        Family::V6 => Ipv6Net::new_assert(bridge.v6, 64).trunc().into(),
    }
}

/// Both families' networks as the binaries' flags want them.
pub(crate) fn flag(cidr: impl Fn(Family) -> IpNet) -> String {
    Family::ALL.map(|family| cidr(family).to_string()).join(",")
}

/// The gateway on the fabric, which knows every node's pods.
pub const GATEWAY: DualStack = fabric(254);
pub(crate) const CONTROL_PLANE: DualStack = fabric(250);

pub(crate) const fn node(number: u8) -> DualStack {
    fabric(number)
}

/// An address of a node that is not its primary one.
pub(crate) const fn second(node: u8) -> DualStack {
    DualStack { v4: Ipv4Addr::new(172, 31, 0, node), v6: Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, reads_as(node)) }
}

pub(crate) const fn outside(number: u8) -> DualStack {
    fabric(100 + number)
}

pub(crate) const fn bridge(node: u8) -> DualStack {
    pod_address(node, 1)
}

pub(crate) const fn pod(node: u8, number: u8) -> DualStack {
    pod_address(node, 10 + number)
}

const fn fabric(last: u8) -> DualStack {
    DualStack { v4: Ipv4Addr::new(192, 0, 2, last), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, reads_as(last)) }
}

const fn pod_address(node: u8, last: u8) -> DualStack {
    DualStack {
        v4: Ipv4Addr::new(10, 244, node, last),
        v6: Ipv6Addr::new(0xfd00, 0x244, 0, reads_as(node), 0, 0, 0, reads_as(last)),
    }
}

/// The number whose hexadecimal digits are the decimal digits of `n`, so that both families read alike.
const fn reads_as(n: u8) -> u16 {
    let n = n as u16;
    ((n / 100) << 8) | ((n / 10 % 10) << 4) | (n % 10)
}
