//! What the proxy says of itself.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_api::v1::Key;
use tollgate_lab::object::{self, Endpoint};
use tollgate_lab::proxy::zone;
use tollgate_lab::{Mode, Protocol, Tollgate, eventually};

use crate::scene::{Client, Scene, Stage};
use crate::table::ensure_refused;
use crate::{Case, cluster};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("healthz", Case::Own(healthz)),
    ("healthz-node-is-being-deleted", Case::Own(node_is_being_deleted)),
    ("healthz-stuck", Case::Lab(lab_that_looks_often, stuck)),
    ("health-node-port", Case::Steps(health_node_port)),
    ("health-node-port-unhealthy-proxy", Case::Lab(lab_that_looks_often, unhealthy_proxy)),
];

fn healthz(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    for node in [1, 2] {
        let proxy = stage.lab.proxy(node);
        let (status, body) = proxy.healthz()?;
        ensure!(status == 200 && body.contains("lastUpdated") && body.contains("currentTime"), "{status}: {body}");
        ensure!(proxy.livez()?.0 == 200, "it is alive");
    }
    // It needs no control plane to be healthy: nothing waits to be synced.
    stage.lab.control_plane().stop()?;
    ensure!(stage.lab.proxy(1).healthz()?.0 == 200, "nothing waits");
    stage.lab.proxy(1).stop()?;
    ensure!(stage.lab.proxy(1).healthz().is_err(), "nobody is there to say so");
    Ok(())
}

/// A load balancer is told to leave a node that is about to go; the proxy itself is as alive as before.
fn node_is_being_deleted(stage: &mut Stage) -> Result<()> {
    let lab = &mut stage.lab;
    let addresses = lab.cluster().node(1).addresses();
    let mut node = object::node("node-1", addresses, Some(&zone(1)));
    node["spec"] = json!({ "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] });
    lab.apply(node)?;
    eventually("healthz to tell load balancers to leave", || {
        let (status, body) = lab.proxy(1).healthz()?;
        ensure!(status == 503, "{status}: {body}");
        Ok(())
    })?;
    ensure!(lab.proxy(1).livez()?.0 == 200, "the proxy is alive");
    ensure!(lab.proxy(2).healthz()?.0 == 200, "the other node stays");
    lab.apply(object::node("node-1", addresses, Some(&zone(1))))?;
    eventually("healthz to call them back", || {
        let (status, body) = lab.proxy(1).healthz()?;
        ensure!(status == 200, "{status}: {body}");
        Ok(())
    })?;
    ensure!(lab.object(Key::node("node-1")).is_ok(), "the Node is there");
    Ok(())
}

/// Its proxies are unhealthy after two seconds in which something waits.
fn lab_that_looks_often(mode: Mode) -> Result<Tollgate> {
    Tollgate::start_with(cluster()?, mode, &[("--sync-period", "1s")])
}

/// Somebody keeps the proxy of node 1 from writing, while there is something to write; then lets go.
fn stuck(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-1a", "pod-2a"]).into()])?;
    let says = |lab: &mut Tollgate, node, wanted: u16| {
        let (healthz, livez) = (lab.proxy(node).healthz()?, lab.proxy(node).livez()?);
        ensure!((healthz.0, livez.0) == (wanted, wanted), "healthz says {healthz:?} and livez {livez:?}");
        Ok(())
    };
    let obstacle = stage.lab.proxy(1).start_beside(&stage.mode.obstacle(stage.family))?;
    eventually_amid_changes("the proxy to say that it can't write", stage, |stage| says(&mut stage.lab, 1, 503))?;
    says(&mut stage.lab, 2, 200).context("the other node")?;
    obstacle.kill9()?;
    eventually("the proxy to say that all is well again", || says(&mut stage.lab, 1, 200))?;
    let scene = stage.scene()?;
    scene.set_ready("web", &["pod-2b"])?;
    scene.probe(Client::Pod("pod-1a")).spread(Protocol::Tcp, scene.vip("web", 80)?, 64).ensure_only(&["pod-2b"])
}

/// A load balancer is told to leave a node whose proxy can't write, whatever endpoints it has.
fn unhealthy_proxy(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.exposed("web").external_local().into(), scene.ready("web", &["pod-1a", "pod-2a"]).into()])?;
    [1, 2].into_iter().try_for_each(|node| ensure_health(&scene, node, true))?;
    let obstacle = stage.lab.proxy(1).start_beside(&stage.mode.obstacle(stage.family))?;
    eventually_amid_changes("node 1 to be given up", stage, |stage| ensure_health(&stage.scene()?, 1, false))?;
    let scene = stage.scene()?;
    ensure_health(&scene, 2, true).context("the other node stays")?;
    obstacle.kill9()?;
    eventually("node 1 to be used again", || ensure_health(&scene, 1, true))
}

/// While the endpoints of "web" change all the time: each node has one of them in each state.
fn eventually_amid_changes(what: &str, stage: &mut Stage, condition: impl Fn(&mut Stage) -> Result<()>) -> Result<()> {
    let mut states = [["pod-1a", "pod-2b"], ["pod-1a", "pod-2a"]].into_iter().cycle();
    eventually(what, || {
        let scene = stage.scene()?;
        stage.lab.apply(scene.ready("web", &states.next().expect("for ever")))?;
        condition(stage)
    })
}

/// Fails unless the health check port of "web" says this on a node that has one endpoint.
fn ensure_health(scene: &Scene<'_>, node: u8, is_proxy_healthy: bool) -> Result<()> {
    let to = (scene.cluster().node(node).ip(scene.family), health_check_node_port(scene)?).into();
    let response = scene.probe(Client::Outside).get(to, "/healthz")?;
    let body: Value = serde_json::from_str(response.body())?;
    let wanted = if is_proxy_healthy { 200 } else { 503 };
    ensure!(
        response.status() == wanted && body["localEndpoints"] == 1 && body["serviceProxyHealthy"] == is_proxy_healthy,
        "node {node} says {}: {body}",
        response.status()
    );
    Ok(())
}

fn health_check_node_port(scene: &Scene<'_>) -> Result<u16> {
    let stored = scene.lab.object(Key::service(scene.namespace(), "web"))?;
    let port = stored["spec"]["healthCheckNodePort"].as_u64().context("it has a health check port")?;
    Ok(u16::try_from(port)?)
}

/// What a load balancer is told by the health check port of each node, in kube-proxy's words.
fn health_node_port(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.exposed("web").external_local().into(), scene.ready("web", &["pod-1a"]).into()])?;
    let port = health_check_node_port(scene)?;
    let ensure_count = |node: u8, count: u64| -> Result<()> {
        let ip = scene.cluster().node(node).ip(scene.family);
        let response = scene.probe(Client::Outside).get((ip, port).into(), "/healthz")?;
        let wanted = if count > 0 { 200 } else { 503 };
        ensure!(response.status() == wanted, "node {node} of {count} endpoints says {response:?}");
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let weight = count.to_string();
        ensure!(header("X-Load-Balancing-Endpoint-Weight") == Some(&weight), "{response:?}");
        ensure!(header("Content-Type").is_some_and(|kind| kind.starts_with("application/json")), "{response:?}");
        let body: Value = serde_json::from_str(response.body())?;
        let expected = json!({
            "service": { "namespace": scene.namespace(), "name": "web" },
            "localEndpoints": count,
            "serviceProxyHealthy": true,
        });
        ensure!(body == expected, "{body}");
        Ok(())
    };
    let ensure_counts = |one, two| ensure_count(1, one).and_then(|()| ensure_count(2, two));
    ensure_counts(1, 0)?;
    // The same address in two slices is one endpoint.
    scene.apply([scene.ready("web", &["pod-1a", "pod-2b"]).named("again").into()])?;
    ensure_counts(1, 1)?;
    scene.set_ready("web", &["pod-1a", "pod-1b", "pod-2a"])?;
    ensure_counts(2, 2)?;
    // Who terminates serves, but is nothing to send new traffic for.
    let terminating = ["pod-1a", "pod-2a"].map(|name| Endpoint::terminating(scene.pod(name)));
    scene.apply([
        scene.slice("web").endpoints(terminating).into(),
        scene.ready("web", &["pod-2b"]).named("again").into(),
    ])?;
    ensure_counts(0, 1)?;
    scene.set_ready("web", &["pod-1b"])?;
    ensure_counts(1, 1)?;
    // With the policy, the port goes.
    let to = (scene.cluster().node(1).ip(scene.family), port).into();
    scene.apply([scene.exposed("web").spec("externalTrafficPolicy", json!("Cluster")).into()])?;
    eventually("the health check port to be closed", || ensure_refused(&scene.probe(Client::Outside).tcp(to)))
}
