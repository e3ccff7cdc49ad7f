//! What a case works with: a lab with Tollgate on it, one family, and a Kubernetes namespace of its own.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;
use tollgate_api::v1::Key;
use tollgate_lab::harness::Explain;
use tollgate_lab::object::{self, Service, Slice};
use tollgate_lab::{Cluster, Family, Mode, Pod, Probe, Protocol, Tollgate};

/// Who dials.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// A pod.
    Pod(&'static str),
    /// A process of a node.
    Node(u8),
    /// A host that is no node, which sends what is for Services to node 1.
    Outside,
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

    /// A Service of the scene's family that serves TCP on 80 and UDP on 81.
    pub(crate) fn web(&self) -> Service {
        self.service("web").port(Protocol::Tcp, 80).port(Protocol::Udp, 81)
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

    pub(crate) fn probe(&self, from: Client) -> Probe {
        match from {
            Client::Pod(name) => self.pod(name).probe(),
            Client::Node(number) => self.cluster().node(number).probe(),
            Client::Outside => self.cluster().host(1).probe(),
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
