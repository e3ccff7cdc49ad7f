//! Endpoints, and the clients that stay with one.

use crate::{Address, AddressPort};

/// A slot of [`ENDPOINTS`](crate::map::ENDPOINTS). Written before any `SERVICES` entry names it, and never while one does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointValue {
    /// Where connections go.
    pub address: Address,
    /// The port, in network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// Under which its connections are counted. Never 0; one endpoint of one Service port keeps it, in whatever slot.
    pub endpoint_id: u32,
    /// Whose slot it is: the programs use it for no other Service port.
    pub service_id: u32,
    /// Zero.
    pub pad2: u32,
}

/// The key of [`MEMBERS`](crate::map::MEMBERS): an endpoint of one Service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    /// The Service port.
    pub service_id: u32,
    /// The endpoint.
    pub endpoint: AddressPort,
}

/// How an endpoint serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberValue {
    /// Of [`pool`]: in which of the Service port's sets it is.
    pub pools: u32,
    /// As in [`EndpointValue::endpoint_id`].
    pub endpoint_id: u32,
}

/// The sets of endpoints of a Service port, which policies tell apart. A bit each: in [`MemberValue::pools`] those that an
/// endpoint is in; in [`ServiceValue::flags`](crate::ServiceValue::flags) the one that a frontend leads to.
pub mod pool {
    /// The Cluster set.
    pub const CLUSTER: u32 = 1 << 0;
    /// The Local set.
    pub const LOCAL: u32 = 1 << 1;
    /// Both.
    pub const MASK: u32 = CLUSTER | LOCAL;
}

/// The key of [`AFFINITY`](crate::map::AFFINITY): a client of a Service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// The client: the cookie of its network namespace (`bpf_get_netns_cookie`), which all processes of a pod share.
    pub client: u64,
    /// The Service port.
    pub service_id: u32,
    /// Zero.
    pub pad: u32,
}

/// The endpoint that a client stays with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityValue {
    /// When the client last made a connection: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_used: u64,
    /// The endpoint.
    pub endpoint: AddressPort,
    /// Zero.
    pub pad: u32,
}
