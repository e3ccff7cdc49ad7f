//! The gRPC contract of the Tollgate control plane, and its generated client and server.
//!
//! The contract itself, with what each message means, is `proto/tollgate/v1/controlplane.proto`. Beside the generated
//! code there is what server, client verbs and proxy share: the names of a [`v1::Kind`], how a [`v1::Key`] and a
//! [`v1::ResumeToken`] are written, and how a client gets to a control plane ([`connect`]).

#![forbid(unsafe_code)]

pub mod connect;
mod key;
mod kind;
pub mod pem;
mod token;

pub use kind::UnknownKind;
pub use token::InvalidToken;

/// Every file of the contract, as an encoded `google.protobuf.FileDescriptorSet`: what gRPC server reflection hands out.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tollgate.v1.binpb"));

/// Version 1 of the contract.
#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("tollgate.v1");
}
