//! nf_tables over nfnetlink: typed tables, chains, rules, sets and elements, and the one socket that they go through.
//!
//! ```text
//! term ──▶ rule ──▶ expression ─┐
//!   └────▶ set, element, chain ─┴─▶ batch ──▶ socket ──▶ kernel      one message list, one transaction
//!            ▲        what is read equals what was written ◀──┘ dump
//! ```
//!
//! - `attribute`: netlink attributes, without an allocation for each.
//! - `term`, `rule`: what nft's words mean in expressions.
//! - `expression`: the kernel's virtual machine.
//! - `set`, `element`, `chain`: all else that a table has.
//! - `batch`: a transaction. `socket`: sends it, and reads what is there.
//!
//! netlink-packet-netfilter has nftables messages too, but lacks half of the expressions (nat, masq, reject, ct, fib,
//! numgen, dynset, byteorder) and wants several allocations for each element. Of what nft does, only what its
//! `--debug=netlink,mnl` shows is followed here.

use std::fmt;

pub mod attribute;
pub mod batch;
pub mod chain;
pub mod element;
pub mod expression;
pub mod rule;
pub mod set;
pub mod socket;
pub mod term;

#[cfg(test)]
mod tests;

/// A table's family and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// Frames that a bridge forwards or takes.
    Bridge,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// As nft names it.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        };
        write!(f, "{family} {}", self.name)
    }
}

impl From<IpFamily> for Family {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::Ip,
            IpFamily::V6 => Self::Ip6,
        }
    }
}

impl Family {
    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`, `NFPROTO_INET` and `NFPROTO_BRIDGE`.
    fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }
}

impl Protocol {
    /// Its number in IP headers.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
