// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The socket layer: a process that dials a Service is connected to an endpoint, once, before the first packet.
//!
//! ```text
//!  connect4/6, sendmsg4/6        dial     lookup ─▶ affinity ─▶ select     the address becomes an endpoint's
//!  recvmsg4/6, getpeername4/6    reverse  socket                           and is the Service's again when asked for
//!  bind4/6                       bind     lookup                           node ports that are frontends are taken
//! ```
//!
//! Only entry points are here. Each returns its verdict: 1 goes on, 0 fails with the errno that was set.

#![no_std]
#![no_main]

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

mod affinity;
mod bind;
mod counter;
mod dial;
mod flow;
#[cfg(feature = "log")]
mod log;
mod lookup;
mod map;
mod reverse;
mod select;
mod socket;
mod verdict;

use socket::{Socket, V4, V6};

/// A socket of IPv4 connects.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    dial::connect(&Socket::<V4>::new(ctx))
}

/// A socket of IPv6 connects, maybe to an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    dial::connect(&Socket::<V6>::new(ctx))
}

/// A UDP socket sends to an address that it names. IPv6 sockets that send to an IPv4-mapped one come here as well
/// (net/ipv6/udp.c, `udpv6_sendmsg`).
#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    dial::sendmsg(&Socket::<V4>::new(ctx))
}

/// A UDP socket sends to an IPv6 address that it names.
#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    dial::sendmsg(&Socket::<V6>::new(ctx))
}

/// A UDP socket of IPv4 is told where a datagram comes from.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    reverse::recvmsg(&Socket::<V4>::new(ctx));
    verdict::GO_ON
}

/// A UDP socket of IPv6 is told where a datagram comes from.
#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    reverse::recvmsg(&Socket::<V6>::new(ctx));
    verdict::GO_ON
}

/// A socket of IPv4 is asked for its peer.
#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    reverse::getpeername(&Socket::<V4>::new(ctx));
    verdict::GO_ON
}

/// A socket of IPv6 is asked for its peer.
#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    reverse::getpeername(&Socket::<V6>::new(ctx));
    verdict::GO_ON
}

/// A socket of IPv4 takes a port.
#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    bind::bind(&Socket::<V4>::new(ctx))
}

/// A socket of IPv6 takes a port.
#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    bind::bind(&Socket::<V6>::new(ctx))
}

/// The licence that the helpers ask for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
