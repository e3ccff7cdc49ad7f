//! From a Service, its slices and what it holds to its Service ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::StoreConfig;
use super::claims::{Claim, Claimant, Claims, Ground};
use super::own::Own;
use crate::endpoint::EndpointSlice;
use crate::frontend::{Frontend, FrontendOrigin};
use crate::name::{IpFamily, Protocol, ServicePortName};
use crate::select::{Location, endpoint_sets, ready_local};
use crate::service::{Port, Service};
use crate::snapshot::{HealthCheck, ServicePort, SourceRanges};

/// What a resolution looks at besides the Service and its slices.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) config: &'a StoreConfig,
    pub(super) own: &'a Own,
    pub(super) claims: &'a Claims,
}

impl<'a> Surroundings<'a> {
    fn location(&self) -> Location<'a> {
        Location { node: &self.config.node_name, zone: self.own.zone.as_deref() }
    }
}

/// All that the Service claims, and as whom.
pub(super) fn claims_of(service: &Service, config: &StoreConfig) -> BTreeMap<Claim, Claimant> {
    let claimant = |ground| Claimant { ground, created: service.created, service: service.name.clone() };
    let vips = vips(service, config);
    let mut claims = BTreeMap::new();
    for port in &service.ports {
        claims.extend(vips.iter().map(|(ip, origin)| {
            let ground = if *origin == FrontendOrigin::ClusterIp { Ground::ClusterIp } else { Ground::Other };
            (Claim::Frontend(*ip, port.port, port.protocol), claimant(ground))
        }));
        let node_port = port.node_port.map(|node_port| Claim::NodePort(node_port, port.protocol));
        claims.extend(node_port.map(|claim| (claim, claimant(Ground::Other))));
    }
    claims.extend(service.health_check_node_port.map(|port| (health_check_claim(port), claimant(Ground::Other))));
    claims
}

/// The Service's ports, resolved; those that have no frontend and no NodePort are left out.
pub(super) fn resolve<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    around: Surroundings<'_>,
) -> Vec<ServicePort> {
    let vips = vips(service, around.config);
    let source_ranges = source_ranges(service, around.own);
    let health_check_node_port = held_health_check(service, around);
    let ports = service.ports.iter().filter_map(|port| {
        let frontends = frontends(service, port, &vips, around.claims);
        let node_port = port
            .node_port
            .filter(|node_port| around.claims.is_held_by(&service.name, Claim::NodePort(*node_port, port.protocol)));
        if frontends.is_empty() && node_port.is_none() {
            return None;
        }
        let location = around.location();
        let sets = |family| endpoint_sets(location, &port.name, port.protocol, family, slices.clone());
        Some(ServicePort {
            name: ServicePortName {
                service: service.name.clone(),
                port: Arc::clone(&port.name),
                protocol: port.protocol,
            },
            frontends,
            node_port,
            v4: sets(IpFamily::V4),
            v6: sets(IpFamily::V6),
            internal_traffic_policy: service.internal_traffic_policy,
            external_traffic_policy: service.external_traffic_policy,
            session_affinity: service.session_affinity,
            source_ranges: source_ranges.clone(),
            health_check_node_port,
            ipvs_scheduler: service.ipvs_scheduler.clone(),
        })
    });
    ports.collect()
}

/// What a load balancer is told of the Service, if it has a health check node port and holds it.
pub(super) fn health_check<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    around: Surroundings<'_>,
) -> Option<HealthCheck> {
    let node_port = held_health_check(service, around)?;
    let ready_local = |family| {
        let ports = service.ports.iter();
        let ready =
            ports.flat_map(|port| ready_local(around.location(), &port.name, port.protocol, family, slices.clone()));
        ready.collect::<BTreeSet<_>>().len()
    };
    let ready_local = IpFamily::ALL.into_iter().map(ready_local).max().unwrap_or_default();
    Some(HealthCheck { node_port, ready_local })
}

fn held_health_check(service: &Service, around: Surroundings<'_>) -> Option<u16> {
    let port = service.health_check_node_port?;
    around.claims.is_held_by(&service.name, health_check_claim(port)).then_some(port)
}

fn health_check_claim(port: u16) -> Claim {
    Claim::NodePort(port, Protocol::Tcp)
}

/// Every address of the Service, once. One that has several origins counts as what the rules say most about: a cluster IP,
/// then a load-balancer IP, so that its source ranges hold although it is an external IP as well.
fn vips(service: &Service, config: &StoreConfig) -> Vec<(IpAddr, FrontendOrigin)> {
    let external_ips = service.external_ips.iter().filter(|ip| config.admits_external_ip(**ip));
    let all = (service.cluster_ips.iter().map(|ip| (*ip, FrontendOrigin::ClusterIp)))
        .chain(service.load_balancer_ips.iter().map(|ip| (*ip, FrontendOrigin::LoadBalancerIp)))
        .chain(external_ips.map(|ip| (*ip, FrontendOrigin::ExternalIp)));
    let mut vips: Vec<(IpAddr, FrontendOrigin)> = Vec::new();
    for (ip, origin) in all {
        if !vips.iter().any(|(known, _)| *known == ip) {
            vips.push((ip, origin));
        }
    }
    vips
}

fn frontends(service: &Service, port: &Port, vips: &[(IpAddr, FrontendOrigin)], claims: &Claims) -> Vec<Frontend> {
    let held =
        vips.iter().filter(|(ip, _)| claims.is_held_by(&service.name, Claim::Frontend(*ip, port.port, port.protocol)));
    let mut frontends: Vec<_> = held
        .map(|(ip, origin)| Frontend { ip: *ip, port: port.port, protocol: port.protocol, origin: *origin })
        .collect();
    frontends.sort_unstable();
    frontends.shrink_to_fit();
    frontends
}

/// Where the node may dial the load balancer, it may do so under the load balancer's own address too: a packet of the
/// node's own to a load-balancer IP that is bound here has that address as its source.
fn source_ranges(service: &Service, own: &Own) -> SourceRanges {
    let [own_v4, own_v6] = own.primary;
    let judge = |ranges: &Option<Arc<[IpNet]>>, own: Option<IpAddr>, family: IpFamily| {
        let ranges = ranges.as_ref()?;
        if !own.is_some_and(|own| ranges.iter().any(|range| range.contains(&own))) {
            return Some(Arc::clone(ranges));
        }
        let ips = service.load_balancer_ips.iter().copied().filter(|ip| IpFamily::from(*ip) == family);
        let missing = ips.filter(|ip| !ranges.iter().any(|range| range.contains(ip))).map(IpNet::from);
        let all: BTreeSet<IpNet> = ranges.iter().copied().chain(missing).collect();
        Some(all.into_iter().collect())
    };
    SourceRanges {
        v4: judge(&service.source_ranges.v4, own_v4, IpFamily::V4),
        v6: judge(&service.source_ranges.v6, own_v6, IpFamily::V6),
    }
}
