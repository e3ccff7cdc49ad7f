//! What the external traffic policy says: NodePort, external IP and load-balancer IP.

use std::time::Duration;

use anyhow::Result;
use tollgate_lab::object::Endpoint;
use tollgate_lab::proxy::zone;

use crate::Case;
use crate::local::restart_with;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("external-policy-local", Case::Table(external_policy_local)),
    ("external-policy-local-affinity", Case::Table(external_policy_local_affinity)),
    ("external-local-shortcut", Case::Table(external_local_shortcut)),
    ("external-local-shortcut-cluster-pods", Case::Table(shortcut_of_all_cluster_pods)),
    ("external-local-shortcut-own-address", Case::Steps(shortcut_from_own_address)),
    ("external-local-shortcut-without-detection", Case::Own(shortcut_without_detection)),
    ("external-cluster-masquerade", Case::Table(external_cluster_masquerade)),
    ("no-local-drop-external", Case::Table(no_local_drop_external)),
    ("terminating-fallback-external", Case::Table(terminating_fallback_external)),
];

fn external_policy_local(scene: &Scene<'_>) -> Table {
    let here = Expect::Only(&["pod-1a"]);
    Table::new()
        .given(scene.exposed("web").external_local())
        .given(scene.ready("web", &["pod-1a", "pod-2a"]))
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), here.clone())
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::OwnSource)
        // Another node is outside, too.
        .at([At::node(1)], [Client::Node(2)], ("web", 80), here)
        .at([At::node(1)], [Client::Node(2)], ("web", 80), Expect::OwnSource)
        .at([At::node(2)], [Client::Outside], ("web", 80), Expect::Only(&["pod-2a"]))
        .at([At::node(2)], [Client::Outside], ("web", 80), Expect::OwnSource)
        // The ClusterIP is not its business.
        .rows(Client::Outside, ("web", 80), Expect::Only(&["pod-1a", "pod-2a"]))
}

/// A client that is remembered with an endpoint elsewhere, because it came by the ClusterIP, is still served by a local one.
fn external_policy_local_affinity(scene: &Scene<'_>) -> Table {
    let here = Expect::OneOf(&["pod-1a", "pod-1b"]);
    Table::new()
        .given(scene.exposed("web").external_local().affinity(Duration::from_secs(10800)))
        .given(scene.ready("web", &["pod-1a", "pod-1b", "pod-2a", "pod-2b"]))
        .rows(Client::Outside, ("web", 80), Expect::OneOf(&["pod-1a", "pod-1b", "pod-2a", "pod-2b"]))
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), here.clone())
        .rows(Client::Stranger, ("web", 80), Expect::OneOf(&["pod-1a", "pod-1b", "pod-2a", "pod-2b"]))
        .at(At::EXTERNAL, [Client::Stranger], ("web", 80), here)
}

fn external_local_shortcut(scene: &Scene<'_>) -> Table {
    let local = [Client::Pod("pod-1b"), Client::Node(1)];
    let both = Expect::Only(&["pod-1a", "pod-2a"]);
    Table::new()
        .given(scene.exposed("web").external_local())
        .given(scene.ready("web", &["pod-1a", "pod-2a"]))
        .at(At::EXTERNAL, local, ("web", 80), both.clone())
        .at(At::EXTERNAL, [Client::Pod("pod-1b")], ("web", 80), Expect::OwnSource)
        .at(At::EXTERNAL, [Client::Node(1)], ("web", 80), Expect::NodeSource(1))
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::Only(&["pod-1a"]))
        // With nobody here.
        .given(scene.exposed("far").external_local())
        .given(scene.ready("far", &["pod-2a"]))
        .at(At::EXTERNAL, local, ("far", 80), Expect::Only(&["pod-2a"]))
        .at(At::EXTERNAL, [Client::Node(1)], ("far", 80), Expect::NodeSource(1))
        // The internal policy is about the ClusterIP.
        .given(scene.exposed("inner").external_local().internal_local())
        .given(scene.ready("inner", &["pod-1a", "pod-2a"]))
        .at(At::EXTERNAL, local, ("inner", 80), both)
        .at([At::ClusterIp], local, ("inner", 80), Expect::Only(&["pod-1a"]))
        // The terminating fallback of the Cluster set: pod-1a is the only local one, and terminates.
        .given(scene.exposed("drains").external_local())
        .given(scene.ready("drains", &["pod-2a"]).endpoint(Endpoint::terminating(scene.pod("pod-1a"))))
        .at(At::EXTERNAL, local, ("drains", 80), Expect::Only(&["pod-2a"]))
        // All of it terminates: the Cluster set is both, and the Local set is the one that is here.
        .given(scene.exposed("leaves").external_local().internal_local())
        .given(scene.slice("leaves").endpoints(["pod-1a", "pod-2a"].map(|name| Endpoint::terminating(scene.pod(name)))))
        .at(At::EXTERNAL, local, ("leaves", 80), Expect::Only(&["pod-1a", "pod-2a"]))
        .at(At::EXTERNAL, [Client::Outside], ("leaves", 80), Expect::Only(&["pod-1a"]))
}

/// With ClusterCIDR detection the pods of other nodes take the shortcut as well. Hints tell the sets apart: they narrow the
/// Cluster set to pod-1a, and mean nothing to the Local set.
fn shortcut_of_all_cluster_pods(scene: &Scene<'_>) -> Table {
    let hinted = |name: &str, number| Endpoint::ready(scene.pod(name)).hinted_to_zone(&zone(number));
    Table::new()
        .given(scene.exposed("web").external_local())
        .given(scene.slice("web").endpoints([hinted("pod-1a", 1), hinted("pod-1b", 2)]))
        .rows(Client::Pod("pod-2b"), At::node(1).of("web", 80), Expect::Only(&["pod-1a"]))
        .rows(Client::Pod("pod-2b"), At::node(1).of("web", 80), Expect::OwnSource)
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::Only(&["pod-1a", "pod-1b"]))
}

/// A node that has the load balancer's address itself sends from it: only masqueraded does the answer find its way back.
fn shortcut_from_own_address(scene: &Scene<'_>) -> Result<()> {
    let node = scene.cluster().node(1);
    node.netns().links()?.add_address("lo", scene.load_balancer_ip("web").into())?;
    Table::new()
        .given(scene.exposed("web").external_local())
        .given(scene.ready("web", &["pod-2a"]))
        .at([At::LoadBalancerIp], [Client::Node(1)], ("web", 80), Expect::Only(&["pod-2a"]))
        .at([At::LoadBalancerIp], [Client::Node(1)], ("web", 80), Expect::NodeSource(1))
        .play(scene)
}

/// Where nobody is known to be a local pod, and so nobody is masqueraded for not being one, the node still is.
fn shortcut_without_detection(stage: &mut Stage) -> Result<()> {
    stage.lab.proxy(1).unset_flag("--cluster-cidr");
    restart_with(stage, &[])?;
    shortcut_from_own_address(&stage.scene()?)
}

fn external_cluster_masquerade(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.exposed("web"))
        .given(scene.ready("web", &["pod-1a"]))
        .given(scene.exposed("remote"))
        .given(scene.ready("remote", &["pod-2a"]))
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::NodeSource(1))
        .at(At::EXTERNAL, [Client::Outside], ("remote", 80), Expect::NodeSource(1))
        .at([At::node(1)], [Client::Node(2)], ("remote", 80), Expect::NodeSource(1))
        // From a pod of another node to this node's NodePort, and back again by the same way.
        .at([At::node(1)], [Client::Pod("pod-2b")], ("remote", 80), Expect::NodeSource(1))
        // The control: the other policy keeps the client's address.
        .given(scene.exposed("keeps").external_local())
        .given(scene.ready("keeps", &["pod-1a"]))
        .at(At::EXTERNAL, [Client::Outside], ("keeps", 80), Expect::OwnSource)
}

fn no_local_drop_external(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.exposed("web").external_local())
        .given(scene.ready("web", &["pod-2a"]))
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::Silence)
        .at([At::node(1)], [Client::Node(2)], ("web", 80), Expect::Silence)
        // Controls: the node that has the endpoint, and the address that the policy is not about.
        .at([At::node(2), At::ClusterIp], [Client::Outside], ("web", 80), Expect::Only(&["pod-2a"]))
        // Nobody anywhere is a closed port.
        .given(scene.exposed("nobody").external_local())
        .at(At::EXTERNAL, [Client::Outside], ("nobody", 80), Expect::Refused)
}

fn terminating_fallback_external(scene: &Scene<'_>) -> Table {
    let slice = scene
        .ready("web", &["pod-2a"])
        .endpoint(Endpoint::terminating(scene.pod("pod-1a")))
        .endpoint(Endpoint::not_ready(scene.pod("pod-1b")));
    Table::new()
        .given(scene.exposed("web").external_local())
        .given(slice)
        // Nothing of node 1 is ready, though something of the cluster is.
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::Only(&["pod-1a"]))
        .at([At::ClusterIp], [Client::Outside], ("web", 80), Expect::Only(&["pod-2a"]))
        .given(scene.exposed("cluster"))
        .given(scene.slice("cluster").endpoint(Endpoint::terminating(scene.pod("pod-2a"))))
        .at(At::EXTERNAL, [Client::Outside, Client::Pod("pod-1a")], ("cluster", 80), Expect::Only(&["pod-2a"]))
}
