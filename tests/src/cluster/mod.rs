//! A cluster of network namespaces.
//!
//! ```text
//!                       fabric (bridge br0, gateway .254)
//!      ┌───────────────┬───────┴───────┬───────────────────┐
//!   eth0│192.0.2.1   eth0│192.0.2.2  eth0│192.0.2.101   eth0│192.0.2.250
//!   ┌───┴────┐       ┌───┴────┐     outside-1          control-plane
//!   │ node-1 │       │ node-2 │
//!   │  pods0 │       │  pods0 │      bridge, 10.244.N.1, hairpin on every port
//!   └─┬────┬─┘       └─┬────┬─┘
//!  pod-1a pod-1b    pod-2a pod-2b    eth0, 10.244.N.10 and on
//! ```
//!
//! Nodes forward and have routes to each other's pods. Their default route leads to the gateway, which answers
//! "unreachable" to what it has no route for: what a node lets go astray is seen, not lost in silence. Outside hosts
//! know the way to pods, but not to Services: a test adds that where it wants it.

mod fabric;
mod host;
mod node;
mod pod;

use anyhow::Result;

pub use host::Host;
pub use node::Node;
pub use pod::Pod;

use crate::address;
use crate::netns::NetNs;
use fabric::Fabric;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Nodes, from 1 to 99.
    pub nodes: u8,
    /// Pods on each node, up to 26.
    pub pods_per_node: u8,
    /// Hosts on the fabric that are no nodes, up to 99.
    pub hosts: u8,
}

impl Default for Topology {
    fn default() -> Self {
        Self { nodes: 2, pods_per_node: 2, hosts: 1 }
    }
}

/// Nodes, their pods, and outside hosts. All of it goes when the cluster is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    hosts: Vec<Host>,
    control_host: Host,
    fabric: Fabric,
}

impl Cluster {
    /// Builds the network and starts every pod's servers.
    pub fn new(topology: Topology) -> Result<Self> {
        let fabric = Fabric::new()?;
        let nodes = (1..=topology.nodes).map(|n| Node::new(&fabric, n, topology.pods_per_node));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            nodes.iter().filter(|peer| peer.number() != node.number()).try_for_each(|peer| node.add_peer(peer))?;
            fabric.add_node(node.number())?;
        }
        let hosts = (1..=topology.hosts).map(|n| Host::new(&fabric, &format!("outside-{n}"), address::outside(n)));
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        let control_host = Host::new(&fabric, "control-plane", address::CONTROL_PLANE)?;
        for host in &hosts {
            nodes.iter().try_for_each(|node| host.add_pods_of(node))?;
        }
        Ok(Self { nodes, hosts, control_host, fabric })
    }

    /// Every node, by number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that number, from 1.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// Every pod of every node.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.nodes.iter().flat_map(Node::pods)
    }

    /// The pod of that name: `pod-1a` is the first of node 1.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods().find(|pod| pod.name() == name).unwrap_or_else(|| panic!("the lab has no pod {name}"))
    }

    /// The outside host of that number, from 1.
    pub fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number) - 1]
    }

    /// The host that the control plane runs on.
    pub fn control_host(&self) -> &Host {
        &self.control_host
    }

    /// The namespace of the network between the nodes.
    pub fn fabric(&self) -> &NetNs {
        self.fabric.netns()
    }

    /// Packets that came to the gateway although it has no route for them: what a node should have kept and did not.
    ///
    /// The kernel answers only some of them (it limits IPv4's "no route" to one a second for each source), so a client's
    /// timeout does not prove that nothing got out; this does.
    pub fn strays(&self) -> Result<u64> {
        self.fabric.strays()
    }

    /// How a person enters each namespace while the lab lives, a line each.
    pub fn enter_commands(&self) -> String {
        let nodes = self.nodes.iter().map(Node::netns);
        let pods = self.pods().map(Pod::netns);
        let hosts = self.hosts.iter().chain([&self.control_host]).map(Host::netns);
        let all = nodes.chain(pods).chain(hosts).chain([self.fabric()]);
        all.map(|netns| format!("{:>14}: {}\n", netns.name(), netns.enter_command())).collect()
    }
}
