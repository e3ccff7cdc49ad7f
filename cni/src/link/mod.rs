//! Links, addresses and routes, through rtnetlink.
//!
//! - `socket`: one socket of one network namespace; several requests go in one datagram.
//! - `message`: the requests.
//! - `bridge`: the node's side. `pod`: the container's side. `veth`: the pair between them. `prompt`: its end.

pub mod bridge;
mod message;
pub mod pod;
mod prompt;
pub mod socket;
pub mod veth;

pub use socket::Socket;
