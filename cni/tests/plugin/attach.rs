//! What a pod has once it is attached.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_lab::{Outcome, Probe, TCP_PORT};

use crate::Case;
use crate::node::{Node, addresses, conf, conf_with, sockets};

pub(crate) const CASES: &[Case] = &[
    ("pods_reach_pods_the_node_and_the_outside_at_once", pods_reach_everything_at_once),
    ("masquerading_is_towards_the_outside_alone", masquerading_is_towards_the_outside_alone),
    ("the_mtu_is_that_of_the_uplink", the_mtu_is_that_of_the_uplink),
    ("what_is_asked_for_is_given", what_is_asked_for_is_given),
    ("isolated_ports_see_the_node_alone", isolated_ports_see_the_node_alone),
    ("hairpin_and_promiscuous_mode_are_set", hairpin_and_promiscuous_mode_are_set),
    ("a_bridge_s_foreign_address_is_not_replaced_unasked", a_foreign_address_is_not_replaced_unasked),
    ("duplicate_address_detection_is_waited_for", duplicate_address_detection_is_waited_for),
    ("router_advertisements_change_nothing", router_advertisements_change_nothing),
    ("a_node_s_router_advertisements_still_count", a_node_s_router_advertisements_still_count),
];

fn pods_reach_everything_at_once() -> Result<()> {
    let node = Node::new("node")?;
    node.route_to_pods()?;
    let (first, first_result, _servers) = node.attached("first", &conf())?;
    let outside = tollgate_lab::Servers::start(&node.outside)?;
    for number in 0..5 {
        let pod = node.pod(&format!("pod-{number}"))?;
        let result = node.add(&pod, &conf())?;
        // The very first packets must do: no address is tentative, and the port forwards.
        for to in sockets(&first_result, TCP_PORT) {
            let own = addresses(&result).into_iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).context("no address")?;
            let reply = pod.probe().tcp(to);
            ensure!(reply.answer()?.by == "first" && reply.answer()?.source.ip() == own, "{to}: {reply}");
            ensure!(reply.elapsed.as_millis() < 900, "{to}: a packet was lost, it took {:?}", reply.elapsed);
        }
        for ip in ["192.0.2.2", "2001:db8:1::2"] {
            ensure!(pod.probe().tcp((ip.parse::<IpAddr>()?, TCP_PORT).into()).answer()?.by == "node-outside");
        }
    }
    for to in sockets(&first_result, TCP_PORT) {
        ensure!(Probe::from(&node.netns).tcp(to).answer()?.by == "first");
        ensure!(Probe::from(&node.outside).tcp(to).answer()?.by == "first");
    }
    drop((first, outside));
    Ok(())
}

fn masquerading_is_towards_the_outside_alone() -> Result<()> {
    let node = Node::new("node")?;
    let _outside = tollgate_lab::Servers::start(&node.outside)?;
    let masqueraded = conf_with(|conf| conf["ipMasq"] = true.into());
    let (pod, result, _servers) = node.attached("pod", &masqueraded)?;
    // The outside has no way to pods: only what is masqueraded is answered.
    for (ip, own) in [("192.0.2.2", "192.0.2.1"), ("2001:db8:1::2", "2001:db8:1::1")] {
        let seen = pod.probe().tcp((ip.parse::<IpAddr>()?, TCP_PORT).into()).answer()?.source.ip();
        ensure!(seen == own.parse::<IpAddr>()?, "{ip} sees {seen}");
    }
    let (other, other_result, _other_servers) = node.attached("other", &masqueraded)?;
    for to in sockets(&result, TCP_PORT) {
        let seen = other.probe().tcp(to).answer()?.source.ip();
        ensure!(addresses(&other_result).contains(&seen), "{to} sees {seen}");
    }
    // Control: without masquerading there is no answer; with a CIDR that is no elsewhere neither.
    let plain = node.pod("plain")?;
    node.add(&plain, &conf())?;
    let excepted = node.pod("excepted")?;
    node.add(
        &excepted,
        &conf_with(|conf| {
            conf["ipMasq"] = true.into();
            conf["nonMasqueradeCIDRs"] = json!(["192.0.2.0/24", "2001:db8:1::/64"]);
        }),
    )?;
    for pod in [&plain, &excepted] {
        let reply = pod.probe().impatient().tcp(("192.0.2.2".parse::<IpAddr>()?, TCP_PORT).into());
        ensure!(reply.outcome == Outcome::Timeout, "{}: {reply}", pod.id);
    }
    for pod in [&pod, &other, &plain, &excepted] {
        node.del(pod, &conf())?;
    }
    node.ensure_nothing_left("pods")
}

fn the_mtu_is_that_of_the_uplink() -> Result<()> {
    let node = Node::new("node")?;
    node.command("ip link set uplink mtu 1444")?;
    let newest = |mtu: Option<u32>| {
        conf_with(|conf| {
            conf["cniVersion"] = "1.1.0".into();
            mtu.iter().for_each(|mtu| conf["mtu"] = (*mtu).into());
        })
    };
    for (number, mtu) in [(0, None), (1, Some(1300))] {
        let pod = node.pod(&format!("pod-{number}"))?;
        let result = node.add(&pod, &newest(mtu))?;
        let expected = mtu.unwrap_or(1444);
        ensure!(result["interfaces"][2]["mtu"] == expected, "{result}");
        ensure!(pod.command("ip link show eth0")?.contains(&format!("mtu {expected} ")));
    }
    Ok(())
}

fn what_is_asked_for_is_given() -> Result<()> {
    let node = Node::new("node")?;
    let pod = node.pod("pod")?;
    let answer = node.call("ADD", &conf()).of(&pod).with("CNI_ARGS", "IP=10.1.9.9;MAC=02:00:00:00:00:07");
    let result = answer.run()?.success()?;
    ensure!(addresses(&result)[0] == "10.1.9.9".parse::<IpAddr>()?, "{result}");
    ensure!(addresses(&result).len() == 2 && result["interfaces"][2]["mac"] == "02:00:00:00:00:07", "{result}");
    ensure!(pod.command("ip link show eth0")?.contains("02:00:00:00:00:07"));
    // Its link-local address, which comes from the hardware address, is its own too.
    let (_, first, _servers) = node.attached("first", &conf())?;
    for to in sockets(&first, TCP_PORT) {
        ensure!(pod.probe().tcp(to).answer()?.by == "first");
    }
    let other = node.pod("other")?;
    let taken = conf_with(|conf| conf["runtimeConfig"] = json!({ "ips": ["10.1.9.9/16"] }));
    let (code, text) = node.call("ADD", &taken).of(&other).run()?.failure()?;
    ensure!(code == 101 && text.contains("is that of container pod"), "{code} {text}");
    let routes = conf_with(|conf| conf["ipam"]["routes"] = json!([{ "dst": "198.51.100.0/24", "gw": "10.1.0.77" }]));
    node.add(&other, &routes)?;
    ensure!(other.command("ip route")?.contains("198.51.100.0/24 via 10.1.0.77"));
    Ok(())
}

fn isolated_ports_see_the_node_alone() -> Result<()> {
    let node = Node::new("node")?;
    let isolated = conf_with(|conf| conf["portIsolation"] = true.into());
    let (_, target, _servers) = node.attached("target", &isolated)?;
    let (open, alone) = (node.pod("open")?, node.pod("alone")?);
    node.add(&open, &conf())?;
    node.add(&alone, &isolated)?;
    for to in sockets(&target, TCP_PORT) {
        ensure!(open.probe().tcp(to).answer()?.by == "target");
        ensure!(Probe::from(&node.netns).tcp(to).answer()?.by == "target");
        let reply = alone.probe().impatient().tcp(to);
        ensure!(reply.outcome == Outcome::Timeout, "{to}: {reply}");
    }
    Ok(())
}

fn hairpin_and_promiscuous_mode_are_set() -> Result<()> {
    let node = Node::new("node")?;
    let veth = |result: &Value| result["interfaces"][1]["name"].as_str().map(str::to_owned).context("no name");
    let pod = node.pod("pod")?;
    for (conf, is_hairpin) in [(conf(), true), (conf_with(|conf| conf["hairpinMode"] = false.into()), false)] {
        let result = node.add(&pod, &conf)?;
        ensure!(node.netns.links()?.is_hairpin(&veth(&result)?)? == is_hairpin, "{conf}");
        node.del(&pod, &conf)?;
    }
    let other = node.pod("other")?;
    let result = node.add(&other, &conf_with(|conf| conf["promiscMode"] = true.into()))?;
    ensure!(!node.netns.links()?.is_hairpin(&veth(&result)?)?);
    ensure!(node.command("ip link show cni0")?.contains("PROMISC"));
    Ok(())
}

fn a_foreign_address_is_not_replaced_unasked() -> Result<()> {
    let node = Node::new("node")?;
    node.command("ip link add cni0 type bridge")?;
    node.netns.links()?.add_address("cni0", "10.1.0.99/24".parse()?)?;
    node.netns.links()?.add_address("cni0", "172.31.0.1/24".parse()?)?;
    let pod = node.pod("pod")?;
    let (code, text) = node.call("ADD", &conf()).of(&pod).run()?.failure()?;
    ensure!(code == 103 && text.contains("10.1.0.99/24") && text.contains("forceAddress"), "{code} {text}");
    node.ensure_nothing_left("pods")?;
    node.add(&pod, &conf_with(|conf| conf["forceAddress"] = true.into()))?;
    let addresses = node.command("ip addr show cni0")?;
    ensure!(
        addresses.contains("10.1.0.1/16") && addresses.contains("172.31.0.1/24") && !addresses.contains("10.1.0.99"),
        "{addresses}"
    );
    // A link that is no bridge is nobody's to change.
    let wrong = conf_with(|conf| conf["bridge"] = "uplink".into());
    let (code, text) = node.call("ADD", &wrong).of(&node.pod("wrong")?).run()?.failure()?;
    ensure!(code == 103 && text.contains("no bridge"), "{code} {text}");
    Ok(())
}

fn duplicate_address_detection_is_waited_for() -> Result<()> {
    let node = Node::new("node")?;
    let (first, detected) = (node.pod("first")?, conf_with(|conf| conf["enabledad"] = true.into()));
    node.add(&first, &detected)?;
    ensure!(!first.command("ip -6 addr show dev eth0")?.contains("tentative"));
    // Somebody on the bridge who is none of this network's pods has the address that the next one is to get.
    let stranger = node.pod("stranger")?;
    node.netns.links()?.add_veth("stranger", &tollgate_lab::link::VethEnd { name: "eth0", netns: &stranger.netns })?;
    node.netns.links()?.add_bridge_port("cni0", "stranger", false)?;
    stranger.netns.links()?.up("eth0")?;
    stranger.netns.links()?.add_address("eth0", "fd00:1::3/64".parse()?)?;
    let second = node.pod("second")?;
    let (code, text) = node.call("ADD", &detected).of(&second).run()?.failure()?;
    ensure!(code == 103 && text.contains("fd00:1::3"), "{code} {text}");
    node.del(&first, &detected)?;
    node.ensure_nothing_left("pods")
}

fn router_advertisements_change_nothing() -> Result<()> {
    let node = Node::new("node")?;
    let pod = node.pod("pod")?;
    node.add(&pod, &conf())?;
    ensure!(pod.netns.read_sysctl("net/ipv6/conf/eth0/accept_ra")? == "0");
    ensure!(node.netns.read_sysctl("net/ipv6/conf/cni0/accept_ra")? == "0");
    Ok(())
}

/// A node that begins to forward would forget its default route; ours then accepts advertisements as a router too.
fn a_node_s_router_advertisements_still_count() -> Result<()> {
    let node = Node::new("node")?;
    node.netns.sysctl("net/ipv6/conf/all/forwarding", "0")?;
    node.netns.sysctl("net/ipv6/conf/uplink/accept_ra", "1")?;
    node.command("ip -6 route add 2001:db8:7::/64 via 2001:db8:1::2 dev uplink proto ra")?;
    node.add(&node.pod("pod")?, &conf())?;
    ensure!(node.netns.read_sysctl("net/ipv6/conf/all/forwarding")? == "1");
    ensure!(node.netns.read_sysctl("net/ipv6/conf/uplink/accept_ra")? == "2");
    Ok(())
}
