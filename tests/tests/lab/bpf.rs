//! The smallest program that can be seen at work, by bare bpf(2).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc;

// enum bpf_cmd, bpf_prog_type and bpf_attach_type (linux/bpf.h).
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_PIN: i64 = 6;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;

/// `r0 = 0; exit`: connect(2) fails with EPERM.
const FORBID: [u64; 2] = [0xb7, 0x95];

/// Makes each IPv4 connect of a socket in `cgroup` fail with EPERM, for as long as `pin` is there.
pub(crate) fn forbid_connect4(cgroup: &Path, pin: &Path) -> Result<()> {
    let cgroup = File::open(cgroup).with_context(|| format!("can't open {}", cgroup.display()))?;
    let license = c"";
    let program = Load {
        kind: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        instruction_count: 2,
        instructions: FORBID.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: BPF_CGROUP_INET4_CONNECT,
        ..Load::default()
    };
    let program = descriptor(bpf(BPF_PROG_LOAD, &program)).context("can't load a program")?;
    let link = Create {
        program: program.as_raw_fd().cast_unsigned(),
        target: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_INET4_CONNECT,
        flags: 0,
    };
    let link = descriptor(bpf(BPF_LINK_CREATE, &link)).context("can't attach a program to a cgroup")?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let object = Pin { path: path.as_ptr() as u64, descriptor: link.as_raw_fd().cast_unsigned(), flags: 0 };
    bpf(BPF_OBJ_PIN, &object).with_context(|| format!("can't pin a link at {}", pin.display()))?;
    Ok(())
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to what is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`, up to what is used.
#[repr(C)]
struct Create {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_OBJ_PIN`, up to what is used.
#[repr(C)]
struct Pin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

fn bpf<T>(command: i64, attribute: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as are said to be there, and the pointers in them outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).expect("a descriptor")) }
}

fn descriptor(result: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result?) })
}
