//! What all objects share: their kind, and how an object that does not validate is told of.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::name::{IpFamily, NamespacedName, Protocol};

/// A Service or an EndpointSlice with this label is another proxy's business.
pub(crate) const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// A slice (or Service) with this label belongs to a headless Service, which no proxy serves.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// The kinds of object that the model is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice
    EndpointSlice,
    /// `v1` Node
    Node,
    /// The addresses on this node's own interfaces: one object, no Kubernetes kind.
    NodeAddresses,
}

/// An object, or a part of one, that does not validate: which object, which field, and what is wrong with the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {field}: {problem}")]
pub struct InvalidObject {
    /// The object's kind.
    pub kind: Kind,
    /// The object's name. The parts that the object itself lacks are empty.
    pub name: NamespacedName,
    /// The field, as a path from the object's root, such as `spec.externalIPs[0]`.
    pub field: Box<str>,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with the value of a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A required field is absent or empty.
    #[error("is missing")]
    Missing,
    /// Not an IP address as `core::net` parses it: in particular, no leading zeros.
    #[error("{0:?} is not an IP address")]
    NotAnAddress(Box<str>),
    /// Not a network.
    #[error("{0:?} is not a network, as in 10.0.0.0/8")]
    NotANetwork(Box<str>),
    /// An address that nothing behind a Service can have. An endpoint on loopback or link-local would expose what listens
    /// on the node alone (CVE-2021-25737), and an IPv4-mapped address would smuggle one in.
    #[error("{0} is an unspecified, loopback, link-local, multicast, broadcast or IPv4-mapped address")]
    SpecialAddress(IpAddr),
    /// An address of the other family.
    #[error("{0} is not an {1} address")]
    WrongFamily(IpAddr, IpFamily),
    /// A number beyond its limits.
    #[error("{value} is not within {min} to {max}")]
    OutOfRange {
        /// The value.
        value: i64,
        /// The smallest that is valid.
        min: i64,
        /// The greatest that is valid.
        max: i64,
    },
    /// A word that is none of those defined.
    #[error("{0:?} is not known")]
    Unknown(Box<str>),
    /// The second of a thing that there may be one of.
    #[error("{0} is there twice")]
    Duplicate(Box<str>),
    /// A family without a valid source range, where a range is invalid, would be open to all; so it is shut.
    #[error("a range is invalid and none is left for {0}, so its load-balancer IPs are not served")]
    SourceRangesUnknown(IpFamily),
    /// Nothing could be read of the object but its name.
    #[error("cannot be decoded: {0}")]
    Undecodable(Box<str>),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::NodeAddresses => "NodeAddresses",
        })
    }
}

impl InvalidObject {
    /// An object of which nothing is known but kind and name, because its encoding cannot be read.
    #[must_use]
    pub fn undecodable(kind: Kind, name: NamespacedName, cause: impl fmt::Display) -> Self {
        Self { kind, name, field: "object".into(), problem: Problem::Undecodable(cause.to_string().into()) }
    }
}

/// The object that is being read: makes errors that name it, and parses the values that several kinds have.
pub(crate) struct Reader {
    kind: Kind,
    name: NamespacedName,
}

impl Reader {
    /// Reads the name; every kind but Node has a namespace.
    pub(crate) fn new(kind: Kind, metadata: &ObjectMeta) -> Result<Self, InvalidObject> {
        let namespace = metadata.namespace.as_deref().filter(|_| kind != Kind::Node).unwrap_or_default();
        let name = NamespacedName::new(namespace, metadata.name.as_deref().unwrap_or_default());
        let reader = Self { kind, name };
        if reader.name.name.is_empty() {
            return Err(reader.invalid("metadata.name", Problem::Missing));
        }
        if kind != Kind::Node && reader.name.namespace.is_empty() {
            return Err(reader.invalid("metadata.namespace", Problem::Missing));
        }
        Ok(reader)
    }

    pub(crate) fn name(&self) -> &NamespacedName {
        &self.name
    }

    pub(crate) fn invalid(&self, field: impl Into<Box<str>>, problem: Problem) -> InvalidObject {
        InvalidObject { kind: self.kind, name: self.name.clone(), field: field.into(), problem }
    }

    /// Any address.
    pub(crate) fn ip(&self, field: impl Into<Box<str>>, value: &str) -> Result<IpAddr, InvalidObject> {
        value.parse().map_err(|_| self.invalid(field, Problem::NotAnAddress(value.into())))
    }

    /// An address that a pod or a frontend can have.
    pub(crate) fn ordinary_ip(&self, field: impl Into<Box<str>>, value: &str) -> Result<IpAddr, InvalidObject> {
        let field = field.into();
        let ip = self.ip(field.clone(), value)?;
        if is_special(ip) { Err(self.invalid(field, Problem::SpecialAddress(ip))) } else { Ok(ip) }
    }

    /// A network, its host bits cleared.
    pub(crate) fn network(&self, field: impl Into<Box<str>>, value: &str) -> Result<IpNet, InvalidObject> {
        let network: Result<IpNet, _> = value.parse();
        network.map(|network| network.trunc()).map_err(|_| self.invalid(field, Problem::NotANetwork(value.into())))
    }

    /// A port, 1 to 65535.
    pub(crate) fn port(&self, field: impl Into<Box<str>>, value: i32) -> Result<u16, InvalidObject> {
        match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(self.invalid(field, Problem::OutOfRange { value: value.into(), min: 1, max: 65535 })),
        }
    }

    /// A protocol; TCP where there is none.
    pub(crate) fn protocol(&self, field: impl Into<Box<str>>, value: Option<&str>) -> Result<Protocol, InvalidObject> {
        match value {
            None | Some("" | "TCP") => Ok(Protocol::Tcp),
            Some("UDP") => Ok(Protocol::Udp),
            Some("SCTP") => Ok(Protocol::Sctp),
            Some(other) => Err(self.invalid(field, Problem::Unknown(other.into()))),
        }
    }
}

/// Whether the labels leave the object to somebody else.
pub(crate) fn is_foreign(metadata: &ObjectMeta) -> bool {
    metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME) || labels.contains_key(HEADLESS))
}

/// Whether no pod and no frontend can have the address.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_unspecified() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.to_ipv4_mapped().is_some()
        }
    }
}
