//! The node's rules for its pods, in three tables of our own, all of them named `tollgate-cni`.
//!
//! ```text
//! bridge    prerouting ── ports: which interface? ──▶ check: whose frame and packet is it? ──▶ drop, or go on
//! ip, ip6   prerouting, output ── to the node? ──▶ hostports ──▶ the pod's address and port
//!           postrouting ── sources: which pod? ──▶ masquerade-<network>: to elsewhere? ──▶ the node's address
//! ```
//!
//! All that a pod adds is elements of sets, in one transaction; what it costs a packet does not grow with the number of
//! pods. Rules and sets are made by the first ADD that finds them missing.
//!
//! - `layout`: the tables' sets, chains and rules. Pure.
//! - `element`: what an attachment adds to the sets. Pure.
//! - `exception`: towards what nothing is masqueraded. Pure.
//! - `kernel`: transactions, and what is there.

use tollgate_nftables::{Family, IpFamily, Table};

pub mod element;
pub mod exception;
pub mod kernel;
mod layout;

pub use kernel::Rules;

/// The name of our tables.
pub const NAME: &str = "tollgate-cni";

/// The table of what bridges forward.
const BRIDGE: Table = Table { family: Family::Bridge, name: NAME };

/// The table of a family's packets.
fn table(family: IpFamily) -> Table {
    Table { family: family.into(), name: NAME }
}
