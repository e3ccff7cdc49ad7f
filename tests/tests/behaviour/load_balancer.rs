//! Load-balancer IPs: who may dial them, and which of them are the node's business.

use anyhow::{Context, Result};
use ipnet::IpNet;
use tollgate_lab::object::Service;
use tollgate_lab::{Family, Protocol, TCP_PORT, address};

use crate::Case;
use crate::scene::{At, Client, Scene};
use crate::table::{Expect, Table, ensure_silence};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("lb-source-ranges", Case::Table(lb_source_ranges)),
    ("lb-source-ranges-local", Case::Table(lb_source_ranges_local)),
    ("lb-source-ranges-family", Case::Table(lb_source_ranges_family)),
    ("lb-source-ranges-own-address", Case::Steps(lb_source_ranges_own_address)),
    ("lb-ipmode-proxy", Case::Steps(lb_ipmode_proxy)),
];

const LB: At = At::LoadBalancerIp;

fn ip_of(scene: &Scene<'_>, host: u8) -> IpNet {
    scene.cluster().host(host).ip(scene.family).into()
}

fn lb_source_ranges(scene: &Scene<'_>) -> Table {
    let node = IpNet::from(scene.cluster().node(1).ip(scene.family));
    let pods = &["pod-1b", "pod-2a"];
    let others = [At::ClusterIp, At::ExternalIp, At::node(1)];
    let strangers = [Client::Stranger, Client::Pod("pod-1a"), Client::Node(1)];
    Table::new()
        // A range may have blanks around it.
        .given(scene.exposed("web").source_ranges([format!(" {} ", ip_of(scene, 1))]))
        .given(scene.ready("web", pods))
        .at([LB], [Client::Outside], ("web", 80), Expect::Only(pods))
        .at([LB], strangers, ("web", 80), Expect::Silence)
        .at([LB], [Client::Pod("pod-2b"), Client::Node(2)], ("web", 80), Expect::Silence)
        // The ranges are about nothing but load-balancer IPs.
        .at(others, strangers, ("web", 80), Expect::Only(pods))
        // Pods are judged by their address as everybody is.
        .given(scene.exposed("pods").source_ranges([address::pod_cidr(1, scene.family)]))
        .given(scene.ready("pods", pods))
        .at([LB], [Client::Pod("pod-1a")], ("pods", 80), Expect::Only(pods))
        .at([LB], [Client::Outside, Client::Pod("pod-2b")], ("pods", 80), Expect::Silence)
        // So is the node.
        .given(scene.exposed("node").source_ranges([node]))
        .given(scene.ready("node", pods))
        .at([LB], [Client::Node(1)], ("node", 80), Expect::Only(pods))
        .at([LB], [Client::Outside], ("node", 80), Expect::Silence)
        // Whom the ranges admit is told that nobody serves, and the others hear nothing.
        .given(scene.exposed("nobody").source_ranges([ip_of(scene, 1)]))
        .at([LB], [Client::Outside], ("nobody", 80), Expect::Refused)
        .at([LB], strangers, ("nobody", 80), Expect::Silence)
        .at(others, strangers, ("nobody", 80), Expect::Refused)
}

fn lb_source_ranges_local(scene: &Scene<'_>) -> Table {
    let ranges = [ip_of(scene, 1), scene.pod("pod-1a").ip(scene.family).into()];
    Table::new()
        .given(scene.exposed("web").external_local().source_ranges(ranges))
        .given(scene.ready("web", &["pod-1b", "pod-2a"]))
        .at([LB], [Client::Outside], ("web", 80), Expect::Only(&["pod-1b"]))
        .at([LB], [Client::Outside], ("web", 80), Expect::OwnSource)
        // Whom the ranges admit takes the shortcut.
        .at([LB], [Client::Pod("pod-1a")], ("web", 80), Expect::Only(&["pod-1b", "pod-2a"]))
        .at([LB], [Client::Stranger, Client::Pod("pod-1b"), Client::Node(1)], ("web", 80), Expect::Silence)
        .at([At::ExternalIp, At::node(1)], [Client::Stranger], ("web", 80), Expect::Only(&["pod-1b"]))
}

fn lb_source_ranges_family(scene: &Scene<'_>) -> Table {
    let (other, everything) = match scene.family {
        Family::V4 => ("2001:db8:ffff::/48", "0.0.0.0/0"),
        Family::V6 => ("203.0.113.0/24", "::/0"),
    };
    let clients = [Client::Outside, Client::Stranger, Client::Pod("pod-1a"), Client::Node(1)];
    let pods = &["pod-1b", "pod-2a"];
    Table::new()
        // No range of this family admits all of it.
        .given(scene.exposed("other").source_ranges([other]))
        .given(scene.ready("other", pods))
        .at([LB], clients, ("other", 80), Expect::Only(pods))
        .given(scene.exposed("all").source_ranges([ip_of(scene, 1).to_string(), everything.to_owned()]))
        .given(scene.ready("all", pods))
        .at([LB], clients, ("all", 80), Expect::Only(pods))
        // The control: one of each family.
        .given(scene.exposed("some").source_ranges([ip_of(scene, 1).to_string(), other.to_owned()]))
        .given(scene.ready("some", pods))
        .at([LB], [Client::Outside], ("some", 80), Expect::Only(pods))
        .at([LB], [Client::Stranger], ("some", 80), Expect::Silence)
}

/// A load balancer that binds its IP to the nodes: what the node itself sends there has that address as its source.
fn lb_source_ranges_own_address(scene: &Scene<'_>) -> Result<()> {
    let node = scene.cluster().node(1);
    let ranged = |name: &str, range: IpNet| scene.exposed(name).source_ranges([range]);
    scene.apply([
        ranged("own", node.ip(scene.family).into()).into(),
        scene.ready("own", &["pod-1b"]).into(),
        ranged("foreign", ip_of(scene, 1)).into(),
        scene.ready("foreign", &["pod-1b"]).into(),
    ])?;
    for name in ["own", "foreign"] {
        node.netns().links()?.add_address("lo", scene.load_balancer_ip(name).into())?;
    }
    let client = scene.probe(Client::Node(1));
    for (protocol, port) in Protocol::transports().iter().zip(80..) {
        let reply = client.dial(*protocol, scene.address(LB.of("own", port))?);
        reply.by().with_context(|| format!("{protocol:?}: the node is in range: {reply}"))?;
        let reply = client.clone().impatient().dial(*protocol, scene.address(LB.of("foreign", port))?);
        ensure_silence(&reply, Client::Node(1)).context("the node is not in range")?;
    }
    Ok(())
}

/// An address of a load balancer that wants to see the traffic itself: here, it is a host with servers of its own.
fn lb_ipmode_proxy(scene: &Scene<'_>) -> Result<()> {
    let host = scene.cluster().host(2);
    let _servers = host.start_servers()?;
    let ip = host.ip(scene.family);
    let with_mode = |mode| -> Service { scene.service("web").transports(TCP_PORT).ingress(ip, Some(mode)) };
    scene.apply([with_mode("Proxy").into(), scene.ready("web", &["pod-1b"]).into()])?;
    let clients = [Client::Pod("pod-1a"), Client::Node(1), Client::Pod("pod-2a")];
    let dial_all = |expected: &str| {
        clients
            .into_iter()
            .flat_map(|client| Protocol::transports().iter().zip(TCP_PORT..).map(move |dial| (client, dial)))
            .try_for_each(|(client, (protocol, port))| {
                let spread = scene.probe(client).spread(*protocol, (ip, port).into(), 8);
                spread.ensure_only(&[expected]).with_context(|| format!("{client:?} over {protocol:?}"))
            })
    };
    dial_all("outside-2").context("in mode Proxy, the load balancer is dialled")?;
    scene.apply([with_mode("VIP").into()])?;
    dial_all("pod-1b").context("in mode VIP, the node answers in its place")
}
