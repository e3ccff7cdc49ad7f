//! The chains that there is one of, and what of the node they depend on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_model::name::IpFamily;
use tollgate_model::snapshot::Snapshot;

use super::name::{self, SetName};
use super::object::{Chain, Jump, Table};
use crate::backend::{DetectLocal, NodeConfig};

/// saddr == daddr: a packet that was translated to its own sender (`hairpin`). Loads of each word of both addresses, from the
/// start of the IP header, in the classic BPF of `xt_bpf`: one rule for all endpoints.
const HAIRPIN_V4: &str = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0";
const HAIRPIN_V6: &str = "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
                          32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,6 0 0 65535,6 0 0 0";

/// What one family's rules depend on besides the Service ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) family: IpFamily,
    /// The bit of the mark that asks to masquerade.
    mark: u32,
    masquerade_all: bool,
    drops_invalid: bool,
    detect_local: DetectLocal,
    service_cidrs: Vec<IpNet>,
    /// The node's pod ranges, by the snapshot.
    pod_cidrs: Vec<IpNet>,
    /// Where NodePorts answer, by the snapshot.
    pub(crate) node_addresses: BTreeSet<IpAddr>,
}

impl Style {
    pub(crate) fn new(family: IpFamily, config: &NodeConfig, drops_invalid: bool) -> Self {
        Self {
            family,
            mark: config.masquerade_mark,
            masquerade_all: config.masquerade_all,
            drops_invalid,
            detect_local: config.detect_local.clone(),
            service_cidrs: of_family(&config.service_cidrs, family),
            pod_cidrs: Vec::new(),
            node_addresses: BTreeSet::new(),
        }
    }

    /// The same with what a snapshot says of the node.
    pub(crate) fn with(&self, snapshot: &Snapshot) -> Self {
        let addresses = snapshot.node_port_addresses.iter().filter(|ip| IpFamily::from(**ip) == self.family);
        Self {
            pod_cidrs: of_family(&snapshot.pod_cidrs, self.family),
            node_addresses: addresses.copied().collect(),
            ..self.clone()
        }
    }

    /// What each tells a packet of a local pod by; none where nothing is detected.
    pub(crate) fn local_pods(&self) -> Vec<String> {
        let sources = |cidrs: &[IpNet]| cidrs.iter().map(|cidr| format!("-s {cidr}")).collect();
        match &self.detect_local {
            DetectLocal::Nothing => Vec::new(),
            DetectLocal::ClusterCidr(cidrs) => sources(&of_family(cidrs, self.family)),
            DetectLocal::NodeCidr => sources(&self.pod_cidrs),
            DetectLocal::BridgeInterface(name) => vec![format!("-i {name}")],
            DetectLocal::InterfaceNamePrefix(prefix) => vec![format!("-i {prefix}+")],
        }
    }

    /// Asks to masquerade the packet.
    pub(crate) fn mark(&self) -> String {
        format!("-j MARK --set-xmark {0:#x}/{0:#x}", self.mark)
    }

    /// How a set's members are looked for.
    pub(crate) fn matches(&self, set: SetName) -> String {
        let directions = match set {
            SetName::ClusterIps => "dst",
            SetName::Reject | SetName::Drop => "dst,dst",
            SetName::Admit => "dst,dst,src",
        };
        format!("-m set --match-set {} {directions}", set.text(self.family))
    }

    /// Whether ClusterIP traffic has to be looked at for masquerading.
    fn masquerades_cluster_ips(&self) -> bool {
        self.masquerade_all || !self.local_pods().is_empty()
    }

    /// What comes before the tree in TOLLGATE-CLUSTER.
    pub(crate) fn before_cluster_tree(&self) -> Option<String> {
        self.masquerades_cluster_ips().then(|| format!("-j {}", name::OFF_CLUSTER))
    }

    /// The chains of both tables but the trees; `external` is the range of all external addresses.
    pub(crate) fn chains(&self, external: Option<IpNet>) -> Vec<Chain> {
        let nat = |name: &str, rules| Chain { table: Table::Nat, name: name.to_owned(), rules };
        let filter = |name: &str, rules| Chain { table: Table::Filter, name: name.to_owned(), rules };
        let mut chains = vec![
            nat(name::SERVICES, self.services(external)),
            nat(name::POSTROUTING, self.postrouting()),
            nat(name::MASQUERADE, self.masquerade()),
            filter(name::REFUSE, self.refuse()),
            filter(name::FILTER, self.filter()),
            filter(name::FORWARD, self.forward()),
            filter(name::ACCEPT, self.accept()),
        ];
        if self.masquerades_cluster_ips() {
            chains.push(nat(name::OFF_CLUSTER, self.off_cluster()));
        }
        chains
    }

    fn services(&self, external: Option<IpNet>) -> Vec<String> {
        let mut rules = vec![format!("{} -j {}", self.matches(SetName::ClusterIps), name::CLUSTER)];
        // Not -g: an external address may be the node's own.
        rules.extend(external.map(|range| match range.prefix_len() {
            0 => format!("-j {}", name::EXTERNAL),
            _ => format!("-d {range} -j {}", name::EXTERNAL),
        }));
        rules.extend(self.node_addresses.iter().map(|ip| format!("-d {} -g {}", IpNet::from(*ip), name::NODE_PORTS)));
        rules
    }

    fn off_cluster(&self) -> Vec<String> {
        let local = self.local_pods().into_iter().filter(|_| !self.masquerade_all);
        local.map(|matches| format!("{matches} -j RETURN")).chain([self.mark()]).collect()
    }

    fn postrouting(&self) -> Vec<String> {
        let program = hairpin(self.family);
        vec![
            format!("-m mark --mark {0:#x}/{0:#x} -j {1}", self.mark, name::MASQUERADE),
            format!("-m conntrack --ctstate DNAT -m bpf --bytecode \"{program}\" -j MASQUERADE --random-fully"),
        ]
    }

    /// The mark goes before the packet leaves: what encapsulates it must not meet it again.
    fn masquerade(&self) -> Vec<String> {
        vec![format!("-j MARK --set-xmark 0x0/{:#x}", self.mark), "-j MASQUERADE --random-fully".to_owned()]
    }

    pub(crate) fn refuse(&self) -> Vec<String> {
        let unreachable = match self.family {
            IpFamily::V4 => "icmp-port-unreachable",
            IpFamily::V6 => "icmp6-port-unreachable",
        };
        vec!["-p tcp -j REJECT --reject-with tcp-reset".to_owned(), format!("-j REJECT --reject-with {unreachable}")]
    }

    /// Nat has run before: what still has a frontend's address was not translated.
    fn filter(&self) -> Vec<String> {
        let refuse = |set| format!("{} -g {}", self.matches(set), name::REFUSE);
        let mut rules = vec![
            refuse(SetName::Admit),
            format!("{} -j DROP", self.matches(SetName::Drop)),
            refuse(SetName::Reject),
            refuse(SetName::ClusterIps),
        ];
        rules.extend(self.service_cidrs.iter().map(|cidr| match cidr.prefix_len() {
            0 => "-j DROP".to_owned(),
            _ => format!("-d {cidr} -j DROP"),
        }));
        rules
    }

    /// What a policy of DROP would lose without kube-proxy's rules, which are these: what is masqueraded, and answers.
    fn forward(&self) -> Vec<String> {
        let invalid = self.drops_invalid.then(|| "-m conntrack --ctstate INVALID -j DROP".to_owned());
        invalid
            .into_iter()
            .chain([
                format!("-m mark --mark {0:#x}/{0:#x} -j ACCEPT", self.mark),
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
            ])
            .collect()
    }

    /// New connections that dialled a ClusterIP, which only connection tracking knows by now. Last in FORWARD, this stands for
    /// the policy alone: everybody's rules, a NetworkPolicy's among them, have had their say.
    fn accept(&self) -> Vec<String> {
        let cidrs = self.service_cidrs.iter();
        cidrs.map(|cidr| format!("-m conntrack --ctstate DNAT --ctorigdst {cidr} -j ACCEPT")).collect()
    }
}

/// The rules of built-in chains that lead to ours, in the order that they must have there: what was not translated is refused
/// before TOLLGATE-FORWARD can accept it for its mark.
pub(crate) fn jumps() -> Vec<Jump> {
    let jump = |table, base, matches: &str, target: &str| Jump {
        table,
        base,
        rule: format!("{matches}-j {target}"),
        is_last: target == name::ACCEPT,
    };
    const NEW: &str = "-m conntrack --ctstate NEW ";
    vec![
        jump(Table::Nat, "PREROUTING", "", name::SERVICES),
        jump(Table::Nat, "OUTPUT", "", name::SERVICES),
        jump(Table::Nat, "POSTROUTING", "", name::POSTROUTING),
        jump(Table::Filter, "INPUT", NEW, name::FILTER),
        jump(Table::Filter, "FORWARD", NEW, name::FILTER),
        jump(Table::Filter, "FORWARD", "", name::FORWARD),
        jump(Table::Filter, "FORWARD", "", name::ACCEPT),
        jump(Table::Filter, "OUTPUT", NEW, name::FILTER),
    ]
}

/// The program that knows a packet that goes to its own sender.
pub(crate) fn hairpin(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => HAIRPIN_V4,
        IpFamily::V6 => HAIRPIN_V6,
    }
}

/// The ranges of one family, the fewest that cover the same.
pub(crate) fn of_family(cidrs: &[IpNet], family: IpFamily) -> Vec<IpNet> {
    let cidrs: Vec<_> = cidrs.iter().filter(|cidr| IpFamily::from(cidr.addr()) == family).copied().collect();
    IpNet::aggregate(&cidrs)
}
