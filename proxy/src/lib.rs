//! The Tollgate daemon of one node: watches Services and EndpointSlices and makes the kernel balance every Service
//! address over its endpoints.
//!
//! Data goes one way:
//!
//! ```text
//! source ──Event──▶ model::Store ──▶ model::Snapshot ──newest wins──▶ sync ──▶ backend ──▶ the kernel
//! ```
//!
//! - [`config`]: flags and config file, parsed and validated.
//! - [`source`]: turns the control plane's watch into the model's events.
//! - [`sync`]: the reconcile loop; the only part that knows both the model and a backend.
//! - [`backend`]: how a snapshot becomes kernel objects, by mode.
//! - [`conntrack`]: stale UDP flows.
//! - [`health`], [`metrics`]: what the outside can ask.

pub mod backend;
pub mod conntrack;
