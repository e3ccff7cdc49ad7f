// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A process dials an address: where it is a Service's, an endpoint takes its place.

use tollgate_ebpf_abi::{AddressPort, ServiceValue, address_flags, counter, service_flags};

use crate::counter::count;
use crate::lookup::{self, TRIES};
use crate::select::{self, Endpoint};
use crate::socket::{Family, Socket};
use crate::verdict::{self, GO_ON};
use crate::{affinity, flow};

/// What becomes of what was dialled.
enum Outcome {
    /// It is nothing to Services, or packets decide.
    Keep,
    /// It fails as at a closed port.
    Refuse,
    /// It goes there.
    Connect { service_id: u32, endpoint: Endpoint, is_new: bool },
}

/// `connect`: of TCP, and of UDP sockets, which are then given the endpoint for good.
#[inline(always)]
pub(crate) fn connect<F: Family>(socket: &Socket<F>) -> i32 {
    let dialled = socket.peer();
    match resolve(socket, &dialled, |service| choose(socket, service).map(|endpoint| (endpoint, true))) {
        Outcome::Keep => {
            // A socket may have dialled a Service before.
            socket.forget();
            GO_ON
        }
        Outcome::Refuse => {
            #[cfg(feature = "log")]
            crate::log::refused(socket, &dialled);
            verdict::refused()
        }
        Outcome::Connect { service_id, endpoint, .. } => {
            socket.remember(service_id, &dialled, &endpoint);
            socket.set_peer(&endpoint.peer);
            #[cfg(feature = "log")]
            crate::log::given(socket, &dialled, &endpoint.peer);
            count(service_id, endpoint.id, counter::CONNECTIONS);
            GO_ON
        }
    }
}

/// `sendto` and `sendmsg` with an address: each datagram is translated, and goes where the one before went for as long as
/// that endpoint serves.
#[inline(always)]
pub(crate) fn sendmsg<F: Family>(socket: &Socket<F>) -> i32 {
    let dialled = socket.peer();
    let outcome = resolve(socket, &dialled, |service| {
        let known = flow::endpoint(socket, service, &dialled);
        if let Some(endpoint) = known { Some((endpoint, false)) } else { choose(socket, service).map(|it| (it, true)) }
    });
    match outcome {
        Outcome::Keep => GO_ON,
        Outcome::Refuse => verdict::refused(),
        Outcome::Connect { service_id, endpoint, is_new } => {
            if is_new {
                flow::remember(socket, service_id, &dialled, &endpoint);
                count(service_id, endpoint.id, counter::CONNECTIONS);
            }
            socket.set_peer(&endpoint.peer);
            GO_ON
        }
    }
}

/// An endpoint for a new connection.
#[inline(always)]
fn choose<F: Family>(socket: &Socket<F>, service: &ServiceValue) -> Option<Endpoint> {
    if service.flags & service_flags::AFFINITY != 0 {
        affinity::sticky(service, socket.netns())
    } else {
        select::random(service)
    }
}

#[inline(always)]
fn resolve<F: Family>(
    socket: &Socket<F>,
    dialled: &AddressPort,
    endpoint: impl Fn(&ServiceValue) -> Option<(Endpoint, bool)>,
) -> Outcome {
    let Some(address) = lookup::address(dialled) else { return Outcome::Keep };
    let mut is_known = false;
    for _ in 0..TRIES {
        let Some(service) = lookup::service(address, dialled, socket.protocol()) else { continue };
        is_known = true;
        if service.flags & service_flags::LEAVE_TO_PACKETS != 0 {
            return Outcome::Keep;
        }
        if service.slots == 0 {
            count(service.service_id, 0, counter::REFUSED_NO_ENDPOINTS);
            return Outcome::Refuse;
        }
        if let Some((endpoint, is_new)) = endpoint(&service) {
            return Outcome::Connect { service_id: service.service_id, endpoint, is_new };
        }
    }
    if !is_known {
        return unknown_port(address.flags, address.service_id, dialled.port);
    }
    count(0, 0, counter::INCONSISTENT);
    Outcome::Keep
}

/// A port that no Service has. Nobody can be dialled at port 0: a UDP socket is connected there to learn which source address
/// would be used (getaddrinfo(3) does so to sort addresses), and is let.
#[inline(always)]
fn unknown_port(flags: u32, service_id: u32, port: u16) -> Outcome {
    if flags & address_flags::REFUSE_UNKNOWN == 0 || port == 0 {
        return Outcome::Keep;
    }
    count(service_id, 0, counter::REFUSED_UNKNOWN_PORT);
    Outcome::Refuse
}
