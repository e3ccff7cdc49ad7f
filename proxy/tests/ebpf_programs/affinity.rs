//! Clients that stay with their endpoint, even spread where they don't, and entries that must not be believed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use socket2::Type;
use tollgate_ebpf_abi::{CounterKey, ServiceKey, ServiceValue, counter, pool, protocol, service_flags};

use crate::Test;
use crate::dial::{Family, Kind, Outcome, dial};
use crate::world::{self, ENDPOINTS, Service, World, endpoint, host, ip, netns_cookie};

pub(crate) const TESTS: [Test; 8] = [
    ("a_client_stays_with_its_endpoint", a_client_stays_with_its_endpoint),
    ("all_frontends_of_a_service_port_share_the_clients", all_frontends_of_a_service_port_share_the_clients),
    ("a_client_may_go_elsewhere_when_its_time_is_over", a_client_may_go_elsewhere_when_its_time_is_over),
    ("a_client_leaves_an_endpoint_that_is_gone", a_client_leaves_an_endpoint_that_is_gone),
    ("a_client_leaves_an_endpoint_of_another_set", a_client_leaves_an_endpoint_of_another_set),
    ("clients_are_network_namespaces", clients_are_network_namespaces),
    ("connections_spread_evenly", connections_spread_evenly),
    ("what_is_another_service_s_is_not_used", what_is_another_service_s_is_not_used),
];

const ID: u32 = 2000;
const PORT: u16 = 2000;

fn ends(is_v6: bool) -> Vec<SocketAddr> {
    (0..ENDPOINTS).map(|n| endpoint(is_v6, n)).collect()
}

fn frontend(is_v6: bool) -> SocketAddr {
    SocketAddr::new(ip(is_v6, host::CLUSTER_IP), PORT)
}

fn sticky(seconds: u32) -> Service {
    Service { id: ID, flags: pool::CLUSTER | service_flags::AFFINITY, affinity_seconds: seconds }
}

fn serve(world: &mut World, is_v6: bool, service: Service, endpoints: &[SocketAddr]) {
    for protocol in [protocol::TCP, protocol::UDP] {
        world.service(frontend(is_v6), protocol, service, endpoints);
    }
}

/// Who answers a new connection.
fn by(kind: Kind, family: Family, to: SocketAddr) -> SocketAddr {
    match dial(kind, family, to) {
        Outcome::Answer { by, .. } => by,
        Outcome::Errno(errno) => panic!("{kind} to {to}: errno {errno}"),
    }
}

/// Lets the one client's last connection lie back.
fn age(world: &mut World, seconds: u64) {
    let mut map = world.affinity();
    let (key, mut value) = map.iter().next().unwrap().unwrap();
    value.last_used -= seconds * 1_000_000_000;
    map.insert(key, value, 0).unwrap();
}

fn a_client_stays_with_its_endpoint() {
    for family in Family::ALL {
        let (mut world, to) = (World::new(), frontend(family.is_v6()));
        serve(&mut world, family.is_v6(), sticky(10_800), &ends(family.is_v6()));
        // The same over all kinds of socket: it is one Service port here, though two in the world.
        let by_all: BTreeSet<_> = (0..24).map(|n| by(Kind::ALL[n % 3], family, to)).collect();
        assert_eq!(by_all.len(), 1, "{family}: {by_all:?}");
        let (key, value) = world.affinity().iter().next().unwrap().unwrap();
        assert_eq!((key.client, key.service_id), (netns_cookie(), ID));
        assert_eq!(Some(&SocketAddr::from(value.endpoint)), by_all.first());
    }
}

fn all_frontends_of_a_service_port_share_the_clients() {
    let mut world = World::new();
    let endpoints = ends(false);
    world.service(frontend(false), protocol::TCP, sticky(10_800), &endpoints);
    let external = SocketAddr::new(ip(false, host::EXTERNAL_IP), PORT);
    world.service(external, protocol::TCP, sticky(10_800), &endpoints);
    world.node_port(false, 32_000, protocol::TCP, sticky(10_800), &endpoints);
    let node_port = SocketAddr::new(ip(false, host::NODE), 32_000);
    let frontends = [frontend(false), external, node_port];
    let by_all: BTreeSet<_> = (0..18).map(|n| by(Kind::Tcp, Family::V4, frontends[n % 3])).collect();
    assert_eq!(by_all.len(), 1, "{by_all:?}");
}

fn a_client_may_go_elsewhere_when_its_time_is_over() {
    let (mut world, to) = (World::new(), frontend(false));
    serve(&mut world, false, sticky(100), &ends(false));
    let first = by(Kind::Tcp, Family::V4, to);
    // Each connection begins the time anew, so ten times 90 seconds are not too long.
    for _ in 0..10 {
        age(&mut world, 90);
        assert_eq!(by(Kind::Tcp, Family::V4, to), first);
    }
    let mut by_all = BTreeSet::new();
    for _ in 0..60 {
        age(&mut world, 100);
        by_all.insert(by(Kind::Tcp, Family::V4, to));
    }
    // That 60 miss one of four has a chance of 1e-7.
    assert_eq!(by_all, ends(false).into_iter().collect());
}

fn a_client_leaves_an_endpoint_that_is_gone() {
    let (mut world, to, mut endpoints) = (World::new(), frontend(true), ends(true));
    serve(&mut world, true, sticky(10_800), &endpoints);
    while !endpoints.is_empty() {
        let first = by(Kind::Tcp, Family::V6, to);
        assert!(endpoints.contains(&first));
        assert_eq!(by(Kind::Tcp, Family::V6, to), first);
        endpoints.retain(|end| *end != first);
        serve(&mut world, true, sticky(10_800), &endpoints);
        world.member(ID, first, 0);
    }
    assert!(matches!(dial(Kind::Tcp, Family::V6, to), Outcome::Errno(_)));
}

fn a_client_leaves_an_endpoint_of_another_set() {
    let (mut world, to, endpoints) = (World::new(), frontend(false), ends(false));
    serve(&mut world, false, sticky(10_800), &endpoints[..1]);
    assert_eq!(by(Kind::Tcp, Family::V4, to), endpoints[0]);
    // Another frontend of the same Service port leads to the Local set, in which that endpoint is not.
    let local = Service { flags: pool::LOCAL | service_flags::AFFINITY, ..sticky(10_800) };
    let external = SocketAddr::new(ip(false, host::EXTERNAL_IP), PORT);
    world.service(external, protocol::TCP, local, &endpoints[1..2]);
    world.member(ID, endpoints[1], pool::LOCAL | pool::CLUSTER);
    assert_eq!(by(Kind::Tcp, Family::V4, external), endpoints[1]);
    // It is in both sets.
    assert_eq!(by(Kind::Tcp, Family::V4, to), endpoints[1]);
}

fn clients_are_network_namespaces() {
    let mut world = World::new();
    serve(&mut world, false, sticky(10_800), &ends(false));
    by(Kind::Tcp, Family::V4, frontend(false));
    let other = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        world::run("ip link set lo up");
        world::add_addresses();
        // Nobody listens there; that the socket is connected is enough.
        let socket = Family::V4.socket(Type::DGRAM);
        socket.connect(&frontend(false).into()).unwrap();
        netns_cookie()
    });
    let other = other.join().unwrap();
    let clients: BTreeSet<_> = world.affinity().keys().map(|key| key.unwrap().client).collect();
    assert_eq!(clients, BTreeSet::from([netns_cookie(), other]));
}

fn connections_spread_evenly() {
    const CONNECTIONS: u32 = 8000;
    let mut world = World::new();
    serve(&mut world, false, Service { flags: pool::CLUSTER, ..sticky(0) }, &ends(false));
    for _ in 0..CONNECTIONS {
        Family::V4.socket(Type::DGRAM).connect(&frontend(false).into()).unwrap();
    }
    let counted = world.connections(ID);
    assert_eq!(counted.values().sum::<u64>(), u64::from(CONNECTIONS));
    let (chance, mean) = (1.0 / f64::from(ENDPOINTS), f64::from(CONNECTIONS / u32::from(ENDPOINTS)));
    let deviation = (f64::from(CONNECTIONS) * chance * (1.0 - chance)).sqrt();
    for count in counted.values() {
        let count = f64::from(u32::try_from(*count).unwrap());
        assert!((count - mean).abs() < 5.0 * deviation, "{counted:?}");
    }
    assert_eq!(counted.len(), usize::from(ENDPOINTS));
}

fn what_is_another_service_s_is_not_used() {
    let mut world = World::new();
    let to = frontend(false);
    world.service(to, protocol::TCP, Service { flags: pool::CLUSTER, ..sticky(0) }, &ends(false));
    let key = ServiceKey::new(to.ip().into(), to.port().to_be(), protocol::TCP);
    let right = world.value(&key);
    // The slots are given to another, and the entry is an old one: nobody's endpoint is dialled, and it is counted.
    for (slot, end) in (right.first_slot..).zip(ends(false)) {
        world.slot(slot, ID + 1, end);
    }
    // Where it goes then, nobody listens.
    dial(Kind::Tcp, Family::V4, to);
    let inconsistent = CounterKey { service_id: 0, endpoint_id: 0, counter: counter::INCONSISTENT };
    assert_eq!(world.counters(), BTreeMap::from([(inconsistent, 1)]));
    for (slot, end) in (right.first_slot..).zip(ends(false)) {
        world.slot(slot, ID, end);
    }
    assert!(ends(false).contains(&by(Kind::Tcp, Family::V4, to)));
    // Half of another entry is none.
    world.put_value(&key, ServiceValue { slots: right.slots + 1, ..right });
    dial(Kind::Tcp, Family::V4, to);
    let refused = CounterKey { service_id: 1, endpoint_id: 0, counter: counter::REFUSED_UNKNOWN_PORT };
    assert_eq!(world.counters().get(&refused), Some(&1));
}
