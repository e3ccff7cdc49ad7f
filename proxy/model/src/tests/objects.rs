//! What makes an object, or a part of it, invalid, and how that is told.

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;

use super::build::*;
use crate::endpoint::EndpointSlice;
use crate::name::{IpFamily, NamespacedName};
use crate::node::Node;
use crate::object::{InvalidObject, Kind};
use crate::service::Service;

fn shown(errors: &[InvalidObject]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn with_port(change: impl FnOnce(&mut v1::ServicePort)) -> v1::Service {
    service("web").with(|spec| change(&mut spec.ports.as_mut().unwrap()[0]))
}

fn with_ports(ports: [v1::ServicePort; 2]) -> v1::Service {
    service("web").of_type("NodePort").with(|spec| spec.ports = Some(ports.into()))
}

fn port(name: &str, port: i32, node_port: i32) -> v1::ServicePort {
    v1::ServicePort { name: Some(name.into()), port, node_port: Some(node_port), ..v1::ServicePort::default() }
}

#[test]
fn invalid_services() {
    let nameless = |change: fn(&mut v1::Service)| {
        let mut service = service("web");
        change(&mut service);
        service
    };
    let cases = [
        (nameless(|service| service.metadata.name = None), "Service default/: metadata.name: is missing"),
        (nameless(|service| service.metadata.namespace = None), "Service web: metadata.namespace: is missing"),
        (nameless(|service| service.spec = None), "Service default/web: spec: is missing"),
        (service("web").of_type("Magic"), r#"Service default/web: spec.type: "Magic" is not known"#),
        (service("web").on(&["10.96.0"]), r#"Service default/web: spec.clusterIPs[0]: "10.96.0" is not an IP address"#),
        (
            service("web").on(&["10.96.0.1", "::1"]),
            "Service default/web: spec.clusterIPs[1]: ::1 is an unspecified, loopback, link-local, multicast, broadcast or \
             IPv4-mapped address",
        ),
        (with_port(|port| port.port = 0), "Service default/web: spec.ports[0].port: 0 is not within 1 to 65535"),
        (
            with_port(|port| port.port = 65_536),
            "Service default/web: spec.ports[0].port: 65536 is not within 1 to 65535",
        ),
        (
            with_port(|port| port.protocol = Some("ICMP".into())),
            r#"Service default/web: spec.ports[0].protocol: "ICMP" is not known"#,
        ),
        (
            with_port(|port| port.node_port = Some(-1)).of_type("NodePort"),
            "Service default/web: spec.ports[0].nodePort: -1 is not within 1 to 65535",
        ),
        (
            with_ports([port("a", 1, 0), port("a", 2, 0)]),
            r#"Service default/web: spec.ports[1].name: "a" for tcp is there twice"#,
        ),
        (
            with_ports([port("a", 1, 0), port("b", 1, 0)]),
            "Service default/web: spec.ports[1].port: 1 for tcp is there twice",
        ),
        (
            with_ports([port("a", 1, 3), port("b", 2, 3)]),
            "Service default/web: spec.ports[1].nodePort: 3 for tcp is there twice",
        ),
        (
            service("web").with(|spec| spec.internal_traffic_policy = Some("Near".into())),
            r#"Service default/web: spec.internalTrafficPolicy: "Near" is not known"#,
        ),
        (
            service("web").with(|spec| spec.external_traffic_policy = Some("Near".into())),
            r#"Service default/web: spec.externalTrafficPolicy: "Near" is not known"#,
        ),
        (
            service("web").node_port(30080).load_balancer(&[]).with(|spec| {
                spec.external_traffic_policy = Some("Local".into());
                spec.health_check_node_port = Some(30080);
            }),
            "Service default/web: spec.healthCheckNodePort: 30080 is there twice",
        ),
    ];
    for (service, expected) in cases {
        assert_eq!(Service::try_from(&service).map_err(|error| error.to_string()), Err(expected.into()));
    }
}

#[test]
fn bad_addresses_beside_the_cluster_ip_are_left_out() {
    let mut web = service("web").load_balancer(&["203.0.113.1", "224.0.0.1", "", "203.0.113.2"]).external_ips(&[
        "192.0.2.1",
        "192.0.2.01",
        "2001:db8::1",
        "169.254.169.254",
    ]);
    let ingress = web.status.as_mut().unwrap().load_balancer.as_mut().unwrap().ingress.as_mut().unwrap();
    ingress[3].ip_mode = Some("Odd".into());
    let web = Service::try_from(&web).unwrap();
    assert_eq!(*web.external_ips, [ip("192.0.2.1")]);
    assert_eq!(*web.load_balancer_ips, [ip("203.0.113.1")]);
    let special = "is an unspecified, loopback, link-local, multicast, broadcast or IPv4-mapped address";
    assert_eq!(
        shown(web.rejected()),
        [
            r#"Service default/web: spec.externalIPs[1]: "192.0.2.01" is not an IP address"#.to_owned(),
            "Service default/web: spec.externalIPs[2]: 2001:db8::1 is not an IPv4 address".to_owned(),
            format!("Service default/web: spec.externalIPs[3]: 169.254.169.254 {special}"),
            format!("Service default/web: status.loadBalancer.ingress[1].ip: 224.0.0.1 {special}"),
            r#"Service default/web: status.loadBalancer.ingress[3].ipMode: "Odd" is not known"#.to_owned(),
        ]
    );
}

#[test]
fn one_name_may_have_several_protocols() {
    let mut udp = port("dns", 53, 30053);
    udp.protocol = Some("UDP".into());
    assert_eq!(Service::try_from(&with_ports([port("dns", 53, 30053), udp])).unwrap().ports.len(), 2);
}

#[test]
fn invalid_slices() {
    let with = |change: fn(&mut discovery::EndpointSlice)| {
        let mut slice = slice("web-1", "web", vec![at("10.0.0.1")]);
        change(&mut slice);
        slice
    };
    let cases = [
        (with(|slice| slice.address_type = "IPX".into()), r#"addressType: "IPX" is not known"#),
        (with(|slice| slice.address_type = String::new()), "addressType: is missing"),
        (with(|slice| slice.ports.as_mut().unwrap()[0].port = Some(0)), "ports[0].port: 0 is not within 1 to 65535"),
        (
            with(|slice| slice.ports.as_mut().unwrap()[0].protocol = Some("ICMP".into())),
            r#"ports[0].protocol: "ICMP" is not known"#,
        ),
    ];
    for (slice, expected) in cases {
        let expected = format!("EndpointSlice default/web-1: {expected}");
        assert_eq!(EndpointSlice::try_from(&slice).map_err(|error| error.to_string()), Err(expected));
    }
}

#[test]
fn endpoints_that_no_pod_can_be_are_left_out() {
    let v4 =
        ["127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "fd00::1", "web.example", "010.0.0.1"];
    let v6 = ["::1", "fe80::1", "ff02::1", "::", "::ffff:127.0.0.1", "10.0.0.1"];
    for (good, bad) in [("10.0.0.1", &v4[..]), ("fd00::1", &v6)] {
        let mut endpoints = vec![at(good)];
        endpoints.extend(bad.iter().map(|address| at(address)));
        endpoints.push(discovery::Endpoint::default());
        let slice = EndpointSlice::try_from(&slice("web-1", "web", endpoints)).unwrap();
        assert_eq!(slice.endpoints.iter().map(|endpoint| endpoint.ip).collect::<Vec<_>>(), [ip(good)]);
        assert_eq!(slice.rejected().len(), bad.len() + 1, "{:#?}", shown(slice.rejected()));
    }
}

#[test]
fn only_the_first_address_of_an_endpoint_counts() {
    let mut several = at("10.0.0.1");
    several.addresses.push("10.0.0.2".into());
    several.addresses.push("nonsense".into());
    let slice = EndpointSlice::try_from(&slice("web-1", "web", vec![several])).unwrap();
    assert_eq!((slice.endpoints.len(), slice.rejected().len()), (1, 0));
}

#[test]
fn an_endpoint_keeps_its_node_zone_and_hints() {
    let mut endpoint = at("10.0.0.1").on("a").for_zone("z1").for_node("n1");
    endpoint.zone = Some("z9".into());
    let slice = EndpointSlice::try_from(&slice("web-1", "web", vec![endpoint.clone(), endpoint])).unwrap();
    let [first, second] = &*slice.endpoints else { panic!("two endpoints") };
    assert_eq!((first.node.as_deref(), first.zone.as_deref()), (Some("a"), Some("z9")));
    let hints = first.hints.as_ref().unwrap();
    assert_eq!((&*hints.zones, &*hints.nodes), (&["z1".into()][..], &["n1".into()][..]));
    assert!(std::sync::Arc::ptr_eq(hints, second.hints.as_ref().unwrap()), "equal hints side by side are one");
}

#[test]
fn an_endpoint_is_small() {
    assert!(size_of::<crate::endpoint::SliceEndpoint>() <= 64, "a cluster has half a million");
    assert!(size_of::<crate::endpoint::Endpoint>() <= 20);
}

#[test]
fn nodes() {
    let mut given = in_zone(node("a", &["2001:db8::7", "192.0.2.7", "192.0.2.8", "nonsense"]), "z1");
    let addresses = given.status.as_mut().unwrap().addresses.as_mut().unwrap();
    addresses.insert(0, v1::NodeAddress { address: "198.51.100.7".into(), type_: "ExternalIP".into() });
    addresses.insert(0, v1::NodeAddress { address: "a.example".into(), type_: "Hostname".into() });
    given.spec = Some(v1::NodeSpec {
        pod_cidr: Some("10.1.0.0/24".into()),
        pod_cidrs: strings(&["10.1.0.0/24", "fd00:1::/64", "10.1"]),
        ..v1::NodeSpec::default()
    });
    let read = Node::try_from(&given).unwrap();
    assert_eq!(&**read.name(), "a");
    assert_eq!(read.zone().map(|zone| &**zone), Some("z1"));
    assert_eq!(read.primary_address(IpFamily::V4), Some(ip("192.0.2.7")), "internal before external");
    assert_eq!(read.primary_address(IpFamily::V6), Some(ip("2001:db8::7")));
    assert_eq!(read.pod_cidrs().len(), 2);
    assert_eq!(
        shown(read.rejected()),
        [
            r#"Node a: status.addresses[5].address: "nonsense" is not an IP address"#,
            r#"Node a: spec.podCIDRs[2]: "10.1" is not a network, as in 10.0.0.0/8"#,
        ]
    );
    assert!(!read.is_being_deleted());
    given.spec.as_mut().unwrap().pod_cidrs = None;
    assert_eq!(Node::try_from(&given).unwrap().pod_cidrs(), ["10.1.0.0/24".parse().unwrap()]);
}

#[test]
fn a_node_on_its_way_out() {
    let mut deleted = node("a", &[]);
    deleted.metadata.deletion_timestamp = service("web").created(1).metadata.creation_timestamp;
    assert!(Node::try_from(&deleted).unwrap().is_being_deleted());

    let mut tainted = node("a", &[]);
    let taint = v1::Taint { key: "ToBeDeletedByClusterAutoscaler".into(), ..v1::Taint::default() };
    tainted.spec = Some(v1::NodeSpec { taints: Some(vec![taint]), ..v1::NodeSpec::default() });
    let mut world = World::new().and(tainted.clone());
    assert!(world.store.node_is_being_deleted());
    tainted.spec = None;
    world.apply(tainted);
    assert!(!world.store.node_is_being_deleted());
}

#[test]
fn an_undecodable_object_is_named() {
    let error =
        InvalidObject::undecodable(Kind::Service, NamespacedName::new("default", "web"), "expected `,` at line 3");
    assert_eq!(error.to_string(), "Service default/web: object: cannot be decoded: expected `,` at line 3");
}
