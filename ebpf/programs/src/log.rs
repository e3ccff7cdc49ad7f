// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What was decided of a `connect`, told to the daemon's log. IPv4 addresses are told as the maps have them, IPv4-mapped.
//! Not of `sendmsg`: LLVM 22 crashes over that program with the log in it.

use core::net::Ipv6Addr;

use tollgate_ebpf_abi::{Address, AddressPort};

use crate::socket::{Family, Socket};

/// It goes to an endpoint.
#[inline(never)]
pub(crate) fn given<F: Family>(socket: &Socket<F>, dialled: &AddressPort, endpoint: &AddressPort) {
    let (from, to) = (u16::from_be(dialled.port), u16::from_be(endpoint.port));
    aya_log_ebpf::debug!(
        socket.context(),
        "[{:i}]:{} goes to [{:i}]:{}",
        ip(dialled.address),
        from,
        ip(endpoint.address),
        to
    );
}

/// It is refused.
#[inline(never)]
pub(crate) fn refused<F: Family>(socket: &Socket<F>, dialled: &AddressPort) {
    aya_log_ebpf::debug!(socket.context(), "[{:i}]:{} is refused", ip(dialled.address), u16::from_be(dialled.port));
}

#[inline(always)]
fn ip(address: Address) -> Ipv6Addr {
    let [a, b, c, d] = address.words.map(u32::from_be);
    let half = |word: u32| ((word >> 16) as u16, word as u16);
    let ((a, b), (c, d), (e, f), (g, h)) = (half(a), half(b), half(c), half(d));
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}
