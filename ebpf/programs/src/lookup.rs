// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What an address is to Services. An address that is no frontend's costs one lookup, and nothing else is done.

use tollgate_ebpf_abi::{AddressPort, AddressValue, ServiceKey, ServiceValue, address_flags};

use crate::map::{ADDRESSES, SERVICES};

/// How often an entry is looked for, where none is found or the one that is found is not whole. When an entry is replaced,
/// the kernel puts the new one at the head of its bucket and then takes the old one out (kernel/bpf/hashtab.c,
/// `htab_map_update_elem`): a program that is between the two misses both, and finds the new one when it looks again. And
/// see [`ServiceValue::check`].
pub(crate) const TRIES: u32 = 3;

/// What an address is to Services: nothing, where there is no entry.
#[inline(always)]
pub(crate) fn address(dialled: &AddressPort) -> Option<AddressValue> {
    // SAFETY: copied at once. A value that changes meanwhile is one that held a moment ago.
    unsafe { ADDRESSES.get(dialled.address).copied() }
}

/// The Service that has a port of an address. Where none is found, it may be found at the next of [`TRIES`].
#[inline(always)]
pub(crate) fn service(address: AddressValue, dialled: &AddressPort, protocol: u8) -> Option<ServiceValue> {
    if address.flags & address_flags::VIP != 0
        && let Some(service) = read(&ServiceKey::new(dialled.address, dialled.port, protocol))
    {
        return Some(service);
    }
    if address.flags & address_flags::NODE_PORT != 0 {
        return read(&ServiceKey::node_port(dialled.address, dialled.port, protocol));
    }
    None
}

/// A frontend's value, where there is one and it is whole.
#[inline(always)]
pub(crate) fn read(key: &ServiceKey) -> Option<ServiceValue> {
    let value = SERVICES.get_ptr(key)?;
    // SAFETY: the lookup gives a valid pointer. Volatile: what is checked is what is used.
    let value = unsafe { core::ptr::read_volatile(value) };
    value.is_of(key).then_some(value)
}
