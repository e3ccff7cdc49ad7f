//! Deletion of stale UDP flows on the real kernel, each test in a network namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use tollgate_model::name::Protocol;
use tollgate_proxy::conntrack::{self, StaleFlows};

use crate::netns::isolated;
use crate::sample::{service, snapshot};

mod netns;
mod sample;

fn main() -> ExitCode {
    let tests: [(&str, fn()); 6] = [
        ("a_few_stale_flows_go_and_no_other", a_few_stale_flows_go_and_no_other),
        ("many_stale_flows_go_and_no_other", many_stale_flows_go_and_no_other),
        ("flows_that_were_never_translated_go", flows_that_were_never_translated_go),
        ("nothing_to_delete_is_no_error", nothing_to_delete_is_no_error),
        ("a_change_deletes_what_it_leaves_stale", a_change_deletes_what_it_leaves_stale),
        ("a_start_deletes_what_leads_elsewhere_than_to_serving_endpoints", reconcile),
    ];
    let trials = tests.map(|(name, test)| Trial::test(name, move || isolated(test)));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// Who dialled what, and who answers.
type Flow = (&'static str, u16, String, String);

/// A flow from a client's port through `dialled` to `answers`, both `address port`.
fn flow(protocol: &'static str, client_port: u16, dialled: &str, answers: &str) -> Flow {
    (protocol, client_port, dialled.to_owned(), answers.to_owned())
}

fn make(flows: &[Flow]) {
    for (protocol, client_port, dialled, answers) in flows {
        let (vip, vip_port) = dialled.split_once(' ').unwrap();
        let (ip, port) = answers.split_once(' ').unwrap();
        let client = if vip.contains(':') { "fd00::9" } else { "192.0.2.9" };
        let state = if *protocol == "tcp" { "--state ESTABLISHED" } else { "" };
        let arguments = format!(
            "-I -p {protocol} -t 600 {state} -s {client} -d {vip} --sport {client_port} --dport {vip_port} \
             -r {ip} -q {client} --reply-port-src {port} --reply-port-dst {client_port}"
        );
        let output = Command::new("conntrack").args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "conntrack {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The flows that are there.
fn flows() -> BTreeSet<Flow> {
    let output = Command::new("conntrack").args(["-L"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let parse = |line: &str| {
        let all = |key: &str| -> Vec<String> {
            line.split(' ').filter_map(|word| word.strip_prefix(key)).map(str::to_owned).collect()
        };
        let (src, dst, sport, dport) = (all("src="), all("dst="), all("sport="), all("dport="));
        let protocol = if line.starts_with("tcp") { "tcp" } else { "udp" };
        flow(
            protocol,
            sport[0].parse().unwrap(),
            &format!("{} {}", dst[0], dport[0]),
            &format!("{} {}", src[1], sport[1]),
        )
    };
    text.lines().filter(|line| !line.is_empty()).map(parse).collect()
}

fn stale(vip: &str, to: &[&str]) -> StaleFlows {
    StaleFlows { dialled: vip.parse().unwrap(), to: to.iter().map(|to| to.parse().unwrap()).collect() }
}

/// Flows that differ from the stale ones in one thing each, in both families.
fn others() -> Vec<Flow> {
    let mut flows = Vec::new();
    for (vip, other_vip, gone, stays) in [
        ("10.96.0.1", "10.96.0.2", "10.244.0.1", "10.244.0.2"),
        ("fd00:96::1", "fd00:96::2", "fd00:244::1", "fd00:244::2"),
    ] {
        flows.extend([
            flow("udp", 1001, &format!("{vip} 53"), &format!("{stays} 5353")),
            flow("udp", 1002, &format!("{other_vip} 53"), &format!("{gone} 5353")),
            flow("udp", 1003, &format!("{vip} 54"), &format!("{gone} 5353")),
            flow("udp", 1004, &format!("{vip} 53"), &format!("{gone} 5354")),
            flow("udp", 1005, &format!("{gone} 5353"), &format!("{gone} 5353")),
            flow("tcp", 1006, &format!("{vip} 53"), &format!("{gone} 5353")),
        ]);
    }
    flows
}

fn doomed() -> Vec<Flow> {
    let ports = [2001, 2002, 2003];
    let v4 = ports.map(|port| flow("udp", port, "10.96.0.1 53", "10.244.0.1 5353"));
    let v6 = ports.map(|port| flow("udp", port, "fd00:96::1 53", "fd00:244::1 5353"));
    v4.into_iter().chain(v6).collect()
}

fn a_few_stale_flows_go_and_no_other() {
    make(&others());
    make(&doomed());
    let stale = [stale("10.96.0.1:53", &["10.244.0.1:5353"]), stale("[fd00:96::1]:53", &["[fd00:244::1]:5353"])];
    assert!(conntrack::delete(&stale).unwrap() >= 4, "one filtered deletion, and three IPv6 flows");
    assert_eq!(flows(), others().into_iter().collect());
}

fn many_stale_flows_go_and_no_other() {
    make(&others());
    make(&doomed());
    let mut all = vec![stale("10.96.0.1:53", &["10.244.0.1:5353"]), stale("[fd00:96::1]:53", &["[fd00:244::1]:5353"])];
    all.extend((10..40).map(|host| stale(&format!("10.96.0.{host}:53"), &["10.244.0.1:5353"])));
    assert_eq!(conntrack::delete(&all).unwrap(), doomed().len(), "each by itself");
    assert_eq!(flows(), others().into_iter().collect());
}

fn flows_that_were_never_translated_go() {
    make(&others());
    make(&[flow("udp", 2001, "10.96.0.1 53", "10.96.0.1 53"), flow("udp", 2002, "fd00:96::1 53", "fd00:96::1 53")]);
    conntrack::delete(&[stale("10.96.0.1:53", &["10.96.0.1:53"]), stale("[fd00:96::1]:53", &["[fd00:96::1]:53"])])
        .unwrap();
    assert_eq!(flows(), others().into_iter().collect());
}

fn nothing_to_delete_is_no_error() {
    assert_eq!(conntrack::delete(&[]).unwrap(), 0);
    conntrack::delete(&[stale("10.96.0.1:53", &["10.244.0.1:5353"])]).unwrap();
    assert_eq!(conntrack::reconcile(&snapshot([]), &[]).unwrap(), 0);
}

fn reconcile() {
    // The frontends are 10.96.0.1:80 and fd00:96::1 port 80, and the endpoints number 1 and 2 of the pods, port 8080.
    let mut udp = service("dns", Protocol::Udp, 1, &[1, 2]);
    udp.node_port = Some(30053);
    let kept = [
        flow("udp", 1001, "10.96.0.1 80", "10.244.0.1 8080"),
        flow("udp", 1002, "fd00:96::1 80", "fd00:244::2 8080"),
        flow("udp", 1003, "10.96.0.9 80", "10.244.0.9 8080"),
        flow("udp", 1004, "10.96.0.1 81", "10.244.0.9 8080"),
        flow("tcp", 1005, "10.96.0.1 80", "10.244.0.9 8080"),
        flow("udp", 1006, "192.0.2.1 30053", "10.244.0.1 8080"),
        flow("udp", 1007, "192.0.2.2 30053", "10.244.0.9 8080"),
        flow("tcp", 1008, "192.0.2.1 30053", "10.244.0.9 8080"),
        flow("udp", 1009, "2001:db8::1 30053", "fd00:244::1 8080"),
        flow("udp", 1010, "10.96.0.8 80", "10.244.0.2 8080"),
    ];
    make(&kept);
    make(&[
        flow("udp", 2001, "10.96.0.1 80", "10.244.0.3 8080"),
        flow("udp", 2002, "10.96.0.1 80", "10.244.0.1 8081"),
        flow("udp", 2003, "10.96.0.1 80", "10.96.0.1 80"),
        flow("udp", 2004, "fd00:96::1 80", "fd00:244::3 8080"),
        flow("udp", 2005, "192.0.2.1 30053", "10.244.0.3 8080"),
        flow("udp", 2006, "192.0.2.1 30053", "192.0.2.1 30053"),
        flow("udp", 2007, "2001:db8::1 30053", "fd00:244::3 8080"),
        flow("udp", 2008, "10.96.0.8 80", "10.244.0.1 8080"),
    ]);
    let mut wanted = snapshot([udp, service("web", Protocol::Tcp, 1, &[3])]);
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
    wanted.node_port_addresses = Arc::new(addresses.into());
    // Failed before: one serves again by now, and one was dialled by an address that is no more.
    let owed = [stale("10.96.0.1:80", &["10.244.0.1:8080"]), stale("10.96.0.8:80", &["10.244.0.1:8080"])];
    assert_eq!(conntrack::reconcile(&wanted, &owed).unwrap(), 8);
    assert_eq!(flows(), kept.into());
    assert_eq!(conntrack::reconcile(&wanted, &owed).unwrap(), 0);
}

fn a_change_deletes_what_it_leaves_stale() {
    let dns = |hosts: &[u8]| {
        let mut udp = service("dns", Protocol::Udp, 1, hosts);
        udp.node_port = Some(30053);
        let mut snapshot = snapshot([udp]);
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        snapshot.node_port_addresses = Arc::new(addresses.into());
        snapshot
    };
    let kept = [
        flow("udp", 1001, "192.0.2.1 30053", "10.244.0.2 8080"),
        flow("udp", 1002, "2001:db8::1 30053", "fd00:244::2 8080"),
        flow("udp", 1003, "192.0.2.2 30053", "10.244.0.1 8080"),
        flow("tcp", 1004, "192.0.2.1 30053", "10.244.0.1 8080"),
    ];
    make(&kept);
    make(&[
        flow("udp", 2001, "192.0.2.1 30053", "10.244.0.1 8080"),
        flow("udp", 2002, "2001:db8::1 30053", "fd00:244::1 8080"),
        flow("udp", 2003, "10.96.0.1 80", "10.244.0.1 8080"),
    ]);
    conntrack::delete(&conntrack::stale_flows(&dns(&[1, 2]), &dns(&[2]))).unwrap();
    assert_eq!(flows(), kept.into());
}
