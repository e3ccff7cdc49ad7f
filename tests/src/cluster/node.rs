//! A node: an uplink to the fabric, a bridge for its pods, and the pods.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow};

use super::fabric::{self, Fabric};
use super::pod::Pod;
use crate::address::{self, DualStack, Family};
use crate::bpffs::BpfFs;
use crate::cgroup::Cgroup;
use crate::netns::NetNs;
use crate::probe::Probe;
use crate::server::Servers;

/// The bridge that a node's pods are on.
pub(super) const BRIDGE: &str = "pods0";

/// A node and its pods.
#[derive(Debug)]
pub struct Node {
    // Before the namespace: a pod's servers stop before the network under them goes.
    pods: Vec<Pod>,
    number: u8,
    netns: NetNs,
    bpffs: OnceLock<BpfFs>,
    /// Or why there is none.
    cgroup: Result<Arc<Cgroup>, String>,
}

impl Node {
    pub(super) fn new(fabric: &Fabric, number: u8, pods: u8) -> Result<Self> {
        let name = format!("node-{number}");
        let cgroup = Cgroup::new(&name).map_err(|error| format!("{error:#}"));
        let netns = NetNs::new_within(name, cgroup.clone().ok())?;
        fabric::prepare(&netns)?;
        fabric::forward(&netns)?;
        fabric.attach(&netns, address::node(number))?;
        netns.links()?.add_bridge(BRIDGE)?;
        fabric::be_patient_with_neighbours(&netns, BRIDGE)?;
        for net in address::bridge(number).nets(24, 64) {
            netns.links()?.add_address(BRIDGE, net)?;
        }
        for net in address::second(number).nets(32, 128) {
            netns.links()?.add_address("lo", net)?;
        }
        let pods = (0..pods).map(|n| Pod::new(&netns, cgroup.as_ref().ok(), number, n));
        let pods = pods.collect::<Result<Vec<_>>>()?;
        Ok(Self { pods, number, netns, bpffs: OnceLock::new(), cgroup })
    }

    /// Its name, `node-N`.
    pub fn name(&self) -> &str {
        self.netns.name()
    }

    /// Its number, from 1.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup, which every socket and process belongs to that is made in its namespace or in those of its pods; fails
    /// where the lab has no right to make cgroups.
    pub fn cgroup(&self) -> Result<&Path> {
        self.cgroup.as_deref().map(Cgroup::path).map_err(|why| anyhow!("{} has no cgroup: {why}", self.name()))
    }

    /// Where its eBPF objects are to be pinned: a folder that is not there yet, in a bpffs that no other node uses.
    pub fn bpf_root(&self) -> Result<&Path> {
        if self.bpffs.get().is_none() {
            let mounted = BpfFs::mount(self.name())?;
            // Somebody else may have been quicker: then this one is unmounted again.
            let _ = self.bpffs.set(mounted);
        }
        Ok(self.bpffs.wait().tollgate())
    }

    /// Its pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its addresses on the fabric.
    pub fn addresses(&self) -> DualStack {
        address::node(self.number)
    }

    /// Its address of a family on the fabric.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.addresses().of(family)
    }

    /// Its address of a family on its pods' bridge.
    pub fn bridge_ip(&self, family: Family) -> IpAddr {
        address::bridge(self.number).of(family)
    }

    /// Its second address of a family, which others have a route to. It is on `lo`, so that the kernel never picks it as
    /// the source of what the node sends.
    pub fn second_ip(&self, family: Family) -> IpAddr {
        address::second(self.number).of(family)
    }

    /// Starts a pod's servers in the node's own namespace: what a process of the node serves on every address.
    pub fn start_servers(&self) -> Result<Servers> {
        Servers::start(&self.netns)
    }

    /// Dials as a process in the node's own network namespace.
    pub fn probe(&self) -> Probe {
        Probe::from(&self.netns)
    }

    pub(super) fn add_peer(&self, peer: &Self) -> Result<()> {
        Family::ALL.into_iter().try_for_each(|family| {
            self.netns.links()?.add_route(address::pod_cidr(peer.number, family), peer.ip(family))?;
            self.netns.links()?.add_route(peer.second_ip(family).into(), peer.ip(family))
        })
    }
}
