//! What the kernel holds, by Service port: members of sets say whose each frontend is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::TrafficPolicy;

use super::comment::Comment;
use super::kernel::Listed;
use super::netlink::ipvs::{ListedDestination, ListedService};
use super::object::{Element, ServiceKey, SetName};
use crate::backend::{Observed, ObservedFrontend, ObservedOrigin, ObservedPool, ObservedServicePort};

type Services<'a> = BTreeMap<ServiceKey, &'a (ListedService, Vec<ListedDestination>)>;

/// Adds what one family has.
pub(crate) fn observe(family: IpFamily, listed: &Listed, observed: &mut Observed) {
    let services: Services<'_> = listed.services.iter().map(|it| (it.0.key, it)).collect();
    let mut found: BTreeMap<(String, Protocol), ObservedServicePort> = BTreeMap::new();
    let mut node_addresses = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (element, value) in &listed.elements {
        let is_frontend = matches!(element.set, SetName::Frontends | SetName::Reject | SetName::Drop);
        let Some((protocol, port)) = element.port.filter(|_| is_frontend) else { continue };
        let Some(comment) = value.comment.as_deref().and_then(Comment::parse) else {
            observed.foreign.push(format!("{family}: {element}"));
            continue;
        };
        if !seen.insert((element.ip, protocol, port)) {
            continue;
        }
        let name = comment.name.to_owned();
        let service_port = found.entry((name.clone(), protocol)).or_insert_with(|| ObservedServicePort {
            name,
            protocol,
            family,
            frontends: Vec::new(),
            cluster: None,
            local: None,
            affinity_timeout: None,
        });
        let key = ServiceKey::Address { ip: element.ip, protocol, port };
        let service = services.get(&key).copied();
        frontend(service_port, element, &comment, port, service, listed);
        let shortcut = listed.elements.get(&Element { set: SetName::Shortcut, ..element.clone() });
        if let Some(mark) = shortcut.and_then(|value| value.mark) {
            let shortcut = services.get(&ServiceKey::Mark(mark)).map(|(_, destinations)| endpoints(destinations));
            service_port.cluster = service_port.cluster.take().or(shortcut);
        }
        if comment.origin == ObservedOrigin::NodePort {
            node_addresses.insert(element.ip);
        }
    }
    observed.node_port_addresses.extend(node_addresses);
    observed.service_ports.extend(found.into_values().map(|mut service_port| {
        service_port.frontends.sort();
        merge_node_ports(&mut service_port.frontends);
        service_port
    }));
}

fn frontend(
    service_port: &mut ObservedServicePort,
    element: &Element,
    comment: &Comment<'_>,
    port: u16,
    service: Option<&(ListedService, Vec<ListedDestination>)>,
    listed: &Listed,
) {
    let is_guarded = listed.elements.contains_key(&Element { set: SetName::Guarded, ..element.clone() });
    let ranges = || {
        let first = Element { set: SetName::Admit, source: None, ..element.clone() };
        let all = listed.elements.range(first..).map(|(it, _)| it);
        let own = all.take_while(|it| it.set == SetName::Admit && it.ip == element.ip && it.port == element.port);
        own.filter_map(|it| it.source).collect()
    };
    service_port.frontends.push(ObservedFrontend {
        origin: comment.origin,
        ip: Some(element.ip).filter(|_| comment.origin != ObservedOrigin::NodePort),
        port,
        traffic_policy: comment.policy,
        source_ranges: is_guarded.then(ranges),
        connections: service.map(|(service, _)| service.connections),
    });
    let pool = match (service, element.set) {
        (Some((_, destinations)), _) => endpoints(destinations),
        (None, SetName::Drop) => ObservedPool::Drop,
        (None, _) => ObservedPool::Reject,
    };
    let place = match comment.policy {
        TrafficPolicy::Cluster => &mut service_port.cluster,
        TrafficPolicy::Local => &mut service_port.local,
    };
    place.get_or_insert(pool);
    let seconds = service.and_then(|(service, _)| service.spec?.affinity);
    service_port.affinity_timeout = service_port.affinity_timeout.or(seconds.map(|it| Duration::from_secs(it.into())));
}

/// Those that get new connections.
fn endpoints(destinations: &[ListedDestination]) -> ObservedPool {
    let serving: BTreeSet<SocketAddr> = destinations.iter().filter(|it| it.weight > 0).map(|it| it.to).collect();
    ObservedPool::Endpoints(serving.into_iter().collect())
}

/// A NodePort answers at several addresses, and is one frontend.
fn merge_node_ports(frontends: &mut Vec<ObservedFrontend>) {
    let is_same = |a: &ObservedFrontend, b: &ObservedFrontend| {
        let is_node_port = |it: &ObservedFrontend| it.ip.is_none();
        is_node_port(a) && is_node_port(b) && a.port == b.port
    };
    frontends.dedup_by(|later, earlier| {
        let merges = is_same(later, earlier);
        if merges {
            earlier.connections = match (earlier.connections, later.connections) {
                (None, None) => None,
                (a, b) => Some(a.unwrap_or(0) + b.unwrap_or(0)),
            };
        }
        merges
    });
}
