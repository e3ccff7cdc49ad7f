//! The pure part: what is planned, how it is written, and that it is read back as it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, NamespacedName, Protocol, ServicePortName};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::{EndpointSets, ServicePort, Snapshot, SourceRanges};

use super::object::{Changes, Objects, diff};
use super::plan::{Edit, Plan};
use crate::backend::{DetectLocal, NodeConfig};

mod commit_apart;
mod golden;
mod lookup;
mod stages;

/// The Service ports of one moment.
type Services = BTreeMap<ServicePortName, ServicePort>;

fn node() -> NodeConfig {
    NodeConfig {
        families: IpFamily::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(cidrs(&["10.244.0.0/16", "fd00:244::/48"])),
        service_cidrs: cidrs(&["10.96.0.0/16", "fd00:96::/112"]),
        ..NodeConfig::default()
    }
}

fn cidrs(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn plan(family: IpFamily) -> Plan {
    Plan::new(family, &node(), true)
}

fn vip(family: IpFamily, host: u16) -> IpAddr {
    match family {
        IpFamily::V4 => [10, 96, (host >> 8) as u8, (host & 0xff) as u8].into(),
        IpFamily::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, host].into(),
    }
}

/// A pod's address; on this node, if its number is below 8.
fn endpoint(family: IpFamily, host: u16) -> Endpoint {
    let ip = match family {
        IpFamily::V4 => IpAddr::from([10, 244, (host >> 8) as u8, (host & 0xff) as u8]),
        IpFamily::V6 => IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, host]),
    };
    Endpoint { ip, port: 8080, is_local: host < 8 }
}

fn sets(family: IpFamily, hosts: &[u16]) -> EndpointSets {
    let cluster: Arc<[Endpoint]> = hosts.iter().map(|host| endpoint(family, *host)).collect();
    let local = cluster.iter().filter(|endpoint| endpoint.is_local).copied().collect();
    EndpointSets { serving: cluster.clone(), cluster, local }
}

fn service(name: &str, protocol: Protocol, vips: &[u16], endpoints: &[u16]) -> ServicePort {
    let frontends = IpFamily::ALL.into_iter().flat_map(|family| {
        let frontend = move |host: &u16| Frontend {
            ip: vip(family, *host),
            port: 80,
            protocol,
            origin: FrontendOrigin::ClusterIp,
        };
        vips.iter().map(frontend)
    });
    ServicePort {
        name: ServicePortName { service: NamespacedName::new("test", name), port: "".into(), protocol },
        frontends: frontends.collect(),
        node_port: None,
        v4: sets(IpFamily::V4, endpoints),
        v6: sets(IpFamily::V6, endpoints),
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: SessionAffinity::None,
        source_ranges: SourceRanges::default(),
        health_check_node_port: None,
        ipvs_scheduler: None,
    }
}

fn sticky(service: ServicePort) -> ServicePort {
    ServicePort { session_affinity: SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) }, ..service }
}

fn local(service: ServicePort) -> ServicePort {
    ServicePort { internal_traffic_policy: TrafficPolicy::Local, ..service }
}

/// An address outside the cluster that clients dial.
fn external_ip(family: IpFamily, host: u16) -> IpAddr {
    match family {
        IpFamily::V4 => [203, 0, (host >> 8) as u8, (host & 0xff) as u8].into(),
        IpFamily::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, host].into(),
    }
}

/// With one more address in each family.
fn with_address(mut service: ServicePort, origin: FrontendOrigin, host: u16) -> ServicePort {
    let protocol = service.name.protocol;
    let frontend = |family| Frontend { ip: external_ip(family, host), port: 80, protocol, origin };
    service.frontends.extend(IpFamily::ALL.map(frontend));
    service
}

fn with_node_port(service: ServicePort, port: u16) -> ServicePort {
    ServicePort { node_port: Some(port), ..service }
}

fn external_local(service: ServicePort) -> ServicePort {
    ServicePort { external_traffic_policy: TrafficPolicy::Local, ..service }
}

fn with_ranges(service: ServicePort, v4: &[&str], v6: &[&str]) -> ServicePort {
    let ranges = |texts: &[&str]| Some(cidrs(texts).into()).filter(|_| !texts.is_empty());
    ServicePort { source_ranges: SourceRanges { v4: ranges(v4), v6: ranges(v6) }, ..service }
}

fn services(list: impl IntoIterator<Item = ServicePort>) -> Services {
    list.into_iter().map(|it| (it.name.clone(), it)).collect()
}

/// Brings a plan from one moment to the next.
fn update(plan: &mut Plan, before: &Services, after: &Services) -> Changes {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let changes: Vec<_> = names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| (name, after.get(name)))
        .collect();
    let mut edit = Edit::default();
    assert_eq!(plan.update(&changes, &mut edit), vec![]);
    edit.changes()
}

/// What a plan for `wanted` makes of nothing.
fn from_nothing(plan: &mut Plan, wanted: &Services) -> Changes {
    update(plan, &Services::new(), wanted);
    diff(&Objects::new(), &plan.objects())
}
