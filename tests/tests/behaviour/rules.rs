//! What the kernel holds: ours kept as it should be, everybody else's left alone, nothing left behind.

use std::time::Duration;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde_json::Value;
use tollgate_lab::object::{Service, Slice};
use tollgate_lab::process::Program;
use tollgate_lab::{
    Cluster, Family, Load, Mode, NetNs, Node, Protocol, Tollgate, Topology, address, eventually, run_on,
};

use crate::Case;
use crate::scene::{At, Client, Scene, Stage};

pub(crate) const CASES: &[(&str, Case)] = &[
    ("foreign-rules-untouched", Case::Own(foreign_rules_untouched)),
    ("cleanup-complete", Case::Own(cleanup_complete)),
    ("drift-repaired", Case::Own(drift_repaired)),
    ("kill-then-start-converges", Case::Own(kill_then_start_converges)),
    ("mode-switch-clean", Case::Own(mode_switch_clean)),
    ("mode-switch-clean-next", Case::Own(mode_switch_clean_next)),
];

/// Somebody else's rules, with names, hooks, marks and priorities as near to ours as can be.
const FOREIGN: &str = "
    table inet tollgate-not-ours {
      set allowed { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
      map ports { type inet_service : verdict; elements = { 4242 : accept } }
      chain input { type filter hook input priority 0; ip saddr @allowed accept; tcp dport vmap @ports; }
      chain forward { type filter hook forward priority 0; meta mark 0x4000 accept; }
    }
    table ip6 foreign {
      chain pre { type nat hook prerouting priority -100; ip6 daddr 2001:db8:1::1 dnat to 2001:db8:1::2; }
    }
    table bridge foreign {
      chain transit { type filter hook forward priority 0; }
    }
";

/// The same with iptables, in its own tables: where ours are too, in that mode.
const FOREIGN_IPTABLES: &[&str] = &[
    "-t nat -N TG-OTHER",
    "-t nat -A TG-OTHER -d 198.51.100.1 -p tcp -j DNAT --to-destination 198.51.100.2",
    "-t nat -A OUTPUT -j TG-OTHER",
    "-t nat -N TG-K-OTHER",
    "-t nat -A TG-K-OTHER -j TG-OTHER",
    "-t nat -A POSTROUTING -o nowhere -j MASQUERADE",
    "-N TOLLGATE-OTHER",
    "-A TOLLGATE-OTHER -m mark --mark 0x4000/0x4000 -j RETURN",
    "-A FORWARD -j TOLLGATE-OTHER",
];

/// The same with ipset, where a mode has sets there.
const FOREIGN_SETS: &[&str] = &[
    "create TOLLGATE-OTHER hash:ip",
    "add TOLLGATE-OTHER 192.0.2.1",
    "create TG-A4-web-OTHER hash:ip timeout 0",
    "add TG-A4-web-OTHER 192.0.2.2",
];

/// The routes and addresses of a node: those of IPv6 without counts of their use, and without what is known of other paths.
const ROUTES: &[(&str, usize)] =
    &[("route", usize::MAX), ("fib_trie", usize::MAX), ("if_inet6", usize::MAX), ("ipv6_route", 6)];

/// Everybody's rules on a node but ours, without counters: nft's tables by family and name, and the rules of iptables' tables
/// one by one. Those tables and their built-in chains are everybody's: who needs one first makes it, and nobody removes it.
/// And its sets, routes and addresses.
fn foreign(netns: &NetNs, mode: Mode) -> Result<Vec<String>> {
    let of_iptables = |table: &str| {
        let names = ["nat", "filter", "mangle", "raw", "security"].map(|name| format!(" {name} {{"));
        let is_of_ip = table.starts_with("table ip ") || table.starts_with("table ip6 ");
        is_of_ip && names.iter().any(|name| table.lines().next().is_some_and(|line| line.ends_with(name)))
    };
    // What it says of iptables' tables stands among the tables.
    let listed = nft(netns, &["--stateless", "list", "ruleset"])?;
    let is_rule = |line: &&str| !line.starts_with('#') && !line.starts_with("XT ");
    let mut all = tables(&listed.lines().filter(is_rule).map(|line| format!("{line}\n")).collect::<String>());
    all.retain(|table| !of_iptables(table));
    for family in Family::ALL {
        let saved = run(netns, &format!("{}-save", mode.iptables(family)))?;
        let is_ours = |line: &str| OURS.iter().any(|ours| line.contains(ours)) && !line.contains("-OTHER");
        let lines = saved.lines().filter(|line| line.starts_with("-A") || line.starts_with(":T"));
        all.extend(lines.filter(|line| !is_ours(line)).map(|line| format!("{family} {line}")));
    }
    if mode.proxy_mode() == "iptables" {
        all.extend(run(netns, "ipset save")?.lines().filter(|line| line.contains("-OTHER")).map(str::to_owned));
    }
    for (file, columns) in ROUTES {
        let path = format!("/proc/thread-self/net/{file}");
        let text = netns.run(move || std::fs::read_to_string(path)).with_context(|| format!("can't read {file}"))?;
        let line = |line: &str| line.split_whitespace().take(*columns).collect::<Vec<_>>().join(" ");
        all.extend(text.lines().map(|text| format!("{file}: {}", line(text))));
    }
    Ok(all)
}

/// How chains of ours begin in iptables mode.
const OURS: &[&str] = &["TOLLGATE-", "TG-"];

/// All rules and sets of a node, in the words of nft, iptables and ipset.
fn all_rules(netns: &NetNs, mode: Mode) -> Result<String> {
    let mut all = run(netns, "nft --stateless list ruleset")?;
    for family in Family::ALL {
        all.push_str(&run(netns, &format!("{}-save", mode.iptables(family)))?);
    }
    if mode.proxy_mode() == "iptables" {
        all.push_str(&run(netns, "ipset list -name")?);
    }
    Ok(all)
}

/// Everything of ours on a node.
fn ours(node: &Node, mode: Mode) -> Result<Vec<String>> {
    let is_ours = |line: &&str| line.to_lowercase().contains("tollgate") || line.contains("TG-");
    let others = |line: &&str| line.contains("-OTHER") || line.contains("tollgate-not-ours");
    let all = all_rules(node.netns(), mode)?;
    let mut ours: Vec<_> = all.lines().filter(is_ours).filter(|line| !others(line)).map(str::to_owned).collect();
    if mode.is_attached() {
        ours.extend(pins(node.bpf_root()?).into_iter().map(|path| format!("{PIN} {}", path.display())));
    }
    Ok(ours)
}

/// How a line of [`ours`] about what is pinned begins.
const PIN: &str = "pinned:";

/// Every file in a folder that may not be there, and the folder itself.
fn pins(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let below = paths.flat_map(|path| if path.is_dir() { pins(&path) } else { vec![path] });
    std::iter::once(folder.to_owned()).chain(below.collect::<Vec<_>>()).collect()
}

fn run(netns: &NetNs, command: &str) -> Result<String> {
    let (status, output) = Program::words(command, netns).run()?;
    ensure!(status.success(), "{command}: {output}");
    Ok(output)
}

fn nft(netns: &NetNs, arguments: &[&str]) -> Result<String> {
    let program =
        Program { arguments: arguments.iter().copied().map(str::to_owned).collect(), ..Program::words("nft", netns) };
    let (status, output) = program.run()?;
    ensure!(status.success(), "nft {}: {output}", arguments.join(" "));
    Ok(output)
}

/// A table of the listing, from its first line to its closing brace.
fn tables(ruleset: &str) -> Vec<String> {
    let mut tables: Vec<String> = ruleset.split("\n}\n").map(|table| table.trim().to_owned()).collect();
    tables.retain(|table| !table.is_empty());
    tables
}

/// A cluster with somebody else's rules, route and address on node 1, and then Tollgate on all of it.
fn lab_with_foreign_rules(mode: Mode) -> Result<(Tollgate, Vec<String>)> {
    let cluster = Cluster::new(Topology::default())?;
    cluster.host(1).route_services_via(cluster.node(1))?;
    let node = cluster.node(1);
    nft(node.netns(), &["--", FOREIGN])?;
    for arguments in FOREIGN_IPTABLES {
        run(node.netns(), &format!("{} --wait 10 {arguments}", mode.iptables(Family::V4)))?;
    }
    if mode.proxy_mode() == "iptables" {
        FOREIGN_SETS.iter().try_for_each(|set| run(node.netns(), &format!("ipset {set}")).map(drop))?;
    }
    let route: IpNet = "198.51.100.0/24".parse()?;
    node.netns().links()?.add_route(route, node.ip(Family::V4))?;
    node.netns().links()?.add_address("lo", "198.51.100.99/32".parse()?)?;
    let foreign = foreign(node.netns(), mode)?;
    Ok((Tollgate::start(cluster, mode)?, foreign))
}

fn foreign_rules_untouched(stage: &mut Stage) -> Result<()> {
    let mode = stage.mode;
    let (lab, before) = lab_with_foreign_rules(mode)?;
    stage.lab = lab;
    let ensure_untouched = |lab: &Tollgate, when: &str| {
        let node = lab.cluster().node(1).netns();
        let now = foreign(node, mode)?;
        let missing: Vec<_> = before.iter().filter(|table| !now.contains(table)).collect();
        ensure!(missing.is_empty(), "{when}: changed or gone:\n{missing:?}\nnow there is\n{}", now.join("\n"));
        Ok(())
    };
    ensure_untouched(&stage.lab, "after the start")?;
    let scene = stage.scene()?;
    apply_of_every_sort(&scene)?;
    ensure_untouched(&stage.lab, "after Services of every sort")?;
    let scene = stage.scene()?;
    scene.delete_service("sticky")?;
    scene.set_ready("web", &["pod-1b"])?;
    ensure_untouched(&stage.lab, "after changes")?;
    stage.lab.proxy(1).kill9()?;
    stage.lab.start_proxy(1)?;
    ensure_untouched(&stage.lab, "after a kill and a start")?;
    stage.lab.proxy(1).stop()?;
    let (status, output) = stage.lab.proxy(1).cleanup()?;
    ensure!(status.success(), "cleanup: {output}");
    ensure_untouched(&stage.lab, "after cleanup")
}

/// Services with every kind of frontend, policy, and thing that a mode makes for one, in both families, each dialled once.
fn apply_of_every_sort(scene: &Scene<'_>) -> Result<()> {
    let hour = Duration::from_secs(3600);
    let near = [address::pod_cidr(1, scene.family)];
    let sorts = [
        ("web", scene.exposed("web"), ["pod-1a", "pod-2a"]),
        ("sticky", scene.exposed("sticky").affinity(hour).source_ranges(near), ["pod-1b", "pod-2b"]),
        ("local", scene.exposed("local").external_local().internal_local().affinity(hour), ["pod-1a", "pod-1b"]),
    ];
    let client = scene.probe(Client::Pod("pod-1a"));
    for (name, service, pods) in sorts {
        scene.apply([service.into(), scene.ready(name, &pods).into()])?;
        for at in At::ALL {
            for (protocol, port) in Protocol::transports().iter().zip(80..) {
                let to = scene.address(at.of(name, port))?;
                client.dial(*protocol, to).answer().with_context(|| format!("{name} at {to} over {protocol:?}"))?;
            }
        }
    }
    // Nobody serves, or nobody here.
    let far = scene.exposed("far").external_local().internal_local();
    scene.apply([far.into(), scene.ready("far", &["pod-2a"]).into(), scene.exposed("nobody").into()])?;
    let dual = Service::new(scene.namespace(), "dual").transports(80).node_port().affinity(hour);
    let slices = Slice::both(scene.namespace(), "dual", &[scene.pod("pod-1a"), scene.pod("pod-2a")]);
    scene.apply([Value::from(dual)].into_iter().chain(slices.map(Value::from)))
}

fn cleanup_complete(stage: &mut Stage) -> Result<()> {
    let (lab, before) = lab_with_foreign_rules(stage.mode)?;
    stage.lab = lab;
    let scene = stage.scene()?;
    apply_of_every_sort(&scene)?;
    let vip = scene.vip("web", 80)?;
    let strays = scene.cluster().strays()?;
    stage.lab.proxy(1).stop()?;
    let scene = Scene::of(&stage.lab, stage.family, "default");
    scene.probe(Client::Pod("pod-1a")).tcp(vip).answer().context("the rules stay when the proxy stops")?;
    // The second time there is nothing to remove, which is as well.
    for time in ["first", "second"] {
        let (status, output) = stage.lab.proxy(1).cleanup()?;
        ensure!(status.success(), "the {time} cleanup: {output}");
        let node = stage.lab.cluster().node(1);
        let (ours, left) = (ours(node, stage.mode)?, foreign(node.netns(), stage.mode)?);
        ensure!(ours.is_empty(), "after the {time} cleanup there is\n{}", ours.join("\n"));
        ensure!(
            left == before,
            "after the {time} cleanup there is\n{}\nand was\n{}",
            left.join("\n"),
            before.join("\n")
        );
    }
    let scene = Scene::of(&stage.lab, stage.family, "default");
    ensure!(scene.cluster().strays()? == strays, "until here the gateway has seen nothing");
    scene.probe(Client::Pod("pod-1a")).impatient().udp(vip);
    ensure!(scene.cluster().strays()? == strays + 1, "a Service's address is an address like any other again");
    // The other node is not concerned.
    scene.probe(Client::Pod("pod-2b")).tcp(vip).answer()?;
    Ok(())
}

fn drift_repaired(stage: &mut Stage) -> Result<()> {
    let cluster = Cluster::new(Topology::default())?;
    stage.lab = Tollgate::start_with(cluster, stage.mode, &[("--sync-period", "1s")])?;
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let (client, vip) = (scene.probe(Client::Pod("pod-1a")), scene.vip("web", 80)?);
    client.tcp(vip).answer()?;
    for command in stage.mode.vandalism(stage.family) {
        let node = stage.lab.cluster().node(1);
        let command = match stage.mode.is_attached() {
            true => command.replace("{bpf}", &node.bpf_root()?.display().to_string()),
            false => command,
        };
        run_on(node, &command)?;
        let broken = client.clone().impatient().tcp(vip);
        // It may have been repaired already, but then it must say so.
        let before = stage.lab.proxy(1).metric("tollgate_objects_repaired_total");
        eventually("the Service to be back", || client.clone().impatient().tcp(vip).by().map(drop))
            .with_context(|| format!("after `{command}` a client saw: {broken}"))?;
        eventually("the repair to be counted", || {
            let now = stage.lab.proxy(1).metric("tollgate_objects_repaired_total")?;
            ensure!(now > 0.0, "before {before:?}, now {now}");
            Ok(())
        })?;
    }
    Ok(())
}

fn kill_then_start_converges(stage: &mut Stage) -> Result<()> {
    let scene = stage.scene()?;
    scene.apply([scene.web().into(), scene.ready("web", &["pod-2a"]).into()])?;
    let sticky = scene.exposed("goes").affinity(Duration::from_secs(3600));
    scene.apply([sticky.into(), scene.ready("goes", &["pod-2a"]).into()])?;
    let (web, goes) = (scene.vip("web", 80)?, scene.vip("goes", 80)?);
    let (mode, node) = (stage.mode, scene.cluster().node(1).netns().clone());
    ensure!(all_rules(&node, mode)?.contains("goes"), "a Service is known by its name");
    stage.lab.proxy(1).kill9()?;
    let scene = stage.scene()?;
    scene.delete_service("goes")?;
    scene.apply([scene.service("comes").port(Protocol::Tcp, 80).into(), scene.ready("comes", &["pod-1b"]).into()])?;
    scene.set_ready("web", &["pod-2b"])?;
    let client = scene.probe(Client::Pod("pod-1a"));
    ensure!(client.tcp(web).by()? == "pod-2a", "nobody has told the kernel");
    stage.lab.start_proxy(1)?;
    let scene = stage.scene()?;
    client.spread(Protocol::Tcp, web, 64).ensure_only(&["pod-2b"])?;
    client.spread(Protocol::Tcp, scene.vip("comes", 80)?, 64).ensure_only(&["pod-1b"])?;
    let reply = client.impatient().tcp(goes);
    ensure!(reply.answer().is_err(), "a Service that was deleted meanwhile still answers: {reply}");
    let rules = all_rules(&node, mode)?;
    let left: Vec<_> = rules.lines().filter(|line| line.contains("goes")).collect();
    ensure!(left.is_empty(), "of a Service that was deleted meanwhile there is left {left:?}");
    Ok(())
}

fn mode_switch_clean(stage: &mut Stage) -> Result<()> {
    let after = stage.mode.successors().next().context("there is another mode")?;
    switch(stage, after)
}

fn mode_switch_clean_next(stage: &mut Stage) -> Result<()> {
    let after = stage.mode.successors().nth(1).context("there is a third mode")?;
    switch(stage, after)
}

/// Node 1 goes over to another mode, under a stream of connections and with one that stays open.
fn switch(stage: &mut Stage, after: Mode) -> Result<()> {
    let before = stage.mode;
    let scene = stage.scene()?;
    scene.apply([scene.exposed("web").into(), scene.ready("web", &["pod-1b", "pod-2a", "pod-2b"]).into()])?;
    let vip = scene.vip("web", 80)?;
    let mut held = scene.probe(Client::Pod("pod-1a")).open(vip)?;
    let cluster = scene.cluster();
    let clients =
        [scene.pod("pod-1a").netns(), scene.pod("pod-1b").netns(), cluster.node(1).netns(), cluster.host(1).netns()];
    let mut dials = Vec::new();
    for at in At::ALL {
        let to = scene.address(at.of("web", 80))?;
        dials.extend(clients.map(|client| (client, to)));
    }
    let load = Load::start_each(dials, 1200);
    load.run_for(3_400)?;
    ensure!(!of_mode(before, ours(cluster.node(1), before)?).is_empty(), "there is nothing of {before} to begin with");
    stage.lab.proxy(1).stop()?;
    stage.lab.set_mode(1, after)?;
    stage.lab.start_proxy(1)?;
    // The tables of nftables stay where eBPF has them for packets.
    let shares = before.proxy_mode() == "nftables" && after.proxy_mode() == "ebpf";
    eventually("the other mode's rules to be gone", || {
        let left = of_mode(before, ours(stage.lab.cluster().node(1), before)?);
        ensure!(left.is_empty() || shares, "there is\n{}", left.join("\n"));
        Ok(())
    })?;
    ensure!(!of_mode(after, ours(stage.lab.cluster().node(1), after)?).is_empty(), "there is nothing of {after}");
    load.run_for(3_400)?;
    held.ping().context("the connection that was open before the switch")?;
    stage.scene()?.set_ready("web", &["pod-2a"])?;
    let one = stage.scene()?.probe(Client::Pod("pod-1a")).spread(Protocol::Tcp, vip, 64);
    one.ensure_only(&["pod-2a"])?;
    load.run_for(3_400)?;
    let counters = load.stop();
    println!("mode-switch-clean: {counters}");
    counters.ensure_none_failed()?;
    ensure!(counters.answered >= 10_000, "too few for the claim: {counters}");
    Ok(())
}

/// The lines that this mode writes, and those that go with it: eBPF has the tables of nftables besides.
fn of_mode(mode: Mode, lines: Vec<String>) -> Vec<String> {
    let is_of = |line: &String| match mode.proxy_mode() {
        "iptables" => line.contains("TOLLGATE") || line.contains("TG-"),
        "ebpf" => line.starts_with(PIN),
        _ => !line.contains("TOLLGATE") && !line.contains("TG-") && !line.starts_with(PIN),
    };
    lines.into_iter().filter(is_of).collect()
}
