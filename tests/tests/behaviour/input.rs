//! Bad input: whatever the source says, it takes nothing else down.
//!
//! The bundled control plane refuses most of it, so the objects here come from a source that checks nothing.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tollgate_api::v1::Key;
use tollgate_lab::harness::Explain;
use tollgate_lab::object::{Endpoint, Service, Slice};
use tollgate_lab::{
    Cluster, Family, Load, Mode, Probe, Protocol, Proxy, RawSource, TCP_PORT, Tollgate, address, eventually,
};

use crate::Case;
use crate::cluster;
use crate::table::ensure_refused;

pub(crate) const CASES: &[(&str, Case)] = &[
    ("bad-object-isolated-raw", Case::Raw(bad_objects)),
    ("bad-object-isolated-last-known", Case::Raw(bad_versions)),
    ("headless-ignored-external-ip", Case::Raw(headless_external_ips)),
    ("endpoint-address-special", Case::Raw(special_endpoints)),
    ("frontend-conflict", Case::Raw(frontend_conflict)),
    ("node-port-in-use", Case::Raw(node_port_in_use)),
    ("name-of-253-characters", Case::Raw(longest_names)),
    ("external-ip-cidrs", Case::Raw(external_ip_cidrs)),
];

const NAMESPACE: &str = "default";

/// A cluster whose node 1 listens to a source that checks nothing.
pub(crate) struct RawStage {
    proxy: Proxy,
    source: RawSource,
    cluster: Cluster,
    family: Family,
}

impl RawStage {
    pub(crate) fn new(mode: Mode, family: Family) -> Result<Self> {
        let cluster = cluster()?;
        Tollgate::prepare(&cluster, mode)?;
        let source = RawSource::start(cluster.control_host())?;
        let mut proxy = Proxy::new(cluster.node(1), mode, &source.url(), &[("--register-node", "false")])?;
        proxy.start()?;
        proxy.wait_healthy()?;
        Ok(Self { proxy, source, cluster, family })
    }

    /// The address of that number in a network: nobody else allots any here.
    fn ip(&self, number: usize) -> IpAddr {
        address::service_cidr(self.family).hosts().nth(number).expect("a large network")
    }

    fn external_ip(&self, number: usize) -> IpAddr {
        address::external_cidr(self.family).hosts().nth(number).expect("a large network")
    }

    /// A Service on TCP port 80 as an API server would hand it out, with the address of that number.
    fn service(&self, name: &str, number: usize) -> Service {
        let ip = self.ip(number).to_string();
        let service = Service::new(NAMESPACE, name).port(Protocol::Tcp, 80).cluster_ip(&ip);
        service.spec("clusterIPs", json!([ip])).family(self.family)
    }

    fn slice(&self, service: &str, pod: &str) -> Slice {
        Slice::new(NAMESPACE, service, self.family).endpoint(self.cluster.pod(pod))
    }

    /// Serves objects and waits until the last one is in the kernel.
    fn apply(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let mut revision = 0;
        for object in objects {
            revision = self.source.apply(object)?;
        }
        self.proxy.wait_applied(revision)
    }

    fn client(&self) -> Probe {
        self.cluster.pod("pod-1a").probe()
    }

    fn vip(&self, number: usize) -> SocketAddr {
        (self.ip(number), 80).into()
    }

    /// Fails unless that pod, and no other, answers there.
    fn ensure_by(&self, pod: &str, to: SocketAddr) -> Result<()> {
        self.client().spread(Protocol::Tcp, to, 16).ensure_only(&[pod]).with_context(|| format!("dialling {to}"))
    }

    /// Waits for a line of the log that has all of these words.
    fn ensure_logged(&self, words: &[&str]) -> Result<()> {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        eventually(&format!("a line of the log with {words:?}"), || {
            ensure!(self.proxy.log().lines().iter().any(has_all), "there is none");
            Ok(())
        })
    }
}

impl Explain for RawStage {
    fn logs(&self) -> String {
        self.proxy.log().lines().join("\n")
    }

    fn enter_commands(&self) -> String {
        self.cluster.enter_commands()
    }
}

/// A value at a path such as `spec.ports.0.port`, replaced.
fn with(object: impl Into<Value>, path: &str, value: Value) -> Value {
    let mut object = object.into();
    let pointer = format!("/{}", path.replace('.', "/"));
    let (parent, last) = pointer.rsplit_once('/').expect("a path has a last part");
    let parent = object.pointer_mut(parent).expect("the path leads somewhere");
    match parent {
        Value::Array(items) => items[last.parse::<usize>().expect("an index")] = value,
        other => other[last] = value,
    }
    object
}

/// One bad object after the other, of every sort, while connections to a good Service go on; each is named in the log with
/// its field, and a change of the good Service after it takes effect.
fn bad_objects(stage: &mut RawStage) -> Result<()> {
    stage.apply([stage.service("web", 1).into(), stage.slice("web", "pod-1b").into()])?;
    let load = Load::start(stage.vip(1), [stage.cluster.pod("pod-1a").netns()], 300);
    let service = |name: &str| Value::from(stage.service(name, 2));
    let bad = [
        ("protocol", with(service("protocol"), "spec.ports.0.protocol", json!("QUIC")), "spec.ports[0].protocol"),
        ("port", with(service("port"), "spec.ports.0.port", json!(70000)), "spec.ports[0].port"),
        (
            "node-port",
            {
                let object = with(service("node-port"), "spec.type", json!("NodePort"));
                with(object, "spec.ports.0.nodePort", json!(-1))
            },
            "spec.ports[0].nodePort",
        ),
        ("type", with(service("type"), "spec.type", json!("Telephone")), "spec.type"),
        ("affinity", with(service("affinity"), "spec.sessionAffinity", json!("Sometimes")), "spec.sessionAffinity"),
        ("policy", with(service("policy"), "spec.internalTrafficPolicy", json!("Never")), "spec.internalTrafficPolicy"),
        ("address", with(service("address"), "spec.clusterIPs", json!(["010.1.1.1"])), "spec.clusterIPs[0]"),
        ("loopback", with(service("loopback"), "spec.clusterIPs", json!(["127.0.0.1"])), "spec.clusterIPs[0]"),
        (
            "ranges",
            {
                let object = with(service("ranges"), "spec.type", json!("LoadBalancer"));
                with(object, "spec.loadBalancerSourceRanges", json!(["all of them"]))
            },
            "spec.loadBalancerSourceRanges[0]",
        ),
        ("specless", json!({ "kind": "Service", "metadata": { "namespace": NAMESPACE, "name": "specless" } }), "spec"),
        ("slice-port", with(stage.slice("slice-port", "pod-1b"), "ports.0.protocol", json!("IP")), "ports[0].protocol"),
        ("slice-type", with(stage.slice("slice-type", "pod-1b"), "addressType", json!("IPX")), "addressType"),
        (
            "no-address",
            with(stage.slice("no-address", "pod-1b"), "endpoints.0.addresses", json!([])),
            "endpoints[0].addresses",
        ),
        ("not-a-list", with(service("not-a-list"), "spec.ports", json!("80")), "not-a-list"),
    ];
    let mut pods = ["pod-1b", "pod-2a"].into_iter().cycle();
    for (name, object, field) in bad {
        stage.apply([object]).with_context(|| format!("the bad object {name}"))?;
        stage.ensure_logged(&["WARN", name, field]).with_context(|| format!("the bad object {name}"))?;
        let pod = pods.next().expect("for ever");
        stage.apply([stage.slice("web", pod).into()])?;
        stage.ensure_by(pod, stage.vip(1)).with_context(|| format!("after the bad object {name}"))?;
    }
    for (name, bytes) in [("no-json", &b"{"[..]), ("no-utf8", &[0xff, 0xfe]), ("empty", b""), ("list", b"[]")] {
        let revision = stage.source.apply_bytes(Key::service(NAMESPACE, name), bytes.to_vec());
        stage.proxy.wait_applied(revision)?;
        stage.ensure_logged(&["WARN", name]).with_context(|| format!("the bytes {name}"))?;
        stage.ensure_by("pod-2a", stage.vip(1)).with_context(|| format!("after the bytes {name}"))?;
    }
    load.stop().ensure_none_failed()
}

/// A Service that was good and is bad now is not served as it was, and is served again when it is good again.
fn bad_versions(stage: &mut RawStage) -> Result<()> {
    stage.apply([stage.service("web", 1).into(), stage.slice("web", "pod-1b").into()])?;
    stage.apply([stage.service("other", 2).into(), stage.slice("other", "pod-2a").into()])?;
    stage.ensure_by("pod-1b", stage.vip(1))?;
    stage.apply([with(stage.service("web", 1), "spec.ports.0.protocol", json!("QUIC"))])?;
    let reply = stage.client().impatient().tcp(stage.vip(1));
    ensure!(reply.answer().is_err(), "an invalid Service goes on as its version before: {reply}");
    stage.ensure_by("pod-2a", stage.vip(2))?;
    stage.apply([stage.service("web", 1).into()])?;
    stage.ensure_by("pod-1b", stage.vip(1))
}

/// Services without a ClusterIP have no frontends, whatever else they list, and are nothing to complain of.
fn headless_external_ips(stage: &mut RawStage) -> Result<()> {
    let (ip, control) = (stage.external_ip(1), stage.external_ip(2));
    let bare = |name: &str| Service::new(NAMESPACE, name).port(Protocol::Tcp, 80).family(stage.family).external_ip(ip);
    let headless = [
        bare("none").cluster_ip("None").spec("clusterIPs", json!(["None"])),
        bare("empty").cluster_ip(""),
        bare("absent"),
        bare("name").external_name("example.net"),
    ];
    stage.apply([stage.service("web", 1).external_ip(control).into(), stage.slice("web", "pod-1b").into()])?;
    for service in headless {
        let service = Value::from(service);
        let name = service["metadata"]["name"].as_str().context("a Service has a name")?.to_owned();
        stage.apply([stage.slice(&name, "pod-2a").into(), service])?;
        let reply = stage.client().impatient().tcp((ip, 80).into());
        ensure!(reply.answer().is_err(), "the Service {name} has a frontend: {reply}");
        let full = format!("{NAMESPACE}/{name}");
        let complaint =
            stage.proxy.log().lines().into_iter().find(|line| line.contains("WARN") && line.contains(&full));
        ensure!(complaint.is_none(), "{complaint:?}");
        stage.ensure_by("pod-1b", (control, 80).into())?;
    }
    Ok(())
}

/// CVE-2021-25737: an endpoint on loopback or link-local would show what listens on the node alone.
fn special_endpoints(stage: &mut RawStage) -> Result<()> {
    let _servers = stage.cluster.node(1).start_servers()?;
    let node = stage.cluster.node(1).probe();
    let loopback: IpAddr = if stage.family == Family::V4 { "127.0.0.1" } else { "::1" }.parse()?;
    ensure!(node.tcp((loopback, TCP_PORT).into()).is_by("node-1"), "a server that listens on loopback");
    let special: &[&str] = match stage.family {
        Family::V4 => &["127.0.0.1", "127.1.2.3", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255"],
        Family::V6 => &["::1", "fe80::1", "::", "ff02::1", "::ffff:127.0.0.1"],
    };
    for (number, address) in special.iter().enumerate() {
        let name = format!("special-{number}");
        let slice = with(stage.slice(&name, "pod-1b"), "endpoints.0.addresses", json!([address]));
        stage.apply([stage.service(&name, 10 + number).into(), slice])?;
        stage.ensure_logged(&["WARN", &name, "endpoints[0].addresses[0]", address])?;
        for client in [stage.client(), stage.cluster.node(1).probe(), stage.cluster.host(1).probe()] {
            ensure_refused(&client.tcp(stage.vip(10 + number))).with_context(|| format!("an endpoint at {address}"))?;
        }
    }
    // Beside a good endpoint, the bad one is left out.
    let pods = ["pod-1b", "pod-2a"].map(|name| Endpoint::from(stage.cluster.pod(name)));
    let both = Slice::new(NAMESPACE, "mixed", stage.family).endpoints(pods);
    stage.apply([stage.service("mixed", 30).into(), both.clone().into()])?;
    stage.client().spread(Protocol::Tcp, stage.vip(30), 64).ensure_only(&["pod-1b", "pod-2a"])?;
    stage.apply([with(both, "endpoints.0.addresses", json!([special[0]]))])?;
    stage.ensure_by("pod-2a", stage.vip(30))
}

/// Two Services claim one external address and port: the older has it, whatever its name, and the other inherits it.
fn frontend_conflict(stage: &mut RawStage) -> Result<()> {
    let shared = stage.external_ip(1);
    let claimant = |name: &str, number, created: &str| {
        let service = Value::from(stage.service(name, number).external_ip(shared));
        with(service, "metadata.creationTimestamp", json!(created))
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    stage.apply([
        stage.slice("a-younger", "pod-1b").into(),
        stage.slice("b-older", "pod-2a").into(),
        claimant("a-younger", 1, new),
    ])?;
    let to = SocketAddr::new(shared, 80);
    let outside = stage.cluster.host(1).probe();
    let ensure_by = |pod: &str| {
        stage.ensure_by(pod, to)?;
        outside.spread(Protocol::Tcp, to, 16).ensure_only(&[pod])
    };
    ensure_by("pod-1b").context("alone, it has it")?;
    stage.apply([claimant("b-older", 2, old)])?;
    ensure_by("pod-2a").context("the older has it")?;
    stage.ensure_logged(&["WARN", "default/a-younger", "default/b-older", &shared.to_string()])?;
    // Each has its own ClusterIP all the same.
    stage.ensure_by("pod-1b", stage.vip(1))?;
    stage.ensure_by("pod-2a", stage.vip(2))?;
    let revision = stage.source.delete(Key::service(NAMESPACE, "b-older"));
    stage.proxy.wait_applied(revision)?;
    ensure_by("pod-1b").context("the other inherits it")?;
    // Of the same age, the name decides.
    stage.apply([claimant("b-older", 2, new)])?;
    ensure_by("pod-1b").context("the first by name has it")?;
    // A NodePort that two claim is no different.
    let ported = |name: &str, number| {
        let service = stage.service(name, number).node_port();
        with(with(service, "spec.ports.0.nodePort", json!(30080)), "metadata.creationTimestamp", json!(new))
    };
    stage.apply([ported("a-younger", 1), ported("b-older", 2)])?;
    let node_port = (stage.cluster.node(1).ip(stage.family), 30080).into();
    stage.ensure_by("pod-1b", node_port)?;
    stage.ensure_logged(&["WARN", "default/a-younger", "default/b-older", "30080"])?;
    // It lets go of that alone, and goes on with the rest.
    stage.apply([stage.service("a-younger", 1).into()])?;
    stage.ensure_by("pod-2a", node_port).context("the other inherits the NodePort")?;
    stage.ensure_by("pod-1b", stage.vip(1))?;
    // CVE-2020-8554: whoever lists the cluster IP of another among its external IPs does not get it, however old it is.
    let thief = Value::from(stage.service("thief", 3).external_ip(stage.ip(1)));
    let thief = with(thief, "metadata.creationTimestamp", json!("2025-01-01T00:00:00Z"));
    stage.apply([stage.slice("thief", "pod-2b").into(), thief])?;
    stage.ensure_logged(&["WARN", "default/a-younger", "default/thief", &stage.ip(1).to_string()])?;
    stage.ensure_by("pod-2b", stage.vip(3)).context("its own cluster IP is its own")?;
    stage.ensure_by("pod-1b", stage.vip(1)).context("a cluster IP is nobody else's")?;
    // Nor by being there first, when the other is made anew.
    let revision = stage.source.delete(Key::service(NAMESPACE, "a-younger"));
    stage.proxy.wait_applied(revision)?;
    stage.apply([stage.service("a-younger", 1).into()])?;
    stage.ensure_by("pod-1b", stage.vip(1)).context("a cluster IP is nobody else's")
}

/// A process of the node has the port already: the Service works, the process is left alone on the addresses that answer no
/// NodePorts, and so is everything else.
fn node_port_in_use(stage: &mut RawStage) -> Result<()> {
    let node = stage.cluster.node(1);
    let any: IpAddr = if stage.family == Family::V4 { "0.0.0.0" } else { "::" }.parse()?;
    let _process = node.netns().run(move || TcpListener::bind((any, 30081))).context("a process of the node")?;
    let web = with(stage.service("web", 1).node_port(), "spec.ports.0.nodePort", json!(30081));
    // A health check's port is a socket of the proxy, which it can't have here.
    let checked = stage.service("checked", 2).load_balancer(stage.external_ip(2)).external_local();
    let checked = with(checked, "spec.healthCheckNodePort", json!(30081));
    stage.apply([web, stage.slice("web", "pod-1b").into()])?;
    stage.ensure_by("pod-1b", (node.ip(stage.family), 30081).into())?;
    stage.apply([checked, stage.slice("checked", "pod-1b").into()])?;
    stage.ensure_by("pod-1b", (stage.external_ip(2), 80).into())?;
    stage.apply([stage.service("other", 3).into(), stage.slice("other", "pod-2a").into()])?;
    stage.ensure_by("pod-2a", stage.vip(3))?;
    ensure!(stage.proxy.healthz()?.0 == 200, "the proxy is healthy");
    Ok(())
}

/// The longest names that the API has: a namespace of 63 characters, a slice of 253 and ports of 63.
fn longest_names(stage: &mut RawStage) -> Result<()> {
    let (namespace, name, port) = ("n".repeat(63), "s".repeat(253), "p".repeat(63));
    let rename = |object: Value, name: &str| {
        with(with(object, "metadata.namespace", json!(namespace)), "metadata.name", json!(name))
    };
    for (number, protocol) in [(1, "TCP"), (2, "UDP")] {
        let name = format!("{}{number}", &name[1..]);
        let service = rename(stage.service("long", number).node_port().into(), &name);
        let service = with(service, "spec.ports.0.name", json!(port));
        let service = with(service, "spec.ports.0.nodePort", json!(30090));
        let service = with(service, "spec.ports.0.protocol", json!(protocol));
        let slice = rename(stage.slice("long", "pod-1b").into(), &name);
        let slice = with(slice, "metadata.labels", json!({ "kubernetes.io/service-name": name }));
        let number = if protocol == "TCP" { TCP_PORT } else { tollgate_lab::UDP_PORT };
        let slice = with(slice, "ports", json!([{ "name": port, "port": number, "protocol": protocol }]));
        stage.apply([service, slice])?;
    }
    for (number, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
        for to in [stage.vip(number), (stage.cluster.node(1).ip(stage.family), 30090).into()] {
            stage.client().spread(protocol, to, 16).ensure_only(&["pod-1b"]).with_context(|| format!("{to}"))?;
        }
    }
    Ok(())
}

/// CVE-2020-8554: external IPs outside the ranges that the operator gave are not served, and the rest of the Service is.
fn external_ip_cidrs(stage: &mut RawStage) -> Result<()> {
    let (admitted, other) = (stage.external_ip(1), stage.external_ip(2));
    let both = |number| stage.service("web", number).spec("externalIPs", json!([admitted, other]));
    stage.apply([both(1).into(), stage.slice("web", "pod-1b").into()])?;
    stage.ensure_by("pod-1b", (admitted, 80).into())?;
    stage.ensure_by("pod-1b", (other, 80).into()).context("without the flag, all are honoured")?;
    stage.proxy.stop()?;
    stage.proxy.set_flag("--external-ip-cidrs", &ipnet::IpNet::from(admitted).to_string());
    stage.proxy.start()?;
    stage.proxy.wait_healthy()?;
    stage.apply([stage.slice("web", "pod-2a").into()])?;
    stage.ensure_by("pod-2a", (admitted, 80).into())?;
    stage.ensure_by("pod-2a", stage.vip(1))?;
    let reply = stage.client().impatient().tcp((other, 80).into());
    ensure!(reply.answer().is_err(), "an external IP outside the ranges is served: {reply}");
    Ok(())
}
