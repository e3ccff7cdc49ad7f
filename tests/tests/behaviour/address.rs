//! Addresses on packets.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tollgate_lab::{Cluster, Protocol, Tollgate, Topology};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("hairpin", Case::Table(hairpin)),
    ("hairpin-masqueraded", Case::Table(hairpin_masqueraded)),
    ("hairpin-external", Case::Table(hairpin_external)),
    ("hairpin-external-masqueraded", Case::Table(hairpin_external_masqueraded)),
    ("pod-source-kept", Case::Table(pod_source_kept)),
    ("off-cluster-masquerade", Case::Table(off_cluster_masquerade)),
    ("getpeername-vip", Case::Table(getpeername_vip)),
    ("getpeername-vip-external", Case::Table(getpeername_vip_external)),
    ("getpeername-vip-node-endpoint", Case::Own(getpeername_vip_node_endpoint)),
    ("same-bridge-reply", Case::Own(same_bridge_reply)),
];

fn hairpin(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1a"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::Only(&["pod-1a"]))
        // Its neighbour is no hairpin, and keeps its address.
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::OwnSource)
}

/// It sees the node, not itself.
fn hairpin_masqueraded(scene: &Scene<'_>) -> Table {
    Table::new().given(scene.web()).given(scene.ready("web", &["pod-1a"])).rows(
        Client::Pod("pod-1a"),
        ("web", 80),
        Expect::NodeSource(1),
    )
}

fn pod_source_kept(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1b"]))
        .given(scene.service("remote").transports(80))
        .given(scene.ready("remote", &["pod-2a"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::OwnSource)
        .rows(Client::Pod("pod-1a"), ("remote", 80), Expect::OwnSource)
        .rows(Client::Pod("pod-2b"), ("web", 80), Expect::OwnSource)
}

fn off_cluster_masquerade(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1a"]))
        .given(scene.service("remote").transports(80))
        .given(scene.ready("remote", &["pod-2a"]))
        .rows(Client::Outside, ("web", 80), Expect::NodeSource(1))
        .rows(Client::Outside, ("remote", 80), Expect::NodeSource(1))
        .rows(Client::Node(1), ("remote", 80), Expect::NodeSource(1))
        .rows(Client::Node(1), ("web", 80), Expect::NodeSource(1))
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::OwnSource)
}

fn getpeername_vip(scene: &Scene<'_>) -> Table {
    let table = Table::new().given(scene.web()).given(scene.ready("web", &["pod-2a", "pod-1b"]));
    [Client::Pod("pod-1a"), Client::Pod("pod-1b"), Client::Node(1), Client::Outside]
        .into_iter()
        .fold(table, |table, client| table.rows(client, ("web", 80), Expect::DialledPeer))
}

fn hairpin_external(scene: &Scene<'_>) -> Table {
    external_hairpins(scene, Expect::Only(&["pod-1a"]))
}

fn hairpin_external_masqueraded(scene: &Scene<'_>) -> Table {
    external_hairpins(scene, Expect::NodeSource(1))
}

fn external_hairpins(scene: &Scene<'_>, expected: Expect) -> Table {
    let pod = [Client::Pod("pod-1a")];
    [("web", scene.exposed("web")), ("local", scene.exposed("local").external_local())].into_iter().fold(
        Table::new(),
        |table, (name, service)| {
            table.given(service).given(scene.ready(name, &["pod-1a"])).at(
                At::EXTERNAL,
                pod,
                (name, 80),
                expected.clone(),
            )
        },
    )
}

fn getpeername_vip_external(scene: &Scene<'_>) -> Table {
    let clients = [Client::Pod("pod-1a"), Client::Pod("pod-1b"), Client::Node(1), Client::Outside];
    Table::new()
        .given(scene.exposed("web"))
        .given(scene.ready("web", &["pod-2a", "pod-1b"]))
        .at(At::EXTERNAL, clients, ("web", 80), Expect::DialledPeer)
        .given(scene.exposed("local").external_local())
        .given(scene.ready("local", &["pod-1b"]))
        .at(At::EXTERNAL, clients, ("local", 80), Expect::DialledPeer)
}

/// An endpoint that is a process of a node, as the API server's are: by every frontend, also from that node itself.
fn getpeername_vip_node_endpoint(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let (here, there) = (scene.cluster().node(1), scene.cluster().node(2));
    let _servers = (here.start_servers()?, there.start_servers()?);
    for (name, node) in [("here", here), ("there", there)] {
        let mut slice = Value::from(scene.ready(name, &["pod-1a"]));
        slice["endpoints"][0]["addresses"] = json!([node.ip(scene.family)]);
        slice["endpoints"][0]["nodeName"] = json!(node.name());
        scene.apply([scene.exposed(name).into(), slice])?;
    }
    let clients = [Client::Pod("pod-1a"), Client::Pod("pod-2a"), Client::Node(1), Client::Node(2), Client::Outside];
    // TCP alone: a UDP server that listens on every address answers a pod under that of the bridge, whoever was asked.
    let dials = At::ALL.into_iter().flat_map(|at| clients.map(|client| (client, at)));
    let table = dials.fold(Table::new(), |table, (client, at)| {
        table
            .row(client, Protocol::Tcp, at.of("here", 80), Expect::Only(&["node-1"]))
            .row(client, Protocol::Tcp, at.of("here", 80), Expect::DialledPeer)
            .row(client, Protocol::Tcp, at.of("there", 80), Expect::Only(&["node-2"]))
            .row(client, Protocol::Tcp, at.of("there", 80), Expect::DialledPeer)
    });
    table.play(&scene)
}

fn same_bridge_reply(stage: &mut Stage) -> Result<()> {
    // A lab whose bridges do not call netfilter, as it is before anybody has asked for it.
    let cluster = Cluster::new(Topology::default())?;
    let keys = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
    for key in keys {
        let value = cluster.node(1).netns().read_sysctl(key)?;
        ensure!(value == "0", "{key} starts as {value}");
    }
    stage.lab = Tollgate::start(cluster, stage.mode)?;
    let scene = stage.scene()?;
    let table = Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1b"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::Only(&["pod-1b"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::DialledPeer);
    table.play(&scene)
}
