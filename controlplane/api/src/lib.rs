//! The gRPC contract of the Tollgate control plane, and its generated client and server.
//!
//! The contract itself, with what each message means, is `proto/tollgate/v1/controlplane.proto`.

/// Version 1 of the contract.
#[expect(missing_docs, reason = "generated; the documentation is in the .proto file")]
#[expect(clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("tollgate.v1");
}
