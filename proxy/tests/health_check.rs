//! Health check node ports on real sockets, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tollgate_model::name::NamespacedName;
use tollgate_model::snapshot::{HealthCheck, Snapshot};
use tollgate_proxy::health::Health;
use tollgate_proxy::health_check::{HealthChecks, ListenOn};
use tollgate_proxy::metrics::Metrics;
use tollgate_proxy::source::Revision;
use tollgate_proxy::sync::Desired;

use crate::netns::isolated;

mod netns;

fn main() -> ExitCode {
    let tests: [(&str, fn()); 7] = [
        ("health_node_port", health_node_port),
        (
            "an_endpoint_counts_once_the_kernel_has_it_and_no_longer_than_wanted",
            an_endpoint_counts_once_the_kernel_has_it,
        ),
        ("a_port_in_use_is_tried_again_and_holds_up_nobody", a_port_in_use_is_tried_again),
        ("a_port_passes_from_one_service_to_another", a_port_passes_from_one_service_to_another),
        ("a_connection_outlives_no_health_check", a_connection_outlives_no_health_check),
        ("chosen_node_addresses_alone_answer_and_are_followed", chosen_node_addresses_alone_answer),
        ("an_unhealthy_proxy_takes_no_traffic", an_unhealthy_proxy_takes_no_traffic),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, move || isolated(test)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// A node's health checks at work.
struct Node {
    desired: watch::Sender<Option<Desired>>,
    applied: watch::Sender<Option<Snapshot>>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    _runtime: Runtime,
}

impl Node {
    fn start(listen_on: ListenOn) -> Self {
        let commands = "link set lo up\naddress add 192.0.2.1/24 dev lo\naddress add 192.0.2.2/24 dev lo\n\
                        address add 2001:db8::1/64 dev lo nodad\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), commands).unwrap();
        assert!(Command::new("ip").arg("-batch").arg(file.path()).status().unwrap().success());
        // Its threads are in this thread's network namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (desired, desired_receiver) = watch::channel(None);
        let (applied, applied_receiver) = watch::channel(None);
        let (health, metrics) = (Arc::new(Health::new(Duration::ZERO)), Arc::new(Metrics::new()));
        let checks = HealthChecks::new(listen_on, health.clone(), metrics.clone());
        runtime.spawn(checks.run(desired_receiver, applied_receiver));
        Self { desired, applied, health, metrics, _runtime: runtime }
    }

    fn want(&self, snapshot: &Snapshot) {
        self.desired.send_replace(Some(Desired { snapshot: snapshot.clone(), revision: Revision::default() }));
    }

    fn apply(&self, snapshot: &Snapshot) {
        self.want(snapshot);
        self.applied.send_replace(Some(snapshot.clone()));
    }
}

/// Services with their health check node ports and numbers of ready endpoints.
fn snapshot(checks: &[(&str, u16, usize)]) -> Snapshot {
    let checks = checks.iter().map(|(name, node_port, ready_local)| {
        let check = HealthCheck { node_port: *node_port, ready_local: *ready_local };
        (NamespacedName::new("test", *name), Arc::new(check))
    });
    Snapshot { health_checks: checks.collect(), ..Snapshot::default() }
}

/// What is answered on a connection, up to the end of the body.
fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /any/path HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.ends_with("\n}") {
        match stream.read(&mut buffer)? {
            0 => break,
            read => text += std::str::from_utf8(&buffer[..read]).unwrap(),
        }
    }
    Ok(text)
}

fn dial(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    ask(&mut TcpStream::connect_timeout(&address, Duration::from_secs(10)).ok()?).ok()
}

/// Code, weight, and whether the proxy says it is healthy; `None` if nobody listens.
fn told(address: &str) -> Option<(u16, usize, bool)> {
    let text = dial(address)?;
    let weight = text.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: ")).unwrap();
    let code = text.split(' ').nth(1).unwrap();
    Some((code.parse().unwrap(), weight.parse().unwrap(), text.contains("\"serviceProxyHealthy\": true")))
}

fn eventually<T: PartialEq + std::fmt::Debug>(expected: T, what: impl Fn() -> T) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while what() != expected {
        assert!(Instant::now() < deadline, "{:?}, not {expected:?}", what());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn health_node_port() {
    let node = Node::start(ListenOn::All);
    node.apply(&snapshot(&[("web", 32000, 2), ("idle", 32001, 0)]));
    for ip in ["192.0.2.1", "192.0.2.2", "127.0.0.1", "[2001:db8::1]", "[::1]"] {
        eventually(Some((200, 2, true)), || told(&format!("{ip}:32000")));
        eventually(Some((503, 0, true)), || told(&format!("{ip}:32001")));
    }
    let answer = dial("192.0.2.1:32000").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"test\",\n\t\t\"name\": \"web\"\n\t},\n\
                    \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body, expected);
    for line in ["HTTP/1.1 200 OK", "content-type: application/json", "x-content-type-options: nosniff"] {
        assert!(head.lines().any(|found| found == line), "{head}");
    }
    eventually(2, || node.metrics.health_check_node_ports.get());
    node.apply(&snapshot(&[("web", 32000, 3)]));
    eventually(Some((200, 3, true)), || told("192.0.2.1:32000"));
    eventually(None, || told("192.0.2.1:32001"));
    node.apply(&snapshot(&[("web", 32002, 3)]));
    eventually(Some((200, 3, true)), || told("192.0.2.1:32002"));
    assert_eq!(told("192.0.2.1:32000"), None);
    node.apply(&snapshot(&[]));
    eventually(None, || told("192.0.2.1:32002"));
    eventually(0, || node.metrics.health_check_node_ports.get());
}

fn an_endpoint_counts_once_the_kernel_has_it() {
    let node = Node::start(ListenOn::All);
    node.want(&snapshot(&[("web", 32000, 2)]));
    eventually(Some((503, 0, true)), || told("192.0.2.1:32000"));
    node.apply(&snapshot(&[("web", 32000, 2)]));
    eventually(Some((200, 2, true)), || told("192.0.2.1:32000"));
    node.want(&snapshot(&[("web", 32000, 0)]));
    eventually(Some((503, 0, true)), || told("192.0.2.1:32000"));
}

fn a_port_in_use_is_tried_again() {
    let node = Node::start(ListenOn::All);
    let other = TcpListener::bind("192.0.2.1:32000").unwrap();
    node.apply(&snapshot(&[("taken", 32000, 1), ("web", 32001, 1)]));
    eventually(Some((200, 1, true)), || told("192.0.2.1:32001"));
    eventually((1, 1), || {
        (node.metrics.health_check_node_ports.get(), node.metrics.health_check_node_ports_failed.get())
    });
    // IPv6 is free.
    eventually(Some((200, 1, true)), || told("[2001:db8::1]:32000"));
    node.apply(&snapshot(&[("taken", 32000, 1), ("web", 32001, 2), ("late", 32002, 1)]));
    eventually(Some((200, 2, true)), || told("192.0.2.1:32001"));
    eventually(Some((200, 1, true)), || told("192.0.2.1:32002"));
    drop(other);
    eventually(Some((200, 1, true)), || told("192.0.2.1:32000"));
    eventually(0, || node.metrics.health_check_node_ports_failed.get());
}

fn a_port_passes_from_one_service_to_another() {
    let node = Node::start(ListenOn::All);
    for round in 1..20 {
        let (a, b) = if round % 2 == 0 { (32000, 32001) } else { (32001, 32000) };
        node.apply(&snapshot(&[("a", a, round), ("b", b, 100 + round)]));
        eventually(Some((200, round, true)), || told(&format!("192.0.2.1:{a}")));
        eventually(Some((200, 100 + round, true)), || told(&format!("192.0.2.1:{b}")));
        assert_eq!(node.metrics.health_check_node_ports_failed.get(), 0, "nothing was in its own way");
    }
}

fn a_connection_outlives_no_health_check() {
    let node = Node::start(ListenOn::All);
    node.apply(&snapshot(&[("web", 32000, 1)]));
    eventually(Some((200, 1, true)), || told("192.0.2.1:32000"));
    let mut stream = TcpStream::connect("192.0.2.1:32000").unwrap();
    assert!(ask(&mut stream).unwrap().starts_with("HTTP/1.1 200"));
    node.apply(&snapshot(&[]));
    eventually(None, || told("192.0.2.1:32000"));
    assert_eq!(ask(&mut stream).unwrap_or_default(), "", "a load balancer that keeps its connection must notice");
}

fn chosen_node_addresses_alone_answer() {
    let node = Node::start(ListenOn::NodePortAddresses);
    let on = |ips: &[&str]| {
        let mut snapshot = snapshot(&[("web", 32000, 1)]);
        snapshot.node_port_addresses = Arc::new(ips.iter().map(|ip| ip.parse().unwrap()).collect());
        snapshot
    };
    let answering = || {
        let all = ["192.0.2.1", "192.0.2.2", "[2001:db8::1]", "127.0.0.1"];
        all.into_iter().filter(|ip| told(&format!("{ip}:32000")).is_some()).collect::<Vec<_>>()
    };
    node.apply(&on(&["192.0.2.1"]));
    eventually(vec!["192.0.2.1"], answering);
    node.apply(&on(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]));
    eventually(vec!["192.0.2.1", "192.0.2.2", "[2001:db8::1]"], answering);
    // An address that the node has lost by now.
    node.apply(&on(&["192.0.2.2", "198.51.100.9"]));
    eventually(vec!["192.0.2.2"], answering);
    eventually(1, || node.metrics.health_check_node_ports_failed.get());
    node.apply(&on(&[]));
    eventually(vec![], answering);
    eventually(0, || node.metrics.health_check_node_ports_failed.get());
}

fn an_unhealthy_proxy_takes_no_traffic() {
    let node = Node::start(ListenOn::All);
    node.apply(&snapshot(&[("web", 32000, 1)]));
    eventually(Some((200, 1, true)), || told("192.0.2.1:32000"));
    node.health.queued();
    eventually(Some((503, 1, false)), || told("192.0.2.1:32000"));
    node.health.synced(false);
    node.health.set_node_is_being_deleted(true);
    eventually(Some((200, 1, true)), || told("192.0.2.1:32000"));
}
