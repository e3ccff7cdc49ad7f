//! Tables that a former version wrote, with nft and in other rules, are taken over while connections are made.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use nix::libc::linger;
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};
use tollgate_model::name::{IpFamily, Protocol};
use tollgate_model::service::SessionAffinity;
use tollgate_model::snapshot::{ServicePort, Snapshot};
use tollgate_proxy::backend::nftables::Nftables;
use tollgate_proxy::backend::{Backend, DetectLocal, NodeConfig, Report, Scope};

use crate::netns::isolated;
use crate::sample::{service, snapshot};

mod netns;
mod sample;

/// What the last version that ran nft gave it.
const FORMER: [&str; 2] = [include_str!("former/ip.nft"), include_str!("former/ip6.nft")];
const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);

fn main() -> ExitCode {
    let tests: [(&str, fn()); 2] = [
        ("former_tables_are_taken_over_in_place", former_tables_are_taken_over_in_place),
        ("no_connection_fails_while_tables_are_taken_over", no_connection_fails_while_tables_are_taken_over),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, move || isolated(test)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn config() -> NodeConfig {
    NodeConfig {
        families: IpFamily::ALL.to_vec(),
        detect_local: DetectLocal::ClusterCidr(
            ["10.244.0.0/16", "fd00:244::/48"].map(|cidr| cidr.parse().unwrap()).into(),
        ),
        service_cidrs: ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().unwrap()).into(),
        ..NodeConfig::default()
    }
}

/// Two of the Services that the former tables hold.
fn wanted(web: &[u8]) -> Snapshot {
    let affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) };
    let cart = ServicePort { session_affinity: affinity, ..service("cart", Protocol::Tcp, 2, &[11, 12]) };
    snapshot([service("web", Protocol::Tcp, 1, web), cart])
}

#[track_caller]
fn run(command: &str, input: &str) -> String {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn load_former() {
    FORMER.iter().for_each(|text| drop(run("nft -f -", text)));
}

fn sync(backend: &mut Nftables, wanted: &Snapshot) -> Report {
    backend.sync(wanted, Scope::Full).unwrap()
}

/// The lines of a listing that have one of these words.
fn lines(listing: &str, words: &[&str]) -> Vec<String> {
    let has_one = |line: &&str| words.iter().any(|word| line.contains(word));
    listing.lines().filter(has_one).map(|line| line.trim().to_owned()).collect()
}

fn former_tables_are_taken_over_in_place() {
    load_former();
    run("nft add element ip tollgate affinity { 0:c000 . 10.244.0.9 timeout 3h : 0:c011 }", "");
    let before = run("nft -a -s list ruleset", "");
    let mut backend = Nftables::open(&config()).unwrap();
    assert!(sync(&mut backend, &wanted(&[1, 12, 13])).changed > 0);
    let after = run("nft -a -s list ruleset", "");
    // Established connections stay with the chains that hooks call: these have the same handles.
    let chains = ["chain prerouting", "chain output", "chain postrouting", "chain forward"];
    assert_eq!(lines(&after, &chains).len(), 2 * chains.len());
    assert_eq!(lines(&after, &chains), lines(&before, &chains));
    // Numbers, and the memory of affinity. (IPv6's has other keys now.)
    for kept in ["comment \"test/web\" : 2:c01a", "comment \"test/cart\" : 0:c013", "10.244.0.9 timeout 3h"] {
        assert!(before.contains(kept) && after.contains(kept), "{kept}");
    }
    for gone in ["test/shop", "vmap {", "no-gap-on-update 2", "jhash"] {
        assert!(before.contains(gone) && !after.contains(gone), "{gone}");
    }
    // What nobody needs any more goes at the next full sync.
    sync(&mut backend, &wanted(&[1, 12, 13]));
    let report = sync(&mut backend, &wanted(&[1, 12, 13]));
    assert_eq!((report.changed, report.repaired), (0, vec![]));
}

/// Connects to the VIP so many times, and tells which failed.
fn connect(times: u32) -> Vec<String> {
    let attempt = |number| {
        // As fast as it can, it would leave nothing of the machine to those who take over.
        thread::sleep(Duration::from_micros(100));
        let stream = TcpStream::connect_timeout(&VIP, Duration::from_millis(500));
        // Reset and not closed, so that nothing of it stays.
        let reset = |stream| setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
        stream.map(reset).err().map(|error| format!("connection {number}: {error}"))
    };
    (0..times).filter_map(attempt).collect()
}

/// Pods on this machine's own loopback interface, and one listener for all of them.
fn pods() {
    run("ip link set lo up", "");
    for host in [1, 9, 11, 12, 13] {
        run(&format!("ip address add 10.244.0.{host}/32 dev lo"), "");
    }
    // From a pod, so that nothing is masqueraded: random ports would meet those of connections that were just reset.
    run("ip route add 10.96.0.0/16 dev lo src 10.244.0.9", "");
    let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    // On a busy machine the thread below may be late by more connections than the standard library lets wait.
    listen(&listener, Backlog::new(4096).unwrap()).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
}

fn no_connection_fails_while_tables_are_taken_over() {
    const CONNECTIONS: u32 = 20_000;
    pods();
    load_former();
    let client = thread::spawn(|| connect(CONNECTIONS));
    // First from the former tables, then by a new process each time; and changes.
    let (mut last, mut takeovers) = (None, 0);
    while !client.is_finished() {
        thread::sleep(Duration::from_millis(200));
        let mut backend = Nftables::open(&config()).unwrap();
        sync(&mut backend, &wanted(&[1, 12, 13]));
        backend.sync(&wanted(&[12, 13]), Scope::Changes).unwrap();
        (last, takeovers) = (Some(backend), takeovers + 1);
    }
    assert_eq!(client.join().unwrap(), Vec::<String>::new());
    assert!(takeovers > 5, "only {takeovers}");
    // Had there been a gap, this is how it would have shown.
    last.unwrap().cleanup().unwrap();
    assert_ne!(connect(1), Vec::<String>::new());
}
