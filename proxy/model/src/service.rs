//! Services, as the API has them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use crate::name::{IpFamily, NamespacedName, Protocol};
use crate::object::{InvalidObject, Kind, Problem, Reader, is_foreign};
use crate::snapshot::SourceRanges;

const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
const MAX_AFFINITY_SECONDS: u64 = 86_400;

/// The annotation of a Service that says by which scheduler IPVS balances it. Other modes don't read it.
pub const IPVS_SCHEDULER: &str = "tollgate.dev/ipvs-scheduler";

/// Which endpoints a kind of traffic may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// The endpoints of this node.
    Local,
}

/// Whether a client address stays with one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionAffinity {
    /// Each connection is spread anew.
    #[default]
    None,
    /// One client address goes to one endpoint until `timeout` has passed since its last new connection.
    ClientIp {
        /// Whole seconds, 1 to 86,400.
        timeout: Duration,
    },
}

/// A Service, valid by construction: made from the API's object alone.
///
/// What makes a Service invalid as a whole is what it cannot be without: its name, its cluster IPs, its ports, and words
/// and numbers that say how it works. Of the addresses that it has besides (external IPs, load-balancer IPs) and the source
/// ranges, a bad one is left out and the rest holds, see [`Service::rejected`]: a typo in one address is no reason to take
/// the Service down. Source ranges fail shut, never open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub(crate) name: NamespacedName,
    /// Microseconds since 1970. Unknown is later than any other, so that such a Service takes nothing away from another.
    pub(crate) created: i64,
    /// Empty: the Service has no frontends and nothing else of it is read.
    pub(crate) cluster_ips: Box<[IpAddr]>,
    pub(crate) external_ips: Box<[IpAddr]>,
    pub(crate) load_balancer_ips: Box<[IpAddr]>,
    pub(crate) source_ranges: SourceRanges,
    pub(crate) ports: Box<[Port]>,
    pub(crate) internal_traffic_policy: TrafficPolicy,
    pub(crate) external_traffic_policy: TrafficPolicy,
    pub(crate) session_affinity: SessionAffinity,
    pub(crate) health_check_node_port: Option<u16>,
    /// Whatever the annotation says; whether there is such a scheduler only the kernel knows.
    pub(crate) ipvs_scheduler: Option<Arc<str>>,
    pub(crate) rejected: Box<[InvalidObject]>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
}

/// `spec.type`, without ExternalName, which has no frontends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

impl Service {
    /// Namespace and name.
    #[must_use]
    pub fn name(&self) -> &NamespacedName {
        &self.name
    }

    /// Whether clients can dial it here at all: not headless, not an ExternalName, not left to another proxy.
    #[must_use]
    pub fn has_frontends(&self) -> bool {
        !self.cluster_ips.is_empty()
    }

    /// The parts that were left out because they do not validate.
    #[must_use]
    pub fn rejected(&self) -> &[InvalidObject] {
        &self.rejected
    }

    fn without_frontends(name: NamespacedName) -> Self {
        Self {
            name,
            created: i64::MAX,
            cluster_ips: Box::default(),
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            source_ranges: SourceRanges::default(),
            ports: Box::default(),
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            session_affinity: SessionAffinity::None,
            health_check_node_port: None,
            ipvs_scheduler: None,
            rejected: Box::default(),
        }
    }
}

impl TryFrom<&v1::Service> for Service {
    type Error = InvalidObject;

    fn try_from(service: &v1::Service) -> Result<Self, InvalidObject> {
        let reader = Reader::new(Kind::Service, &service.metadata)?;
        let spec = service.spec.as_ref().ok_or_else(|| reader.invalid("spec", Problem::Missing))?;
        let type_ = match spec.type_.as_deref() {
            _ if is_foreign(&service.metadata) => None,
            None | Some("" | "ClusterIP") => Some(ServiceType::ClusterIp),
            Some("NodePort") => Some(ServiceType::NodePort),
            Some("LoadBalancer") => Some(ServiceType::LoadBalancer),
            Some("ExternalName") => None,
            Some(other) => return Err(reader.invalid("spec.type", Problem::Unknown(other.into()))),
        };
        let (Some(type_), Some(cluster_ips)) = (type_, cluster_ips(&reader, spec)?) else {
            return Ok(Self::without_frontends(reader.name().clone()));
        };
        let mut rejected = Vec::new();
        let external_ips = external_ips(&reader, spec, &cluster_ips, &mut rejected);
        let source_ranges = source_ranges(&reader, spec, &mut rejected);
        let mut load_balancer_ips = Vec::new();
        if type_ == ServiceType::LoadBalancer {
            load_balancer_ips = load_balancer_addresses(&reader, service, &cluster_ips, &mut rejected);
            shut_unknown_families(&reader, &source_ranges, &mut load_balancer_ips, &mut rejected);
        }
        let external = policy(&reader, "spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
        let has_health_check = type_ == ServiceType::LoadBalancer && external == TrafficPolicy::Local;
        let health_check_node_port = spec.health_check_node_port.filter(|port| has_health_check && *port != 0);
        let service = Self {
            name: reader.name().clone(),
            created: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_microsecond()),
            ports: ports(&reader, spec, type_)?,
            internal_traffic_policy: policy(
                &reader,
                "spec.internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
            )?,
            external_traffic_policy: external,
            session_affinity: session_affinity(&reader, spec)?,
            health_check_node_port: health_check_node_port
                .map(|port| reader.port("spec.healthCheckNodePort", port))
                .transpose()?,
            ipvs_scheduler: ipvs_scheduler(service),
            cluster_ips: cluster_ips.into(),
            external_ips: external_ips.into(),
            load_balancer_ips: load_balancer_ips.into(),
            source_ranges: source_ranges.admitted,
            rejected: rejected.into(),
        };
        service.check_own_node_ports(&reader)?;
        Ok(service)
    }
}

impl Service {
    /// The health check is a TCP socket of the node: a NodePort on the same number would take its traffic away.
    fn check_own_node_ports(&self, reader: &Reader) -> Result<(), InvalidObject> {
        let mut tcp = self.ports.iter().filter(|port| port.protocol == Protocol::Tcp).filter_map(|port| port.node_port);
        match self.health_check_node_port {
            Some(health) if tcp.any(|port| port == health) => {
                Err(reader.invalid("spec.healthCheckNodePort", Problem::Duplicate(health.to_string().into())))
            }
            _ => Ok(()),
        }
    }
}

fn ipvs_scheduler(service: &v1::Service) -> Option<Arc<str>> {
    let annotations = service.metadata.annotations.as_ref()?;
    annotations.get(IPVS_SCHEDULER).map(|name| name.trim()).filter(|name| !name.is_empty()).map(Arc::from)
}

/// `None` where the Service is headless.
fn cluster_ips(reader: &Reader, spec: &v1::ServiceSpec) -> Result<Option<Vec<IpAddr>>, InvalidObject> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_ref().filter(|_| listed.is_empty());
    let mut ips = Vec::new();
    for (i, value) in listed.iter().chain(single).enumerate() {
        if value.is_empty() || value == "None" {
            return Ok(None);
        }
        ips.push(reader.ordinary_ip(format!("spec.clusterIPs[{i}]"), value)?);
    }
    Ok(Some(ips).filter(|ips| !ips.is_empty()))
}

/// A Service has the families of its cluster IPs, as in kube-proxy; an address of another would have no endpoints.
fn of_own_family(reader: &Reader, field: String, value: &str, cluster_ips: &[IpAddr]) -> Result<IpAddr, InvalidObject> {
    let ip = reader.ordinary_ip(field.clone(), value)?;
    if cluster_ips.iter().any(|own| IpFamily::from(*own) == ip.into()) {
        return Ok(ip);
    }
    let family = cluster_ips.first().map_or(IpFamily::V4, |own| (*own).into());
    Err(reader.invalid(field, Problem::WrongFamily(ip, family)))
}

fn external_ips(
    reader: &Reader,
    spec: &v1::ServiceSpec,
    cluster_ips: &[IpAddr],
    rejected: &mut Vec<InvalidObject>,
) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (i, value) in spec.external_ips.iter().flatten().enumerate() {
        match of_own_family(reader, format!("spec.externalIPs[{i}]"), value, cluster_ips) {
            Ok(ip) => ips.push(ip),
            Err(error) => rejected.push(error),
        }
    }
    ips
}

/// `lb-ipmode-proxy`: an address in that mode is the load balancer's own, traffic to it must leave the node.
fn load_balancer_addresses(
    reader: &Reader,
    service: &v1::Service,
    cluster_ips: &[IpAddr],
    rejected: &mut Vec<InvalidObject>,
) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut ips = Vec::new();
    for (i, ingress) in status.iter().flat_map(|status| status.ingress.iter().flatten()).enumerate() {
        let field = format!("status.loadBalancer.ingress[{i}]");
        let Some(value) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else {
            continue;
        };
        match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => match of_own_family(reader, format!("{field}.ip"), value, cluster_ips) {
                Ok(ip) => ips.push(ip),
                Err(error) => rejected.push(error),
            },
            Some("Proxy") => {}
            Some(other) => {
                rejected.push(reader.invalid(format!("{field}.ipMode"), Problem::Unknown(other.into())));
            }
        }
    }
    ips
}

/// What `loadBalancerSourceRanges` says, and whether a part of it could not be read.
struct ReadRanges {
    admitted: SourceRanges,
    has: [bool; 2],
    is_partly_unknown: bool,
}

fn source_ranges(reader: &Reader, spec: &v1::ServiceSpec, rejected: &mut Vec<InvalidObject>) -> ReadRanges {
    let mut ranges = BTreeSet::new();
    let mut is_partly_unknown = false;
    for (i, value) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        match reader.network(format!("spec.loadBalancerSourceRanges[{i}]"), value.trim()) {
            Ok(range) => {
                ranges.insert(range);
            }
            Err(error) => {
                is_partly_unknown = true;
                rejected.push(error);
            }
        }
    }
    let of = |family| -> Vec<IpNet> { ranges.iter().copied().filter(|range| family_of(range) == family).collect() };
    let (v4, v6) = (of(IpFamily::V4), of(IpFamily::V6));
    let has = [!v4.is_empty(), !v6.is_empty()];
    let judge = |ranges: Vec<IpNet>| -> Option<Arc<[IpNet]>> {
        let admits_all = ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0);
        (!admits_all).then(|| ranges.into())
    };
    ReadRanges { admitted: SourceRanges { v4: judge(v4), v6: judge(v6) }, has, is_partly_unknown }
}

/// No range of a family admits all of it, but where a range could not be read it may have been meant for just this family.
fn shut_unknown_families(
    reader: &Reader,
    ranges: &ReadRanges,
    load_balancer_ips: &mut Vec<IpAddr>,
    rejected: &mut Vec<InvalidObject>,
) {
    for (family, has) in IpFamily::ALL.into_iter().zip(ranges.has) {
        let is_affected = load_balancer_ips.iter().any(|ip| IpFamily::from(*ip) == family);
        if ranges.is_partly_unknown && !has && is_affected {
            load_balancer_ips.retain(|ip| IpFamily::from(*ip) != family);
            rejected.push(reader.invalid("spec.loadBalancerSourceRanges", Problem::SourceRangesUnknown(family)));
        }
    }
}

fn family_of(network: &IpNet) -> IpFamily {
    network.addr().into()
}

/// Ports are the Service's own words for what it serves: one that does not validate makes the whole Service invalid.
fn ports(reader: &Reader, spec: &v1::ServiceSpec, type_: ServiceType) -> Result<Box<[Port]>, InvalidObject> {
    let mut ports: Vec<Port> = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{i}]");
        let node_port = port.node_port.filter(|port| type_ != ServiceType::ClusterIp && *port != 0);
        let port = Port {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: reader.protocol(format!("{field}.protocol"), port.protocol.as_deref())?,
            port: reader.port(format!("{field}.port"), port.port)?,
            node_port: node_port.map(|port| reader.port(format!("{field}.nodePort"), port)).transpose()?,
        };
        for other in ports.iter().filter(|other| other.protocol == port.protocol) {
            let duplicate = if other.name == port.name {
                Some(("name", format!("{:?}", port.name)))
            } else if other.port == port.port {
                Some(("port", port.port.to_string()))
            } else if let (Some(a), Some(b)) = (other.node_port, port.node_port)
                && a == b
            {
                Some(("nodePort", a.to_string()))
            } else {
                None
            };
            if let Some((name, value)) = duplicate {
                let value = format!("{value} for {}", port.protocol);
                return Err(reader.invalid(format!("{field}.{name}"), Problem::Duplicate(value.into())));
            }
        }
        ports.push(port);
    }
    Ok(ports.into())
}

fn policy(reader: &Reader, field: &'static str, value: Option<&str>) -> Result<TrafficPolicy, InvalidObject> {
    match value {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(reader.invalid(field, Problem::Unknown(other.into()))),
    }
}

fn session_affinity(reader: &Reader, spec: &v1::ServiceSpec) -> Result<SessionAffinity, InvalidObject> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Ok(SessionAffinity::None),
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
            match u64::try_from(seconds) {
                Ok(timeout @ 1..=MAX_AFFINITY_SECONDS) => {
                    Ok(SessionAffinity::ClientIp { timeout: Duration::from_secs(timeout) })
                }
                _ => Err(reader.invalid(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    Problem::OutOfRange { value: seconds.into(), min: 1, max: 86_400 },
                )),
            }
        }
        Some(other) => Err(reader.invalid("spec.sessionAffinity", Problem::Unknown(other.into()))),
    }
}
