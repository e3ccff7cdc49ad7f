//! Endpoints: where the traffic of a Service goes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;

use crate::name::{IpFamily, NamespacedName, Protocol};
use crate::object::{InvalidObject, Kind, Problem, Reader, is_foreign};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One address and port that answers for a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address of the pod.
    pub ip: IpAddr,
    /// The port there.
    pub port: u16,
    /// Whether it runs on this node.
    pub is_local: bool,
}

impl Endpoint {
    /// The family of the address.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        self.ip.into()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", SocketAddr::new(self.ip, self.port))
    }
}

/// A part of a Service's endpoints, valid by construction: made from the API's object alone.
///
/// A bad endpoint in it (an address that is none, or one that no pod can have) is left out and the rest holds, see
/// [`EndpointSlice::rejected`]; a bad port or family makes the slice invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub(crate) name: NamespacedName,
    /// The owning Service's name, in the same namespace. `None`: the slice is ignored and nothing else of it is read.
    pub(crate) service: Option<Arc<str>>,
    pub(crate) family: IpFamily,
    pub(crate) ports: Box<[SlicePort]>,
    pub(crate) endpoints: Box<[SliceEndpoint]>,
    pub(crate) rejected: Box<[InvalidObject]>,
}

/// A port that all endpoints of a slice have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// One endpoint of a slice. A cluster has half a million of these, so it is small: names are shared, see
/// [`EndpointSlice::share_names`], and hints, which most have none of or the same as others, are one pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceEndpoint {
    pub(crate) ip: IpAddr,
    pub(crate) conditions: Conditions,
    pub(crate) node: Option<Arc<str>>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) hints: Option<Arc<Hints>>,
}

/// What an endpoint's conditions say, defaults applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
}

/// For whom an endpoint is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hints {
    pub(crate) zones: Box<[Arc<str>]>,
    pub(crate) nodes: Box<[Arc<str>]>,
}

impl EndpointSlice {
    /// Namespace and name.
    #[must_use]
    pub fn name(&self) -> &NamespacedName {
        &self.name
    }

    /// The Service that it belongs to, if it is one that counts.
    #[must_use]
    pub fn owner(&self) -> Option<NamespacedName> {
        let service = self.service.as_ref()?;
        Some(NamespacedName { namespace: Arc::clone(&self.name.namespace), name: Arc::clone(service) })
    }

    /// The parts that were left out because they do not validate.
    #[must_use]
    pub fn rejected(&self) -> &[InvalidObject] {
        &self.rejected
    }

    /// Passes every name that many objects have in common to `share`, which may put an equal one in its place.
    pub(crate) fn share_names(&mut self, mut share: impl FnMut(&mut Arc<str>)) {
        share(&mut self.name.namespace);
        self.service.iter_mut().for_each(&mut share);
        self.ports.iter_mut().for_each(|port| share(&mut port.name));
        for endpoint in &mut self.endpoints {
            endpoint.node.iter_mut().for_each(&mut share);
            endpoint.zone.iter_mut().for_each(&mut share);
        }
    }
}

impl TryFrom<&discovery::EndpointSlice> for EndpointSlice {
    type Error = InvalidObject;

    fn try_from(slice: &discovery::EndpointSlice) -> Result<Self, InvalidObject> {
        let reader = Reader::new(Kind::EndpointSlice, &slice.metadata)?;
        let owner = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let owner = owner.filter(|_| !is_foreign(&slice.metadata));
        let family = match slice.address_type.as_str() {
            "IPv4" => Some(IpFamily::V4),
            "IPv6" => Some(IpFamily::V6),
            "FQDN" => None,
            "" => return Err(reader.invalid("addressType", Problem::Missing)),
            other => return Err(reader.invalid("addressType", Problem::Unknown(other.into()))),
        };
        let mut read = Self {
            name: reader.name().clone(),
            service: None,
            family: family.unwrap_or(IpFamily::V4),
            ports: Box::default(),
            endpoints: Box::default(),
            rejected: Box::default(),
        };
        if let (Some(owner), Some(family)) = (owner, family) {
            let mut rejected = Vec::new();
            read.service = Some(owner.as_str().into());
            read.ports = slice_ports(&reader, slice)?;
            read.endpoints = slice_endpoints(&reader, slice, family, &mut rejected);
            read.rejected = rejected.into();
        }
        Ok(read)
    }
}

/// A port without a number stands for every port, which a Service cannot use: kube-proxy leaves it out as well.
fn slice_ports(reader: &Reader, slice: &discovery::EndpointSlice) -> Result<Box<[SlicePort]>, InvalidObject> {
    let mut ports = Vec::new();
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        let protocol = reader.protocol(format!("ports[{i}].protocol"), port.protocol.as_deref())?;
        if let Some(number) = port.port {
            ports.push(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol,
                port: reader.port(format!("ports[{i}].port"), number)?,
            });
        }
    }
    Ok(ports.into())
}

fn slice_endpoints(
    reader: &Reader,
    slice: &discovery::EndpointSlice,
    family: IpFamily,
    rejected: &mut Vec<InvalidObject>,
) -> Box<[SliceEndpoint]> {
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let mut read: Vec<SliceEndpoint> = Vec::with_capacity(endpoints.len());
    for (i, endpoint) in endpoints.iter().enumerate() {
        // An endpoint may list several addresses, but only the first has a meaning (API reference; kube-proxy).
        let field = format!("endpoints[{i}].addresses");
        let Some(address) = endpoint.addresses.first() else {
            rejected.push(reader.invalid(field, Problem::Missing));
            continue;
        };
        match reader.ordinary_ip(format!("{field}[0]"), address) {
            Ok(ip) if IpFamily::from(ip) == family => {
                let last = read.last().and_then(|last| last.hints.clone());
                read.push(SliceEndpoint {
                    ip,
                    conditions: endpoint.conditions.as_ref().into(),
                    node: endpoint.node_name.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
                    zone: endpoint.zone.as_deref().filter(|name| !name.is_empty()).map(Arc::from),
                    hints: endpoint.hints.as_ref().and_then(|hints| read_hints(hints, last)),
                });
            }
            Ok(ip) => rejected.push(reader.invalid(format!("{field}[0]"), Problem::WrongFamily(ip, family))),
            Err(error) => rejected.push(error),
        }
    }
    read.into()
}

/// Endpoints that stand beside each other tend to have the same hints: equal ones are one allocation.
fn read_hints(hints: &discovery::EndpointHints, last: Option<Arc<Hints>>) -> Option<Arc<Hints>> {
    let zones: Box<[Arc<str>]> = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect();
    let nodes: Box<[Arc<str>]> = hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into()).collect();
    if zones.is_empty() && nodes.is_empty() {
        return None;
    }
    let hints = Hints { zones, nodes };
    Some(last.filter(|last| **last == hints).unwrap_or_else(|| Arc::new(hints)))
}

impl From<Option<&discovery::EndpointConditions>> for Conditions {
    fn from(conditions: Option<&discovery::EndpointConditions>) -> Self {
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        Self { ready, serving, terminating }
    }
}
