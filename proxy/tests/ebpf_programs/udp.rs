//! Datagrams: sockets that are not connected, that are connected again, and that talk to several Services.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};

use nix::errno::Errno;
use socket2::Type;
use tollgate_ebpf_abi::{pool, protocol};

use crate::Test;
use crate::dial::{Family, peer, receive};
use crate::world::{ENDPOINTS, Service, World, endpoint, host, ip, port};

pub(crate) const TESTS: [Test; 9] = [
    ("without_the_programs_nothing_is_translated", without_the_programs_nothing_is_translated),
    ("datagrams_of_a_socket_go_to_one_endpoint", datagrams_of_a_socket_go_to_one_endpoint),
    ("datagrams_leave_an_endpoint_that_is_gone_at_once", datagrams_leave_an_endpoint_that_is_gone_at_once),
    ("datagrams_stay_with_an_endpoint_that_serves_still", datagrams_stay_with_an_endpoint_that_serves_still),
    ("a_late_answer_comes_from_the_service", a_late_answer_comes_from_the_service),
    ("one_socket_talks_to_several_services", one_socket_talks_to_several_services),
    ("a_socket_that_is_connected_anew_has_another_peer", a_socket_that_is_connected_anew_has_another_peer),
    ("a_datagram_to_nobody_is_refused", a_datagram_to_nobody_is_refused),
    ("a_socket_may_ask_which_source_it_would_have", a_socket_may_ask_which_source_it_would_have),
];

/// Service ports of a test's own.
const FIRST: u32 = 1000;

fn frontend(is_v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(ip(is_v6, host::CLUSTER_IP), port)
}

fn all_endpoints(is_v6: bool) -> Vec<SocketAddr> {
    (0..ENDPOINTS).map(|n| endpoint(is_v6, n)).collect()
}

fn serve(world: &mut World, at: SocketAddr, id: u32, endpoints: &[SocketAddr]) {
    let service = Service { id, flags: pool::CLUSTER, affinity_seconds: 0 };
    world.service(at, protocol::UDP, service, endpoints);
}

/// Sends, and says who answered and whom the answer is said to come from.
fn ask(socket: &socket2::Socket, family: Family, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    socket.send_to(b"?", &family.given(to).into()).unwrap();
    receive(socket).unwrap()
}

fn without_the_programs_nothing_is_translated() {
    let mut world = World::new();
    let to = frontend(false, port::SERVICE);
    // The source of a socket that is connected to an address of this machine is that address.
    let goes_to = || {
        let socket = Family::V4.socket(Type::DGRAM);
        socket.connect(&to.into()).unwrap();
        socket.local_addr().unwrap().as_socket().unwrap().ip()
    };
    assert_ne!(goes_to(), to.ip());
    world.detach();
    assert_eq!(goes_to(), to.ip());
    world.attach();
    assert_ne!(goes_to(), to.ip());
}

fn datagrams_of_a_socket_go_to_one_endpoint() {
    let mut world = World::new();
    for family in Family::ALL {
        let (to, ends) = (frontend(family.is_v6(), 1000), all_endpoints(family.is_v6()));
        serve(&mut world, to, FIRST, &ends);
        let mut by_all = BTreeSet::new();
        for _ in 0..40 {
            let socket = family.socket(Type::DGRAM);
            let answers: BTreeSet<_> = (0..10).map(|_| ask(&socket, family, to)).collect();
            assert_eq!(answers.len(), 1, "{family}: {answers:?}");
            by_all.extend(answers.into_iter().map(|(by, _)| by));
        }
        // Another socket, another choice: that 40 miss one of four has a chance of 4e-5.
        assert_eq!(by_all, ends.into_iter().collect(), "{family}");
    }
    // Each socket is counted once, not each datagram: 40 sockets of IPv4 and 80 in all, the Service port is the same.
    assert_eq!(world.connections(FIRST).values().sum::<u64>(), 3 * 40);
}

fn datagrams_leave_an_endpoint_that_is_gone_at_once() {
    let mut world = World::new();
    for family in Family::ALL {
        let (to, ends) = (frontend(family.is_v6(), 1001), all_endpoints(family.is_v6()));
        serve(&mut world, to, FIRST, &ends[..1]);
        let socket = family.socket(Type::DGRAM);
        assert_eq!(ask(&socket, family, to), (ends[0], family.given(to)));
        serve(&mut world, to, FIRST, &ends[1..2]);
        world.member(FIRST, ends[0], 0);
        assert_eq!(ask(&socket, family, to), (ends[1], family.given(to)), "{family}");
    }
}

fn datagrams_stay_with_an_endpoint_that_serves_still() {
    let mut world = World::new();
    for family in Family::ALL {
        let (to, ends) = (frontend(family.is_v6(), 1002), all_endpoints(family.is_v6()));
        serve(&mut world, to, FIRST, &ends[..1]);
        let socket = family.socket(Type::DGRAM);
        assert_eq!(ask(&socket, family, to), (ends[0], family.given(to)));
        // Others come: with a new choice, ten datagrams would find one of them but for one time in a million.
        serve(&mut world, to, FIRST, &ends);
        assert!((0..10).all(|_| ask(&socket, family, to) == (ends[0], family.given(to))), "{family}");
    }
}

fn a_late_answer_comes_from_the_service() {
    let mut world = World::new();
    for family in [Family::V4, Family::V6] {
        let is_v6 = family.is_v6();
        let to = frontend(is_v6, 1003);
        // Endpoints of this test's own, so that one can answer when it likes.
        let [old, new] = [1, 2].map(|n| UdpSocket::bind((ip(is_v6, host::ENDPOINT + n), 0)).unwrap());
        let [old_end, new_end] = [&old, &new].map(|it| it.local_addr().unwrap());
        serve(&mut world, to, FIRST, &[old_end]);
        let socket = family.socket(Type::DGRAM);
        // To both endpoints from one address.
        socket.bind(&SocketAddr::new(ip(is_v6, host::FOREIGN), 0).into()).unwrap();
        socket.send_to(b"?", &to.into()).unwrap();
        let (_, client) = old.recv_from(&mut [0; 8]).unwrap();
        serve(&mut world, to, FIRST, &[new_end]);
        world.member(FIRST, old_end, 0);
        socket.send_to(b"?", &to.into()).unwrap();
        assert_eq!(new.recv_from(&mut [0; 8]).unwrap().1, client);
        for (endpoint, end) in [(&old, old_end), (&new, new_end)] {
            endpoint.send_to(end.to_string().as_bytes(), client).unwrap();
            assert_eq!(receive(&socket).unwrap(), (end, to));
        }
    }
}

fn one_socket_talks_to_several_services() {
    let mut world = World::new();
    for family in Family::ALL {
        let ends = all_endpoints(family.is_v6());
        let services: Vec<_> = (1010..1014).map(|port| frontend(family.is_v6(), port)).collect();
        for (n, (to, end)) in (0..).zip(services.iter().zip(&ends)) {
            serve(&mut world, *to, FIRST + n, &[*end]);
        }
        let socket = family.socket(Type::DGRAM);
        for _ in 0..3 {
            // All at once, so that answers of one come after another was dialled.
            for to in &services {
                socket.send_to(b"?", &family.given(*to).into()).unwrap();
            }
            let answers: BTreeSet<_> = services.iter().map(|_| receive(&socket).unwrap()).collect();
            let expected = ends.iter().copied().zip(services.iter().map(|to| family.given(*to))).collect();
            assert_eq!(answers, expected, "{family}");
        }
        // And with somebody who is no Service.
        let foreign = SocketAddr::new(ip(family.is_v6(), host::FOREIGN), port::SERVICE);
        assert_eq!(ask(&socket, family, foreign), (foreign, family.given(foreign)));
        // The endpoint of the second goes: its datagrams find another, and the others stay.
        serve(&mut world, services[1], FIRST + 1, &ends[..1]);
        world.member(FIRST + 1, ends[1], 0);
        assert_eq!(ask(&socket, family, services[2]), (ends[2], family.given(services[2])));
        assert_eq!(ask(&socket, family, services[1]).0, ends[0]);
    }
    // A flow is counted once, however many datagrams: three families, and one new choice each.
    let counted: u64 = (0..4).map(|n| world.connections(FIRST + n).values().sum::<u64>()).sum();
    assert_eq!(counted, 3 * (4 + 1));
}

fn a_socket_that_is_connected_anew_has_another_peer() {
    let _world = World::new();
    for family in Family::ALL {
        let service = frontend(family.is_v6(), port::SERVICE);
        let foreign = SocketAddr::new(ip(family.is_v6(), host::FOREIGN), port::SERVICE);
        let direct = endpoint(family.is_v6(), 0);
        let socket = family.socket(Type::DGRAM);
        for to in [service, foreign, service, direct, service] {
            socket.connect(&family.given(to).into()).unwrap();
            assert_eq!(peer(&socket), family.given(to), "{family}");
            socket.send(b"?").unwrap();
            assert_eq!(receive(&socket).unwrap().1, family.given(to), "{family}");
        }
    }
}

fn a_datagram_to_nobody_is_refused() {
    let mut world = World::new();
    let (to, ends) = (frontend(false, 1004), all_endpoints(false));
    serve(&mut world, to, FIRST, &ends[..1]);
    let socket = Family::V4.socket(Type::DGRAM);
    assert_eq!(ask(&socket, Family::V4, to), (ends[0], to));
    serve(&mut world, to, FIRST, &[]);
    world.member(FIRST, ends[0], 0);
    let error = socket.send_to(b"?", &to.into()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ECONNREFUSED as i32));
    // The first endpoint comes: the very next datagram goes there.
    serve(&mut world, to, FIRST, &ends[2..3]);
    assert_eq!(ask(&socket, Family::V4, to), (ends[2], to));
}

fn a_socket_may_ask_which_source_it_would_have() {
    let _world = World::new();
    for family in Family::ALL {
        let socket = family.socket(Type::DGRAM);
        socket.connect(&family.given(frontend(family.is_v6(), 0)).into()).unwrap();
    }
}
