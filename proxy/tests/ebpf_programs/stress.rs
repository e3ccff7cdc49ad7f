//! Connections of several threads during changes of the endpoints.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use socket2::Type;
use tollgate_ebpf_abi::{AddressPort, ServiceKey, pool, protocol};

use crate::Test;
use crate::dial::Family;
use crate::world::{Service, World, host, ip, port};

pub(crate) const TESTS: [Test; 1] = [(
    "every_connection_lands_where_it_was_served_at_some_moment",
    every_connection_lands_where_it_was_served_at_some_moment,
)];

const CHANGES: u64 = 10_000;
/// At least so many connections of each thread.
const CONNECTIONS: u64 = 10_000;
const THREADS: usize = 3;
const ID: u32 = 3000;
const TO_PORT: u16 = 3000;
/// Slots are written in turn, so that one rests for so many changes.
const SLOTS: u32 = 4096;

/// The endpoint of a change is told by its address: 10.97.X.Y is change X * 256 + Y, so that it is seen where a connection
/// was sent. UDP sockets, which are connected without a packet.
fn endpoint(change: u64) -> SocketAddr {
    let [.., high, low] = change.to_be_bytes();
    SocketAddr::from(([10, 97, high, low], port::ENDPOINT))
}

fn change_of(end: SocketAddr) -> u64 {
    match end.ip() {
        std::net::IpAddr::V4(ip) => u64::from(ip.octets()[2]) << 8 | u64::from(ip.octets()[3]),
        std::net::IpAddr::V6(ip) => panic!("{ip}"),
    }
}

fn every_connection_lands_where_it_was_served_at_some_moment() {
    crate::world::run("ip route replace local 10.97.0.0/16 dev lo");
    let mut world = World::new();
    let to = SocketAddr::new(ip(false, host::CLUSTER_IP), TO_PORT);
    let key = ServiceKey::new(AddressPort::from(to).address, to.port().to_be(), protocol::UDP);
    // Many neighbours change as well: their entries come and go in the same memory.
    let neighbours: Vec<SocketAddr> =
        (1..=64).map(|n| SocketAddr::new(ip(false, host::CLUSTER_IP), TO_PORT + n)).collect();
    let service = Service { id: ID, flags: pool::CLUSTER, affinity_seconds: 0 };
    world.place(&key, service, 0, endpoint(0));
    // Changes that have begun, and changes that are done.
    let (begun, done, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let connect = || {
        let (mut count, mut later) = (0_u64, 0_u64);
        while count < CONNECTIONS || !is_over.load(Ordering::Relaxed) {
            let socket = Family::V4.socket(Type::DGRAM);
            let earliest = done.load(Ordering::SeqCst);
            socket.connect(&to.into()).unwrap();
            let latest = begun.load(Ordering::SeqCst);
            let landed = change_of(endpoint_of(&socket));
            assert!((earliest..=latest).contains(&landed), "change {landed}, not in {earliest}..={latest}");
            assert_eq!(crate::dial::peer(&socket), to);
            count += 1;
            later += u64::from(latest > earliest);
        }
        (count, later)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect)).collect();
        for change in 1..=CHANGES {
            begun.store(change, Ordering::SeqCst);
            world.place(&key, service, u32::try_from(change).unwrap() % SLOTS, endpoint(change));
            done.store(change, Ordering::SeqCst);
            let (is_odd, neighbour) = (change % 2 == 1, neighbours[usize::try_from(change % 64).unwrap()]);
            let neighbour =
                ServiceKey::new(AddressPort::from(neighbour).address, neighbour.port().to_be(), protocol::UDP);
            if is_odd {
                world.place(&neighbour, Service { id: ID + 1, ..service }, SLOTS, endpoint(u64::from(u16::MAX)));
            } else {
                world.remove(&neighbour);
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let counts: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let (count, later) = counts.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        println!("{count} connections during {CHANGES} changes, {later} of them while one was going on");
        assert!(later > 0, "no connection met a change");
    });
    crate::world::run("ip route del local 10.97.0.0/16 dev lo");
}

/// Where a socket really goes: the address that the kernel has for it, which no hook changes.
fn endpoint_of(socket: &socket2::Socket) -> SocketAddr {
    // The source address of a local destination is that destination.
    let source = socket.local_addr().unwrap().as_socket().unwrap();
    SocketAddr::new(source.ip(), port::ENDPOINT)
}
