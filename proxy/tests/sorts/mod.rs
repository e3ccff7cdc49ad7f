//! A Service port of each sort that a layout tells apart, and the node that they are for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::{ServicePort, Snapshot, SourceRanges};
use tollgate_proxy::backend::{DetectLocal, NodeConfig};

use crate::sample::service;

/// A node whose pods and ClusterIPs are where those of these Service ports are.
pub(crate) fn config() -> NodeConfig {
    NodeConfig {
        families: IpFamily::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(cidrs(&["10.244.0.0/16", "fd00:244::/48"])),
        service_cidrs: cidrs(&["10.96.0.0/16", "fd00:96::/112"]),
        ..NodeConfig::default()
    }
}

/// Parses them.
pub(crate) fn cidrs(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// One of each sort that the layout tells apart.
pub(crate) fn services() -> Vec<ServicePort> {
    let affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) };
    vec![
        service("web", Protocol::Tcp, 1, &[1, 2, 3]),
        service("dns", Protocol::Udp, 2, &[4, 5]),
        ServicePort { session_affinity: affinity, ..service("sticky", Protocol::Tcp, 3, &[6, 7, 8]) },
        ServicePort { internal_traffic_policy: TrafficPolicy::Local, ..service("local", Protocol::Tcp, 4, &[1, 9]) },
        service("empty", Protocol::Tcp, 5, &[]),
        service("signals", Protocol::Sctp, 6, &[1, 2]),
        // Their frontends outside the cluster alone: the ClusterIP is another's.
        external(service("shop", Protocol::Tcp, 0, &[1, 2]), 30_007, TrafficPolicy::Cluster),
        ServicePort {
            session_affinity: affinity,
            source_ranges: ranges(),
            ..external(service("edge", Protocol::Udp, 0, &[3, 4, 5]), 30_008, TrafficPolicy::Local)
        },
    ]
}

/// A Service port with a NodePort, an external IP and a load-balancer IP in each family, and no ClusterIP.
fn external(mut service: ServicePort, node_port: u16, policy: TrafficPolicy) -> ServicePort {
    let protocol = service.name.protocol;
    let ips = [("203.0.113", "."), ("2001:db8:", ":")].into_iter().flat_map(|(net, dot)| {
        let ip = move |host| format!("{net}{dot}{host}").parse::<IpAddr>().unwrap();
        [(ip(node_port - 30_000), FrontendOrigin::ExternalIp), (ip(node_port - 29_900), FrontendOrigin::LoadBalancerIp)]
    });
    service.frontends = ips.map(|(ip, origin)| Frontend { ip, port: 80, protocol, origin }).collect();
    ServicePort { node_port: Some(node_port), external_traffic_policy: policy, ..service }
}

fn ranges() -> SourceRanges {
    let some = |texts| Some(cidrs(texts).into());
    SourceRanges { v4: some(&["192.0.2.0/24", "198.51.100.7/32"]), v6: some(&["2001:db8:1::/48"]) }
}

/// Of a node with these addresses for NodePorts and these pod ranges.
pub(crate) fn on_node(mut snapshot: Snapshot, addresses: &[&str], pod_cidrs: &[&str]) -> Snapshot {
    snapshot.node_port_addresses = Arc::new(addresses.iter().map(|ip| ip.parse().unwrap()).collect());
    snapshot.pod_cidrs = cidrs(pod_cidrs).into();
    snapshot
}
