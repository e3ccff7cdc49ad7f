//! What this node is, from its Node object, its interfaces and its configuration: zone, addresses and pod ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{NodePortAddresses, StoreConfig};
use crate::name::IpFamily;
use crate::node::{Node, NodeAddresses};
use crate::object::is_special;

/// What the resolution of Services depends on, besides the Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) zone: Option<Arc<str>>,
    /// The node's address in IPv4 and IPv6, if it has one.
    pub(super) primary: [Option<IpAddr>; 2],
    pub(super) node_port_addresses: Arc<BTreeSet<IpAddr>>,
    pub(super) node_addresses: Arc<BTreeSet<IpAddr>>,
    pub(super) pod_cidrs: Arc<[IpNet]>,
}

impl Own {
    pub(super) fn new(config: &StoreConfig, node: Option<&Node>, interfaces: Option<&NodeAddresses>) -> Self {
        let primary = IpFamily::ALL.map(|family| primary_address(config, node, interfaces, family));
        Self {
            zone: node.and_then(Node::zone).or(config.zone.as_ref()).map(Arc::clone),
            primary,
            node_port_addresses: Arc::new(node_port_addresses(config, node, interfaces, primary)),
            node_addresses: Arc::new(interfaces.iter().flat_map(|it| &it.addresses).copied().collect()),
            pod_cidrs: node.map(Node::pod_cidrs).unwrap_or_default().into(),
        }
    }
}

/// The flags know best, then the Node object, then the interfaces. Where the Node object may have aged, what it says counts
/// only while the node has that address.
fn primary_address(
    config: &StoreConfig,
    node: Option<&Node>,
    interfaces: Option<&NodeAddresses>,
    family: IpFamily,
) -> Option<IpAddr> {
    let is_of_family = |ip: &IpAddr| IpFamily::from(*ip) == family;
    let configured = config.node_ips.iter().copied().find(is_of_family);
    let on_interface = || interfaces?.primary(family);
    let is_here = |ip: &IpAddr| interfaces.is_none_or(|interfaces| interfaces.addresses.contains(ip));
    let in_object = || {
        let node = node?;
        match config.node_object_ages {
            true => node.addresses().find(|ip| is_of_family(ip) && is_here(ip)),
            false => node.primary_address(family),
        }
    };
    let in_aged_object = || node?.primary_address(family);
    configured.or_else(in_object).or_else(on_interface).or_else(in_aged_object)
}

/// Never a loopback address: that would need `route_localnet`, which opens the node's own loopback services to its
/// neighbours (CVE-2020-8558). Where the interfaces are known, what is on none of them is no address of this node: a
/// packet to it never arrives here.
fn node_port_addresses(
    config: &StoreConfig,
    node: Option<&Node>,
    interfaces: Option<&NodeAddresses>,
    primary: [Option<IpAddr>; 2],
) -> BTreeSet<IpAddr> {
    let known: Vec<IpAddr> = match interfaces {
        Some(interfaces) => interfaces.addresses.clone(),
        None => config.node_ips.iter().copied().chain(node.iter().flat_map(|node| node.addresses())).collect(),
    };
    let is_in = |ranges: &[IpNet], ip: &IpAddr| ranges.iter().any(|range| range.contains(ip));
    let is_chosen = |ip: &IpAddr| match &config.node_port_addresses {
        NodePortAddresses::Primary => primary.contains(&Some(*ip)),
        NodePortAddresses::Within(ranges) => is_in(ranges, ip),
        NodePortAddresses::All => true,
    };
    known.into_iter().filter(|ip| !is_unusable(*ip) && is_chosen(ip)).collect()
}

/// An IPv6 link-local address means something only together with an interface; an IPv4 one is an address like others.
fn is_unusable(ip: IpAddr) -> bool {
    is_special(ip) && !matches!(ip, IpAddr::V4(ip) if ip.is_link_local())
}
