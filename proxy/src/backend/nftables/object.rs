//! The kernel objects of one table, as the plan wants them and as the kernel lists them: a key and what it says.
//!
//! Both sides speak these types, so that one [`diff`] serves changes, start and repair alike.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_model::endpoint::Endpoint;
use tollgate_model::name::Protocol;

use super::word::{Balance, PoolKind, Word};
use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::chain::Base;
use tollgate_nftables::rule::Rule;
use tollgate_nftables::set::Shape;

/// Everything in one table.
pub(crate) type Objects = BTreeMap<Key, Value>;
/// Objects in no order, to be collected into [`Objects`]; of several with one key, the last counts. A hundred thousand are
/// sorted faster than each is put into its place.
pub(crate) type Gathered = Vec<(Key, Value)>;

/// What identifies an object. The order is that in which objects can be made: what a rule names comes before the rule,
/// and rules come before elements, because adding a rule that names a large map costs a walk of the map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// A set's or map's declaration.
    Set(SetName),
    /// A chain with its rules.
    Chain(ChainName),
    /// An element of a set or map.
    Element(SetName, ElementKey),
}

/// What an object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// How a set is declared; not what a listing says about it.
    Set(Box<Shape>),
    /// A chain. In a box, like the one before, because nearly all values are small.
    Chain(Box<Chain>),
    /// An element of a set says nothing but that it is there.
    Present,
    /// A word.
    Word(Word),
    /// A frontend's word, and whose it is: for readers, and for `dump`.
    Frontend(Word, Box<str>),
    /// An endpoint.
    Endpoint(IpAddr, u16),
    /// Where a class's packets go on.
    Verdict(Verdict),
    /// Something that is not ours, for readers.
    Foreign(String),
}

/// A chain with its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// What calls it, besides rules.
    pub(crate) base: Option<Base>,
    /// In order.
    pub(crate) rules: Vec<Rule>,
}

/// The sets and maps of the layout.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetName {
    /// Local pods' addresses.
    LocalPods,
    /// Where ClusterIPs are handed out.
    ServiceCidrs,
    /// Every ClusterIP that a Service holds.
    ClusterIps,
    /// Endpoints of this node, each address twice.
    Hairpin,
    /// The node's addresses that answer NodePorts.
    NodeportIps,
    /// Who may dial a guarded frontend: its word and a range.
    LbRanges,
    /// ClusterIP, external IP or load-balancer IP to word.
    Frontends,
    /// NodePort to word.
    Nodeports,
    /// Pool to its class.
    Pools,
    /// Kind to chain.
    Kinds,
    /// Class to chain.
    Picks,
    /// TCP endpoints.
    SlotsTcp,
    /// UDP endpoints.
    SlotsUdp,
    /// SCTP endpoints.
    SlotsSctp,
    /// Affinity: slot to ref.
    StickySlots,
    /// Affinity: ref to endpoint of the Cluster pool.
    Refs,
    /// Affinity: ref to endpoint of the Local pool.
    LocalRefs,
    /// Affinity: client to ref; packets write it.
    Affinity,
    /// Not one of ours.
    Foreign(Box<str>),
}

/// The chains of the layout.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChainName {
    /// One that every table has.
    Fixed(FixedChain),
    /// Picks one endpoint of a pool.
    Balance(Balance),
    /// Takes a pool's first endpoint, for a packet that met a change half-way.
    Again {
        /// The pool.
        pool: PoolKind,
        /// The protocol.
        protocol: Protocol,
        /// Whether the pool's slots hold refs.
        is_sticky: bool,
    },
    /// Not one of ours.
    Foreign(Box<str>),
}

/// The chains that every table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FixedChain {
    /// Answers as a closed port does.
    Refuse,
    /// Marks what is not from a local pod.
    OffCluster,
    /// Pool to class.
    Pool,
    /// ClusterIP under `internalTrafficPolicy: Local`.
    VipLocal,
    /// `externalTrafficPolicy: Cluster`.
    ExtCluster,
    /// Local pods and the node under `externalTrafficPolicy: Local`.
    ExtShortcut,
    /// `externalTrafficPolicy: Local`.
    ExtLocal,
    /// `loadBalancerSourceRanges`.
    LbGuard,
    /// Kind to chain.
    Special,
    /// Word to kind or class.
    Service,
    /// Frontend to word.
    Dispatch,
    /// Packets from pods and from outside.
    Prerouting,
    /// Packets from the node's own processes.
    Output,
    /// Masquerades.
    Postrouting,
    /// Drops what connection tracking calls INVALID.
    Forward,
}

/// What identifies an element within its set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ElementKey {
    /// An address.
    Address(IpAddr),
    /// A range of addresses.
    Cidr(IpNet),
    /// An address, twice.
    Twice(IpAddr),
    /// A frontend.
    Frontend(IpAddr, Protocol, u16),
    /// A NodePort.
    NodePort(Protocol, u16),
    /// A guarded frontend's word, and a range that may dial it.
    Range(Word, IpNet),
    /// A word.
    Word(Word),
    /// A pool's slot.
    Slot(Word, u16),
    /// Something that is not ours.
    Foreign(Box<ForeignKey>),
}

/// What identifies an element that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ForeignKey {
    /// For readers.
    pub(crate) text: Box<str>,
    /// The keys of the kernel's elements that it is made of: the key, the last key of a range of a concatenation, and
    /// whether it is where a range is over.
    pub(crate) keys: Vec<(Bytes, Option<Bytes>, bool)>,
}

/// Where a class's packets go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nowhere.
    Drop,
    /// In that chain.
    Goto(ChainName),
}

/// What makes one set of objects into another. A key with another value is in both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// What is there and wrong or not wanted.
    pub(crate) delete: Vec<(Key, Value)>,
    /// What is wanted and not there.
    pub(crate) add: Vec<(Key, Value)>,
}

/// Wanted against applied.
pub(crate) fn diff(applied: &Objects, wanted: &Objects) -> Changes {
    between(applied.iter(), wanted.iter(), |(key, value)| (key.clone(), value.clone()))
}

/// Wanted against applied, where neither is needed any more.
pub(crate) fn into_changes(applied: Objects, wanted: Objects) -> Changes {
    between(applied.into_iter(), wanted.into_iter(), |object| object)
}

/// Both are in the order of their keys.
fn between<K: Borrow<Key>, V: Borrow<Value>>(
    applied: impl Iterator<Item = (K, V)>,
    wanted: impl Iterator<Item = (K, V)>,
    own: impl Fn((K, V)) -> (Key, Value),
) -> Changes {
    let mut changes = Changes::default();
    let (mut applied, mut wanted) = (applied.peekable(), wanted.peekable());
    loop {
        let order = match (applied.peek(), wanted.peek()) {
            (Some((is, _)), Some((should, _))) => is.borrow().cmp(should.borrow()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return changes,
        };
        let is = if order.is_le() { applied.next() } else { None };
        let should = if order.is_ge() { wanted.next() } else { None };
        if let (Some((_, is)), Some((_, should))) = (&is, &should)
            && is.borrow() == should.borrow()
        {
            continue;
        }
        changes.delete.extend(is.map(&own));
        changes.add.extend(should.map(&own));
    }
}

impl Changes {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }

    /// How many objects change; one that is replaced counts once.
    pub(crate) fn len(&self) -> usize {
        self.add.len() + self.removed().count()
    }

    /// What goes and is not replaced.
    pub(crate) fn removed(&self) -> impl Iterator<Item = &(Key, Value)> {
        self.delete.iter().filter(|(key, _)| !self.adds(key))
    }

    /// Whether a key gets a value. Both lists are in the order of their keys.
    pub(crate) fn adds(&self, key: &Key) -> bool {
        self.add.binary_search_by(|(added, _)| added.cmp(key)).is_ok()
    }

    /// Whether a key loses its value.
    pub(crate) fn deletes(&self, key: &Key) -> bool {
        self.delete.binary_search_by(|(deleted, _)| deleted.cmp(key)).is_ok()
    }

    /// One line for each object: what was found, seen from what was expected.
    pub(crate) fn describe(&self) -> impl Iterator<Item = String> {
        let found = self.delete.iter().map(|(key, value)| match self.adds(key) {
            true => format!("{key} was {value}"),
            false => format!("{key} was not ours"),
        });
        found.chain(self.add.iter().filter(|(key, _)| !self.deletes(key)).map(|(key, _)| format!("{key} was missing")))
    }
}

impl SetName {
    /// The sets and maps of the layout, in the order of its drawing.
    pub(crate) const ALL: [Self; 18] = [
        Self::LocalPods,
        Self::ServiceCidrs,
        Self::ClusterIps,
        Self::Hairpin,
        Self::NodeportIps,
        Self::LbRanges,
        Self::Frontends,
        Self::Nodeports,
        Self::Pools,
        Self::Kinds,
        Self::Picks,
        Self::SlotsTcp,
        Self::SlotsUdp,
        Self::SlotsSctp,
        Self::StickySlots,
        Self::Refs,
        Self::LocalRefs,
        Self::Affinity,
    ];

    /// The map of a protocol's endpoints.
    pub(crate) fn slots(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::SlotsTcp,
            Protocol::Udp => Self::SlotsUdp,
            Protocol::Sctp => Self::SlotsSctp,
        }
    }

    /// The map of a pool's live refs.
    pub(crate) fn refs(pool: PoolKind) -> Self {
        match pool {
            PoolKind::Cluster => Self::Refs,
            PoolKind::Local => Self::LocalRefs,
        }
    }

    /// The set of that name.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|set| set.as_str() == name).unwrap_or_else(|| Self::Foreign(name.into()))
    }

    /// The name in the table.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::LocalPods => "local_pods",
            Self::ServiceCidrs => "service_cidrs",
            Self::ClusterIps => "cluster_ips",
            Self::Hairpin => "hairpin",
            Self::NodeportIps => "nodeport_ips",
            Self::LbRanges => "lb_ranges",
            Self::Frontends => "frontends",
            Self::Nodeports => "nodeports",
            Self::Pools => "pools",
            Self::Kinds => "kinds",
            Self::Picks => "picks",
            Self::SlotsTcp => "slots_tcp",
            Self::SlotsUdp => "slots_udp",
            Self::SlotsSctp => "slots_sctp",
            Self::StickySlots => "sticky_slots",
            Self::Refs => "refs",
            Self::LocalRefs => "local_refs",
            Self::Affinity => "affinity",
            Self::Foreign(name) => name,
        }
    }
}

impl FixedChain {
    /// All of them.
    pub(crate) const ALL: [Self; 15] = [
        Self::Refuse,
        Self::OffCluster,
        Self::Pool,
        Self::VipLocal,
        Self::ExtCluster,
        Self::ExtShortcut,
        Self::ExtLocal,
        Self::LbGuard,
        Self::Special,
        Self::Service,
        Self::Dispatch,
        Self::Prerouting,
        Self::Output,
        Self::Postrouting,
        Self::Forward,
    ];

    /// The name in the table.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::OffCluster => "off-cluster",
            Self::Pool => "pool",
            Self::VipLocal => "vip-local",
            Self::ExtCluster => "ext-cluster",
            Self::ExtShortcut => "ext-shortcut",
            Self::ExtLocal => "ext-local",
            Self::LbGuard => "lb-guard",
            Self::Special => "special",
            Self::Service => "service",
            Self::Dispatch => "dispatch",
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Forward => "forward",
        }
    }
}

impl Balance {
    /// The chain for packets that miss the slot they drew.
    pub(crate) fn again(self) -> ChainName {
        let Self { pool, protocol, .. } = self;
        ChainName::Again { pool, protocol, is_sticky: self.timeout.is_some() }
    }

    /// The balance whose chain has this name.
    fn named(name: &str) -> Option<Self> {
        let (name, is_sticky) = match name.strip_prefix("sticky-") {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        let mut parts = name.split('-');
        let pool = pool_named(parts.next()?)?;
        let protocol = protocol_named(parts.next()?)?;
        let count = parts.next()?.parse().ok().filter(|count| *count > 0)?;
        let timeout = if is_sticky { Some(parts.next()?.parse().ok()?) } else { None };
        parts.next().is_none().then_some(Self { pool, protocol, count, timeout })
    }
}

fn pool_named(name: &str) -> Option<PoolKind> {
    PoolKind::ALL.into_iter().find(|pool| pool.to_string() == name)
}

/// The protocol of that name.
pub(crate) fn protocol_named(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.as_str() == name)
}

impl ChainName {
    /// The chain of that name.
    pub(crate) fn named(name: &str) -> Self {
        let fixed = || FixedChain::ALL.into_iter().find(|chain| chain.as_str() == name).map(Self::Fixed);
        let again = || {
            let (rest, is_sticky) = match name.strip_prefix("sticky-again-") {
                Some(rest) => (rest, true),
                None => (name.strip_prefix("again-")?, false),
            };
            let (pool, protocol) = rest.split_once('-')?;
            Some(Self::Again { pool: pool_named(pool)?, protocol: protocol_named(protocol)?, is_sticky })
        };
        let parsed = fixed().or_else(again).or_else(|| Balance::named(name).map(Self::Balance));
        // A name such as `cluster-tcp-03` parses, but is not what we would have written.
        parsed.filter(|chain| chain.to_string() == name).unwrap_or_else(|| Self::Foreign(name.into()))
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(chain) => f.write_str(chain.as_str()),
            Self::Balance(Balance { pool, protocol, count, timeout: None }) => write!(f, "{pool}-{protocol}-{count}"),
            Self::Balance(Balance { pool, protocol, count, timeout: Some(timeout) }) => {
                write!(f, "sticky-{pool}-{protocol}-{count}-{timeout}")
            }
            Self::Again { pool, protocol, is_sticky: false } => write!(f, "again-{pool}-{protocol}"),
            Self::Again { pool, protocol, is_sticky: true } => write!(f, "sticky-again-{pool}-{protocol}"),
            Self::Foreign(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for ElementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Cidr(cidr) => write!(f, "{cidr}"),
            Self::Twice(ip) => write!(f, "{ip} . {ip}"),
            Self::Frontend(ip, protocol, port) => write!(f, "{ip} . {protocol} . {port}"),
            Self::NodePort(protocol, port) => write!(f, "{protocol} . {port}"),
            Self::Range(word, cidr) => write!(f, "{word} . {cidr}"),
            Self::Word(word) => write!(f, "{word}"),
            Self::Slot(word, index) => write!(f, "{word} . {index}"),
            Self::Foreign(key) => f.write_str(&key.text),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(shape) => write!(f, "{shape}"),
            Self::Chain(chain) => {
                write!(f, "{} rules", chain.rules.len())?;
                let labels = chain.rules.iter().map(|rule| rule.comment.as_str()).filter(|label| !label.is_empty());
                let labels: Vec<_> = labels.collect();
                if labels.is_empty() { Ok(()) } else { write!(f, ": {}", labels.join(", ")) }
            }
            Self::Present => f.write_str("present"),
            Self::Word(word) => write!(f, "{word}"),
            Self::Frontend(word, name) => write!(f, "{word} for {name}"),
            Self::Endpoint(ip, port) => write!(f, "{ip} . {port}"),
            Self::Verdict(Verdict::Drop) => f.write_str("drop"),
            Self::Verdict(Verdict::Goto(chain)) => write!(f, "goto {chain}"),
            Self::Foreign(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(name) => write!(f, "set {}", name.as_str()),
            Self::Chain(name) => write!(f, "chain {name}"),
            Self::Element(set, key) => write!(f, "{} {{ {key} }}", set.as_str()),
        }
    }
}

impl From<&Endpoint> for Value {
    fn from(endpoint: &Endpoint) -> Self {
        Self::Endpoint(endpoint.ip, endpoint.port)
    }
}
