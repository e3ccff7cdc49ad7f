//! One Service port in one table: its number, and which endpoint has which slot and which ref.
//!
//! A placement says everything that its elements say, so that they need not be held: they are made from it again when
//! they are to be written, compared or deleted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::FrontendOrigin;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::ServicePort;

use super::object::{ElementKey, Key, Objects, SetName, Value};
use super::word::{MAX_SLOTS, PoolKind, Word, low};

/// One Service port in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Its number, unique in the table.
    pub(crate) number: u32,
    /// Its protocol.
    pub(crate) protocol: Protocol,
    /// ClusterIPs with their port.
    pub(crate) cluster_ips: Vec<(IpAddr, u16)>,
    /// Where ClusterIP traffic goes.
    pub(crate) internal: PoolKind,
    /// Seconds that a client stays with its endpoint.
    pub(crate) timeout: Option<u32>,
    /// The pools in use, each with its class.
    pub(crate) pools: BTreeMap<PoolKind, Pool>,
}

/// The endpoints of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// What becomes of its packets.
    pub(crate) class: u16,
    /// Its endpoints, in the order of their slots.
    pub(crate) slots: Vec<Slot>,
}

/// One endpoint in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The endpoint.
    pub(crate) endpoint: Endpoint,
    /// What clients' memory calls it; zero without affinity.
    pub(crate) reference: u16,
}

/// Why a Service port can't be realised in a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The protocol is not balanced yet.
    #[error("the nftables mode does not balance {0} yet")]
    Protocol(Protocol),
    /// More endpoints than slots, or than refs.
    #[error("{found} {family} endpoints are more than the {limit} that a Service port can have in nftables mode")]
    Endpoints {
        /// The family.
        family: IpFamily,
        /// How many there are.
        found: usize,
        /// How many fit.
        limit: usize,
    },
    /// All numbers are taken.
    #[error("all {0} numbers of Service ports are taken")]
    Numbers(u32),
    /// All classes are taken.
    #[error("all {0} combinations of protocol, endpoint count and affinity timeout are taken")]
    Classes(u16),
    /// Its frontend is another's.
    #[error("the frontend {0} is held by another Service port")]
    Frontend(String),
}

impl Placement {
    /// Where this family's table puts a Service port, without number and classes; `None` if it has nothing there.
    /// Endpoints keep the slots and refs they had in `old`.
    pub(crate) fn new(
        service_port: &ServicePort,
        family: IpFamily,
        old: Option<&Self>,
    ) -> Result<Option<Self>, Refusal> {
        let cluster_ips: Vec<_> = cluster_ips(service_port, family).collect();
        if cluster_ips.is_empty() {
            return Ok(None);
        }
        let protocol = service_port.name.protocol;
        if SetName::slots(protocol).is_none() {
            return Err(Refusal::Protocol(protocol));
        }
        let internal = match service_port.internal_traffic_policy {
            TrafficPolicy::Cluster => PoolKind::Cluster,
            TrafficPolicy::Local => PoolKind::Local,
        };
        let timeout =
            service_port.affinity_timeout().map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1));
        let limit = if timeout.is_some() { usize::from(low::LAST_REF - low::FIRST_REF) + 1 } else { MAX_SLOTS };
        let endpoints = service_port.endpoints(family);
        let mut placement = Self { number: 0, protocol, cluster_ips, internal, timeout, pools: BTreeMap::new() };
        let wanted = match internal {
            PoolKind::Cluster => &endpoints.cluster,
            PoolKind::Local => &endpoints.local,
        };
        if wanted.len() > limit {
            return Err(Refusal::Endpoints { family, found: wanted.len(), limit });
        }
        let old_slots = old.and_then(|old| old.pools.get(&internal)).map_or(&[][..], |pool| &pool.slots);
        placement.pools.insert(internal, Pool { class: 0, slots: arrange(old_slots, wanted) });
        placement.assign_refs(old);
        Ok(Some(placement))
    }

    /// With affinity, gives every endpoint a ref, one and the same in each pool: the one it had, or a new one that is
    /// not that of an endpoint just gone, for as long as there are others.
    fn assign_refs(&mut self, old: Option<&Self>) {
        let mut refs: BTreeMap<(IpAddr, u16), u16> = BTreeMap::new();
        if self.timeout.is_some() {
            let had = old.into_iter().flat_map(|old| old.pools.values()).flat_map(|pool| &pool.slots);
            refs.extend(had.filter(|slot| slot.reference != 0).map(|slot| (place(&slot.endpoint), slot.reference)));
        }
        let mut taken: BTreeSet<u16> = refs.values().copied().collect();
        let mut next = taken.last().copied().unwrap_or(low::FIRST_REF - 1);
        for slot in self.pools.values_mut().flat_map(|pool| &mut pool.slots) {
            slot.reference = match (self.timeout, refs.get(&place(&slot.endpoint))) {
                (None, _) => 0,
                (Some(_), Some(reference)) => *reference,
                (Some(_), None) => {
                    next = next_ref(next, &taken);
                    taken.insert(next);
                    refs.insert(place(&slot.endpoint), next);
                    next
                }
            };
        }
    }

    /// What clients dial.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = ElementKey> + '_ {
        self.cluster_ips.iter().map(|(ip, port)| ElementKey::Frontend(*ip, self.protocol, *port))
    }

    /// The elements that are this Service port's alone.
    pub(crate) fn elements(&self, objects: &mut Objects) {
        let word = |low| Value::Word(Word::new(self.number, low));
        let frontend_word = match self.internal {
            PoolKind::Cluster => word(self.class(PoolKind::Cluster)),
            PoolKind::Local => word(low::VIP_LOCAL),
        };
        for frontend in self.frontends() {
            objects.insert(Key::Element(SetName::Frontends, frontend), frontend_word.clone());
        }
        for (kind, pool) in &self.pools {
            let pool_word = Word::pool(self.number, *kind);
            if self.internal == PoolKind::Local {
                let key = Key::Element(SetName::Pools, ElementKey::Word(pool_word));
                objects.insert(key, word(kind.bit() | pool.class));
            }
            for (index, slot) in (0..=u16::MAX).zip(&pool.slots) {
                self.slot(objects, *kind, ElementKey::Slot(pool_word, index), slot);
            }
        }
    }

    fn slot(&self, objects: &mut Objects, pool: PoolKind, key: ElementKey, slot: &Slot) {
        let endpoint = Value::from(&slot.endpoint);
        if self.timeout.is_none() {
            if let Some(set) = SetName::slots(self.protocol) {
                objects.insert(Key::Element(set, key), endpoint);
            }
            return;
        }
        let reference = Word::new(self.number, slot.reference);
        objects.insert(Key::Element(SetName::StickySlots, key), Value::Word(reference));
        objects.insert(Key::Element(SetName::refs(pool), ElementKey::Word(reference)), endpoint);
    }

    /// The elements that it may share with other Service ports, each once.
    pub(crate) fn shared(&self) -> BTreeSet<Key> {
        let vips = self.cluster_ips.iter().map(|(ip, _)| Key::Element(SetName::ClusterIps, ElementKey::Address(*ip)));
        let slots = self.pools.values().flat_map(|pool| &pool.slots);
        let local = slots.filter(|slot| slot.endpoint.is_local);
        let hairpins = local.map(|slot| Key::Element(SetName::Hairpin, ElementKey::Twice(slot.endpoint.ip)));
        vips.chain(hairpins).collect()
    }

    fn class(&self, kind: PoolKind) -> u16 {
        self.pools.get(&kind).map_or(low::DROP, |pool| pool.class)
    }

    /// What the kernel holds of a Service port, as far as it can be kept: number, slots and refs.
    pub(crate) fn recover(service_port: &ServicePort, family: IpFamily, listed: &Objects) -> Option<Self> {
        let protocol = service_port.name.protocol;
        let slots_set = SetName::slots(protocol)?;
        let cluster_ips: Vec<_> = cluster_ips(service_port, family).collect();
        let number = cluster_ips.iter().find_map(|(ip, port)| {
            match listed.get(&Key::Element(SetName::Frontends, ElementKey::Frontend(*ip, protocol, *port)))? {
                Value::Word(word) if word.number() > 0 => Some(word.number()),
                _ => None,
            }
        })?;
        let mut pools = BTreeMap::new();
        let mut timeout = None;
        for kind in [PoolKind::Cluster, PoolKind::Local] {
            let mut slots: Vec<_> = listed_slots(listed, &slots_set, number, kind)
                .filter_map(|value| Some(Slot { endpoint: endpoint(value)?, reference: 0 }))
                .collect();
            let sticky = listed_slots(listed, &SetName::StickySlots, number, kind).filter_map(|value| {
                let Value::Word(word) = value else { return None };
                let reference = listed.get(&Key::Element(SetName::refs(kind), ElementKey::Word(*word)))?;
                Some(Slot { endpoint: endpoint(reference)?, reference: word.low() })
            });
            slots.extend(sticky.inspect(|_| timeout = Some(0)));
            pools.insert(kind, Pool { class: 0, slots });
        }
        Some(Self { number, protocol, cluster_ips, internal: PoolKind::Cluster, timeout, pools })
    }
}

/// The ClusterIPs of a family, with their port. Other origins are not realised yet.
fn cluster_ips(service_port: &ServicePort, family: IpFamily) -> impl Iterator<Item = (IpAddr, u16)> {
    let frontends = service_port.frontends.iter();
    let vips = frontends.filter(move |it| it.origin == FrontendOrigin::ClusterIp && it.family() == family);
    vips.map(|frontend| (frontend.ip, frontend.port))
}

/// Puts endpoints into slots 0 to n-1: who stays keeps its slot, new ones fill the holes, and where holes are left the
/// last ones move into them. So one endpoint more or less is one or two slots written.
fn arrange(old: &[Slot], wanted: &[Endpoint]) -> Vec<Slot> {
    let mut waiting: BTreeMap<_, _> = wanted.iter().map(|endpoint| (place(endpoint), *endpoint)).collect();
    let slot = |endpoint| Slot { endpoint, reference: 0 };
    let mut slots: Vec<Option<Slot>> = old.iter().map(|had| waiting.remove(&place(&had.endpoint)).map(slot)).collect();
    let mut new = wanted.iter().filter(|endpoint| waiting.contains_key(&place(endpoint))).copied().map(slot);
    for hole in slots.iter_mut().filter(|slot| slot.is_none()) {
        *hole = new.next();
    }
    slots.extend(new.map(Some));
    let mut arranged = Vec::with_capacity(wanted.len());
    let mut rest = VecDeque::from(slots);
    while let Some(slot) = rest.pop_front() {
        match slot {
            Some(slot) => arranged.push(slot),
            None => {
                while matches!(rest.back(), Some(None)) {
                    rest.pop_back();
                }
                arranged.extend(rest.pop_back().flatten());
            }
        }
    }
    arranged
}

/// What an endpoint is known by from sync to sync. Whether it is local is not in the kernel.
fn place(endpoint: &Endpoint) -> (IpAddr, u16) {
    (endpoint.ip, endpoint.port)
}

/// The ref after `last` that is not taken; there is one, because a pool has no more endpoints than there are refs.
fn next_ref(last: u16, taken: &BTreeSet<u16>) -> u16 {
    let after = (last + 1).max(low::FIRST_REF)..=low::LAST_REF;
    let mut candidates = after.chain(low::FIRST_REF..=low::LAST_REF);
    candidates.find(|reference| !taken.contains(reference)).unwrap_or(low::LAST_REF)
}

fn listed_slots<'a>(
    listed: &'a Objects,
    set: &SetName,
    number: u32,
    pool: PoolKind,
) -> impl Iterator<Item = &'a Value> + use<'a> {
    let word = Word::pool(number, pool);
    let key = |index| Key::Element(set.clone(), ElementKey::Slot(word, index));
    listed.range(key(0)..=key(u16::MAX)).map(|(_, value)| value)
}

/// An endpoint as the kernel knows it: not whether it is local, which `arrange` does not need.
fn endpoint(value: &Value) -> Option<Endpoint> {
    match value {
        Value::Endpoint(ip, port) => Some(Endpoint { ip: *ip, port: *port, is_local: false }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(ports: &[u16]) -> Vec<Endpoint> {
        ports.iter().map(|port| Endpoint { ip: [10, 0, 0, 1].into(), port: *port, is_local: false }).collect()
    }

    fn ports(slots: &[Slot]) -> Vec<u16> {
        slots.iter().map(|slot| slot.endpoint.port).collect()
    }

    #[test]
    fn endpoints_keep_their_slots() {
        let cases = [
            ("first", vec![], vec![1, 2, 3], vec![1, 2, 3]),
            ("one more", vec![1, 2, 3], vec![0, 1, 2, 3], vec![1, 2, 3, 0]),
            ("one less: the last moves into the hole", vec![1, 2, 3], vec![2, 3], vec![3, 2]),
            ("the last goes", vec![1, 2, 3], vec![1, 2], vec![1, 2]),
            ("exchanged", vec![1, 2, 3], vec![1, 3, 4], vec![1, 4, 3]),
            ("all exchanged", vec![1, 2], vec![3, 4, 5], vec![3, 4, 5]),
            ("most go", vec![1, 2, 3, 4, 5], vec![3], vec![3]),
        ];
        for (name, old, wanted, slots) in cases {
            let old = arrange(&[], &endpoints(&old));
            assert_eq!(ports(&arrange(&old, &endpoints(&wanted))), slots, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_pool_holds_each_endpoint_once_and_writes_little(
            old in prop::collection::btree_set(1_u16..40, 0..20),
            new in prop::collection::btree_set(1_u16..40, 0..20),
        ) {
            let before = arrange(&[], &endpoints(&old.iter().copied().collect::<Vec<_>>()));
            let after = arrange(&before, &endpoints(&new.iter().copied().collect::<Vec<_>>()));
            let mut held = ports(&after);
            held.sort_unstable();
            prop_assert!(held.iter().eq(&new));
            let written = after.iter().zip(&before).filter(|(after, before)| after != before).count()
                + after.len().abs_diff(before.len());
            prop_assert!(written <= old.symmetric_difference(&new).count().max(1) * 2);
        }
    }
}
