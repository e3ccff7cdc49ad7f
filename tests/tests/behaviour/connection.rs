//! TCP connections while everything changes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_api::v1::Key;
use tollgate_lab::object::Endpoint;
use tollgate_lab::{Connection, Counters, Load, Outcome, Protocol};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::ensure_refused;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("no-gap-on-update", Case::Own(no_gap_on_update)),
    ("no-gap-on-update-external", Case::Own(no_gap_on_update_external)),
    ("no-gap-on-restart", Case::Own(no_gap_on_restart)),
    ("tcp-established-survives", Case::Own(established_survives)),
    ("tcp-terminating-drains", Case::Steps(terminating_drains)),
    ("removed-frontend-closes", Case::Own(removed_frontend_closes)),
    ("removed-frontend-closes-external", Case::Steps(removed_external_frontends_close)),
];

const CLIENTS: [Client; 4] = [Client::Pod("pod-1a"), Client::Pod("pod-2b"), Client::Node(1), Client::Outside];

/// Ten thousand connections at a thousand a second, from pods of both nodes, while endpoints come and go all the time.
fn no_gap_on_update(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let counters = change_all_the_time(&scene, start_load(&scene)?)?;
    println!("no-gap-on-update: {counters}");
    counters.ensure_none_failed()?;
    ensure!(counters.by.len() == 3, "every endpoint had its share: {:?}", counters.by);
    Ok(())
}

/// The same through NodePorts, external IPs and load-balancer IPs, from outside, from pods and from a node.
fn no_gap_on_update_external(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.exposed("web").into(), scene.ready("web", &["pod-2a"]).into()])?;
    let cluster = scene.cluster();
    let clients = [
        cluster.host(1).netns(),
        cluster.host(2).netns(),
        cluster.node(1).netns(),
        scene.pod("pod-1a").netns(),
        scene.pod("pod-2b").netns(),
    ];
    let mut dials = Vec::new();
    for at in At::EXTERNAL.into_iter().chain([At::node(2)]) {
        let to = scene.address(at.of("web", 80))?;
        dials.extend(clients.map(|client| (client, to)));
    }
    let load = Load::start_each(dials, 1000);
    load.run_for(100)?;
    let counters = change_all_the_time(&scene, load)?;
    println!("no-gap-on-update-external: {counters}");
    counters.ensure_none_failed()?;
    ensure!(counters.by.len() == 3, "every endpoint had its share: {:?}", counters.by);
    Ok(())
}

fn change_all_the_time(scene: &Scene<'_>, load: Load) -> Result<Counters> {
    // One endpoint always serves; the others come, terminate and go, in turn, and so do other Services.
    let strays = scene.cluster().strays()?;
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
    println!("{rounds} rounds of 8 changes, {} packets went astray", scene.cluster().strays()? - strays);
    Ok(counters)
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
    scene.apply([scene.exposed("web").into(), scene.ready("web", &["pod-2a"]).into()])?;
    let mut connections = open_all(&scene)?;
    for (at, client) in At::EXTERNAL.into_iter().flat_map(|at| CLIENTS.map(|client| (at, client))) {
        connections.push((client, scene.probe(client).open(scene.address(at.of("web", 80))?)?));
    }
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
    scene.apply([scene.exposed("web").affinity(Duration::from_secs(60)).into()])?;
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

/// Its other addresses go one by one, and the ClusterIP stays.
fn removed_external_frontends_close(scene: &Scene<'_>) -> Result<()> {
    let clients = [Client::Outside, Client::Pod("pod-1a"), Client::Node(1)];
    scene.apply([scene.exposed("web").into(), scene.ready("web", &["pod-2a"]).into()])?;
    let mut open = Vec::new();
    for at in At::ALL {
        open.push((at, [scene.address(at.of("web", 80))?, scene.address(at.of("web", 81))?]));
    }
    let check = |closed: &[At]| -> Result<()> {
        for (client, (at, to)) in clients.into_iter().flat_map(|client| open.iter().map(move |at| (client, at))) {
            for (protocol, to) in Protocol::TRANSPORTS.into_iter().zip(to) {
                let probe = scene.probe(client);
                let what = || format!("{client:?} dials {at:?} ({to}) over {protocol:?}");
                if !closed.contains(at) {
                    probe.dial(protocol, *to).answer().with_context(what)?;
                } else if matches!(at, At::NodePort(_)) {
                    // An address of the node, where nobody listens.
                    ensure_refused(&probe.dial(protocol, *to)).with_context(what)?;
                } else {
                    let reply = probe.impatient().dial(protocol, *to);
                    ensure!(reply.answer().is_err(), "{}: {reply}", what());
                }
            }
        }
        Ok(())
    };
    check(&[])?;
    let ip = scene.vip("web", 80)?.ip().to_string();
    let lb = scene.load_balancer_ip("web");
    scene.apply([scene.web().load_balancer(lb).into()])?;
    check(&[At::ExternalIp]).context("the external IP is gone")?;
    scene.apply([scene.web().node_port().into()])?;
    check(&[At::ExternalIp, At::LoadBalancerIp]).context("the load-balancer IP is gone")?;
    scene.apply([scene.web().spec("type", json!("ClusterIP")).cluster_ip(&ip).into()])?;
    check(&At::EXTERNAL).context("the NodePort is gone")
}
