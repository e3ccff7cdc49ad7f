//! One case a rule of `semantics.md`, named by it. Of the rules that are about packets, the part that the model decides.

use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use super::build::*;
use super::warnings::warnings;
use crate::frontend::FrontendOrigin;
use crate::name::{NamespacedName, Protocol};
use crate::object::{InvalidObject, Kind};
use crate::service::{SessionAffinity, TrafficPolicy};
use crate::snapshot::ServicePort;
use crate::store::{Event, NodePortAddresses, StoreConfig};

fn local(policy: &mut Option<String>) {
    *policy = Some("Local".into());
}

#[test]
fn headless_ignored() {
    let headless = [
        ("clusterIP None", service("web").on(&["None"])),
        ("clusterIP empty", service("web").on(&[""])),
        ("no clusterIP", service("web").with(|spec| spec.cluster_ip = None)),
        ("ExternalName", service("web").of_type("ExternalName")),
    ];
    for (name, service) in headless {
        let service = service.external_ips(&["203.0.113.1"]);
        let mut world = World::of(self::service("web"), vec![at("10.0.0.1")]);
        let warned = warnings(|| world.apply(service));
        assert!(!world.serves("web"), "{name}");
        assert!(warned.is_empty(), "it is valid: {warned:#?}");
    }
    assert!(World::of(service("web"), vec![]).serves("web"));
}

#[test]
fn foreign_proxy_ignored() {
    let foreign = service("web").labelled("service.kubernetes.io/service-proxy-name");
    assert!(!World::new().and(foreign).serves("web"));

    let mut headless = slice("web-2", "web", vec![at("10.0.0.2")]);
    headless.metadata.labels.get_or_insert_default().insert("service.kubernetes.io/headless".into(), String::new());
    let mut world = World::of(service("web"), vec![at("10.0.0.1")]).and(headless);
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1"]);
}

#[test]
fn slice_owner_label() {
    let mut world = World::new()
        .and(service("web"))
        .and(service("api").on(&["10.96.0.2"]))
        .and(slice("x", "web", vec![at("10.0.0.1")]))
        .and(slice("y", "web", vec![at("10.0.0.2"), at("10.0.0.1")]))
        .and(slice("web", "api", vec![at("10.0.0.3")]));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1", "10.0.0.2"], "two slices, an address once");
    assert_eq!(ips(&world.port("api").v4.cluster), ["10.0.0.3"], "the label counts, not the name");

    world.apply(slice("y", "api", vec![at("10.0.0.2")]));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1"], "a slice that moves leaves the one");
    assert_eq!(ips(&world.port("api").v4.cluster), ["10.0.0.2", "10.0.0.3"], "and comes to the other");

    let mut unlabelled = slice("y", "api", vec![at("10.0.0.2")]);
    unlabelled.metadata.labels = None;
    world.apply(unlabelled);
    let mut names = slice("z", "api", vec![at("10.0.0.4")]);
    names.address_type = "FQDN".into();
    world.apply(names);
    assert_eq!(ips(&world.port("api").v4.cluster), ["10.0.0.3"], "no label, no owner; FQDN slices do not count");
}

#[test]
fn slices_that_disagree_about_an_endpoint() {
    let one = [
        ("not terminating wins", at("10.0.0.1").terminating(), at("10.0.0.1").not_ready(), None),
        ("ready wins", at("10.0.0.1").not_ready(), at("10.0.0.1"), Some("10.0.0.1")),
        ("ready and staying", at("10.0.0.1").terminating(), at("10.0.0.1"), Some("10.0.0.1")),
    ];
    for (name, a, b, serving) in one {
        for (a, b) in [(&a, &b), (&b, &a)] {
            let mut world = World::of(service("web"), vec![a.clone()]).and(slice("z", "web", vec![b.clone()]));
            assert_eq!(ips(&world.port("web").v4.cluster), serving.map_or(vec![], |ip| vec![ip]), "{name}");
        }
    }
}

#[test]
fn endpoint_port_has_the_name_and_protocol_of_the_service_port() {
    let named = |name: &str, protocol: &str, port| v1::ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port,
        ..v1::ServicePort::default()
    };
    let web = service("web").with(|spec| {
        spec.ports = Some(vec![named("a", "TCP", 1), named("b", "TCP", 2), named("c", "UDP", 3)]);
    });
    let mut endpoints = slice("web-1", "web", vec![at("10.0.0.1")]);
    let port = |name: Option<&str>, protocol: &str, port| k8s_openapi::api::discovery::v1::EndpointPort {
        name: name.map(Into::into),
        protocol: Some(protocol.into()),
        port,
        ..Default::default()
    };
    endpoints.ports = Some(vec![
        port(Some("a"), "TCP", Some(11)),
        port(Some("b"), "UDP", Some(12)),
        port(Some("c"), "UDP", Some(13)),
        port(None, "TCP", Some(14)),
        port(Some("b"), "TCP", None),
    ]);
    let mut world = World::new().and(web).and(endpoints);
    let snapshot = world.snapshot();
    let found = |name, protocol| shown(&snapshot.service_ports[&port_name("web", name, protocol)].v4.cluster);
    assert_eq!(found("a", Protocol::Tcp), ["10.0.0.1:11"]);
    assert_eq!(found("b", Protocol::Tcp), [""; 0]);
    assert_eq!(found("c", Protocol::Udp), ["10.0.0.1:13"]);
}

#[test]
fn family_split() {
    let mut world = World::of(service("web").on(&["10.96.0.1", "fd00:96::1"]), vec![at("10.0.0.1")]).and(slice(
        "six",
        "web",
        vec![at("fd00::1")],
    ));
    let port = world.port("web");
    assert_eq!(ips(&port.v4.cluster), ["10.0.0.1"]);
    assert_eq!(ips(&port.v6.cluster), ["fd00::1"]);
    assert_eq!(frontends(&port, FrontendOrigin::ClusterIp), ["10.96.0.1:80/tcp", "[fd00:96::1]:80/tcp"]);
}

#[test]
fn bad_object_isolated() {
    let mut world = World::of(service("web"), vec![at("10.0.0.1")]);
    let warned = warnings(|| {
        world.apply(service("bad").on(&["10.96.0.300"]));
        assert!(world.serves("web") && !world.serves("bad"));

        world.apply(slice("web-1", "web", vec![at("127.0.0.1"), at("10.0.0.1")]));
        assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1"], "only the bad endpoint is left out");

        world.apply(service("web").with(|spec| spec.session_affinity = Some("Cookie".into())));
        assert!(!world.serves("web"), "an object that became invalid acts as deleted");
        world.apply(service("web"));
        assert!(world.serves("web"));
    });
    let expected = [
        r#"Service default/bad: spec.clusterIPs[0]: "10.96.0.300""#,
        "EndpointSlice default/web-1: endpoints[0].addresses[0]: 127.0.0.1",
        r#"Service default/web: spec.sessionAffinity: "Cookie""#,
    ];
    assert_eq!(warned.len(), expected.len(), "{warned:#?}");
    for (warned, expected) in warned.iter().zip(expected) {
        assert!(warned.contains(expected), "{warned}");
    }
}

#[test]
fn bad_object_isolated_whatever_is_bad() {
    let with_protocol = |protocol: &str| {
        service("bad").on(&["10.96.0.9"]).with(|spec| {
            spec.ports.as_mut().unwrap()[0].protocol = Some(protocol.into());
        })
    };
    let mut icmp_slice = slice("bad-1", "bad", vec![at("10.0.0.9")]);
    icmp_slice.ports.as_mut().unwrap()[0].protocol = Some("ICMP".into());
    let on_node = |address: &str| slice("bad-1", "bad", vec![at(address)]);
    let undecodable =
        InvalidObject::undecodable(Kind::Service, NamespacedName::new("default", "bad"), "expected `,` at line 3");
    let bad: [(Event, &str); 8] = [
        (with_protocol("ICMP").into(), r#"spec.ports[0].protocol: "ICMP" is not known"#),
        (icmp_slice.into(), r#"ports[0].protocol: "ICMP" is not known"#),
        (on_node("127.0.0.1").into(), "127.0.0.1"),
        (on_node("169.254.169.254").into(), "169.254.169.254"),
        (on_node("fe80::1").into(), "fe80::1"),
        (on_node("::1").into(), "::1"),
        (service("bad").on(&["10.96.0.9"]).external_ips(&["127.0.0.1"]).into(), "spec.externalIPs[0]: 127.0.0.1"),
        (Event::Invalid(undecodable), "cannot be decoded"),
    ];
    for (event, words) in bad {
        let mut world = World::of(service("web").node_port(30080), vec![at("10.0.0.1")]);
        let before = world.port("web");
        let warned = warnings(|| {
            world.apply(event);
            world.apply(slice("web-1", "web", vec![at("10.0.0.1")]));
        });
        assert!(warned.len() == 1 && warned[0].contains("default/bad") && warned[0].contains(words), "{warned:#?}");
        assert_eq!(world.port("web"), before, "{words}");
        if let Some(bad) = world.find("bad") {
            assert_eq!(frontends(&bad, FrontendOrigin::ExternalIp), [""; 0], "{words}");
            assert_eq!((bad.v4.serving.len(), bad.v6.serving.len()), (0, 0), "{words}");
        }
    }
}

#[test]
fn names_of_253_characters_are_fine() {
    let name = "n".repeat(253);
    let mut endpoints = slice(&format!("{}-1", "s".repeat(251)), &name, vec![at("10.0.0.1")]);
    let port = format!("p{}", "-".repeat(252));
    endpoints.ports.as_mut().unwrap()[0].name = Some(port.clone());
    let long = service(&name).with(|spec| spec.ports.as_mut().unwrap()[0].name = Some(port.clone()));
    let mut world = World::new();
    let warned = warnings(|| {
        world.apply(long);
        world.apply(endpoints);
        let snapshot = world.snapshot();
        assert_eq!(ips(&snapshot.service_ports[&port_name(&name, &port, Protocol::Tcp)].v4.cluster), ["10.0.0.1"]);
    });
    assert!(warned.is_empty(), "{warned:#?}");
}

#[test]
fn ready_only() {
    let endpoints = vec![
        at("10.0.0.1"),
        at("10.0.0.2").not_ready(),
        at("10.0.0.3").terminating(),
        at("10.0.0.4").conditions(None, Some(false), None),
        at("10.0.0.5").conditions(Some(false), None, None),
        at("10.0.0.6").conditions(Some(true), Some(true), Some(true)),
    ];
    let sets = &World::of(service("web"), endpoints).port("web").v4;
    assert_eq!(ips(&sets.cluster), ["10.0.0.1", "10.0.0.4", "10.0.0.6"], "absent means ready, and ready decides");
}

#[test]
fn terminating_fallback() {
    let endpoints = vec![
        at("10.0.0.1").on("a").terminating(),
        at("10.0.0.2").on("b").terminating(),
        at("10.0.0.3").on("b").not_ready(),
        at("10.0.0.4").on("b").conditions(Some(false), Some(false), Some(true)),
        at("10.0.0.5").on("b").conditions(Some(false), Some(true), Some(false)),
    ];
    let mut world = World::of(service("web"), endpoints.clone());
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(ips(&world.port("web").v4.local), ["10.0.0.1"]);

    world.apply(slice("web-2", "web", vec![at("10.0.0.9").on("b")]));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.9"], "one ready endpoint ends the fallback");
    assert_eq!(ips(&world.port("web").v4.local), ["10.0.0.1"], "but not that of the local set");
}

#[test]
fn internal_policy_local() {
    let web = service("web").with(|spec| local(&mut spec.internal_traffic_policy));
    let port = World::of(web, vec![at("10.0.0.1").on("a"), at("10.0.0.2").on("b"), at("10.0.0.3")]).port("web");
    assert_eq!(port.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(port.external_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(ips(&port.v4.local), ["10.0.0.1"]);
    assert!(port.v4.local[0].is_local);
}

#[test]
fn external_policy_local() {
    let web = service("web").node_port(30080).with(|spec| local(&mut spec.external_traffic_policy));
    let port = World::of(web, vec![at("10.0.0.1").on("a"), at("10.0.0.2").on("b")]).port("web");
    assert_eq!(port.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(port.internal_traffic_policy, TrafficPolicy::Cluster);
    assert_eq!(ips(&port.v4.local), ["10.0.0.1"]);
}

#[test]
fn external_local_shortcut() {
    let web = service("web").node_port(30080).with(|spec| {
        local(&mut spec.external_traffic_policy);
        local(&mut spec.internal_traffic_policy);
    });
    let endpoints = vec![at("10.0.0.1").on("a").for_zone("z2"), at("10.0.0.2").on("b").for_zone("z1")];
    let port = World::of(web, endpoints).port("web");
    assert_eq!(ips(&port.v4.cluster), ["10.0.0.2"], "the Cluster set is there, with topology");
    assert_eq!(ips(&port.v4.local), ["10.0.0.1"], "beside the Local one");
}

#[test]
fn topology_zone() {
    let (here, there) = (at("10.0.0.1").for_zone("z1"), at("10.0.0.2").for_zone("z2"));
    let both = at("10.0.0.3").for_zone("z2").for_zone("z1");
    let bare = at("10.0.0.4");
    let cases = [
        ("hinted to our zone", vec![here.clone(), there.clone(), both.clone()], vec!["10.0.0.1", "10.0.0.3"]),
        (
            "one without hints",
            vec![here.clone(), there.clone(), bare.clone()],
            vec!["10.0.0.1", "10.0.0.2", "10.0.0.4"],
        ),
        ("none for our zone", vec![there.clone()], vec!["10.0.0.2"]),
        ("unready ones do not count", vec![here.clone(), there.clone(), bare.clone().not_ready()], vec!["10.0.0.1"]),
        ("ours is not ready", vec![here.clone().not_ready(), there.clone()], vec!["10.0.0.2"]),
        ("the fallback knows no hints", vec![here.terminating(), there.terminating()], vec!["10.0.0.1", "10.0.0.2"]),
    ];
    for (name, endpoints, expected) in cases {
        let sets = &World::of(service("web"), endpoints).port("web").v4;
        assert_eq!(ips(&sets.cluster), expected, "{name}");
    }
}

#[test]
fn topology_zone_is_that_of_the_node_object() {
    let endpoints = vec![at("10.0.0.1").for_zone("z1"), at("10.0.0.2").for_zone("z2")];
    let mut world = World::of(service("web"), endpoints).and(in_zone(node("a", &[]), "z2"));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.2"]);
    world.apply(in_zone(node("b", &[]), "z1"));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.2"], "another node's zone means nothing here");
    world.apply(node("a", &[]));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1"], "else it is the configured one");
}

#[test]
fn topology_node() {
    let here = at("10.0.0.1").for_node("a").for_zone("z2");
    let there = at("10.0.0.2").for_node("b").for_zone("z1");
    let zone_only = at("10.0.0.3").for_zone("z1");
    let cases = [
        ("node hints come first", vec![here.clone(), there.clone()], vec!["10.0.0.1"]),
        ("not all have node hints", vec![here.clone(), there.clone(), zone_only.clone()], vec!["10.0.0.2", "10.0.0.3"]),
        ("none for this node", vec![there.clone()], vec!["10.0.0.2"]),
        ("no zone left either", vec![at("10.0.0.4").for_node("b")], vec!["10.0.0.4"]),
    ];
    for (name, endpoints, expected) in cases {
        let sets = &World::of(service("web"), endpoints).port("web").v4;
        assert_eq!(ips(&sets.cluster), expected, "{name}");
    }
}

#[test]
fn local_set_ignores_hints() {
    let endpoints =
        vec![at("10.0.0.1").on("a").for_zone("z2").for_node("b"), at("10.0.0.2").on("b").for_zone("z1").for_node("a")];
    assert_eq!(ips(&World::of(service("web"), endpoints).port("web").v4.local), ["10.0.0.1"]);
}

#[test]
fn no_endpoints_reject() {
    for endpoints in [vec![], vec![at("10.0.0.1").not_ready()]] {
        let port = World::of(service("web"), endpoints).port("web");
        assert_eq!(frontends(&port, FrontendOrigin::ClusterIp), ["10.96.0.1:80/tcp"], "there is who rejects");
        assert!(port.v4.cluster.is_empty() && port.v4.local.is_empty() && port.v4.serving.is_empty());
    }
}

#[test]
fn no_local_drop() {
    let web = service("web").with(|spec| local(&mut spec.internal_traffic_policy));
    let port = World::of(web, vec![at("10.0.0.2").on("b")]).port("web");
    assert!(port.v4.local.is_empty(), "nothing here");
    assert_eq!(ips(&port.v4.cluster), ["10.0.0.2"], "while the cluster has some: dropped, not rejected");
}

#[test]
fn affinity_client_ip() {
    let affinity = |seconds: Option<i32>| {
        let web = service("web").with(|spec| {
            spec.session_affinity = Some("ClientIP".into());
            spec.session_affinity_config = seconds.map(|timeout| v1::SessionAffinityConfig {
                client_ip: Some(v1::ClientIPConfig { timeout_seconds: Some(timeout) }),
            });
        });
        World::new().and(web).find("web").map(|port| port.affinity_timeout())
    };
    assert_eq!(affinity(None), Some(Some(Duration::from_secs(10_800))));
    assert_eq!(affinity(Some(1)), Some(Some(Duration::from_secs(1))));
    assert_eq!(affinity(Some(86_400)), Some(Some(Duration::from_secs(86_400))));
    assert_eq!(affinity(Some(0)), None, "invalid");
    assert_eq!(affinity(Some(86_401)), None, "invalid");
    assert_eq!(World::new().and(service("web")).port("web").session_affinity, SessionAffinity::None);
}

fn ranges(port: &ServicePort) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let shown = |ranges: &Option<std::sync::Arc<[IpNet]>>| {
        ranges.as_ref().map(|ranges| ranges.iter().map(ToString::to_string).collect())
    };
    (shown(&port.source_ranges.v4), shown(&port.source_ranges.v6))
}

#[test]
fn lb_source_ranges() {
    let balanced = |ranges: &[&str]| {
        let web = service("web").on(&["10.96.0.1", "fd00:96::1"]).load_balancer(&["203.0.113.1", "2001:db8::1"]);
        web.with(|spec| spec.load_balancer_source_ranges = strings(ranges))
    };
    let cases: [(&str, &[&str], _); 6] = [
        ("none", &[], (None, None)),
        ("one family", &["10.0.0.0/8"], (strings(&["10.0.0.0/8"]), None)),
        ("trimmed", &[" 10.1.2.3/8 ", "fd00::/8\n"], (strings(&["10.0.0.0/8"]), strings(&["fd00::/8"]))),
        ("/0 admits all of its family", &["0.0.0.0/0", "10.0.0.0/8", "fd00::/8"], (None, strings(&["fd00::/8"]))),
        ("/0 of IPv6", &["10.0.0.0/8", "::/0"], (strings(&["10.0.0.0/8"]), None)),
        ("order does not matter", &["11.0.0.0/8", "10.0.0.0/8"], (strings(&["10.0.0.0/8", "11.0.0.0/8"]), None)),
    ];
    for (name, given, expected) in cases {
        assert_eq!(ranges(&World::new().and(balanced(given)).port("web")), expected, "{name}");
    }

    let mut world = World::new().and(balanced(&["192.0.2.0/24"])).and(node("a", &["192.0.2.7"]));
    let admitted = strings(&["192.0.2.0/24", "203.0.113.1/32"]);
    assert_eq!(
        ranges(&world.port("web")).0,
        admitted,
        "the node is in range, so the load balancer's own address is too"
    );
    world.apply(node("a", &["198.51.100.7"]));
    assert_eq!(ranges(&world.port("web")).0, strings(&["192.0.2.0/24"]), "the node is not");
}

#[test]
fn bad_source_range_fails_shut() {
    let web = service("web").on(&["10.96.0.1", "fd00:96::1"]).load_balancer(&["203.0.113.1", "2001:db8::1"]);
    let web = web.with(|spec| spec.load_balancer_source_ranges = strings(&["10.0.0.0/8", "fd00::/8/8"]));
    let port = World::new().and(web).port("web");
    assert_eq!(frontends(&port, FrontendOrigin::LoadBalancerIp), ["203.0.113.1:80/tcp"], "IPv6 would be open to all");
    assert_eq!(ranges(&port).0, strings(&["10.0.0.0/8"]));
}

#[test]
fn lb_ipmode_proxy() {
    let mut web = service("web").load_balancer(&["203.0.113.1", "203.0.113.2", "203.0.113.3"]);
    let ingress = web.status.as_mut().unwrap().load_balancer.as_mut().unwrap().ingress.as_mut().unwrap();
    ingress[0].ip_mode = Some("Proxy".into());
    ingress[1].ip_mode = Some("VIP".into());
    let port = World::new().and(web).port("web");
    assert_eq!(frontends(&port, FrontendOrigin::LoadBalancerIp), ["203.0.113.2:80/tcp", "203.0.113.3:80/tcp"]);
}

#[test]
fn load_balancer_ips_are_those_of_load_balancers() {
    let port = World::new().and(service("web").load_balancer(&["203.0.113.1"]).of_type("ClusterIP")).port("web");
    assert_eq!(frontends(&port, FrontendOrigin::LoadBalancerIp), [""; 0]);
}

#[test]
fn nodeport_addresses() {
    let networks = |networks: &[&str]| networks.iter().map(|network| network.parse().unwrap()).collect();
    let all = ["127.0.0.1", "192.0.2.7", "192.0.2.8", "10.9.0.1", "::1", "2001:db8::7", "fe80::1"];
    let cases: [(&str, NodePortAddresses, &[&str]); 3] = [
        ("the primary ones", NodePortAddresses::Primary, &["192.0.2.7", "2001:db8::7"]),
        ("a range", NodePortAddresses::Within(networks(&["10.0.0.0/8", "127.0.0.0/8"])), &["10.9.0.1"]),
        ("all", NodePortAddresses::All, &["10.9.0.1", "192.0.2.7", "192.0.2.8", "2001:db8::7"]),
    ];
    for (name, node_port_addresses, expected) in cases {
        let config = StoreConfig { node_port_addresses, ..config() };
        let mut world = World::with(config).and(node("a", &["192.0.2.7", "2001:db8::7"])).and(interfaces(&all));
        let found: Vec<String> = world.snapshot().node_port_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{name}");
    }

    let mut world = World::new().and(node("a", &["192.0.2.7"])).and(service("web").node_port(30080));
    assert_eq!(world.port("web").node_port, Some(30080));
    let found = |world: &mut World| world.snapshot().node_port_addresses.iter().map(ToString::to_string).collect();
    let at_first: Vec<String> = found(&mut world);
    assert_eq!(at_first, ["192.0.2.7"], "the interfaces are not known yet");
    let warned = warnings(|| world.apply(interfaces(&["10.9.0.1"])));
    assert!(warned.len() == 1 && warned[0].contains("192.0.2.7"), "{warned:#?}");
    assert_eq!(found(&mut world), [""; 0], "an address that the node lost");
    world.apply(interfaces(&["10.9.0.1", "192.0.2.7"]));
    assert_eq!(found(&mut world), ["192.0.2.7"], "and gained");
    world.apply(Event::Delete(Kind::Node, NamespacedName::new("", "a")));
    assert_eq!(found(&mut world), ["10.9.0.1"], "no Node: the interfaces say");
}

#[test]
fn nodeport_addresses_where_nobody_keeps_the_node_object_up_to_date() {
    let config = StoreConfig { node_object_ages: true, ..config() };
    let mut world = World::with(config).and(node("a", &["192.0.2.7", "2001:db8::7"]));
    let found = |world: &mut World| world.snapshot().node_port_addresses.iter().map(ToString::to_string).collect();
    world.apply(interfaces(&["10.9.0.1", "192.0.2.7", "2001:db8::7"]));
    let at_first: Vec<String> = found(&mut world);
    assert_eq!(at_first, ["192.0.2.7", "2001:db8::7"], "what the object says, while it holds");
    let warned = warnings(|| world.apply(interfaces(&["10.9.0.1", "2001:db8::7"])));
    assert!(warned.len() == 1 && warned[0].contains("192.0.2.7"), "{warned:#?}");
    assert_eq!(found(&mut world), ["10.9.0.1", "2001:db8::7"], "the node has another now");
    world.apply(interfaces(&["192.0.2.8", "10.9.0.1"]));
    assert_eq!(found(&mut world), ["192.0.2.8"], "the primary one among the interfaces, and none of a lost family");
}

#[test]
fn healthz_of_a_node_that_is_being_deleted() {
    let mut world = World::new();
    assert!(!world.store.node_is_being_deleted(), "it never had a Node object");
    world.apply(node("a", &["192.0.2.7"]));
    assert!(!world.store.node_is_being_deleted());
    let this = || NamespacedName::new("", "a");
    world.apply(Event::Delete(Kind::Node, NamespacedName::new("", "b")));
    assert!(!world.store.node_is_being_deleted(), "another is deleted");
    world.apply(Event::Delete(Kind::Node, this()));
    assert!(world.store.node_is_being_deleted());
    world.apply(node("a", &["192.0.2.7"]));
    assert!(!world.store.node_is_being_deleted(), "it is back");
    world.apply(Event::Init(Kind::Node));
    world.apply(Event::InitDone(Kind::Node));
    assert!(world.store.node_is_being_deleted(), "a list without it");
}

#[test]
fn node_ports_are_those_of_types_that_have_them() {
    assert_eq!(World::new().and(service("web").node_port(30080).of_type("ClusterIP")).port("web").node_port, None);
}

#[test]
fn udp_no_stale_flow() {
    let endpoints = vec![
        at("10.0.0.1").for_zone("z1"),
        at("10.0.0.2").for_zone("z2"),
        at("10.0.0.3").for_zone("z2").terminating(),
        at("10.0.0.4").for_zone("z2").not_ready(),
    ];
    let sets = &World::of(service("web"), endpoints).port("web").v4;
    assert_eq!(ips(&sets.cluster), ["10.0.0.1"]);
    assert_eq!(ips(&sets.serving), ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "flows to these are left alone");
}

#[test]
fn tcp_terminating_drains() {
    let sets = &World::of(service("web"), vec![at("10.0.0.1"), at("10.0.0.2").terminating()]).port("web").v4;
    assert_eq!(ips(&sets.cluster), ["10.0.0.1"], "no new connection to the one that terminates");
    assert_eq!(ips(&sets.serving), ["10.0.0.1", "10.0.0.2"], "but it still serves");
}

#[test]
fn removed_frontend_closes() {
    let mut world = World::of(service("web").external_ips(&["203.0.113.1"]), vec![at("10.0.0.1")]);
    world.apply(service("web"));
    assert_eq!(frontends(&world.port("web"), FrontendOrigin::ExternalIp), [""; 0]);

    let other_port = service("web").with(|spec| {
        let ports = spec.ports.as_mut().unwrap();
        ports[0].name = Some("other".into());
    });
    world.apply(other_port);
    let names: Vec<String> = world.snapshot().service_ports.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["default/web:other"]);

    world.delete(Kind::Service, "web");
    assert!(world.snapshot().service_ports.is_empty());
}

#[test]
fn source_lost_keeps_serving() {
    let mut world = World::of(service("web"), vec![at("10.0.0.1")]).and(service("gone").on(&["10.96.0.2"]));
    let before = world.snapshot();
    for kind in KINDS {
        world.apply(Event::Init(kind));
    }
    assert_eq!(world.snapshot(), before, "a list that has only begun changes nothing");
    world.apply(service("web"));
    world.apply(slice("web-1", "web", vec![at("10.0.0.1")]));
    for kind in KINDS {
        world.apply(Event::InitDone(kind));
    }
    assert!(!world.serves("gone"), "what the list does not have is deleted");
    let name = port_name("web", "", Protocol::Tcp);
    let (old, new) = (&before.service_ports[&name], &world.snapshot().service_ports[&name]);
    assert!(std::sync::Arc::ptr_eq(old, new), "what is the same is untouched");
}

#[test]
fn frontend_conflict() {
    let shared = |name: &str, created| {
        let own = format!("10.96.0.{created}");
        service(name).on(&[&own]).external_ips(&["203.0.113.1"]).node_port(30080).created(created)
    };
    let holder = |world: &mut World| {
        let names: [&str; 3] = ["old", "new", "newest"];
        let held = names.map(|name| {
            let port = world.find(name);
            let ip = port.as_ref().is_some_and(|port| !frontends(port, FrontendOrigin::ExternalIp).is_empty());
            let node_port = port.is_some_and(|port| port.node_port.is_some());
            assert_eq!(ip, node_port, "both are {name}'s or neither");
            ip
        });
        names.into_iter().zip(held).filter(|(_, held)| *held).map(|(name, _)| name).collect::<Vec<_>>()
    };
    let mut world = World::new();
    let warned = warnings(|| {
        world.apply(shared("new", 2));
        assert_eq!(holder(&mut world), ["new"]);
        world.apply(shared("old", 1));
        assert_eq!(holder(&mut world), ["old"], "the older has it, whoever came first");
    });
    assert_eq!(warned.len(), 2, "one for the address, one for the NodePort: {warned:#?}");
    for (warned, claim) in warned.iter().zip(["203.0.113.1:80/tcp", "node port 30080/tcp"]) {
        assert!(warned.contains("default/old") && warned.contains("default/new") && warned.contains(claim), "{warned}");
    }
    let warned = warnings(|| {
        world.apply(shared("new", 2).with(|spec| local(&mut spec.internal_traffic_policy)));
        world.apply(shared("old", 1).with(|spec| local(&mut spec.internal_traffic_policy)));
        assert_eq!(holder(&mut world), ["old"]);
    });
    assert!(warned.is_empty(), "no warning while the same conflict lasts: {warned:#?}");
    let warned = warnings(|| {
        world.apply(shared("newest", 3));
        assert_eq!(holder(&mut world), ["old"]);
    });
    assert_eq!(warned.len(), 2, "a third one is new, the second is not: {warned:#?}");
    assert!(warned.iter().all(|warned| warned.contains("default/newest")), "{warned:#?}");
    world.delete(Kind::Service, "old");
    assert_eq!(holder(&mut world), ["new"], "the next gets it when the first lets go");
    world.apply(service("new").on(&["10.96.0.2"]).created(2));
    assert_eq!(holder(&mut world), ["newest"]);
}

#[test]
fn frontend_conflict_of_a_cluster_ip() {
    let web = |created| service("web").on(&["10.96.0.1"]).created(created);
    let thief = service("thief").on(&["10.96.0.2"]).external_ips(&["10.96.0.1"]).created(3);
    let held = |world: &mut World, name: &str, origin| world.find(name).map(|port| frontends(&port, origin).len());
    let mut world = World::new();
    for created in [2, 4] {
        let warned = warnings(|| {
            world.apply(thief.clone());
            world.apply(web(created));
            assert_eq!(held(&mut world, "web", FrontendOrigin::ClusterIp), Some(1), "whoever is older");
            assert_eq!(held(&mut world, "thief", FrontendOrigin::ExternalIp), Some(0));
        });
        assert!(
            warned.len() == 1
                && warned[0].contains("Services default/web and default/thief both claim 10.96.0.1:80/tcp")
                && warned[0].contains("default/web has it as its cluster IP"),
            "{warned:#?}"
        );
        world.delete(Kind::Service, "web");
        assert_eq!(held(&mut world, "thief", FrontendOrigin::ExternalIp), Some(1), "nobody else has it");
    }
}

#[test]
fn frontend_conflict_at_the_same_age_goes_by_name() {
    let claim = |name: &str, own: &str| service(name).on(&[own]).external_ips(&["203.0.113.1"]);
    for (a, b) in [(Some(5), Some(5)), (None, None), (Some(5), None)] {
        let of = |name, own, created: Option<i64>| match created {
            Some(second) => claim(name, own).created(second),
            None => claim(name, own),
        };
        let mut world = World::new().and(of("b", "10.96.0.2", b)).and(of("a", "10.96.0.1", a));
        assert_eq!(frontends(&world.port("a"), FrontendOrigin::ExternalIp).len(), 1, "{a:?} {b:?}");
        assert_eq!(frontends(&world.port("b"), FrontendOrigin::ExternalIp).len(), 0, "{a:?} {b:?}");
    }
}

/// A Service with a load balancer, whose health check node port is 32000.
fn balanced(policy: &str) -> v1::Service {
    service("web").load_balancer(&["203.0.113.1"]).with(|spec| {
        spec.external_traffic_policy = Some(policy.into());
        spec.health_check_node_port = Some(32000);
    })
}

#[test]
fn health_node_port() {
    let mut world = World::of(
        balanced("Local"),
        vec![
            at("10.0.0.1").on("a"),
            at("10.0.0.2").on("b"),
            at("10.0.0.3").on("a").terminating(),
            at("10.0.0.4").on("a").not_ready(),
            at("10.0.0.5").on("a").conditions(Some(true), Some(true), Some(true)),
        ],
    );
    assert_eq!(world.health_check("web"), Some((32000, 1)), "ready, here, and not terminating");
    assert_eq!(world.port("web").health_check_node_port, Some(32000));
    world.apply(slice("web-1", "web", vec![at("10.0.0.2").on("b")]));
    assert_eq!(world.health_check("web"), Some((32000, 0)));
    world.apply(balanced("Cluster"));
    assert_eq!(world.health_check("web"), None);
    let of_type = |type_| World::new().and(balanced("Local").of_type(type_)).health_check("web");
    assert_eq!((of_type("LoadBalancer"), of_type("NodePort")), (Some((32000, 0)), None));
    world.delete(Kind::Service, "web");
    assert_eq!(world.health_check("web"), None);
}

#[test]
fn health_node_port_counts_addresses() {
    let port = |name: &str, port| k8s_openapi::api::discovery::v1::EndpointPort {
        name: Some(name.into()),
        port: Some(port),
        ..Default::default()
    };
    let with_ports = |name, ports: &[(&str, i32)], hosts: &[&str]| {
        let mut slice = slice(name, "web", hosts.iter().map(|host| at(host).on("a")).collect());
        slice.ports = Some(ports.iter().map(|(name, number)| port(name, *number)).collect());
        slice
    };
    let web = balanced("Local").on(&["10.96.0.1", "fd00:96::1"]).with(|spec| {
        let port = |name: &str, port| v1::ServicePort { name: Some(name.into()), port, ..Default::default() };
        spec.ports = Some(vec![port("a", 80), port("b", 81)]);
    });
    let mut world = World::new().and(web).and(with_ports("1", &[("a", 8080), ("b", 8081)], &["10.0.0.1", "10.0.0.2"]));
    assert_eq!(world.health_check("web"), Some((32000, 2)), "each serves two ports");
    world.apply(with_ports("2", &[("b", 8082)], &["10.0.0.2", "10.0.0.3"]));
    assert_eq!(world.health_check("web"), Some((32000, 3)), "some serve one port, one serves another beside");
    world.apply(with_ports("3", &[("a", 8080)], &["fd00::1", "fd00::2", "fd00::3"]));
    assert_eq!(world.health_check("web"), Some((32000, 3)), "the same pods in the other family");
    world.apply(with_ports("4", &[("c", 8080)], &["10.0.0.9"]));
    assert_eq!(world.health_check("web"), Some((32000, 3)), "no port of the Service");
}

#[test]
fn health_node_port_is_in_conflict_with_node_ports() {
    let balanced = service("web").load_balancer(&["203.0.113.1"]).created(2).with(|spec| {
        local(&mut spec.external_traffic_policy);
        spec.health_check_node_port = Some(30080);
    });
    let mut world = World::new().and(balanced).and(service("old").on(&["10.96.0.2"]).node_port(30080).created(1));
    assert_eq!(world.port("web").health_check_node_port, None);
    assert_eq!(world.health_check("web"), None);
    assert_eq!(world.port("old").node_port, Some(30080));
    world.delete(Kind::Service, "old");
    assert_eq!(world.health_check("web"), Some((30080, 0)));
}
