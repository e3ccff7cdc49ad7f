//! Arbitrary objects and events, of few names and few addresses, so that they meet often.

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1 as discovery;
use proptest::collection::vec;
use proptest::option::{self, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::build::*;
use super::warnings::listen;
use crate::name::NamespacedName;
use crate::object::Kind;
use crate::store::{Event, NodePortAddresses, StoreConfig};

/// An object as a source gets it, valid or not.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Service(Box<v1::Service>),
    EndpointSlice(Box<discovery::EndpointSlice>),
    Node(Box<v1::Node>),
}

/// What a source may tell.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Init(Kind),
    Apply(Given),
    Delete(Kind, NamespacedName),
    InitDone(Kind),
    /// The addresses of the interfaces are these now.
    Interfaces(Vec<&'static str>),
    /// Somebody takes a snapshot.
    Snapshot,
}

impl Given {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
        }
    }

    pub(super) fn name(&self) -> NamespacedName {
        let metadata = match self {
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::Node(node) => &node.metadata,
        };
        let namespace = metadata.namespace.clone().unwrap_or_default();
        NamespacedName::new(namespace, metadata.name.clone().unwrap_or_default())
    }
}

impl From<Given> for Event {
    fn from(given: Given) -> Self {
        match given {
            Given::Service(service) => (*service).into(),
            Given::EndpointSlice(slice) => (*slice).into(),
            Given::Node(node) => (*node).into(),
        }
    }
}

const SERVICES: [&str; 4] = ["s", "t", "u", "s-t"];
const SLICES: [&str; 4] = ["e", "f", "g", "s"];
const NAMESPACES: [&str; 2] = ["x", "x-y"];
const NODES: [&str; 2] = ["a", "b"];
const ZONES: [&str; 2] = ["z1", "z2"];
const NODE_IPS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
const VIPS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "203.0.113.1", "fd00:96::1"];

pub(super) fn configs() -> impl Strategy<Value = StoreConfig> {
    listen();
    let node_port_addresses = prop_oneof![
        Just(NodePortAddresses::Primary),
        Just(NodePortAddresses::All),
        Just(NodePortAddresses::Within(vec!["192.0.2.0/31".parse().unwrap()])),
    ];
    let cidrs = option::of(Just(vec!["203.0.113.0/24".parse().unwrap()]));
    let node_ips = subsequence(&NODE_IPS[..], 0..=1);
    (option::of(select(&ZONES[..])), node_port_addresses, cidrs, node_ips, any::<bool>()).prop_map(
        |(zone, node_port_addresses, external_ip_cidrs, node_ips, node_object_ages)| StoreConfig {
            node_name: NODES[0].into(),
            zone: zone.map(Into::into),
            node_ips: node_ips.into_iter().map(ip).collect(),
            node_object_ages,
            node_port_addresses,
            external_ip_cidrs,
        },
    )
}

pub(super) fn histories() -> impl Strategy<Value = Vec<Told>> {
    vec(told(), 0..40)
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        10 => given().prop_map(Told::Apply),
        3 => deleted(),
        2 => select(&KINDS[..]).prop_map(Told::Init),
        2 => select(&KINDS[..]).prop_map(Told::InitDone),
        1 => subsequence(&NODE_IPS[..], 0..=3).prop_map(Told::Interfaces),
        2 => Just(Told::Snapshot),
    ]
}

fn deleted() -> impl Strategy<Value = Told> {
    let namespaced = |kind, names: &'static [&str]| {
        (select(&NAMESPACES[..]), select(names))
            .prop_map(move |(namespace, name)| Told::Delete(kind, NamespacedName::new(namespace, name)))
    };
    prop_oneof![
        namespaced(Kind::Service, &SERVICES),
        namespaced(Kind::EndpointSlice, &SLICES),
        select(&NODES[..]).prop_map(|name| Told::Delete(Kind::Node, NamespacedName::new("", name))),
    ]
}

pub(super) fn given() -> impl Strategy<Value = Given> {
    prop_oneof![
        4 => services().prop_map(|service| Given::Service(Box::new(service))),
        4 => slices().prop_map(|slice| Given::EndpointSlice(Box::new(slice))),
        1 => nodes().prop_map(|node| Given::Node(Box::new(node))),
    ]
}

fn services() -> impl Strategy<Value = v1::Service> {
    let identity = (select(&NAMESPACES[..]), select(&SERVICES[..]), option::of(0..3_i64));
    let kinds = prop_oneof![6 => select(&["ClusterIP", "NodePort", "LoadBalancer"][..]), 1 => Just("ExternalName")];
    let cluster_ips = prop_oneof![
        8 => subsequence(&VIPS[..], 1..=2),
        1 => Just(vec!["None"]),
        1 => Just(vec!["127.0.0.1"]),
    ];
    let other_ips = (subsequence(&VIPS[..], 0..=2), subsequence(&VIPS[..], 0..=2));
    let words = (weighted(0.4, Just("Local")), weighted(0.4, Just("Local")), weighted(0.2, Just("ClientIP")));
    let ranges = prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec!["192.0.2.0/31"]),
        1 => Just(vec!["fd00::/8", "192.0.2.2/32", "bad"]),
    ];
    let health = weighted(0.4, 30000..30002_i32);
    (identity, kinds, cluster_ips, other_ips, words, ranges, health, service_ports(), weighted(0.05, Just(())))
        .prop_map(|(identity, kind, cluster_ips, (external, balanced), words, ranges, health, ports, foreign)| {
            let (namespace, name, created) = identity;
            let mut service = service(name).on(&cluster_ips).external_ips(&external).load_balancer(&balanced);
            service = service.of_type(kind).with(|spec| {
                spec.ports = Some(ports);
                spec.load_balancer_source_ranges = strings(&ranges);
                spec.health_check_node_port = health;
                spec.internal_traffic_policy = words.0.map(Into::into);
                spec.external_traffic_policy = words.1.map(Into::into);
                spec.session_affinity = words.2.map(Into::into);
            });
            service.metadata.namespace = Some(namespace.into());
            if foreign.is_some() {
                service = service.labelled("service.kubernetes.io/service-proxy-name");
            }
            match created {
                Some(second) => service.created(second),
                None => service,
            }
        })
}

fn service_ports() -> impl Strategy<Value = Vec<v1::ServicePort>> {
    let port = (select(&["", "p"][..]), select(&["TCP", "UDP"][..]), 1..3_i32, option::of(30000..30002_i32));
    vec(port, 1..=2).prop_map(|ports| {
        let port = |(name, protocol, port, node_port): (&str, &str, i32, Option<i32>)| v1::ServicePort {
            name: Some(name.into()),
            protocol: Some(protocol.into()),
            port,
            node_port,
            ..v1::ServicePort::default()
        };
        ports.into_iter().map(port).collect()
    })
}

fn slices() -> impl Strategy<Value = discovery::EndpointSlice> {
    let owner = prop_oneof![9 => select(&SERVICES[..]), 1 => Just("")];
    let identity = (select(&NAMESPACES[..]), select(&SLICES[..]), owner);
    let port = (select(&["", "p"][..]), select(&["TCP", "UDP"][..]), 8080..8082_i32);
    (identity, any::<bool>(), vec(endpoints(), 0..4), vec(port, 0..3)).prop_map(
        |((namespace, name, owner), is_v6, endpoints, ports)| {
            let endpoints = endpoints.into_iter().map(|(v4, v6, endpoint)| discovery::Endpoint {
                addresses: vec![if is_v6 { v6 } else { v4 }.into()],
                ..endpoint
            });
            let mut slice = slice(name, owner, endpoints.collect());
            slice.address_type = if is_v6 { "IPv6" } else { "IPv4" }.into();
            slice.metadata.namespace = Some(namespace.into());
            let port = |(name, protocol, port): (&str, &str, i32)| discovery::EndpointPort {
                name: Some(name.into()),
                protocol: Some(protocol.into()),
                port: Some(port),
                app_protocol: None,
            };
            slice.ports = Some(ports.into_iter().map(port).collect());
            slice
        },
    )
}

fn endpoints() -> impl Strategy<Value = (&'static str, &'static str, discovery::Endpoint)> {
    let addresses = prop_oneof![
        6 => select(&[("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2"), ("10.0.0.3", "fd00::3")][..]),
        1 => Just(("127.0.0.1", "10.0.0.1")),
    ];
    let conditions = (option::of(any::<bool>()), option::of(any::<bool>()), weighted(0.3, any::<bool>()));
    let node = option::of(select(&NODES[..]));
    let hints = (subsequence(&ZONES[..], 0..=2), subsequence(&NODES[..], 0..=2));
    (addresses, conditions, node, weighted(0.6, hints)).prop_map(|((v4, v6), conditions, node, hints)| {
        let mut endpoint = at(v4).conditions(conditions.0, conditions.1, conditions.2);
        if let Some(node) = node {
            endpoint = endpoint.on(node);
        }
        let (zones, nodes) = hints.unwrap_or_default();
        endpoint = zones.into_iter().fold(endpoint, EndpointExt::for_zone);
        (v4, v6, nodes.into_iter().fold(endpoint, EndpointExt::for_node))
    })
}

fn nodes() -> impl Strategy<Value = v1::Node> {
    let zone = option::of(select(&ZONES[..]));
    (select(&NODES[..]), subsequence(&NODE_IPS[..], 0..=3), zone).prop_map(|(name, addresses, zone)| {
        let node = node(name, &addresses);
        match zone {
            Some(zone) => in_zone(node, zone),
            None => node,
        }
    })
}
