// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The maps and the constants that the daemon sets. What they mean is written at their names in `tollgate-ebpf-abi`.
//!
//! The sizes here are those of a small node. The daemon makes larger maps where the cluster needs them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuHashMap, SkStorage};
use aya_ebpf::macros::btf_map;
use tollgate_ebpf_abi::{
    Address, AddressPort, AddressValue, AffinityKey, AffinityValue, CounterKey, EndpointValue, FlowKey, MemberKey,
    MemberValue, RevNatKey, ServiceKey, ServiceValue, SocketValue,
};

#[btf_map]
pub(crate) static ADDRESSES: HashMap<Address, AddressValue, 4096> = HashMap::new();

#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceValue, 4096> = HashMap::new();

#[btf_map]
pub(crate) static ENDPOINTS: Array<EndpointValue, 16384> = Array::new();

#[btf_map]
pub(crate) static MEMBERS: HashMap<MemberKey, MemberValue, 4096> = HashMap::new();

#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, AffinityValue, 65536> = LruHashMap::new();

#[btf_map]
pub(crate) static SOCKETS: SkStorage<SocketValue> = SkStorage::new();

#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, AddressPort, 65536> = LruHashMap::new();

#[btf_map]
pub(crate) static REV_NAT: LruHashMap<RevNatKey, AddressPort, 65536> = LruHashMap::new();

#[btf_map]
pub(crate) static COUNTERS: PerCpuHashMap<CounterKey, u64, 65536, { BPF_F_NO_PREALLOC as usize }> =
    PerCpuHashMap::new();

#[unsafe(no_mangle)]
static NODE_NETNS: u64 = 0;

#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 1;

/// The node's network namespace; 0 where it is not known.
#[inline(always)]
pub(crate) fn node_netns() -> u64 {
    // SAFETY: a constant of this object; volatile, since the daemon sets another before it loads it.
    unsafe { core::ptr::read_volatile(&NODE_NETNS) }
}

/// Whether this kernel lets a program choose the errno. The verifier knows the value, and does not look at what it rules out.
#[inline(always)]
pub(crate) fn has_set_retval() -> bool {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&HAS_SET_RETVAL) != 0 }
}
