//! What counts as traffic of this node's pods, and who is masqueraded for not being it.

use anyhow::{Context, Result};
use serde_json::json;
use tollgate_lab::object::{self, Endpoint};
use tollgate_lab::proxy::zone;
use tollgate_lab::{Family, address};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("detect-local", Case::Own(detect_local)),
    ("off-cluster-masquerade-none", Case::Own(no_detection)),
    ("hairpin-masqueraded-no-detection", Case::Own(no_detection_hairpin)),
    ("masquerade-all", Case::Own(masquerade_all)),
];

/// Starts the proxy of node 1 anew, with these flags changed.
pub(crate) fn restart_with(stage: &mut Stage, flags: &[(&str, &str)]) -> Result<()> {
    let proxy = stage.lab.proxy(1);
    flags.iter().for_each(|(flag, value)| proxy.set_flag(flag, value));
    stage.lab.restart_proxy(1)
}

/// Objects that tell the detectors apart. Of "local" the Cluster set is pod-1a alone by its hints, and the Local set, which
/// ignores hints, is both pods of node 1: whoever takes the shortcut sees the first, and whoever is outside the second.
fn given(scene: &Scene<'_>) -> Table {
    let hinted = |name: &str, number| Endpoint::ready(scene.pod(name)).hinted_to_zone(&zone(number));
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1a"]))
        .given(scene.service("remote").transports(80))
        .given(scene.ready("remote", &["pod-2a"]))
        .given(scene.exposed("local").external_local())
        .given(scene.slice("local").endpoints([hinted("pod-1a", 1), hinted("pod-1b", 2)]))
}

fn detect_local(stage: &mut Stage) -> Result<()> {
    // For NodeCIDR the Node object says which pods are its own.
    let cidrs = Family::ALL.map(|family| address::pod_cidr(1, family).to_string());
    let mut node = object::node("node-1", stage.lab.cluster().node(1).addresses(), Some(&zone(1)));
    node["spec"] = json!({ "podCIDR": cidrs[0], "podCIDRs": cidrs });
    stage.lab.apply(node)?;
    let (all, node_only) = (Expect::Only(&["pod-1a"]), Expect::Only(&["pod-1a", "pod-1b"]));
    let modes: [(&str, &[(&str, &str)], _); 4] = [
        ("ClusterCIDR", &[], all),
        ("NodeCIDR", &[], node_only.clone()),
        ("BridgeInterface", &[("--pod-bridge-interface", "pods0")], node_only.clone()),
        ("InterfaceNamePrefix", &[("--pod-interface-name-prefix", "pods")], node_only),
    ];
    for (name, flags, remote_pod) in modes {
        let flags: Vec<_> = [("--detect-local-mode", name)].into_iter().chain(flags.iter().copied()).collect();
        restart_with(stage, &flags).with_context(|| format!("with {name}"))?;
        let scene = stage.scene()?;
        given(&scene)
            .rows(Client::Pod("pod-1b"), ("web", 80), Expect::OwnSource)
            .rows(Client::Pod("pod-1b"), ("remote", 80), Expect::OwnSource)
            .rows(Client::Outside, ("web", 80), Expect::NodeSource(1))
            .rows(Client::Outside, ("remote", 80), Expect::NodeSource(1))
            .rows(Client::Node(1), ("remote", 80), Expect::NodeSource(1))
            .at(At::EXTERNAL, [Client::Pod("pod-1b"), Client::Node(1)], ("local", 80), Expect::Only(&["pod-1a"]))
            .at(At::EXTERNAL, [Client::Outside], ("local", 80), Expect::Only(&["pod-1a", "pod-1b"]))
            .rows(Client::Pod("pod-2b"), At::node(1).of("local", 80), remote_pod)
            .play(&scene)
            .with_context(|| format!("with {name}"))?;
        flags.iter().for_each(|(flag, _)| stage.lab.proxy(1).unset_flag(flag));
    }
    Ok(())
}

/// Without a detector nobody is known to be local, and so nobody is masqueraded for the ClusterIP but who must be.
fn no_detection(stage: &mut Stage) -> Result<()> {
    stage.lab.proxy(1).unset_flag("--cluster-cidr");
    restart_with(stage, &[])?;
    let scene = stage.scene()?;
    given(&scene)
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::OwnSource)
        .rows(Client::Outside, ("web", 80), Expect::OwnSource)
        .at(At::EXTERNAL, [Client::Outside], ("local", 80), Expect::Only(&["pod-1a", "pod-1b"]))
        .play(&scene)
}

fn no_detection_hairpin(stage: &mut Stage) -> Result<()> {
    stage.lab.proxy(1).unset_flag("--cluster-cidr");
    restart_with(stage, &[])?;
    let scene = stage.scene()?;
    given(&scene).rows(Client::Pod("pod-1a"), ("web", 80), Expect::NodeSource(1)).play(&scene)
}

fn masquerade_all(stage: &mut Stage) -> Result<()> {
    restart_with(stage, &[("--masquerade-all", "true")])?;
    let scene = stage.scene()?;
    let table = given(&scene);
    [Client::Pod("pod-1b"), Client::Outside, Client::Node(1)]
        .into_iter()
        .fold(table, |table, client| {
            table.rows(client, ("web", 80), Expect::NodeSource(1)).rows(client, ("remote", 80), Expect::NodeSource(1))
        })
        // It is about ClusterIPs alone: other addresses are dealt with as ever.
        .at(At::EXTERNAL, [Client::Pod("pod-1b"), Client::Outside], ("local", 80), Expect::OwnSource)
        // The control: node 2 has not been told so.
        .rows(Client::Pod("pod-2b"), ("remote", 80), Expect::OwnSource)
        .play(&scene)
}
