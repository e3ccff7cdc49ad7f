//! The text of the layout: how each set is declared and which rules each chain has.
//!
//! Every text carries a comment: for a set what it is for, for a rule the rule of Services that it realises where there
//! is one; then a fingerprint of the text. A listing is judged by these comments alone.

use std::fmt::Write as _;

use tollgate_model::name::IpFamily;

use super::object::{Chain, ChainName, FixedChain, SetName};
use super::word::{Balance, Kind, PoolKind};

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

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// As nft takes it, without the comment.
    pub(crate) text: String,
    /// Unique to this rule's text within any version of this program.
    pub(crate) comment: String,
}

/// The words of nft that differ between the families.
struct Words {
    ip: &'static str,
    address: &'static str,
    /// What of a client keys the affinity map, and the types of that.
    ///
    /// For IPv6 two hashes of the address instead of the address: nft 1.0.6 loads what an `update` writes into the register
    /// that holds the fifth 32-bit part of its key (`reg_key 1 ... sreg_data 2` in its debug output), so that a key of
    /// number and address is stored with its end overwritten and never found again. Clients whose hashes are both equal,
    /// one pair in 2^64, share an endpoint.
    client: &'static str,
    client_type: &'static str,
}

impl Style {
    /// The family's table, as nft names it.
    pub(crate) fn table(&self) -> &'static str {
        table(self.family)
    }

    fn words(&self) -> Words {
        match self.family {
            IpFamily::V4 => Words { ip: "ip", address: "ipv4_addr", client: "ip saddr", client_type: "ip saddr" },
            IpFamily::V6 => Words {
                ip: "ip6",
                address: "ipv6_addr",
                client: "jhash ip6 saddr mod 4294967295 seed 0x1 . jhash ip6 saddr mod 4294967295 seed 0x2",
                // Any 32-bit number: `typeof` does not know hashes.
                client_type: "numgen random mod 65536 . numgen random mod 65536",
            },
        }
    }

    /// How a set is declared: what stands between the braces, without the comment, and the comment.
    ///
    /// `typeof` keys make a listing print words and slots readably. Endpoints need one map for each protocol: a map whose
    /// data is `ip daddr . th dport` is taken, but not a later rule `tcp dnat ... map` over it ("conflicting protocols").
    pub(crate) fn set(&self, set: &SetName) -> (String, String) {
        let Words { ip, address, client_type, .. } = self.words();
        let (purpose, text) = match set {
            SetName::LocalPods => ("addresses of local pods", format!("type {address}; flags interval;")),
            SetName::ServiceCidrs => ("ranges of ClusterIPs", format!("type {address}; flags interval;")),
            SetName::ClusterIps => ("ClusterIPs that a Service holds", format!("type {address};")),
            SetName::Hairpin => ("endpoints of this node", format!("type {address} . {address};")),
            SetName::NodeportIps => ("addresses that answer NodePorts", format!("type {address};")),
            SetName::LbRanges => (
                "word of a frontend and who may dial it",
                format!("typeof meta priority . {ip} saddr; flags interval;"),
            ),
            SetName::Frontends => {
                ("frontend to word", format!("typeof {ip} daddr . meta l4proto . th dport : meta priority; counter;"))
            }
            SetName::Nodeports => {
                ("NodePort to word", "typeof meta l4proto . th dport : meta priority; counter;".to_owned())
            }
            SetName::Pools => ("pool to class", "typeof meta priority : meta priority;".to_owned()),
            SetName::Picks => ("class to chain", "typeof meta priority : verdict;".to_owned()),
            SetName::SlotsTcp => ("slot to endpoint", slots(&format!("{ip} daddr . tcp dport"))),
            SetName::SlotsUdp => ("slot to endpoint", slots(&format!("{ip} daddr . udp dport"))),
            SetName::SlotsSctp => ("slot to endpoint", slots(&format!("{ip} daddr . sctp dport"))),
            SetName::StickySlots => ("slot to ref", slots("meta priority")),
            // Not `typeof`: one map for all protocols.
            SetName::Refs => ("ref to Cluster endpoint", format!("type classid : {address} . inet_service;")),
            SetName::LocalRefs => ("ref to Local endpoint", format!("type classid : {address} . inet_service;")),
            SetName::Affinity => (
                "client to ref",
                format!("typeof meta priority . {client_type} : meta priority; size 1048576; flags dynamic,timeout;"),
            ),
            SetName::Foreign(_) => ("", String::new()),
        };
        let comment = format!("{purpose} {:08x}", fingerprint(&text));
        (text, comment)
    }

    /// The chain as it should be listed.
    pub(crate) fn chain(&self, chain: &ChainName) -> Chain {
        let hook = match hook(chain) {
            Some((kind, hook, priority)) => format!("{kind} {hook} {priority} accept"),
            None => String::new(),
        };
        Chain { hook, rules: self.rules(chain).into_iter().map(|rule| rule.comment).collect() }
    }

    /// The rules of a chain, in order.
    pub(crate) fn rules(&self, chain: &ChainName) -> Vec<Rule> {
        let mut rules = Rules { words: self.words(), rules: Vec::new() };
        match chain {
            ChainName::Fixed(chain) => self.fixed(*chain, &mut rules),
            ChainName::Balance(balance @ Balance { timeout: None, .. }) => Self::balance(*balance, &mut rules),
            ChainName::Balance(balance @ Balance { timeout: Some(timeout), .. }) => {
                Self::sticky_balance(*balance, *timeout, &mut rules);
            }
            ChainName::Again { protocol, is_sticky: false, .. } => {
                rules.add("", format!("meta l4proto {protocol} dnat {{ip}} to {}", slot(protocol.as_str(), 1)));
                rules.add("", "drop");
            }
            ChainName::Again { pool, protocol, is_sticky: true } => {
                rules.add("", format!("meta priority set {}", pool_word(*pool)));
                rules.add("", "meta priority set meta priority . numgen random mod 1 map @sticky_slots");
                rules.add("", dnat_to_ref(*pool, protocol.as_str()));
                rules.add("", "drop");
            }
            ChainName::Foreign(_) => {}
        }
        rules.rules
    }

    fn fixed(&self, chain: FixedChain, rules: &mut Rules) {
        match chain {
            FixedChain::Refuse => {
                rules.add("no-endpoints-reject", "meta l4proto tcp reject with tcp reset");
                rules.add("no-endpoints-reject", "reject");
            }
            FixedChain::OffCluster => self.off_cluster(rules),
            FixedChain::Pool => {
                rules.add("", "meta priority set meta priority map @pools");
                rules.add("", "meta priority & 0x1fff vmap @picks");
                rules.add("", "drop");
            }
            FixedChain::VipLocal => {
                rules.add("", "jump off-cluster");
                rules.add("internal-policy-local", format!("meta priority set {}", pool_word(PoolKind::Local)));
                rules.add("", "goto pool");
            }
            FixedChain::ExtCluster => {
                rules.add("external-cluster-masquerade", self.mark());
                rules.add("", format!("meta priority set {}", pool_word(PoolKind::Cluster)));
                rules.add("", "goto pool");
            }
            FixedChain::ExtShortcut => {
                rules.add("external-local-shortcut", format!("meta priority set {}", pool_word(PoolKind::Cluster)));
                rules.add("", "goto pool");
            }
            FixedChain::ExtLocal => self.ext_local(rules),
            FixedChain::LbGuard => {
                // The frontend's own word, whole: nft 1.1.3 prints a mask in the key of an interval set in the wrong byte order.
                rules.add("lb-source-ranges", "meta priority . {ip} saddr != @lb_ranges drop");
                rules.add("", "meta priority & 0x1 != none goto ext-local");
                rules.add("", "goto ext-cluster");
            }
            FixedChain::Special => {
                let target = |kind| match kind {
                    Kind::VipLocal => FixedChain::VipLocal,
                    Kind::ExtCluster => FixedChain::ExtCluster,
                    Kind::ExtLocal => FixedChain::ExtLocal,
                    Kind::GuardedCluster | Kind::GuardedLocal => FixedChain::LbGuard,
                };
                let go = Kind::ALL.map(|kind| format!("0:{:x} : goto {}", kind.low(), target(kind).as_str()));
                rules.add("", format!("meta priority & 0x7 vmap {{ {} }}", go.join(", ")));
                rules.add("", "drop");
            }
            FixedChain::Service => {
                rules.add("", "meta priority & 0x1ff0 == none goto special");
                rules.add("", "meta priority & 0x1fff vmap @picks");
                rules.add("", "drop");
            }
            FixedChain::Dispatch => {
                let lookup = "meta priority set {ip} daddr . meta l4proto . th dport map @frontends goto service";
                rules.add("", lookup);
                // Ports that no Service has stay the host's own.
                let lookup =
                    "{ip} daddr @nodeport_ips meta priority set meta l4proto . th dport map @nodeports goto service";
                rules.add("nodeport-addresses", lookup);
                rules.add("unknown-port-on-vip", "{ip} daddr @cluster_ips goto refuse");
                rules.add("unallocated-vip-drop", "{ip} daddr @service_cidrs drop");
            }
            FixedChain::Prerouting | FixedChain::Output => rules.add("", "jump dispatch"),
            FixedChain::Postrouting => {
                // The word must not reach the queueing discipline, which would take it for a class.
                rules.add("", "ct status dnat meta priority & 0xffffc000 != none meta priority set none");
                let (mark, others) = (self.mark, !self.mark);
                rules.add(
                    "masquerade",
                    format!("meta mark & {mark:#x} != 0 meta mark set meta mark & {others:#x} masquerade fully-random"),
                );
                rules.add("hairpin", "ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade fully-random");
            }
            FixedChain::Forward => {
                if self.drops_invalid {
                    rules.add("invalid-dropped", "ct state invalid drop");
                }
            }
        }
    }

    /// A chain of its own, so that a detector that comes or goes is one chain written, however many chains ask it.
    fn off_cluster(&self, rules: &mut Rules) {
        if self.masquerade_all {
            rules.add("masquerade-all", self.mark());
        } else if let Some(is_local_pod) = self.is_local_pod() {
            // Not `!=`: a packet of the node's own comes in through no interface, and kernels differ in what that equals.
            rules.add("pod-source-kept", format!("{is_local_pod} return"));
            rules.add("off-cluster-masquerade", self.mark());
        }
    }

    fn ext_local(&self, rules: &mut Rules) {
        if let Some(is_local_pod) = self.is_local_pod() {
            rules.add("external-local-shortcut", format!("{is_local_pod} goto ext-shortcut"));
        }
        rules.add("external-local-shortcut", format!("fib saddr type local {} goto ext-shortcut", self.mark()));
        rules.add("external-policy-local", format!("meta priority set {}", pool_word(PoolKind::Local)));
        rules.add("", "goto pool");
    }

    /// Matches packets from local pods; `None` where nothing tells them.
    fn is_local_pod(&self) -> Option<String> {
        match &self.detect {
            Detect::Nothing => None,
            Detect::Source => Some("{ip} saddr @local_pods".to_owned()),
            Detect::Interface(name) => Some(format!("iifname \"{name}\"")),
        }
    }

    /// Asks `postrouting` to masquerade the packet.
    fn mark(&self) -> String {
        format!("meta mark set meta mark | {:#x}", self.mark)
    }

    fn balance(balance: Balance, rules: &mut Rules) {
        let protocol = balance.protocol;
        if balance.pool == PoolKind::Cluster {
            rules.add("", "jump off-cluster");
        }
        rules.add("", format!("meta l4proto {protocol} dnat {{ip}} to {}", slot(protocol.as_str(), balance.count)));
        rules.add("no-gap-on-update", format!("goto {}", balance.again()));
    }

    fn sticky_balance(balance: Balance, timeout: u32, rules: &mut Rules) {
        let Balance { pool, protocol, count, .. } = balance;
        if pool == PoolKind::Cluster {
            rules.add("", "jump off-cluster");
        }
        let remember = format!(
            "meta priority & 0x3ff0 != none update @affinity {{ meta priority & 0xffffc000 . {{client}} timeout {timeout}s : meta priority }}"
        );
        rules.add("", "meta priority set meta priority & 0xffffc000");
        rules.add("", "meta priority set meta priority . {client} map @affinity");
        rules.add("affinity-client-ip", &remember);
        rules.add("", dnat_to_ref(pool, protocol.as_str()));
        // Forgotten first: an update restarts an entry's clock and never changes what it says.
        rules.add(
            "affinity-dead-endpoint",
            "meta priority & 0x3ff0 != none delete @affinity { meta priority & 0xffffc000 . {client} : meta priority }",
        );
        rules.add("", format!("meta priority set {}", pool_word(pool)));
        rules.add("", format!("meta priority set meta priority . numgen random mod {count} map @sticky_slots"));
        rules.add("affinity-client-ip", &remember);
        rules.add("", dnat_to_ref(pool, protocol.as_str()));
        rules.add("no-gap-on-update", format!("goto {}", balance.again()));
    }
}

/// Collects rules; `{ip}` and `{client}` in a text are the family's words.
struct Rules {
    words: Words,
    rules: Vec<Rule>,
}

impl Rules {
    fn add(&mut self, label: &str, text: impl AsRef<str>) {
        let text = text.as_ref().replace("{ip}", self.words.ip).replace("{client}", self.words.client);
        let mut comment = String::with_capacity(label.len() + 9);
        if !label.is_empty() {
            comment.push_str(label);
            comment.push(' ');
        }
        // Writing to a string does not fail.
        let _ = write!(comment, "{:08x}", fingerprint(&text));
        self.rules.push(Rule { text, comment });
    }
}

/// The table of a family, as nft names it.
pub(crate) fn table(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip tollgate",
        IpFamily::V6 => "ip6 tollgate",
    }
}

/// The hook that calls a chain: type, hook and priority. Numbers, because nft 1.0.6 refuses `dstnat` in `output` and
/// 1.1.3 prints it.
pub(crate) fn hook(chain: &ChainName) -> Option<(&'static str, &'static str, i32)> {
    match chain {
        ChainName::Fixed(FixedChain::Prerouting) => Some(("nat", "prerouting", -100)),
        ChainName::Fixed(FixedChain::Output) => Some(("nat", "output", -100)),
        ChainName::Fixed(FixedChain::Postrouting) => Some(("nat", "postrouting", 100)),
        ChainName::Fixed(FixedChain::Forward) => Some(("filter", "forward", 0)),
        _ => None,
    }
}

fn slots(data: &str) -> String {
    format!("typeof meta priority . numgen random mod 65536 : {data};")
}

/// One of a pool's first `count` slots.
fn slot(protocol: &str, count: u32) -> String {
    format!("meta priority & 0xffffe000 . numgen random mod {count} map @slots_{protocol}")
}

/// The Service port's number, with the pool's bit.
fn pool_word(pool: PoolKind) -> &'static str {
    match pool {
        PoolKind::Cluster => "meta priority & 0xffffc000",
        PoolKind::Local => "meta priority & 0xffffc000 | 0x2000",
    }
}

fn dnat_to_ref(pool: PoolKind, protocol: &str) -> String {
    format!("meta l4proto {protocol} dnat {{ip}} to meta priority map @{}", SetName::refs(pool).as_str())
}

/// FNV-1a, folded to 32 bits: the same in every build, which the standard library's hashers do not promise.
pub(crate) fn fingerprint(text: &str) -> u32 {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let folded = (hash >> 32) ^ (hash & u64::from(u32::MAX));
    u32::try_from(folded).unwrap_or(u32::MAX)
}
