//! Which endpoints serve.

use std::thread;

use anyhow::{Result, ensure};
use tollgate_lab::object::Endpoint;
use tollgate_lab::proxy::zone;
use tollgate_lab::{Outcome, Probe, Protocol, address};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("ready-only", Case::Table(ready_only)),
    ("terminating-fallback", Case::Table(terminating_fallback)),
    ("internal-policy-local", Case::Table(internal_policy_local)),
    ("no-local-drop", Case::Table(no_local_drop)),
    ("topology-zone", Case::Table(topology_zone)),
    ("topology-node", Case::Table(topology_node)),
    ("no-endpoints-reject", Case::Table(no_endpoints_reject)),
    ("no-endpoints-reject-external", Case::Table(no_endpoints_reject_external)),
    ("unknown-port-on-vip", Case::Table(unknown_port_on_vip)),
    ("unallocated-vip-drop", Case::Own(unallocated_vip_drop)),
];

const CLIENTS: [Client; 3] = [Client::Pod("pod-1a"), Client::Node(1), Client::Outside];

fn ready_only(scene: &Scene<'_>) -> Table {
    let slice = scene
        .ready("web", &["pod-1b", "pod-2a"])
        .endpoint(Endpoint::not_ready(scene.pod("pod-1a")))
        .endpoint(Endpoint::terminating(scene.pod("pod-2b")));
    let expect = Expect::Only(&["pod-1b", "pod-2a"]);
    let table = Table::new().given(scene.web()).given(slice);
    CLIENTS.into_iter().fold(table, |table, client| table.rows(client, ("web", 80), expect.clone()))
}

fn terminating_fallback(scene: &Scene<'_>) -> Table {
    let slice = scene
        .slice("web")
        .endpoint(Endpoint::not_ready(scene.pod("pod-1a")))
        .endpoint(Endpoint::terminating(scene.pod("pod-1b")))
        .endpoint(Endpoint::terminating(scene.pod("pod-2a")))
        .endpoint(Endpoint::with(scene.pod("pod-2b"), false, false, true));
    Table::new()
        .given(scene.web())
        .given(slice)
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::Only(&["pod-1b", "pod-2a"]))
        .rows(Client::Pod("pod-2b"), ("web", 80), Expect::Only(&["pod-1b", "pod-2a"]))
        // The local set falls back by itself: on node 1 nothing is ready, on node 2 something is.
        .given(scene.service("local").transports(80).internal_local())
        .given(scene.ready("local", &["pod-2a"]).endpoint(Endpoint::terminating(scene.pod("pod-1b"))))
        .rows(Client::Pod("pod-1a"), ("local", 80), Expect::Only(&["pod-1b"]))
        .rows(Client::Pod("pod-2b"), ("local", 80), Expect::Only(&["pod-2a"]))
}

fn internal_policy_local(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web().internal_local())
        .given(scene.ready("web", &["pod-1a", "pod-1b", "pod-2b"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::Only(&["pod-1a", "pod-1b"]))
        .rows(Client::Node(1), ("web", 80), Expect::Only(&["pod-1a", "pod-1b"]))
        .rows(Client::Pod("pod-2a"), ("web", 80), Expect::Only(&["pod-2b"]))
}

fn no_local_drop(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web().internal_local())
        .given(scene.ready("web", &["pod-1a", "pod-1b"]))
        .rows(Client::Pod("pod-2a"), ("web", 80), Expect::Silence)
        .rows(Client::Node(2), ("web", 80), Expect::Silence)
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::Only(&["pod-1a", "pod-1b"]))
        // Nobody anywhere is a closed port, whatever the policy.
        .given(scene.service("nobody").transports(80).internal_local())
        .each(CLIENTS, ("nobody", 80), Expect::Refused)
}

fn topology_zone(scene: &Scene<'_>) -> Table {
    let hinted = |name: &str, number| Endpoint::ready(scene.pod(name)).hinted_to_zone(&zone(number));
    let both = scene.service("partly").transports(80);
    let elsewhere = scene.service("elsewhere").transports(80);
    Table::new()
        .given(scene.web())
        .given(scene.slice("web").endpoints([hinted("pod-1a", 1), hinted("pod-1b", 2), hinted("pod-2a", 1)]))
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::Only(&["pod-1a", "pod-2a"]))
        .rows(Client::Pod("pod-2b"), ("web", 80), Expect::Only(&["pod-1b"]))
        // One endpoint without a hint, and nobody's hint counts.
        .given(both)
        .given(
            scene.slice("partly").endpoints([hinted("pod-1a", 1), hinted("pod-1b", 2)]).endpoint(scene.pod("pod-2a")),
        )
        .rows(Client::Pod("pod-1b"), ("partly", 80), Expect::Only(&["pod-1a", "pod-1b", "pod-2a"]))
        // No hint for this node's zone, and hints do not count here.
        .given(elsewhere)
        .given(scene.slice("elsewhere").endpoints([hinted("pod-1a", 2), hinted("pod-2a", 2)]))
        .rows(Client::Pod("pod-1b"), ("elsewhere", 80), Expect::Only(&["pod-1a", "pod-2a"]))
        // Who is not ready need not have a hint.
        .given(scene.service("unready").transports(80))
        .given(
            scene
                .slice("unready")
                .endpoints([hinted("pod-1a", 1), hinted("pod-2a", 2)])
                .endpoint(Endpoint::not_ready(scene.pod("pod-1b")))
                .endpoint(Endpoint::terminating(scene.pod("pod-2b"))),
        )
        .rows(Client::Pod("pod-1b"), ("unready", 80), Expect::Only(&["pod-1a"]))
        // The Local set ignores hints.
        .given(scene.service("local").transports(80).internal_local())
        .given(scene.slice("local").endpoints([hinted("pod-1a", 1), hinted("pod-1b", 2), hinted("pod-2a", 2)]))
        .rows(Client::Pod("pod-1b"), ("local", 80), Expect::Only(&["pod-1a", "pod-1b"]))
}

fn topology_node(scene: &Scene<'_>) -> Table {
    // Hinted to nodes one way and to zones the other: node hints come first.
    let hinted = |name: &str, node: u8| {
        Endpoint::ready(scene.pod(name)).hinted_to_zone(&zone(3 - node)).hinted_to_node(&format!("node-{node}"))
    };
    let partly = scene.service("partly").transports(80);
    let zone_only = Endpoint::ready(scene.pod("pod-2a")).hinted_to_zone(&zone(2));
    Table::new()
        .given(scene.web())
        .given(scene.slice("web").endpoints([hinted("pod-1a", 1), hinted("pod-2a", 2), hinted("pod-2b", 2)]))
        .rows(Client::Pod("pod-1b"), ("web", 80), Expect::Only(&["pod-1a"]))
        .rows(Client::Pod("pod-2b"), ("web", 80), Expect::Only(&["pod-2a", "pod-2b"]))
        // Not every endpoint has a node hint: the zones decide.
        .given(partly)
        .given(scene.slice("partly").endpoints([hinted("pod-1a", 1), hinted("pod-1b", 2), zone_only]))
        .rows(Client::Pod("pod-1a"), ("partly", 80), Expect::Only(&["pod-1b"]))
        .rows(Client::Pod("pod-2b"), ("partly", 80), Expect::Only(&["pod-1a", "pod-2a"]))
        // Every endpoint has a node hint, and none is for node 1: there the zones decide as well.
        .given(scene.service("elsewhere").transports(80))
        .given(scene.slice("elsewhere").endpoints([
            Endpoint::ready(scene.pod("pod-1a")).hinted_to_zone(&zone(1)).hinted_to_node("node-2"),
            Endpoint::ready(scene.pod("pod-2a")).hinted_to_zone(&zone(2)).hinted_to_node("node-2"),
        ]))
        .rows(Client::Pod("pod-1b"), ("elsewhere", 80), Expect::Only(&["pod-1a"]))
        .rows(Client::Pod("pod-2b"), ("elsewhere", 80), Expect::Only(&["pod-1a", "pod-2a"]))
}

fn no_endpoints_reject(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.web())
        .given(scene.service("unready").transports(80))
        .given(scene.slice("unready").endpoint(Endpoint::not_ready(scene.pod("pod-1b"))))
        .given(scene.service("control").transports(80))
        .given(scene.ready("control", &["pod-2a"]))
        .each(CLIENTS, ("web", 80), Expect::Refused)
        .each(CLIENTS, ("unready", 80), Expect::Refused)
        .each(CLIENTS, ("control", 80), Expect::Only(&["pod-2a"]))
}

fn no_endpoints_reject_external(scene: &Scene<'_>) -> Table {
    let table = Table::new()
        .given(scene.exposed("web"))
        .given(scene.exposed("local").external_local())
        .given(scene.exposed("control"))
        .given(scene.ready("control", &["pod-2a"]));
    table
        .at(At::EXTERNAL, CLIENTS, ("web", 80), Expect::Refused)
        .at(At::EXTERNAL, CLIENTS, ("local", 80), Expect::Refused)
        .at(At::EXTERNAL, CLIENTS, ("control", 80), Expect::Only(&["pod-2a"]))
        .at([At::node(1)], [Client::Node(2), Client::Pod("pod-2b")], ("web", 80), Expect::Refused)
}

fn unknown_port_on_vip(scene: &Scene<'_>) -> Table {
    let table = Table::new().given(scene.web()).given(scene.ready("web", &["pod-2a"]));
    CLIENTS.into_iter().fold(table, |table, client| {
        table
            .rows(client, ("web", 9000), Expect::Refused)
            // The port of the other protocol.
            .row(client, Protocol::Udp, ("web", 80), Expect::Refused)
            .row(client, Protocol::Tcp, ("web", 81), Expect::Refused)
            .rows(client, ("web", 80), Expect::Only(&["pod-2a"]))
    })
}

fn unallocated_vip_drop(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    let ip = address::service_cidr(scene.family).hosts().nth(77).expect("a large network");
    let strays = scene.cluster().strays()?;
    for (client, protocol) in CLIENTS.into_iter().flat_map(|client| Protocol::TRANSPORTS.map(|p| (client, p))) {
        let reply = scene.probe(client).impatient().dial(protocol, (ip, 80).into());
        // What a node's own process sends is dropped before it leaves, which the process may be told.
        let dropped = match &reply.outcome {
            Outcome::Timeout => true,
            Outcome::Failed(error) => matches!(client, Client::Node(_)) && error.contains("not permitted"),
            _ => false,
        };
        ensure!(dropped, "{client:?} over {protocol:?}: {reply}");
    }
    ensure!(scene.cluster().strays()? == strays, "packets for {ip} left the node");
    // The control: who is not in the Services' network goes his way, and the address works once a Service holds it.
    let outside = address::service_cidr(scene.family).broadcast();
    let next = match outside {
        std::net::IpAddr::V4(ip) => std::net::Ipv4Addr::from(u32::from(ip) + 1).into(),
        std::net::IpAddr::V6(ip) => std::net::Ipv6Addr::from(u128::from(ip) + 1).into(),
    };
    scene.probe(Client::Pod("pod-1a")).impatient().dial(Protocol::Udp, std::net::SocketAddr::new(next, 80));
    ensure!(scene.cluster().strays()? == strays + 1, "a packet for {next} goes its way");
    // Clients that are quicker than the proxy get through as soon as TCP sends its first packet again.
    thread::scope(|scope| {
        let quick = CLIENTS.map(|client| (client, scope.spawn(move || scene.probe(client).tcp((ip, 80).into()))));
        thread::sleep(Probe::IMPATIENCE);
        // The endpoint first: between a Service and its first endpoint, a client is refused.
        let objects = [scene.ready("web", &["pod-2a"]).into(), scene.web().cluster_ip(&ip.to_string()).into()];
        scene.apply(objects)?;
        for (client, dialling) in quick {
            let reply = dialling.join().expect("a probe does not panic");
            ensure!(reply.is_by("pod-2a"), "{client:?} was quicker than the proxy: {reply}");
        }
        Ok(())
    })
}
