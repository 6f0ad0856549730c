// SPDX-License-Identifier: Apache-2.0
//! The bpf(2) commands that aya does not offer, or not without exclusive access: all of this crate's `unsafe` is here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

// enum bpf_cmd of include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_LINK_TYPE_TCX`.
pub(crate) const LINK_TCX: u32 = 11;

/// Members of `union bpf_attr`.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
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
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// First fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// First fields of `struct bpf_link_info`, with the union's `tcx` member.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program_id: u32,
    pad: u32,
    /// 0: the device is gone.
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

/// First fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    uid: u32,
    /// In: room in `map_ids`; out: how many maps the program uses.
    map_count: u32,
    map_ids: u64,
}

/// # Safety
/// `attr` must be the member of `union bpf_attr` that `command` reads, and every address and length in it must describe
/// memory that outlives the call and that the kernel may read or write as that command does.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    let attr: *mut A = attr;
    // SAFETY: the pointer and the length are those of a live value; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Pins a map.
pub(crate) fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: fd_number(fd), file_flags: 0 };
    // SAFETY: BPF_OBJ_PIN reads `obj`; the path is a C string that lives past the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr)? };
    Ok(())
}

/// Opens a pinned map or link.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: BPF_OBJ_GET reads `obj`; the path is a C string that lives past the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr)? };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn info<T: FromBytes + IntoBytes>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::new_zeroed();
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr { bpf_fd: fd_number(fd), info_len, info: address_mut(info.as_mut_bytes()) };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD writes at most `info_len` bytes to `info`, whose every bit pattern is valid.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

/// What the kernel knows of a map.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// What the kernel knows of a link.
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// Numbers of the maps that a program uses, given by its number; none if the program is gone.
pub(crate) fn maps_of_program(id: u32) -> io::Result<Vec<u32>> {
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0 };
    // SAFETY: BPF_PROG_GET_FD_BY_ID reads numbers only.
    let fd = match unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) } {
        Ok(fd) => i32::try_from(fd).map_err(io::Error::other)?,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // More than any of Weft's programs uses; of others' the first ones.
    let mut ids = [0_u32; 64];
    let mut info = ProgramInfo::new_zeroed();
    (info.map_count, info.map_ids) = (64, address_mut(ids.as_mut_bytes()));
    let info_len = u32::try_from(size_of::<ProgramInfo>()).map_err(io::Error::other)?;
    let mut attr = InfoAttr { bpf_fd: fd_number(fd.as_fd()), info_len, info: address_mut(info.as_mut_bytes()) };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD writes at most `info_len` bytes to `info` and `map_count` numbers to `map_ids`; both live
    // past the call, and every bit pattern is valid.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(ids.into_iter().take(info.map_count as usize).collect())
}

/// Runs a program once on a packet, which it may change; what it returned.
pub(crate) fn test_run(program: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    let size = u32::try_from(packet.len()).map_err(io::Error::other)?;
    let data = address_mut(packet);
    let mut attr = TestRunAttr {
        prog_fd: fd_number(program),
        retval: 0,
        data_size_in: size,
        data_size_out: size,
        data_in: data,
        data_out: data,
        repeat: 1,
        duration: 0,
        ctx_size_in: 0,
        ctx_size_out: 0,
        ctx_in: 0,
        ctx_out: 0,
        flags: 0,
        cpu: 0,
        batch_size: 0,
        pad: 0,
    };
    // SAFETY: BPF_PROG_TEST_RUN copies `data_size_in` bytes in, runs, and copies at most `data_size_out` bytes out.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr)? };
    if attr.data_size_out != size {
        return Err(io::Error::other("the program changed the packet's length"));
    }
    Ok(attr.retval)
}

/// Detaches a link at once; closing and unpinning it would only do so after an RCU grace period.
pub(crate) fn link_detach(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: fd_number(fd) };
    // SAFETY: BPF_LINK_DETACH reads `link_detach`, which holds no address.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr)? };
    Ok(())
}

/// A map's descriptor together with the sizes of what the kernel reads and writes for it.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
}

/// What one batch lookup gave.
pub(crate) struct Batch {
    /// Entries read.
    pub(crate) count: usize,
    /// There are no more.
    pub(crate) last: bool,
}

impl RawMap {
    /// `cpus`: how many values each entry has; 1 unless the map is per CPU, where each value is padded to 8 bytes.
    pub(crate) fn new(fd: OwnedFd, cpus: Option<usize>) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        let value_size = info.value_size as usize;
        let value_size = cpus.map_or(value_size, |cpus| value_size.next_multiple_of(8) * cpus);
        Ok(Self { fd, key_size: info.key_size as usize, value_size, max_entries: info.max_entries })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) const fn max_entries(&self) -> u32 {
        self.max_entries
    }

    pub(crate) const fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of a value, of those of all CPUs where each has one.
    pub(crate) const fn value_size(&self) -> usize {
        self.value_size
    }

    fn check(&self, key: Option<usize>, value: Option<usize>) {
        assert!(key.is_none_or(|size| size == self.key_size), "key of {key:?} bytes, map has {}", self.key_size);
        assert!(
            value.is_none_or(|size| size == self.value_size),
            "value of {value:?} bytes, map has {}",
            self.value_size
        );
    }

    fn element(&self, key: &[u8], value: u64) -> ElementAttr {
        ElementAttr { map_fd: fd_number(self.fd()), pad: 0, key: address(key), value, flags: 0 }
    }

    /// Reads one entry; `false` if there is none.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(Some(key.len()), Some(value.len()));
        let mut attr = self.element(key, address_mut(value));
        // SAFETY: the kernel reads key_size bytes and writes value_size bytes; both were checked.
        absent_is_false(unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) })
    }

    /// Writes one entry, new or not.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(Some(key.len()), Some(value.len()));
        let mut attr = self.element(key, address(value));
        // SAFETY: the kernel reads key_size and value_size bytes; both were checked.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr)? };
        Ok(())
    }

    /// Removes one entry; `false` if there was none.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(Some(key.len()), None);
        let mut attr = self.element(key, 0);
        // SAFETY: the kernel reads key_size bytes, which was checked.
        absent_is_false(unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) })
    }

    /// Size of the cursor of [`RawMap::lookup_batch`]: a bucket number for hashes, a key for tries.
    pub(crate) const fn cursor_size(&self) -> usize {
        if self.key_size > 8 { self.key_size } else { 8 }
    }

    /// Reads as many entries as `keys` and `values` have room for, from `cursor` on; `next` is where to go on.
    ///
    /// Whole hash buckets at a time: entries that come and go meanwhile do not make it start again, as `GET_NEXT_KEY` would.
    pub(crate) fn lookup_batch(
        &self,
        cursor: Option<&[u8]>,
        next: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
    ) -> io::Result<Batch> {
        let room = keys.len() / self.key_size;
        assert!(cursor.is_none_or(|cursor| cursor.len() >= self.cursor_size()) && next.len() >= self.cursor_size());
        assert!(keys.len() == room * self.key_size && values.len() == room * self.value_size);
        let mut attr = BatchAttr {
            in_batch: cursor.map_or(0, address),
            out_batch: address_mut(next),
            keys: address_mut(keys),
            values: address_mut(values),
            count: u32::try_from(room).map_err(io::Error::other)?,
            map_fd: fd_number(self.fd()),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes at most `count` keys and values and one cursor; the room for them was checked.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let last = !absent_is_false(result)?;
        Ok(Batch { count: attr.count as usize, last })
    }
}

/// The number of the calling thread's network namespace (`SO_NETNS_COOKIE`, kernel 5.14, commit e8b9eab99232).
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    let value: *mut u64 = &raw mut cookie;
    // SAFETY: the kernel writes at most `size` bytes to `cookie`, whose every bit pattern is valid.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value.cast(), &raw mut size) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Waits until every program that runs now has ended (`membarrier(2)`, `MEMBARRIER_CMD_GLOBAL`, kernel 4.3: an RCU grace period; not on
/// kernels with CPUs that have no timer tick).
pub(crate) fn wait_for_programs() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is handed over.
    match unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn absent_is_false(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
