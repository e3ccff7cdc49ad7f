//! Spreading and stickiness.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tollgate_lab::Protocol;
use tollgate_lab::object::Endpoint;
use tollgate_lab::proxy::zone;

use crate::Case;
use crate::scene::{At, Client, Scene};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("even-spread", Case::Table(even_spread)),
    ("even-spread-external", Case::Table(even_spread_external)),
    ("weights-equal", Case::Table(weights_equal)),
    ("affinity-client-ip", Case::Table(affinity_client_ip)),
    ("affinity-client-ip-every-frontend", Case::Steps(affinity_every_frontend)),
    ("affinity-client-ip-clock", Case::Steps(affinity_clock)),
    ("affinity-client-ip-timeout", Case::Steps(affinity_client_ip_timeout)),
    ("affinity-dead-endpoint", Case::Steps(affinity_dead_endpoint)),
];

fn even_spread(scene: &Scene<'_>) -> Table {
    let four = Expect::Even(&["pod-1a", "pod-1b", "pod-2a", "pod-2b"]);
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1a", "pod-1b", "pod-2a", "pod-2b"]))
        .rows(Client::Pod("pod-1a"), ("web", 80), four.clone())
        .rows(Client::Node(2), ("web", 80), four.clone())
        .rows(Client::Outside, ("web", 80), four)
        .given(scene.service("three").port(Protocol::Http, 80))
        .given(scene.ready("three", &["pod-1a", "pod-1b", "pod-2b"]))
        .row(Client::Pod("pod-1a"), Protocol::Http, ("three", 80), Expect::Even(&["pod-1a", "pod-1b", "pod-2b"]))
}

fn even_spread_external(scene: &Scene<'_>) -> Table {
    Table::new()
        .given(scene.exposed("web"))
        .given(scene.ready("web", &["pod-1a", "pod-1b", "pod-2a"]))
        .at(At::EXTERNAL, [Client::Outside], ("web", 80), Expect::Even(&["pod-1a", "pod-1b", "pod-2a"]))
        .given(scene.exposed("local").external_local())
        .given(scene.ready("local", &["pod-1a", "pod-1b", "pod-2a", "pod-2b"]))
        .at(At::EXTERNAL, [Client::Outside], ("local", 80), Expect::Even(&["pod-1a", "pod-1b"]))
}

/// Near or far, in one slice or another, hinted to this zone by itself or with others: each serves as much.
fn weights_equal(scene: &Scene<'_>) -> Table {
    let hinted = |name: &str| Endpoint::ready(scene.pod(name)).hinted_to_zone(&zone(1));
    Table::new()
        .given(scene.web())
        .given(scene.ready("web", &["pod-1a"]).named("one"))
        .given(scene.ready("web", &["pod-1b", "pod-2a", "pod-2b"]).named("three"))
        .rows(Client::Pod("pod-1a"), ("web", 80), Expect::Even(&["pod-1a", "pod-1b", "pod-2a", "pod-2b"]))
        .given(scene.service("hinted").transports(80))
        .given(scene.slice("hinted").endpoints([hinted("pod-1a"), hinted("pod-2a"), hinted("pod-2b")]))
        .rows(Client::Pod("pod-1b"), ("hinted", 80), Expect::Even(&["pod-1a", "pod-2a", "pod-2b"]))
}

fn affinity_client_ip(scene: &Scene<'_>) -> Table {
    let pods = &["pod-1a", "pod-1b", "pod-2a", "pod-2b"];
    let table = Table::new()
        .given(scene.web().affinity(Duration::from_secs(10800)))
        .given(scene.ready("web", pods))
        .given(scene.service("control").transports(80))
        .given(scene.ready("control", pods))
        .rows(Client::Pod("pod-1a"), ("control", 80), Expect::Only(pods));
    [Client::Pod("pod-1a"), Client::Pod("pod-1b"), Client::Pod("pod-2a"), Client::Node(1), Client::Outside]
        .into_iter()
        .fold(table, |table, client| table.rows(client, ("web", 80), Expect::OneOf(pods)))
}

/// Whichever of a Service port's addresses a client comes by, it is the same client.
fn affinity_every_frontend(scene: &Scene<'_>) -> Result<()> {
    let pods = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"];
    scene.apply([
        scene.exposed("web").affinity(Duration::from_secs(10800)).into(),
        scene.ready("web", &pods).into(),
        scene.exposed("control").into(),
        scene.ready("control", &pods).into(),
    ])?;
    for (protocol, port) in Protocol::transports().iter().zip(80..) {
        for client in [Client::Outside, Client::Stranger, Client::Pod("pod-1a"), Client::Node(1)] {
            let spread = |service, at: At, count| -> Result<_> {
                Ok(scene.probe(client).spread(*protocol, scene.address(at.of(service, port))?, count))
            };
            let first = scene.probe(client).dial(*protocol, scene.address(("web", port))?).by()?.to_owned();
            for at in At::ALL {
                let what = || format!("{client:?} dials {at:?} over {protocol:?}");
                spread("web", at, 16)?.ensure_only(&[&first]).with_context(what)?;
                spread("control", at, 64)?.ensure_only(&pods).with_context(what)?;
            }
        }
    }
    Ok(())
}

/// The timeout counts from the last new connection, not from the first one.
fn affinity_clock(scene: &Scene<'_>) -> Result<()> {
    let pods = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"];
    scene.apply([scene.web().affinity(Duration::from_secs(3)).into(), scene.ready("web", &pods).into()])?;
    let vip = scene.vip("web", 80)?;
    // Six clients: a clock that does not restart would forget all of them, and give all the same again once in 4,096.
    let clients = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"].map(Client::Pod);
    let clients: Vec<_> = clients.into_iter().chain([Client::Outside, Client::Stranger]).collect();
    let dial_all = || -> Result<Vec<String>> {
        clients.iter().map(|client| Ok(scene.probe(*client).tcp(vip).by()?.to_owned())).collect()
    };
    let first = dial_all()?;
    for _ in 0..5 {
        sleep(Duration::from_secs(1));
        let now = dial_all()?;
        ensure!(now == first, "{clients:?} were with {first:?} and are now with {now:?}");
    }
    Ok(())
}

/// A client that stays away longer than the timeout is forgotten.
fn affinity_client_ip_timeout(scene: &Scene<'_>) -> Result<()> {
    let pods = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"];
    scene.apply([scene.web().affinity(Duration::from_secs(1)).into(), scene.ready("web", &pods).into()])?;
    let (client, vip) = (scene.probe(Client::Pod("pod-1a")), scene.vip("web", 80)?);
    let first = client.tcp(vip).by()?.to_owned();
    // Forgotten, it is given one of four at random: the same again 20 times is one case in 10^12.
    for _ in 0..20 {
        sleep(Duration::from_millis(1200));
        if client.tcp(vip).by()? != first {
            return Ok(());
        }
    }
    bail!("{first} is never forgotten")
}

fn affinity_dead_endpoint(scene: &Scene<'_>) -> Result<()> {
    let all = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"];
    scene.apply([scene.web().affinity(Duration::from_secs(10800)).into(), scene.ready("web", &all).into()])?;
    for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 81)] {
        let (client, vip) = (scene.probe(Client::Pod("pod-1a")), scene.vip("web", port)?);
        let mut at = client.dial(protocol, vip).by()?.to_owned();
        // Several times: where its old endpoint is before the new one in a rule, and where it is after it.
        for _ in 0..4 {
            client.spread(protocol, vip, 64).ensure_only(&[&at])?;
            let others: Vec<_> = all.into_iter().filter(|name| *name != at).collect();
            scene.set_ready("web", &others)?;
            let next = client.dial(protocol, vip).by()?.to_owned();
            ensure!(next != at, "{at} does not serve any more");
            client.spread(protocol, vip, 64).ensure_only(&[&next])?;
            // Its old endpoint is back, and the client stays where it is.
            scene.set_ready("web", &all)?;
            client.spread(protocol, vip, 64).ensure_only(&[&next])?;
            at = next;
        }
    }
    Ok(())
}
