//! The control plane goes and comes back.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tollgate_api::v1::Key;
use tollgate_lab::{Family, Load, Mode, Outcome, Protocol, Tollgate, address, eventually, object, run_on};

use crate::scene::{Client, Scene, Stage};
use crate::{Case, cluster};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("source-lost-keeps-serving", Case::Own(source_lost)),
    ("source-lost-keeps-serving-restarted-proxy", Case::Own(proxy_restarts_without_source)),
    ("source-lost-keeps-serving-relist", Case::Own(relist)),
    ("node-addresses-follow", Case::Own(node_addresses_follow)),
    ("source-over-tls", Case::Lab(secured_lab, over_tls)),
];

const CLIENTS: [Client; 3] = [Client::Pod("pod-1a"), Client::Node(2), Client::Outside];

fn ensure_served(scene: &Scene<'_>, to: std::net::SocketAddr, pods: &[&str]) -> Result<()> {
    CLIENTS.into_iter().try_for_each(|client| scene.probe(client).spread(Protocol::Tcp, to, 64).ensure_only(pods))
}

fn source_lost(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let vip = scene.vip("web", 80)?;
    let mut connection = scene.probe(Client::Pod("pod-1a")).open(vip)?;
    stage.lab.control_plane().kill9()?;
    // Its death is known to the proxies at once, since their streams end.
    for node in [1, 2] {
        let proxy = stage.lab.proxy(node);
        eventually("the proxy to notice", || {
            ensure!(proxy.metric("tollgate_source_connected")? == 0.0, "it is connected");
            Ok(())
        })?;
        ensure!(proxy.healthz()?.0 == 200, "nothing waits, so it is healthy");
    }
    let scene = Scene::of(&stage.lab, stage.family, "default");
    ensure_served(&scene, vip, &["pod-2a"])?;
    connection.ping()?;
    stage.lab.control_plane().resume()?;
    let scene = stage.scene()?;
    scene.set_ready("web", &["pod-2b"])?;
    ensure_served(&scene, vip, &["pod-2b"])?;
    connection.ping()
}

fn proxy_restarts_without_source(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let vip = scene.vip("web", 80)?;
    let mut connection = scene.probe(Client::Pod("pod-1a")).open(vip)?;
    stage.lab.control_plane().stop()?;
    for node in [1, 2] {
        stage.lab.proxy(node).kill9()?;
        stage.lab.proxy(node).start()?;
        stage.lab.proxy(node).wait_healthy()?;
    }
    let scene = Scene::of(&stage.lab, stage.family, "default");
    ensure_served(&scene, vip, &["pod-2a"])?;
    connection.ping()?;
    // It has heard nothing and so it must not have written anything either.
    stage.lab.proxy(1).stop()?;
    ensure_served(&Scene::of(&stage.lab, stage.family, "default"), vip, &["pod-2a"])?;
    stage.lab.control_plane().resume()?;
    stage.lab.start_proxy(1)?;
    let scene = stage.scene()?;
    scene.set_ready("web", &["pod-2b"])?;
    ensure_served(&scene, vip, &["pod-2b"])?;
    connection.ping()
}

/// A control plane with another store, which has never heard of one of the Services and has the other as it was.
fn relist(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let ip = |n| address::service_cidr(scene.family).hosts().nth(n).expect("a large network").to_string();
    let objects = |name: &str, n| -> [Value; 2] {
        let service = scene.service(name).port(Protocol::Tcp, 80).cluster_ip(&ip(n));
        [service.into(), scene.ready(name, &["pod-2a"]).into()]
    };
    let kept = objects("kept", 500);
    scene.apply(kept.clone().into_iter().chain(objects("gone", 501)))?;
    let (kept_vip, gone_vip) = (scene.vip("kept", 80)?, scene.vip("gone", 80)?);
    ensure_served(&scene, kept_vip, &["pod-2a"])?;
    ensure_served(&scene, gone_vip, &["pod-2a"])?;
    let load = Load::start(kept_vip, [scene.pod("pod-1a").netns(), scene.pod("pod-2b").netns()], 500);
    let mut connection = scene.probe(Client::Pod("pod-1a")).open(kept_vip)?;
    // While the new store is filled nobody looks: else "kept" would be gone for a moment, and rightly so.
    [1, 2].into_iter().try_for_each(|node| stage.lab.proxy(node).freeze())?;
    stage.lab.control_plane().start_anew()?;
    kept.into_iter().try_for_each(|object| stage.lab.apply(object).map(drop))?;
    [1, 2].into_iter().try_for_each(|node| stage.lab.proxy(node).thaw())?;
    let scene = Scene::of(&stage.lab, stage.family, "default");
    for client in CLIENTS {
        eventually("the deleted Service to be gone", || {
            let reply = scene.probe(client).impatient().tcp(gone_vip);
            ensure!(!matches!(reply.outcome, Outcome::Answered(_)), "{client:?}: {reply}");
            Ok(())
        })?;
    }
    ensure_served(&scene, kept_vip, &["pod-2a"])?;
    connection.ping()?;
    let counters = load.stop();
    println!("source-lost-keeps-serving-relist: {counters}");
    counters.ensure_none_failed()
}

/// A Node object that the proxy has made has the addresses that its node has; one that somebody else has made is his.
fn node_addresses_follow(stage: &mut Stage) -> Result<()> {
    let family = stage.family;
    for number in [1, 2] {
        stage.lab.proxy(number).stop()?;
        stage.lab.proxy(number).unset_flag("--node-ip");
    }
    let others = object::node("node-1", stage.lab.cluster().node(1).addresses(), None);
    stage.lab.apply(others)?;
    [1, 2].into_iter().try_for_each(|number| stage.lab.start_proxy(number))?;
    let addresses = |lab: &Tollgate, name: &str| -> Result<Vec<String>> {
        let node = lab.object(Key::node(name))?;
        let all = node["status"]["addresses"].as_array().context("a Node has addresses")?;
        Ok(all.iter().filter_map(|address| Some(address["address"].as_str()?.to_owned())).collect())
    };
    let [before, others] = ["node-2", "node-1"].map(|name| addresses(&stage.lab, name));
    let (before, others) = (before?, others?);
    // The address that a default route prefers is the primary one.
    for number in [1, 2] {
        let ip = stage.lab.cluster().node(number).second_ip(family);
        let version = if family == Family::V4 { "-4" } else { "-6" };
        let replace = |ip| format!("ip {version} route replace default via {} src {ip}", address::GATEWAY.of(family));
        run_on(stage.lab.cluster().node(number), &replace(ip))?;
    }
    let ip = stage.lab.cluster().node(2).second_ip(family).to_string();
    eventually("the Node object to have the new address", || {
        let now = addresses(&stage.lab, "node-2")?;
        ensure!(now.len() == before.len() && now.contains(&ip), "{now:?} after {before:?}");
        Ok(())
    })?;
    ensure!(addresses(&stage.lab, "node-1")? == others, "a Node that somebody has written was changed");
    Ok(())
}

fn secured_lab(mode: Mode) -> Result<Tollgate> {
    Tollgate::start_secured(cluster()?, mode)
}

/// Each proxy has its node's certificate, and may register that node alone.
fn over_tls(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let vip = scene.vip("web", 80)?;
    ensure_served(&scene, vip, &["pod-2a"])?;
    for node in [1, 2] {
        let name = scene.cluster().node(node).name().to_owned();
        ensure!(stage.lab.object(Key::node(&name))?["metadata"]["name"] == name.as_str(), "{name} is not registered");
    }
    // Connections are made anew, and files are read again.
    stage.lab.control_plane().stop()?;
    stage.lab.control_plane().resume()?;
    let scene = stage.scene()?;
    scene.set_ready("web", &["pod-2b"])?;
    ensure_served(&scene, vip, &["pod-2b"])?;
    // With the other node's certificate it reads, but can't register this node, and says so; what it made stays.
    let (own, other) = (scene.cluster().node(1).name().to_owned(), scene.cluster().node(2).name().to_owned());
    stage.lab.delete(Key::node(&own))?;
    let access = stage.lab.control_plane().access(&other).context("the lab has no TLS")?;
    stage.lab.proxy(1).stop()?;
    stage.lab.proxy(1).set_access(&access);
    stage.lab.proxy(1).start()?;
    let refusal = format!("may not apply node {own}: a node writes its own Node alone, node {other}");
    eventually("the proxy to be refused", || {
        ensure!(stage.lab.proxy(1).log().contains(&refusal), "nothing of it is in its log");
        Ok(())
    })?;
    ensure_served(&Scene::of(&stage.lab, stage.family, "default"), vip, &["pod-2b"])
}
