// SPDX-License-Identifier: Apache-2.0
//! Guest memory in a memfd.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;
use vhost::VhostUserMemoryRegionInfo;

/// A memfd of this many bytes.
pub fn memfd(bytes: u64) -> Result<OwnedFd> {
    let fd = memfd_create("weft-vhost-test", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
    ftruncate(&fd, i64::try_from(bytes)?).context("ftruncate")?;
    Ok(fd)
}

/// Guest memory: one file, mapped once here, handed out as regions.
#[derive(Debug)]
pub struct Ram {
    pub file: OwnedFd,
    map: NonNull<u8>,
    bytes: usize,
    /// Guest address, bytes, offset in the file.
    regions: Vec<(u64, usize, usize)>,
}

// SAFETY: the mapping is shared memory that is accessed through volatile copies only.
unsafe impl Send for Ram {}
// SAFETY: see `Send`.
unsafe impl Sync for Ram {}

impl Ram {
    /// Bytes of the usual guest.
    pub const SIZE: usize = 64 << 20;
    const RING_SPACE: u64 = 0x4_0000;
    const BUFFER_SPACE: u64 = 0x40_0000;

    /// Memory with regions at these guest addresses, in this order in the file.
    pub fn new(regions: &[(u64, usize)]) -> Result<Self> {
        let bytes = regions.iter().map(|(_, len)| len).sum::<usize>();
        let file = memfd(bytes as u64)?;
        let size = std::num::NonZeroUsize::new(bytes).context("no memory")?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let map = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, &file, 0) }.context("mmap")?.cast();
        let mut offset = 0;
        let place = |(guest, len): &(u64, usize)| {
            let region = (*guest, *len, offset);
            offset += len;
            region
        };
        let regions = regions.iter().map(place).collect();
        Ok(Self { file, map, bytes, regions })
    }

    /// The memory table.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let info = |(guest, len, offset): &(u64, usize, usize)| VhostUserMemoryRegionInfo {
            guest_phys_addr: *guest,
            memory_size: *len as u64,
            userspace_addr: self.map.as_ptr() as u64 + *offset as u64,
            mmap_offset: *offset as u64,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.regions.iter().map(info).collect()
    }

    /// Where the parts of ring `index` lie.
    pub fn ring_space(&self, index: usize) -> u64 {
        index as u64 * Self::RING_SPACE
    }

    /// Where the buffers of ring `index` lie.
    pub fn buffers(&self, index: usize) -> u64 {
        0x80_0000 + index as u64 * Self::BUFFER_SPACE
    }

    /// Address in this process.
    pub fn host(&self, guest: u64, len: usize) -> *mut u8 {
        let (base, _, offset) = self
            .regions
            .iter()
            .find(|(base, size, _)| guest >= *base && guest + len as u64 <= base + *size as u64)
            .expect("an address of the test is outside its memory");
        // SAFETY: offset + (guest - base) + len lies in the mapping.
        unsafe { self.map.as_ptr().add(offset + (guest - base) as usize) }
    }

    pub fn write(&self, guest: u64, bytes: &[u8]) {
        // SAFETY: `host` checked the range; the source is a Rust slice elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host(guest, bytes.len()), bytes.len()) };
    }

    pub fn read(&self, guest: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: `host` checked the range; the target is a new vector.
        unsafe { std::ptr::copy_nonoverlapping(self.host(guest, len), bytes.as_mut_ptr(), len) };
        bytes
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the range is this value's mapping.
        if let Err(error) = unsafe { munmap(self.map.cast(), self.bytes) } {
            eprintln!("munmap: {error}");
        }
    }
}
