//! A pod: a namespace on its node's bridge, with servers in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use super::{fabric, node};
use crate::address::{self, DualStack, Family};
use crate::cgroup::Cgroup;
use crate::netns::NetNs;
use crate::probe::Probe;
use crate::server::Servers;

/// A pod with its servers, which start with it.
#[derive(Debug)]
pub struct Pod {
    node: u8,
    addresses: DualStack,
    servers: Mutex<Option<Servers>>,
    netns: NetNs,
}

impl Pod {
    pub(super) fn new(node_netns: &NetNs, cgroup: Option<&Arc<Cgroup>>, node: u8, number: u8) -> Result<Self> {
        let netns = NetNs::new_within(format!("pod-{node}{}", char::from(b'a' + number)), cgroup.cloned())?;
        let addresses = address::pod(node, number);
        fabric::prepare(&netns)?;
        fabric::attach(node_netns, node::BRIDGE, &netns, addresses.nets(24, 64), true)?;
        fabric::add_default_routes(&netns, address::bridge(node))?;
        let servers = Mutex::new(Some(Servers::start(&netns)?));
        Ok(Self { node, addresses, servers, netns })
    }

    /// Its name: `pod-1a` is the first on node 1.
    pub fn name(&self) -> &str {
        self.netns.name()
    }

    /// The number of its node.
    pub fn node(&self) -> u8 {
        self.node
    }

    /// The name of its node.
    pub fn node_name(&self) -> String {
        format!("node-{}", self.node)
    }

    /// Its namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its addresses.
    pub fn addresses(&self) -> DualStack {
        self.addresses
    }

    /// Its address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.addresses.of(family)
    }

    /// One of its servers, dialled directly.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Dials from here.
    pub fn probe(&self) -> Probe {
        Probe::from(&self.netns)
    }

    /// Stops its servers and closes their connections, as when the pod's process ends.
    pub fn stop_servers(&self) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts its servers if they are stopped.
    pub fn start_servers(&self) -> Result<()> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if servers.is_none() {
            *servers = Some(Servers::start(&self.netns)?);
        }
        Ok(())
    }
}
