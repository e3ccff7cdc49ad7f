//! What the kernel lists, by Service port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;

use super::object::{ChainName, ElementKey, Key, Objects, SetName, Value, Verdict};
use super::readback::Listed;
use super::word::{PoolKind, Word, low};
use crate::backend::{Observed, ObservedFrontend, ObservedOrigin, ObservedPool, ObservedServicePort};

/// Adds what one family's table holds.
pub(crate) fn observe(family: IpFamily, listed: &Listed, observed: &mut Observed) {
    let mut frontends: BTreeMap<(u32, Protocol), Vec<ObservedFrontend>> = BTreeMap::new();
    let mut classes: BTreeMap<u32, BTreeSet<(PoolKind, u16)>> = BTreeMap::new();
    for (key, value) in &listed.objects {
        let Key::Element(SetName::Frontends, ElementKey::Frontend(ip, protocol, port)) = key else { continue };
        let Value::Word(word) = value else { continue };
        let is_local = word.low() == low::VIP_LOCAL;
        frontends.entry((word.number(), *protocol)).or_default().push(ObservedFrontend {
            origin: ObservedOrigin::ClusterIp,
            ip: Some(*ip),
            port: *port,
            traffic_policy: if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            source_ranges: None,
            connections: listed.counters.get(key).copied(),
        });
        if !is_local {
            classes.entry(word.number()).or_default().insert((PoolKind::Cluster, word.low()));
        }
    }
    for ((number, protocol), frontends) in frontends {
        let class = |pool| class(&listed.objects, number, pool, classes.get(&number));
        let timeout = [PoolKind::Cluster, PoolKind::Local]
            .into_iter()
            .filter_map(|pool| balance(&listed.objects, class(pool)?)?.timeout)
            .next();
        observed.service_ports.push(ObservedServicePort {
            name: format!("number {number}"),
            protocol,
            family,
            frontends,
            cluster: class(PoolKind::Cluster).map(|it| pool(&listed.objects, number, PoolKind::Cluster, it)),
            local: class(PoolKind::Local).map(|it| pool(&listed.objects, number, PoolKind::Local, it)),
            affinity_timeout: timeout.map(|seconds| Duration::from_secs(seconds.into())),
        });
    }
}

fn class(objects: &Objects, number: u32, pool: PoolKind, direct: Option<&BTreeSet<(PoolKind, u16)>>) -> Option<u16> {
    if let Some((_, class)) = direct.into_iter().flatten().find(|(of, _)| *of == pool) {
        return Some(*class);
    }
    match objects.get(&Key::Element(SetName::Pools, ElementKey::Word(Word::pool(number, pool))))? {
        Value::Word(word) => Some(word.low() & low::LAST_CLASS),
        _ => None,
    }
}

fn balance(objects: &Objects, class: u16) -> Option<super::word::Balance> {
    match objects.get(&Key::Element(SetName::Picks, ElementKey::Word(Word::class(class))))? {
        Value::Verdict(Verdict::Goto(ChainName::Balance(balance))) => Some(*balance),
        _ => None,
    }
}

fn pool(objects: &Objects, number: u32, kind: PoolKind, class: u16) -> ObservedPool {
    match class {
        low::REFUSE => return ObservedPool::Reject,
        low::DROP => return ObservedPool::Drop,
        _ => {}
    }
    let Some(balance) = balance(objects, class) else { return ObservedPool::Drop };
    let slot = |index| {
        let key = ElementKey::Slot(Word::pool(number, kind), index);
        match balance.timeout {
            None => objects.get(&Key::Element(SetName::slots(balance.protocol)?, key)),
            Some(_) => {
                let Value::Word(reference) = objects.get(&Key::Element(SetName::StickySlots, key))? else {
                    return None;
                };
                objects.get(&Key::Element(SetName::refs(kind), ElementKey::Word(*reference)))
            }
        }
    };
    let last = u16::try_from(balance.count - 1).unwrap_or(u16::MAX);
    let endpoints = (0..=last).filter_map(|index| match slot(index)? {
        Value::Endpoint(ip, port) => Some(SocketAddr::new(*ip, *port)),
        _ => None,
    });
    ObservedPool::Endpoints(endpoints.collect())
}
