//! The eBPF backend on the real kernel: what a process takes over from one before it, what grows, what is put right.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use libtest_mimic::{Arguments, Trial};
use nix::libc;
use tollgate_ebpf_abi::{Address, AddressValue, map};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::SessionAffinity;
use tollgate_model::snapshot::{ServicePort, Snapshot};
use tollgate_proxy::backend::ebpf::{Counters, Ebpf, EbpfConfig};
use tollgate_proxy::backend::{Backend, NodeConfig, ObservedPool, Report, Scope};

use crate::netns::isolated;
use crate::sample::{service, snapshot};

mod netns;
mod sample;

/// As the build script found it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tollgate.o"));

const ENDPOINTS: u8 = 4;
/// The claim that none fails is about so many connections.
const CONNECTIONS: usize = 10_000;

fn main() -> ExitCode {
    tollgate_lab::isolate();
    let tests: [(&str, fn()); 10] = [
        ("no_connection_fails_while_programs_are_replaced", no_connection_fails_while_programs_are_replaced),
        ("no_connection_fails_while_maps_grow", no_connection_fails_while_maps_grow),
        ("a_restart_writes_nothing_and_keeps_what_clients_have", a_restart_writes_nothing_and_keeps_what_clients_have),
        ("what_somebody_spoils_is_put_right", what_somebody_spoils_is_put_right),
        ("a_udp_socket_loses_an_endpoint_that_is_gone", a_udp_socket_loses_an_endpoint_that_is_gone),
        ("a_connection_is_closed_where_that_is_asked_for", || connection_to_an_endpoint_that_is_gone(true)),
        ("a_connection_goes_on_where_that_is_not_asked_for", || connection_to_an_endpoint_that_is_gone(false)),
        ("what_is_in_the_maps_is_told", what_is_in_the_maps_is_told),
        ("an_exchange_of_maps_that_was_cut_short_is_finished", an_exchange_of_maps_that_was_cut_short_is_finished),
        ("cleanup_leaves_nothing", cleanup_leaves_nothing),
    ];
    let missing = missing_privilege();
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || isolated(test));
        match &missing {
            Some(missing) => trial.with_kind(missing.clone()).with_ignored_flag(true),
            None => trial,
        }
    });
    let trials = trials.collect();
    // Each makes a load of its own; and the sockets of all are in one cgroup.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn missing_privilege() -> Option<String> {
    tollgate_lab::cgroup::of_the_lab().err().map(|error| format!("{error:#}"))
}

/// A node with endpoints that answer, and the directory for the pins.
struct Node {
    pins: PathBuf,
    _servers: Vec<JoinHandle<()>>,
}

impl Node {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        run("ip link set lo up");
        let mut servers = Vec::new();
        for host in 1..=ENDPOINTS {
            run(&format!("ip addr add 10.244.0.{host}/32 dev lo"));
            let listener = TcpListener::bind(endpoint(host)).unwrap();
            servers.push(thread::spawn(move || serve(&listener, host)));
            let socket = UdpSocket::bind(endpoint(host)).unwrap();
            servers.push(thread::spawn(move || {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(&[host], from);
                }
            }));
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { pins: format!("/run/ebpf-backend-{number}").into(), _servers: servers }
    }

    fn config(&self) -> NodeConfig {
        let cgroup = Some(tollgate_lab::cgroup::of_the_lab().unwrap().to_owned());
        let ebpf = EbpfConfig { cgroup, bpf_root: self.pins.clone(), close_stale_connections: false };
        NodeConfig { families: IpFamily::ALL.to_vec(), ebpf, ..NodeConfig::default() }
    }

    fn open(&self) -> Ebpf {
        Ebpf::open(&self.config()).unwrap()
    }

    fn map<V: aya::Pod>(&self, name: &str) -> HashMap<MapData, Address, V> {
        let data = MapData::from_pin(self.pins.join("v1/maps").join(name)).unwrap();
        Map::HashMap(data).try_into().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The next test's programs are attached to the same cgroup.
        let _ = Ebpf::open_for_cleanup(&self.config()).map(|mut backend| backend.cleanup());
    }
}

/// Tells every client which one it is, and then again for each byte that it sends.
fn serve(listener: &TcpListener, host: u8) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        thread::spawn(move || {
            let mut byte = [0];
            while stream.write_all(&[host]).is_ok() && stream.read_exact(&mut byte).is_ok() {}
        });
    }
}

fn endpoint(host: u8) -> SocketAddr {
    SocketAddr::new([10, 244, 0, host].into(), 8080)
}

fn vip(number: u8) -> SocketAddr {
    SocketAddr::new([10, 96, 0, number].into(), 80)
}

#[track_caller]
fn run(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn web(endpoints: &[u8]) -> ServicePort {
    service("web", Protocol::Tcp, 1, endpoints)
}

fn full(backend: &mut Ebpf, wanted: &Snapshot) -> Report {
    backend.sync(wanted, Scope::Full).unwrap()
}

fn changes(backend: &mut Ebpf, wanted: &Snapshot) -> Report {
    backend.sync(wanted, Scope::Changes).unwrap()
}

/// Who answers.
fn dial(to: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect(to)?;
    reset_on_close(stream.as_raw_fd());
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Many connections between few addresses would else run out of ports.
fn reset_on_close(socket: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = libc::socklen_t::try_from(size_of::<libc::linger>()).unwrap();
    // SAFETY: the value outlives the call, and is of the length that is told.
    let result = unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, std::ptr::from_ref(&linger).cast(), length)
    };
    assert_eq!(result, 0);
}

/// Connections one after the other, at a pace, and some that stay open.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
    held: Vec<TcpStream>,
    started: Instant,
}

impl Load {
    const CLIENTS: u32 = 4;
    const PER_SECOND: u32 = 1_200;

    fn start(to: SocketAddr) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let started = Instant::now();
        let client = |_| {
            let (stop, made) = (stop.clone(), made.clone());
            thread::spawn(move || {
                let pause = Duration::from_secs(1) * Self::CLIENTS / Self::PER_SECOND;
                let mut failures = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    thread::sleep((started + pause * number).saturating_duration_since(Instant::now()));
                    match dial(to) {
                        Ok(_) => drop(made.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failures.push(format!("after {:?}: {error}", started.elapsed())),
                    }
                }
                failures
            })
        };
        let clients = (0..Self::CLIENTS).map(client).collect();
        let held = (0..8).map(|_| TcpStream::connect(to).unwrap()).collect();
        Self { stop, made, clients, held, started }
    }

    fn run_until(&self, connections: usize) {
        while self.made.load(Ordering::Relaxed) < connections && self.started.elapsed() < Duration::from_mins(2) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(self, what: &str) {
        self.run_until(CONNECTIONS);
        self.stop.store(true, Ordering::Relaxed);
        let failures: Vec<_> = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let made = self.made.load(Ordering::Relaxed);
        let rate = made as f64 / self.started.elapsed().as_secs_f64();
        println!("{what}: {made} connections, {rate:.0}/s, {} failed", failures.len());
        assert!(failures.is_empty(), "{failures:?}");
        assert!(made >= CONNECTIONS, "only {made} connections");
        for mut stream in self.held {
            let mut bytes = [0; 2];
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes[0], bytes[1], "one that was open goes on");
        }
    }
}

/// Another build of the programs: they draw endpoints by the clock.
fn other_build() -> &'static [u8] {
    const PRANDOM: [u8; 8] = [0x85, 0, 0, 0, 7, 0, 0, 0];
    let mut object = OBJECT.to_vec();
    let mut replaced = 0;
    for at in (0..object.len() - PRANDOM.len()).step_by(8) {
        if object[at..at + PRANDOM.len()] == PRANDOM {
            // bpf_ktime_get_ns
            object[at + 4] = 5;
            replaced += 1;
        }
    }
    assert!(replaced > 0);
    Box::leak(object.into_boxed_slice())
}

fn no_connection_fails_while_programs_are_replaced() {
    let node = Node::new();
    let wanted = snapshot([web(&[1, 2])]);
    let mut backend = node.open();
    full(&mut backend, &wanted);
    let load = Load::start(vip(1));
    for round in 1..=5 {
        let object = if round % 2 == 0 { OBJECT } else { other_build() };
        drop(backend);
        backend = Ebpf::open_with(&node.config(), object).unwrap();
        assert_eq!(full(&mut backend, &wanted).changed, 0, "the maps are as they were");
        changes(&mut backend, &snapshot([web(&[2, 3])]));
        changes(&mut backend, &wanted);
        load.run_until(CONNECTIONS / 5 * round);
    }
    load.end("programs replaced");
}

fn no_connection_fails_while_maps_grow() {
    let node = Node::new();
    let others = |count: u32| {
        (0..count).map(|number| {
            let mut other = service(&format!("other-{number}"), Protocol::Tcp, 2, &[1, 2, 3]);
            for frontend in &mut other.frontends {
                let [high, middle, low] = [number >> 16, number >> 8, number].map(|it| u8::try_from(it & 255).unwrap());
                frontend.ip = match frontend.ip {
                    IpAddr::V4(_) => [10, 97 + high, middle, low].into(),
                    IpAddr::V6(_) => [0xfd00, 0x97, 0, 0, 0, high.into(), middle.into(), low.into()].into(),
                };
            }
            other
        })
    };
    let mut backend = node.open();
    let sticky = SessionAffinity::ClientIp { timeout: Duration::from_secs(600) };
    let cart = ServicePort { session_affinity: sticky, ..service("cart", Protocol::Tcp, 9, &[1, 2, 3, 4]) };
    full(&mut backend, &snapshot([web(&[1, 2]), cart.clone()]));
    let had = dial(vip(9)).unwrap();
    let load = Load::start(vip(1));
    for (round, count) in [(1, 3_000), (2, 9_000), (3, 20_000), (4, 0), (5, 20_000)] {
        let endpoints = if round % 2 == 0 { [1, 2] } else { [3, 4] };
        changes(&mut backend, &snapshot(others(count).chain([web(&endpoints), cart.clone()])));
        load.run_until(CONNECTIONS / 5 * round);
    }
    load.end("maps grown");
    assert!((0..10).all(|_| dial(vip(9)).unwrap() == had), "a client stays with its endpoint");
    assert!([3, 4].contains(&dial(vip(1)).unwrap()));
    assert!(full(&mut backend, &snapshot(others(20_000).chain([web(&[3, 4]), cart]))).repaired.is_empty());
}

fn a_restart_writes_nothing_and_keeps_what_clients_have() {
    let node = Node::new();
    let sticky = SessionAffinity::ClientIp { timeout: Duration::from_secs(600) };
    let wanted = snapshot([
        web(&[1, 2]),
        ServicePort { session_affinity: sticky, ..service("cart", Protocol::Tcp, 2, &[1, 2, 3, 4]) },
        service("dns", Protocol::Udp, 3, &[1, 2]),
    ]);
    let mut backend = node.open();
    full(&mut backend, &wanted);
    let had = dial(vip(2)).unwrap();
    let open = TcpStream::connect(vip(1)).unwrap();
    drop(backend);
    assert!([1, 2].contains(&dial(vip(1)).unwrap()), "without a daemon as well");
    let mut backend = node.open();
    let report = full(&mut backend, &wanted);
    assert_eq!((report.changed, report.repaired.len(), report.destroyed), (0, 0, 0));
    assert!((0..10).all(|_| dial(vip(2)).unwrap() == had), "a client stays with its endpoint");
    assert_eq!(open.peer_addr().unwrap(), vip(1), "a socket knows what it dialled");
    // What changed while nobody was there.
    drop(backend);
    let mut backend = node.open();
    full(&mut backend, &snapshot([web(&[3])]));
    assert!((0..8).all(|_| dial(vip(1)).unwrap() == 3));
    assert!(dial(vip(2)).is_err(), "it is gone");
}

fn what_somebody_spoils_is_put_right() {
    let node = Node::new();
    let wanted = snapshot([web(&[1, 2])]);
    let mut backend = node.open();
    full(&mut backend, &wanted);
    assert!(full(&mut backend, &wanted).repaired.is_empty());
    let pins = node.pins.join("v1");
    let mut check = |what: &str, words: &str| {
        let report = full(&mut backend, &wanted);
        assert!(report.repaired.iter().any(|line| line.contains(words)), "{what}: {:?}", report.repaired);
        assert!([1, 2].contains(&dial(vip(1)).unwrap()), "{what}");
        assert_eq!(TcpStream::connect(vip(1)).unwrap().peer_addr().unwrap(), vip(1), "{what}");
        assert!(full(&mut backend, &wanted).repaired.is_empty(), "{what}: once");
    };
    std::fs::remove_file(pins.join("links/connect4")).unwrap();
    check("a link's pin", "the pin of the link connect4");
    std::fs::remove_dir_all(pins.join("maps")).unwrap();
    check("the maps' pins", "the pin of the map SERVICES");
    let mut addresses = node.map::<AddressValue>(map::ADDRESSES);
    addresses.remove(&Address::from(vip(1).ip())).unwrap();
    check("an entry", "ADDRESSES: 10.96.0.1 was missing");
    addresses.insert(Address::from(IpAddr::from([1, 1, 1, 1])), AddressValue { flags: 1, service_id: 0 }, 0).unwrap();
    check("somebody's entry", "ADDRESSES: 1.1.1.1 is nobody's");
    detach(&pins.join("links/connect4"));
    check("a link detached by force", "the program connect4 was detached");
}

/// `BPF_LINK_DETACH`, as `bpftool link detach` does it.
fn detach(pin: &Path) {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let get: [u64; 2] = [path.as_ptr() as u64, 0];
    // SAFETY: `union bpf_attr` for either command, of the length that is told.
    unsafe {
        let link = libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, get.as_ptr(), size_of_val(&get));
        assert!(link >= 0, "{}", std::io::Error::last_os_error());
        let detach = [u32::try_from(link).unwrap()];
        let detached = libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, detach.as_ptr(), size_of_val(&detach));
        assert_eq!(detached, 0, "{}", std::io::Error::last_os_error());
        libc::close(i32::try_from(link).unwrap());
    }
}

fn ask(socket: &UdpSocket) -> std::io::Result<u8> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(b"x")?;
    let mut byte = [0];
    socket.recv(&mut byte)?;
    Ok(byte[0])
}

fn connected(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket
}

fn a_udp_socket_loses_an_endpoint_that_is_gone() {
    let node = Node::new();
    let dns = |endpoints: &[u8]| snapshot([service("dns", Protocol::Udp, 1, endpoints)]);
    let mut backend = node.open();
    full(&mut backend, &dns(&[1]));
    let (flow, direct) = (connected(vip(1)), connected(endpoint(1)));
    assert_eq!(ask(&flow).unwrap(), 1);
    assert_eq!(flow.peer_addr().unwrap(), vip(1));
    // Its endpoint is one of several now: nothing happens.
    assert_eq!(changes(&mut backend, &dns(&[1, 2])).destroyed, 0);
    assert_eq!(ask(&flow).unwrap(), 1);
    assert_eq!(changes(&mut backend, &dns(&[2])).destroyed, 1);
    assert_eq!(flow.take_error().unwrap().unwrap().kind(), ErrorKind::ConnectionAborted);
    flow.connect(vip(1)).unwrap();
    assert_eq!(ask(&flow).unwrap(), 2, "it has connected anew");
    assert_eq!(ask(&direct).unwrap(), 1, "who has never dialled the Service is left alone");
    // While nobody was there.
    drop(backend);
    let mut backend = node.open();
    assert_eq!(full(&mut backend, &dns(&[3])).destroyed, 1);
    flow.take_error().unwrap();
    flow.connect(vip(1)).unwrap();
    assert_eq!(ask(&flow).unwrap(), 3);
    // The Service goes as a whole.
    assert_eq!(changes(&mut backend, &snapshot([])).destroyed, 1);
}

fn connection_to_an_endpoint_that_is_gone(closes: bool) {
    let node = Node::new();
    let mut config = node.config();
    config.ebpf.close_stale_connections = closes;
    let mut backend = Ebpf::open(&config).unwrap();
    full(&mut backend, &snapshot([web(&[1])]));
    let mut open = TcpStream::connect(vip(1)).unwrap();
    let mut direct = TcpStream::connect(endpoint(1)).unwrap();
    let ping = |stream: &mut TcpStream| {
        let mut byte = [0];
        stream.write_all(b"x").and_then(|()| stream.read_exact(&mut byte))
    };
    ping(&mut open).unwrap();
    // It serves those that it has, as one that terminates.
    let mut draining = web(&[1, 2]);
    for sets in [&mut draining.v4, &mut draining.v6] {
        sets.cluster = sets.serving[1..].into();
        sets.local = sets.serving[1..].into();
    }
    assert_eq!(changes(&mut backend, &snapshot([draining])).destroyed, 0);
    ping(&mut open).unwrap();
    assert_eq!(changes(&mut backend, &snapshot([web(&[2])])).destroyed, usize::from(closes));
    assert_eq!(ping(&mut open).is_err(), closes);
    ping(&mut direct).unwrap();
}

fn what_is_in_the_maps_is_told() {
    let node = Node::new();
    let mut backend = node.open();
    full(&mut backend, &snapshot([web(&[1, 2]), service("empty", Protocol::Tcp, 2, &[])]));
    for _ in 0..20 {
        dial(vip(1)).unwrap();
    }
    assert_eq!(dial(vip(2)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(dial(SocketAddr::new(vip(1).ip(), 81)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let observed = Ebpf::open_for_cleanup(&node.config()).unwrap().observe().unwrap();
    let names: Vec<_> = observed.service_ports.iter().map(|it| (it.name.as_str(), it.family)).collect();
    let [v4, v6] = IpFamily::ALL;
    assert_eq!(names, [("test/empty", v4), ("test/empty", v6), ("test/web", v4), ("test/web", v6)]);
    assert_eq!(observed.service_ports[0].cluster, Some(ObservedPool::Reject));
    assert_eq!(observed.service_ports[2].cluster, Some(ObservedPool::Endpoints(vec![endpoint(1), endpoint(2)])));
    let counters = Counters::read(&node.pins).unwrap().unwrap();
    let of = |name: &str| counters.service_ports.iter().find(|it| it.name == name && it.family == v4).unwrap();
    assert_eq!((of("test/web").total(), of("test/web").unknown_port), (20, 1));
    assert_eq!(of("test/empty").no_endpoints, 1);
    // Who is gone is not counted any more.
    full(&mut backend, &snapshot([web(&[1])]));
    let counters = Counters::read(&node.pins).unwrap().unwrap();
    assert_eq!(counters.service_ports.iter().map(|it| it.connections.len()).sum::<usize>(), 2);
}

fn an_exchange_of_maps_that_was_cut_short_is_finished() {
    let node = Node::new();
    let wanted = snapshot([web(&[1])]);
    full(&mut node.open(), &wanted);
    let version = node.pins.join("v1");
    // The old maps are moved away, and the new ones are not yet in their place.
    std::fs::rename(version.join("maps"), version.join("maps-next")).unwrap();
    let report = full(&mut node.open(), &wanted);
    assert_eq!(report.changed, 0);
    assert!(version.join("maps/SERVICES").exists() && !version.join("maps-next").exists());
    // The new ones are there, and the old ones not yet gone.
    std::fs::create_dir(version.join("maps-next")).unwrap();
    assert_eq!(full(&mut node.open(), &wanted).changed, 0);
    assert!(!version.join("maps-next").exists());
    assert_eq!(dial(vip(1)).unwrap(), 1);
}

fn cleanup_leaves_nothing() {
    let node = Node::new();
    let mut backend = node.open();
    full(&mut backend, &snapshot([web(&[1])]));
    assert_eq!(dial(vip(1)).unwrap(), 1);
    drop(backend);
    for _ in 0..2 {
        Ebpf::open_for_cleanup(&node.config()).unwrap().cleanup().unwrap();
        assert!(!node.pins.exists());
    }
    assert!(TcpStream::connect_timeout(&vip(1), Duration::from_millis(300)).is_err());
}
