//! The node's own addresses as the kernel has them, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tollgate_model::name::IpFamily;
use tollgate_model::node::NodeAddresses;
use tollgate_model::store::{Event, Object};
use tollgate_proxy::metrics::Metrics;
use tollgate_proxy::source::Update;
use tollgate_proxy::source::address::Addresses;

use crate::netns::isolated;

mod netns;

fn main() -> ExitCode {
    let tests: [(&str, fn()); 7] = [
        ("addresses_that_come_and_go_are_told", addresses_that_come_and_go_are_told),
        ("addresses_of_service_devices_are_left_out", addresses_of_service_devices_are_left_out),
        ("the_primary_address_follows_the_default_route", the_primary_address_follows_the_default_route),
        ("a_link_that_goes_takes_its_addresses_along", a_link_that_goes_takes_its_addresses_along),
        ("an_address_counts_once_it_is_known_to_be_unique", an_address_counts_once_it_is_known_to_be_unique),
        ("lost_notices_lose_no_address", lost_notices_lose_no_address),
        ("a_storm_of_addresses_ends_in_what_is_there", a_storm_of_addresses_ends_in_what_is_there),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, move || isolated(test)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// The source at work, on this thread alone: while a test blocks, it stands still.
struct Watch {
    runtime: tokio::runtime::Runtime,
    updates: mpsc::Receiver<Update>,
    metrics: Arc<Metrics>,
    told: usize,
}

impl Watch {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let metrics = Arc::new(Metrics::new());
        let source = runtime.block_on(Addresses::open(metrics.clone())).unwrap();
        let (sender, updates) = mpsc::channel(16);
        runtime.spawn(source.run(sender));
        Self { runtime, updates, metrics, told: 0 }
    }

    /// Waits until the source says what `is_it`.
    fn until(&mut self, what: &str, is_it: impl Fn(&NodeAddresses) -> bool) -> NodeAddresses {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let received = self.runtime.block_on(async { timeout(left, self.updates.recv()).await });
            let Ok(Some(update)) = received else { panic!("{what}: the last that was told is {last:?}") };
            self.told += 1;
            let [Event::Apply(Object::NodeAddresses(addresses))] = &update.events[..] else { panic!("{update:?}") };
            if is_it(addresses) {
                return addresses.clone();
            }
            last = Some(addresses.clone());
        }
    }

    /// Waits until the source says exactly these, in this order.
    fn until_told(&mut self, expected: &[&str]) {
        self.until(&format!("{expected:?}"), |addresses| shown(addresses) == expected);
    }

    /// That it has nothing to say for a while.
    fn says_nothing(&mut self) {
        let received = self.runtime.block_on(async { timeout(Duration::from_millis(200), self.updates.recv()).await });
        assert!(received.is_err(), "{received:?}");
    }
}

/// Without link-local ones, which the kernel gives to devices by itself.
fn shown(addresses: &NodeAddresses) -> Vec<String> {
    let all = addresses.addresses.iter().map(ToString::to_string);
    all.filter(|ip| !ip.starts_with("fe80:")).collect()
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn batch(commands: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), commands).unwrap();
    ip(&format!("-batch {}", file.path().display()));
}

/// Two ends of a cable, both up, without the wait for IPv6 addresses to be known as unique.
fn link(name: &str) {
    ip(&format!("link add name {name} type veth peer name {name}-peer"));
    for end in [name.to_owned(), format!("{name}-peer")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{end}/accept_dad"), "0").unwrap();
        ip(&format!("link set dev {end} up"));
    }
}

fn addresses_that_come_and_go_are_told() {
    ip("link set lo up");
    link("a");
    ip("address add 192.0.2.1/24 dev a");
    let mut watch = Watch::start();
    watch.until_told(&["192.0.2.1"]);
    ip("address add 192.0.2.2/24 dev a");
    watch.until_told(&["192.0.2.1", "192.0.2.2"]);
    ip("address add 2001:db8::1/64 dev a");
    watch.until_told(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]);
    ip("address add 203.0.113.9/32 dev lo");
    watch.until_told(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "203.0.113.9"]);
    for gone in ["192.0.2.2/24 dev a", "203.0.113.9/32 dev lo"] {
        ip(&format!("address del {gone}"));
    }
    watch.until_told(&["192.0.2.1", "2001:db8::1"]);
    ip("address del 192.0.2.1/24 dev a");
    ip("address del 2001:db8::1/64 dev a");
    watch.until_told(&[]);
    // 127.0.0.1 and ::1 are on lo all the time.
    watch.says_nothing();
}

fn addresses_of_service_devices_are_left_out() {
    for (device, peer) in [("tollgate-ipvs", "x"), ("kube-ipvs0", "y"), ("other", "z")] {
        ip(&format!("link add name {device} type veth peer name {peer}"));
    }
    for device in ["tollgate-ipvs", "kube-ipvs0"] {
        ip(&format!("address add 10.96.0.1/32 dev {device}"));
    }
    ip("address add 192.0.2.1/24 dev other");
    let mut watch = Watch::start();
    watch.until_told(&["192.0.2.1"]);
    ip("address add 10.96.0.2/32 dev tollgate-ipvs");
    watch.says_nothing();
    ip("address add 10.96.0.2/32 dev other");
    watch.until_told(&["192.0.2.1", "10.96.0.2"]);
}

fn the_primary_address_follows_the_default_route() {
    for (name, host) in [("a", 1), ("b", 2)] {
        link(name);
        ip(&format!("address add 198.51.{host}.1/24 dev {name}"));
        ip(&format!("address add 2001:db8:{host}::1/64 dev {name}"));
    }
    let mut watch = Watch::start();
    let primary = |watch: &mut Watch, expected: [&str; 2]| {
        watch.until(&format!("{expected:?}"), |addresses| {
            IpFamily::ALL.map(|family| addresses.primary(family).unwrap().to_string()) == expected
        })
    };
    primary(&mut watch, ["198.51.1.1", "2001:db8:1::1"]);
    ip("route add default via 198.51.2.254");
    primary(&mut watch, ["198.51.2.1", "2001:db8:1::1"]);
    ip("-6 route add default via 2001:db8:2::254");
    primary(&mut watch, ["198.51.2.1", "2001:db8:2::1"]);
    ip("route add default via 198.51.1.254 metric 5 src 198.51.2.1");
    ip("route del default via 198.51.2.254");
    ip("link set dev b down");
    // The IPv4 address stays on a link that is down, and answers.
    primary(&mut watch, ["198.51.2.1", "2001:db8:1::1"]);
}

fn a_link_that_goes_takes_its_addresses_along() {
    link("a");
    link("b");
    ip("address add 192.0.2.1/24 dev a");
    ip("address add 192.0.2.2/24 dev b");
    let mut watch = Watch::start();
    watch.until_told(&["192.0.2.1", "192.0.2.2"]);
    ip("link del dev a");
    watch.until_told(&["192.0.2.2"]);
}

fn an_address_counts_once_it_is_known_to_be_unique() {
    let neighbour = Neighbour::start();
    ip(&format!("link add name a type veth peer name b netns {}", neighbour.0.id()));
    neighbour.ip("link set dev b up");
    neighbour.ip("address add 2001:db8::2/64 dev b nodad");
    ip("link set dev a up");
    let mut watch = Watch::start();
    watch.until_told(&[]);
    ip("address add 2001:db8::1/64 dev a");
    let start = Instant::now();
    watch.until_told(&["2001:db8::1"]);
    assert!(start.elapsed() > Duration::from_millis(100), "the kernel asks the link first");
    ip("address add 2001:db8::2/64 dev a");
    ip("address add 2001:db8::3/64 dev a");
    // Both were asked for; the neighbour has one.
    watch.until_told(&["2001:db8::1", "2001:db8::3"]);
    watch.says_nothing();
}

/// A host at the other end of a link.
struct Neighbour(Child);

impl Neighbour {
    fn start() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        while namespace(&child.id().to_string()) == namespace("thread-self") {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    fn ip(&self, arguments: &str) {
        let pid = self.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &pid, "ip"]).args(arguments.split_whitespace());
        assert!(command.status().unwrap().success(), "ip {arguments}");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn lost_notices_lose_no_address() {
    link("a");
    let mut watch = Watch::start();
    watch.until_told(&[]);
    // Nobody reads meanwhile, and the socket's buffer is full of notices that say nothing of addresses when they come.
    let mut commands = String::new();
    for number in 0..2000 {
        writeln!(commands, "link set dev a mtu {}", 1400 + number % 2).unwrap();
    }
    let mut expected = BTreeSet::new();
    for number in 0..4000 {
        let address = format!("10.{}.{}.1", number / 250, number % 250);
        writeln!(commands, "address add {address}/32 dev a").unwrap();
        expected.insert(address);
    }
    batch(&commands);
    watch.until("all 4000", |addresses| shown(addresses).into_iter().collect::<BTreeSet<_>>() == expected);
    assert_eq!(watch.metrics.node_addresses.get(), 4000 + 2, "and two that are link-local");
}

fn a_storm_of_addresses_ends_in_what_is_there() {
    link("a");
    ip("address add 192.0.2.1/24 dev a");
    let mut watch = Watch::start();
    watch.until_told(&["192.0.2.1"]);
    let mut commands = String::new();
    for number in 0..2000 {
        let address = format!("10.0.{}.{}/32 dev a", number / 250, number % 250);
        writeln!(commands, "address add {address}\naddress del {address}").unwrap();
    }
    commands += "address add 192.0.2.2/24 dev a\n";
    let storm = std::thread::spawn(move || batch(&commands));
    watch.until("what is there", |addresses| addresses.addresses.contains(&"192.0.2.2".parse().unwrap()));
    storm.join().unwrap();
    watch.says_nothing();
    assert!(watch.told < 2000, "{} updates for 4000 changes", watch.told);
}
