//! What `iptables-save` and `ipset save` print, and how it differs from a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, Protocol};

use super::kernel::{SetSummary, Sets};
use super::name::{self, SetName};
use super::object::{Changes, Element, Own, Table};
use super::plan::Plan;
use super::style::jumps;
use super::transaction::{inet, set_type};

/// What the kernel holds of ours in one family; borrows what the commands printed.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    pub(crate) family: IpFamily,
    /// Our chains with their rules, without `-A` and the chain's name.
    pub(crate) chains: BTreeMap<(Table, &'a str), Vec<&'a str>>,
    /// Rules of built-in chains that lead to ours: table, chain, rule.
    pub(crate) jumps: Vec<(Table, &'a str, &'a str)>,
    /// All sets, also other people's.
    pub(crate) sets: &'a Sets,
    /// Members of our sets but those of clients.
    pub(crate) elements: BTreeSet<Element>,
    /// Members that make no sense, as `ipset` wrote them.
    pub(crate) foreign: Vec<(SetName, &'a str)>,
}

/// Where rules that lead to ours are ours. In a chain that somebody made, they are his.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Reads what `iptables-save` prints. A rule may have its counters before it, as with `-c`.
pub(crate) fn tables<'a>(text: &'a str, listing: &mut Listing<'a>) {
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::named(name);
        } else if let Some(table) = table {
            self::line(table, line, listing);
        }
    }
}

fn line<'a>(table: Table, line: &'a str, listing: &mut Listing<'a>) {
    if let Some(declared) = line.strip_prefix(':') {
        let chain = declared.split(' ').next().unwrap_or_default();
        if name::is_our_chain(chain) {
            listing.chains.entry((table, chain)).or_default();
        }
        return;
    }
    let Some((_, rest)) = line.split_once("-A ") else { return };
    let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
    if let Some(rules) = listing.chains.get_mut(&(table, chain)) {
        rules.push(rule);
    } else if BUILT_IN.contains(&chain) && target(rule).is_some_and(name::is_our_chain) {
        listing.jumps.push((table, chain, rule));
    }
}

/// Reads what `ipset list -terse` prints: of each set, a line for its name, its type, its header and its size.
pub(crate) fn sets(text: &str) -> Sets {
    let (mut sets, mut name, mut kind) = (Sets::new(), "", "");
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("Name", value)) => name = value,
            Some(("Type", value)) => kind = value,
            Some(("Header", header)) => {
                sets.insert(name.to_owned(), SetSummary { kind: set_kind(kind, header), is_empty: false });
            }
            Some(("Number of entries", "0")) => {
                if let Some(set) = sets.get_mut(name) {
                    set.is_empty = true;
                }
            }
            _ => {}
        }
    }
    sets
}

/// What of a set's definition matters.
fn set_kind(kind: &str, header: &str) -> String {
    let mut words = header.split(' ');
    let family = words.find(|word| *word == "family").and_then(|_| words.next()).unwrap_or_default();
    let timeout = if header.contains(" timeout ") { " timeout" } else { "" };
    format!("{kind} {family}{timeout}")
}

/// Reads the members of one set.
pub(crate) fn members<'a>(set: SetName, text: &'a str, listing: &mut Listing<'a>) {
    for line in text.lines().filter_map(|line| line.strip_prefix("add ")) {
        let Some((_, member)) = line.split_once(' ') else { continue };
        match element(set, member) {
            Some(element) => drop(listing.elements.insert(element)),
            None => listing.foreign.push((set, member)),
        }
    }
}

fn element(set: SetName, member: &str) -> Option<Element> {
    let mut parts = member.split(',');
    let ip = parts.next()?.parse().ok()?;
    let port = match parts.next() {
        None => None,
        Some(port) => {
            let (word, port) = port.split_once(':')?;
            Some((protocol(word)?, port.parse().ok()?))
        }
    };
    let source = match parts.next() {
        None => None,
        Some(net) => Some(net.parse::<IpNet>().or_else(|_| net.parse().map(IpNet::from_addr)).ok()?),
    };
    Some(Element { set, ip, port, source })
}

/// For `parse().map(...)` of a single address.
trait FromAddr {
    fn from_addr(ip: std::net::IpAddr) -> Self;
}

impl FromAddr for IpNet {
    fn from_addr(ip: std::net::IpAddr) -> Self {
        Self::from(ip)
    }
}

/// A protocol, by name or number: the name is that of `/etc/protocols`, which may be missing.
pub(crate) fn protocol(word: &str) -> Option<Protocol> {
    match word {
        "tcp" | "6" => Some(Protocol::Tcp),
        "udp" | "17" => Some(Protocol::Udp),
        "sctp" | "132" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The chain that a rule leads to.
pub(crate) fn target(rule: &str) -> Option<&str> {
    option(rule, "-g").or_else(|| option(rule, "-j"))
}

/// The first argument of an option that is not negated.
pub(crate) fn option<'a>(rule: &'a str, wanted: &str) -> Option<&'a str> {
    words(rule).find(|option| option.name == wanted && !option.is_negated)?.arguments.first().copied()
}

/// An option of a rule with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Word<'a> {
    name: &'a str,
    is_negated: bool,
    arguments: Vec<&'a str>,
}

/// The options of a rule, in order.
fn words(rule: &str) -> impl Iterator<Item = Word<'_>> {
    let mut tokens = tokens(rule).peekable();
    std::iter::from_fn(move || {
        let mut is_negated = false;
        let mut name = tokens.next()?;
        if name == "!" {
            is_negated = true;
            name = tokens.next()?;
        }
        let mut arguments = Vec::new();
        // An argument may begin with a dash only in quotes, which `tokens` keeps no trace of: ours never do.
        while let Some(argument) = tokens.next_if(|token| !token.starts_with('-') && *token != "!") {
            arguments.push(argument);
        }
        Some(Word { name, is_negated, arguments })
    })
}

fn tokens(rule: &str) -> impl Iterator<Item = &str> {
    let mut rest = rule;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let (token, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None if rest.is_empty() => return None,
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        rest = after;
        Some(token)
    })
}

/// Whether two rules say the same. Versions of iptables differ in the order of matches and in what they name that goes
/// without saying.
pub(crate) fn is_same(wanted: &str, found: &str) -> bool {
    wanted == found || canonical(wanted) == canonical(found)
}

fn canonical(rule: &str) -> Vec<(String, bool, Vec<String>)> {
    let mut options: Vec<_> = words(rule)
        .filter(|word| word.name != "-m")
        .map(|word| (word.name.to_owned(), word.is_negated, word.arguments.iter().map(|it| address(it)).collect()))
        .collect();
    options.sort();
    options
}

/// Addresses as Rust writes them: C libraries write some of IPv6's otherwise.
fn address(argument: &str) -> String {
    if let Ok(net) = argument.parse::<IpNet>() {
        return net.to_string();
    }
    match (argument.parse::<std::net::IpAddr>(), argument.parse::<SocketAddr>(), protocol(argument)) {
        (Ok(ip), ..) => IpNet::from(ip).to_string(),
        (_, Ok(socket), _) => socket.to_string(),
        (.., Some(protocol)) => protocol.to_string(),
        _ => argument.to_owned(),
    }
}

fn are_same(wanted: &[String], found: &[&str]) -> bool {
    wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| is_same(wanted, found))
}

/// What makes of a listing what a plan says, and a line for each object that differs.
pub(crate) fn compare(plan: &Plan, listing: &Listing<'_>) -> (Changes, Vec<String>) {
    let mut comparison = Comparison {
        listing,
        changes: Changes::new(listing.family),
        lines: Vec::new(),
        wanted: BTreeSet::new(),
        affinity: BTreeSet::new(),
    };
    for (name, own) in plan.own() {
        comparison.own(name, own);
    }
    for (level, chain) in plan.shared() {
        if !comparison.has_chain(chain.table, &chain.name, &chain.rules) {
            comparison.changes.shared.push((level, chain));
        }
    }
    comparison.leftovers();
    comparison.jumps();
    comparison.sets(plan);
    (comparison.changes, comparison.lines)
}

struct Comparison<'a> {
    listing: &'a Listing<'a>,
    changes: Changes,
    lines: Vec<String>,
    /// Chains that are wanted.
    wanted: BTreeSet<(Table, String)>,
    /// Sets of clients that are wanted.
    affinity: BTreeSet<String>,
}

impl Comparison<'_> {
    fn line(&mut self, line: String) {
        self.lines.push(format!("{}: {line}", self.listing.family));
    }

    fn own(&mut self, name: &tollgate_model::name::ServicePortName, own: Own) {
        let Own { mut chains, mut affinity } = own;
        self.affinity.extend(affinity.iter().cloned());
        let kind = format!("hash:ip {} timeout", inet(self.listing.family));
        // One of another kind can't be used, and to make one of that name is refused for this Service port alone.
        affinity.retain(|set| self.listing.sets.get(set).is_none_or(|set| set.kind != kind));
        for set in &affinity {
            self.line(format!("set {set} was missing"));
        }
        chains.retain(|chain, rules| !self.has_chain(Table::Nat, chain, rules));
        if !chains.is_empty() || !affinity.is_empty() {
            self.changes.services.insert(name.clone(), Own { chains, affinity });
        }
    }

    fn has_chain(&mut self, table: Table, name: &str, rules: &[String]) -> bool {
        self.wanted.insert((table, name.to_owned()));
        let Some(found) = self.listing.chains.get(&(table, name)) else {
            self.line(format!("chain {name} was missing"));
            return false;
        };
        if are_same(rules, found) {
            return true;
        }
        self.line(format!("chain {name} was altered"));
        false
    }

    fn leftovers(&mut self) {
        for (table, chain) in self.listing.chains.keys().map(|(table, chain)| (*table, (*chain).to_owned())) {
            if !self.wanted.contains(&(table, chain.clone())) {
                self.line(format!("chain {chain} was not wanted"));
                self.changes.deleted.insert((table, chain));
            }
        }
    }

    /// Where a built-in chain has not just the jumps it should have, in that order, all of ours there are made anew.
    fn jumps(&mut self) {
        let wanted = jumps();
        let mut bases: BTreeSet<(Table, &str)> = wanted.iter().map(|jump| (jump.table, jump.base)).collect();
        bases.extend(self.listing.jumps.iter().map(|(table, base, _)| (*table, *base)));
        for base in bases {
            let wanted: Vec<_> = wanted.iter().filter(|jump| (jump.table, jump.base) == base).collect();
            let found = self.listing.jumps.iter().filter(|(table, chain, _)| (*table, *chain) == base);
            let found: Vec<_> = found.map(|(_, _, rule)| *rule).collect();
            if wanted.len() == found.len() && wanted.iter().zip(&found).all(|(jump, rule)| is_same(&jump.rule, rule)) {
                continue;
            }
            let (table, base) = base;
            self.line(format!("the rules of {base} that lead to ours were not as they should be"));
            self.changes.removed_jumps.extend(found.iter().map(|rule| (table, base.to_owned(), (*rule).to_owned())));
            self.changes.jumps.extend(wanted.into_iter().cloned());
        }
    }

    fn sets(&mut self, plan: &Plan) {
        let listing = self.listing;
        for set in SetName::ALL {
            let name = set.text(listing.family);
            let kind = format!("{} {}", set_type(set), inet(listing.family));
            if listing.sets.get(&name).is_none_or(|set| set.kind != kind) {
                self.line(format!("set {name} was missing"));
                self.changes.sets.insert(set);
            }
        }
        let wanted: BTreeSet<&Element> = plan.elements().collect();
        for element in wanted.iter().filter(|element| !listing.elements.contains(**element)) {
            self.line(format!("set {}: {element} was missing", element.set.text(listing.family)));
            self.changes.elements.insert((*element).clone(), true);
        }
        for element in listing.elements.iter().filter(|element| !wanted.contains(*element)) {
            self.line(format!("set {}: {element} was not wanted", element.set.text(listing.family)));
            self.changes.elements.insert(element.clone(), false);
        }
        for (set, member) in &listing.foreign {
            self.line(format!("set {}: {member} was not ours", set.text(listing.family)));
            self.changes.foreign.push((*set, (*member).to_owned()));
        }
        let clients = listing.sets.keys().filter(|set| name::is_affinity_set(set, listing.family));
        for set in clients.filter(|set| !self.affinity.contains(*set)).collect::<Vec<_>>() {
            self.line(format!("set {set} was not wanted"));
            self.changes.destroyed.insert(set.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_the_same_whichever_way_they_are_written() {
        let wanted = "-d 10.96.0.1/32 -p tcp -m comment --comment \"a/b:c\" -m tcp --dport 80 -g TG-S";
        for (found, is) in [
            (wanted, true),
            ("-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment a/b:c -g TG-S", true),
            ("-d 10.96.0.1 -p 6 --dport 80 -m comment --comment \"a/b:c\" -g TG-S", true),
            ("! -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment a/b:c -g TG-S", false),
            ("-d 10.96.0.1/32 -p tcp -m tcp --dport 81 -m comment --comment a/b:c -g TG-S", false),
            ("-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -g TG-S", false),
            ("-d 10.96.0.1/32 -p tcp -m comment --comment \"a/b:c\" -m tcp --dport 80 -j TG-S", false),
        ] {
            assert_eq!(is_same(wanted, found), is, "{found}");
        }
        assert!(is_same("-d fd00::102:304/128 -j DROP", "-d fd00::1.2.3.4/128 -j DROP"));
    }

    #[test]
    fn members_are_read_as_they_are_written() {
        for (set, member) in [
            (SetName::ClusterIps, "10.96.0.1"),
            (SetName::Reject, "fd00::1,sctp:80"),
            (SetName::Admit, "192.0.2.1,tcp:80,10.0.0.0/8"),
            (SetName::Admit, "192.0.2.1,udp:80,10.0.0.1"),
        ] {
            assert_eq!(element(set, member).expect(member).to_string(), member);
        }
        assert_eq!(element(SetName::Reject, "192.0.2.1,icmp:echo-request"), None);
    }
}
