//! Packets that are not simply a connection's: what forwarding does with them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tollgate_lab::packet::{Segment, Sniffer};
use tollgate_lab::{Connection, Mode, NetNs, Protocol, Tollgate, eventually, run_on};

use crate::scene::{At, Client, Stage};
use crate::{Case, cluster};

/// Whether conntrack takes segments outside the window for valid ones.
const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

pub(crate) const CASES: &[(&str, Case)] = &[
    ("invalid-dropped", Case::Own(invalid_dropped)),
    ("invalid-dropped-unless-liberal", Case::Lab(liberal_lab, invalid_passes)),
    ("forward-policy-drop", Case::Lab(lab_with_forward_policy, forward_policy_drop)),
];

/// A connection whose server sends segments far outside the window, which conntrack calls INVALID and so does not translate
/// back. If they came to the client, they would come from an address that it has never dialled.
struct Astray {
    connection: Connection,
    sniffer: Sniffer,
    server: NetNs,
    vip: SocketAddr,
    from: SocketAddr,
    to: SocketAddr,
}

/// Spread over all sequence numbers: at most one of them can be within the window.
const SEQUENCES: [u32; 4] = [0x1000_0000, 0x5000_0000, 0x9000_0000, 0xd000_0000];

impl Astray {
    fn new(stage: &mut Stage) -> Result<Self> {
        // Node 2 is a plain router: else it would be the one that drops them.
        stage.lab.proxy(2).stop()?;
        let (status, output) = stage.lab.proxy(2).cleanup()?;
        ensure!(status.success(), "cleanup: {output}");
        let scene = stage.scene()?;
        scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
        let vip = scene.vip("web", 80)?;
        let (client, server) = (scene.pod("pod-1a"), scene.pod("pod-2a"));
        let connection = scene.probe(Client::Pod("pod-1a")).open(vip)?;
        let (to, from) = (connection.local_addr()?, server.socket(scene.family, Protocol::Tcp.pod_port()));
        let sniffer = Sniffer::open(client.netns(), to.ip())?;
        Ok(Self { connection, sniffer, server: server.netns().clone(), vip, from, to })
    }

    fn send_all(&self) -> Result<()> {
        let Self { from, to, .. } = *self;
        SEQUENCES.iter().try_for_each(|&sequence| Segment { from, to, sequence }.send(&self.server))
    }

    /// Waits until so many of the segments have come to the client as from this address.
    fn ensure_seen_from(&self, from: SocketAddr, count: usize) -> Result<()> {
        let mut seen = Vec::new();
        eventually(&format!("the segments to arrive as from {from}"), || {
            let arrived = self.sniffer.take()?;
            seen.extend(arrived.iter().filter(|segment| segment.from == from).map(|segment| segment.sequence));
            ensure!(SEQUENCES.iter().filter(|sequence| seen.contains(sequence)).count() >= count, "{seen:x?}");
            Ok(())
        })
    }
}

fn invalid_dropped(stage: &mut Stage) -> Result<()> {
    let mut astray = Astray::new(stage)?;
    astray.send_all()?;
    // What the server sends after them comes after them.
    astray.connection.ping().context("the connection is not hurt")?;
    let arrived = astray.sniffer.take()?;
    ensure!(arrived.iter().any(|segment| segment.from == astray.vip), "the answer itself is seen: {arrived:?}");
    ensure!(arrived.iter().all(|segment| segment.from != astray.from), "untranslated: {arrived:?}");
    // The control: conntrack that is told not to look at windows translates them, and they arrive. So they do get here.
    stage.lab.cluster().node(1).netns().sysctl(BE_LIBERAL, "1")?;
    astray.send_all()?;
    astray.ensure_seen_from(astray.vip, 3)?;
    astray.connection.ping_within(Duration::from_secs(5))
}

fn liberal_lab(mode: Mode) -> Result<Tollgate> {
    let cluster = cluster()?;
    cluster.node(1).netns().sysctl(BE_LIBERAL, "1")?;
    Tollgate::start(cluster, mode)
}

/// Where conntrack is told not to look at windows as the proxy starts, INVALID packets are left alone: that there is no rule
/// shows when it looks again.
fn invalid_passes(stage: &mut Stage) -> Result<()> {
    let mut astray = Astray::new(stage)?;
    stage.lab.cluster().node(1).netns().sysctl(BE_LIBERAL, "0")?;
    astray.connection.ping()?;
    astray.send_all()?;
    // About half of them: what is below the window, conntrack takes for sent again.
    astray.ensure_seen_from(astray.from, 1)
}

fn lab_with_forward_policy(mode: Mode) -> Result<Tollgate> {
    let cluster = cluster()?;
    for family in tollgate_lab::Family::ALL {
        run_on(cluster.node(1), &format!("{} -P FORWARD DROP", mode.iptables(family)))?;
    }
    Tollgate::start(cluster, mode)
}

/// As Docker leaves a host: iptables mode opens the way for what it balances, and the others say what keeps it shut.
fn forward_policy_drop(stage: &mut Stage) -> Result<()> {
    const REMEDY: &str = "FORWARD";
    let (mode, family) = (stage.mode, stage.family);
    let scene = stage.scene()?;
    scene.apply([scene.exposed("web").into(), scene.ready("web", &["pod-2a"]).into()])?;
    let dial =
        |at: At, client| -> Result<_> { Ok(scene.probe(client).impatient().tcp(scene.address(at.of("web", 80))?)) };
    // Masqueraded, and not: a pod that dials a ClusterIP keeps its address.
    let dials = [
        (At::ClusterIp, Client::Outside),
        (At::node(1), Client::Outside),
        (At::ExternalIp, Client::Outside),
        (At::ClusterIp, Client::Pod("pod-1a")),
    ];
    // The node's own traffic is not forwarded, so it is the control that the Service works.
    dial(At::ClusterIp, Client::Node(1))?.by().context("from the node")?;
    // And what is no Service's stays shut in every mode.
    let direct =
        scene.probe(Client::Outside).impatient().tcp(scene.pod("pod-1a").socket(family, Protocol::Tcp.pod_port()));
    ensure!(direct.answer().is_err(), "the policy is in force: {direct}");
    if mode.proxy_mode() == "iptables" {
        let dial = |(at, client)| dial(at, client)?.by().map(drop).with_context(|| format!("{client:?} to {at:?}"));
        return dials.into_iter().try_for_each(dial);
    }
    for (at, client) in dials {
        let reply = dial(at, client)?;
        ensure!(reply.answer().is_err(), "{client:?} gets through to {at:?}: {reply}");
    }
    let log = stage.lab.proxy(1).log().clone();
    eventually("the log to name the policy", || {
        let lines = log.lines().into_iter().filter(|line| line.contains("WARN") && line.contains(REMEDY)).count();
        ensure!((1..=2).contains(&lines), "{lines} lines, and it should be one for each family at most");
        Ok(())
    })?;
    for family in tollgate_lab::Family::ALL {
        run_on(stage.lab.cluster().node(1), &format!("{} -P FORWARD ACCEPT", mode.iptables(family)))?;
    }
    let scene = stage.scene()?;
    let again = |(at, client): (At, Client)| -> Result<()> {
        scene.probe(client).tcp(scene.address(at.of("web", 80))?).by()?;
        Ok(())
    };
    dials.into_iter().try_for_each(again).context("with the remedy")
}
