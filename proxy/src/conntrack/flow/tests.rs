use tollgate_model::frontend::{Frontend, FrontendOrigin};
use tollgate_model::name::{NamespacedName, ServicePortName};
use tollgate_model::service::{SessionAffinity, TrafficPolicy};
use tollgate_model::snapshot::SourceRanges;

use super::*;

fn endpoints(hosts: &[u8]) -> Arc<[Endpoint]> {
    hosts.iter().map(|host| Endpoint { ip: [10, 0, 0, *host].into(), port: 53, is_local: false }).collect()
}

/// A Service port with these ClusterIPs, whose connections go to `cluster`, and where `serving` still serve.
fn dns(vips: &[u8], cluster: &[u8], serving: &[u8]) -> ServicePort {
    let protocol = Protocol::Udp;
    let frontend =
        |host: &u8| Frontend { ip: [10, 96, 0, *host].into(), port: 53, protocol, origin: FrontendOrigin::ClusterIp };
    ServicePort {
        name: ServicePortName { service: NamespacedName::new("test", "dns"), port: "".into(), protocol },
        frontends: vips.iter().map(frontend).collect(),
        node_port: None,
        v4: EndpointSets { cluster: endpoints(cluster), serving: endpoints(serving), ..EndpointSets::default() },
        v6: EndpointSets::default(),
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        session_affinity: SessionAffinity::None,
        source_ranges: SourceRanges::default(),
        health_check_node_port: None,
        ipvs_scheduler: None,
    }
}

/// The same with NodePort 30053.
fn with_node_port(service_port: ServicePort) -> ServicePort {
    ServicePort { node_port: Some(30053), ..service_port }
}

fn named(name: &str, port: &str, service_port: ServicePort) -> ServicePort {
    let name = ServicePortName { service: NamespacedName::new("test", name), port: port.into(), ..service_port.name };
    ServicePort { name, ..service_port }
}

/// A node with these addresses (192.0.2.x).
fn on(addresses: &[u8], service_ports: impl IntoIterator<Item = ServicePort>) -> Snapshot {
    let service_ports = service_ports.into_iter().map(|it| (it.name.clone(), Arc::new(it))).collect();
    let addresses = addresses.iter().map(|host| IpAddr::from([192, 0, 2, *host])).collect();
    Snapshot { service_ports, node_port_addresses: Arc::new(addresses), ..Snapshot::default() }
}

fn found(applied: &Snapshot, desired: &Snapshot) -> Vec<String> {
    let stale = stale_flows(applied, desired);
    stale.iter().flat_map(|it| it.to.iter().map(|to| format!("{} to {}", it.dialled, to.ip()))).collect()
}

#[test]
fn udp_no_stale_flow() {
    let cases = [
        ("nothing changes", Some(dns(&[1], &[1, 2], &[1, 2])), Some(dns(&[1], &[1, 2], &[1, 2])), vec![]),
        ("one comes", Some(dns(&[1], &[1], &[1])), Some(dns(&[1], &[1, 2], &[1, 2])), vec![]),
        ("one goes", Some(dns(&[1], &[1, 2], &[1, 2])), Some(dns(&[1], &[1], &[1])), vec!["10.96.0.1:53 to 10.0.0.2"]),
        ("one terminates and serves", Some(dns(&[1], &[1, 2], &[1, 2])), Some(dns(&[1], &[1], &[1, 2])), vec![]),
        (
            "it stops serving",
            Some(dns(&[1], &[1], &[1, 2])),
            Some(dns(&[1], &[1], &[1])),
            vec!["10.96.0.1:53 to 10.0.0.2"],
        ),
        (
            "one is not chosen any more and serves",
            Some(dns(&[1], &[1, 2], &[1, 2])),
            Some(dns(&[1], &[2], &[1, 2])),
            vec![],
        ),
        ("the last goes", Some(dns(&[1], &[1], &[1])), Some(dns(&[1], &[], &[])), vec!["10.96.0.1:53 to 10.0.0.1"]),
        ("the first comes", Some(dns(&[1], &[], &[])), Some(dns(&[1], &[1], &[1])), vec!["10.96.0.1:53 to 10.96.0.1"]),
        ("the Service is new", None, Some(dns(&[1], &[1], &[1])), vec!["10.96.0.1:53 to 10.96.0.1"]),
        (
            "the Service goes",
            Some(dns(&[1], &[1], &[1, 2])),
            None,
            vec!["10.96.0.1:53 to 10.0.0.1", "10.96.0.1:53 to 10.0.0.2"],
        ),
        (
            "a frontend comes",
            Some(dns(&[1], &[1], &[1])),
            Some(dns(&[1, 2], &[1], &[1])),
            vec!["10.96.0.2:53 to 10.96.0.2"],
        ),
        (
            "a frontend goes",
            Some(dns(&[1, 2], &[1], &[1])),
            Some(dns(&[1], &[1], &[1])),
            vec!["10.96.0.2:53 to 10.0.0.1"],
        ),
        (
            "a NodePort comes",
            Some(dns(&[1], &[1], &[1])),
            Some(with_node_port(dns(&[1], &[1], &[1]))),
            vec!["192.0.2.1:30053 to 192.0.2.1", "192.0.2.2:30053 to 192.0.2.2"],
        ),
        (
            "one goes from behind a NodePort",
            Some(with_node_port(dns(&[], &[1, 2], &[1, 2]))),
            Some(with_node_port(dns(&[], &[1], &[1]))),
            vec!["192.0.2.1:30053 to 10.0.0.2", "192.0.2.2:30053 to 10.0.0.2"],
        ),
        (
            "a NodePort goes",
            Some(with_node_port(dns(&[1], &[1], &[1]))),
            Some(dns(&[1], &[1], &[1])),
            vec!["192.0.2.1:30053 to 10.0.0.1", "192.0.2.2:30053 to 10.0.0.1"],
        ),
    ];
    for (name, applied, desired, expected) in cases {
        assert_eq!(found(&on(&[1, 2], applied), &on(&[1, 2], desired)), expected, "{name}");
    }
}

#[test]
fn a_local_policy_leaves_flows_to_other_nodes_alone() {
    let cluster = with_node_port(dns(&[], &[1, 2], &[1, 2]));
    let mut local = ServicePort { external_traffic_policy: TrafficPolicy::Local, ..cluster.clone() };
    local.v4.local = endpoints(&[1]);
    assert_eq!(found(&on(&[1], [cluster]), &on(&[1], [local])), [""; 0]);
}

#[test]
fn flows_follow_their_address_from_one_service_port_to_another() {
    let whole = || with_node_port(dns(&[1], &[1, 2], &[1, 2]));
    let applied = on(&[1], [whole()]);
    assert_eq!(found(&applied, &on(&[1], [named("dns", "renamed", whole())])), [""; 0], "a port is renamed");
    let other = named("other", "", with_node_port(dns(&[1], &[2, 3], &[2, 3])));
    assert_eq!(
        found(&applied, &on(&[1], [other])),
        ["10.96.0.1:53 to 10.0.0.1", "192.0.2.1:30053 to 10.0.0.1"],
        "another Service has the address, and one of the endpoints"
    );
}

#[test]
fn node_ports_lose_and_gain_the_addresses_of_the_node() {
    let service_port = || with_node_port(dns(&[1], &[1], &[1]));
    let mut web = named("web", "", service_port());
    web.name.protocol = Protocol::Tcp;
    assert_eq!(
        found(&on(&[1, 2], [service_port(), web.clone()]), &on(&[2, 3], [service_port(), web])),
        ["192.0.2.1:30053 to 10.0.0.1", "192.0.2.3:30053 to 192.0.2.3"]
    );
    let gone = on(&[1, 2], [service_port()]);
    assert_eq!(
        found(&gone, &on(&[2], [with_node_port(dns(&[1], &[2], &[2]))])),
        ["10.96.0.1:53 to 10.0.0.1", "192.0.2.1:30053 to 10.0.0.1", "192.0.2.2:30053 to 10.0.0.1"],
        "the endpoints change at once with the addresses"
    );
}

#[test]
fn a_host_network_endpoint_on_the_node_port_itself_is_served() {
    let mut host = with_node_port(dns(&[], &[], &[]));
    let itself: Arc<[Endpoint]> = [Endpoint { ip: [192, 0, 2, 1].into(), port: 30053, is_local: true }].into();
    host.v4 = EndpointSets { cluster: itself.clone(), local: itself.clone(), serving: itself };
    assert_eq!(found(&on(&[1], []), &on(&[1], [host])), [""; 0]);
}

#[test]
fn an_external_ip_that_is_the_node_s_comes_before_a_node_port() {
    let external = Frontend {
        ip: [192, 0, 2, 1].into(),
        port: 30053,
        protocol: Protocol::Udp,
        origin: FrontendOrigin::ExternalIp,
    };
    let node_port = || with_node_port(dns(&[], &[1], &[1]));
    for name in ["a", "z"] {
        let holder = ServicePort { frontends: vec![external], ..named(name, "", dns(&[], &[2], &[2])) };
        let snapshot = on(&[1], [node_port(), holder]);
        let serving = Serving::new(&snapshot);
        let dialled = SocketAddr::new(external.ip, external.port);
        let to = |host: u8| SocketAddr::from(([10, 0, 0, host], 53));
        assert_eq!([serving.is_served(dialled, to(1)), serving.is_served(dialled, to(2))], [Some(false), Some(true)]);
    }
}

#[test]
fn flows_of_tcp_and_sctp_are_left_alone() {
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let mut web = with_node_port(dns(&[1], &[1], &[1]));
        web.name.protocol = protocol;
        assert_eq!(found(&on(&[1], [web]), &on(&[1], [])), [""; 0], "{protocol}");
    }
}
