//! bpf(2), as far as aya 0.14 lacks it: batches of map entries, links of cgroup programs that are replaced in place, and pins
//! of the one and the other. Each function is one system call, or one for each batch. The layouts are those of
//! `union bpf_attr` and the `bpf_*_info` structures in include/uapi/linux/bpf.h; the kernel takes any length, and zeros for
//! what it does not get.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// Entries that one system call takes or gives.
const BATCH: usize = 4096;

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    MapDelete = 3,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ObjGetInfo = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    IterCreate = 33,
}

/// A map of which the daemon knows what it holds.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    entries: PhantomData<(K, V)>,
}

/// What the kernel says of a map: the beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
}

/// What the kernel says of a link of a cgroup: the beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) link_type: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pad: u32,
    /// 0 where it was detached.
    pub(crate) cgroup: u64,
    pub(crate) attach_type: u32,
    pad2: u32,
}

/// What the kernel says of a program: the beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    pub(crate) program_type: u32,
    pub(crate) id: u32,
    /// A hash of its instructions.
    pub(crate) tag: [u8; 8],
}

/// `BPF_MAP_TYPE_HASH`
pub(crate) const MAP_TYPE_HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`
pub(crate) const NO_PREALLOC: u32 = 1;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct ObjectInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct IterLinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i64> {
    loop {
        // SAFETY: `attr` is one of the layouts above, of its own size; whatever it points to outlives the call, which is the
        // business of each function below.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attr), size_of::<T>()) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        // A batch may be interrupted before its first entry, and loading a program at any time.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

fn bpf_fd<T>(command: Command, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attr)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // One that is open is never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(of: *const T) -> u64 {
    of as u64
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned there.
pub(crate) fn open_pinned(at: &Path) -> io::Result<OwnedFd> {
    let name = path(at)?;
    bpf_fd(Command::ObjGet, &mut Object { pathname: address(name.as_ptr()), bpf_fd: 0, file_flags: 0 })
}

/// Pins a map or a link.
pub(crate) fn pin(fd: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let name = path(at)?;
    bpf(Command::ObjPin, &mut Object { pathname: address(name.as_ptr()), bpf_fd: raw(fd), file_flags: 0 })?;
    Ok(())
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let pointer = std::ptr::from_mut(&mut info);
    bpf(Command::ObjGetInfo, &mut ObjectInfo { bpf_fd: raw(fd), info_len, info: pointer as u64 })?;
    Ok(info)
}

/// What the kernel says of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// What the kernel says of a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// What the kernel says of a program.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    info(program)
}

/// Attaches a program to a cgroup, beside what others have attached there. It stays for as long as the link is open or
/// pinned.
pub(crate) fn attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate { prog_fd: raw(program), target_fd: raw(cgroup), attach_type, flags: 0 };
    bpf_fd(Command::LinkCreate, &mut attr)
}

/// Puts another program in the place of a link's: every call runs the one or the other.
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    bpf(Command::LinkUpdate, &mut attr)?;
    Ok(())
}

/// Whether a program of a cgroup's `connect` may call `bpf_set_retval`, and with that choose the errno (Linux 5.18).
pub(crate) fn has_set_retval() -> bool {
    const CGROUP_SOCK_ADDR: u32 = 18;
    const CGROUP_INET4_CONNECT: u32 = 10;
    const SET_RETVAL: u64 = 187;
    // r1 = 0; call bpf_set_retval; r0 = 1; exit
    let instructions = [0x0000_0000_0000_01b7, SET_RETVAL << 32 | 0x85, 0x0000_0001_0000_00b7, 0x95];
    load(CGROUP_SOCK_ADDR, CGROUP_INET4_CONNECT, 0, &instructions).is_ok()
}

fn load(prog_type: u32, expected_attach_type: u32, attach_btf_id: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = ProgLoad {
        prog_type,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        expected_attach_type,
        attach_btf_id,
        ..ProgLoad::default()
    };
    bpf_fd(Command::ProgLoad, &mut attr)
}

/// A program that tells every socket that has an entry in a socket storage: the socket's cookie, 8 bytes, and the value.
///
/// It is written in instructions because Rust's toolchain for them has no relocations against the kernel's own types, and its
/// four loads need none: they are of the context, whose layout is fixed (`struct bpf_iter__bpf_sk_storage_map`), and of
/// the first field of `struct bpf_iter_meta`.
pub(crate) fn load_socket_iterator(target: u32, value_size: u32) -> io::Result<OwnedFd> {
    const TRACING: u32 = 26;
    const CALL: u64 = 0x85;
    const GET_SOCKET_COOKIE: u64 = 46;
    const SEQ_WRITE: u64 = 127;
    let instruction = |code: u64, destination: u64, source: u64, offset: u64, value: u64| {
        code | destination << 8 | source << 12 | offset << 16 | value << 32
    };
    let load_u64 = |to, from, offset| instruction(0x79, to, from, offset, 0);
    let store_u64 = |to, offset: i16, from| instruction(0x7b, to, from, u64::from(offset.cast_unsigned()), 0);
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    let add = |to, value: i32| instruction(0x07, to, 0, 0, u64::from(value.cast_unsigned()));
    let exit_if_zero = |register, by| instruction(0x15, register, 0, by, 0);
    let instructions = [
        // r6 = meta->seq, r7 = sk, r8 = value; after the last socket these are null.
        load_u64(6, 1, 0),
        load_u64(6, 6, 0),
        load_u64(7, 1, 16),
        load_u64(8, 1, 24),
        exit_if_zero(7, 13),
        exit_if_zero(8, 12),
        // bpf_seq_write(seq, &cookie, 8)
        copy(1, 7),
        CALL | GET_SOCKET_COOKIE << 32,
        store_u64(10, -8, 0),
        copy(1, 6),
        copy(2, 10),
        add(2, -8),
        set(3, 8),
        CALL | SEQ_WRITE << 32,
        // bpf_seq_write(seq, value, value_size)
        copy(1, 6),
        copy(2, 8),
        set(3, value_size.into()),
        CALL | SEQ_WRITE << 32,
        set(0, 0),
        0x95,
    ];
    load(TRACING, TRACE_ITER, target, &instructions)
}

/// `BPF_TRACE_ITER`
const TRACE_ITER: u32 = 28;

/// Runs an iterator over a map: what it tells, as a file to read.
pub(crate) fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    let info = raw(map);
    let mut attr = IterLinkCreate {
        prog_fd: raw(program),
        target_fd: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        iter_info: address(&raw const info),
        iter_info_len: u32::try_from(size_of::<u32>()).map_err(io::Error::other)?,
        pad: 0,
    };
    let link = bpf_fd(Command::LinkCreate, &mut attr)?;
    let mut attr = IterCreate { link_fd: raw(link.as_fd()), flags: 0 };
    Ok(bpf_fd(Command::IterCreate, &mut attr)?.into())
}

impl<K: aya::Pod, V: aya::Pod> Map<K, V> {
    /// Makes a hash map that takes memory only for what is in it.
    pub(crate) fn create_hash(name: &str, max_entries: u32) -> io::Result<Self> {
        let mut map_name = [0; 16];
        map_name[..name.len()].copy_from_slice(name.as_bytes());
        let mut attr = MapCreate {
            map_type: MAP_TYPE_HASH,
            key_size: u32::try_from(size_of::<K>()).map_err(io::Error::other)?,
            value_size: u32::try_from(size_of::<V>()).map_err(io::Error::other)?,
            max_entries,
            map_flags: NO_PREALLOC,
            map_name,
            ..MapCreate::default()
        };
        Ok(Self { fd: bpf_fd(Command::MapCreate, &mut attr)?, entries: PhantomData })
    }

    /// Opens the map that is pinned there.
    ///
    /// # Errors
    /// Also where it is of another layout.
    pub(crate) fn open_pinned(at: &Path) -> io::Result<Self> {
        let map = Self { fd: open_pinned(at)?, entries: PhantomData };
        let MapInfo { key_size, value_size, .. } = map.info()?;
        if key_size as usize != size_of::<K>() || value_size as usize != size_of::<V>() {
            let what = format!(
                "its keys have {key_size} bytes and its values {value_size}, not {} and {}",
                size_of::<K>(),
                size_of::<V>()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(map)
    }

    /// What the kernel says of it.
    pub(crate) fn info(&self) -> io::Result<MapInfo> {
        map_info(self.fd.as_fd())
    }

    fn element(&self, key: *const K, value: *const V) -> MapElement {
        MapElement { map_fd: raw(self.fd.as_fd()), pad: 0, key: address(key), value: address(value), flags: 0 }
    }

    /// Writes these entries, whether they are there or not.
    pub(crate) fn put(&self, entries: &[(K, V)]) -> io::Result<()> {
        if let [(key, value)] = entries {
            bpf(Command::MapUpdate, &mut self.element(key, value))?;
            return Ok(());
        }
        for entries in entries.chunks(BATCH) {
            let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
            self.batch(Command::MapUpdateBatch, &keys, values.as_ptr())?;
        }
        Ok(())
    }

    /// Deletes these entries; what is not there is no error.
    pub(crate) fn delete(&self, keys: &[K]) -> io::Result<()> {
        for keys in keys.chunks(BATCH) {
            let single = keys.len() == 1;
            let whole = if single {
                Err(io::ErrorKind::NotFound.into())
            } else {
                self.batch(Command::MapDeleteBatch, keys, std::ptr::null())
            };
            match whole {
                Ok(()) => continue,
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // The kernel stops at the first one that is not there.
                Err(_) => {}
            }
            for key in keys {
                match bpf(Command::MapDelete, &mut self.element(key, std::ptr::null())) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn batch(&self, command: Command, keys: &[K], values: *const V) -> io::Result<()> {
        let mut attr = MapBatch {
            in_batch: 0,
            out_batch: 0,
            keys: address(keys.as_ptr()),
            values: address(values),
            count: u32::try_from(keys.len()).map_err(io::Error::other)?,
            map_fd: raw(self.fd.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        bpf(command, &mut attr)?;
        Ok(())
    }

    /// Copies every entry to another map, each with `of_each` values.
    pub(crate) fn copy_each(&self, to: &Self, of_each: usize) -> io::Result<()> {
        for (key, values) in self.entries_of(of_each)? {
            bpf(Command::MapUpdate, &mut to.element(&key, values.as_ptr()))?;
        }
        Ok(())
    }

    /// Every entry. Entries that programs add or take away meanwhile may be among them or not.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        self.entries_of(1).map(|entries| entries.into_iter().map(|(key, values)| (key, values[0])).collect())
    }

    /// Every entry, each with `of_each` values: in a per-CPU map, those of all CPUs that there may be.
    pub(crate) fn entries_of(&self, of_each: usize) -> io::Result<Vec<(K, Vec<V>)>> {
        let mut all = Vec::new();
        // The kernel's cursor: a key for arrays, a number for hashes. No key of ours is longer than this.
        let (mut cursor, mut next) = ([0_u64; 8], [0_u64; 8]);
        let (mut is_first, mut size) = (true, BATCH);
        loop {
            let mut keys = Vec::<K>::with_capacity(size);
            let mut values = Vec::<V>::with_capacity(size * of_each);
            let mut attr = MapBatch {
                in_batch: if is_first { 0 } else { address(cursor.as_ptr()) },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(size).map_err(io::Error::other)?,
                map_fd: raw(self.fd.as_fd()),
                elem_flags: 0,
                flags: 0,
            };
            let result = bpf(Command::MapLookupBatch, &mut attr);
            let is_last = match result {
                Ok(_) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                // A bucket of the hash has more entries than this.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && size < 1 << 24 => {
                    size *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = attr.count as usize;
            // SAFETY: the kernel says that it has written so many, and knows no more than there is room for.
            unsafe {
                keys.set_len(count.min(size));
                values.set_len(count.min(size) * of_each);
            }
            all.extend(keys.into_iter().zip(values.chunks(of_each).map(<[V]>::to_vec)));
            if is_last {
                return Ok(all);
            }
            (cursor, is_first) = (next, false);
        }
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
