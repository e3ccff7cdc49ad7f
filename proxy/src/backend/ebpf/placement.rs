//! One Service port in one family: its id, its frontends, its endpoints with their ids, and the runs of slots that they have.
//!
//! A placement says everything that its objects say, so that they need not be held: they are made from it again when they
//! are to be written, compared or deleted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tollgate_ebpf_abi::{
    Address, EndpointValue, MemberKey, MemberValue, ServiceKey, ServiceValue, pool, service_flags,
};
use tollgate_model::frontend::FrontendOrigin;
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::{EndpointSets, ServicePort};

use super::object::{Objects, address_port, node_port_address, service_key};
use super::slot::{Run, Slots};

/// The sets of endpoints, in the order of [`Placement::runs`].
const POOLS: [u32; 2] = [pool::CLUSTER, pool::LOCAL];

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Unique among all placements.
    pub(crate) id: u32,
    pub(crate) protocol: Protocol,
    /// Ordered.
    pub(crate) frontends: Vec<Frontend>,
    /// Seconds that a client stays with its endpoint.
    pub(crate) affinity: Option<u32>,
    /// Whether the endpoints are entered in `MEMBERS`.
    has_members: bool,
    /// Ordered by address and port, each once.
    endpoints: Vec<Member>,
    /// The slots of each pool, in the order of `endpoints`.
    runs: [Run; 2],
    /// No endpoint has had this id, nor a higher one.
    next_endpoint_id: u32,
}

/// A frontend, as it stands in `SERVICES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frontend {
    /// The address; for NodePorts, that under which `SERVICES` has those.
    pub(crate) address: Address,
    /// As dialled.
    pub(crate) port: u16,
    /// Whether it is a ClusterIP: ports that no Service has are refused there.
    pub(crate) is_cluster_ip: bool,
    /// Which set of endpoints it leads to.
    pool: u32,
    /// Whether the address is kept and packets decide.
    is_left_to_packets: bool,
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    ip: IpAddr,
    port: u16,
    /// In which sets it is; in none where it only serves those that it has.
    pools: u32,
    id: u32,
}

/// What a frontend may be left to packets for, node-wide.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// Everything that goes to a ClusterIP is masqueraded, which only packets can be.
    pub(crate) masquerade_all: bool,
}

/// There are no more slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} endpoints do not fit beside those of the other Service ports")]
pub(crate) struct NoSlots(usize);

impl Placement {
    /// Where a Service port is put; `None` if it has nothing in this family. Ids are those of `old`; without it, `id` is the
    /// one to take. Pools whose endpoints are the same keep their run, others get a new one; runs of `old` that are not
    /// kept are not given up here.
    pub(crate) fn new(
        service_port: &ServicePort,
        family: IpFamily,
        rules: Rules,
        id: u32,
        old: Option<&Self>,
        slots: &mut Slots,
    ) -> Result<Option<Self>, NoSlots> {
        let frontends = frontends(service_port, family, rules);
        if frontends.is_empty() {
            return Ok(None);
        }
        let protocol = service_port.name.protocol;
        let affinity = service_port.affinity_timeout();
        let affinity = affinity.map(|timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1));
        let led_to = frontends.iter().filter(|it| !it.is_left_to_packets).fold(0, |pools, it| pools | it.pool);
        let has_members = led_to != 0 && (affinity.is_some() || protocol == Protocol::Udp);
        let mut placement = Self {
            id: old.map_or(id, |old| old.id),
            protocol,
            frontends,
            affinity,
            has_members,
            endpoints: members(service_port.endpoints(family), led_to, has_members),
            runs: [Run::default(); 2],
            next_endpoint_id: old.map_or(1, |old| old.next_endpoint_id),
        };
        placement.assign_ids(old);
        placement.assign_runs(old, slots)?;
        Ok(Some(placement))
    }

    /// What the maps hold of a Service port, as far as it can be kept: its id, and its endpoints' ids and slots.
    pub(crate) fn recover(service_port: &ServicePort, family: IpFamily, id: u32, listed: &Objects) -> Self {
        let mut placement = Self {
            id,
            protocol: service_port.name.protocol,
            frontends: Vec::new(),
            affinity: None,
            has_members: false,
            endpoints: Vec::new(),
            runs: [Run::default(); 2],
            next_endpoint_id: 1,
        };
        let mut members: BTreeMap<(IpAddr, u16), Member> = BTreeMap::new();
        let mut note = |address: std::net::SocketAddr, pools: u32, id: u32| {
            let (ip, port) = (address.ip(), address.port());
            members.entry((ip, port)).or_insert(Member { ip, port, pools: 0, id }).pools |= pools;
        };
        for frontend in frontends(service_port, family, Rules::default()) {
            let Some(value) = listed.services.get(&frontend.key(placement.protocol)).filter(|it| it.service_id == id)
            else {
                continue;
            };
            let Some(index) = POOLS.iter().position(|pool| value.flags & pool::MASK == *pool) else { continue };
            let run = Run { first: value.first_slot, len: value.slots };
            let Some(end) = run.first.checked_add(run.len) else { continue };
            let slots: Vec<_> = listed.slots.range(run.first..end).filter(|(_, slot)| slot.service_id == id).collect();
            let overlaps = placement.runs.iter().any(|other| run.first < other.end() && other.first < end);
            if slots.len() != run.len as usize || run.len == 0 || overlaps {
                continue;
            }
            placement.runs[index] = run;
            for (_, slot) in slots {
                let address = tollgate_ebpf_abi::AddressPort::new(slot.address, slot.port);
                note(address.into(), POOLS[index], slot.endpoint_id);
            }
        }
        for (key, value) in listed.members.range(of_service(id)) {
            note(key.endpoint.into(), 0, value.endpoint_id);
        }
        placement.endpoints = members.into_values().collect();
        placement.next_endpoint_id = placement.endpoints.iter().map(|it| it.id).max().unwrap_or(0).saturating_add(1);
        placement
    }

    /// An endpoint keeps its id; a new one gets one that none has had.
    fn assign_ids(&mut self, old: Option<&Self>) {
        let old = old.map_or(&[][..], |old| &old.endpoints);
        for endpoint in &mut self.endpoints {
            let place = (endpoint.ip, endpoint.port);
            endpoint.id = match old.binary_search_by_key(&place, |old| (old.ip, old.port)) {
                Ok(index) => old[index].id,
                Err(_) => {
                    self.next_endpoint_id += 1;
                    self.next_endpoint_id - 1
                }
            };
        }
    }

    fn assign_runs(&mut self, old: Option<&Self>, slots: &mut Slots) -> Result<(), NoSlots> {
        for index in 0..POOLS.len() {
            let is_kept = old.is_some_and(|old| self.in_pool(index).eq(old.in_pool(index)));
            self.runs[index] = if let Some(old) = old.filter(|_| is_kept) {
                old.runs[index]
            } else {
                let count = self.in_pool(index).count();
                let run = u32::try_from(count).ok().and_then(|len| slots.allot(len));
                let Some(run) = run else {
                    // What was allotted for this placement goes back; nobody has seen it.
                    self.fresh_runs(old).collect::<Vec<_>>().into_iter().for_each(|run| slots.retire(run));
                    return Err(NoSlots(count));
                };
                run
            };
        }
        Ok(())
    }

    /// Addresses, ports and ids of a pool, in the order of its slots.
    fn in_pool(&self, index: usize) -> impl Iterator<Item = (IpAddr, u16, u32)> {
        let of_pool = move |member: &&Member| member.pools & POOLS[index] != 0;
        self.endpoints.iter().filter(of_pool).map(|member| (member.ip, member.port, member.id))
    }

    /// Its runs.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.into_iter().filter(|run| run.len > 0)
    }

    /// Runs that it has and `other` has not.
    pub(crate) fn fresh_runs(&self, other: Option<&Self>) -> impl Iterator<Item = Run> {
        self.runs().filter(move |run| other.is_none_or(|other| !other.runs.contains(run)))
    }

    /// The slots of those of its runs that `other` has not.
    pub(crate) fn fresh_slots(&self, other: Option<&Self>) -> impl Iterator<Item = (u32, EndpointValue)> {
        let runs = self.runs.into_iter().enumerate();
        let fresh = runs.filter(move |(_, run)| run.len > 0 && other.is_none_or(|other| !other.runs.contains(run)));
        fresh.flat_map(|(index, run)| {
            (run.first..).zip(self.in_pool(index)).map(|(slot, (ip, port, id))| {
                let value = EndpointValue {
                    address: ip.into(),
                    port: port.to_be(),
                    endpoint_id: id,
                    service_id: self.id,
                    ..EndpointValue::default()
                };
                (slot, value)
            })
        })
    }

    /// Whether an endpoint of its has that id.
    pub(crate) fn has_endpoint(&self, id: u32) -> bool {
        self.endpoints.iter().any(|member| member.id == id)
    }

    /// Its entries of `MEMBERS`.
    pub(crate) fn members(&self) -> impl Iterator<Item = (MemberKey, MemberValue)> {
        self.endpoints.iter().filter(|_| self.has_members).map(|member| {
            let key = MemberKey { service_id: self.id, endpoint: address_port(member.ip, member.port) };
            (key, MemberValue { pools: member.pools, endpoint_id: member.id })
        })
    }

    /// Its entries of `SERVICES`.
    pub(crate) fn services(&self) -> impl Iterator<Item = (ServiceKey, ServiceValue)> {
        self.frontends.iter().map(|frontend| {
            let key = frontend.key(self.protocol);
            let index = POOLS.iter().position(|pool| *pool == frontend.pool).unwrap_or(0);
            let run = if frontend.is_left_to_packets { Run::default() } else { self.runs[index] };
            let mut flags = frontend.pool;
            if frontend.is_left_to_packets {
                flags |= service_flags::LEAVE_TO_PACKETS;
            }
            if self.affinity.is_some() {
                flags |= service_flags::AFFINITY;
            }
            let value = ServiceValue {
                service_id: self.id,
                first_slot: run.first,
                slots: run.len,
                flags,
                affinity_seconds: self.affinity.unwrap_or(0),
                check: 0,
            };
            (key, value.sealed(&key))
        })
    }

    /// Its addresses, and whether ports that no Service has are refused there.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Address, bool)> {
        let own = self.frontends.iter().filter(|frontend| !frontend.address.is_unspecified());
        own.map(|frontend| (frontend.address, frontend.is_cluster_ip))
    }
}

impl Frontend {
    fn key(&self, protocol: Protocol) -> ServiceKey {
        service_key(self.address, self.port, protocol)
    }
}

/// The keys of one Service port in `MEMBERS`.
pub(crate) fn of_service(id: u32) -> std::ops::RangeInclusive<MemberKey> {
    let last =
        tollgate_ebpf_abi::AddressPort { address: Address { words: [u32::MAX; 4] }, port: u16::MAX, pad: u16::MAX };
    MemberKey { service_id: id, ..MemberKey::default() }..=MemberKey { service_id: id, endpoint: last }
}

/// What sockets on this node that dial a Service port are to meet. All of these are local pods' or the node's own, so that the
/// Local policy of external addresses does not concern them (`external-local-shortcut`).
fn frontends(service_port: &ServicePort, family: IpFamily, rules: Rules) -> Vec<Frontend> {
    let sets = service_port.endpoints(family);
    let is_guarded = match family {
        IpFamily::V4 => service_port.source_ranges.v4.is_some(),
        IpFamily::V6 => service_port.source_ranges.v6.is_some(),
    };
    let frontend = |address, port, origin| {
        let policy = match origin {
            Some(FrontendOrigin::ClusterIp) => service_port.internal_traffic_policy,
            _ => TrafficPolicy::Cluster,
        };
        let (pool, is_dropped) = match policy {
            TrafficPolicy::Cluster => (pool::CLUSTER, false),
            // no-local-drop
            TrafficPolicy::Local => (pool::LOCAL, sets.local.is_empty() && !sets.cluster.is_empty()),
        };
        let is_judged = origin == Some(FrontendOrigin::LoadBalancerIp) && is_guarded;
        let is_cluster_ip = origin == Some(FrontendOrigin::ClusterIp);
        let is_masqueraded = is_cluster_ip && rules.masquerade_all;
        Frontend { address, port, is_cluster_ip, pool, is_left_to_packets: is_dropped || is_judged || is_masqueraded }
    };
    let own = service_port.frontends.iter().filter(|own| own.family() == family);
    let mut frontends: Vec<_> = own.map(|own| frontend(own.ip.into(), own.port, Some(own.origin))).collect();
    // Of a Service of the other family alone, it is the host's own port.
    let has_node_port = !frontends.is_empty() || !sets.serving.is_empty();
    let node_port = service_port.node_port.filter(|_| has_node_port);
    frontends.extend(node_port.map(|port| frontend(node_port_address(family), port, None)));
    frontends
}

/// Every endpoint that is in a pool which is led to; with members, every other one that still serves as well.
fn members(sets: &EndpointSets, led_to: u32, has_members: bool) -> Vec<Member> {
    let mut members: BTreeMap<(IpAddr, u16), u32> = BTreeMap::new();
    let pools = [(&sets.cluster, pool::CLUSTER), (&sets.local, pool::LOCAL)];
    for (set, pool) in pools.into_iter().filter(|(_, pool)| led_to & pool != 0) {
        set.iter().for_each(|it| *members.entry((it.ip, it.port)).or_default() |= pool);
    }
    for it in sets.serving.iter().filter(|_| has_members) {
        members.entry((it.ip, it.port)).or_default();
    }
    members.into_iter().map(|((ip, port), pools)| Member { ip, port, pools, id: 0 }).collect()
}
