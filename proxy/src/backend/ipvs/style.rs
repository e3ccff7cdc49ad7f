//! The rules, a constant number of them, and what of the node they depend on. What they ask is in sets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_model::name::IpFamily;
use tollgate_model::snapshot::Snapshot;

use super::netlink::route::source;
use super::object::{Scheduler, SetName};
use super::rules::{Chain, Jump};
use crate::backend::NodeConfig;
use crate::backend::iptables::style as iptables;

/// Chains.
pub(crate) const MARK: &str = "TOLLGATE-IPVS-MARK";
pub(crate) const SHORTCUT: &str = "TOLLGATE-IPVS-SHORTCUT";
pub(crate) const CLUSTER: &str = "TOLLGATE-IPVS-CLUSTER";
pub(crate) const ASK: &str = "TOLLGATE-IPVS-ASK";
pub(crate) const UNMARK: &str = "TOLLGATE-IPVS-UNMARK";
pub(crate) const POSTROUTING: &str = "TOLLGATE-IPVS-POST";
pub(crate) const MASQUERADE: &str = "TOLLGATE-IPVS-MASQ";
pub(crate) const FILTER: &str = "TOLLGATE-IPVS-FILTER";
pub(crate) const REFUSE: &str = "TOLLGATE-IPVS-REFUSE";
pub(crate) const FORWARD: &str = "TOLLGATE-IPVS-FORWARD";
/// How all of them begin, and nobody else's does.
pub(crate) const PREFIX: &str = "TOLLGATE-IPVS-";

/// Marks of virtual services are this and a number: IPVS compares all 32 bits of a packet's mark, so that it can have
/// nobody else's bits beside them.
pub(crate) const MARK_BASE: u32 = 0x5400_0000;
/// The bits by which such a mark is known.
pub(crate) const MARK_MASK: u32 = 0xff00_0000;

/// What one family's objects depend on besides the Service ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) family: IpFamily,
    /// What the rules of iptables mode depend on, which says what local pods are known by.
    base: iptables::Style,
    /// The bit of a connection's mark that asks to masquerade it.
    bit: u32,
    masquerade_all: bool,
    drops_invalid: bool,
    service_cidrs: Vec<IpNet>,
    /// Where Services have none of their own choice.
    pub(crate) scheduler: Scheduler,
    /// Those that the kernel was found not to have.
    pub(crate) missing: BTreeSet<Scheduler>,
    /// Whose virtual services are left alone, though a Service may claim them.
    pub(crate) excluded: Vec<IpNet>,
    /// Where NodePorts answer, by the snapshot.
    pub(crate) node_port_addresses: BTreeSet<IpAddr>,
    /// The node's own addresses, by the snapshot.
    pub(crate) own_addresses: BTreeSet<IpAddr>,
}

impl Style {
    pub(crate) fn new(family: IpFamily, config: &NodeConfig, drops_invalid: bool) -> Self {
        Self {
            family,
            base: iptables::Style::new(family, config, drops_invalid),
            bit: config.masquerade_mark,
            masquerade_all: config.masquerade_all,
            drops_invalid,
            service_cidrs: iptables::of_family(&config.service_cidrs, family),
            scheduler: config.ipvs.scheduler,
            missing: BTreeSet::new(),
            excluded: iptables::of_family(&config.ipvs.exclude_cidrs, family),
            node_port_addresses: BTreeSet::new(),
            own_addresses: BTreeSet::new(),
        }
    }

    /// The same with what a snapshot says of the node.
    pub(crate) fn with(&self, snapshot: &Snapshot) -> Self {
        let own =
            |ips: &BTreeSet<IpAddr>| ips.iter().filter(|ip| IpFamily::from(**ip) == self.family).copied().collect();
        Self {
            base: self.base.with(snapshot),
            node_port_addresses: own(&snapshot.node_port_addresses),
            own_addresses: own(&snapshot.node_addresses),
            ..self.clone()
        }
    }

    /// What the node has as its source when it dials a Service, if it has an address that others know: the first of those
    /// that answer NodePorts, which is the primary one unless others are chosen.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.node_port_addresses.first().copied()
    }

    /// Where ClusterIPs are handed out.
    pub(crate) fn service_cidrs(&self) -> &[IpNet] {
        &self.service_cidrs
    }

    /// Whether an address is among those that one route has for all ClusterIPs.
    pub(crate) fn is_in_service_cidr(&self, ip: IpAddr) -> bool {
        self.service_cidrs.iter().any(|cidr| cidr.contains(&ip))
    }

    /// Whether the rules of another are these.
    pub(crate) fn has_rules_of(&self, other: &Self) -> bool {
        self.chains() == other.chains()
    }

    fn matches(&self, set: SetName, directions: &str) -> String {
        format!("-m set --match-set {} {directions}", set.text(self.family))
    }

    /// All chains. What others lead to comes first.
    pub(crate) fn chains(&self) -> Vec<Chain> {
        let chain = |table, name: &str, rules| Chain { table, name: name.to_owned(), rules };
        vec![
            chain("mangle", ASK, self.ask()),
            chain("mangle", SHORTCUT, self.shortcut()),
            chain("mangle", CLUSTER, self.cluster()),
            chain("mangle", MARK, self.mark()),
            chain("mangle", UNMARK, vec![format!("{} -j MARK --set-xmark 0x0/0xffffffff", marked())]),
            chain("nat", MASQUERADE, self.masquerade()),
            chain("nat", POSTROUTING, self.postrouting()),
            chain("filter", REFUSE, self.base.refuse()),
            chain("filter", FILTER, self.filter()),
            chain("filter", FORWARD, self.forward()),
        ]
    }

    /// What comes to a frontend, before IPVS sees it.
    fn mark(&self) -> Vec<String> {
        let to = |set| self.matches(set, "dst,dst");
        vec![
            // `lb-source-ranges`
            format!(
                "{} -m set ! --match-set {} dst,dst,src -j DROP",
                to(SetName::Guarded),
                SetName::Admit.text(self.family)
            ),
            // `external-local-shortcut`: to the virtual service of the Cluster set, by its mark.
            format!("{} -j {SHORTCUT}", to(SetName::Shortcut)),
            format!("{} -j RETURN", marked()),
            // `no-local-drop`
            format!("{} -j DROP", to(SetName::Drop)),
            // `external-cluster-masquerade`
            format!("{} -g {ASK}", to(SetName::Masquerade)),
            // `external-policy-local`: from outside to a Local set, which keeps its source.
            format!("{} -j RETURN", to(SetName::Shortcut)),
            format!("{} -g {CLUSTER}", to(SetName::Frontends)),
        ]
    }

    /// For local pods and for the node itself, whose traffic is masqueraded besides.
    fn shortcut(&self) -> Vec<String> {
        const NODE: &str = "-m addrtype --src-type LOCAL";
        let map = format!("-j SET --map-set {} dst,dst --map-mark", SetName::Shortcut.text(self.family));
        let pods = self.base.local_pods().into_iter().map(|pods| format!("{pods} {map}"));
        pods.chain([format!("{} -j RETURN", marked()), format!("{NODE} -j {ASK}"), format!("{NODE} {map}")]).collect()
    }

    /// ClusterIPs: `off-cluster-masquerade`. Where nothing says what is off the cluster, what the node itself sends is
    /// masqueraded all the same: its source is an address that nobody else has a way to.
    fn cluster(&self) -> Vec<String> {
        if self.masquerade_all {
            return vec![format!("-g {ASK}")];
        }
        let pods = self.base.local_pods();
        if pods.is_empty() {
            return vec![format!("-s {} -g {ASK}", IpNet::from(source(self.family)))];
        }
        pods.into_iter().map(|pods| format!("{pods} -j RETURN")).chain([format!("-g {ASK}")]).collect()
    }

    /// Asks to masquerade the connection. Not by the packet's mark, which may name a virtual service.
    fn ask(&self) -> Vec<String> {
        vec![format!("-j CONNMARK --set-xmark {0:#x}/{0:#x}", self.bit)]
    }

    fn postrouting(&self) -> Vec<String> {
        let hairpin = iptables::hairpin(self.family);
        vec![
            format!("-m connmark --mark {0:#x}/{0:#x} -j {MASQUERADE}", self.bit),
            // `hairpin`: what leaves the node for its own sender.
            format!("! -o lo -m bpf --bytecode \"{hairpin}\" -j MASQUERADE --random-fully"),
        ]
    }

    fn masquerade(&self) -> Vec<String> {
        vec![format!("-j CONNMARK --set-xmark 0x0/{:#x}", self.bit), "-j MASQUERADE --random-fully".to_owned()]
    }

    /// What IPVS won't take. In `INPUT` it comes after this; in `OUTPUT` it has come before, so that what is seen there is
    /// what it has left, or its translated packets.
    fn filter(&self) -> Vec<String> {
        let mut rules = vec![
            format!("{} -j RETURN", marked()),
            format!("{} -j RETURN", self.matches(SetName::Frontends, "dst,dst")),
            format!("{} -g {REFUSE}", self.matches(SetName::Reject, "dst,dst")),
            format!("{} -g {REFUSE}", self.matches(SetName::Vips, "dst")),
        ];
        rules.extend(self.service_cidrs.iter().map(|cidr| match cidr.prefix_len() {
            0 => "-j DROP".to_owned(),
            _ => format!("-d {cidr} -j DROP"),
        }));
        rules
    }

    /// Only answers are forwarded here: what is dialled comes in and goes out. A policy of DROP would lose them, as it would
    /// without kube-proxy's rule.
    fn forward(&self) -> Vec<String> {
        let invalid = self.drops_invalid.then(|| "-m conntrack --ctstate INVALID -j DROP".to_owned());
        invalid.into_iter().chain(["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned()]).collect()
    }
}

/// Matches packets with the mark of a virtual service.
fn marked() -> String {
    format!("-m mark --mark {MARK_BASE:#x}/{MARK_MASK:#x}")
}

/// The rules of built-in chains that lead to ours.
pub(crate) fn jumps() -> Vec<Jump> {
    const NEW: &str = "-m conntrack --ctstate NEW ";
    let jump = |table, base, matches: &str, target: &str| Jump { table, base, rule: format!("{matches}-j {target}") };
    vec![
        jump("mangle", "PREROUTING", NEW, MARK),
        jump("mangle", "OUTPUT", NEW, MARK),
        jump("mangle", "POSTROUTING", "", UNMARK),
        jump("nat", "POSTROUTING", "", POSTROUTING),
        jump("filter", "INPUT", NEW, FILTER),
        jump("filter", "OUTPUT", NEW, FILTER),
        jump("filter", "FORWARD", "", FORWARD),
    ]
}
