//! TCP connections while everything changes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tollgate_api::v1::Key;
use tollgate_lab::object::Endpoint;
use tollgate_lab::{Connection, Load, Outcome, Protocol};

use crate::Case;
use crate::scene::{Client, Scene, Stage};
use crate::table::ensure_refused;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("no-gap-on-update", Case::Own(no_gap_on_update)),
    ("no-gap-on-restart", Case::Own(no_gap_on_restart)),
    ("tcp-established-survives", Case::Own(established_survives)),
    ("tcp-terminating-drains", Case::Steps(terminating_drains)),
    ("removed-frontend-closes", Case::Own(removed_frontend_closes)),
];

const CLIENTS: [Client; 4] = [Client::Pod("pod-1a"), Client::Pod("pod-2b"), Client::Node(1), Client::Outside];

/// Ten thousand connections at a thousand a second, from pods of both nodes, while endpoints come and go all the time.
fn no_gap_on_update(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let load = start_load(&scene)?;
    // One endpoint always serves; the others come, terminate and go, in turn, and so do other Services.
    let mut rounds = 0;
    while load.counters().started < 10_000 {
        let terminating =
            scene.ready("web", &["pod-2a", "pod-2b"]).endpoint(Endpoint::terminating(scene.pod("pod-1b")));
        let changes: [Value; 7] = [
            scene.ready("web", &["pod-2a", "pod-1b"]).into(),
            scene.ready("web", &["pod-2a", "pod-1b", "pod-2b"]).into(),
            scene.service("other").port(Protocol::Tcp, 80).into(),
            terminating.into(),
            scene.ready("other", &["pod-1a"]).into(),
            scene.ready("web", &["pod-2a", "pod-2b"]).into(),
            scene.ready("web", &["pod-2a"]).into(),
        ];
        for change in changes {
            scene.lab.apply(change)?;
            // In every other round each change reaches the kernel by itself, and else as many at once as it comes to.
            if rounds % 2 == 0 {
                scene.lab.settle()?;
            }
        }
        scene.delete_service("other")?;
        rounds += 1;
    }
    let counters = load.stop();
    println!("no-gap-on-update, {rounds} rounds of 8 changes: {counters}");
    counters.ensure_none_failed()?;
    ensure!(counters.by.len() == 3, "every endpoint had its share: {:?}", counters.by);
    Ok(())
}

/// The same while proxies are restarted and killed.
fn no_gap_on_restart(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a", "pod-1b"]).into()])?;
    let load = start_load(&scene)?;
    for round in 0..2 {
        for node in [1, 2] {
            stage.lab.restart_proxy(node)?;
            stage.lab.proxy(node).kill9()?;
            load.run_for(200)?;
            // What changes meanwhile is found at the start.
            let pods: &[_] = if round == 0 { &["pod-2a"] } else { &["pod-2a", "pod-2b"] };
            stage.scene()?.set_ready("web", pods)?;
            stage.lab.start_proxy(node)?;
        }
    }
    load.run_for(500)?;
    let counters = load.stop();
    println!("no-gap-on-restart: {counters}");
    counters.ensure_none_failed()
}

fn start_load(scene: &Scene<'_>) -> Result<Load> {
    let clients = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"].map(|name| scene.pod(name).netns());
    let load = Load::start(scene.vip("web", 80)?, clients, 1000);
    load.run_for(100)?;
    Ok(load)
}

/// A connection from each client to one pod, which is the only endpoint for the moment.
fn open_all(scene: &Scene<'_>) -> Result<Vec<(Client, Connection)>> {
    let vip = scene.vip("web", 80)?;
    let open = |client| Ok((client, scene.probe(client).open(vip)?));
    CLIENTS.into_iter().map(open).collect()
}

fn ping_all(connections: &mut [(Client, Connection)], what: &str) -> Result<()> {
    let mut ping = |(client, connection): &mut (Client, Connection)| {
        connection.ping().with_context(|| format!("the connection of {client:?}: {what}"))
    };
    connections.iter_mut().try_for_each(&mut ping)
}

fn established_survives(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let mut connections = open_all(&scene)?;
    let hairpin = scene.probe(Client::Pod("pod-2a")).open(scene.vip("web", 80)?)?;
    connections.push((Client::Pod("pod-2a"), hairpin));
    ping_all(&mut connections, "just opened")?;
    scene.set_ready("web", &["pod-2a", "pod-1b", "pod-2b"])?;
    ping_all(&mut connections, "other endpoints came")?;
    scene.set_ready("web", &["pod-2a", "pod-2b"])?;
    ping_all(&mut connections, "another endpoint went")?;
    scene.apply([scene.service("other").port(Protocol::Tcp, 80).into(), scene.ready("other", &["pod-1a"]).into()])?;
    ping_all(&mut connections, "another Service came")?;
    scene.delete_service("other")?;
    ping_all(&mut connections, "another Service went")?;
    scene.apply([scene.web().affinity(Duration::from_secs(60)).into()])?;
    ping_all(&mut connections, "the Service became sticky")?;
    for node in [1, 2] {
        stage.lab.proxy(node).stop()?;
        ping_all(&mut connections, "the proxy is stopped")?;
        stage.lab.start_proxy(node)?;
        ping_all(&mut connections, "the proxy is back")?;
        stage.lab.proxy(node).kill9()?;
        ping_all(&mut connections, "the proxy is killed")?;
        stage.lab.start_proxy(node)?;
        ping_all(&mut connections, "the proxy is back after a kill")?;
    }
    Ok(())
}

fn terminating_drains(scene: &Scene<'_>) -> Result<()> {
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let mut connections = open_all(scene)?;
    let terminating = || scene.slice("web").endpoint(Endpoint::terminating(scene.pod("pod-2a")));
    scene.apply([terminating().into()])?;
    ping_all(&mut connections, "its endpoint terminates, and nobody else is there")?;
    scene.apply([terminating().endpoint(scene.pod("pod-1b")).into()])?;
    ping_all(&mut connections, "its endpoint terminates, and another serves")?;
    for client in CLIENTS {
        scene.probe(client).spread(Protocol::Tcp, scene.vip("web", 80)?, 32).ensure_only(&["pod-1b"])?;
    }
    let draining = Endpoint::with(scene.pod("pod-2a"), false, false, true);
    scene.apply([scene.ready("web", &["pod-1b"]).endpoint(draining).into()])?;
    ping_all(&mut connections, "its endpoint terminates, and fails its probe")
}

fn removed_frontend_closes(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let two = scene.web().port(Protocol::Http, 8080);
    scene.apply([two.into(), scene.ready("web", &["pod-2a"]).into()])?;
    let (tcp, udp, http) = (scene.vip("web", 80)?, scene.vip("web", 81)?, scene.vip("web", 8080)?);
    for client in CLIENTS {
        scene.probe(client).http(http).answer()?;
    }
    // A port goes: nobody knows it, but the address is still held.
    scene.apply([scene.web().cluster_ip(&tcp.ip().to_string()).into()])?;
    for client in CLIENTS {
        ensure_refused(&scene.probe(client).http(http)).context("the port is gone")?;
        scene.probe(client).tcp(tcp).answer()?;
        scene.probe(client).udp(udp).answer()?;
    }
    // The Service goes, though its slice is still there.
    scene.lab.delete(Key::service(scene.namespace(), "web"))?;
    scene.lab.settle()?;
    for (client, to) in CLIENTS.into_iter().flat_map(|client| [(client, tcp), (client, udp)]) {
        let protocol = if to == tcp { Protocol::Tcp } else { Protocol::Udp };
        let reply = scene.probe(client).impatient().dial(protocol, to);
        ensure!(!matches!(reply.outcome, Outcome::Answered(_)), "{client:?} still gets through to {to}: {reply}");
    }
    Ok(())
}
