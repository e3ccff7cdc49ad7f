// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What is counted.

use aya_ebpf::bindings::BPF_NOEXIST;
use tollgate_ebpf_abi::CounterKey;

use crate::map::COUNTERS;

/// Adds one on this CPU. Programs of this type do not interrupt each other on a CPU, but for one that was preempted between
/// reading and writing: a count may then be lost, and no atomic instruction is paid for it.
#[inline(always)]
pub(crate) fn count(service_id: u32, endpoint_id: u32, counter: u32) {
    let key = CounterKey { service_id, endpoint_id, counter };
    if add(&key) || COUNTERS.insert(key, 1, BPF_NOEXIST.into()).is_ok() {
        return;
    }
    // Another CPU was the first, or the map is full.
    add(&key);
}

#[inline(always)]
fn add(key: &CounterKey) -> bool {
    // SAFETY: the lookup gives this CPU's value.
    match COUNTERS.get_ptr_mut(key).map(|it| unsafe { &mut *it }) {
        Some(value) => {
            *value += 1;
            true
        }
        None => false,
    }
}
