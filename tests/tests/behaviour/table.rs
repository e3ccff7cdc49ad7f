//! The form of most cases: objects, and for each probe what it is to see.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tollgate_lab::{Outcome, Protocol, Reply};

use crate::scene::{At, Client, Dial, Scene};

/// Dials after which a pod that serves has answered at least once, of up to four, but for one case in 10^8.
const ENOUGH: usize = 64;
/// Dials that are counted where the share of each pod matters.
const MANY: usize = 600;

/// What a probe is to see.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// Exactly these pods answer.
    Only(&'static [&'static str]),
    /// Exactly these pods answer, each as often.
    Even(&'static [&'static str]),
    /// Every answer comes from the same pod, which is one of these.
    OneOf(&'static [&'static str]),
    /// The pod that answers sees the client's own address.
    OwnSource,
    /// The pod that answers sees an address of this node.
    NodeSource(u8),
    /// The client's socket has the dialled address as its peer.
    DialledPeer,
    /// As from a closed port, at once.
    Refused,
    /// Nothing, neither an answer nor an error; to a process of the node that drops it, the kernel may say so (EPERM).
    Silence,
}

/// One row: who dials what, and what it is to see.
#[derive(Clone, Debug)]
struct Row {
    from: Client,
    protocol: Protocol,
    to: Dial,
    expect: Expect,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, protocol, to: Dial { service, port, at }, expect } = self;
        write!(f, "{from:?} dials {service}:{port} at its {at:?} over {protocol:?} and expects {expect:?}")
    }
}

/// Objects and rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    objects: Vec<Value>,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// An object that is there before the rows are tried.
    pub(crate) fn given(mut self, object: impl Into<Value>) -> Self {
        self.objects.push(object.into());
        self
    }

    /// A row.
    pub(crate) fn row(mut self, from: Client, protocol: Protocol, to: impl Into<Dial>, expect: Expect) -> Self {
        self.rows.push(Row { from, protocol, to: to.into(), expect });
        self
    }

    /// A row for each transport: TCP, UDP on the next port, and SCTP on the one after it where the kernel has it.
    pub(crate) fn rows(self, from: Client, to: impl Into<Dial>, expect: Expect) -> Self {
        let to = to.into();
        Protocol::transports()
            .iter()
            .zip(0..)
            .fold(self, |table, (protocol, offset)| table.row(from, *protocol, to.port_plus(offset), expect.clone()))
    }

    /// Rows for each of these clients.
    pub(crate) fn each(
        self,
        clients: impl IntoIterator<Item = Client>,
        to: impl Into<Dial> + Copy,
        expect: Expect,
    ) -> Self {
        clients.into_iter().fold(self, |table, client| table.rows(client, to, expect.clone()))
    }

    /// Rows for each of these clients at each of these addresses.
    pub(crate) fn at(
        self,
        addresses: impl IntoIterator<Item = At>,
        clients: impl IntoIterator<Item = Client> + Clone,
        (service, port): (&'static str, u16),
        expect: Expect,
    ) -> Self {
        addresses.into_iter().fold(self, |table, at| table.each(clients.clone(), at.of(service, port), expect.clone()))
    }

    /// Writes the objects and tries every row.
    pub(crate) fn play(self, scene: &Scene<'_>) -> Result<()> {
        scene.apply(self.objects)?;
        // Most of a silent row's time is waiting, so all of them wait together, beside the others.
        let (silent, others): (Vec<_>, Vec<_>) =
            self.rows.iter().partition(|row| matches!(row.expect, Expect::Silence));
        thread::scope(|scope| {
            let silent: Vec<_> = silent.into_iter().map(|row| scope.spawn(|| try_row(scene, row))).collect();
            others.into_iter().try_for_each(|row| try_row(scene, row))?;
            silent.into_iter().try_for_each(|row| row.join().expect("a row does not panic"))
        })
    }
}

fn try_row(scene: &Scene<'_>, row: &Row) -> Result<()> {
    let to = scene.address(row.to).with_context(|| row.to_string())?;
    dial(scene, row, to).with_context(|| format!("{row} ({to})"))
}

fn dial(scene: &Scene<'_>, row: &Row, to: SocketAddr) -> Result<()> {
    let probe = scene.probe(row.from);
    match &row.expect {
        Expect::Only(pods) => probe.spread(row.protocol, to, ENOUGH).ensure_only(pods),
        Expect::Even(pods) => probe.spread(row.protocol, to, MANY).ensure_even(pods),
        Expect::OneOf(pods) => {
            let spread = probe.spread(row.protocol, to, ENOUGH);
            spread.ensure_all_answered()?;
            let answered: Vec<_> = spread.by.keys().map(String::as_str).collect();
            ensure!(answered.len() == 1 && pods.contains(&answered[0]), "{spread}");
            Ok(())
        }
        Expect::OwnSource => ensure_source(&probe.dial(row.protocol, to), &own_addresses(scene, row.from)),
        Expect::NodeSource(number) => {
            ensure_source(&probe.dial(row.protocol, to), &own_addresses(scene, Client::Node(*number)))
        }
        Expect::DialledPeer => {
            let reply = probe.dial(row.protocol, to);
            ensure!(reply.answer()?.peer == to, "{reply}");
            Ok(())
        }
        Expect::Refused => ensure_refused(&probe.dial(row.protocol, to)),
        Expect::Silence => ensure_silence(&probe.impatient().dial(row.protocol, to), row.from),
    }
}

/// Refused, or not even sent: a packet that the node's own rules reject on its way out shows as EPERM in the process that
/// sent it.
pub(crate) fn ensure_refused(reply: &Reply) -> Result<()> {
    match &reply.outcome {
        Outcome::Refused => Ok(()),
        Outcome::Failed(error) if error.contains("not permitted") => Ok(()),
        _ => bail!("expected a refusal: {reply}"),
    }
}

/// Dropped: what a node's own process sends is dropped before it leaves, which the process may be told.
pub(crate) fn ensure_silence(reply: &Reply, from: Client) -> Result<()> {
    match &reply.outcome {
        Outcome::Timeout => Ok(()),
        Outcome::Failed(error) if matches!(from, Client::Node(_)) && error.contains("not permitted") => Ok(()),
        _ => bail!("expected silence: {reply}"),
    }
}

fn ensure_source(reply: &Reply, expected: &[IpAddr]) -> Result<()> {
    let source = reply.answer()?.source.ip();
    ensure!(expected.contains(&source), "expected a source of {expected:?}: {reply}");
    Ok(())
}

fn own_addresses(scene: &Scene<'_>, client: Client) -> Vec<IpAddr> {
    match client {
        Client::Pod(name) => vec![scene.pod(name).ip(scene.family)],
        Client::Node(number) => {
            let node = scene.cluster().node(number);
            vec![node.ip(scene.family), node.bridge_ip(scene.family)]
        }
        Client::Outside => vec![scene.cluster().host(1).ip(scene.family)],
        Client::Stranger => vec![scene.cluster().host(2).ip(scene.family)],
    }
}
