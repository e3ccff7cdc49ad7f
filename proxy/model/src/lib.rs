//! What a Service means: the vocabulary and the decisions of Tollgate, without any I/O.
//!
//! Data goes one way:
//!
//! ```text
//! Event ──▶ Store ──▶ select ──▶ Snapshot ──▶ diff
//! ```
//!
//! - [`name`], [`service`], [`endpoint`], [`node`], [`frontend`]: the words, parsed once from Kubernetes objects and valid
//!   by construction.
//! - [`object`]: what all objects share, and how one that does not validate is told of.
//! - [`select`]: which endpoints this node may use for a Service port.
//! - [`store`]: the last known objects; [`store::Store::apply`] re-resolves only the Services that an event touches.
//! - [`snapshot`]: what this node should do, resolved; immutable and structurally shared.
//! - [`diff`]: what was added, changed and removed between two maps.

#![forbid(unsafe_code)]

pub mod diff;
pub mod endpoint;
pub mod frontend;
pub mod name;
pub mod node;
pub mod object;
pub mod select;
pub mod service;
pub mod snapshot;
pub mod store;

#[cfg(test)]
mod tests;
