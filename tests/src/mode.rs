//! The backends under test: one line each.

use std::fmt;

use crate::address::Family;
use crate::kernel::kernel_has_nftables;

/// A backend as the behaviour is tested on it: what `--proxy-mode` chooses, on nodes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Its name in the names of trials.
    name: &'static str,
    /// The word for `--proxy-mode`.
    proxy_mode: &'static str,
    /// Which `iptables` the node uses, if it uses any: `nft` or `legacy`.
    iptables: &'static str,
    /// Whether its programs are attached to the node's cgroup and pinned, so that the proxy must be told where.
    is_attached: bool,
    /// Commands that make a node one of the kind that this is for, run on each before its proxy starts.
    prepare: &'static [&'static str],
    /// Commands that spoil what the backend has put into the kernel, each in a way of its own; `{ip}` is `ip` or `ip6`.
    vandalism: &'static [&'static str],
    /// A script of bash that keeps the backend from writing for as long as it runs; `{ip}` as above.
    obstacle: &'static str,
}

/// Somebody else's program holds our table: only it may change it then (`NFT_TABLE_F_OWNER`), and with it the table goes.
/// Added first, because what is not there can't be deleted; and again and again, because others may be quicker.
const OWNED_TABLE: &str = "exec nft -i < <(while echo 'add table {ip} tollgate; delete table {ip} tollgate; \
                           add table {ip} tollgate { flags owner; }'; do sleep 0.2; done)";
/// The same of the table that all users of iptables share.
const OWNED_NAT: &str = "exec nft -i < <(while echo 'add table {ip} nat; delete table {ip} nat; \
                         add table {ip} nat { flags owner; }'; do sleep 0.2; done)";
/// Somebody else's `iptables` does not let go of the lock of them all.
const LOCK: &str = "exec 9> $XTABLES_LOCKFILE; flock 9; exec sleep 600";

impl Mode {
    /// Every backend that the behaviour is tested on.
    pub const ALL: &[Self] = &[
        Self {
            name: "nftables",
            proxy_mode: "nftables",
            iptables: "nft",
            is_attached: false,
            prepare: &[],
            vandalism: &[
                "nft delete table {ip} tollgate",
                "nft flush chain {ip} tollgate prerouting",
                "nft flush map {ip} tollgate frontends",
            ],
            obstacle: OWNED_TABLE,
        },
        Self {
            name: "iptables",
            proxy_mode: "iptables",
            iptables: "nft",
            is_attached: false,
            prepare: &["iptables-nft -t mangle -N KUBE-IPTABLES-HINT"],
            vandalism: &[
                "{ip}tables-nft -t nat -F",
                "{ip}tables-nft -t nat -D PREROUTING -j TOLLGATE-SERVICES",
                "{ip}tables-nft -t nat -F TOLLGATE-CLUSTER",
            ],
            obstacle: OWNED_NAT,
        },
        Self {
            name: "iptables-legacy",
            proxy_mode: "iptables",
            iptables: "legacy",
            is_attached: false,
            prepare: &["iptables-legacy --wait 10 -t mangle -N KUBE-IPTABLES-HINT"],
            vandalism: &[
                "{ip}tables-legacy --wait 10 -t nat -F",
                "{ip}tables-legacy --wait 10 -t nat -D PREROUTING -j TOLLGATE-SERVICES",
                "{ip}tables-legacy --wait 10 -t nat -F TOLLGATE-CLUSTER",
            ],
            obstacle: LOCK,
        },
        Self {
            name: "ebpf",
            proxy_mode: "ebpf",
            iptables: "nft",
            is_attached: true,
            prepare: &[],
            vandalism: &["rm -r {bpf}/v1/links", "rm -r {bpf}/v1/maps", "nft delete table {ip} tollgate"],
            obstacle: OWNED_TABLE,
        },
    ];

    /// The mode of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mode| mode.name == name)
    }

    /// What it takes that this machine's kernel does not have.
    pub fn lacking(self) -> Option<&'static str> {
        let needs_nftables = self.proxy_mode == "nftables" || self.iptables == "nft";
        (needs_nftables && !kernel_has_nftables()).then_some("nftables")
    }

    /// The backends that a node of this kind can be switched to, one for each other `--proxy-mode`.
    pub fn successors(self) -> impl Iterator<Item = Self> {
        let is_first = |index: usize, of: &Self| Self::ALL[..index].iter().all(|it| it.proxy_mode != of.proxy_mode);
        let others = Self::ALL.iter().enumerate().filter(move |(index, other)| is_first(*index, other));
        others.map(|(_, other)| *other).filter(move |other| other.proxy_mode != self.proxy_mode)
    }

    /// Its name in the names of trials.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The word for `--proxy-mode`.
    pub fn proxy_mode(self) -> &'static str {
        self.proxy_mode
    }

    /// The node's iptables for a family, such as `ip6tables-legacy`.
    pub fn iptables(self, family: Family) -> String {
        format!("{}tables-{}", ip(family), self.iptables)
    }

    /// Whether its programs are attached to the node's cgroup and pinned, so that the proxy must be told where.
    pub fn is_attached(self) -> bool {
        self.is_attached
    }

    /// Commands that make a node one of the kind that this mode is for.
    pub fn prepare(self) -> &'static [&'static str] {
        self.prepare
    }

    /// Commands that spoil what the backend has put into the kernel for a family.
    pub fn vandalism(self, family: Family) -> impl Iterator<Item = String> {
        self.vandalism.iter().map(move |command| command.replace("{ip}", ip(family)))
    }

    /// A script of bash that keeps the backend from writing what differs, for as long as it runs, in the environment of the
    /// node's proxy.
    pub fn obstacle(self, family: Family) -> String {
        self.obstacle.replace("{ip}", ip(family))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How nft and iptables begin their words for a family.
fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}
