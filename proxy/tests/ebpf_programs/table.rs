//! One dial at a time: every kind of address by every kind of socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use libtest_mimic::Trial;
use nix::errno::Errno;
use tollgate_ebpf_abi::{CounterKey, counter};

use crate::dial::{Family, Kind, Outcome, dial};
use crate::world::{self, endpoint, host, id_of, ip, port};

/// What is expected of a dial.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// One of the two endpoints, and the peer is what was dialled. Counted under that Service port.
    Endpoint(u32),
    /// What was dialled, as without the programs.
    LeftAlone,
    /// Refused at once. Counted under that Service port.
    Refused(u32, u32),
}

use Expected::{Endpoint, LeftAlone, Refused};

/// Name, last part of the address, port, what is expected over TCP and over UDP. Service ports are numbered as for IPv4: UDP
/// is 50 more than TCP, and IPv6 100 more.
const ROWS: [(&str, u8, u16, Expected, Expected); 11] = [
    ("cluster_ip", host::CLUSTER_IP, port::SERVICE, Endpoint(1), Endpoint(51)),
    ("external_ip", host::EXTERNAL_IP, port::SERVICE, Endpoint(4), Endpoint(54)),
    ("node_port", host::NODE, port::NODE_PORT, Endpoint(5), Endpoint(55)),
    (
        "no_endpoints",
        host::CLUSTER_IP,
        port::EMPTY,
        Refused(2, counter::REFUSED_NO_ENDPOINTS),
        Refused(52, counter::REFUSED_NO_ENDPOINTS),
    ),
    (
        "unknown_port_on_vip",
        host::CLUSTER_IP,
        port::UNKNOWN,
        Refused(1, counter::REFUSED_UNKNOWN_PORT),
        Refused(1, counter::REFUSED_UNKNOWN_PORT),
    ),
    (
        "unknown_protocol_on_vip",
        host::CLUSTER_IP,
        port::TCP_ONLY,
        Endpoint(6),
        Refused(1, counter::REFUSED_UNKNOWN_PORT),
    ),
    ("left_to_packets", host::EXTERNAL_IP, port::LEFT, LeftAlone, LeftAlone),
    ("unknown_port_on_external_ip", host::EXTERNAL_IP, port::UNKNOWN, LeftAlone, LeftAlone),
    ("another_port_of_the_node", host::NODE, port::UNKNOWN, LeftAlone, LeftAlone),
    ("node_port_of_another_node", host::OTHER_NODE, port::NODE_PORT, LeftAlone, LeftAlone),
    ("no_service", host::FOREIGN, port::SERVICE, LeftAlone, LeftAlone),
];

/// One for each row, kind of socket and family, in one world.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (name, host, port, tcp, udp) in ROWS {
        for kind in Kind::ALL {
            for family in Family::ALL {
                let expected = if kind == Kind::Tcp { tcp } else { udp };
                let to = SocketAddr::new(ip(family.is_v6(), host), port);
                trials.push(Trial::test(format!("{name}::{kind}::{family}"), move || {
                    judge(kind, family, to, expected);
                    Ok(())
                }));
            }
        }
    }
    trials
}

fn judge(kind: Kind, family: Family, to: SocketAddr, expected: Expected) {
    let mut world = world::shared();
    let before = world.counters();
    let outcome = dial(kind, family, to);
    let mut counted = world.counters();
    counted.retain(|key, count| {
        *count -= before.get(key).copied().unwrap_or_default();
        *count > 0
    });
    let base = if family.is_v6() { 100 } else { 0 };
    let one = |service_id, endpoint_id, counter| {
        BTreeMap::from([(CounterKey { service_id: base + service_id, endpoint_id, counter }, 1)])
    };
    match (expected, &outcome) {
        (Endpoint(service), Outcome::Answer { by, peer }) => {
            assert!((0..2).any(|n| endpoint(family.is_v6(), n) == *by), "answered by {by}");
            assert_eq!(*peer, family.given(to), "the peer");
            assert_eq!(counted, one(service, id_of(*by), counter::CONNECTIONS));
        }
        (LeftAlone, Outcome::Answer { by, peer }) => {
            assert_eq!((*by, *peer), (to, family.given(to)));
            assert_eq!(counted, BTreeMap::new());
        }
        (Refused(service, reason), Outcome::Errno(errno)) => {
            assert_eq!(Errno::from_raw(*errno), Errno::ECONNREFUSED);
            assert_eq!(counted, one(service, 0, reason));
        }
        _ => panic!("{outcome:?}"),
    }
}
