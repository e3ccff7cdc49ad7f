//! Stale UDP flows: which connection-tracking entries lead to endpoints that no longer serve, and their deletion.

mod flow;

pub use self::flow::{StaleFlows, stale_flows};
