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

use tollgate_model::name::IpFamily;

pub(crate) mod attribute;
pub(crate) mod batch;
pub(crate) mod chain;
pub(crate) mod element;
pub(crate) mod expression;
pub(crate) mod rule;
pub(crate) mod set;
pub(crate) mod socket;
pub(crate) mod term;

#[cfg(test)]
pub(crate) mod tests;

/// A table's family and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) family: IpFamily,
    pub(crate) name: &'static str,
}

/// As nft names it.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            IpFamily::V4 => "ip",
            IpFamily::V6 => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}

/// For what belongs to no family.
const NFPROTO_UNSPEC: u8 = 0;
/// Tables that are of both families.
pub(crate) const NFPROTO_INET: u8 = 1;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, which are `AF_INET` and `AF_INET6`.
pub(crate) fn nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}
