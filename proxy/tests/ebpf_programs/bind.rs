//! Processes that take ports, and kernels that let no program choose the errno.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use socket2::Type;

use crate::Test;
use crate::dial::{Family, Kind, Outcome, dial};
use crate::world::{Options, World, host, ip, port};

pub(crate) const TESTS: [Test; 5] = [
    ("a_node_port_in_use_can_t_be_bound_on_the_node", a_node_port_in_use_can_t_be_bound_on_the_node),
    (
        "a_node_port_of_one_family_and_protocol_is_taken_there_alone",
        a_node_port_of_one_family_and_protocol_is_taken_there_alone,
    ),
    ("a_pod_may_bind_what_it_likes", a_pod_may_bind_what_it_likes),
    ("without_a_node_nothing_is_kept_free", without_a_node_nothing_is_kept_free),
    ("where_no_errno_can_be_chosen_it_is_eperm", where_no_errno_can_be_chosen_it_is_eperm),
];

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn bind(kind: Type, to: IpAddr, port: u16) -> Result<(), Errno> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let bound = family.socket(kind).bind(&SocketAddr::new(to, port).into());
    bound.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap()))
}

fn a_node_port_in_use_can_t_be_bound_on_the_node() {
    let _world = World::new();
    let mapped = |host| match ip(false, host) {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        ip => ip,
    };
    let node = [V4, V6, ip(false, host::NODE), ip(true, host::NODE), mapped(host::NODE)];
    let others = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip(false, host::FOREIGN),
        ip(true, host::FOREIGN),
        mapped(host::FOREIGN),
    ];
    for kind in [Type::STREAM, Type::DGRAM] {
        for to in node {
            assert_eq!(bind(kind, to, port::NODE_PORT), Err(Errno::EADDRINUSE), "{to}");
            assert_eq!(bind(kind, to, port::NODE_PORT + 2), Ok(()), "{to}");
            assert_eq!(bind(kind, to, 0), Ok(()), "{to}");
        }
        for to in others {
            assert_eq!(bind(kind, to, port::NODE_PORT), Ok(()), "{to}");
        }
    }
}

fn a_node_port_of_one_family_and_protocol_is_taken_there_alone() {
    let _world = World::new();
    let taken = |kind, to| bind(kind, to, port::NODE_PORT_V4) == Err(Errno::EADDRINUSE);
    // A socket for all addresses of IPv6 is for those of IPv4 as well.
    for (to, is_taken) in [(V4, true), (V6, true), (ip(false, host::NODE), true), (ip(true, host::NODE), false)] {
        assert_eq!(taken(Type::STREAM, to), is_taken, "{to}");
        assert!(!taken(Type::DGRAM, to), "{to}");
    }
}

fn a_pod_may_bind_what_it_likes() {
    let _world = World::new();
    let pod = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for to in [V4, V6] {
            assert_eq!(bind(Type::STREAM, to, port::NODE_PORT), Ok(()), "{to}");
        }
    });
    pod.join().unwrap();
}

fn without_a_node_nothing_is_kept_free() {
    let _world = World::with(Options { node_netns: 0, ..Options::default() });
    // The address of another node is local here, and has a server.
    assert_eq!(bind(Type::STREAM, ip(false, host::NODE), port::NODE_PORT), Ok(()));
}

fn where_no_errno_can_be_chosen_it_is_eperm() {
    let _world = World::with(Options { has_set_retval: 0, ..Options::default() });
    let to = SocketAddr::new(ip(false, host::CLUSTER_IP), port::EMPTY);
    for kind in Kind::ALL {
        assert_eq!(dial(kind, Family::V4, to), Outcome::Errno(Errno::EPERM as i32));
    }
    assert_eq!(bind(Type::STREAM, V4, port::NODE_PORT), Err(Errno::EPERM));
}
