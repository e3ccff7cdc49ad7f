//! Ports of the node that lead to a pod.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_lab::{NetNs, Outcome, Probe, Protocol, SCTP_PORT, Servers, TCP_PORT, UDP_PORT, kernel_has_sctp};

use crate::Case;
use crate::node::{Node, addresses, conf, conf_with};

pub(crate) const CASES: &[Case] = &[
    ("a_host_port_answers_from_everywhere", a_host_port_answers_from_everywhere),
    ("a_host_port_answers_at_its_address_alone", a_host_port_answers_at_its_address_alone),
    ("a_host_port_takes_nothing_that_is_for_others", a_host_port_takes_nothing_that_is_for_others),
    ("a_service_s_node_port_wins_over_a_host_port", a_node_port_wins_over_a_host_port),
    ("a_host_port_is_one_pod_s_alone", a_host_port_is_one_pods_alone),
    ("a_udp_client_that_goes_on_meets_the_new_pod", a_udp_client_that_goes_on_meets_the_new_pod),
    ("pods_can_t_dial_the_node_s_loopback", pods_cant_dial_the_nodes_loopback),
];

/// Outside the range that the node draws its own ports from.
const HOST_PORT: u16 = 8088;

fn with_ports(ports: Value) -> Value {
    conf_with(|conf| conf["runtimeConfig"] = json!({ "portMappings": ports }))
}

fn mapping(port: u16, protocol: &str) -> Value {
    json!({ "hostPort": HOST_PORT, "containerPort": port, "protocol": protocol })
}

fn socket(ip: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse()?, HOST_PORT))
}

fn dial(from: &NetNs, protocol: Protocol, ip: &str) -> Result<tollgate_lab::Reply> {
    Ok(Probe::from(from).dial(protocol, socket(ip)?))
}

fn a_host_port_answers_from_everywhere() -> Result<()> {
    let node = Node::new("node")?;
    node.route_to_pods()?;
    let ports = with_ports(json!([mapping(TCP_PORT, "tcp"), mapping(UDP_PORT, "udp"), mapping(SCTP_PORT, "sctp")]));
    let (pod, result, _servers) = node.attached("pod", &ports)?;
    let other = node.pod("other")?;
    node.add(&other, &conf())?;
    let mut protocols = vec![Protocol::Tcp, Protocol::Udp];
    protocols.extend(kernel_has_sctp().then_some(Protocol::Sctp));
    for protocol in protocols {
        for ip in ["192.0.2.1", "2001:db8:1::1", "10.1.0.1", "fd00:1::1"] {
            let outside = dial(&node.outside, protocol, ip)?;
            ensure!(outside.is_by("pod"), "{protocol:?} {ip}: {outside}");
            let source = outside.answer()?.source.ip();
            ensure!(
                ["192.0.2.2".parse::<IpAddr>()?, "2001:db8:1::2".parse()?].contains(&source),
                "the client is {source}"
            );
            // From another pod on the bridge, from the node, and from the very pod.
            for from in [&other.netns, &node.netns, &pod.netns] {
                let reply = dial(from, protocol, ip)?;
                ensure!(reply.is_by("pod"), "{protocol:?} {ip} from {}: {reply}", from.name());
            }
        }
        let loopback = dial(&node.netns, protocol, "127.0.0.1")?;
        ensure!(loopback.is_by("pod"), "{protocol:?}: {loopback}");
    }
    node.del(&pod, &ports)?;
    for ip in ["192.0.2.1", "2001:db8:1::1", "127.0.0.1"] {
        let reply = dial(&node.netns, Protocol::Tcp, ip)?;
        ensure!(reply.outcome == Outcome::Refused, "{ip} after DEL: {reply}");
    }
    drop(result);
    Ok(())
}

/// CVE-2025-67499: what goes through the node to the same port of somebody else is not touched.
fn a_host_port_takes_nothing_that_is_for_others() -> Result<()> {
    let node = Node::new("node")?;
    node.route_to_pods()?;
    let ports = with_ports(json!([{ "hostPort": TCP_PORT, "containerPort": TCP_PORT, "protocol": "tcp" }]));
    let (_pod, result, _servers) = node.attached("pod", &ports)?;
    let (_bystander, bystander, _bystanders) = node.attached("bystander", &conf())?;
    let _outside = Servers::start(&node.outside)?;
    for ip in addresses(&bystander) {
        for from in [&node.outside, &node.netns, &_pod.netns] {
            let reply = Probe::from(from).tcp(SocketAddr::new(ip, TCP_PORT));
            ensure!(reply.answer()?.by == "bystander", "{ip} from {}: {reply}", from.name());
        }
    }
    for ip in ["192.0.2.2", "2001:db8:1::2"] {
        let to = SocketAddr::new(ip.parse()?, TCP_PORT);
        ensure!(_pod.probe().tcp(to).answer()?.by == "node-outside", "{ip}");
        ensure!(Probe::from(&node.netns).tcp(to).answer()?.by == "node-outside", "{ip}");
    }
    // Control.
    let to = SocketAddr::new("192.0.2.1".parse()?, TCP_PORT);
    ensure!(Probe::from(&node.outside).tcp(to).answer()?.by == "pod");
    drop(result);
    Ok(())
}

fn a_host_port_answers_at_its_address_alone() -> Result<()> {
    let node = Node::new("node")?;
    node.netns.links()?.add_address("uplink", "192.0.2.9/24".parse()?)?;
    let at = |ip: &str| {
        with_ports(json!([{ "hostPort": HOST_PORT, "containerPort": TCP_PORT, "protocol": "tcp", "hostIP": ip }]))
    };
    let (_first, _, _first_servers) = node.attached("first", &at("192.0.2.9"))?;
    let (_second, _, _second_servers) = node.attached("second", &at("2001:db8:1::1"))?;
    let (_third, _, _third_servers) = node.attached("third", &at("127.0.0.1"))?;
    for (ip, expected) in [("192.0.2.9", Some("first")), ("2001:db8:1::1", Some("second")), ("192.0.2.1", None)] {
        let reply = dial(&node.outside, Protocol::Tcp, ip)?;
        match expected {
            Some(pod) => ensure!(reply.is_by(pod), "{ip}: {reply}"),
            None => ensure!(reply.outcome == Outcome::Refused, "{ip}: {reply}"),
        }
    }
    ensure!(dial(&node.netns, Protocol::Tcp, "127.0.0.1")?.is_by("third"));
    // An address that is not the node's may be somebody else's.
    let (_fourth, _, _fourth_servers) = node.attached("fourth", &at("192.0.2.2"))?;
    let _outside = Servers::start(&node.outside)?;
    let reply = Probe::from(&node.netns).tcp(SocketAddr::new("192.0.2.2".parse()?, HOST_PORT));
    ensure!(reply.outcome == Outcome::Refused, "{reply}");
    Ok(())
}

/// CVE-2019-9946: with a Service's rules where kube-proxy and Tollgate have them.
fn a_node_port_wins_over_a_host_port() -> Result<()> {
    let node = Node::new("node")?;
    let ports = with_ports(json!([mapping(TCP_PORT, "tcp")]));
    let (_pod, _, _servers) = node.attached("pod", &ports)?;
    let (_service, service, _service_servers) = node.attached("service", &conf())?;
    ensure!(dial(&node.outside, Protocol::Tcp, "192.0.2.1")?.is_by("pod"), "a control");
    let endpoint = addresses(&service)[0];
    node.command("nft add table ip services")?;
    node.command("nft add chain ip services prerouting { type nat hook prerouting priority -100 ; }")?;
    node.command(&format!("nft add rule ip services prerouting tcp dport {HOST_PORT} dnat to {endpoint}:{TCP_PORT}"))?;
    node.command("nft add chain ip services output { type nat hook output priority -100 ; }")?;
    node.command(&format!("nft add rule ip services output tcp dport {HOST_PORT} dnat to {endpoint}:{TCP_PORT}"))?;
    for from in [&node.outside, &node.netns] {
        let reply = dial(from, Protocol::Tcp, "192.0.2.1")?;
        ensure!(reply.is_by("service"), "from {}: {reply}", from.name());
    }
    Ok(())
}

fn a_host_port_is_one_pods_alone() -> Result<()> {
    let node = Node::new("node")?;
    let ports = with_ports(json!([mapping(TCP_PORT, "tcp")]));
    let (first, _, _servers) = node.attached("first", &ports)?;
    let second = node.pod("second")?;
    let (code, text) = node.call("ADD", &ports).of(&second).run()?.failure()?;
    ensure!(
        code == 103 && text.contains(&format!("host port {HOST_PORT}/tcp")) && text.contains("first"),
        "{code} {text}"
    );
    ensure!(dial(&node.outside, Protocol::Tcp, "192.0.2.1")?.is_by("first"), "the first one's is as it was");
    node.del(&first, &ports)?;
    node.add(&second, &ports)?;
    let _servers = Servers::start(&second.netns)?;
    ensure!(dial(&node.outside, Protocol::Tcp, "192.0.2.1")?.is_by("second"));
    node.del(&second, &ports)?;
    node.ensure_nothing_left("pods")
}

fn a_udp_client_that_goes_on_meets_the_new_pod() -> Result<()> {
    let node = Node::new("node")?;
    node.route_to_pods()?;
    let ports = with_ports(json!([mapping(UDP_PORT, "udp")]));
    for ip in ["192.0.2.1", "2001:db8:1::1"] {
        let client = Probe::from(&node.outside).source_port(40_000);
        let (first, _, servers) = node.attached("first", &ports)?;
        let reply = client.udp(socket(ip)?);
        ensure!(reply.is_by("first"), "{ip}: {reply}");
        drop(servers);
        node.del(&first, &ports)?;
        // Nobody is there, and the client does not notice: these datagrams make a flow that leads nowhere.
        ensure!(!matches!(client.clone().impatient().udp(socket(ip)?).outcome, Outcome::Answered(_)));
        let (second, _, servers) = node.attached("second", &ports)?;
        let reply = client.udp(socket(ip)?);
        ensure!(reply.is_by("second"), "{ip}: {reply}");
        drop(servers);
        node.del(&second, &ports)?;
    }
    Ok(())
}

fn pods_cant_dial_the_nodes_loopback() -> Result<()> {
    let node = Node::new("node")?;
    let _servers = Servers::start(&node.netns)?;
    let unchecked = conf_with(|conf| {
        conf["macspoofchk"] = false.into();
        conf["runtimeConfig"] = json!({ "portMappings": [mapping(TCP_PORT, "tcp")] });
    });
    let pod = node.pod("pod")?;
    node.add(&pod, &unchecked)?;
    // What route_localnet is for: without the rule, a pod that routes 127.0.0.0/8 to the node gets through.
    pod.netns.sysctl("net/ipv4/conf/eth0/route_localnet", "1")?;
    pod.command("ip route add 127.0.0.9/32 via 10.1.0.1 dev eth0 src 10.1.0.2")?;
    pod.command("ip route del local 127.0.0.0/8 dev lo table local")?;
    let to = SocketAddr::new("127.0.0.9".parse()?, TCP_PORT);
    let reply = pod.probe().impatient().tcp(to);
    ensure!(reply.outcome == Outcome::Timeout, "{reply}");
    // Control: it is the rule that stops it.
    node.command("nft flush chain ip tollgate-cni raw")?;
    ensure!(pod.probe().impatient().tcp(to).answer().context("without the rule")?.by == "node");
    Ok(())
}
