// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A process of the node takes a port that is a frontend: it would never be reached there, and is told that it is taken.

use tollgate_ebpf_abi::{ServiceKey, address_flags};

use crate::socket::{Family, Socket};
use crate::verdict::{self, GO_ON};
use crate::{lookup, map};

/// `bind`. Only on addresses on which NodePorts answer, and only in the node's network namespace: pods have their own ports.
#[inline(always)]
pub(crate) fn bind<F: Family>(socket: &Socket<F>) -> i32 {
    let netns = map::node_netns();
    let wanted = socket.peer();
    if netns == 0 || wanted.port == 0 || netns != socket.netns() {
        return GO_ON;
    }
    let is_taken = |address| lookup::read(&ServiceKey::new(address, wanted.port, socket.protocol())).is_some();
    let is_refused = if wanted.address == ServiceKey::NODE_PORT_V6 {
        // For all addresses of both families, unless the socket is of IPv6 alone, which is not told here.
        is_taken(ServiceKey::NODE_PORT_V6) || is_taken(ServiceKey::NODE_PORT_V4)
    } else if wanted.address == ServiceKey::NODE_PORT_V4 {
        is_taken(ServiceKey::NODE_PORT_V4)
    } else {
        lookup::address(&wanted).is_some_and(|it| it.flags & address_flags::NODE_PORT != 0)
            && is_taken(ServiceKey::node_port(wanted.address, 0, 0).address)
    };
    if is_refused { verdict::address_in_use() } else { GO_ON }
}
