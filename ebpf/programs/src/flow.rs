// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Unconnected UDP sockets: the datagrams that a socket sends to a Service go to one endpoint while it serves, and what comes
//! back comes from the Service. The first Service that a socket sends to is remembered in the socket itself, further ones in
//! `FLOWS` and `REV_NAT`.

use aya_ebpf::bindings::BPF_ANY;
use tollgate_ebpf_abi::{AddressPort, FlowKey, RevNatKey, ServiceValue, socket_flags};

use crate::map::{FLOWS, REV_NAT};
use crate::select::{self, Endpoint};
use crate::socket::{Family, Socket, copy};

/// The endpoint that the socket's datagrams to that frontend have gone to, where it serves still.
#[inline(always)]
pub(crate) fn endpoint<F: Family>(
    socket: &Socket<F>,
    service: &ServiceValue,
    dialled: &AddressPort,
) -> Option<Endpoint> {
    let remembered = socket.remembered()?;
    if remembered.frontend == *dialled {
        return if remembered.service_id == service.service_id {
            select::again(service, remembered.endpoint)
        } else {
            None
        };
    }
    if remembered.flags & socket_flags::MORE_FLOWS == 0 {
        return None;
    }
    let cookie = socket.cookie();
    let key = FlowKey { cookie, service_id: service.service_id, pad: 0 };
    // SAFETY: copied at once; what is no endpoint of this Service port is noticed.
    let peer = unsafe { FLOWS.get(key).copied()? };
    let endpoint = select::again(service, peer)?;
    // It may have been pushed out, or lead to another frontend of the same Service port.
    let key = RevNatKey { cookie, endpoint: peer, pad: 0 };
    // SAFETY: copied at once.
    if unsafe { REV_NAT.get(key).copied() } != Some(*dialled) {
        let _ = REV_NAT.insert(key, *dialled, BPF_ANY.into());
    }
    Some(endpoint)
}

/// Remembers an endpoint that was chosen anew.
#[inline(always)]
pub(crate) fn remember<F: Family>(socket: &Socket<F>, service_id: u32, dialled: &AddressPort, endpoint: &Endpoint) {
    let Some(remembered) = socket.remembered() else {
        socket.remember(service_id, dialled, endpoint);
        return;
    };
    let cookie = socket.cookie();
    remembered.flags |= socket_flags::MORE_FLOWS;
    if remembered.frontend == *dialled {
        // What the former endpoint has still to say comes from the Service as well.
        let _ = REV_NAT.insert(RevNatKey { cookie, endpoint: remembered.endpoint, pad: 0 }, *dialled, BPF_ANY.into());
        copy(&endpoint.peer, &mut remembered.endpoint);
        remembered.endpoint_id = endpoint.id;
        remembered.service_id = service_id;
        return;
    }
    let _ = FLOWS.insert(FlowKey { cookie, service_id, pad: 0 }, endpoint.peer, BPF_ANY.into());
    let _ = REV_NAT.insert(RevNatKey { cookie, endpoint: endpoint.peer, pad: 0 }, *dialled, BPF_ANY.into());
}

/// The frontend that a datagram comes from by the further flows.
#[inline(always)]
pub(crate) fn frontend<F: Family>(socket: &Socket<F>, peer: AddressPort) -> Option<AddressPort> {
    // SAFETY: copied at once.
    unsafe { REV_NAT.get(RevNatKey { cookie: socket.cookie(), endpoint: peer, pad: 0 }).copied() }
}
