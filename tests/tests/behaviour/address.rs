//! Addresses on packets.

use anyhow::{Result, ensure};
use tollgate_lab::{Cluster, Tollgate, Topology};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("hairpin", Case::Table(hairpin)),
    ("hairpin-external", Case::Table(hairpin_external)),
    ("pod-source-kept", Case::Table(pod_source_kept)),
    ("off-cluster-masquerade", Case::Table(off_cluster_masquerade)),
    ("getpeername-vip", Case::Table(getpeername_vip)),
    ("getpeername-vip-external", Case::Table(getpeername_vip_external)),
    ("same-bridge-reply", Case::Own(same_bridge_reply)),
];

fn hairpin(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1a"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::Only(&["pod-1a"]))
        // It sees the node, not itself.
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::NodeSource(1))
        // Its neighbour is no hairpin, and keeps its address.
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::OwnSource)
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
    let pod = [Client::Pod("pod-1a")];
    [("web", scene.exposed("web")), ("local", scene.exposed("local").external_local())].into_iter().fold(
        Table::new(),
        |table, (name, service)| {
            table
                .given(service)
                .given(scene.ready(name, &["pod-1a"]))
                .at(At::EXTERNAL, pod, (name, 80), Expect::Only(&["pod-1a"]))
                .at(At::EXTERNAL, pod, (name, 80), Expect::NodeSource(1))
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
