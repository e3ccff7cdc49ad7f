//! The tree of chains that finds a frontend: by the address, then the protocol, then the port, four bits at a time.
//!
//! ```text
//! TOLLGATE-CLUSTER   -d 10.96.0.0/20 -g TG-C-0A600
//! TG-C-0A600         -d 10.96.0.0/24 -g TG-C-0A6000      at most 16 rules, the common prefix is skipped
//! TG-C-0A6000        -d 10.96.0.10/32 -p tcp --dport 80 -g TG-S-web-...
//! ```
//!
//! Its shape is a pure function of what it holds: a prefix with at most [`LEAF`] frontends is one chain of them; one with more
//! skips what all have in common, at whole digits, and has a rule for each next digit; a digit with one frontend needs no chain.
//! So a frontend more or less alters one chain, now and then splits it, and a tree that grew is the same as one made at once.
//!
//! The nft variant refuses more than 16 chains under a base chain (`NFT_JUMP_STACK_SIZE`). What is deeper than [`LEVELS`] is one
//! chain of all that is left: it takes addresses chosen for it, each parting from the rest at another digit.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::OrdMap;
use ipnet::IpNet;
use tollgate_model::name::Protocol;

use super::name;

/// A chain of the tree has at most this many frontends, and as many digits.
pub(crate) const LEAF: usize = 16;
/// Chains on the way through the tree, the root's with it. Around it are TOLLGATE-SERVICES before, and after it at most F, X, S
/// and a group or endpoint: 13 in all, which leaves room for somebody else's chain that jumps to ours.
pub(crate) const LEVELS: usize = 8;

/// What a packet is dispatched by. Without an address in the tree of NodePorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dialled {
    /// The address.
    pub(crate) ip: Option<IpAddr>,
    /// The protocol. The order of protocols is that of their digits.
    pub(crate) protocol: Protocol,
    /// The port.
    pub(crate) port: u16,
}

/// The first `length` digits of what is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    of: Dialled,
    length: usize,
}

/// A rule's target, and what to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The chain.
    pub(crate) target: Box<str>,
    /// The comment.
    pub(crate) comment: Box<str>,
}

/// One chain of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// How far below the root.
    pub(crate) level: usize,
    /// Its rules.
    pub(crate) rules: Vec<String>,
}

/// Chains by name.
pub(crate) type Nodes = BTreeMap<String, Node>;

/// A tree of chains. A clone shares what stays the same.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// In the names of its chains.
    letter: char,
    /// The root's name.
    root: &'static str,
    leaves: OrdMap<Dialled, Leaf>,
}

/// A chain on the way to a key: what it covers, and how far down it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    prefix: Prefix,
    level: usize,
    is_leaf: bool,
}

impl Dialled {
    fn ip_digits(self) -> usize {
        match self.ip {
            None => 0,
            Some(IpAddr::V4(_)) => 8,
            Some(IpAddr::V6(_)) => 32,
        }
    }

    /// How many digits there are.
    fn digits(self) -> usize {
        self.ip_digits() + 5
    }

    fn digit(self, index: usize) -> u8 {
        let ip_digits = self.ip_digits();
        let of = |bytes: &[u8], index: usize| (bytes[index / 2] >> (4 * (1 - index % 2))) & 0xf;
        match (index < ip_digits, index - ip_digits.min(index), self.ip) {
            (true, _, Some(IpAddr::V4(ip))) => of(&ip.octets(), index),
            (true, _, Some(IpAddr::V6(ip))) => of(&ip.octets(), index),
            (_, 0, _) => self.protocol as u8,
            (_, after, _) => of(&self.port.to_be_bytes(), after - 1),
        }
    }

    fn common(self, other: Self) -> usize {
        (0..self.digits()).take_while(|index| self.digit(*index) == other.digit(*index)).count()
    }

    /// The first and the last that begin with the same `length` digits.
    fn bounds(self, length: usize) -> (Self, Self) {
        let ip_digits = self.ip_digits();
        let fill = |kept: usize| u32::try_from(4 * kept).unwrap_or(u32::MAX);
        let ips = self.ip.map(|ip| match ip {
            IpAddr::V4(ip) => {
                let rest = u32::MAX.checked_shr(fill(length)).unwrap_or(0);
                let bits = ip.to_bits();
                (IpAddr::V4(Ipv4Addr::from_bits(bits & !rest)), IpAddr::V4(Ipv4Addr::from_bits(bits | rest)))
            }
            IpAddr::V6(ip) => {
                let rest = u128::MAX.checked_shr(fill(length)).unwrap_or(0);
                let bits = ip.to_bits();
                (IpAddr::V6(Ipv6Addr::from_bits(bits & !rest)), IpAddr::V6(Ipv6Addr::from_bits(bits | rest)))
            }
        });
        let protocols =
            if length > ip_digits { (self.protocol, self.protocol) } else { (Protocol::Tcp, Protocol::Sctp) };
        let rest = u16::MAX.checked_shr(fill(length.saturating_sub(ip_digits + 1))).unwrap_or(0);
        (
            Self { ip: ips.map(|it| it.0), protocol: protocols.0, port: self.port & !rest },
            Self { ip: ips.map(|it| it.1), protocol: protocols.1, port: self.port | rest },
        )
    }
}

impl Prefix {
    fn contains(self, key: Dialled) -> bool {
        self.of.common(key) >= self.length
    }

    /// Its digits; protocols are letters, so that a reader sees where the port begins.
    fn text(self) -> String {
        let ip_digits = self.of.ip_digits();
        (0..self.length)
            .map(|index| match self.of.digit(index) {
                protocol if index == ip_digits => char::from(b"TUS"[usize::from(protocol)]),
                digit => char::from_digit(digit.into(), 16).unwrap_or('0').to_ascii_uppercase(),
            })
            .collect()
    }

    /// What a rule must match for a packet to be in here, where `known` digits are sure already.
    fn matches(self, known: usize, comment: Option<&str>) -> String {
        let ip_digits = self.of.ip_digits();
        let (first, last) = self.of.bounds(self.length);
        let mut text = String::new();
        // Writing to a string does not fail.
        if let Some(ip) = first.ip.filter(|_| known < ip_digits) {
            let length = u8::try_from(4 * self.length.min(ip_digits)).unwrap_or(u8::MAX);
            if let Ok(net) = IpNet::new(ip, length) {
                let _ = write!(text, "-d {net} ");
            }
        }
        let protocol = self.of.protocol;
        if self.length > ip_digits {
            let _ = write!(text, "-p {protocol} ");
        }
        if let Some(comment) = comment {
            let _ = write!(text, "-m comment --comment \"{comment}\" ");
        }
        if self.length > ip_digits + 1 {
            let _ = match first.port == last.port {
                true => write!(text, "-m {protocol} --dport {} ", first.port),
                false => write!(text, "-m {protocol} --dport {}:{} ", first.port, last.port),
            };
        }
        text
    }
}

impl Tree {
    pub(crate) fn new(letter: char, root: &'static str) -> Self {
        Self { letter, root, leaves: OrdMap::new() }
    }

    pub(crate) fn get(&self, key: &Dialled) -> Option<&Leaf> {
        self.leaves.get(key)
    }

    pub(crate) fn insert(&mut self, key: Dialled, leaf: Leaf) {
        self.leaves.insert(key, leaf);
    }

    pub(crate) fn remove(&mut self, key: &Dialled) {
        self.leaves.remove(key);
    }

    /// The range that holds all addresses in it; `None` where there are none.
    pub(crate) fn range(&self) -> Option<IpNet> {
        let prefix = self.all()?;
        let length = prefix.length.min(prefix.of.ip_digits());
        IpNet::new(prefix.of.bounds(length).0.ip?, u8::try_from(4 * length).ok()?).ok()
    }

    /// Every chain.
    pub(crate) fn nodes(&self) -> Nodes {
        let mut nodes = Nodes::new();
        match self.root_place() {
            Some(root) => self.subtree(root, &mut nodes),
            None => self.add_empty_root(&mut nodes),
        }
        nodes
    }

    /// The chains that may differ between two trees, of which these keys are all that do.
    pub(crate) fn changed(old: &Self, new: &Self, keys: impl IntoIterator<Item = Dialled>) -> (Nodes, Nodes) {
        let (mut before, mut after) = (Nodes::new(), Nodes::new());
        let mut done: Vec<Prefix> = Vec::new();
        for key in keys {
            let (old_path, new_path) = (old.path(key), new.path(key));
            let same = old_path.iter().zip(&new_path).take_while(|(old, new)| old == new).count();
            for place in &old_path[..same] {
                old.add(*place, &mut before);
                new.add(*place, &mut after);
            }
            // From where the two part, everything below may be elsewhere, or deeper by one.
            let parted = old_path.get(same).into_iter().chain(new_path.get(same));
            let Some(region) = parted.map(|place| place.prefix).min_by_key(|prefix| prefix.length) else { continue };
            if done.iter().any(|done| done.length <= region.length && done.contains(region.of)) {
                continue;
            }
            done.push(region);
            for (tree, path, nodes) in [(old, &old_path, &mut before), (new, &new_path, &mut after)] {
                match path.get(same) {
                    Some(place) => tree.subtree(*place, nodes),
                    // A root that holds nothing is there as well.
                    None if same == 0 => tree.add_empty_root(nodes),
                    None => {}
                }
            }
        }
        (before, after)
    }

    fn add_empty_root(&self, nodes: &mut Nodes) {
        nodes.insert(self.root.to_owned(), Node { level: 0, rules: Vec::new() });
    }

    fn all(&self) -> Option<Prefix> {
        let ((first, _), (last, _)) = (self.leaves.get_min()?, self.leaves.get_max()?);
        Some(Prefix { of: *first, length: first.common(*last) })
    }

    fn root_place(&self) -> Option<Place> {
        let all = self.all()?;
        Some(self.place(Prefix { length: 0, ..all }, 0))
    }

    /// The chain for a prefix that holds something: where it has too many frontends for a leaf, what they have in common is
    /// skipped.
    fn place(&self, slot: Prefix, level: usize) -> Place {
        let (first, last) = slot.of.bounds(slot.length);
        let is_leaf = level + 1 >= LEVELS || self.leaves.range(first..=last).nth(LEAF).is_none();
        let mut prefix = Prefix { of: first, length: slot.length };
        if !is_leaf {
            let mut range = self.leaves.range(first..=last);
            if let (Some((first, _)), Some((last, _))) = (range.next(), range.next_back()) {
                prefix = Prefix { of: first.bounds(first.common(*last)).0, length: first.common(*last) };
            }
        }
        Place { prefix, level, is_leaf }
    }

    /// What each next digit of an inner chain has: a single frontend, or a chain.
    fn children(&self, place: Place) -> impl Iterator<Item = Result<Place, (Dialled, &Leaf)>> + '_ {
        let Place { prefix, level, .. } = place;
        let (first, last) = prefix.of.bounds(prefix.length);
        let mut next = self.leaves.range(first..=last).next().map(|(key, _)| *key);
        std::iter::from_fn(move || {
            let key = next?;
            let (_, end) = key.bounds(prefix.length + 1);
            let mut range = self.leaves.range(key..=last);
            let single = range.next().filter(|_| range.next().is_none_or(|(other, _)| *other > end));
            next = self.leaves.range(end..=last).map(|(key, _)| *key).find(|key| *key > end);
            Some(match single {
                Some((key, leaf)) => Err((*key, leaf)),
                None => Ok(self.place(Prefix { of: key, length: prefix.length + 1 }, level + 1)),
            })
        })
    }

    /// The chains on the way to a key, from the root.
    fn path(&self, key: Dialled) -> Vec<Place> {
        let mut path: Vec<Place> = self.root_place().into_iter().collect();
        while let Some(last) = path.last().filter(|last| !last.is_leaf && last.prefix.contains(key)) {
            let slot = Prefix { of: key, length: last.prefix.length + 1 };
            let (first, end) = key.bounds(slot.length);
            if self.leaves.range(first..=end).nth(1).is_none() {
                break;
            }
            path.push(self.place(slot, last.level + 1));
        }
        path
    }

    fn name(&self, place: Place) -> String {
        match place.level {
            0 => self.root.to_owned(),
            _ => name::node(self.letter, &place.prefix.text()),
        }
    }

    fn subtree(&self, place: Place, nodes: &mut Nodes) {
        self.add(place, nodes);
        if !place.is_leaf {
            for child in self.children(place).flatten() {
                self.subtree(child, nodes);
            }
        }
    }

    fn add(&self, place: Place, nodes: &mut Nodes) {
        let name = self.name(place);
        nodes.entry(name).or_insert_with(|| Node { level: place.level, rules: self.rules(place) });
    }

    fn rules(&self, place: Place) -> Vec<String> {
        // Packets come to the root without having met its prefix.
        let known = if place.level == 0 { 0 } else { place.prefix.length };
        let rule = |key: Dialled, leaf: &Leaf| {
            let whole = Prefix { of: key, length: key.digits() };
            format!("{}-g {}", whole.matches(known, Some(&leaf.comment)), leaf.target)
        };
        if place.is_leaf {
            let (first, last) = place.prefix.of.bounds(place.prefix.length);
            return self.leaves.range(first..=last).map(|(key, leaf)| rule(*key, leaf)).collect();
        }
        let children = self.children(place).map(|child| match child {
            Ok(child) => format!("{}-g {}", child.prefix.matches(known, None), self.name(child)),
            Err((key, leaf)) => rule(key, leaf),
        });
        children.collect()
    }
}
