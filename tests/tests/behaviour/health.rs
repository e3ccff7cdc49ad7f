//! What the proxy says of itself.

use anyhow::{Result, ensure};
use serde_json::json;
use tollgate_api::v1::Key;
use tollgate_lab::eventually;
use tollgate_lab::object;
use tollgate_lab::proxy::zone;

use crate::Case;
use crate::scene::Stage;

pub(crate) const CASES: &[(&str, Case)] =
    &[("healthz", Case::Own(healthz)), ("healthz-node-is-being-deleted", Case::Own(node_is_being_deleted))];

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
