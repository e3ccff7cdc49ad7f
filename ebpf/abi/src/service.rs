//! Frontends and what they lead to, and what is counted of them.

use crate::Address;

/// The key of [`SERVICES`](crate::map::SERVICES): a frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The address; for NodePorts, [zero](Address::ZERO) for IPv6 and [`ServiceKey::NODE_PORT_V4`] for IPv4.
    pub address: Address,
    /// The port, in network byte order.
    pub port: u16,
    /// Of [`protocol`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// What a frontend leads to. Replaced as a whole, by one map update.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceValue {
    /// One Service port in one family. Never 0, and never another's while anything of the old one may be left.
    pub service_id: u32,
    /// The first of its slots in `ENDPOINTS`.
    pub first_slot: u32,
    /// How many slots, each as likely as the others. 0: connections are refused.
    pub slots: u32,
    /// Of [`service_flags`] and [`pool`](crate::pool).
    pub flags: u32,
    /// With [`service_flags::AFFINITY`]: how long a client stays with its endpoint after its last new connection, in seconds.
    pub affinity_seconds: u32,
    /// [`ServiceValue::checksum`] of the above and of the key. The kernel gives the memory of a replaced hash entry to the next
    /// one at once, without waiting for programs that still read it (kernel/bpf/hashtab.c, `free_htab_elem`): a program that was
    /// interrupted between its lookup and its reading may read another frontend's value, or half of it. The programs
    /// compare this with what they read, and look again where it differs.
    pub check: u32,
}

/// Flags of [`ServiceValue::flags`], beside those of [`pool`](crate::pool).
pub mod service_flags {
    /// A client stays with its endpoint for [`affinity_seconds`](super::ServiceValue::affinity_seconds).
    pub const AFFINITY: u32 = 1 << 8;
    /// The address is kept: what is dropped silently, or what packets must decide (source ranges).
    pub const LEAVE_TO_PACKETS: u32 = 1 << 9;
}

/// Values of [`ServiceKey::protocol`]: IP protocol numbers.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// The key of [`COUNTERS`](crate::map::COUNTERS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterKey {
    /// The Service port, by [`ServiceValue::service_id`]; 0 for what belongs to none.
    pub service_id: u32,
    /// The endpoint, by [`EndpointValue::endpoint_id`](crate::EndpointValue::endpoint_id); 0 for what belongs to none.
    pub endpoint_id: u32,
    /// Of [`counter`].
    pub counter: u32,
}

/// What is counted: values of [`CounterKey::counter`].
pub mod counter {
    /// Connections, and flows of unconnected UDP sockets, that were given an endpoint. Per endpoint: a Service port's are
    /// the sum.
    pub const CONNECTIONS: u32 = 0;
    /// Refused: the Service port has no endpoint. Per Service port.
    pub const REFUSED_NO_ENDPOINTS: u32 = 1;
    /// Refused: no Service has the port. Per Service port that the address names.
    pub const REFUSED_UNKNOWN_PORT: u32 = 2;
    /// Left alone, though there is a Service: no consistent entry was read in several tries. Per Service port 0; should never
    /// be seen.
    pub const INCONSISTENT: u32 = 3;
}

// === impl ServiceKey ===

impl ServiceKey {
    /// The address under which `SERVICES` has the NodePorts of IPv4: `::ffff:0.0.0.0`.
    pub const NODE_PORT_V4: Address = Address::from_v4(0);
    /// The address under which `SERVICES` has the NodePorts of IPv6: `::`.
    pub const NODE_PORT_V6: Address = Address::ZERO;

    /// A frontend, its port in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }

    /// A NodePort on an address of that family, its port in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn node_port(of: Address, port: u16, protocol: u8) -> Self {
        let mut address = Self::NODE_PORT_V6;
        if of.to_v4().is_some() {
            // The one word in which they differ.
            address.words[2] = Self::NODE_PORT_V4.words[2];
        }
        Self::new(address, port, protocol)
    }
}

// === impl ServiceValue ===

impl ServiceValue {
    /// The same value with the check that belongs to it under that key.
    #[inline(always)]
    #[must_use]
    pub const fn sealed(self, key: &ServiceKey) -> Self {
        Self { check: self.checksum(key), ..self }
    }

    /// Whether it is whole, and that key's.
    #[inline(always)]
    #[must_use]
    pub const fn is_of(&self, key: &ServiceKey) -> bool {
        self.check == self.checksum(key)
    }

    /// Over the key and every field but [`check`](Self::check). Not cryptographic: nobody but the daemon writes entries, and
    /// what it tells apart are entries of the daemon's.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(&self, key: &ServiceKey) -> u32 {
        let [a, b, c, d] = key.address.words;
        let mut hash = mix(LAYOUT_SEED, a, b);
        hash = mix(hash, c, d);
        hash = mix(hash, key.port as u32, key.protocol as u32);
        hash = mix(hash, self.service_id, self.first_slot);
        hash = mix(hash, self.slots, self.flags);
        hash = mix(hash, self.affinity_seconds, 0);
        (hash >> 32) as u32
    }
}

/// So that a value of zeros, as a new entry may be for a moment, is nobody's.
const LAYOUT_SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// One round: two words are added and every bit is spread. The odd constant is 2^64 over the golden ratio, of multiplicative
/// hashing (Knuth, The Art of Computer Programming, 6.4).
#[inline(always)]
const fn mix(hash: u64, high: u32, low: u32) -> u64 {
    let hash = (hash ^ ((high as u64) << 32 | low as u64)).wrapping_mul(LAYOUT_SEED);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value() -> ServiceValue {
        ServiceValue { service_id: 7, first_slot: 40, slots: 3, flags: 1, affinity_seconds: 0, check: 0 }
    }

    #[test]
    fn a_value_is_its_own_key_s_alone() {
        let key = ServiceKey::new(Address::from_v4(1), 80, protocol::TCP);
        let sealed = value().sealed(&key);
        assert!(sealed.is_of(&key));
        let others = [
            ServiceKey { address: Address::from_v4(2), ..key },
            ServiceKey { port: 81, ..key },
            ServiceKey { protocol: protocol::UDP, ..key },
        ];
        assert!(others.iter().all(|other| !sealed.is_of(other)));
    }

    #[test]
    fn half_of_another_value_is_noticed() {
        let key = ServiceKey::new(Address::from_v4(1), 80, protocol::TCP);
        let sealed = value().sealed(&key);
        let torn = [
            ServiceValue { service_id: 8, ..sealed },
            ServiceValue { first_slot: 43, ..sealed },
            ServiceValue { slots: 4, ..sealed },
            ServiceValue { flags: 0, ..sealed },
            ServiceValue { affinity_seconds: 1, ..sealed },
            ServiceValue::default(),
        ];
        assert!(torn.iter().all(|torn| !torn.is_of(&key)));
    }
}
