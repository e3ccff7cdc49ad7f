//! What the kernel lists, by Service port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;

use super::chain::table;
use super::object::{ChainName, ElementKey, Key, Objects, SetName, Value, Verdict};
use super::readback::Listed;
use super::word::{Balance, Kind, PoolKind, Word, low};
use crate::backend::{Observed, ObservedFrontend, ObservedOrigin, ObservedPool, ObservedServicePort};

/// One Service port's frontends, and what they say of it.
#[derive(Default)]
struct Found {
    name: Box<str>,
    frontends: Vec<ObservedFrontend>,
    /// The Cluster pool's class, where a frontend names it.
    class: Option<u16>,
}

/// Adds what one family's table holds.
pub(crate) fn observe(family: IpFamily, listed: &Listed, observed: &mut Observed) {
    let mut found: BTreeMap<(u32, Protocol), Found> = BTreeMap::new();
    for (key, value) in &listed.objects {
        match (key, value) {
            (Key::Element(SetName::NodeportIps, ElementKey::Address(ip)), _) => observed.node_port_addresses.push(*ip),
            (Key::Element(_, element), Value::Frontend(word, name)) => {
                let Some((ip, protocol, port)) = dialled(element) else { continue };
                let found = found.entry((word.number(), protocol)).or_default();
                let kind = Kind::of(word.low());
                found.name.clone_from(name);
                found.class = found.class.or(Some(word.low()).filter(|_| kind.is_none()));
                found.frontends.push(ObservedFrontend {
                    origin: origin(ip, kind),
                    ip,
                    port,
                    traffic_policy: policy(kind),
                    source_ranges: kind.filter(|kind| kind.is_guarded()).map(|_| ranges(&listed.objects, *word)),
                    connections: listed.counters.get(key).copied(),
                });
            }
            _ if is_foreign(key, value) => observed.foreign.push(format!("{}: {key} {value}", table(family))),
            _ => {}
        }
    }
    for ((number, protocol), mut found) in found {
        found.frontends.sort();
        let class = |pool| match (pool, found.class) {
            (PoolKind::Cluster, Some(class)) => Some(class),
            _ => class(&listed.objects, number, pool),
        };
        let timeout = PoolKind::ALL.into_iter().find_map(|pool| balance(&listed.objects, class(pool)?)?.timeout);
        let pool = |kind| class(kind).map(|class| pool(&listed.objects, number, kind, class));
        observed.service_ports.push(ObservedServicePort {
            name: found.name.into(),
            protocol,
            family,
            frontends: found.frontends,
            cluster: pool(PoolKind::Cluster),
            local: pool(PoolKind::Local),
            affinity_timeout: timeout.map(|seconds| Duration::from_secs(seconds.into())),
        });
    }
}

fn dialled(key: &ElementKey) -> Option<(Option<IpAddr>, Protocol, u16)> {
    match key {
        ElementKey::Frontend(ip, protocol, port) => Some((Some(*ip), *protocol, *port)),
        ElementKey::NodePort(protocol, port) => Some((None, *protocol, *port)),
        _ => None,
    }
}

fn origin(ip: Option<IpAddr>, kind: Option<Kind>) -> ObservedOrigin {
    match (ip, kind) {
        (None, _) => ObservedOrigin::NodePort,
        (Some(_), None | Some(Kind::VipLocal)) => ObservedOrigin::ClusterIp,
        (Some(_), Some(_)) => ObservedOrigin::External,
    }
}

fn policy(kind: Option<Kind>) -> TrafficPolicy {
    match kind {
        None | Some(Kind::ExtCluster | Kind::GuardedCluster) => TrafficPolicy::Cluster,
        Some(Kind::VipLocal | Kind::ExtLocal | Kind::GuardedLocal) => TrafficPolicy::Local,
    }
}

fn is_foreign(key: &Key, value: &Value) -> bool {
    let is_foreign_key = match key {
        Key::Set(set) => matches!(set, SetName::Foreign(_)),
        Key::Chain(chain) => matches!(chain, ChainName::Foreign(_)),
        Key::Element(_, element) => matches!(element, ElementKey::Foreign(_)),
    };
    is_foreign_key || matches!(value, Value::Foreign(_))
}

fn ranges(objects: &Objects, word: Word) -> Vec<IpNet> {
    let of_word = |(key, _): (&Key, &Value)| match key {
        Key::Element(SetName::LbRanges, ElementKey::Range(of, range)) if *of == word => Some(*range),
        _ => None,
    };
    let first = Key::Element(SetName::LbRanges, ElementKey::Range(word, IpNet::default()));
    objects.range(first..).map_while(of_word).collect()
}

fn class(objects: &Objects, number: u32, pool: PoolKind) -> Option<u16> {
    match objects.get(&Key::Element(SetName::Pools, ElementKey::Word(Word::pool(number, pool))))? {
        Value::Word(word) => Some(word.low() & low::LAST_CLASS),
        _ => None,
    }
}

fn balance(objects: &Objects, class: u16) -> Option<Balance> {
    match objects.get(&Key::Element(SetName::Picks, ElementKey::Word(Word::class(class))))? {
        Value::Verdict(Verdict::Goto(ChainName::Balance(balance))) => Some(*balance),
        _ => None,
    }
}

fn pool(objects: &Objects, number: u32, kind: PoolKind, class: u16) -> ObservedPool {
    if class == low::REFUSE {
        return ObservedPool::Reject;
    }
    let Some(balance) = balance(objects, class) else { return ObservedPool::Drop };
    let slot = |index| {
        let key = ElementKey::Slot(Word::pool(number, kind), index);
        if balance.timeout.is_none() {
            return objects.get(&Key::Element(SetName::slots(balance.protocol), key));
        }
        match objects.get(&Key::Element(SetName::StickySlots, key))? {
            Value::Word(reference) => objects.get(&Key::Element(SetName::refs(kind), ElementKey::Word(*reference))),
            _ => None,
        }
    };
    let last = u16::try_from(balance.count - 1).unwrap_or(u16::MAX);
    let endpoints = (0..=last).filter_map(|index| match slot(index)? {
        Value::Endpoint(ip, port) => Some(SocketAddr::new(*ip, *port)),
        _ => None,
    });
    ObservedPool::Endpoints(endpoints.collect())
}
