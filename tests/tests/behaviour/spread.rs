//! Spreading and stickiness.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tollgate_lab::Protocol;

use crate::Case;
use crate::scene::{Client, Scene};
use crate::table::{Expect, Table};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("even-spread", Case::Table(even_spread)),
    ("affinity-client-ip", Case::Table(affinity_client_ip)),
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

/// The one case that is about time: a client that stays away longer than the timeout is forgotten.
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
        let first = client.dial(protocol, vip).by()?.to_owned();
        client.spread(protocol, vip, 64).ensure_only(&[&first])?;
        let others: Vec<_> = all.into_iter().filter(|name| *name != first).collect();
        scene.set_ready("web", &others)?;
        let second = client.dial(protocol, vip).by()?.to_owned();
        ensure!(second != first, "{first} does not serve any more");
        client.spread(protocol, vip, 64).ensure_only(&[&second])?;
        // Its old endpoint is back, and the client stays where it is.
        scene.set_ready("web", &all)?;
        client.spread(protocol, vip, 64).ensure_only(&[&second])?;
    }
    Ok(())
}
