//! Nodes, of which only this one matters, and the addresses on its interfaces.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use crate::name::{IpFamily, NamespacedName};
use crate::object::{InvalidObject, Kind, Reader, is_special};

const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler's announcement that it will remove the node; kube-proxy's `/healthz` heeds it as well.
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    name: Arc<str>,
    zone: Option<Arc<str>>,
    is_being_deleted: bool,
    internal_ips: Box<[IpAddr]>,
    external_ips: Box<[IpAddr]>,
    pod_cidrs: Box<[IpNet]>,
    rejected: Box<[InvalidObject]>,
}

/// The addresses on the interfaces of this node's own network namespace, as the kernel has them. Those of a device that
/// the proxy itself keeps for Service addresses do not belong here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// In the order of the interfaces: without a Node object, the first ordinary one of a family is its primary address.
    pub addresses: Vec<IpAddr>,
}

impl NodeAddresses {
    /// The first of the family that others can reach.
    #[must_use]
    pub fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| IpFamily::from(*ip) == family && !is_special(*ip))
    }
}

impl Node {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The zone label, if there is one.
    #[must_use]
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.zone.as_ref()
    }

    /// Whether the node is on its way out: deleted, or marked so by the cluster autoscaler.
    #[must_use]
    pub fn is_being_deleted(&self) -> bool {
        self.is_being_deleted
    }

    /// The pods' address ranges on this node.
    #[must_use]
    pub fn pod_cidrs(&self) -> &[IpNet] {
        &self.pod_cidrs
    }

    /// Its addresses, internal ones first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.internal_ips.iter().chain(&self.external_ips).copied()
    }

    /// The address by which the cluster knows the node: the first internal one of the family, else the first external one.
    #[must_use]
    pub fn primary_address(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses().find(|ip| IpFamily::from(*ip) == family)
    }

    /// The parts that were left out because they do not validate.
    #[must_use]
    pub fn rejected(&self) -> &[InvalidObject] {
        &self.rejected
    }

    /// Its name in the form that all objects have.
    #[must_use]
    pub fn key(&self) -> NamespacedName {
        NamespacedName::new("", Arc::clone(&self.name))
    }
}

/// A bad address or pod range is left out, see [`Node::rejected`]; only a missing name makes the Node invalid.
impl TryFrom<&v1::Node> for Node {
    type Error = InvalidObject;

    fn try_from(node: &v1::Node) -> Result<Self, InvalidObject> {
        let reader = Reader::new(Kind::Node, &node.metadata)?;
        let spec = node.spec.as_ref();
        let mut rejected = Vec::new();
        let (mut internal_ips, mut external_ips) = (Vec::new(), Vec::new());
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        for (i, address) in addresses.enumerate() {
            let list = match address.type_.as_str() {
                "InternalIP" => &mut internal_ips,
                "ExternalIP" => &mut external_ips,
                _ => continue,
            };
            match reader.ip(format!("status.addresses[{i}].address"), &address.address) {
                Ok(ip) => list.push(ip),
                Err(error) => rejected.push(error),
            }
        }
        let mut pod_cidrs = Vec::new();
        let listed = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
        let single = spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|_| listed.is_empty());
        for (i, cidr) in listed.iter().chain(single).filter(|cidr| !cidr.is_empty()).enumerate() {
            match reader.network(format!("spec.podCIDRs[{i}]"), cidr) {
                Ok(cidr) => pod_cidrs.push(cidr),
                Err(error) => rejected.push(error),
            }
        }
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).filter(|zone| !zone.is_empty());
        let mut taints = spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        Ok(Self {
            name: Arc::clone(&reader.name().name),
            zone: zone.map(|zone| Arc::from(zone.as_str())),
            is_being_deleted: node.metadata.deletion_timestamp.is_some()
                || taints.any(|taint| taint.key == TO_BE_DELETED_TAINT),
            internal_ips: internal_ips.into(),
            external_ips: external_ips.into(),
            pod_cidrs: pod_cidrs.into(),
            rejected: rejected.into(),
        })
    }
}
