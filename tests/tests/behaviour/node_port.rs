//! Which of the node's addresses answer NodePorts.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use tollgate_lab::{Cluster, Family, NetNs, Probe, Protocol, TCP_PORT, Tollgate, Topology, UDP_PORT, eventually};

use crate::scene::{At, Client, NodeAddress, Scene, Stage};
use crate::table::{Expect, Table, ensure_refused};
use crate::{Case, cluster};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("nodeport-addresses", Case::Table(primary_by_default)),
    ("nodeport-addresses-chosen", Case::Lab(lab_with_chosen_addresses, chosen_addresses)),
    ("nodeport-addresses-localhost", Case::Lab(lab_with_localhost, localhost_stays_closed)),
];

const EVERYBODY: [Client; 5] =
    [Client::Outside, Client::Pod("pod-1a"), Client::Pod("pod-2a"), Client::Node(1), Client::Node(2)];
const SECOND: At = At::NodePort(NodeAddress::Second(1));
const BRIDGE: At = At::NodePort(NodeAddress::Bridge(1));
const LOOPBACK: At = At::NodePort(NodeAddress::Loopback);

fn primary_by_default(scene: &Scene<'_>) -> Table {
    let pods = &["pod-1b", "pod-2b"];
    Table::new()
        .given(scene.web().node_port())
        .given(scene.ready("web", pods))
        .at([At::node(1)], EVERYBODY, ("web", 80), Expect::Only(pods))
        .at([SECOND, BRIDGE], EVERYBODY, ("web", 80), Expect::Refused)
        .at([LOOPBACK], [Client::Node(1)], ("web", 80), Expect::Refused)
}

fn lab_with_chosen_addresses(mode: tollgate_lab::Mode) -> Result<Tollgate> {
    let chosen = "192.0.2.0/24,172.31.0.0/16,2001:db8::/64,fd00:31::/64";
    Tollgate::start_with(cluster()?, mode, &[("--nodeport-addresses", chosen)])
}

/// An address that the node gets and loses, within the chosen ranges.
fn visitor(family: Family) -> IpNet {
    match family {
        Family::V4 => "172.31.0.77/32".parse().expect("a network"),
        Family::V6 => "fd00:31::77/128".parse().expect("a network"),
    }
}

fn chosen_addresses(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let pods = &["pod-1b", "pod-2b"];
    let node = scene.cluster().node(1);
    // A process of the node that listens on every address: no NodePort may take what is for other ports.
    let _servers = node.start_servers()?;
    Table::new()
        .given(scene.web().node_port())
        .given(scene.ready("web", pods))
        .at([At::node(1), SECOND], EVERYBODY, ("web", 80), Expect::Only(pods))
        .at([BRIDGE], EVERYBODY, ("web", 80), Expect::Refused)
        .at([LOOPBACK], [Client::Node(1)], ("web", 80), Expect::Refused)
        .play(&scene)?;
    for ip in [node.ip(scene.family), node.second_ip(scene.family), node.bridge_ip(scene.family)] {
        // Over TCP: a datagram's answer has the primary address as its source, whichever was asked.
        let reply = scene.probe(Client::Outside).tcp((ip, TCP_PORT).into());
        ensure!(reply.is_by("node-1"), "the node's own server at {ip}: {reply}");
    }
    let reply = scene.probe(Client::Outside).udp((node.ip(scene.family), UDP_PORT).into());
    ensure!(reply.is_by("node-1"), "the node's own server: {reply}");

    let visitor = visitor(scene.family);
    for host in [1, 2] {
        scene.cluster().host(host).add_route(visitor, node.ip(scene.family))?;
    }
    let port = scene.address(At::node(1).of("web", 80))?.port();
    let to = (visitor.addr(), port).into();
    let client = scene.probe(Client::Outside);
    ensure!(client.clone().impatient().tcp(to).answer().is_err(), "nobody has {visitor} yet");
    for round in ["first", "second"] {
        node.netns().links()?.add_address("lo", visitor)?;
        let gained = Instant::now();
        eventually("the new address to answer", || client.clone().impatient().tcp(to).by().map(drop))?;
        println!("nodeport-addresses-chosen: a new address answers after {:.1?}", gained.elapsed());
        client.spread(Protocol::Tcp, to, 32).ensure_only(pods)?;
        node.netns().links()?.delete_address(visitor.addr())?;
        let lost = Instant::now();
        // The packets still come to the node, which now has no more to do with this address than with any other.
        eventually("the lost address to be nobody's", || {
            let reply = client.clone().impatient().tcp(to);
            ensure!(reply.answer().is_err(), "{reply}");
            Ok(())
        })
        .with_context(|| format!("the {round} time"))?;
        println!("nodeport-addresses-chosen: a lost address is closed after {:.1?}", lost.elapsed());
        client.spread(Protocol::Tcp, scene.address(At::node(1).of("web", 80))?, 32).ensure_only(pods)?;
    }
    Ok(())
}

fn lab_with_localhost(mode: tollgate_lab::Mode) -> Result<Tollgate> {
    let chosen = "192.0.2.0/24,127.0.0.0/8,2001:db8::/64,::1/128";
    let cluster = Cluster::new(Topology::default())?;
    Tollgate::start_with(cluster, mode, &[("--nodeport-addresses", chosen)])
}

/// Makes a neighbour send what is for the loopback address to the node, as CVE-2020-8558's attacker does.
fn become_attacker(attacker: &NetNs, via: std::net::IpAddr) -> Result<std::net::IpAddr> {
    let loopback: IpNet = match Family::of(via) {
        Family::V4 => "127.0.0.1/32".parse()?,
        Family::V6 => "::1/128".parse()?,
    };
    attacker.links()?.delete_address(loopback.addr())?;
    if via.is_ipv4() {
        attacker.sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    }
    attacker.links()?.add_route(loopback, via)?;
    Ok(loopback.addr())
}

/// CVE-2020-8558: what a neighbour sends to 127.0.0.1 of the node must stay unanswered, whatever NodePorts are asked for.
fn localhost_stays_closed(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let node = scene.cluster().node(1);
    let _servers = node.start_servers()?;
    scene.apply([scene.web().node_port().into(), scene.ready("web", &["pod-1b"]).into()])?;
    let node_port = scene.address(LOOPBACK.of("web", 80))?;
    ensure_refused(&scene.probe(Client::Node(1)).tcp(node_port)).context("a NodePort on localhost")?;
    scene.probe(Client::Outside).tcp(scene.address(At::node(1).of("web", 80))?).by().context("the control")?;

    let loopback = node_port.ip();
    let own = (loopback, TCP_PORT).into();
    ensure!(scene.probe(Client::Node(1)).tcp(own).is_by("node-1"), "the socket answers from the node itself");
    let attacker = Probe::from(scene.cluster().host(1).netns());
    become_attacker(scene.cluster().host(1).netns(), node.ip(scene.family))?;
    for to in [own, node_port] {
        let reply = attacker.clone().impatient().tcp(to);
        ensure!(reply.answer().is_err(), "a neighbour reaches {to}: {reply}");
    }
    if scene.family == Family::V4 {
        for interface in ["all", "default", "lo", "eth0", "pods0"] {
            let value = node.netns().read_sysctl(&format!("net/ipv4/conf/{interface}/route_localnet"))?;
            ensure!(value == "0", "route_localnet of {interface} is {value}");
        }
        // The attack is a real one: it succeeds on a node that has been opened to it.
        node.netns().sysctl("net/ipv4/conf/all/route_localnet", "1")?;
        let reply = attacker.tcp(own);
        ensure!(reply.is_by("node-1"), "with route_localnet the neighbour gets through: {reply}");
    }
    Ok(())
}
