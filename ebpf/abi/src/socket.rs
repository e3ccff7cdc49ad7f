//! What a socket dialled and what it was given instead.

use crate::AddressPort;

/// A socket's entry of [`SOCKETS`](crate::map::SOCKETS): the Service that it dialled, or, where it is not connected, the
/// first one that it sent to. It lives in the socket and ends with it, so that no number of sockets makes it forget.
///
/// The daemon reads it through inet_diag (`INET_DIAG_REQ_SK_BPF_STORAGES`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketValue {
    /// What the application dialled, and is told that its peer is.
    pub frontend: AddressPort,
    /// Where its packets go.
    pub endpoint: AddressPort,
    /// The Service port.
    pub service_id: u32,
    /// As in [`EndpointValue::endpoint_id`](crate::EndpointValue::endpoint_id).
    pub endpoint_id: u32,
    /// Of [`socket_flags`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Flags of [`SocketValue::flags`].
pub mod socket_flags {
    /// It is not connected, and has sent to other Services as well: those are in `FLOWS` and `REV_NAT`.
    pub const MORE_FLOWS: u32 = 1 << 0;
}

/// The key of [`FLOWS`](crate::map::FLOWS): the Service ports that an unconnected UDP socket sends to, beyond the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The Service port.
    pub service_id: u32,
    /// Zero.
    pub pad: u32,
}

/// The key of [`REV_NAT`](crate::map::REV_NAT): where a datagram to an unconnected socket comes from.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevNatKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The endpoint.
    pub endpoint: AddressPort,
    /// Zero.
    pub pad: u32,
}
