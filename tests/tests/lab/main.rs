//! The lab itself: is it what the other tests take it for?

mod bpf;
mod cgroup;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tollgate_api::v1::Key;
use tollgate_lab::cgroup::of_the_lab;
use tollgate_lab::harness::{judge, run};
use tollgate_lab::object::{self, Service, Slice};
use tollgate_lab::process::{Log, Program};
use tollgate_lab::{
    Cluster, ControlPlane, Counters, Family, HTTP_PORT, Load, NetNs, Outcome, Protocol, TCP_PORT, Topology, address,
    eventually, isolate,
};

type Case = fn(&mut Cluster) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("every_pod_reaches_every_pod_with_its_own_address", every_pod_reaches_every_pod_with_its_own_address),
    ("nodes_and_outside_hosts_reach_pods", nodes_and_outside_hosts_reach_pods),
    ("probes_tell_refused_unreachable_and_timeout_apart", probes_tell_refused_unreachable_and_timeout_apart),
    ("what_a_node_lets_go_astray_is_counted", what_a_node_lets_go_astray_is_counted),
    ("pods_are_on_hairpin_ports", pods_are_on_hairpin_ports),
    ("servers_stop_and_start", servers_stop_and_start),
    ("a_held_connection_notices_its_end", a_held_connection_notices_its_end),
    ("a_flow_keeps_its_source_port", a_flow_keeps_its_source_port),
    ("a_thousand_connections_a_second_all_succeed", a_thousand_connections_a_second_all_succeed),
    ("a_load_reports_what_failed", a_load_reports_what_failed),
    ("processes_run_inside_and_die_with_their_guard", processes_run_inside_and_die_with_their_guard),
    ("labs_stand_side_by_side", labs_stand_side_by_side),
    ("the_control_plane_stops_resumes_and_starts_anew", the_control_plane_stops_resumes_and_starts_anew),
    ("a_panic_leaves_nothing", a_panic_leaves_nothing),
];

fn main() -> ExitCode {
    // Before everything: this test starts itself again to be killed.
    if std::env::var_os(VICTIM).is_some() {
        return victim();
    }
    isolate();
    let trial =
        |&(name, case): &(&str, Case)| Trial::test(name, move || judge(&mut Cluster::new(Topology::default())?, case));
    let mut trials: Vec<_> = CASES.iter().map(trial).collect();
    let cgroups = of_the_lab();
    if let Err(why) = &cgroups {
        println!("{why:#}");
    }
    // Not for want of something that could be installed: xtask counts these apart.
    let trial_of_cgroups = |case| match &cgroups {
        Ok(_) => trial(case),
        Err(_) => trial(case).with_kind("this user may not make cgroups").with_ignored_flag(true),
    };
    trials.extend(cgroup::CASES.iter().map(trial_of_cgroups));
    trials.push(Trial::test("a_killed_caller_takes_everything_with_it", || {
        Ok(a_killed_caller_takes_everything_with_it().map_err(|error| format!("{error:#}"))?)
    }));
    run(trials)
}

fn every_pod_reaches_every_pod_with_its_own_address(cluster: &mut Cluster) -> Result<()> {
    for (family, protocol) in
        Family::ALL.iter().flat_map(|f| [Protocol::Tcp, Protocol::Udp, Protocol::Http].map(|p| (*f, p)))
    {
        for (from, to) in cluster.pods().flat_map(|from| cluster.pods().map(move |to| (from, to))) {
            let server = to.socket(family, protocol.pod_port());
            let reply = from.probe().dial(protocol, server);
            let answer = reply.answer().with_context(|| format!("{} to {server} over {protocol:?}", from.name()))?;
            ensure!(answer.by == to.name() && answer.peer == server, "{server} is {answer:?}");
            ensure!(answer.source.ip() == from.ip(family), "{} has another source: {answer:?}", from.name());
        }
    }
    Ok(())
}

fn nodes_and_outside_hosts_reach_pods(cluster: &mut Cluster) -> Result<()> {
    for family in Family::ALL {
        for pod in cluster.pods() {
            let server = pod.socket(family, TCP_PORT);
            let from_host = cluster.host(1).probe().tcp(server);
            ensure!(from_host.answer()?.source.ip() == cluster.host(1).ip(family), "{from_host}");
            let from_node = cluster.node(1).probe().tcp(server);
            let own = if pod.node() == 1 { cluster.node(1).bridge_ip(family) } else { cluster.node(1).ip(family) };
            ensure!(from_node.answer()?.source.ip() == own, "{from_node}");
        }
    }
    Ok(())
}

fn probes_tell_refused_unreachable_and_timeout_apart(cluster: &mut Cluster) -> Result<()> {
    let (pod, server) = (cluster.pod("pod-1a"), cluster.pod("pod-2a"));
    for family in Family::ALL {
        let nobody = address::service_cidr(family).hosts().nth(8).context("a large network")?;
        for protocol in Protocol::TRANSPORTS {
            let dial = |to| pod.probe().impatient().dial(protocol, to);
            ensure!(dial(server.socket(family, 1)).outcome == Outcome::Refused, "a closed port refuses");
            ensure!(dial((nobody, 80).into()).outcome == Outcome::Unreachable, "the gateway has no route");
            dial(server.socket(family, protocol.pod_port())).answer()?;
        }
    }
    // The pod's packets get nowhere: silence, where there was an answer before and is one again after.
    let links = cluster.node(2).netns().links()?;
    links.down("pod-2a")?;
    // One whose address is known to the node, or the node itself would say "unreachable" in time.
    for protocol in Protocol::TRANSPORTS {
        let reply = pod.probe().impatient().dial(protocol, server.socket(Family::V4, protocol.pod_port()));
        ensure!(reply.outcome == Outcome::Timeout, "nobody is there: {reply}");
    }
    links.up("pod-2a")?;
    eventually("the pod to be back", || pod.probe().udp(server.socket(Family::V4, 9091)).by().map(drop))
}

fn what_a_node_lets_go_astray_is_counted(cluster: &mut Cluster) -> Result<()> {
    for family in Family::ALL {
        let before = cluster.strays()?;
        let nobody = address::service_cidr(family).hosts().nth(8).context("a large network")?;
        cluster.pod("pod-1a").probe().impatient().udp((nobody, 80).into());
        let after = cluster.strays()?;
        ensure!(after == before + 1, "{family}: {before} strays, then {after}");
    }
    Ok(())
}

fn pods_are_on_hairpin_ports(cluster: &mut Cluster) -> Result<()> {
    for node in cluster.nodes() {
        for pod in node.pods() {
            ensure!(node.netns().links()?.is_hairpin(pod.name())?, "{} has no way to itself", pod.name());
        }
    }
    Ok(())
}

fn servers_stop_and_start(cluster: &mut Cluster) -> Result<()> {
    let (client, pod) = (cluster.pod("pod-1a").probe(), cluster.pod("pod-2a"));
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Http] {
        let server = pod.socket(Family::V6, protocol.pod_port());
        pod.stop_servers();
        let stopped = client.dial(protocol, server);
        ensure!(stopped.outcome == Outcome::Refused, "the server is stopped: {stopped}");
        pod.start_servers()?;
        client.dial(protocol, server).answer()?;
    }
    Ok(())
}

fn a_held_connection_notices_its_end(cluster: &mut Cluster) -> Result<()> {
    let pod = cluster.pod("pod-2a");
    let mut connection = cluster.pod("pod-1a").probe().open(pod.socket(Family::V4, TCP_PORT))?;
    connection.ping()?;
    pod.stop_servers();
    ensure!(connection.ping().is_err(), "the server is gone");
    Ok(())
}

fn a_flow_keeps_its_source_port(cluster: &mut Cluster) -> Result<()> {
    let server = cluster.pod("pod-2a").socket(Family::V4, 9091);
    let flow = cluster.pod("pod-1a").probe().source_port(4242).flow(server)?;
    for _ in 0..3 {
        let reply = flow.ask();
        ensure!(reply.answer()?.source.port() == 4242, "{reply}");
    }
    // The same for TCP, again and again: what was closed leaves nothing behind.
    for _ in 0..3 {
        let probe = cluster.pod("pod-1a").probe().source_port(4343);
        let reply = probe.tcp(cluster.pod("pod-2a").socket(Family::V4, TCP_PORT));
        ensure!(reply.answer()?.source.port() == 4343, "{reply}");
    }
    Ok(())
}

fn a_thousand_connections_a_second_all_succeed(cluster: &mut Cluster) -> Result<()> {
    for family in Family::ALL {
        let clients = [cluster.pod("pod-1a").netns(), cluster.pod("pod-1b").netns()];
        let load = Load::start(cluster.pod("pod-2a").socket(family, TCP_PORT), clients, 1000);
        load.run_for(3000)?;
        let counters = load.stop();
        counters.ensure_none_failed()?;
        ensure!(counters.answered == counters.started && counters.by["pod-2a"] == counters.started, "{counters}");
    }
    Ok(())
}

fn a_load_reports_what_failed(cluster: &mut Cluster) -> Result<()> {
    let pod = cluster.pod("pod-2a");
    let load = Load::start(pod.socket(Family::V4, HTTP_PORT + 1), [cluster.pod("pod-1a").netns()], 200);
    load.run_for(20)?;
    let counters: Counters = load.stop();
    ensure!(counters.answered == 0 && u64::try_from(counters.failures.len())? == counters.started, "{counters}");
    ensure!(counters.failures.iter().all(|failure| failure.outcome == Outcome::Refused), "{:?}", counters.failures);
    ensure!(counters.ensure_none_failed().is_err(), "a failure is a failure");
    Ok(())
}

fn processes_run_inside_and_die_with_their_guard(_: &mut Cluster) -> Result<()> {
    let netns = NetNs::new("short-lived")?;
    let log = Log::default();
    // Inside there is a loopback device and nothing else.
    let shell = Program {
        name: "a shell".into(),
        path: "/bin/sh".into(),
        arguments: ["-c", "wc -l < /proc/net/dev; exec sleep 1000"].map(str::to_owned).to_vec(),
        environment: Vec::new(),
        netns,
    };
    let process = shell.start(&log)?;
    eventually("the shell to count two lines of heading and lo", || {
        ensure!(log.lines().iter().any(|line| line == "3"), "{:?}", log.lines());
        Ok(())
    })?;
    let files = format!("/proc/{}", process.pid());
    ensure!(Path::new(&files).exists(), "the process runs");
    drop(process);
    ensure!(!Path::new(&files).exists(), "the process has gone with its guard");
    Ok(())
}

fn labs_stand_side_by_side(cluster: &mut Cluster) -> Result<()> {
    let other = Cluster::new(Topology::default())?;
    let server = cluster.pod("pod-2a").socket(Family::V4, TCP_PORT);
    other.pod("pod-2a").stop_servers();
    cluster.pod("pod-1a").probe().tcp(server).answer()?;
    let reply = other.pod("pod-1a").probe().tcp(server);
    ensure!(reply.outcome == Outcome::Refused, "the other lab has the same addresses: {reply}");
    Ok(())
}

fn the_control_plane_stops_resumes_and_starts_anew(cluster: &mut Cluster) -> Result<()> {
    let mut control_plane = ControlPlane::start(cluster.control_host())?;
    let key = || Key::service("default", "web");
    let client = control_plane.client();
    client.apply(object::namespace("default"))?;
    let stored = client.apply(Service::new("default", "web").port(Protocol::Tcp, 80))?;
    ensure!(stored["spec"]["clusterIPs"].as_array().is_some_and(|ips| ips.len() == 2), "dual stack: {stored}");
    for slice in Slice::both("default", "web", &[cluster.pod("pod-1a")]) {
        client.apply(slice)?;
    }
    ensure!(client.newest_write() == client.revision()?, "the client knows what it wrote last");
    control_plane.stop()?;
    control_plane.resume()?;
    ensure!(control_plane.client().get(key())? == stored, "the store outlives a stop");
    control_plane.kill9()?;
    ensure!(control_plane.client().get(key()).is_err(), "nobody is there");
    control_plane.resume()?;
    ensure!(control_plane.client().get(key())? == stored, "the store outlives a kill");
    control_plane.start_anew()?;
    ensure!(control_plane.client().get(key()).is_err(), "the new store is empty");
    Ok(())
}

fn a_panic_leaves_nothing(_: &mut Cluster) -> Result<()> {
    let result = std::thread::Builder::new().name("panicking".into()).spawn(|| -> String {
        let netns = NetNs::new("panicking").expect("a namespace");
        let identity = netns.run(|| std::fs::read_link("/proc/thread-self/ns/net")).expect("its identity");
        // A panic without the hook's message, which would look like a failure in the output.
        std::panic::resume_unwind(Box::new(identity.display().to_string()))
    })?;
    let identity = *result.join().expect_err("it panics").downcast::<String>().ok().context("its identity")?;
    // No thread is in that namespace any more; the descriptor that held it is closed with the guard.
    eventually("the namespace to go", || {
        let tasks = std::fs::read_dir("/proc/self/task")?.filter_map(Result::ok);
        let inside = tasks.filter(|task| {
            std::fs::read_link(task.path().join("ns/net")).is_ok_and(|link| link.display().to_string() == identity)
        });
        ensure!(inside.count() == 0, "a thread is still in {identity}");
        Ok(())
    })
}

const VICTIM: &str = "TOLLGATE_LAB_VICTIM";

/// What the next case starts and kills: a lab with a process in it, in namespaces inside ours.
fn victim() -> ExitCode {
    isolate();
    let _cluster = Cluster::new(Topology::default()).expect("a lab");
    if std::env::var_os(VICTIM).is_some_and(|value| value == "ends") {
        return ExitCode::SUCCESS;
    }
    let mut child = Command::new("/bin/sleep").arg("1000").spawn().expect("sleep is everywhere");
    println!("ready");
    let _ = child.wait();
    ExitCode::SUCCESS
}

fn a_killed_caller_takes_everything_with_it() -> Result<()> {
    use nix::sys::signal::Signal;
    let own = tollgate_lab::own_program()?;
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM] {
        // Processes other than this one that a lab has: caller, init, worker and what they started.
        let before = processes()?;
        let mut command = Command::new(&own);
        command.env(VICTIM, "1").stdout(std::process::Stdio::piped());
        // A shell's background job inherits that SIGINT is ignored, and these tests may run in one.
        // SAFETY: between fork and exec the closure makes two system calls, and allocates nothing.
        unsafe { command.pre_exec(|| Ok(heeds_signals()?)) };
        let mut caller = command.spawn().context("can't start this test again")?;
        let mut line = String::new();
        let output = caller.stdout.as_mut().context("stdout is piped")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        ensure!(line == "ready\n", "the victim said `{line}`");
        // The kernel lets the parent of an exec go on before the new program's environment can be read.
        eventually("everything inside to be seen", || {
            let inside = processes()?.len().saturating_sub(before.len());
            ensure!(inside >= 4, "caller, init, worker and sleep, but there are {inside}");
            Ok(())
        })?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(caller.id())?), signal)?;
        caller.wait()?;
        eventually("everything inside to die", || {
            let left: Vec<_> = processes()?.into_iter().filter(|pid| !before.contains(pid)).collect();
            ensure!(left.is_empty(), "left after {signal}: {left:?}");
            Ok(())
        })?;
    }
    if of_the_lab().is_ok() {
        cgroup::ensure_swept(|| {
            let status = Command::new(&own).env(VICTIM, "ends").status()?;
            ensure!(status.success(), "a lab that ends by itself: {status}");
            Ok(())
        })?;
    }
    Ok(())
}

fn heeds_signals() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for number in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the default action is no handler, so nothing of this program runs on a signal.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Every process that this pid namespace sees and that is no zombie, but for those that other trials start and end.
fn processes() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter(|pid| is_descendant_of_a_victim(*pid)).collect())
}

fn is_descendant_of_a_victim(pid: u32) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(VICTIM.as_bytes())) && !stat.contains(") Z ")
}
