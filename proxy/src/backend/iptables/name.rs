//! What our chains and sets are called, and how they are told from everybody else's.
//!
//! A chain's name has at most 28 characters (`XT_EXTENSION_MAXNAMELEN` 29, with its zero), a set's at most 31 (`IPSET_MAXNAMELEN` 32).
//! What there is once is called `TOLLGATE-*`. What there are many of is called `TG-<letter>-*`:
//!
//! ```text
//! TG-S-web-5PZ2Q7KD4XH3M-17   5 + 6 + 1 + 13 + 3 = 28: kind, the Service's name cut to 6, hash, group
//! TG-C-0A6000AT1F4            5 + (8 + 1 + 4) = 18: kind, then the prefix, a digit for each four bits
//! TG-C-5PZ2Q7KD4XH3M-96000A0T 5 + 13 + 1 + 9 = 28: where that is longer (IPv6), its hash and its end
//! ```
//!
//! A hash is 65 bits of SHA-256: names of Services are chosen by tenants, and a collision would send one's connections to the
//! other's endpoints.

use std::net::SocketAddr;

use sha2::{Digest, Sha256};
use tollgate_model::name::{IpFamily, ServicePortName};

/// The alphabet of RFC 4648's base32, 5 bits a character.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const HASH_LENGTH: usize = 13;
/// How much of a Service's name is kept.
const SHORT_LENGTH: usize = 6;
/// A chain's name is no longer.
pub(crate) const MAX_LENGTH: usize = 28;
/// `XT_MAX_COMMENT_LEN` is 256, with its zero.
const MAX_COMMENT: usize = 255;

/// Chains of the nat table that there is one of.
pub(crate) const SERVICES: &str = "TOLLGATE-SERVICES";
pub(crate) const CLUSTER: &str = "TOLLGATE-CLUSTER";
pub(crate) const EXTERNAL: &str = "TOLLGATE-EXTERNAL";
pub(crate) const NODE_PORTS: &str = "TOLLGATE-NODEPORTS";
pub(crate) const OFF_CLUSTER: &str = "TOLLGATE-OFF-CLUSTER";
pub(crate) const POSTROUTING: &str = "TOLLGATE-POSTROUTING";
pub(crate) const MASQUERADE: &str = "TOLLGATE-MASQUERADE";
/// Makes a transaction that can't be refused, after one that was; see `kernel`.
pub(crate) const SCRATCH: &str = "TOLLGATE-SCRATCH";
/// Is made of each type of set and destroyed again at a start. It is called as a set of clients, so that one that was left
/// behind is swept; no Service port's hash is all zeros but by chance.
pub(crate) const SCRATCH_SET: &str = "TG-A4-check-AAAAAAAAAAAAA";
/// Chains of the filter table.
pub(crate) const FILTER: &str = "TOLLGATE-FILTER";
pub(crate) const REFUSE: &str = "TOLLGATE-REFUSE";
pub(crate) const FORWARD: &str = "TOLLGATE-FORWARD";
pub(crate) const ACCEPT: &str = "TOLLGATE-ACCEPT";

const FIXED: [&str; 12] = [
    SERVICES,
    CLUSTER,
    EXTERNAL,
    NODE_PORTS,
    OFF_CLUSTER,
    POSTROUTING,
    MASQUERADE,
    SCRATCH,
    FILTER,
    REFUSE,
    FORWARD,
    ACCEPT,
];

/// The chains of one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Spreads over the Cluster set.
    Cluster,
    /// Spreads over the Local set.
    Local,
    /// Where outside traffic enters.
    External,
    /// Which sources may dial its load-balancer IPs.
    SourceRanges,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Self::Cluster => 'S',
            Self::Local => 'L',
            Self::External => 'X',
            Self::SourceRanges => 'F',
        }
    }
}

/// What the chains of a Service port have in common: a part of its name and a hash of all of it.
#[derive(Clone, Debug)]
pub(crate) struct ServiceTag {
    short: String,
    identity: String,
    hash: String,
}

impl ServiceTag {
    pub(crate) fn new(name: &ServicePortName) -> Self {
        let identity = format!("{name}/{}", name.protocol);
        let short: String = name.service.name.chars().take(SHORT_LENGTH).map(plain).collect();
        let hash = hash(&identity);
        Self { short, identity, hash }
    }

    /// One of its chains.
    pub(crate) fn chain(&self, kind: Kind) -> String {
        format!("TG-{}-{}-{}", kind.letter(), self.short, self.hash)
    }

    /// A group of endpoints within a chain; there are never more than 100.
    pub(crate) fn group(&self, kind: Kind, index: usize) -> String {
        format!("{}-{index}", self.chain(kind))
    }

    /// The chain of an endpoint whose clients are remembered.
    pub(crate) fn endpoint(&self, endpoint: SocketAddr) -> String {
        format!("TG-E-{}-{}", self.short, self.endpoint_hash(endpoint))
    }

    /// The set of those clients: 6 + 6 + 1 + 13 = 26 characters. Families share one space of names.
    pub(crate) fn affinity(&self, endpoint: SocketAddr) -> String {
        let family = digit(endpoint.ip().into());
        format!("TG-A{family}-{}-{}", self.short, self.endpoint_hash(endpoint))
    }

    fn endpoint_hash(&self, endpoint: SocketAddr) -> String {
        hash(&format!("{} {endpoint}", self.identity))
    }
}

/// A Service port's name as a comment can hold it: cut, with a hash at its end, where it is too long.
pub(crate) fn comment(name: &ServicePortName) -> String {
    let text: String = name.to_string().chars().map(plain).collect();
    if text.len() <= MAX_COMMENT {
        return text;
    }
    let kept: String = text.chars().take(MAX_COMMENT - HASH_LENGTH - 1).collect();
    format!("{kept}~{}", hash(&text))
}

/// A node of a tree, `letter` for the tree and a digit for each four bits of its prefix.
pub(crate) fn node(letter: char, digits: &str) -> String {
    if 5 + digits.len() <= MAX_LENGTH - SHORT_LENGTH {
        return format!("TG-{letter}-{digits}");
    }
    let end = &digits[digits.len() - (MAX_LENGTH - 5 - HASH_LENGTH - 1)..];
    format!("TG-{letter}-{}-{end}", hash(digits))
}

/// The sets that every family has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetName {
    /// ClusterIPs that a Service holds.
    ClusterIps,
    /// Frontends whose packets are refused where no rule has translated them.
    Reject,
    /// Frontends whose packets are dropped then.
    Drop,
    /// Frontend and source range: those of [`SetName::Drop`] that are refused from there.
    Admit,
}

impl SetName {
    pub(crate) const ALL: [Self; 4] = [Self::ClusterIps, Self::Reject, Self::Drop, Self::Admit];

    pub(crate) fn text(self, family: IpFamily) -> String {
        let word = match self {
            Self::ClusterIps => "CLUSTER-IPS",
            Self::Reject => "REJECT",
            Self::Drop => "DROP",
            Self::Admit => "ADMIT",
        };
        format!("TOLLGATE-{}-{word}", digit(family))
    }
}

/// Whether a chain is one that some run of this program made.
pub(crate) fn is_our_chain(name: &str) -> bool {
    if FIXED.contains(&name) {
        return true;
    }
    let Some((letter, rest)) = name.strip_prefix("TG-").and_then(|rest| rest.split_once('-')) else { return false };
    match letter {
        "S" | "L" | "X" | "F" | "E" if has_hash(rest) => true,
        "C" | "P" | "N" => is_node(rest),
        _ => false,
    }
}

/// Whether a set is one that some run of this program made.
pub(crate) fn is_our_set(name: &str) -> bool {
    IpFamily::ALL
        .into_iter()
        .any(|family| is_affinity_set(name, family) || SetName::ALL.iter().any(|set| set.text(family) == name))
}

/// Whether a set is one of clients that stay with an endpoint of this family.
pub(crate) fn is_affinity_set(name: &str, family: IpFamily) -> bool {
    let rest = name.strip_prefix("TG-A").and_then(|rest| rest.strip_prefix(digit(family)));
    rest.and_then(|rest| rest.strip_prefix('-')).is_some_and(has_hash)
}

fn has_hash(rest: &str) -> bool {
    let mut parts = rest.rsplit('-');
    let last = parts.next().unwrap_or_default();
    if is_hash(last) {
        return true;
    }
    !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) && parts.next().is_some_and(is_hash)
}

fn is_node(rest: &str) -> bool {
    let digits = match rest.split_once('-') {
        Some((hash, end)) if is_hash(hash) => end,
        Some(_) => return false,
        None => rest,
    };
    !digits.is_empty() && digits.bytes().all(|byte| b"0123456789ABCDEFTUS".contains(&byte))
}

fn is_hash(text: &str) -> bool {
    text.len() == HASH_LENGTH && text.bytes().all(|byte| BASE32.contains(&byte))
}

fn digit(family: IpFamily) -> char {
    match family {
        IpFamily::V4 => '4',
        IpFamily::V6 => '6',
    }
}

/// Names come from the API checked; what is written into a rule is checked all the same, because a quote or a line break in
/// it would be another rule.
fn plain(character: char) -> char {
    if character.is_ascii_alphanumeric() || "-./:".contains(character) { character } else { '_' }
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let bit = |index: usize| (digest[index / 8] >> (7 - index % 8)) & 1;
    (0..HASH_LENGTH)
        .map(|at| {
            let value = (at * 5..at * 5 + 5).fold(0, |value, index| value << 1 | usize::from(bit(index)));
            char::from(BASE32[value])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tollgate_model::name::{NamespacedName, Protocol};

    use super::*;

    fn named(namespace: &str, name: &str, port: &str) -> ServicePortName {
        let service = NamespacedName::new(namespace, name);
        ServicePortName { service, port: port.into(), protocol: Protocol::Tcp }
    }

    #[test]
    fn names_fit_and_are_known_for_ours() {
        let endpoint: SocketAddr = "[fd00::1]:80".parse().unwrap();
        for name in [named("n", "a", ""), named(&"n".repeat(63), &"s".repeat(253), &"p".repeat(63))] {
            let tag = ServiceTag::new(&name);
            let kinds = [Kind::Cluster, Kind::Local, Kind::External, Kind::SourceRanges];
            let groups = kinds.iter().flat_map(|kind| [tag.chain(*kind), tag.group(*kind, 99)]);
            for chain in groups.chain([tag.endpoint(endpoint)]) {
                assert!(chain.len() <= MAX_LENGTH, "{chain}");
                assert!(is_our_chain(&chain), "{chain}");
            }
            assert!(tag.affinity(endpoint).len() <= 31);
            assert!(is_our_set(&tag.affinity(endpoint)));
            assert!(comment(&name).len() <= MAX_COMMENT);
        }
        for digits in ["0", "0A6000AT1F4", &"F".repeat(32), &format!("{}S1F4A", "0".repeat(32))] {
            let chain = node('C', digits);
            assert!(chain.len() <= MAX_LENGTH, "{chain}");
            assert!(is_our_chain(&chain), "{chain}");
        }
    }

    #[test]
    fn other_people_s_chains_and_sets_are_not_ours() {
        for name in
            ["TG-S-web", "TG-SERVICES", "TOLLGATE", "TOLLGATE-OTHER", "KUBE-SERVICES", "TG-C-", "TG-C-web", "TG-Q-0A"]
        {
            assert!(!is_our_chain(name), "{name}");
        }
        for name in ["TG-A4-web", "TOLLGATE-4", "TG-S-web-AAAAAAAAAAAAA"] {
            assert!(!is_our_set(name), "{name}");
        }
    }

    #[test]
    fn what_a_name_brings_never_becomes_syntax() {
        let name = named("a\"b", "c\n-A INPUT", "d e");
        assert_eq!(comment(&name), "a_b/c_-A_INPUT:d_e");
    }
}
