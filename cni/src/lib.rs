//! The CNI plugin of Tollgate: gives a node's pods their network.
//!
//! One call does one verb for one container and ends; what lasts is in the kernel and in files under `/run`. An operator's
//! page: `docs/cni.md`.
//!
//! ```text
//! environment ──▶ env  ─┐
//! standard input ▶ conf ┴▶ verb ─┬▶ ipam ──▶ leases, or another plugin         which addresses
//!                                ├▶ rules ─▶ nf_tables                          what may pass, host ports, masquerading
//!                                └▶ link ──▶ rtnetlink, here and in the pod     bridge, pair, addresses, routes
//! standard output ◀─ result, error          state ──▶ what is kept between calls, and told to the daemon
//! ```
//!
//! What is made is written down before ([`state::record`]), so that nothing is ever left that nobody knows of, whenever the
//! plugin is killed.

pub mod conf;
pub mod env;
pub mod error;
pub mod flow;
pub mod ipam;
pub mod link;
pub mod netns;
pub mod result;
pub mod rules;
pub mod state;
mod sysctl;
pub mod verb;
pub mod version;
