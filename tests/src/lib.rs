//! The lab: clusters made of network namespaces, real programs in them, and probes that say what a client sees.
//!
//! ```no_run
//! fn main() -> anyhow::Result<()> {
//!     tollgate_lab::isolate(); // first in main: nothing can be left behind, whatever happens
//!     let cluster = tollgate_lab::Cluster::new(tollgate_lab::Topology::default())?;
//!     let server = cluster.pod("pod-2a").socket(tollgate_lab::Family::V4, tollgate_lab::TCP_PORT);
//!     println!("{}", cluster.pod("pod-1a").probe().tcp(server));
//!     Ok(())
//! }
//! ```
//!
//! Everything blocks; a runtime of its own does the input and output beneath. Do not call it from async code.
//!
//! | module | what it owns |
//! |---|---|
//! | [`isolate()`] | this process's own namespaces; nothing outlives it |
//! | [`cgroup`], [`bpffs`] | one cgroup, and one place for pinned eBPF objects, for each node |
//! | [`netns`], [`link`] | one network namespace; its links, addresses and routes |
//! | [`address`], [`cluster`] | who has which address; nodes, pods, outside hosts |
//! | [`server`], [`probe`], [`load`] | what runs in pods; one dial; a stream of dials |
//! | [`packet`] | single segments, made by hand and seen as they arrive |
//! | [`process`], [`binary`] | real programs in a namespace; where they are built |
//! | [`control_plane`], [`proxy`], [`Tollgate`] | Tollgate's own programs, and a cluster with all of them |
//! | [`raw_source`] | a control plane that checks nothing, for what proxies must be ready for |
//! | [`client`], [`object`] | writing objects to the control plane; the objects |
//! | [`mode`], [`harness`] | the backends under test; from a table of cases to a test binary |

pub mod address;
pub mod binary;
pub mod bpffs;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod control_plane;
pub mod harness;
mod isolate;
mod kernel;
pub mod link;
pub mod load;
pub mod mode;
pub mod netns;
pub mod object;
pub mod packet;
pub mod poll;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod raw_source;
mod runtime;
pub mod server;
mod tollgate;

pub use address::Family;
pub use client::Client;
pub use cluster::{Cluster, Host, Node, Pod, Topology};
pub use control_plane::ControlPlane;
pub use isolate::{isolate, own_program, try_isolate};
pub use kernel::kernel_has_sctp;
pub use load::{Counters, Load};
pub use mode::Mode;
pub use netns::NetNs;
pub use poll::eventually;
pub use probe::{Answer, Connection, Flow, Outcome, Probe, Protocol, Reply, Spread};
pub use proxy::Proxy;
pub use raw_source::RawSource;
pub use server::{HTTP_PORT, SCTP_PORT, Servers, TCP_PORT, UDP_PORT};
pub use tollgate::{Tollgate, run_on};
