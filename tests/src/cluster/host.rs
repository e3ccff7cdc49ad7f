//! A machine on the fabric that is no node.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use super::fabric::{self, Fabric};
use super::node::Node;
use crate::address::{self, DualStack, Family};
use crate::netns::NetNs;
use crate::probe::Probe;
use crate::server::Servers;

/// A machine on the fabric that is no node: an outside client, or where the control plane runs.
#[derive(Debug)]
pub struct Host {
    netns: NetNs,
    addresses: DualStack,
}

impl Host {
    pub(super) fn new(fabric: &Fabric, name: &str, addresses: DualStack) -> Result<Self> {
        let netns = NetNs::new(name)?;
        fabric::prepare(&netns)?;
        fabric.attach(&netns, addresses)?;
        Ok(Self { netns, addresses })
    }

    /// Its namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its addresses on the fabric.
    pub fn addresses(&self) -> DualStack {
        self.addresses
    }

    /// Its address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.addresses.of(family)
    }

    /// Dials from here.
    pub fn probe(&self) -> Probe {
        Probe::from(&self.netns)
    }

    /// Sends what is for `to` to the gateway `via`.
    pub fn add_route(&self, to: IpNet, via: IpAddr) -> Result<()> {
        self.netns.links()?.add_route(to, via)
    }

    /// Sends what is for any address of a Service, of both families, to a node: cluster IPs, external IPs and
    /// load-balancer IPs.
    pub fn route_services_via(&self, node: &Node) -> Result<()> {
        Family::ALL.into_iter().try_for_each(|family| {
            self.add_route(address::service_cidr(family), node.ip(family))?;
            self.add_route(address::external_cidr(family), node.ip(family))
        })
    }

    /// Starts a pod's servers here, which say this host's name.
    pub fn start_servers(&self) -> Result<Servers> {
        Servers::start(&self.netns)
    }

    pub(super) fn add_pods_of(&self, node: &Node) -> Result<()> {
        Family::ALL.into_iter().try_for_each(|family| {
            self.add_route(address::pod_cidr(node.number(), family), node.ip(family))?;
            self.add_route(node.second_ip(family).into(), node.ip(family))
        })
    }
}
