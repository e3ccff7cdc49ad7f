//! Backends: each makes the kernel do what a snapshot says, by one mechanism.
//!
//! A backend decides nothing about *which* endpoints serve. It runs on a thread of its own and blocks as it likes.

use std::fmt;

use ipnet::IpNet;
use tollgate_model::name::{IpFamily, ServicePortName};
use tollgate_model::snapshot::Snapshot;

use crate::conntrack::StaleFlows;

pub mod bridge;
pub mod nftables;

/// The mechanism that balances Services, picked by `--proxy-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Two nftables tables, `ip tollgate` and `ip6 tollgate`.
    Nftables,
}

/// What every backend needs to know about its node, and no snapshot says.
#[derive(Clone, Debug, Default)]
pub struct NodeConfig {
    /// The families this node has; nothing is made for the others.
    pub families: Vec<IpFamily>,
    /// Where local pods' addresses lie; of a family without any, no traffic is masqueraded for being off-cluster.
    pub cluster_cidrs: Vec<IpNet>,
    /// Where ClusterIPs are handed out; empty where it is not known.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerade everything that goes through a Service.
    pub masquerade_all: bool,
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
}

/// One object in the kernel, as `observe` reads it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The family it belongs to.
    pub family: IpFamily,
    /// The kind of object, in the backend's words (the set or map it is an element of).
    pub kind: String,
    /// What identifies it within its kind.
    pub key: String,
    /// What it says.
    pub value: String,
    /// Connections that met it, where the kernel counts them.
    pub connections: Option<u64>,
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
    fn observe(&self) -> Result<Vec<Observed>, Error>;

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
}

/// Opens the backend of a mode. Checks what the mode needs of the machine.
///
/// # Errors
/// When the machine lacks something; the message says what, and how to get it.
pub fn open(mode: Mode, config: NodeConfig) -> Result<Box<dyn Backend>, Error> {
    match mode {
        Mode::Nftables => Ok(Box::new(nftables::Nftables::open(&config)?)),
    }
}

/// Opens the backend of a mode only to observe or to clean up: without the checks, and of every family.
///
/// # Errors
/// When the machine lacks what it takes to look.
pub fn open_for_cleanup(mode: Mode, _config: NodeConfig) -> Result<Box<dyn Backend>, Error> {
    match mode {
        Mode::Nftables => Ok(Box::new(nftables::Nftables::open_for_cleanup()?)),
    }
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Nftables];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
        })
    }
}
