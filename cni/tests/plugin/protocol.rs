//! What the plugin says: each verb in each version, and what is wrong with a call.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::Case;
use crate::node::{Node, Pod, addresses, conf, conf_with};

pub(crate) const CASES: &[Case] = &[
    ("every_verb_in_every_version", every_verb_in_every_version),
    ("wrong_calls_are_told_with_the_right_code", wrong_calls),
    ("a_netns_that_is_none_is_refused", a_netns_that_is_none_is_refused),
    ("status_follows_the_pod_cidrs", status_follows_the_pod_cidrs),
    ("a_chain_s_results_are_put_together", a_chain_s_results_are_put_together),
    ("check_notices_what_is_missing", check_notices_what_is_missing),
    ("host_local_gives_the_addresses", host_local_gives_the_addresses),
];

/// A result as the specification's section 5 has it, in each version.
fn ensure_result(result: &Value, version: &str, netns: &str) -> Result<()> {
    ensure!(result["cniVersion"] == version, "{result}");
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    ensure!(interfaces.len() == 3, "{result}");
    ensure!(interfaces[0]["name"] == "cni0" && interfaces[0].get("sandbox").is_none());
    ensure!(interfaces[1]["name"].as_str().is_some_and(|name| name.starts_with("veth") && name.len() <= 15));
    ensure!(interfaces[2]["name"] == "eth0" && interfaces[2]["sandbox"] == netns, "{result}");
    for interface in interfaces {
        ensure!(interface["mac"].as_str().is_some_and(|mac| mac.len() == 17), "{interface}");
        ensure!(interface.get("mtu").is_some() == (version == "1.1.0"), "{version}: {interface}");
    }
    let ips = result["ips"].as_array().context("no ips")?;
    for (ip, family) in ips.iter().zip(["4", "6"]) {
        ensure!(ip["interface"] == 2 && ip["gateway"].is_string(), "{ip}");
        ensure!(ip.get("version").and_then(Value::as_str) == (version == "0.4.0").then_some(family), "{version}: {ip}");
    }
    let routes: Vec<&str> =
        result["routes"].as_array().context("no routes")?.iter().filter_map(|it| it["dst"].as_str()).collect();
    ensure!(routes == ["0.0.0.0/0", "::/0"], "{result}");
    Ok(())
}

fn every_verb_in_every_version() -> Result<()> {
    let node = Node::new("node")?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let conf = conf_with(|conf| conf["cniVersion"] = version.into());
        let pod = node.pod(&format!("pod-{}", version.replace('.', "-")))?;
        let result = node.add(&pod, &conf)?;
        ensure_result(&result, version, &pod.netns.path().to_string_lossy())?;
        let mut again = conf.clone();
        again["prevResult"] = result;
        node.call("CHECK", &again).of(&pod).run()?.success().context(version)?;
        for (verb, extra) in [("STATUS", Value::Null), ("GC", json!([{ "containerID": pod.id, "ifname": "eth0" }]))] {
            let mut conf = conf.clone();
            if verb == "GC" {
                conf["cni.dev/valid-attachments"] = extra;
            }
            let answer = node.call(verb, &conf).run()?;
            if version == "1.1.0" {
                answer.success().context(verb)?;
            } else {
                let (code, text) = answer.failure()?;
                ensure!(code == 1 && text.contains("1.1.0"), "{verb} in {version}: {code} {text}");
            }
        }
        let versions = node.call("VERSION", &json!({ "cniVersion": version })).without("CNI_PATH").run()?.success()?;
        ensure!(versions == json!({ "cniVersion": version, "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"] }));
        // The pod must still be there: GC was told that it is valid.
        node.call("CHECK", &again).of(&pod).run()?.success().context("after GC")?;
        // Once with its namespace, and then as often as one likes without.
        ensure!(node.call("DEL", &conf).of(&pod).run()?.stdout.is_empty());
        node.call("DEL", &conf).of(&pod).with("CNI_NETNS", "").run()?.success()?;
        node.call("DEL", &conf).of(&pod).without("CNI_NETNS").run()?.success()?;
        node.ensure_nothing_left("pods")?;
    }
    Ok(())
}

fn wrong_calls() -> Result<()> {
    let node = Node::new("node")?;
    let pod = node.pod("pod")?;
    let add = |conf: &Value| node.call("ADD", conf).of(&pod);
    let base = conf();
    let bandwidth = conf_with(|conf| conf["runtimeConfig"] = json!({ "bandwidth": { "ingressRate": 1000 } }));
    let path = conf_with(|conf| conf["ipam"] = json!({ "type": "../../../bin/sh" }));
    let full = conf_with(|conf| {
        conf["ipam"] = json!({ "subnet": "10.1.0.0/30", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1" });
    });
    let calls = [
        ("no verb", add(&base).without("CNI_COMMAND"), 4, "CNI_COMMAND"),
        ("another verb", add(&base).with("CNI_COMMAND", "ATTACH"), 4, "CNI_COMMAND"),
        ("no container", add(&base).without("CNI_CONTAINERID"), 4, "CNI_CONTAINERID"),
        ("a container with a path", add(&base).with("CNI_CONTAINERID", "../pod"), 4, "CNI_CONTAINERID"),
        ("a long container", add(&base).with("CNI_CONTAINERID", "a".repeat(300)), 4, "300 bytes"),
        ("no interface", add(&base).without("CNI_IFNAME"), 4, "CNI_IFNAME"),
        ("a long interface", add(&base).with("CNI_IFNAME", "a-name-that-is-too-long"), 4, "CNI_IFNAME"),
        ("no netns", add(&base).without("CNI_NETNS"), 4, "CNI_NETNS"),
        ("wrong args", add(&base).with("CNI_ARGS", "COLOUR=red"), 4, "COLOUR"),
        ("no JSON", add(&base).stdin("{"), 6, "JSON"),
        ("nothing", add(&base).stdin(""), 6, "nothing"),
        ("another version", add(&base).stdin(r#"{ "cniVersion": "0.2.0", "name": "pods" }"#), 1, "0.2.0"),
        ("bandwidth", add(&bandwidth), 2, "runtimeConfig.bandwidth"),
        ("an IPAM with a path", add(&path), 7, "ipam.type"),
        ("a full range", add(&full), 101, "all of 10.1.0.1-10.1.0.1 are taken"),
        (
            "GC without a list",
            node.call("GC", &conf_with(|conf| conf["cniVersion"] = "1.1.0".into())),
            7,
            "valid-attachments",
        ),
        ("CHECK without a result", node.call("CHECK", &base).of(&pod), 7, "prevResult"),
        ("a small MTU", add(&conf_with(|conf| conf["mtu"] = 1000.into())), 7, "1000 is too small for IPv6"),
        ("no such IPAM", add(&conf_with(|conf| conf["ipam"] = json!({ "type": "nothing" }))), 104, "CNI_PATH"),
    ];
    for (name, call, code, part) in calls {
        let (found, text) = call.run()?.failure().context(name)?;
        ensure!(found == code && text.contains(part), "{name}: {found} {text}");
    }
    node.ensure_nothing_left("pods")
}

fn a_netns_that_is_none_is_refused() -> Result<()> {
    let node = Node::new("node")?;
    let pod = node.pod("pod")?;
    let own = node.netns.path().to_string_lossy().into_owned();
    for (path, part) in
        [("/run/netns/gone", "can't be opened"), ("/etc/passwd", "another kind"), (&own, "the node's own")]
    {
        let (code, text) = node.call("ADD", &conf()).of(&pod).with("CNI_NETNS", path).run()?.failure()?;
        ensure!(code == 3 && text.contains(part), "{path}: {code} {text}");
    }
    node.ensure_nothing_left("pods")
}

fn status_follows_the_pod_cidrs() -> Result<()> {
    let node = Node::new("node")?;
    let conf = conf_with(|conf| {
        conf["cniVersion"] = "1.1.0".into();
        conf["ipam"] = json!({});
        conf["ipMasq"] = true.into();
    });
    let pod = node.pod("pod")?;
    for verb in ["STATUS", "ADD"] {
        let (code, text) = node.call(verb, &conf).of(&pod).run()?.failure()?;
        ensure!(code == 50 && text.contains("pod-cidrs.json"), "{verb}: {code} {text}");
    }
    let told = json!({ "version": 1, "podCIDRs": ["10.1.7.0/30"], "clusterCIDRs": ["10.1.0.0/16"], "mtu": 1400 });
    std::fs::write(node.file("pod-cidrs.json"), told.to_string())?;
    node.call("STATUS", &conf).run()?.success()?;
    let result = node.add(&pod, &conf)?;
    ensure!(addresses(&result) == ["10.1.7.2".parse::<std::net::IpAddr>()?], "{result}");
    ensure!(result["interfaces"][2]["mtu"] == 1400);
    ensure!(node.command("nft list ruleset")?.contains("10.1.0.0/16, 224.0.0.0/4"));
    let (code, text) = node.call("STATUS", &conf).run()?.failure()?;
    ensure!(code == 50 && text.contains("are taken"), "a full range: {code} {text}");
    node.del(&pod, &conf)
}

fn a_chain_s_results_are_put_together() -> Result<()> {
    let node = Node::new("node")?;
    let pod = node.pod("pod")?;
    let before = json!({ "cniVersion": "0.4.0", "interfaces": [{ "name": "net1", "sandbox": "/x" }],
        "ips": [{ "version": "4", "address": "198.51.100.7/24", "interface": 0 }], "dns": { "nameservers": ["192.0.2.53"] } });
    let result = node.add(&pod, &conf_with(|conf| conf["prevResult"] = before))?;
    ensure!(result["interfaces"].as_array().map(Vec::len) == Some(4), "{result}");
    let indexes: Vec<u64> =
        result["ips"].as_array().context("no ips")?.iter().filter_map(|ip| ip["interface"].as_u64()).collect();
    ensure!(indexes == [0, 3, 3] && result["dns"]["nameservers"][0] == "192.0.2.53", "{result}");
    ensure!(result["ips"][0].get("version").is_none(), "the old result is told in the new version: {result}");
    // As the plugins behind this one are given it.
    node.call("CHECK", &conf_with(|conf| conf["prevResult"] = result)).of(&pod).run()?.success()?;
    node.del(&pod, &conf())
}

/// What is done to a pod whose end on the node has that name.
type Damage = fn(&Node, &Pod, &str) -> Result<String>;

fn check_notices_what_is_missing() -> Result<()> {
    let node = Node::new("node")?;
    let conf = conf_with(|conf| {
        conf["ipMasq"] = true.into();
        conf["runtimeConfig"] = json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] });
    });
    let damages: &[(&str, Damage)] = &[
        ("the address", |_, pod, _| pod.command("ip addr del 10.1.0.2/16 dev eth0")),
        ("the route to 0.0.0.0/0", |_, pod, _| pod.command("ip route del default")),
        ("the interface eth0", |_, pod, _| pod.command("ip link set eth0 name eth9")),
        ("the port of", |node, _, veth| node.command(&format!("ip link set {veth} nomaster"))),
        ("the link", |node, _, veth| node.command(&format!("ip link set {veth} name elsewhere"))),
        ("hostports-any", |node, _, _| node.command("nft flush map ip tollgate-cni hostports-any")),
        ("macs in", |node, _, _| node.command("nft flush set bridge tollgate-cni macs")),
        ("the rules of the table bridge", |node, _, _| node.command("nft delete table bridge tollgate-cni")),
    ];
    for (part, damage) in damages {
        let pod = node.pod("pod")?;
        let result = node.add(&pod, &conf)?;
        let mut again = conf.clone();
        again["prevResult"] = result.clone();
        node.call("CHECK", &again).of(&pod).run()?.success().context("before")?;
        damage(&node, &pod, result["interfaces"][1]["name"].as_str().context("no name")?)?;
        let (code, text) = node.call("CHECK", &again).of(&pod).run()?.failure().context(*part)?;
        ensure!(code == 105 && text.contains(part), "{part}: {code} {text}");
        if *part == "the link" {
            node.command("ip link del elsewhere")?;
        }
        node.del(&pod, &conf).with_context(|| format!("after {part} was damaged"))?;
        std::fs::remove_file(node.file("cni/networks/pods/leases"))?;
        node.ensure_nothing_left("pods")?;
    }
    Ok(())
}

fn host_local_gives_the_addresses() -> Result<()> {
    let node = Node::new("node")?;
    let data = node.file("host-local");
    let conf = conf_with(|conf| {
        conf["isDefaultGateway"] = true.into();
        conf["ipam"] = json!({ "type": "host-local", "dataDir": data,
            "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]] });
    });
    let (pod, other) = (node.pod("pod")?, node.pod("other")?);
    let result = node.add(&pod, &conf)?;
    ensure!(addresses(&result).len() == 2, "{result}");
    let mut again = conf.clone();
    again["prevResult"] = result;
    node.call("CHECK", &again).of(&pod).run()?.success()?;
    node.add(&other, &conf)?;
    let held = || -> Result<Vec<String>> {
        let names = std::fs::read_dir(data.join("pods"))?.map(|it| Ok(it?.file_name().to_string_lossy().into_owned()));
        Ok(names
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .filter(|name| name.starts_with("10.") || name.starts_with("fd"))
            .collect())
    };
    ensure!(held()?.len() == 4, "{:?}", held()?);
    node.del(&pod, &conf)?;
    ensure!(held()?.len() == 2, "{:?}", held()?);
    node.del(&other, &conf)?;
    ensure!(held()?.is_empty(), "{:?}", held()?);
    // An IPAM plugin's error is told with its own code, and nothing is left.
    let wrong =
        conf_with(|conf| conf["ipam"] = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/33" }]] }));
    let (_, text) = node.call("ADD", &wrong).of(&pod).run()?.failure()?;
    ensure!(text.contains("IPAM plugin host-local, ADD"), "{text}");
    node.del(&pod, &conf)?;
    node.ensure_nothing_left("pods")
}
