//! Snapshots to sync.

use std::net::IpAddr;
use std::sync::Arc;

use tollgate_model::endpoint::Endpoint;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{NamespacedName, Protocol, ServicePortName};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::{EndpointSets, ServicePort, Snapshot, SourceRanges};

/// A Service port with one ClusterIP in each family and these endpoints in both; the last is local.
pub(crate) fn service(name: &str, protocol: Protocol, vip: u8, endpoints: &[u8]) -> ServicePort {
    let name = ServicePortName { service: NamespacedName::new("test", name), port: "".into(), protocol };
    let frontend = |ip: IpAddr| Frontend { ip, port: 80, protocol, origin: FrontendOrigin::ClusterIp };
    let v4 = |host: u8| IpAddr::from([10, 244, 0, host]);
    let v6 = |host: u8| IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(host)]);
    ServicePort {
        name,
        frontends: vec![
            frontend([10, 96, 0, vip].into()),
            frontend([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(vip)].into()),
        ],
        node_port: None,
        v4: sets(endpoints, v4),
        v6: sets(endpoints, v6),
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: SessionAffinity::None,
        source_ranges: SourceRanges::default(),
        health_check_node_port: None,
        ipvs_scheduler: None,
    }
}

fn sets(hosts: &[u8], ip: impl Fn(u8) -> IpAddr) -> EndpointSets {
    let endpoint = |host: &u8| Endpoint { ip: ip(*host), port: 8080, is_local: Some(host) == hosts.last() };
    let cluster: Arc<[Endpoint]> = hosts.iter().map(endpoint).collect();
    let local: Arc<[Endpoint]> = cluster.iter().filter(|endpoint| endpoint.is_local).copied().collect();
    EndpointSets { serving: cluster.clone(), cluster, local }
}

/// A snapshot of these.
pub(crate) fn snapshot(service_ports: impl IntoIterator<Item = ServicePort>) -> Snapshot {
    let service_ports = service_ports.into_iter().map(|it| (it.name.clone(), Arc::new(it))).collect();
    Snapshot { service_ports, ..Snapshot::default() }
}
