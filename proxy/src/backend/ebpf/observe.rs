//! What the maps hold, by Service port. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tollgate_ebpf_abi::{AddressPort, ServiceKey, ServiceValue, address_flags, pool, service_flags};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;

use super::object::{Objects, protocol};
use crate::backend::{Observed, ObservedFrontend, ObservedOrigin, ObservedPool, ObservedServicePort};

/// The Service ports in the maps. Of frontends that packets decide about, only that they are there.
pub(super) fn observe(objects: &Objects) -> Observed {
    let mut observed = Observed::default();
    let mut by_id: BTreeMap<u32, Vec<(&ServiceKey, &ServiceValue)>> = BTreeMap::new();
    for (key, value) in &objects.services {
        by_id.entry(value.service_id).or_default().push((key, value));
    }
    for (id, frontends) in by_id {
        match service_port(id, &frontends, objects) {
            Some(service_port) => observed.service_ports.push(service_port),
            None => observed.foreign.push(format!("SERVICES: entries of a Service port {id} that has no name")),
        }
    }
    let node_ports = objects.addresses.iter().filter(|(_, value)| value.flags & address_flags::NODE_PORT != 0);
    observed.node_port_addresses = node_ports.map(|(address, _)| (*address).into()).collect();
    observed.node_port_addresses.sort();
    observed.service_ports.sort();
    observed
}

fn service_port(id: u32, frontends: &[(&ServiceKey, &ServiceValue)], objects: &Objects) -> Option<ObservedServicePort> {
    let name = objects.names.get(&id)?;
    let mut observed = ObservedServicePort {
        name: name.label(),
        protocol: name.protocol()?,
        family: name.family()?,
        frontends: Vec::new(),
        cluster: None,
        local: None,
        affinity_timeout: None,
    };
    for (key, value) in frontends {
        observed.frontends.push(frontend(key, value, observed.protocol, observed.family, objects));
        if value.flags & service_flags::AFFINITY != 0 {
            observed.affinity_timeout = Some(Duration::from_secs(value.affinity_seconds.into()));
        }
        let pool = if value.flags & pool::LOCAL != 0 { &mut observed.local } else { &mut observed.cluster };
        if value.flags & service_flags::LEAVE_TO_PACKETS == 0 {
            *pool = Some(endpoints(value, objects));
        }
    }
    observed.frontends.sort();
    Some(observed)
}

fn frontend(
    key: &ServiceKey,
    value: &ServiceValue,
    of: Protocol,
    family: IpFamily,
    objects: &Objects,
) -> ObservedFrontend {
    debug_assert_eq!(protocol(key.protocol), Some(of));
    let refuses = objects.addresses.get(&key.address).is_some_and(|it| it.flags & address_flags::REFUSE_UNKNOWN != 0);
    let is_node_port = key.address == super::object::node_port_address(family);
    let origin = match (is_node_port, refuses) {
        (true, _) => ObservedOrigin::NodePort,
        (false, true) => ObservedOrigin::ClusterIp,
        (false, false) => ObservedOrigin::External,
    };
    ObservedFrontend {
        origin,
        ip: (!is_node_port).then(|| key.address.into()),
        port: u16::from_be(key.port),
        traffic_policy: if value.flags & pool::LOCAL != 0 { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        source_ranges: None,
        connections: None,
    }
}

fn endpoints(value: &ServiceValue, objects: &Objects) -> ObservedPool {
    if value.slots == 0 {
        return ObservedPool::Reject;
    }
    let slots = objects.slots.range(value.first_slot..value.first_slot.saturating_add(value.slots));
    let mut endpoints: Vec<SocketAddr> =
        slots.map(|(_, slot)| AddressPort::new(slot.address, slot.port).into()).collect();
    endpoints.sort();
    ObservedPool::Endpoints(endpoints)
}
