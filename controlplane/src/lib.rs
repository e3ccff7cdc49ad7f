//! The bundled Tollgate control plane: what kube-apiserver and etcd do for Services, in one small binary.
//!
//! ```text
//!  client, proxies ◀──gRPC──▶ server ──▶ registry ──▶ store
//!                                         │ ▲
//!                                         ▼ │
//!                                     controllers
//! ```
//! - [`server`]: the gRPC service; each watch is a cursor into the registry's feed.
//! - [`registry`]: what objects must look like, ClusterIPs and node ports, and the one writer.
//! - `controllers`: what is written because of other objects: EndpointSlices out of Pods.
//! - [`store`]: objects and their history on disk.
//! - `metrics`: what is counted, at `/metrics`.
//! - [`backup`]: every object at one revision, in a file.
//! - [`certs`]: a certificate authority and certificates for a first set-up.
//! - [`config`]: the flags of `serve`, and its config file.
//! - [`client`]: the verbs of the command line.

#![forbid(unsafe_code)]

pub mod backup;
pub mod certs;
pub mod client;
pub mod config;
mod controllers;
mod metrics;
pub mod registry;
pub mod server;
pub mod store;

/// An error and its causes, in one line. Libraries say some of them twice, as a part of what they caused or again below
/// it; here each is told once.
pub fn chain(error: &dyn std::error::Error) -> String {
    told_with_causes(error.to_string(), error.source())
}

/// The same for an error that is told in other words than its own.
pub(crate) fn told_with_causes(told: String, mut source: Option<&dyn std::error::Error>) -> String {
    let mut parts = vec![told];
    while let Some(cause) = source {
        let text = cause.to_string();
        match parts.last_mut() {
            Some(last) if last.ends_with(&text) => {}
            Some(last) if text.starts_with(&*last) => *last = text,
            _ => parts.push(text),
        }
        source = cause.source();
    }
    parts.join(": ")
}
