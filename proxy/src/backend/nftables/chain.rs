//! The layout: how each set is declared and which rules each chain has.
//!
//! A rule's comment names the rule of Services that it realises, where there is one; a set's says what it is for.

use std::time::Duration;

use tollgate_model::name::{IpFamily, Protocol};

use super::object::{Chain, ChainName, FixedChain, SetName};
use super::word::{Balance, PoolKind};
use tollgate_nftables::Table;
use tollgate_nftables::attribute::Bytes;
use tollgate_nftables::chain::{Base, Hook};
use tollgate_nftables::rule::Rule;
use tollgate_nftables::set::{DataType, Declaration, Fields, Set};
use tollgate_nftables::term::{
    ADDRESS_LOCAL, CT_STATE_INVALID, CT_STATUS_DNAT, Ct, Field, Meta, Term, map, random, source_address_type, value,
};

/// What the rules of one family's table depend on, besides the elements of its sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    /// The family.
    pub(crate) family: IpFamily,
    /// What tells that a packet is from a local pod.
    pub(crate) detect: Detect,
    /// Whether everything is masqueraded that goes through a Service.
    pub(crate) masquerade_all: bool,
    /// The bit of a packet's mark that asks `postrouting` to masquerade it.
    pub(crate) mark: u32,
    /// Whether packets that connection tracking calls INVALID are dropped.
    pub(crate) drops_invalid: bool,
}

/// What tells that a packet is from a local pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Detect {
    /// Nothing does.
    Nothing,
    /// Its source is in `local_pods`.
    Source,
    /// The interface that it comes in through, with a `*` at its end where that is only how the name begins.
    Interface(String),
}

/// The masks of a word's parts: `word.rs` draws them.
const NUMBER: u32 = 0xffff_c000;
const NUMBER_AND_POOL: u32 = 0xffff_e000;
const LOCAL: u32 = 0x2000;
const CLASS: u32 = 0x1fff;
/// What kinds have not and classes have.
const IS_CLASS: u32 = 0x1ff0;
const KIND: u32 = 0x7;
const IS_LOCAL_KIND: u32 = 0x1;
/// What refs have, and numbers alone have not.
const IS_REF: u32 = 0x3ff0;

/// How many clients the memory of affinity holds.
const AFFINITY_SIZE: u32 = 1 << 20;
/// A drawn slot is a number as wide as this; the modulus that a rule draws by is the pool's.
const SLOTS: u32 = 65_536;
/// Enough for an interface's name and the zero after it.
const IFNAMSIZ: usize = 16;

impl Style {
    /// The family's table.
    pub(crate) fn table(&self) -> Table {
        table(self.family)
    }

    fn saddr(&self) -> Term {
        Field::Saddr(addresses(self.family)).into()
    }

    fn daddr(&self) -> Term {
        Field::Daddr(addresses(self.family)).into()
    }

    /// How a set is declared.
    ///
    /// `typeof` keys make a listing print words and slots readably. Endpoints need one map for each protocol: for a map whose
    /// data is `ip daddr . th dport`, nft cannot load what it lists, `tcp dnat ... map` ("conflicting protocols").
    pub(crate) fn set(&self, set: &SetName) -> Set {
        let address = || Fields::Type(vec![DataType::address(addresses(self.family))]);
        let frontend = || Fields::Typeof(vec![self.daddr(), Meta::L4proto.into(), Field::AnyDport.into()]);
        let (purpose, declaration) = match set {
            SetName::LocalPods => ("addresses of local pods", Declaration::set(address()).interval()),
            SetName::ServiceCidrs => ("ranges of ClusterIPs", Declaration::set(address()).interval()),
            SetName::ClusterIps => ("ClusterIPs that a Service holds", Declaration::set(address())),
            SetName::Hairpin => {
                let twice = Fields::Type(vec![DataType::address(addresses(self.family)); 2]);
                ("endpoints of this node", Declaration::set(twice))
            }
            SetName::NodeportIps => ("addresses that answer NodePorts", Declaration::set(address())),
            SetName::LbRanges => {
                let key = Fields::Typeof(vec![word(), self.saddr()]);
                ("word of a frontend and who may dial it", Declaration::set(key).interval())
            }
            SetName::Frontends => ("frontend to word", Declaration::map(frontend(), words()).counter()),
            SetName::Nodeports => {
                let key = Fields::Typeof(vec![Meta::L4proto.into(), Field::AnyDport.into()]);
                ("NodePort to word", Declaration::map(key, words()).counter())
            }
            SetName::Pools => ("pool to class", Declaration::map(words(), words())),
            SetName::Kinds => ("kind to chain", Declaration::vmap(words())),
            SetName::Picks => ("class to chain", Declaration::vmap(words())),
            SetName::SlotsTcp => ("slot to endpoint", self.slots(Protocol::Tcp)),
            SetName::SlotsUdp => ("slot to endpoint", self.slots(Protocol::Udp)),
            SetName::SlotsSctp => ("slot to endpoint", self.slots(Protocol::Sctp)),
            SetName::StickySlots => ("slot to ref", Declaration::map(slot_key(), words())),
            // Not `typeof`: one map for all protocols.
            SetName::Refs => ("ref to Cluster endpoint", self.refs()),
            SetName::LocalRefs => ("ref to Local endpoint", self.refs()),
            SetName::Affinity => {
                let key = Fields::Typeof(vec![word(), self.saddr()]);
                ("client to ref", Declaration::map(key, words()).dynamic(AFFINITY_SIZE))
            }
            SetName::Foreign(_) => ("", Declaration::set(address())),
        };
        declaration.comment(purpose).named(set.as_str())
    }

    fn slots(&self, protocol: Protocol) -> Declaration {
        Declaration::map(slot_key(), Fields::Typeof(vec![self.daddr(), Field::Dport(wire(protocol)).into()]))
    }

    fn refs(&self) -> Declaration {
        let endpoint = Fields::Type(vec![DataType::address(addresses(self.family)), DataType::InetService]);
        Declaration::map(Fields::Type(vec![DataType::Classid]), endpoint)
    }

    /// The chain as it should be.
    pub(crate) fn chain(&self, chain: &ChainName) -> Chain {
        Chain { base: base(chain), rules: self.rules(chain) }
    }

    /// The rules of a chain, in order.
    fn rules(&self, chain: &ChainName) -> Vec<Rule> {
        match chain {
            ChainName::Fixed(chain) => self.fixed(*chain),
            ChainName::Balance(balance @ Balance { timeout: None, .. }) => self.balance(*balance),
            ChainName::Balance(balance @ Balance { timeout: Some(timeout), .. }) => {
                self.sticky_balance(*balance, *timeout)
            }
            ChainName::Again { protocol, is_sticky: false, .. } => {
                vec![self.dnat_to_slot(*protocol, 1), rule("").drop()]
            }
            ChainName::Again { pool, protocol, is_sticky: true } => vec![
                rule("").set(Meta::Priority, pool_word(*pool)),
                choose_ref(1),
                self.dnat_to_ref(*pool, *protocol),
                rule("").drop(),
            ],
            ChainName::Foreign(_) => Vec::new(),
        }
    }

    fn fixed(&self, chain: FixedChain) -> Vec<Rule> {
        match chain {
            FixedChain::Refuse => vec![
                rule("no-endpoints-reject").protocol(wire(Protocol::Tcp)).reset(),
                rule("no-endpoints-reject").reject(addresses(self.family)),
            ],
            FixedChain::OffCluster => self.off_cluster(),
            FixedChain::Pool => {
                vec![rule("").set(Meta::Priority, map([word()], SetName::Pools.as_str())), pick(), rule("").drop()]
            }
            FixedChain::VipLocal => vec![
                rule("").jump(FixedChain::OffCluster.as_str()),
                rule("internal-policy-local").set(Meta::Priority, pool_word(PoolKind::Local)),
                rule("").goto(FixedChain::Pool.as_str()),
            ],
            FixedChain::ExtCluster => vec![
                self.mark(rule("external-cluster-masquerade")),
                rule("").set(Meta::Priority, pool_word(PoolKind::Cluster)),
                rule("").goto(FixedChain::Pool.as_str()),
            ],
            FixedChain::ExtShortcut => vec![
                rule("external-local-shortcut").set(Meta::Priority, pool_word(PoolKind::Cluster)),
                rule("").goto(FixedChain::Pool.as_str()),
            ],
            FixedChain::ExtLocal => self.ext_local(),
            FixedChain::LbGuard => vec![
                // The frontend's own word, whole: nft 1.1.3 prints a mask in the key of an interval set in the wrong byte order.
                rule("lb-source-ranges")
                    .outside([word().big_endian(), self.saddr()], SetName::LbRanges.as_str())
                    .drop(),
                rule("").unequal(word() & IS_LOCAL_KIND, 0).goto(FixedChain::ExtLocal.as_str()),
                rule("").goto(FixedChain::ExtCluster.as_str()),
            ],
            FixedChain::Special => vec![rule("").vmap([word() & KIND], SetName::Kinds.as_str()), rule("").drop()],
            FixedChain::Service => {
                vec![rule("").equal(word() & IS_CLASS, 0).goto(FixedChain::Special.as_str()), pick(), rule("").drop()]
            }
            FixedChain::Dispatch => self.dispatch(),
            FixedChain::Prerouting | FixedChain::Output => vec![rule("").jump(FixedChain::Dispatch.as_str())],
            FixedChain::Postrouting => self.postrouting(),
            FixedChain::Forward if self.drops_invalid => {
                vec![rule("invalid-dropped").unequal(Term::from(Ct::State) & CT_STATE_INVALID, 0).drop()]
            }
            FixedChain::Forward => Vec::new(),
        }
    }

    fn dispatch(&self) -> Vec<Rule> {
        let (l4proto, dport) = (|| Term::from(Meta::L4proto), || Term::from(Field::AnyDport));
        let frontend = map([self.daddr(), l4proto(), dport()], SetName::Frontends.as_str());
        let node_port = map([l4proto(), dport()], SetName::Nodeports.as_str());
        vec![
            rule("").set(Meta::Priority, frontend).goto(FixedChain::Service.as_str()),
            // Ports that no Service has stay the host's own.
            rule("nodeport-addresses")
                .within([self.daddr()], SetName::NodeportIps.as_str())
                .set(Meta::Priority, node_port)
                .goto(FixedChain::Service.as_str()),
            rule("unknown-port-on-vip")
                .within([self.daddr()], SetName::ClusterIps.as_str())
                .goto(FixedChain::Refuse.as_str()),
            rule("unallocated-vip-drop").within([self.daddr()], SetName::ServiceCidrs.as_str()).drop(),
        ]
    }

    fn postrouting(&self) -> Vec<Rule> {
        let is_translated = || Term::from(Ct::Status) & CT_STATUS_DNAT;
        let mark = || Term::from(Meta::Mark);
        vec![
            // The word must not reach the queueing discipline, which would take it for a class.
            rule("").unequal(is_translated(), 0).unequal(word() & NUMBER, 0).set(Meta::Priority, value(0)),
            rule("masquerade").unequal(mark() & self.mark, 0).set(Meta::Mark, mark() & !self.mark).masquerade(),
            rule("hairpin")
                .unequal(is_translated(), 0)
                .within([self.saddr(), self.daddr()], SetName::Hairpin.as_str())
                .masquerade(),
        ]
    }

    /// A chain of its own, so that a detector that comes or goes is one chain written, however many chains ask it.
    fn off_cluster(&self) -> Vec<Rule> {
        if self.masquerade_all {
            // Local pods come here for external addresses too, by `ext-shortcut`: these keep their source.
            return vec![self.mark(rule("masquerade-all").within([self.daddr()], SetName::ClusterIps.as_str()))];
        }
        // Not `!=`: a packet of the node's own comes in through no interface, and kernels differ in what that equals.
        let is_local_pod = self.is_local_pod(rule("pod-source-kept")).map(Rule::ret);
        let others = is_local_pod.is_some().then(|| self.mark(rule("off-cluster-masquerade")));
        is_local_pod.into_iter().chain(others).collect()
    }

    fn ext_local(&self) -> Vec<Rule> {
        let shortcut = || rule("external-local-shortcut");
        let is_local_pod = self.is_local_pod(shortcut()).map(|rule| rule.goto(FixedChain::ExtShortcut.as_str()));
        let is_node = shortcut().equal(source_address_type(), ADDRESS_LOCAL);
        let rest = [
            self.mark(is_node).goto(FixedChain::ExtShortcut.as_str()),
            rule("external-policy-local").set(Meta::Priority, pool_word(PoolKind::Local)),
            rule("").goto(FixedChain::Pool.as_str()),
        ];
        is_local_pod.into_iter().chain(rest).collect()
    }

    /// Matches packets from local pods; `None` where nothing tells them.
    fn is_local_pod(&self, rule: Rule) -> Option<Rule> {
        match &self.detect {
            Detect::Nothing => None,
            Detect::Source => Some(rule.within([self.saddr()], SetName::LocalPods.as_str())),
            Detect::Interface(name) => Some(rule.equal(Meta::Iifname, interface(name))),
        }
    }

    /// Asks `postrouting` to masquerade the packet.
    fn mark(&self, rule: Rule) -> Rule {
        rule.set(Meta::Mark, Term::from(Meta::Mark) | self.mark)
    }

    fn balance(&self, balance: Balance) -> Vec<Rule> {
        let Balance { protocol, count, .. } = balance;
        let rest = [self.dnat_to_slot(protocol, count), rule("no-gap-on-update").goto(&balance.again().to_string())];
        ask_masquerade(balance.pool).into_iter().chain(rest).collect()
    }

    fn sticky_balance(&self, balance: Balance, timeout: u32) -> Vec<Rule> {
        let Balance { pool, protocol, count, .. } = balance;
        let (affinity, timeout) = (SetName::Affinity.as_str(), Duration::from_secs(timeout.into()));
        let client = || [word() & NUMBER, self.saddr()];
        let known = |label| rule(label).unequal(word() & IS_REF, 0);
        let remember = || known("affinity-client-ip").update(affinity, client(), timeout, word());
        let rest = [
            rule("").set(Meta::Priority, word() & NUMBER),
            rule("").set(Meta::Priority, map([word(), self.saddr()], affinity)),
            remember(),
            self.dnat_to_ref(pool, protocol),
            // Forgotten first: an update restarts an entry's clock and never changes what it says.
            known("affinity-dead-endpoint").delete(affinity, client(), word()),
            rule("").set(Meta::Priority, pool_word(pool)),
            choose_ref(count),
            remember(),
            self.dnat_to_ref(pool, protocol),
            rule("no-gap-on-update").goto(&balance.again().to_string()),
        ];
        ask_masquerade(pool).into_iter().chain(rest).collect()
    }

    /// To one of a pool's first `count` slots.
    fn dnat_to_slot(&self, protocol: Protocol, count: u32) -> Rule {
        let key = [word() & NUMBER_AND_POOL, random(count)];
        rule("").protocol(wire(protocol)).dnat(addresses(self.family), key, SetName::slots(protocol).as_str())
    }

    fn dnat_to_ref(&self, pool: PoolKind, protocol: Protocol) -> Rule {
        rule("").protocol(wire(protocol)).dnat(addresses(self.family), [word()], SetName::refs(pool).as_str())
    }
}

/// The table of a family.
pub(crate) fn table(family: IpFamily) -> Table {
    Table { family: addresses(family).into(), name: "tollgate" }
}

fn addresses(family: IpFamily) -> tollgate_nftables::IpFamily {
    match family {
        IpFamily::V4 => tollgate_nftables::IpFamily::V4,
        IpFamily::V6 => tollgate_nftables::IpFamily::V6,
    }
}

fn wire(protocol: Protocol) -> tollgate_nftables::Protocol {
    match protocol {
        Protocol::Tcp => tollgate_nftables::Protocol::Tcp,
        Protocol::Udp => tollgate_nftables::Protocol::Udp,
        Protocol::Sctp => tollgate_nftables::Protocol::Sctp,
    }
}

/// What calls a chain, besides rules.
fn base(chain: &ChainName) -> Option<Base> {
    let ChainName::Fixed(chain) = chain else { return None };
    let (kind, hook, priority) = match chain {
        FixedChain::Prerouting => ("nat", Hook::Prerouting, -100),
        FixedChain::Output => ("nat", Hook::Output, -100),
        FixedChain::Postrouting => ("nat", Hook::Postrouting, 100),
        FixedChain::Forward => ("filter", Hook::Forward, 0),
        _ => return None,
    };
    Some(Base { kind: kind.into(), hook, priority, accepts: true })
}

fn rule(label: &str) -> Rule {
    Rule::new().comment(label)
}

/// The word that the packet carries.
fn word() -> Term {
    Meta::Priority.into()
}

fn words() -> Fields {
    Fields::Typeof(vec![word()])
}

fn slot_key() -> Fields {
    Fields::Typeof(vec![word(), random(SLOTS)])
}

/// To the chain of the word's class.
fn pick() -> Rule {
    rule("").vmap([word() & CLASS], SetName::Picks.as_str())
}

/// Puts one of a pool's first `count` refs into the word.
fn choose_ref(count: u32) -> Rule {
    rule("").set(Meta::Priority, map([word(), random(count)], SetName::StickySlots.as_str()))
}

/// The Local pool is reached by what must keep its source, or has been marked before.
fn ask_masquerade(pool: PoolKind) -> Option<Rule> {
    (pool == PoolKind::Cluster).then(|| rule("").jump(FixedChain::OffCluster.as_str()))
}

/// The Service port's number, with the pool's bit.
fn pool_word(pool: PoolKind) -> Term {
    match pool {
        PoolKind::Cluster => word() & NUMBER,
        PoolKind::Local => word() & NUMBER | LOCAL,
    }
}

/// What a register with an interface's name is compared with: a whole name fills it with zeros.
fn interface(name: &str) -> Bytes {
    match name.strip_suffix('*') {
        Some(prefix) => Bytes::new(&prefix.as_bytes()[..prefix.len().min(IFNAMSIZ)]),
        None => {
            let mut whole = [0; IFNAMSIZ];
            whole.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            Bytes::new(&whole)
        }
    }
}
