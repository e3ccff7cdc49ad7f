//! The kernel's words for what this backend makes: virtual services, members of sets, links and routes.
//!
//! netlink-packet-ipvs (0.0.1) knows no fwmark services and no counters, and builds on releases of the other crates that this
//! workspace has left behind; no crate has ip_set's messages. What is here are those attributes alone.

pub(crate) mod ipset;
pub(crate) mod ipvs;
pub(crate) mod route;
pub(crate) mod socket;
