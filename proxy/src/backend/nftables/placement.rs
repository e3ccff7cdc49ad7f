//! One Service port in one table: its number, and which endpoint has which slot and which ref.
//!
//! A placement says everything that its elements say, so that they need not be held: they are made from it again when
//! they are to be written, compared or deleted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;
use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::FrontendOrigin;
use tollgate_model::name::{IpFamily, Protocol, ServicePortName};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::ServicePort;

use super::object::{ElementKey, Gathered, Key, Objects, SetName, Value};
use super::word::{Kind, MAX_SLOTS, PoolKind, Word, low};
use crate::backend::label::label;

/// NFTNL_UDATA_COMMENT_MAXLEN of libnftnl: nft takes no longer comment.
const MAX_LABEL: usize = 128;

/// One Service port in one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Its number, unique in the table.
    pub(crate) number: u32,
    /// Its protocol.
    pub(crate) protocol: Protocol,
    /// Addresses with their port.
    pub(crate) addresses: Vec<(IpAddr, u16, Route)>,
    /// The NodePort.
    pub(crate) node_port: Option<(u16, Route)>,
    /// Who may dial the guarded addresses; empty where none is guarded.
    pub(crate) source_ranges: Vec<IpNet>,
    /// Seconds that a client stays with its endpoint.
    pub(crate) timeout: Option<u32>,
    /// The pools in use, each with its class.
    pub(crate) pools: BTreeMap<PoolKind, Pool>,
}

/// How packets to a frontend find their pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// ClusterIP under `internalTrafficPolicy: Cluster`, as most are: the frontend names the Cluster pool's class.
    Plain,
    /// By way of a chain for its kind.
    By(Kind),
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
        let addresses = addresses(service_port, family);
        let node_port = node_port(service_port, family);
        if addresses.is_empty() && node_port.is_none() {
            return Ok(None);
        }
        let is_guarded = addresses.iter().any(|(_, _, route)| matches!(route, Route::By(kind) if kind.is_guarded()));
        let ranges = source_ranges(service_port, family).filter(|_| is_guarded);
        let timeout =
            service_port.affinity_timeout().map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1));
        let mut placement = Self {
            number: 0,
            protocol: service_port.name.protocol,
            addresses,
            node_port,
            // The fewest that cover the same: an interval set refuses those that overlap.
            source_ranges: ranges.map(|ranges| IpNet::aggregate(&ranges.to_vec())).unwrap_or_default(),
            timeout,
            pools: BTreeMap::new(),
        };
        let endpoints = service_port.endpoints(family);
        for kind in placement.routes().flat_map(Route::pools).copied().collect::<BTreeSet<_>>() {
            let wanted = match kind {
                PoolKind::Cluster => &endpoints.cluster,
                PoolKind::Local => &endpoints.local,
            };
            let old_slots = old.and_then(|old| old.pools.get(&kind)).map_or(&[][..], |pool| &pool.slots);
            placement.pools.insert(kind, Pool { class: 0, slots: arrange(old_slots, wanted) });
        }
        placement.check_limits(family)?;
        placement.assign_refs(old);
        Ok(Some(placement))
    }

    /// A pool has slots for so many, and all pools together have refs for so many.
    fn check_limits(&self, family: IpFamily) -> Result<(), Refusal> {
        let slots = || self.pools.values().map(|pool| &pool.slots);
        let (found, limit) = match self.timeout {
            None => (slots().map(Vec::len).max().unwrap_or(0), MAX_SLOTS),
            Some(_) => {
                let places: BTreeSet<_> = slots().flatten().map(|slot| place(&slot.endpoint)).collect();
                (places.len(), usize::from(low::LAST_REF - low::FIRST_REF) + 1)
            }
        };
        if found > limit { Err(Refusal::Endpoints { family, found, limit }) } else { Ok(()) }
    }

    fn routes(&self) -> impl Iterator<Item = Route> {
        let addresses = self.addresses.iter().map(|(_, _, route)| *route);
        addresses.chain(self.node_port.iter().map(|(_, route)| *route))
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

    /// What clients dial, with the lower part of its word.
    fn dialled(&self) -> impl Iterator<Item = (SetName, ElementKey, u16)> {
        let addresses = self.addresses.iter().map(|(ip, port, route)| {
            (SetName::Frontends, ElementKey::Frontend(*ip, self.protocol, *port), self.low(*route))
        });
        let node_port = self
            .node_port
            .iter()
            .map(|(port, route)| (SetName::Nodeports, ElementKey::NodePort(self.protocol, *port), self.low(*route)));
        addresses.chain(node_port)
    }

    /// What clients dial.
    pub(crate) fn frontends(&self) -> impl Iterator<Item = ElementKey> {
        self.dialled().map(|(_, key, _)| key)
    }

    fn low(&self, route: Route) -> u16 {
        match route {
            Route::Plain => self.pools.get(&PoolKind::Cluster).map_or(low::DROP, |pool| pool.class),
            Route::By(kind) => kind.low(),
        }
    }

    /// The elements that are this Service port's alone.
    pub(crate) fn elements(&self, name: &ServicePortName, objects: &mut Gathered) {
        let label = label(name, MAX_LABEL);
        for (set, key, low) in self.dialled() {
            let value = Value::Frontend(Word::new(self.number, low), label.clone());
            objects.push((Key::Element(set, key), value));
        }
        self.ranges(objects);
        let by_kind: BTreeSet<_> =
            self.routes().filter(|route| *route != Route::Plain).flat_map(Route::pools).collect();
        for (kind, pool) in &self.pools {
            let pool_word = Word::pool(self.number, *kind);
            if by_kind.contains(kind) {
                let key = Key::Element(SetName::Pools, ElementKey::Word(pool_word));
                objects.push((key, Value::Word(Word::new(self.number, kind.bit() | pool.class))));
            }
            for (index, slot) in (0..=u16::MAX).zip(&pool.slots) {
                self.slot(objects, *kind, ElementKey::Slot(pool_word, index), slot);
            }
        }
    }

    /// Who may dial the guarded frontends, for each kind of these: they all have one.
    fn ranges(&self, objects: &mut Gathered) {
        let guarded = self.addresses.iter().find_map(|(_, _, route)| match route {
            Route::By(kind) if kind.is_guarded() => Some(*kind),
            _ => None,
        });
        let Some(kind) = guarded else { return };
        let word = Word::new(self.number, kind.low());
        let key = |range: &IpNet| Key::Element(SetName::LbRanges, ElementKey::Range(word, *range));
        objects.extend(self.source_ranges.iter().map(|range| (key(range), Value::Present)));
    }

    fn slot(&self, objects: &mut Gathered, pool: PoolKind, key: ElementKey, slot: &Slot) {
        let endpoint = Value::from(&slot.endpoint);
        if self.timeout.is_none() {
            objects.push((Key::Element(SetName::slots(self.protocol), key), endpoint));
            return;
        }
        let reference = Word::new(self.number, slot.reference);
        objects.push((Key::Element(SetName::StickySlots, key), Value::Word(reference)));
        objects.push((Key::Element(SetName::refs(pool), ElementKey::Word(reference)), endpoint));
    }

    /// The elements that it may share with other Service ports, each once.
    pub(crate) fn shared(&self) -> BTreeSet<Key> {
        let is_cluster_ip = |route: &Route| matches!(route, Route::Plain | Route::By(Kind::VipLocal));
        let vips = self.addresses.iter().filter(|(_, _, route)| is_cluster_ip(route));
        let vips = vips.map(|(ip, _, _)| Key::Element(SetName::ClusterIps, ElementKey::Address(*ip)));
        let slots = self.pools.values().flat_map(|pool| &pool.slots);
        let local = slots.filter(|slot| slot.endpoint.is_local);
        let hairpins = local.map(|slot| Key::Element(SetName::Hairpin, ElementKey::Twice(slot.endpoint.ip)));
        vips.chain(hairpins).collect()
    }

    /// What the kernel holds of a Service port, as far as it can be kept: number, slots and refs.
    pub(crate) fn recover(service_port: &ServicePort, family: IpFamily, listed: &Objects) -> Option<Self> {
        if listed.is_empty() {
            return None;
        }
        let protocol = service_port.name.protocol;
        let slots_set = SetName::slots(protocol);
        let (addresses, node_port) = (addresses(service_port, family), node_port(service_port, family));
        let mut placement = Self {
            number: 0,
            protocol,
            addresses,
            node_port,
            source_ranges: Vec::new(),
            timeout: None,
            pools: BTreeMap::new(),
        };
        let number = placement.dialled().find_map(|(set, key, _)| match listed.get(&Key::Element(set, key))? {
            Value::Frontend(word, _) if word.number() > 0 => Some(word.number()),
            _ => None,
        })?;
        placement.number = number;
        for kind in PoolKind::ALL {
            let mut slots: Vec<_> = listed_slots(listed, &slots_set, number, kind)
                .filter_map(|value| Some(Slot { endpoint: endpoint(value)?, reference: 0 }))
                .collect();
            let sticky = listed_slots(listed, &SetName::StickySlots, number, kind).filter_map(|value| {
                let Value::Word(word) = value else { return None };
                let reference = listed.get(&Key::Element(SetName::refs(kind), ElementKey::Word(*word)))?;
                Some(Slot { endpoint: endpoint(reference)?, reference: word.low() })
            });
            slots.extend(sticky);
            placement.pools.insert(kind, Pool { class: 0, slots });
        }
        Some(placement)
    }
}

impl Route {
    /// Where packets on it may end up.
    fn pools(self) -> &'static [PoolKind] {
        match self {
            Self::Plain => &[PoolKind::Cluster],
            Self::By(kind) => kind.pools(),
        }
    }

    fn external(policy: TrafficPolicy, is_guarded: bool) -> Self {
        Self::By(match (policy, is_guarded) {
            (TrafficPolicy::Cluster, false) => Kind::ExtCluster,
            (TrafficPolicy::Local, false) => Kind::ExtLocal,
            (TrafficPolicy::Cluster, true) => Kind::GuardedCluster,
            (TrafficPolicy::Local, true) => Kind::GuardedLocal,
        })
    }
}

/// The addresses of a family, with their port.
fn addresses(service_port: &ServicePort, family: IpFamily) -> Vec<(IpAddr, u16, Route)> {
    let external = service_port.external_traffic_policy;
    let is_guarded = source_ranges(service_port, family).is_some();
    let route = |origin| match (origin, service_port.internal_traffic_policy) {
        (FrontendOrigin::ClusterIp, TrafficPolicy::Cluster) => Route::Plain,
        (FrontendOrigin::ClusterIp, TrafficPolicy::Local) => Route::By(Kind::VipLocal),
        (FrontendOrigin::ExternalIp, _) => Route::external(external, false),
        (FrontendOrigin::LoadBalancerIp, _) => Route::external(external, is_guarded),
    };
    let of_family = service_port.frontends.iter().filter(|frontend| frontend.family() == family);
    of_family.map(|frontend| (frontend.ip, frontend.port, route(frontend.origin))).collect()
}

/// The NodePort, unless the Service is of the other family alone: there it is the host's own port.
fn node_port(service_port: &ServicePort, family: IpFamily) -> Option<(u16, Route)> {
    let has_address = service_port.frontends.iter().any(|frontend| frontend.family() == family);
    let is_of_family = has_address || !service_port.endpoints(family).serving.is_empty();
    let port = service_port.node_port.filter(|_| is_of_family)?;
    Some((port, Route::external(service_port.external_traffic_policy, false)))
}

fn source_ranges(service_port: &ServicePort, family: IpFamily) -> Option<&[IpNet]> {
    match family {
        IpFamily::V4 => service_port.source_ranges.v4.as_deref(),
        IpFamily::V6 => service_port.source_ranges.v6.as_deref(),
    }
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
