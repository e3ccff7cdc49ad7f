//! How events become snapshots: lists, their interruptions, and what stays shared.

use std::sync::Arc;

use super::build::*;
use super::warnings::warnings;
use crate::frontend::FrontendOrigin;
use crate::name::{NamespacedName, Protocol};
use crate::object::{InvalidObject, Kind};
use crate::store::{Event, Store, StoreConfig};

#[test]
fn no_snapshot_before_the_first_lists_are_complete() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut store = Store::new(config());
        store.apply(service("web").into());
        store.apply(slice("web-1", "web", vec![at("10.0.0.1")]).into());
        for (done, kind) in order.map(|i| KINDS[i]).into_iter().enumerate() {
            assert_eq!(store.snapshot(), None, "{done} lists of {order:?}");
            assert!(store.waits_for().any(|waited| waited == kind));
            store.apply(Event::Init(kind));
            store.apply(Event::InitDone(kind));
        }
        assert!(store.snapshot().is_some());
        assert_eq!(store.waits_for().count(), 0);
    }
}

#[test]
fn a_list_without_this_node_is_complete_with_a_warning() {
    let warned = warnings(|| {
        let mut store = Store::new(config());
        for kind in KINDS {
            store.apply(Event::Init(kind));
        }
        store.apply(node("b", &["192.0.2.8"]).into());
        for kind in KINDS {
            store.apply(Event::InitDone(kind));
        }
        assert!(store.snapshot().is_some_and(|snapshot| snapshot.node_port_addresses.is_empty()));
        assert!(store.node().is_none());
    });
    assert_eq!(warned.len(), 1, "{warned:#?}");
    assert!(warned[0].contains("node=a"), "{warned:#?}");
}

#[test]
fn configured_addresses_come_before_those_of_the_node_object() {
    let config = StoreConfig { node_ips: vec![ip("192.0.2.9")], ..config() };
    let mut world = World::with(config).and(node("a", &["192.0.2.7", "2001:db8::7"]));
    assert_eq!(*world.snapshot().node_port_addresses, [ip("192.0.2.9"), ip("2001:db8::7")].into());
}

#[test]
fn the_pod_ranges_follow_this_node_s_object() {
    let mut world = World::new();
    assert_eq!(world.snapshot().pod_cidrs.len(), 0);
    for cidrs in [&["10.1.0.0/24", "fd00:1::/64"][..], &["10.2.0.0/24"], &[]] {
        world.apply(with_pods_in(node("a", &["192.0.2.7"]), cidrs));
        world.apply(with_pods_in(node("b", &["192.0.2.8"]), &["10.9.0.0/24"]));
        let found: Vec<_> = world.snapshot().pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(found, cidrs);
    }
    world.apply(with_pods_in(node("a", &["192.0.2.7"]), &["10.1.0.0/24"]));
    world.delete(Kind::Node, "a");
    assert_eq!(world.snapshot().pod_cidrs.len(), 0);
}

#[test]
fn slices_may_come_before_their_service() {
    let mut world = World::new().and(slice("web-1", "web", vec![at("10.0.0.1")]));
    assert!(world.snapshot().service_ports.is_empty());
    world.apply(service("web"));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1"]);
    world.delete(Kind::Service, "web");
    world.apply(service("web"));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.1"], "and stay when it goes and comes back");
}

#[test]
fn an_interrupted_list_leaves_no_trace() {
    let mut world = World::of(service("web"), vec![at("10.0.0.1")]);
    world.apply(Event::Init(Kind::Service));
    world.apply(service("half").on(&["10.96.0.2"]));
    world.apply(Event::Init(Kind::Service));
    world.apply(service("web"));
    world.apply(service("late").on(&["10.96.0.3"]));
    world.delete(Kind::Service, "late");
    world.apply(Event::Invalid(InvalidObject::undecodable(Kind::Service, NamespacedName::new("default", "no"), "x")));
    assert!(world.serves("web"));
    world.apply(Event::InitDone(Kind::Service));
    let names: Vec<_> = world.snapshot().service_ports.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["default/web"]);
}

#[test]
fn a_change_in_another_kind_shows_while_a_list_comes_in() {
    let mut world = World::of(service("web"), vec![at("10.0.0.1")]).and(Event::Init(Kind::Service));
    world.apply(slice("web-1", "web", vec![at("10.0.0.2")]));
    assert_eq!(ips(&world.port("web").v4.cluster), ["10.0.0.2"]);
}

#[test]
fn a_list_swaps_addresses_without_a_false_conflict() {
    let on = |name: &str, ip: &str| service(name).on(&[ip]);
    let mut world = World::new().and(on("x", "10.96.0.1")).and(on("y", "10.96.0.2"));
    let warned = warnings(|| {
        world.snapshot();
        world.apply(Event::Init(Kind::Service));
        world.apply(on("x", "10.96.0.2"));
        world.apply(on("y", "10.96.0.1"));
        world.apply(Event::InitDone(Kind::Service));
        assert_eq!(frontends(&world.port("x"), FrontendOrigin::ClusterIp), ["10.96.0.2:80/tcp"]);
        assert_eq!(frontends(&world.port("y"), FrontendOrigin::ClusterIp), ["10.96.0.1:80/tcp"]);
    });
    assert!(warned.is_empty(), "{warned:#?}");
}

#[test]
fn a_conflict_that_comes_back_is_warned_about_again() {
    let thief = || service("y").on(&["10.96.0.2"]).external_ips(&["10.96.0.1"]);
    let mut world = World::new();
    let warned = warnings(|| {
        world.apply(service("x").on(&["10.96.0.1"]));
        for _ in 0..2 {
            world.apply(thief());
            world.snapshot();
            world.delete(Kind::Service, "y");
            world.snapshot();
        }
    });
    assert_eq!(warned.len(), 2, "{warned:#?}");
}

#[test]
fn a_bad_part_is_warned_about_once_while_the_object_stays_the_same() {
    let mut world = World::new();
    let web = service("web").external_ips(&["127.0.0.1"]);
    let warned = warnings(|| {
        world.apply(web.clone());
        world.apply(web.clone());
        world.apply(Event::Init(Kind::Service));
        world.apply(web);
        world.apply(Event::InitDone(Kind::Service));
    });
    assert_eq!(warned.len(), 1, "{warned:#?}");
}

#[test]
fn external_ips_may_be_restricted() {
    let config = StoreConfig { external_ip_cidrs: Some(vec!["203.0.113.0/24".parse().unwrap()]), ..config() };
    let mut world = World::with(config);
    let warned = warnings(|| world.apply(service("web").external_ips(&["203.0.113.1", "192.0.2.1"])));
    assert_eq!(frontends(&world.port("web"), FrontendOrigin::ExternalIp), ["203.0.113.1:80/tcp"]);
    assert!(warned.len() == 1 && warned[0].contains("192.0.2.1"), "{warned:#?}");
}

#[test]
fn an_address_with_several_origins_is_one_frontend() {
    let web = service("web").load_balancer(&["203.0.113.1", "203.0.113.1"]).external_ips(&["203.0.113.1", "10.96.0.1"]);
    let port = World::new().and(web).port("web");
    assert_eq!(frontends(&port, FrontendOrigin::ClusterIp), ["10.96.0.1:80/tcp"]);
    assert_eq!(frontends(&port, FrontendOrigin::LoadBalancerIp), ["203.0.113.1:80/tcp"]);
    assert_eq!(frontends(&port, FrontendOrigin::ExternalIp), [""; 0]);
}

#[test]
fn a_service_port_without_frontends_is_none() {
    let mut world = World::new().and(service("x").created(1)).and(service("y").created(2));
    assert!(world.serves("x") && !world.serves("y"), "all that y has is x's");
    let both = service("y").node_port(30080).created(2);
    world.apply(both);
    assert!(world.port("y").frontends.is_empty(), "but a NodePort is something");
}

#[test]
fn equal_lists_share_their_memory() {
    let port = World::of(service("web"), vec![at("10.0.0.1").on("a"), at("10.0.0.2").on("a")]).port("web");
    assert!(Arc::ptr_eq(&port.v4.cluster, &port.v4.serving) && Arc::ptr_eq(&port.v4.cluster, &port.v4.local));

    let endpoints = vec![at("10.0.0.1").on("a").for_zone("z1"), at("10.0.0.2").on("a").for_zone("z2")];
    let port = World::of(service("web"), endpoints).port("web");
    assert_ne!(port.v4.cluster, port.v4.local);
    assert!(Arc::ptr_eq(&port.v4.local, &port.v4.serving));
}

#[test]
fn unchanged_service_ports_keep_their_allocation() {
    let mut world = World::of(service("web"), vec![at("10.0.0.1")]).and(service("api").on(&["10.96.0.2"]));
    let before = (world.port("web"), world.port("api"));
    world.apply(service("web"));
    world.apply(slice("web-2", "web", vec![at("10.0.0.1")]));
    world.apply(service("web").labelled("whatever"));
    assert!(Arc::ptr_eq(&before.0, &world.port("web")), "a change without effect");
    world.apply(service("web").external_ips(&["203.0.113.1"]));
    let after = (world.port("web"), world.port("api"));
    assert!(!Arc::ptr_eq(&before.0, &after.0));
    assert!(Arc::ptr_eq(&before.0.v4.cluster, &after.0.v4.cluster), "the endpoints are the same still");
    assert!(Arc::ptr_eq(&before.1, &after.1));
}

#[test]
fn names_are_held_once() {
    let mut world = World::of(service("web"), vec![at("10.0.0.1").on("some-node"), at("10.0.0.2").on("some-node")])
        .and(service("api").on(&["10.96.0.2"]));
    let snapshot = world.snapshot();
    let mut names = [("api", ""), ("web", "")].map(|(service, port)| {
        let name = port_name(service, port, Protocol::Tcp);
        Arc::clone(&snapshot.service_ports[&name].name.service.namespace)
    });
    let [api, web] = &mut names;
    assert!(Arc::ptr_eq(api, web));
}

#[test]
fn nodes_of_other_names_do_not_matter() {
    let mut world = World::new().and(node("a", &["192.0.2.7"])).and(node("b", &["192.0.2.8"]));
    world.apply(Event::Delete(Kind::Node, NamespacedName::new("", "b")));
    assert_eq!(*world.snapshot().node_port_addresses, [ip("192.0.2.7")].into());
    world.apply(Event::Delete(Kind::Node, NamespacedName::new("default", "a")));
    assert!(world.snapshot().node_port_addresses.is_empty(), "whatever namespace a source gives a Node");
}
