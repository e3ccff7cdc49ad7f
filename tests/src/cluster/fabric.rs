//! The network between the nodes: one bridge, and a gateway that says "unreachable".

use std::fs;

use anyhow::{Context, Result};

use crate::address::{self, DualStack, Family};
use crate::link::VethEnd;
use crate::netns::NetNs;

const BRIDGE: &str = "br0";

#[derive(Debug)]
pub(super) struct Fabric {
    netns: NetNs,
}

impl Fabric {
    pub(super) fn new() -> Result<Self> {
        let netns = NetNs::new("fabric")?;
        prepare(&netns)?;
        forward(&netns)?;
        netns.links()?.add_bridge(BRIDGE)?;
        be_patient_with_neighbours(&netns, BRIDGE)?;
        for net in address::GATEWAY.nets(24, 64) {
            netns.links()?.add_address(BRIDGE, net)?;
        }
        Ok(Self { netns })
    }

    pub(super) fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Gives `netns` an `eth0` on the fabric with these addresses and the gateway as its default route.
    pub(super) fn attach(&self, netns: &NetNs, addresses: DualStack) -> Result<()> {
        attach(&self.netns, BRIDGE, netns, addresses.nets(24, 64), false)?;
        add_default_routes(netns, address::GATEWAY)
    }

    /// Packets of both families that the gateway had no route for.
    pub(super) fn strays(&self) -> Result<u64> {
        let read = |path: &'static str| self.netns.run(move || fs::read_to_string(path)).context(path);
        let (v4, v6) = (read("/proc/thread-self/net/netstat")?, read("/proc/thread-self/net/snmp6")?);
        // netstat has a line of names and then one of values; snmp6 has a name and a value on each line.
        let mut rows = v4.lines().filter(|line| line.starts_with("IpExt:")).map(str::split_whitespace);
        let (names, values) = (rows.next().context("no IpExt names")?, rows.next().context("no IpExt values")?);
        let v4 = names.zip(values).find(|(name, _)| *name == "InNoRoutes").context("no InNoRoutes")?.1;
        let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6InNoRoutes")).context("no Ip6InNoRoutes")?;
        Ok(v4.parse::<u64>()? + v6.trim().parse::<u64>()?)
    }

    /// Tells the gateway the way to a node's pods.
    pub(super) fn add_node(&self, number: u8) -> Result<()> {
        for family in Family::ALL {
            let via = address::node(number).of(family);
            self.netns.links()?.add_route(address::pod_cidr(number, family), via)?;
            self.netns.links()?.add_route(address::second(number).of(family).into(), via)?;
        }
        Ok(())
    }
}

/// Joins `netns` to a bridge in another namespace by a veth whose far end is its `eth0`.
pub(super) fn attach(
    bridge_netns: &NetNs,
    bridge: &str,
    netns: &NetNs,
    nets: [ipnet::IpNet; 2],
    hairpin: bool,
) -> Result<()> {
    let links = bridge_netns.links()?;
    links.add_veth(netns.name(), &VethEnd { name: "eth0", netns })?;
    links.add_bridge_port(bridge, netns.name(), hairpin)?;
    netns.links()?.up("eth0")?;
    be_patient_with_neighbours(netns, "eth0")?;
    nets.into_iter().try_for_each(|net| netns.links()?.add_address("eth0", net))
}

/// Routes of both families for everything, through a gateway on `eth0`'s link.
pub(super) fn add_default_routes(netns: &NetNs, gateway: DualStack) -> Result<()> {
    for (net, family) in ["0.0.0.0/0", "::/0"].into_iter().zip(Family::ALL) {
        let everything = net.parse().expect("a valid network");
        netns.links()?.add_route(everything, gateway.of(family))?;
    }
    Ok(())
}

/// What every namespace of a lab has before it has a device.
pub(super) fn prepare(netns: &NetNs) -> Result<()> {
    let settings = [
        // Addresses are usable at once; routes come from the lab alone.
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        // Answers to other interfaces' traffic are part of what a Service does.
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        // A table of cases asks for more refusals in a second than a person would: the usual limit makes silence of them.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        // Enough ports for a stream of connections from one pod.
        ("net/ipv4/ip_local_port_range", "10000 60999"),
        // None of them a port that a proxy listens on: a connection over loopback that was given it keeps a restart from it.
        ("net/ipv4/ip_local_reserved_ports", "10249,10256"),
    ];
    settings.into_iter().try_for_each(|(key, value)| netns.sysctl(key, value))
}

/// A neighbour of a lab is never gone. On a machine with more to do than it can, its answer may take longer than the three
/// seconds after which the kernel gives it up, and then a connection would fail that nobody has failed.
pub(super) fn be_patient_with_neighbours(netns: &NetNs, device: &str) -> Result<()> {
    for (family, kind) in ["ipv4", "ipv6"].into_iter().flat_map(|family| ["ucast", "mcast"].map(|kind| (family, kind)))
    {
        netns.sysctl(&format!("net/{family}/neigh/{device}/{kind}_solicit"), "30")?;
    }
    Ok(())
}

/// Makes a router of a namespace.
pub(super) fn forward(netns: &NetNs) -> Result<()> {
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    netns.sysctl("net/ipv6/conf/default/forwarding", "1")?;
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        // As on a fresh machine, where the bridge does not call netfilter: whoever needs that must see to it.
        // The key is missing where the module is not loaded, which is the same.
        if netns.read_sysctl(key).is_ok() {
            netns.sysctl(key, "0")?;
        }
    }
    Ok(())
}
