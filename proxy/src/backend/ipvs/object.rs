//! What the kernel holds for the ipvs mode, as values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, Protocol};

/// How a virtual service picks a destination for a new connection. All destinations weigh the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[derive(clap::ValueEnum)]
pub enum Scheduler {
    /// One after another.
    #[default]
    Rr,
    /// One after another, by weight.
    Wrr,
    /// The one with the fewest connections.
    Lc,
    /// The one with the fewest connections for its weight.
    Wlc,
    /// By the client's address.
    Sh,
    /// By the client's address; few clients move when destinations change (Maglev).
    Mh,
    /// The one with the shortest expected delay.
    Sed,
    /// One that is idle, else the one with the shortest expected delay.
    Nq,
}

impl Scheduler {
    /// All of them.
    pub(crate) const ALL: [Self; 8] =
        [Self::Rr, Self::Wrr, Self::Lc, Self::Wlc, Self::Sh, Self::Mh, Self::Sed, Self::Nq];

    /// As the kernel calls it; its module is `ip_vs_` and this.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Mh => "mh",
            Self::Sed => "sed",
            Self::Nq => "nq",
        }
    }

    /// Whether it goes by the client's address, and so may come upon a destination that takes no new connections.
    pub(crate) fn hashes(self) -> bool {
        matches!(self, Self::Sh | Self::Mh)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scheduler {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|scheduler| scheduler.as_str() == name).ok_or(())
    }
}

/// What a virtual service is known by. The order puts those of one address beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ServiceKey {
    /// What is dialled.
    Address { ip: IpAddr, protocol: Protocol, port: u16 },
    /// The mark that packets have.
    Mark(u32),
}

impl ServiceKey {
    /// The address, if it is known by that.
    pub(crate) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Address { ip, .. } => Some(ip),
            Self::Mark(_) => None,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { ip, protocol, port } => write!(f, "{}/{protocol}", SocketAddr::new(*ip, *port)),
            Self::Mark(mark) => write!(f, "mark {mark:#x}"),
        }
    }
}

/// What a virtual service is besides its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServiceSpec {
    pub(crate) scheduler: Scheduler,
    /// How many seconds a client stays with a destination, if it does.
    pub(crate) affinity: Option<u32>,
}

/// What is done to a virtual service or one of its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceChange {
    /// Makes it.
    Add(ServiceSpec),
    /// Changes it.
    Set(ServiceSpec),
    /// Deletes it with its destinations.
    Delete,
    /// Makes a destination, with its weight.
    AddDestination(SocketAddr, u32),
    /// Changes the weight of a destination.
    SetDestination(SocketAddr, u32),
    /// Deletes a destination, and its connections.
    DeleteDestination(SocketAddr),
}

/// One change of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServiceStep {
    pub(crate) key: ServiceKey,
    pub(crate) change: ServiceChange,
}

impl fmt::Display for ServiceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key;
        match self.change {
            ServiceChange::Add(spec) => write!(f, "add virtual service {key}, {spec}"),
            ServiceChange::Set(spec) => write!(f, "change virtual service {key} to {spec}"),
            ServiceChange::Delete => write!(f, "delete virtual service {key}"),
            ServiceChange::AddDestination(to, weight) => write!(f, "{key}: add destination {to} with weight {weight}"),
            ServiceChange::SetDestination(to, weight) => write!(f, "{key}: give destination {to} the weight {weight}"),
            ServiceChange::DeleteDestination(to) => write!(f, "{key}: delete destination {to}"),
        }
    }
}

impl fmt::Display for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scheduler {}", self.scheduler)?;
        match self.affinity {
            Some(seconds) => write!(f, ", affinity {seconds} s"),
            None => Ok(()),
        }
    }
}

/// Makes addresses the node's own, in whichever way a packet comes for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) net: IpNet,
    /// What the node has as its source when it dials them: one of its addresses. The kernel takes such a route away with the
    /// address. `None`: the link's, which stays, and comes after the other.
    pub(crate) source: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.net)?;
        self.source.map_or(Ok(()), |source| write!(f, " from {source}"))
    }
}

/// The sets that every family has one of. In this order members come, and in the opposite one they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SetName {
    /// Frontends that are refused, as closed ports are.
    Reject,
    /// Frontends that are dropped, but for traffic of local pods and of the node itself.
    Drop,
    /// External frontends all of whose traffic is masqueraded.
    Masquerade,
    /// A frontend with source ranges, and a range that may dial it.
    Admit,
    /// Load-balancer frontends with source ranges.
    Guarded,
    /// External frontends under the Local policy, with the mark of the virtual service of the Cluster set.
    Shortcut,
    /// Frontends that have a virtual service of their own.
    Frontends,
    /// Addresses that Services hold and the node does not have otherwise: what has no frontend there is refused.
    Vips,
}

impl SetName {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Reject,
        Self::Drop,
        Self::Masquerade,
        Self::Admit,
        Self::Guarded,
        Self::Shortcut,
        Self::Frontends,
        Self::Vips,
    ];

    /// A set's name has at most 31 characters (`IPSET_MAXNAMELEN` is 32, with its zero); these have 26.
    pub(crate) fn text(self, family: IpFamily) -> String {
        let digit = match family {
            IpFamily::V4 => '4',
            IpFamily::V6 => '6',
        };
        format!("TOLLGATE-IPVS-{digit}-{}", self.word())
    }

    fn word(self) -> &'static str {
        match self {
            Self::Reject => "REJECT",
            Self::Drop => "DROP",
            Self::Masquerade => "MASQUERADE",
            Self::Guarded => "GUARDED",
            Self::Admit => "ADMIT",
            Self::Shortcut => "SHORTCUT",
            Self::Frontends => "FRONTENDS",
            Self::Vips => "VIPS",
        }
    }
}

/// A member of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: SetName,
    pub(crate) ip: IpAddr,
    /// In sets of frontends.
    pub(crate) port: Option<(Protocol, u16)>,
    /// In the set of frontends and sources.
    pub(crate) source: Option<IpNet>,
}

/// What a member of a set says besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ElementValue {
    /// The mark that packets get, all 32 bits of it.
    pub(crate) mark: Option<u32>,
    /// Whose it is; see [`Comment`](super::comment::Comment).
    pub(crate) comment: Option<Arc<str>>,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.set.word(), self.ip)?;
        if let Some((protocol, port)) = self.port {
            write!(f, ",{protocol}:{port}")?;
        }
        self.source.map_or(Ok(()), |source| write!(f, ",{source}"))
    }
}
