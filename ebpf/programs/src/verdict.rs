// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! What a program says to the kernel.

use aya_ebpf::helpers::generated::bpf_set_retval;

use crate::map;

/// The system call goes on.
pub(crate) const GO_ON: i32 = 1;
/// The system call fails, with `EPERM` unless another errno was set.
const FAIL: i32 = 0;

/// errno(3), as on every architecture that has a BPF JIT but MIPS and SPARC, which this is not built for.
const EADDRINUSE: i32 = 98;
const ECONNREFUSED: i32 = 111;

/// As by a closed port.
#[inline(always)]
pub(crate) fn refused() -> i32 {
    fail(ECONNREFUSED)
}

/// As by a port that a process has.
#[inline(always)]
pub(crate) fn address_in_use() -> i32 {
    fail(EADDRINUSE)
}

#[inline(always)]
fn fail(errno: i32) -> i32 {
    if map::has_set_retval() {
        // SAFETY: takes no pointer.
        unsafe { bpf_set_retval(-errno) };
    }
    FAIL
}
