// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The socket that a hook is called for: the address in the call, and what is remembered in the socket.

use core::marker::PhantomData;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use tollgate_ebpf_abi::{Address, AddressPort, SocketValue};

use crate::map::SOCKETS;
use crate::select::Endpoint;

/// The context of a hook of one family.
pub(crate) struct Socket<F> {
    ctx: SockAddrContext,
    family: PhantomData<F>,
}

/// How hooks of a family have the address.
pub(crate) trait Family {
    /// The address of the call.
    fn address(call: *mut bpf_sock_addr) -> Address;
    /// Puts another in its place.
    fn set_address(call: *mut bpf_sock_addr, address: &Address);
}

/// Hooks that have an IPv4 address.
pub(crate) enum V4 {}

/// Hooks that have an IPv6 address, which may be an IPv4-mapped one.
pub(crate) enum V6 {}

// === impl Socket ===

impl<F: Family> Socket<F> {
    #[inline(always)]
    pub(crate) fn new(ctx: SockAddrContext) -> Self {
        Self { ctx, family: PhantomData }
    }

    #[inline(always)]
    fn call(&self) -> &bpf_sock_addr {
        // SAFETY: the kernel hands every program of this type a valid context.
        unsafe { &*self.ctx.sock_addr }
    }

    /// What the helpers of `aya` take.
    #[cfg(feature = "log")]
    pub(crate) fn context(&self) -> &SockAddrContext {
        &self.ctx
    }

    /// The address and port of the call.
    #[inline(always)]
    pub(crate) fn peer(&self) -> AddressPort {
        // The field has 32 bits of which the low 16 hold the port (net/core/filter.c, `sock_addr_convert_ctx_access`).
        AddressPort::new(F::address(self.ctx.sock_addr), self.call().user_port as u16)
    }

    /// Puts another address and port into the call. It must be of the same family.
    #[inline(always)]
    pub(crate) fn set_peer(&self, peer: &AddressPort) {
        F::set_address(self.ctx.sock_addr, &peer.address);
        // SAFETY: as for `call`; the kernel lets this be written in all hooks that this is called from.
        unsafe { (&raw mut (*self.ctx.sock_addr).user_port).write_volatile(u32::from(peer.port)) };
    }

    /// The IP protocol, as the maps have it. MPTCP's 262 becomes TCP's 6, which it is on the wire.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        self.call().protocol as u8
    }

    /// The network namespace that the socket is in.
    #[inline(always)]
    pub(crate) fn netns(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// What no other socket has.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// What is remembered in the socket. The kernel calls the hooks with the socket locked (`BPF_CGROUP_RUN_SA_PROG_LOCK`,
    /// `inet_getname`), so that nobody else changes it meanwhile.
    #[expect(clippy::mut_from_ref, reason = "the value is the socket's, and no two references to it are held at once")]
    #[inline(always)]
    pub(crate) fn remembered(&self) -> Option<&mut SocketValue> {
        // SAFETY: the helper gives null or a valid value, which lives as long as the socket.
        unsafe { SOCKETS.get_ptr_mut(&self.ctx).as_mut() }
    }

    /// Remembers in place of what was remembered. Where the kernel has no memory for it, the socket works all the same, and
    /// sees its endpoint as its peer.
    #[inline(always)]
    pub(crate) fn remember(&self, service_id: u32, frontend: &AddressPort, endpoint: &Endpoint) {
        // SAFETY: as above. A new value is zero.
        let Some(it) = (unsafe { SOCKETS.get_or_insert_ptr_mut(&self.ctx, None).as_mut() }) else { return };
        copy(frontend, &mut it.frontend);
        copy(&endpoint.peer, &mut it.endpoint);
        it.service_id = service_id;
        it.endpoint_id = endpoint.id;
        it.flags = 0;
    }

    /// Forgets, if there is anything.
    #[inline(always)]
    pub(crate) fn forget(&self) {
        // SAFETY: in all hooks that this is called from the kernel hands over a full socket.
        let _ = unsafe { SOCKETS.delete(self.call().__bindgen_anon_1.sk) };
    }
}

// === impl Family ===

// Word by word and volatile: the verifier wants every access at a constant offset from the context, and the compiler would
// else make a copy of several words, whose address it computes.

impl Family for V4 {
    #[inline(always)]
    fn address(call: *mut bpf_sock_addr) -> Address {
        // SAFETY: the kernel hands every program of this type a valid context.
        Address::from_v4(unsafe { (&raw const (*call).user_ip4).read_volatile() })
    }

    #[inline(always)]
    fn set_address(call: *mut bpf_sock_addr, address: &Address) {
        // SAFETY: as above, and it may be written.
        unsafe { (&raw mut (*call).user_ip4).write_volatile(address.words[3]) };
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(call: *mut bpf_sock_addr) -> Address {
        // SAFETY: as above.
        let word = |index: usize| unsafe { (&raw const (*call).user_ip6[index]).read_volatile() };
        Address { words: [word(0), word(1), word(2), word(3)] }
    }

    #[inline(always)]
    fn set_address(call: *mut bpf_sock_addr, address: &Address) {
        let set = |index: usize| {
            // SAFETY: as above.
            unsafe { (&raw mut (*call).user_ip6[index]).write_volatile(address.words[index]) };
        };
        set(0);
        set(1);
        set(2);
        set(3);
    }
}

/// Copies field by field: of a whole, the compiler makes a call of a loop over its bytes.
#[inline(always)]
pub(crate) fn copy(from: &AddressPort, to: &mut AddressPort) {
    let [a, b, c, d] = from.address.words;
    to.address.words[0] = a;
    to.address.words[1] = b;
    to.address.words[2] = c;
    to.address.words[3] = d;
    to.port = from.port;
    to.pad = 0;
}
