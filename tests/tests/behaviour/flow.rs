//! UDP flows while endpoints change.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tollgate_api::v1::Key;
use tollgate_lab::object::Endpoint;
use tollgate_lab::{Flow, Probe};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::ensure_refused;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("udp-no-stale-flow", Case::Steps(endpoint_goes)),
    ("udp-no-stale-flow-external", Case::Steps(endpoint_goes_external)),
    ("udp-no-stale-flow-external-local", Case::Steps(local_endpoint_goes)),
    ("udp-no-stale-flow-external-first-endpoint", Case::Steps(first_endpoint_comes_external)),
    ("udp-no-stale-flow-external-new-node-port", Case::Steps(node_port_comes)),
    ("udp-no-stale-flow-first-endpoint", Case::Steps(first_endpoint_comes)),
    ("udp-no-stale-flow-new-service", Case::Own(service_comes)),
    ("udp-no-stale-flow-while-proxy-is-away", Case::Own(endpoint_goes_while_proxy_is_away)),
    ("udp-no-stale-flow-serving-left-alone", Case::Steps(serving_is_left_alone)),
];

/// As soon as a datagram may be answered: one that is lost is lost, so there is no point in waiting long.
const NEXT_DATAGRAM: Duration = Duration::from_secs(2);

const CLIENTS: [Client; 3] = [Client::Pod("pod-1a"), Client::Node(1), Client::Outside];

fn flow(scene: &Scene<'_>, client: Client) -> Result<Flow> {
    flow_at(scene, client, At::ClusterIp)
}

fn flow_at(scene: &Scene<'_>, client: Client, at: At) -> Result<Flow> {
    Ok(scene.probe(client).flow(scene.address(at.of("web", 81))?)?.patience(NEXT_DATAGRAM))
}

fn endpoint_goes(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.web().into()])?;
    CLIENTS.into_iter().try_for_each(|client| endpoint_goes_at(scene, client, At::ClusterIp))
}

fn endpoint_goes_external(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.exposed("web").into()])?;
    for at in At::EXTERNAL {
        CLIENTS.into_iter().try_for_each(|client| endpoint_goes_at(scene, client, at))?;
    }
    Ok(())
}

fn endpoint_goes_at(scene: &Scene<'_>, client: Client, at: At) -> Result<()> {
    scene.set_ready("web", &["pod-2a"])?;
    let flow = flow_at(scene, client, at)?;
    ensure!(flow.ask().by()? == "pod-2a", "the only endpoint");
    // Its server goes on: an answer from it would show a stale flow as well as silence would.
    scene.set_ready("web", &["pod-2b"])?;
    let reply = flow.ask();
    ensure!(reply.is_by("pod-2b"), "the very next datagram from {client:?} to {at:?} is {reply}");
    // The same when its address is another pod's on the client's own node.
    scene.set_ready("web", &["pod-1b"])?;
    let reply = flow.ask();
    ensure!(reply.is_by("pod-1b"), "the very next datagram from {client:?} to {at:?} is {reply}");
    Ok(())
}

/// Under the Local policy the endpoints of this node are what counts.
fn local_endpoint_goes(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.exposed("web").external_local().into()])?;
    for at in At::EXTERNAL {
        scene.set_ready("web", &["pod-1a", "pod-2a"])?;
        let flow = flow_at(scene, Client::Outside, at)?;
        ensure!(flow.ask().by()? == "pod-1a", "the only endpoint here");
        scene.set_ready("web", &["pod-1b", "pod-2a"])?;
        let reply = flow.ask();
        ensure!(reply.is_by("pod-1b"), "the very next datagram to {at:?} is {reply}");
    }
    Ok(())
}

/// From nobody to somebody: what was refused is served, at every frontend.
fn first_endpoint_comes_external(scene: &Scene<'_>) -> Result<()> {
    for (at, client) in At::EXTERNAL.into_iter().flat_map(|at| CLIENTS.map(|client| (at, client))) {
        scene.apply([scene.exposed("web").into(), scene.slice("web").into()])?;
        let flow = flow_at(scene, client, at)?;
        ensure_refused(&flow.ask()).context("nobody serves yet")?;
        scene.set_ready("web", &["pod-2a"])?;
        let reply = flow.ask();
        ensure!(reply.is_by("pod-2a"), "the very next datagram from {client:?} to {at:?} is {reply}");
    }
    Ok(())
}

fn first_endpoint_comes(scene: &Scene<'_>) -> Result<()> {
    for client in CLIENTS {
        scene.apply([scene.web().into(), scene.slice("web").into()])?;
        let flow = flow(scene, client)?;
        ensure_refused(&flow.ask()).context("nobody serves yet")?;
        scene.set_ready("web", &["pod-2a"])?;
        let reply = flow.ask();
        ensure!(reply.is_by("pod-2a"), "the very next datagram from {client:?} is {reply}");
        // All go, and another comes.
        scene.set_ready("web", &[])?;
        ensure_refused(&flow.ask()).context("nobody serves any more")?;
        scene.set_ready("web", &["pod-1b"])?;
        let reply = flow.ask();
        ensure!(reply.is_by("pod-1b"), "the very next datagram from {client:?} is {reply}");
    }
    Ok(())
}

/// The client is quicker than the proxy: it sends before its kernel has the Service.
fn service_comes(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let ip = tollgate_lab::address::service_cidr(scene.family).hosts().nth(99).context("a large network")?;
    for client in CLIENTS {
        let early = scene.probe(client).flow((ip, 81).into())?.patience(Probe::IMPATIENCE);
        let reply = early.ask();
        ensure!(reply.answer().is_err(), "there is no Service yet: {reply}");
        scene.apply([scene.web().cluster_ip(&ip.to_string()).into(), scene.ready("web", &["pod-2a"]).into()])?;
        let flow = early.patience(NEXT_DATAGRAM);
        let reply = flow.ask();
        ensure!(reply.is_by("pod-2a"), "the very next datagram from {client:?} is {reply}");
        scene.delete_service("web")?;
    }
    Ok(())
}

/// The client is quicker than the proxy: the node itself refuses what comes to a port that will be a NodePort, and its
/// connection tracking remembers the flow without a translation.
fn node_port_comes(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.web().node_port().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let to = scene.address(At::node(1).of("web", 81))?;
    let ports = |service: Value| service["spec"]["ports"].clone();
    let stored = ports(scene.lab.object(Key::service(scene.namespace(), "web"))?);
    for client in CLIENTS {
        scene.delete_service("web")?;
        let early = scene.probe(client).flow(to)?.patience(Probe::IMPATIENCE);
        let reply = early.ask();
        ensure!(reply.answer().is_err(), "there is no Service yet: {reply}");
        scene.apply([scene.service("web").node_port().spec("ports", stored.clone()).into()])?;
        let flow = early.patience(NEXT_DATAGRAM);
        let reply = flow.ask();
        ensure!(reply.is_by("pod-2a"), "the very next datagram from {client:?} is {reply}");
    }
    Ok(())
}

fn endpoint_goes_while_proxy_is_away(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let flow = flow(&scene, Client::Pod("pod-1a"))?;
    ensure!(flow.ask().by()? == "pod-2a", "the only endpoint");
    stage.lab.proxy(1).kill9()?;
    stage.scene()?.set_ready("web", &["pod-2b"])?;
    ensure!(flow.ask().by()? == "pod-2a", "nobody has told the kernel");
    stage.lab.start_proxy(1)?;
    let reply = flow.ask();
    ensure!(reply.is_by("pod-2b"), "the very next datagram is {reply}");
    Ok(())
}

fn serving_is_left_alone(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    for client in CLIENTS {
        scene.set_ready("web", &["pod-2a"])?;
        let flow = flow(scene, client)?;
        let first = flow.ask();
        let source = first.answer()?.source;
        let still = |what: &str| {
            let reply = flow.ask();
            let answer = reply.answer()?;
            ensure!(answer.by == "pod-2a" && answer.source == source, "{what}: {client:?} was {first}, now {reply}");
            Ok(())
        };
        scene.set_ready("web", &["pod-2a", "pod-1b", "pod-2b"])?;
        still("others came")?;
        scene.set_ready("web", &["pod-2a", "pod-2b"])?;
        still("one of the others went")?;
        let terminating = scene.ready("web", &["pod-2b"]).endpoint(Endpoint::terminating(scene.pod("pod-2a")));
        scene.apply([terminating.into()])?;
        still("it terminates, and still serves")?;
    }
    Ok(())
}
