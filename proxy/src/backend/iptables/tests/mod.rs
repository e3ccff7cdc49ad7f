//! The pure part: what is planned, how it is written, and that changes come to the same as a plan made at once.

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

use super::object::{Changes, Table};
use super::plan::Plan;
use super::style::{Style, jumps};
use super::transaction::{BatchSize, Step, commit};
use crate::backend::{DetectLocal, NodeConfig};

mod golden;
pub(crate) mod properties;
mod trees;

pub(crate) fn node() -> NodeConfig {
    NodeConfig {
        families: IpFamily::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(cidrs(&["10.244.0.0/16", "fd00:244::/48"])),
        service_cidrs: cidrs(&["10.96.0.0/16", "fd00:96::/112"]),
        ..NodeConfig::default()
    }
}

pub(crate) fn cidrs(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn plan(family: IpFamily) -> Plan {
    Plan::new(Style::new(family, &node(), true))
}

pub(crate) fn ip(family: IpFamily, net: u8, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match family {
        IpFamily::V4 => [10, net, high, low].into(),
        IpFamily::V6 => [0xfd00, u16::from(net), 0, 0, 0, 0, 0, host].into(),
    }
}

/// A pod's address; on this node, if its number is below 8.
pub(crate) fn sets(family: IpFamily, hosts: &[u16]) -> EndpointSets {
    let endpoint = |host: &u16| Endpoint { ip: ip(family, 244, *host), port: 8080, is_local: *host < 8 };
    let cluster: Arc<[Endpoint]> = hosts.iter().map(endpoint).collect();
    let local = cluster.iter().filter(|endpoint| endpoint.is_local).copied().collect();
    EndpointSets { serving: cluster.clone(), cluster, local }
}

pub(crate) fn service(name: &str, protocol: Protocol, vip: u16, endpoints: &[u16]) -> ServicePort {
    let frontend = |family| Frontend { ip: ip(family, 96, vip), port: 80, protocol, origin: FrontendOrigin::ClusterIp };
    ServicePort {
        name: ServicePortName { service: NamespacedName::new("test", name), port: "".into(), protocol },
        frontends: IpFamily::ALL.map(frontend).to_vec(),
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

pub(crate) fn sticky(service: ServicePort) -> ServicePort {
    ServicePort { session_affinity: SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) }, ..service }
}

pub(crate) fn local(service: ServicePort) -> ServicePort {
    ServicePort { internal_traffic_policy: TrafficPolicy::Local, ..service }
}

pub(crate) fn external_local(service: ServicePort) -> ServicePort {
    ServicePort { external_traffic_policy: TrafficPolicy::Local, ..service }
}

pub(crate) fn with_address(mut service: ServicePort, origin: FrontendOrigin, host: u16) -> ServicePort {
    let protocol = service.name.protocol;
    let frontend = |family| Frontend { ip: ip(family, 200, host), port: 80, protocol, origin };
    service.frontends.extend(IpFamily::ALL.map(frontend));
    service
}

pub(crate) fn with_node_port(service: ServicePort, port: u16) -> ServicePort {
    ServicePort { node_port: Some(port), ..service }
}

pub(crate) fn with_ranges(service: ServicePort, v4: &[&str], v6: &[&str]) -> ServicePort {
    let ranges = |texts: &[&str]| (!texts.is_empty()).then(|| cidrs(texts).into());
    ServicePort { source_ranges: SourceRanges { v4: ranges(v4), v6: ranges(v6) }, ..service }
}

pub(crate) fn snapshot(services: impl IntoIterator<Item = ServicePort>, addresses: &[&str]) -> Snapshot {
    Snapshot {
        service_ports: services.into_iter().map(|it| (it.name.clone(), Arc::new(it))).collect(),
        node_port_addresses: Arc::new(addresses.iter().map(|ip| ip.parse().unwrap()).collect()),
        ..Snapshot::default()
    }
}

/// Everything, as from a kernel that holds nothing.
fn everything(plan: &Plan) -> Changes {
    let mut changes = Changes::new(plan.style().family);
    changes.sets = super::name::SetName::ALL.into();
    changes.services = plan.own().map(|(name, own)| (name.clone(), own)).collect();
    changes.shared = plan.shared().collect();
    changes.jumps = jumps();
    changes.elements = plan.elements().map(|element| (element.clone(), true)).collect();
    changes
}

/// The steps as a reader sees them.
fn text(changes: &[Changes], batch: usize) -> String {
    let mut text = String::new();
    let result: Result<(), ()> = commit(changes, BatchSize(batch), |step| {
        match step {
            Step::Sets(sets) => text.push_str(&format!("# ipset restore\n{sets}")),
            Step::Rules(family, parts) => text.push_str(&format!("# iptables-restore, {family}\n{}", parts.concat())),
            Step::Destroy(sets) => text.push_str(&format!("# ipset destroy {}\n", sets.join(" "))),
        }
        Ok(())
    });
    result.unwrap();
    text
}
