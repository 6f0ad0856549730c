// SPDX-License-Identifier: Apache-2.0
//! One `mmap` of a region's file.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};

use super::{MemoryError, sigbus};
use crate::protocol::message::RegionSpec;

const PAGE: u64 = 4096;

/// A shared mapping, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
    /// Device and inode of the file.
    file: (u64, u64),
    watch: sigbus::Watch,
}

// SAFETY: a mapping is an address range of the whole process, not of a thread.
unsafe impl Send for Mapping {}
// SAFETY: no method changes anything through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the region and returns the address of its first byte.
    pub(super) fn new(spec: &RegionSpec, fd: &OwnedFd) -> Result<(Self, NonNull<u8>), MemoryError> {
        let guest_addr = spec.guest_addr;
        let system = |call| move |source| MemoryError::System { call, guest_addr, source };
        let file = check_file(spec, fd)?;
        let page = page_size(fd).map_err(system("fstatfs"))?;
        // Huge page files take only offsets and lengths of whole huge pages.
        let from = spec.mmap_offset & !(page - 1);
        let lead = spec.mmap_offset - from;
        let len = (lead + spec.size).next_multiple_of(page);
        let wraps = || MemoryError::Wraps { guest_addr, size: spec.size };
        let size = usize::try_from(len).ok().and_then(NonZeroUsize::new).ok_or_else(wraps)?;
        let offset = i64::try_from(from).map_err(|_| wraps())?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses; the file's length was checked.
        let start = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE, fd, offset) }
            .map_err(system("mmap"))?;
        // The guest's memory has no place in a core dump. A kernel that cannot leave it out is no reason to fail.
        // SAFETY: the range is the mapping just made.
        if let Err(error) = unsafe { madvise(start, size.get(), MmapAdvise::MADV_DONTDUMP) } {
            tracing::debug!(%error, "madvise(MADV_DONTDUMP)");
        }
        let watch = sigbus::Watch::new(start.as_ptr() as usize, size.get());
        let mapping = Self { start, len: size.get(), file, watch };
        // SAFETY: lead < len.
        let host = unsafe { start.cast::<u8>().add(lead as usize) };
        Ok((mapping, host))
    }

    /// Whether the descriptor is one of the file that is mapped.
    pub(super) fn is_of(&self, fd: &OwnedFd) -> bool {
        fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.file)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.watch.is_lost()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch.end();
        // SAFETY: the range is this mapping's, and every pointer into it belongs to a table that is gone.
        if let Err(error) = unsafe { munmap(self.start, self.len) } {
            tracing::error!(%error, "munmap of guest memory");
        }
    }
}

/// Checks that the file holds the region; returns its device and inode.
fn check_file(spec: &RegionSpec, fd: &OwnedFd) -> Result<(u64, u64), MemoryError> {
    let guest_addr = spec.guest_addr;
    let stat = fstat(fd).map_err(|source| MemoryError::System { call: "fstat", guest_addr, source })?;
    let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    let (need, have) = (spec.mmap_offset + spec.size, stat.st_size.max(0) as u64);
    if regular && have < need {
        return Err(MemoryError::FileTooShort { guest_addr, need, have });
    }
    Ok((stat.st_dev, stat.st_ino))
}

fn page_size(fd: &OwnedFd) -> nix::Result<u64> {
    let stat = fstatfs(fd)?;
    let block = stat.block_size() as u64;
    let huge = stat.filesystem_type() == HUGETLBFS_MAGIC && block.is_power_of_two();
    Ok(if huge { block } else { PAGE })
}
