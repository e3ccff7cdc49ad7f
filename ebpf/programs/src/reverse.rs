// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A process is told who its peer is: the Service that it dialled, not the endpoint.

use tollgate_ebpf_abi::socket_flags;

use crate::flow;
use crate::socket::{Family, Socket};

/// Where a datagram comes from. Sockets that never dialled a Service have nothing remembered.
#[inline(always)]
pub(crate) fn recvmsg<F: Family>(socket: &Socket<F>) {
    let Some(remembered) = socket.remembered() else { return };
    let peer = socket.peer();
    if remembered.endpoint == peer {
        socket.set_peer(&remembered.frontend);
    } else if remembered.flags & socket_flags::MORE_FLOWS != 0
        && let Some(frontend) = flow::frontend(socket, peer)
    {
        socket.set_peer(&frontend);
    }
}

/// Who a connected socket's peer is.
#[inline(always)]
pub(crate) fn getpeername<F: Family>(socket: &Socket<F>) {
    if let Some(remembered) = socket.remembered()
        && remembered.endpoint == socket.peer()
    {
        socket.set_peer(&remembered.frontend);
    }
}
