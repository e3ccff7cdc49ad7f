//! A lab with many Services, whose endpoints all answer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};
use tollgate_lab::object;
use tollgate_lab::{Cluster, ControlPlane, Family, Mode, NetNs, Proxy, Tollgate, Topology};

use super::memory::{Memory, Watch};
use super::server::{self, PORTS, ask_within};

/// Endpoints of each Service.
pub(super) const ENDPOINTS: u32 = 10;
/// One endpoint in so many is on the measured node, as in a cluster of as many nodes.
const NODES: u32 = 50;
const NAMESPACE: &str = "bench";
/// Where endpoints have their addresses. All of it is local to the server pod, so that each of them answers.
const ENDPOINT_NET: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Writes to the control plane at one time: its commits are shared by whoever waits for one.
const WRITERS: usize = 64;
/// A cold start may take so long before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a connect to a Service may take that is not there yet, before the next is tried.
const ATTEMPT: Duration = Duration::from_millis(20);

/// A node with many Services, and one without any rules.
pub(super) struct Scale {
    // Programs go before the network under them.
    memory: Option<Watch>,
    proxy: Proxy,
    control_plane: ControlPlane,
    cluster: Cluster,
    bare: Cluster,
    vips: Vec<SocketAddr>,
}

/// From the proxy's start.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ColdStart {
    /// Until the last Service answers.
    pub(super) to_last_service: Duration,
    /// Until the proxy says that the kernel has everything.
    pub(super) to_applied: Duration,
}

impl Scale {
    /// Builds the lab and fills the control plane. The proxy is not started yet.
    pub(super) fn new(mode: Mode, services: u32) -> Result<Self> {
        ensure!(services > 0 && services < 60_000, "from 1 to 60,000 Services, as many as there are ClusterIPs");
        let topology = Topology { nodes: 1, pods_per_node: 3, hosts: 0 };
        let (cluster, bare) = (Cluster::new(topology)?, Cluster::new(topology)?);
        let net: IpNet = format!("{ENDPOINT_NET}/9").parse()?;
        for cluster in [&cluster, &bare] {
            let pod = cluster.pod("pod-1b");
            pod.netns().links()?.add_local_route(net)?;
            cluster.node(1).netns().links()?.add_route(net, pod.ip(Family::V4))?;
            server::start(pod.netns())?;
        }
        Tollgate::prepare(&cluster, mode)?;
        let control_plane = ControlPlane::start(cluster.control_host())?;
        let proxy = Proxy::new(cluster.node(1), mode, &control_plane.url(), &[])?;
        let mut this = Self { memory: None, proxy, control_plane, cluster, bare, vips: Vec::new() };
        let start = Instant::now();
        this.control_plane.client().apply(object::namespace(NAMESPACE))?;
        let stored = this.apply_all((0..services).map(service).collect())?;
        this.vips = stored.iter().map(vip_of).collect::<Result<_>>()?;
        this.apply_all((0..services).map(|index| slice(index, PORTS[0])).collect())?;
        println!("  the control plane has them after {:.1} s", start.elapsed().as_secs_f64());
        Ok(this)
    }

    /// Starts the proxy and waits until everything is programmed.
    pub(super) fn start_proxy(&mut self) -> Result<ColdStart> {
        let revision = self.control_plane.client().newest_write();
        let last = self.vips[self.vips.len() - 1];
        let start = Instant::now();
        self.proxy.start()?;
        self.memory = Some(Watch::start(self.proxy.pid().context("the proxy was just started")?));
        // Not the pod that the connections are measured from: what it dials before there are rules leaves untranslated flows,
        // which a later connection from the same port would go the way of.
        let answers = self.cluster.pod("pod-1c").netns().run(move || {
            while start.elapsed() < PATIENCE {
                if ask_within(last, ATTEMPT).is_ok() {
                    return Some(start.elapsed());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        });
        let Some(to_last_service) = answers else { bail!("the last Service does not answer\n{}", self.logs()) };
        while !self.proxy.has_applied(revision)? {
            ensure!(start.elapsed() < PATIENCE, "not everything is programmed\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(ColdStart { to_last_service, to_applied: start.elapsed() })
    }

    /// How many Services there were at the start.
    pub(super) fn services(&self) -> u32 {
        u32::try_from(self.vips.len()).unwrap_or(u32::MAX)
    }

    /// Their addresses, in the order of their names.
    pub(super) fn vips(&self) -> &[SocketAddr] {
        &self.vips
    }

    /// The client pod.
    pub(super) fn client(&self) -> &NetNs {
        self.cluster.pod("pod-1a").netns()
    }

    /// The server, dialled directly.
    pub(super) fn server(&self) -> SocketAddr {
        self.cluster.pod("pod-1b").socket(Family::V4, PORTS[0])
    }

    /// The client pod of the node without rules.
    pub(super) fn bare_client(&self) -> &NetNs {
        self.bare.pod("pod-1a").netns()
    }

    /// The server of the node without rules.
    pub(super) fn bare_server(&self) -> SocketAddr {
        self.bare.pod("pod-1b").socket(Family::V4, PORTS[0])
    }

    /// Writes one object; returns it as stored.
    pub(super) fn apply(&self, object: Value) -> Result<Value> {
        self.control_plane.client().apply(object)
    }

    /// Writes many; returns them as stored, in their order.
    pub(super) fn apply_all(&self, objects: Vec<Value>) -> Result<Vec<Value>> {
        self.control_plane.client().apply_all(objects, WRITERS)
    }

    /// What the proxy and its children have held at most.
    pub(super) fn memory(&self) -> Result<Memory> {
        self.memory.as_ref().context("the proxy was never started")?.memory()
    }

    /// The end of the proxy's log.
    pub(super) fn logs(&self) -> String {
        let lines = self.proxy.log().lines();
        format!("the proxy's log ends with\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

/// A Service of the bench.
pub(super) fn service(index: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": NAMESPACE, "name": name(index) },
        "spec": { "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

/// Its slice: every endpoint on one of the server's ports. Another port means that every endpoint is another.
pub(super) fn slice(index: u32, port: u16) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(|number| endpoint(index * ENDPOINTS + number)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE, "name": name(index), "labels": { "kubernetes.io/service-name": name(index) },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "", "port": port, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn endpoint(number: u32) -> Value {
    // Neither the network's own address nor one that a pod has.
    let ip = Ipv4Addr::from(u32::from(ENDPOINT_NET) + 256 + number);
    let node = format!("node-{}", 1 + number % NODES);
    json!({ "addresses": [ip.to_string()], "nodeName": node, "conditions": { "ready": true } })
}

fn name(index: u32) -> String {
    format!("service-{index:05}")
}

/// The revision that an object was stored at.
pub(super) fn revision_of(object: &Value) -> Result<u64> {
    let revision = object["metadata"]["resourceVersion"].as_str().context("an object without a resourceVersion")?;
    revision.parse().with_context(|| format!("a resourceVersion that is no number: {revision}"))
}

/// The address of a stored Service.
pub(super) fn vip_of(service: &Value) -> Result<SocketAddr> {
    let ip = service["spec"]["clusterIP"].as_str().context("a Service without a clusterIP")?;
    let ip: IpAddr = ip.parse().with_context(|| format!("a clusterIP that is no address: {ip}"))?;
    Ok(SocketAddr::new(ip, 80))
}
