// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Clients that stay with their endpoint.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use tollgate_ebpf_abi::{AffinityKey, AffinityValue, ServiceValue};

use crate::map::AFFINITY;
use crate::select::{self, Endpoint};

const NANOSECONDS: u64 = 1_000_000_000;

/// The endpoint that the client stays with, or a random one that it stays with from now on.
#[inline(always)]
pub(crate) fn sticky(service: &ServiceValue, client: u64) -> Option<Endpoint> {
    let key = AffinityKey { client, service_id: service.service_id, pad: 0 };
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let kept = kept(service, &key, now);
    if kept.is_some() {
        return kept;
    }
    let endpoint = select::random(service)?;
    // Of several connections that a client makes at once, the first decides.
    let _ = AFFINITY.remove(key);
    let value = AffinityValue { last_used: now, endpoint: endpoint.peer, pad: 0 };
    if AFFINITY.insert(key, value, BPF_NOEXIST.into()).is_ok() {
        return Some(endpoint);
    }
    // Another came first, or there is no memory.
    let kept = self::kept(service, &key, now);
    if kept.is_some() { kept } else { Some(endpoint) }
}

/// The endpoint that the client has stayed with, where it serves still and the time has not run out.
#[inline(always)]
fn kept(service: &ServiceValue, key: &AffinityKey, now: u64) -> Option<Endpoint> {
    // SAFETY: the lookup gives a valid pointer. Its memory may become another client's meanwhile: what is read is then no
    // endpoint of this Service port, or one that would do, and that client's time begins anew.
    let value = unsafe { AFFINITY.get_ptr_mut(key)?.as_mut()? };
    let since = now.saturating_sub(value.last_used);
    if since >= u64::from(service.affinity_seconds) * NANOSECONDS {
        return None;
    }
    let endpoint = select::again(service, value.endpoint)?;
    value.last_used = now;
    Some(endpoint)
}
