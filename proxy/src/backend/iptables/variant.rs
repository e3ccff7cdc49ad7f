//! Which iptables the node uses: the one over nf_tables or the legacy one. Rules of both act at once, and only one of the two
//! commands shows them, so that all programs of a node had better use the same.

use std::fmt;

use super::name;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// Over nf_tables.
    Nft,
    /// `ip_tables` and `ip6_tables`.
    Legacy,
}

/// Chains by which the kubelet tells others what it uses.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// What one variant holds on the node, in both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    /// The kubelet's chains.
    pub(crate) has_hint: bool,
    /// Chains of ours in the filter table.
    pub(crate) has_ours: bool,
    /// Rules of anybody's.
    pub(crate) rules: usize,
}

impl Traces {
    /// Adds what a listing of some tables shows.
    pub(crate) fn add(&mut self, listing: &str) {
        for line in listing.lines() {
            self.has_hint |= HINTS.iter().any(|hint| line.starts_with(hint));
            let declared = line.strip_prefix(':').and_then(|line| line.split(' ').next());
            self.has_ours |= declared == Some(name::FORWARD);
            self.rules += usize::from(line.starts_with("-A"));
        }
    }

    /// Whether what was seen decides, whatever else there is.
    pub(crate) fn is_certain(&self) -> bool {
        self.has_hint
    }
}

/// The variant that a node with these traces uses, and by what it is told. As the wrappers of Kubernetes' images decide: by
/// the kubelet's chains, then by who has more rules; in between, what this program has used here is kept.
pub(crate) fn choose(nft: &Traces, legacy: &Traces) -> (Variant, &'static str) {
    match (nft, legacy) {
        (Traces { has_hint: true, .. }, _) => (Variant::Nft, "the kubelet uses it"),
        (_, Traces { has_hint: true, .. }) => (Variant::Legacy, "the kubelet uses it"),
        (Traces { has_ours: true, .. }, Traces { has_ours: false, .. }) => (Variant::Nft, "Tollgate's rules are in it"),
        (Traces { has_ours: false, .. }, Traces { has_ours: true, .. }) => {
            (Variant::Legacy, "Tollgate's rules are in it")
        }
        _ if legacy.rules > nft.rules => (Variant::Legacy, "it has more rules here"),
        _ if nft.rules > 0 => (Variant::Nft, "it has more rules here"),
        _ => (Variant::Nft, "neither has rules here"),
    }
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    /// In the names of commands.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// How `--version` says it.
    pub(crate) fn in_version(self) -> &'static str {
        match self {
            Self::Nft => "(nf_tables)",
            Self::Legacy => "(legacy)",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_s_variant_is_told_by_hints_then_ours_then_rules() {
        let traces = |text: &str| {
            let mut traces = Traces::default();
            traces.add(text);
            traces
        };
        let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
        let ours = "*filter\n:TOLLGATE-FORWARD - [0:0]\n-A FORWARD -j TOLLGATE-FORWARD\nCOMMIT\n";
        let rules = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j ACCEPT\nCOMMIT\n";
        for (nft, legacy, chosen) in [
            ("", "", Variant::Nft),
            (rules, rules, Variant::Nft),
            ("", rules, Variant::Legacy),
            (hint, rules, Variant::Nft),
            (rules, hint, Variant::Legacy),
            (hint, hint, Variant::Nft),
            (rules, ours, Variant::Legacy),
            (ours, rules, Variant::Nft),
            (hint, ours, Variant::Nft),
        ] {
            assert_eq!(choose(&traces(nft), &traces(legacy)).0, chosen, "{nft} against {legacy}");
        }
    }
}
