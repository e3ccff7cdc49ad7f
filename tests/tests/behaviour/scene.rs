//! What a case works with: a lab with Tollgate on it, one family, and a Kubernetes namespace of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;
use tollgate_api::v1::Key;
use tollgate_lab::harness::Explain;
use tollgate_lab::object::{self, Service, Slice};
use tollgate_lab::{Cluster, Family, Mode, Pod, Probe, Tollgate, address};

/// Who dials.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// A pod.
    Pod(&'static str),
    /// A process of a node.
    Node(u8),
    /// A host that is no node, which sends what is for Services to node 1.
    Outside,
    /// Another such host.
    Stranger,
}

/// Which of a Service's addresses is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Its ClusterIP.
    ClusterIp,
    /// Its external IP.
    ExternalIp,
    /// The first address that its load balancer has given it.
    LoadBalancerIp,
    /// Its NodePort on an address of a node.
    NodePort(NodeAddress),
}

/// An address of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeAddress {
    /// The primary one of the node of that number.
    Primary(u8),
    /// Another one.
    Second(u8),
    /// That of its pods' bridge.
    Bridge(u8),
    /// Loopback: that of whoever dials.
    Loopback,
}

impl At {
    /// Every frontend, the NodePort being that of node 1.
    pub(crate) const ALL: [Self; 4] =
        [Self::ClusterIp, Self::ExternalIp, Self::LoadBalancerIp, Self::NodePort(NodeAddress::Primary(1))];
    /// Those that the external traffic policy is about.
    pub(crate) const EXTERNAL: [Self; 3] =
        [Self::ExternalIp, Self::LoadBalancerIp, Self::NodePort(NodeAddress::Primary(1))];

    /// The NodePort on the primary address of a node.
    pub(crate) const fn node(number: u8) -> Self {
        Self::NodePort(NodeAddress::Primary(number))
    }

    /// That of a Service's port.
    pub(crate) const fn of(self, service: &'static str, port: u16) -> Dial {
        Dial { service, port, at: self }
    }
}

/// What is dialled: one of a Service's addresses, with one of its ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial {
    pub(crate) service: &'static str,
    /// The Service's port, also where the NodePort that belongs to it is dialled.
    pub(crate) port: u16,
    pub(crate) at: At,
}

impl From<(&'static str, u16)> for Dial {
    fn from((service, port): (&'static str, u16)) -> Self {
        At::ClusterIp.of(service, port)
    }
}

impl Dial {
    /// The port that is so much higher.
    pub(crate) fn port_plus(self, offset: u16) -> Self {
        Self { port: self.port + offset, ..self }
    }
}

/// A lab that a case reads from, and writes only objects of its own namespace to.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) lab: &'a Tollgate,
    pub(crate) family: Family,
    namespace: &'a str,
}

impl<'a> Scene<'a> {
    /// Makes the case's namespace.
    pub(crate) fn new(lab: &'a Tollgate, family: Family, namespace: &'a str) -> Result<Self> {
        lab.apply(object::namespace(namespace))?;
        Ok(Self::of(lab, family, namespace))
    }

    /// As [`Scene::new`], where the namespace is there or the control plane is not.
    pub(crate) fn of(lab: &'a Tollgate, family: Family, namespace: &'a str) -> Self {
        Self { lab, family, namespace }
    }

    pub(crate) fn cluster(&self) -> &'a Cluster {
        self.lab.cluster()
    }

    pub(crate) fn pod(&self, name: &str) -> &'a Pod {
        self.cluster().pod(name)
    }

    /// A Service of the scene's family.
    pub(crate) fn service(&self, name: &str) -> Service {
        Service::new(self.namespace, name).family(self.family)
    }

    /// A Service of the scene's family that serves TCP on 80 and UDP on 81, and SCTP on 82 where the kernel has it.
    pub(crate) fn web(&self) -> Service {
        self.service("web").transports(80)
    }

    /// As [`Scene::web`], with every frontend that there is: a NodePort, an external IP and a load-balancer IP.
    pub(crate) fn exposed(&self, name: &str) -> Service {
        let service = self.service(name).transports(80);
        service.external_ip(self.external_ip(name)).load_balancer(self.load_balancer_ip(name))
    }

    /// An external IP for a Service, which no other of the lab has.
    pub(crate) fn external_ip(&self, service: &str) -> IpAddr {
        self.allot("external", service)
    }

    /// A load-balancer IP for a Service, which no other of the lab has.
    pub(crate) fn load_balancer_ip(&self, service: &str) -> IpAddr {
        self.allot("load balancer", service)
    }

    fn allot(&self, what: &str, service: &str) -> IpAddr {
        // One count for all labs: none is so large that it needs all of the range for itself.
        static ALLOTTED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());
        let mut allotted = ALLOTTED.lock().unwrap_or_else(PoisonError::into_inner);
        let next = allotted.len();
        let number = *allotted.entry(format!("{what} {}/{service}", self.namespace)).or_insert(next);
        address::external_cidr(self.family).hosts().nth(number).expect("a large network")
    }

    /// A slice of the scene's family.
    pub(crate) fn slice(&self, service: &str) -> Slice {
        Slice::new(self.namespace, service, self.family)
    }

    /// A slice of either family.
    pub(crate) fn slice_of(&self, service: &str, family: Family) -> Slice {
        Slice::new(self.namespace, service, family)
    }

    /// The Kubernetes namespace that is the case's own.
    pub(crate) fn namespace(&self) -> &'a str {
        self.namespace
    }

    /// A slice of the scene's family with these pods, ready.
    pub(crate) fn ready(&self, service: &str, pods: &[&str]) -> Slice {
        self.slice(service).endpoints(pods.iter().map(|name| self.pod(name)))
    }

    /// Writes objects, and waits until every kernel has them.
    pub(crate) fn apply(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        for object in objects {
            self.lab.apply(object)?;
        }
        self.lab.settle()
    }

    /// Makes these pods the ready endpoints of a Service, and waits until every kernel has it.
    pub(crate) fn set_ready(&self, service: &str, pods: &[&str]) -> Result<()> {
        self.apply([self.ready(service, pods).into()])
    }

    /// Deletes a Service, and waits until no kernel has it.
    pub(crate) fn delete_service(&self, name: &str) -> Result<()> {
        self.lab.delete(Key::service(self.namespace, name))?;
        self.lab.settle()
    }

    /// The ClusterIP of a Service and one of its ports.
    pub(crate) fn vip(&self, service: &str, port: u16) -> Result<SocketAddr> {
        let stored = self.lab.object(Key::service(self.namespace, service))?;
        let ips = stored["spec"]["clusterIPs"].as_array().context("the Service has no clusterIPs")?;
        let ips = ips.iter().filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok());
        let ip = ips.into_iter().find(|ip| Family::of(*ip) == self.family);
        Ok(SocketAddr::new(ip.with_context(|| format!("{service} has no {} address", self.family))?, port))
    }

    /// The address behind a [`Dial`].
    pub(crate) fn address(&self, dial: impl Into<Dial>) -> Result<SocketAddr> {
        let Dial { service, port, at } = dial.into();
        let stored = || self.lab.object(Key::service(self.namespace, service));
        let parse = |value: &Value| -> Result<IpAddr> {
            let text = value.as_str().with_context(|| format!("{service} has no {at:?}: {value}"))?;
            text.parse().with_context(|| format!("{service}: {at:?} is {text}"))
        };
        let node = |number| self.cluster().node(number);
        let ip = match at {
            At::ClusterIp => return self.vip(service, port),
            At::ExternalIp => parse(&stored()?["spec"]["externalIPs"][0])?,
            At::LoadBalancerIp => parse(&stored()?["status"]["loadBalancer"]["ingress"][0]["ip"])?,
            At::NodePort(address) => {
                let ip = match address {
                    NodeAddress::Primary(number) => node(number).ip(self.family),
                    NodeAddress::Second(number) => node(number).second_ip(self.family),
                    NodeAddress::Bridge(number) => node(number).bridge_ip(self.family),
                    NodeAddress::Loopback if self.family == Family::V4 => Ipv4Addr::LOCALHOST.into(),
                    NodeAddress::Loopback => Ipv6Addr::LOCALHOST.into(),
                };
                return Ok(SocketAddr::new(ip, self.node_port(&stored()?, port)?));
            }
        };
        Ok(SocketAddr::new(ip, port))
    }

    fn node_port(&self, service: &Value, port: u16) -> Result<u16> {
        let ports = service["spec"]["ports"].as_array().context("the Service has no ports")?;
        let port = ports.iter().find(|own| own["port"] == port).context("the Service has no such port")?;
        let number = port["nodePort"].as_u64().with_context(|| format!("the port has no NodePort: {port}"))?;
        Ok(u16::try_from(number)?)
    }

    pub(crate) fn probe(&self, from: Client) -> Probe {
        match from {
            Client::Pod(name) => self.pod(name).probe(),
            Client::Node(number) => self.cluster().node(number).probe(),
            Client::Outside => self.cluster().host(1).probe(),
            Client::Stranger => self.cluster().host(2).probe(),
        }
    }
}

/// A lab that a case has to itself, to stop and kill what it likes.
pub(crate) struct Stage {
    pub(crate) lab: Tollgate,
    pub(crate) mode: Mode,
    pub(crate) family: Family,
}

impl Stage {
    /// The view that writes objects and dials.
    pub(crate) fn scene(&self) -> Result<Scene<'_>> {
        Scene::new(&self.lab, self.family, "default")
    }
}

impl Explain for Stage {
    fn logs(&self) -> String {
        self.lab.logs()
    }

    fn enter_commands(&self) -> String {
        self.lab.enter_commands()
    }
}
