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
//! | [`netns`], [`link`] | one network namespace; its links, addresses and routes |
//! | [`address`], [`cluster`] | who has which address; nodes, pods, outside hosts |
//! | [`server`], [`probe`], [`load`] | what runs in pods; one dial; a stream of dials |
//! | [`process`], [`binary`] | real programs in a namespace; where they are built |

pub mod address;
pub mod binary;
pub mod cluster;
mod isolate;
pub mod link;
pub mod load;
pub mod netns;
pub mod poll;
pub mod probe;
pub mod process;
mod runtime;
pub mod server;

pub use address::Family;
pub use cluster::{Cluster, Host, Node, Pod, Topology};
pub use isolate::isolate;
pub use load::{Counters, Load};
pub use netns::NetNs;
pub use poll::eventually;
pub use probe::{Answer, Connection, Flow, Outcome, Probe, Protocol, Reply, Spread};
pub use server::{HTTP_PORT, TCP_PORT, UDP_PORT};
