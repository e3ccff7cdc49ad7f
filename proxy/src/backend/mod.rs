//! Backends: each makes the kernel do what a snapshot says, by one mechanism.
//!
//! A backend decides nothing about *which* endpoints serve. It runs on a thread of its own and blocks as it likes.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, Protocol, ServicePortName};
use tollgate_model::service::TrafficPolicy;
use tollgate_model::snapshot::Snapshot;

use self::ebpf::EbpfConfig;
use crate::conntrack::StaleFlows;

pub mod bridge;
pub mod ebpf;
pub mod forward;
pub mod iptables;
pub mod ipvs;
mod label;
pub mod nftables;

/// The mechanism that balances Services, picked by `--proxy-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Two nftables tables, `ip tollgate` and `ip6 tollgate`.
    Nftables,
    /// Chains of iptables, of the variant that the node uses already, and a few ipsets.
    Iptables,
    /// eBPF programs that translate a connection when a process makes it, at a cgroup; nftables for what comes from outside.
    Ebpf,
}

/// What every backend needs to know about its node, and no snapshot says.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The families this node has; nothing is made for the others.
    pub families: Vec<IpFamily>,
    /// What tells local pods' traffic.
    pub detect_local: DetectLocal,
    /// Where ClusterIPs are handed out; empty where it is not known.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerade everything to ClusterIPs, that of local pods too.
    pub masquerade_all: bool,
    /// The one bit of packets' marks that asks to masquerade them. It is the packet's own only between two rules of ours.
    pub masquerade_mark: u32,
    /// What the mode ebpf is told besides; other modes look there for what it may have left.
    pub ebpf: EbpfConfig,
    /// What the ipvs mode, which can't be chosen yet, is told besides.
    pub ipvs: ipvs::Config,
}

/// What tells the traffic of local pods from the rest. Two rules ask it: ClusterIP traffic that is not from a local pod is
/// masqueraded, and under `externalTrafficPolicy: Local` traffic from a local pod uses the Cluster set. Of a family in which
/// nothing is detected, neither applies, and traffic of the node's own is told by its source address alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Nothing does.
    #[default]
    Nothing,
    /// A source in these ranges. They are the whole cluster's, so that every pod of the cluster counts as local.
    ClusterCidr(Vec<IpNet>),
    /// A source in the pod ranges of this node, which the snapshot carries. Of a family in which the Node object has none
    /// (yet), nothing is detected: kube-proxy does not start until there is one, but to take every pod for a stranger, or
    /// every stranger for a pod, would be worse than to leave both sources alone.
    NodeCidr,
    /// Packets that come in through this bridge.
    BridgeInterface(String),
    /// Packets that come in through an interface whose name begins like this.
    InterfaceNamePrefix(String),
}

/// How much a sync looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What differs from the snapshot that was synced last. The kernel is not read.
    Changes,
    /// Everything, from what the kernel really has; what is ours and not wanted is swept.
    Full,
}

/// What a sync did.
#[derive(Debug, Default)]
pub struct Report {
    /// Kernel objects written or deleted because the snapshot changed.
    pub changed: usize,
    /// Kernel objects that were not as this process had left them, and now are; one line each, for the log.
    pub repaired: Vec<String>,
    /// Service ports that could not be realised; all others were.
    pub refused: Vec<(ServicePortName, String)>,
    /// UDP flows that now lead nowhere, to be deleted from connection tracking after the commit.
    pub stale: Vec<StaleFlows>,
    /// Connected sockets that led nowhere, and were destroyed for it.
    pub destroyed: usize,
}

/// What the kernel holds of a backend's, by Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// In the order of names, protocols and families.
    pub service_ports: Vec<ObservedServicePort>,
    /// The node's addresses that answer NodePorts.
    pub node_port_addresses: Vec<IpAddr>,
    /// What is where only this backend's should be, and makes no sense to it; one line each.
    pub foreign: Vec<String>,
}

/// One Service port in one family, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedServicePort {
    /// `namespace/name:port`. Cut, with a hash at its end, where it is longer than a comment in the kernel can be.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: IpFamily,
    /// What clients dial.
    pub frontends: Vec<ObservedFrontend>,
    /// What becomes of traffic to the Cluster set; `None` where no frontend uses it.
    pub cluster: Option<ObservedPool>,
    /// What becomes of traffic to the Local set; `None` where no frontend uses it.
    pub local: Option<ObservedPool>,
    /// How long a client stays with its endpoint, if it does.
    pub affinity_timeout: Option<Duration>,
}

/// One frontend, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedFrontend {
    /// Where the address comes from, as far as the rules differ.
    pub origin: ObservedOrigin,
    /// The address; `None` for a NodePort, which answers on each of [`Observed::node_port_addresses`].
    pub ip: Option<IpAddr>,
    /// The port, as dialled.
    pub port: u16,
    /// Which traffic policy it has.
    pub traffic_policy: TrafficPolicy,
    /// The only sources that may dial it; `None`: all may.
    pub source_ranges: Option<Vec<IpNet>>,
    /// How many connections it has seen since the kernel has it, where that is counted.
    pub connections: Option<u64>,
}

/// Origins of frontends between which the rules in the kernel differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObservedOrigin {
    /// A ClusterIP.
    ClusterIp,
    /// An external or load-balancer IP.
    External,
    /// A NodePort.
    NodePort,
}

/// What becomes of traffic to one of a Service port's endpoint sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObservedPool {
    /// It spreads over these.
    Endpoints(Vec<SocketAddr>),
    /// It is refused, as by a closed port.
    Reject,
    /// It is dropped without a word.
    Drop,
}

/// A mechanism of the kernel that realises snapshots.
pub trait Backend: Send {
    /// Makes the kernel match `desired`. After an error the caller syncs with [`Scope::Full`].
    ///
    /// # Errors
    /// When the kernel could not be read or written; it then holds the state of the sync before.
    fn sync(&mut self, desired: &Snapshot, scope: Scope) -> Result<Report, Error>;

    /// Reads what the kernel holds of this backend's.
    ///
    /// # Errors
    /// When the kernel could not be read.
    fn observe(&self) -> Result<Observed, Error>;

    /// Removes all that this backend may ever have made, and only that. Tries everything and reports everything.
    ///
    /// # Errors
    /// When something is left.
    fn cleanup(&mut self) -> Result<(), Error>;
}

/// Why a backend could not do its work: what was tried, on what, and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The nftables backend's.
    #[error(transparent)]
    Nftables(#[from] nftables::Error),
    /// The iptables backend's.
    #[error(transparent)]
    Iptables(#[from] iptables::Error),
    /// The eBPF backend's.
    #[error(transparent)]
    Ebpf(#[from] ebpf::Error),
    /// That of the ipvs backend, which can't be chosen yet.
    #[error(transparent)]
    Ipvs(#[from] ipvs::Error),
}

/// Opens the backend of a mode. Checks what the mode needs of the machine.
///
/// # Errors
/// When the machine lacks something; the message says what, and how to get it.
pub fn open(mode: Mode, config: &NodeConfig) -> Result<Box<dyn Backend>, Error> {
    match mode {
        Mode::Ebpf => Ok(Box::new(ebpf::Ebpf::open(config)?)),
        Mode::Nftables => Ok(Box::new(nftables::Nftables::open(config)?)),
        Mode::Iptables => Ok(Box::new(iptables::Iptables::open(config)?)),
    }
}

/// Opens the backend of a mode only to observe or to clean up: without the checks, and of every family.
///
/// # Errors
/// When the machine lacks what it takes to look.
pub fn open_for_cleanup(mode: Mode, config: &NodeConfig) -> Result<Box<dyn Backend>, Error> {
    match mode {
        Mode::Ebpf => Ok(Box::new(ebpf::Ebpf::open_for_cleanup(config)?)),
        Mode::Nftables => Ok(Box::new(nftables::Nftables::open_for_cleanup()?)),
        Mode::Iptables => Ok(Box::new(iptables::Iptables::open_for_cleanup())),
    }
}

/// Removes what modes other than this one have left on the node; what is not there is no error. Tries every mode.
///
/// To be called once this mode's rules are in place: which of the two translates a connection makes no difference then, and
/// connections that are established go on by the hooks of this mode.
///
/// # Errors
/// One for each mode of which something may be left.
pub fn leave_others(mode: Mode, config: &NodeConfig) -> Result<(), Vec<(Mode, Error)>> {
    let clean = |other| match (mode, other) {
        // Its tables are what the mode ebpf has for packets.
        (Mode::Ebpf, Mode::Nftables) => Ok(()),
        (_, Mode::Ebpf) => Ok(ebpf::Ebpf::open_for_cleanup(config)?.leave()?),
        _ => open_for_cleanup(other, config)?.cleanup(),
    };
    let others = Mode::ALL.into_iter().filter(|other| *other != mode);
    let errors: Vec<_> = others.filter_map(|other| Some((other, clean(other).err()?))).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

impl NodeConfig {
    /// The mark that kube-proxy asks to masquerade with by default: bit 14.
    pub const MASQUERADE_MARK: u32 = 1 << 14;
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            families: Vec::new(),
            detect_local: DetectLocal::Nothing,
            service_cidrs: Vec::new(),
            masquerade_all: false,
            masquerade_mark: Self::MASQUERADE_MARK,
            ebpf: EbpfConfig::default(),
            ipvs: ipvs::Config::default(),
        }
    }
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::Iptables, Self::Ebpf];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ebpf => "ebpf",
        })
    }
}
