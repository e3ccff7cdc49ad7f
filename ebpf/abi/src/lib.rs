//! What the eBPF programs and the daemon share: keys, values and names of the maps, to the byte.
//!
//! ```text
//!  ADDRESSES   an address  ──▶ is it a frontend's at all?        no: nothing else is looked at
//!  SERVICES    a frontend  ──▶ ServiceValue: a run of slots      the one entry that is flipped when endpoints change
//!  ENDPOINTS   a slot      ──▶ EndpointValue                     runs are written fresh, and rest once they are let go
//!  MEMBERS     an endpoint of a Service port ──▶ does it serve?  for affinity, and for UDP
//!  AFFINITY    a client of a Service port    ──▶ its endpoint
//!  SOCKETS     a socket    ──▶ what it dialled, and what it got  the socket's own memory: it ends with the socket
//!  FLOWS, REV_NAT          the same, for UDP sockets that send to several Services
//!  COUNTERS    connections and refusals, per CPU
//! ```
//!
//! # Rules
//! Every type is `repr(C)` without implicit padding, so that equal values are equal bytes: the kernel compares keys as
//! bytes. Padding is explicit and zero. Addresses are 16 bytes, IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), so that one set
//! of maps serves both families and IPv4-mapped sockets need nothing special. Ports are in network byte order, as the
//! hooks give them. All else is in the machine's byte order.
//!
//! # Writing
//! Nothing but the order of writes and [`ServiceValue::check`] protects a reader. To add: slots, then members, then the
//! service, then the address. To remove: the other way round. A slot that was let go must rest until every program that
//! may have seen it has ended: one RCU grace period after the last entry that named it was replaced
//! (`membarrier(MEMBARRIER_CMD_GLOBAL)` waits for one).
//!
//! A change of any layout here raises [`LAYOUT_VERSION`], which is part of the path of the pins.

#![cfg_attr(not(test), no_std)]

mod address;
mod endpoint;
mod service;
mod socket;

pub use address::{Address, AddressPort, AddressValue, address_flags};
pub use endpoint::{AffinityKey, AffinityValue, EndpointValue, MemberKey, MemberValue, pool};
pub use service::{CounterKey, ServiceKey, ServiceValue, counter, protocol, service_flags};
pub use socket::{FlowKey, RevNatKey, SocketValue, socket_flags};

/// The version of all that is written here. The pins lie under `<bpf root>/v<this>/`.
pub const LAYOUT_VERSION: u32 = 1;

/// Names of the maps: in the object, in the kernel and of their pins (`maps/<name>`). At most 15 characters are kept by
/// the kernel (`BPF_OBJ_NAME_LEN` is 16).
pub mod map {
    /// Hash: [`Address`](crate::Address) to [`AddressValue`](crate::AddressValue).
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Hash: [`ServiceKey`](crate::ServiceKey) to [`ServiceValue`](crate::ServiceValue).
    pub const SERVICES: &str = "SERVICES";
    /// Array: slot number to [`EndpointValue`](crate::EndpointValue).
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Hash: [`MemberKey`](crate::MemberKey) to [`MemberValue`](crate::MemberValue). Has every endpoint of the Service ports that have affinity or
    /// are UDP, and may have more.
    pub const MEMBERS: &str = "MEMBERS";
    /// LRU hash: [`AffinityKey`](crate::AffinityKey) to [`AffinityValue`](crate::AffinityValue). Written by the programs.
    pub const AFFINITY: &str = "AFFINITY";
    /// Socket storage: [`SocketValue`](crate::SocketValue). Written by the programs.
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU hash: [`FlowKey`](crate::FlowKey) to the endpoint's [`AddressPort`](crate::AddressPort). Written by the programs.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`RevNatKey`](crate::RevNatKey) to the frontend's [`AddressPort`](crate::AddressPort). Written by the programs.
    pub const REV_NAT: &str = "REV_NAT";
    /// Per-CPU hash without preallocation: [`CounterKey`](crate::CounterKey) to a `u64`. Entries are made by the programs.
    pub const COUNTERS: &str = "COUNTERS";

    /// All of them.
    pub const ALL: [&str; 9] = [ADDRESSES, SERVICES, ENDPOINTS, MEMBERS, AFFINITY, SOCKETS, FLOWS, REV_NAT, COUNTERS];
}

/// Names of the programs: in the object, in the kernel and of their links' pins (`links/<name>`). Each is attached to the
/// hook of its name.
pub mod program {
    /// All of them.
    pub const ALL: [&str; 10] = [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
        "bind4",
        "bind6",
    ];
}

/// Names of the constants that the daemon sets before it loads the programs (`.rodata`).
pub mod global {
    /// `u64`: the cookie of the node's network namespace (`SO_NETNS_COOKIE` of a socket in it), in which processes are kept
    /// off node ports. 0: they are not.
    pub const NODE_NETNS: &str = "NODE_NETNS";
    /// `u32`: 1 where the kernel lets a program choose the errno (`bpf_set_retval`, Linux 5.18); 0: refusals are `EPERM`.
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
}

/// Makes types fit for aya's maps, where the daemon asks for it.
macro_rules! plain {
    ($($name:ty: $size:literal),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: the type is `repr(C)`, `Copy`, holds integers only and, by the size above, has no implicit padding.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )+};
}

plain! {
    Address: 16,
    AddressPort: 20,
    AddressValue: 8,
    ServiceKey: 20,
    ServiceValue: 24,
    EndpointValue: 32,
    MemberKey: 24,
    MemberValue: 8,
    AffinityKey: 16,
    AffinityValue: 32,
    SocketValue: 56,
    FlowKey: 16,
    RevNatKey: 32,
    CounterKey: 12,
}
