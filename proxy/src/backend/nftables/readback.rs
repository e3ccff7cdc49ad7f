//! What `nft -j list table` says, in the plan's objects.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tollgate_model::name::Protocol;

use super::object::{Chain, ChainName, ElementKey, Key, Objects, SetName, Value, Verdict, protocol_named};

/// One table, as the kernel has it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Listed {
    /// Its objects. What packets write, the elements of `affinity`, is not among them.
    pub(crate) objects: Objects,
    /// How many packets met an element that counts them.
    pub(crate) counters: BTreeMap<Key, u64>,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    set: Option<SetEntry>,
    map: Option<SetEntry>,
    chain: Option<ChainEntry>,
    rule: Option<RuleEntry>,
}

#[derive(Deserialize)]
struct SetEntry {
    name: String,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    elem: Vec<Element>,
}

#[derive(Deserialize)]
struct ChainEntry {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    prio: Option<i32>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct RuleEntry {
    chain: String,
    #[serde(default)]
    comment: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Mapped(Term, Term),
    Single(Term),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Term {
    Number(u64),
    Text(String),
    Concat {
        concat: Vec<Term>,
    },
    Element {
        elem: Box<Annotated>,
    },
    Prefix {
        prefix: Prefix,
    },
    Range {
        range: Box<(Term, Term)>,
    },
    Goto {
        goto: Target,
    },
    Jump {
        jump: Target,
    },
    Drop {
        #[serde(rename = "drop")]
        _drop: (),
    },
    Other(IgnoredAny),
}

#[derive(Deserialize)]
struct Annotated {
    val: Term,
    #[serde(default)]
    comment: Box<str>,
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    packets: u64,
}

#[derive(Deserialize)]
struct Prefix {
    addr: String,
    len: u8,
}

#[derive(Deserialize)]
struct Target {
    target: String,
}

/// Reads a listing of one table.
pub(crate) fn parse(json: &[u8]) -> Result<Listed, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(json)?;
    let mut listed = Listed::default();
    let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut chains = Vec::new();
    for entry in listing.nftables {
        if let Some(set) = entry.set.or(entry.map) {
            listed.add_set(set);
        }
        if let Some(rule) = entry.rule {
            rules.entry(rule.chain).or_default().push(rule.comment);
        }
        chains.extend(entry.chain);
    }
    for entry in chains {
        let hook = match (&entry.kind, &entry.hook, entry.prio, &entry.policy) {
            (Some(kind), Some(hook), Some(priority), Some(policy)) => format!("{kind} {hook} {priority} {policy}"),
            _ => String::new(),
        };
        let rules = rules.remove(&entry.name).unwrap_or_default();
        listed.objects.insert(Key::Chain(ChainName::named(&entry.name)), Value::Chain(Chain { hook, rules }));
    }
    Ok(listed)
}

impl Listed {
    fn add_set(&mut self, entry: SetEntry) {
        let set = SetName::named(&entry.name);
        let is_read = !matches!(set, SetName::Affinity | SetName::Foreign(_));
        for element in entry.elem.into_iter().filter(|_| is_read) {
            let (key, value) = match element {
                Element::Mapped(key, value) => (key, Some(value)),
                Element::Single(key) => (key, None),
            };
            let (key, comment, counter) = match key {
                Term::Element { elem } => (elem.val, elem.comment, elem.counter),
                key => (key, Box::default(), None),
            };
            let element = element_key(&set, &key).unwrap_or_else(|| ElementKey::Foreign(key.text().into()));
            let value = match &value {
                None => Value::Present,
                Some(value) => element_value(&set, value, comment).unwrap_or_else(|| Value::Foreign(value.text())),
            };
            let key = Key::Element(set.clone(), element);
            if let Some(counter) = counter {
                self.counters.insert(key.clone(), counter.packets);
            }
            self.objects.insert(key, value);
        }
        self.objects.insert(Key::Set(set), Value::Set(entry.comment));
    }
}

/// The key as we would have made it; `None` if we would not.
fn element_key(set: &SetName, key: &Term) -> Option<ElementKey> {
    match set {
        SetName::LocalPods | SetName::ServiceCidrs => Some(ElementKey::Cidr(key.range()?)),
        SetName::ClusterIps | SetName::NodeportIps => Some(ElementKey::Address(key.address()?)),
        SetName::Hairpin => {
            let [from, to] = key.parts()? else { return None };
            (from.address()? == to.address()?).then_some(())?;
            Some(ElementKey::Twice(from.address()?))
        }
        SetName::Frontends => {
            let [ip, protocol, port] = key.parts()? else { return None };
            Some(ElementKey::Frontend(ip.address()?, protocol.protocol()?, port.port()?))
        }
        SetName::Nodeports => {
            let [protocol, port] = key.parts()? else { return None };
            Some(ElementKey::NodePort(protocol.protocol()?, port.port()?))
        }
        SetName::LbRanges => {
            let [Term::Text(word), range] = key.parts()? else { return None };
            Some(ElementKey::Range(word.parse().ok()?, range.range()?))
        }
        SetName::Pools | SetName::Picks | SetName::Refs | SetName::LocalRefs => match key {
            Term::Text(word) => Some(ElementKey::Word(word.parse().ok()?)),
            _ => None,
        },
        SetName::SlotsTcp | SetName::SlotsUdp | SetName::SlotsSctp | SetName::StickySlots => {
            let [Term::Text(word), index] = key.parts()? else { return None };
            Some(ElementKey::Slot(word.parse().ok()?, index.port()?))
        }
        SetName::Affinity | SetName::Foreign(_) => None,
    }
}

/// The value as we would have made it; `None` if we would not.
fn element_value(set: &SetName, value: &Term, comment: Box<str>) -> Option<Value> {
    match set {
        SetName::Frontends | SetName::Nodeports => match value {
            Term::Text(word) => Some(Value::Frontend(word.parse().ok()?, comment)),
            _ => None,
        },
        SetName::Pools | SetName::StickySlots => match value {
            Term::Text(word) => Some(Value::Word(word.parse().ok()?)),
            _ => None,
        },
        SetName::SlotsTcp | SetName::SlotsUdp | SetName::SlotsSctp | SetName::Refs | SetName::LocalRefs => {
            let [ip, port] = value.parts()? else { return None };
            Some(Value::Endpoint(ip.address()?, port.port()?))
        }
        SetName::Picks => match value {
            Term::Goto { goto } => Some(Value::Verdict(Verdict::Goto(ChainName::named(&goto.target)))),
            Term::Drop { .. } => Some(Value::Verdict(Verdict::Drop)),
            _ => None,
        },
        _ => None,
    }
}

impl Term {
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn range(&self) -> Option<IpNet> {
        match self {
            Self::Prefix { prefix } => IpNet::new(prefix.addr.parse().ok()?, prefix.len).ok(),
            key => key.address().map(IpNet::from),
        }
    }

    fn port(&self) -> Option<u16> {
        match self {
            Self::Number(number) => u16::try_from(*number).ok(),
            _ => None,
        }
    }

    /// nft names protocols by /etc/protocols, which a minimal system lacks: there they are numbers.
    fn protocol(&self) -> Option<Protocol> {
        match self.text().as_str() {
            "6" => Some(Protocol::Tcp),
            "17" => Some(Protocol::Udp),
            "132" => Some(Protocol::Sctp),
            name => protocol_named(name),
        }
    }

    fn parts(&self) -> Option<&[Self]> {
        match self {
            Self::Concat { concat } => Some(concat),
            _ => None,
        }
    }

    /// As nft takes it.
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
            Self::Concat { concat } => concat.iter().map(Self::text).collect::<Vec<_>>().join(" . "),
            Self::Element { elem } => elem.val.text(),
            Self::Prefix { prefix } => format!("{}/{}", prefix.addr, prefix.len),
            Self::Range { range } => format!("{}-{}", range.0.text(), range.1.text()),
            Self::Goto { goto } => format!("goto {}", goto.target),
            Self::Jump { jump } => format!("jump {}", jump.target),
            Self::Drop { .. } => "drop".to_owned(),
            Self::Other(_) => "?".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 lists the same table with /etc/protocols and without it.
    #[test]
    fn protocols_are_read_by_name_and_by_number() {
        let listed = |protocol: &str| {
            let element = format!(r#"[{{"concat": ["10.96.0.1", {protocol}, 80]}}, "0:4012"]"#);
            let map = format!(
                r#"{{"map": {{"family": "ip", "table": "tollgate", "name": "frontends", "elem": [{element}]}}}}"#
            );
            parse(format!(r#"{{"nftables": [{map}]}}"#).as_bytes()).unwrap().objects
        };
        let by_name = listed(r#""tcp""#);
        let frontend = ElementKey::Frontend("10.96.0.1".parse().unwrap(), Protocol::Tcp, 80);
        assert!(by_name.contains_key(&Key::Element(SetName::Frontends, frontend)), "{by_name:?}");
        assert_eq!(listed(r#""6""#), by_name);
        assert_eq!(listed("6"), by_name);
    }
}
