//! What the eBPF hooks cost: `cargo bench -p tollgate-proxy --bench ebpf_hooks`.
//!
//! Two figures of each case. The difference that the programs make to `connect` and `sendto`, in rounds in which they are
//! attached and detached in turn. And what the kernel itself says of the programs' run time, while it is asked to measure
//! (`BPF_ENABLE_STATS`, for this process's lifetime only), which has two readings of the clock in it.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aya::sys::{Stats, enable_stats};
use socket2::{SockAddr, Type};
use tollgate_ebpf_abi::{address_flags, pool, protocol, service_flags};

use crate::dial::Family;
use crate::world::{Options, Service, World, endpoint, host, ip, port};

#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/ebpf_programs/dial.rs"]
mod dial;
#[path = "../tests/ebpf_programs/server.rs"]
mod server;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/ebpf_programs/world.rs"]
mod world;

/// Services beside those that are dialled.
const SERVICES: u32 = 10_000;
const ROUNDS: usize = 21;
const CALLS: usize = 2_000;

/// A call that is measured.
#[derive(Clone, Copy)]
enum Call {
    /// `connect` of a new UDP socket: no packet is sent, so that it is the hook that is seen.
    Connect,
    /// `connect` of a new TCP socket: the whole handshake.
    TcpConnect,
    /// `sendto` of a UDP socket that has sent there before.
    SendTo,
}

/// What is called, what is dialled, and what in its place while no programs are attached; none where it has no equal.
struct Case {
    name: &'static str,
    call: Call,
    family: Family,
    to: SocketAddr,
    direct: Option<SocketAddr>,
    program: &'static str,
}

fn main() {
    tollgate_lab::isolate();
    world::prepare();
    let mut world = World::with(Options { services: SERVICES, ..Options::default() });
    fill(&mut world);
    println!("{SERVICES} Services; {ROUNDS} rounds of {CALLS} calls each, medians\n");
    println!("| case | call | without | with | difference | run time by the kernel |");
    println!("|---|---|---|---|---|---|");
    for case in cases() {
        let (without, with) = interleaved(&mut world, &case);
        let run_time = run_time(&mut world, &case);
        let ns = |duration: Duration| format!("{} ns", duration.as_nanos());
        let difference =
            without.map(|without| format!("{:+} ns", with.as_nanos().cast_signed() - without.as_nanos().cast_signed()));
        let call = match case.call {
            Call::Connect => "connect, UDP",
            Call::TcpConnect => "connect, TCP",
            Call::SendTo => "sendto",
        };
        println!(
            "| {} | {call} | {} | {} | {} | {} |",
            case.name,
            without.map_or("-".to_owned(), ns),
            ns(with),
            difference.unwrap_or("-".to_owned()),
            ns(run_time),
        );
    }
}

fn cases() -> Vec<Case> {
    let cluster_ip = |is_v6, port| SocketAddr::new(ip(is_v6, host::CLUSTER_IP), port);
    let foreign = |is_v6| SocketAddr::new(ip(is_v6, host::FOREIGN), port::SERVICE);
    let (v4, v6, end) = (Family::V4, Family::V6, |is_v6| Some(endpoint(is_v6, 0)));
    let case = |name, call, family, to, direct, program| Case { name, call, family, to, direct, program };
    vec![
        case("no Service's address", Call::Connect, v4, foreign(false), Some(foreign(false)), "connect4"),
        case("no Service's address, IPv6", Call::Connect, v6, foreign(true), Some(foreign(true)), "connect6"),
        case("ClusterIP", Call::Connect, v4, cluster_ip(false, port::SERVICE), end(false), "connect4"),
        case("ClusterIP, IPv6", Call::Connect, v6, cluster_ip(true, port::SERVICE), end(true), "connect6"),
        case("ClusterIP, affinity", Call::Connect, v4, cluster_ip(false, AFFINE), end(false), "connect4"),
        case(
            "NodePort",
            Call::Connect,
            v4,
            SocketAddr::new(ip(false, host::NODE), port::NODE_PORT),
            end(false),
            "connect4",
        ),
        case("unknown port, refused", Call::Connect, v4, cluster_ip(false, port::UNKNOWN), None, "connect4"),
        case("no endpoints, refused", Call::Connect, v4, cluster_ip(false, port::EMPTY), None, "connect4"),
        case("ClusterIP", Call::TcpConnect, v4, cluster_ip(false, port::SERVICE), end(false), "connect4"),
        case("ClusterIP", Call::SendTo, v4, cluster_ip(false, port::SERVICE), end(false), "sendmsg4"),
        case("no Service's address", Call::SendTo, v4, foreign(false), Some(foreign(false)), "sendmsg4"),
    ]
}

/// The port of a Service with affinity.
const AFFINE: u16 = 85;

fn fill(world: &mut World) {
    let affine = Service { id: 5000, flags: pool::CLUSTER | service_flags::AFFINITY, affinity_seconds: 10_800 };
    let at = SocketAddr::new(ip(false, host::CLUSTER_IP), AFFINE);
    world.service(at, protocol::UDP, affine, &[endpoint(false, 0), endpoint(false, 1)]);
    for n in 0..SERVICES {
        let [.., high, low] = n.to_be_bytes();
        let at = SocketAddr::from(([10, 100, high, low], port::SERVICE));
        world.address(at.ip(), address_flags::VIP | address_flags::REFUSE_UNKNOWN, 10_000 + n);
        let service = Service { id: 10_000 + n, flags: pool::CLUSTER, affinity_seconds: 0 };
        world.service(at, protocol::TCP, service, &[endpoint(false, 0)]);
    }
}

/// A call's median without the programs and with them.
fn interleaved(world: &mut World, case: &Case) -> (Option<Duration>, Duration) {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        if let Some(direct) = case.direct {
            world.detach();
            without.push(measure(case, direct));
            world.attach();
        }
        with.push(measure(case, case.to));
    }
    (case.direct.map(|_| median(&mut without)), median(&mut with))
}

/// The median of some calls.
fn measure(case: &Case, to: SocketAddr) -> Duration {
    let to = SockAddr::from(case.family.given(to));
    let kind = if matches!(case.call, Call::TcpConnect) { Type::STREAM } else { Type::DGRAM };
    let kept = case.family.socket(kind);
    let calls = if kind == Type::STREAM { CALLS / 4 } else { CALLS };
    let mut times: Vec<Duration> = (0..calls)
        .map(|_| {
            if matches!(case.call, Call::SendTo) {
                let start = Instant::now();
                kept.send_to(b"?", &to).unwrap();
                return start.elapsed();
            }
            let socket = case.family.socket(kind);
            let start = Instant::now();
            // Those that are refused are measured as well.
            let _ = socket.connect(&to);
            start.elapsed()
        })
        .collect();
    median(&mut times)
}

/// The mean run time of a program, as the kernel measures it.
fn run_time(world: &mut World, case: &Case) -> Duration {
    let _measuring = enable_stats(Stats::RunTime).unwrap();
    let mut read = || {
        let info = world.program(case.program).info().unwrap();
        (info.run_time(), info.run_count())
    };
    let before = read();
    for _ in 0..ROUNDS {
        measure(case, case.to);
    }
    let after = read();
    (after.0 - before.0) / u32::try_from(after.1 - before.1).unwrap()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
