// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! One of a Service port's endpoints.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use tollgate_ebpf_abi::{AddressPort, EndpointValue, MemberKey, ServiceValue, pool};

use crate::map::{ENDPOINTS, MEMBERS};

/// An endpoint that was chosen.
#[derive(Clone, Copy)]
pub(crate) struct Endpoint {
    pub(crate) peer: AddressPort,
    pub(crate) id: u32,
}

/// Any, each as likely as the others. None where the slot is another's by now: the Service's value is an old one.
#[inline(always)]
pub(crate) fn random(service: &ServiceValue) -> Option<Endpoint> {
    // SAFETY: takes no argument.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    // The high half of the product is below `slots`, and as even as a remainder, without a division.
    let slot = service.first_slot.wrapping_add(((random * u64::from(service.slots)) >> 32) as u32);
    let EndpointValue { address, port, endpoint_id, service_id, .. } = *ENDPOINTS.get(slot)?;
    (service_id == service.service_id).then_some(Endpoint { peer: AddressPort::new(address, port), id: endpoint_id })
}

/// That one, where it serves still in the set that the frontend leads to.
#[inline(always)]
pub(crate) fn again(service: &ServiceValue, peer: AddressPort) -> Option<Endpoint> {
    // SAFETY: copied at once.
    let member = unsafe { MEMBERS.get(MemberKey { service_id: service.service_id, endpoint: peer }).copied()? };
    (member.pools & service.flags & pool::MASK != 0).then_some(Endpoint { peer, id: member.endpoint_id })
}
