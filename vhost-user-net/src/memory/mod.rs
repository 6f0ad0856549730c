// SPDX-License-Identifier: Apache-2.0
//! The guest's memory: the table of mapped regions and the translation of guest addresses.
//!
//! A table never changes once it is built. A change makes a new table that shares the mappings of the old one; the
//! worker threads are handed the new table and drop the old one, and a mapping goes when its last table goes.

mod mapping;
pub mod sigbus;

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use crate::protocol::message::RegionSpec;
use mapping::Mapping;

/// Most regions a table holds, as in other vhost-user devices.
pub const MAX_REGIONS: usize = 509;

/// Why a region cannot be part of the table.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region of no bytes.
    #[error("memory region at {guest_addr:#x} is empty")]
    Empty {
        /// Guest physical address of the region.
        guest_addr: u64,
    },
    /// A region that reaches past the end of an address space.
    #[error("memory region at {guest_addr:#x} of {size:#x} bytes wraps around")]
    Wraps {
        /// Guest physical address of the region.
        guest_addr: u64,
        /// Bytes.
        size: u64,
    },
    /// Two regions share guest or user addresses.
    #[error("memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Guest physical address of one region.
        first: u64,
        /// Guest physical address of the other.
        second: u64,
    },
    /// The file is shorter than the region says.
    #[error("memory region at {guest_addr:#x} needs {need:#x} bytes of its file, which has {have:#x}")]
    FileTooShort {
        /// Guest physical address of the region.
        guest_addr: u64,
        /// Bytes needed.
        need: u64,
        /// Bytes the file has.
        have: u64,
    },
    /// The table is full.
    #[error("the memory table already has {MAX_REGIONS} regions")]
    TooMany,
    /// The region to remove is not there.
    #[error("no memory region at {guest_addr:#x} of {size:#x} bytes to remove")]
    Unknown {
        /// Guest physical address asked for.
        guest_addr: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// A system call failed.
    #[error("{call} for the memory region at {guest_addr:#x}")]
    System {
        /// Name of the system call.
        call: &'static str,
        /// Guest physical address of the region.
        guest_addr: u64,
        /// What it said.
        source: nix::Error,
    },
}

/// One region, mapped.
#[derive(Debug, Clone)]
struct Region {
    spec: RegionSpec,
    host: NonNull<u8>,
    mapping: Arc<Mapping>,
}

// SAFETY: `host` points into `mapping`, which is shared memory that any thread may access; all access goes through
// volatile or atomic operations or the kernel.
unsafe impl Send for Region {}
// SAFETY: see `Send`; a shared `Region` only hands out the pointer.
unsafe impl Sync for Region {}

/// A piece of guest memory that is contiguous in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub host: NonNull<u8>,
    /// Bytes; never 0.
    pub len: u64,
}

/// A range given in the front end's addresses, found in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct HostRange {
    /// First byte in this process.
    pub host: NonNull<u8>,
    /// Guest physical address of the first byte.
    pub guest_addr: u64,
}

/// The table of regions, sorted by guest address, without overlaps.
#[derive(Debug, Default, Clone)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Maps these regions. They may come in any order.
    ///
    /// # Errors
    /// When a region is empty, wraps around, overlaps another, is longer than its file, or cannot be mapped. Nothing
    /// stays mapped then.
    pub fn map(table: Vec<(RegionSpec, OwnedFd)>) -> Result<Self, MemoryError> {
        table.into_iter().try_fold(Self::default(), |memory, (spec, fd)| memory.with_region(spec, fd))
    }

    /// This table and one more region. The same region of the same file once more changes nothing: QEMU 7.2 adds every
    /// region for each queue pair.
    ///
    /// # Errors
    /// As [`GuestMemory::map`], and when the table is full.
    pub fn with_region(&self, spec: RegionSpec, fd: OwnedFd) -> Result<Self, MemoryError> {
        if let Some(same) = self.regions.iter().find(|other| other.spec == spec)
            && same.mapping.is_of(&fd)
        {
            return Ok(self.clone());
        }
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        check_range(&spec)?;
        if let Some(other) = self.regions.iter().find(|other| overlap(&other.spec, &spec)) {
            return Err(MemoryError::Overlap { first: other.spec.guest_addr, second: spec.guest_addr });
        }
        let (mapping, host) = Mapping::new(&spec, &fd)?;
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|other| other.spec.guest_addr < spec.guest_addr);
        regions.insert(at, Region { spec, host, mapping: Arc::new(mapping) });
        Ok(Self { regions })
    }

    /// This table less one region, named by its guest address, user address and size.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn without_region(&self, spec: &RegionSpec) -> Result<Self, MemoryError> {
        let same = |other: &RegionSpec| {
            other.guest_addr == spec.guest_addr && other.user_addr == spec.user_addr && other.size == spec.size
        };
        let mut regions = self.regions.clone();
        regions.retain(|region| !same(&region.spec));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown { guest_addr: spec.guest_addr, size: spec.size });
        }
        Ok(Self { regions })
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Bytes of all regions.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.spec.size).sum()
    }

    /// First guest address past the last region.
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.spec.guest_addr + region.spec.size)
    }

    /// Whether the file behind a region was cut short while the region was in use (see [`sigbus`]).
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_lost())
    }

    /// Finds `len` bytes at an address of the front end's process. They must lie in one region.
    pub fn find_user(&self, user_addr: u64, len: u64) -> Option<HostRange> {
        let region = self.regions.iter().find(|region| {
            let offset = user_addr.wrapping_sub(region.spec.user_addr);
            offset < region.spec.size && len <= region.spec.size - offset
        })?;
        let offset = user_addr - region.spec.user_addr;
        // SAFETY: offset < size, and the mapping has `size` bytes from `host` on.
        let host = unsafe { region.host.add(offset as usize) };
        Some(HostRange { host, guest_addr: region.spec.guest_addr + offset })
    }

    fn slow_translate(&self, guest_addr: u64, len: u64) -> Option<(usize, Piece)> {
        let at = self.regions.partition_point(|region| region.spec.guest_addr <= guest_addr).checked_sub(1)?;
        self.regions.get(at)?.piece(guest_addr, len).map(|piece| (at, piece))
    }
}

impl Region {
    #[inline]
    fn piece(&self, guest_addr: u64, len: u64) -> Option<Piece> {
        let offset = guest_addr.wrapping_sub(self.spec.guest_addr);
        if offset >= self.spec.size || len == 0 {
            return None;
        }
        // SAFETY: offset < size, and the mapping has `size` bytes from `host` on.
        let host = unsafe { self.host.add(offset as usize) };
        Some(Piece { host, len: len.min(self.spec.size - offset) })
    }
}

/// Remembers the region of the last hit; guests use one region for nearly all buffers.
#[derive(Debug, Default)]
pub struct Translator {
    last: usize,
}

impl Translator {
    /// The first piece of the `len` bytes at `guest_addr`, or `None` when that address is in no region or `len` is 0.
    ///
    /// The piece is shorter than `len` when its region ends earlier; the caller goes on behind it. The pointer is good
    /// while `memory` lives.
    #[inline]
    pub fn translate(&mut self, memory: &GuestMemory, guest_addr: u64, len: u64) -> Option<Piece> {
        if let Some(piece) = memory.regions.get(self.last).and_then(|region| region.piece(guest_addr, len)) {
            return Some(piece);
        }
        let (at, piece) = memory.slow_translate(guest_addr, len)?;
        self.last = at;
        Some(piece)
    }
}

fn check_range(spec: &RegionSpec) -> Result<(), MemoryError> {
    let RegionSpec { guest_addr, size, user_addr, mmap_offset } = *spec;
    if size == 0 {
        return Err(MemoryError::Empty { guest_addr });
    }
    let wraps = [guest_addr, user_addr, mmap_offset].iter().any(|base| base.checked_add(size).is_none());
    if wraps || usize::try_from(size).is_err() || mmap_offset + size > i64::MAX as u64 {
        return Err(MemoryError::Wraps { guest_addr, size });
    }
    Ok(())
}

fn overlap(a: &RegionSpec, b: &RegionSpec) -> bool {
    let meets = |a_base: u64, b_base: u64| a_base < b_base + b.size && b_base < a_base + a.size;
    meets(a.guest_addr, b.guest_addr) || meets(a.user_addr, b.user_addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    fn file(len: i64) -> OwnedFd {
        let fd = memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
        ftruncate(&fd, len).expect("ftruncate");
        fd
    }

    fn spec(guest_addr: u64, size: u64) -> RegionSpec {
        RegionSpec { guest_addr, size, user_addr: guest_addr.wrapping_add(1 << 40), mmap_offset: 0 }
    }

    fn map(specs: &[RegionSpec]) -> Result<GuestMemory, MemoryError> {
        GuestMemory::map(specs.iter().map(|spec| (*spec, file(0x10000))).collect())
    }

    #[test]
    fn an_unsorted_table_is_sorted_and_translated() {
        let memory = map(&[spec(0x20000, 0x1000), spec(0, 0x1000), spec(0x1000, 0x1000)]).expect("map");
        let mut translator = Translator::default();
        for (addr, len, want) in
            [(0, 4, Some(4)), (0xffe, 4, Some(2)), (0x1000, 9, Some(9)), (0x20fff, 2, Some(1)), (0x2000, 1, None)]
        {
            let got = translator.translate(&memory, addr, len).map(|piece| piece.len);
            assert_eq!(got, want, "{addr:#x}+{len}");
        }
        assert_eq!(translator.translate(&memory, 0, 0), None);
        assert_eq!(translator.translate(&memory, u64::MAX, 1), None);
        assert_eq!(memory.end(), 0x21000);
    }

    #[test]
    fn user_ranges_must_lie_in_one_region() {
        let memory = map(&[spec(0, 0x1000), spec(0x1000, 0x1000)]).expect("map");
        let base = 1 << 40;
        assert_eq!(memory.find_user(base + 0x10, 0x20).map(|range| range.guest_addr), Some(0x10));
        assert!(memory.find_user(base + 0xff0, 0x20).is_none());
        assert!(memory.find_user(base + 0x2000, 1).is_none());
        assert!(memory.find_user(u64::MAX, 2).is_none());
    }

    #[test]
    fn bad_regions_are_refused() {
        assert!(matches!(map(&[spec(0, 0)]), Err(MemoryError::Empty { .. })));
        assert!(matches!(map(&[spec(u64::MAX - 0xfff, 0x2000)]), Err(MemoryError::Wraps { .. })));
        assert!(matches!(map(&[spec(0, 0x20000)]), Err(MemoryError::FileTooShort { .. })));
        assert!(matches!(map(&[spec(0, 0x2000), spec(0x1000, 0x1000)]), Err(MemoryError::Overlap { .. })));
        let same_user = RegionSpec { user_addr: 1 << 40, ..spec(0x8000, 0x1000) };
        assert!(matches!(map(&[spec(0, 0x1000), same_user]), Err(MemoryError::Overlap { .. })));
    }

    #[test]
    fn regions_come_and_go_one_by_one() {
        let memory = map(&[spec(0, 0x1000)]).expect("map");
        let more = memory.with_region(spec(0x4000, 0x1000), file(0x1000)).expect("add");
        assert_eq!((memory.len(), more.len(), more.bytes()), (1, 2, 0x2000));
        assert!(matches!(more.without_region(&spec(0x4000, 0x2000)), Err(MemoryError::Unknown { .. })));
        let less = more.without_region(&spec(0, 0x1000)).expect("remove");
        assert_eq!(less.len(), 1);
        assert!(Translator::default().translate(&less, 0, 1).is_none());
    }

    #[test]
    fn a_region_added_twice_is_there_once_unless_it_is_another_file() {
        let fd = file(0x1000);
        let memory = GuestMemory::map(vec![(spec(0, 0x1000), fd.try_clone().expect("dup"))]).expect("map");
        assert_eq!(memory.with_region(spec(0, 0x1000), fd).expect("add again").len(), 1);
        assert!(matches!(memory.with_region(spec(0, 0x1000), file(0x1000)), Err(MemoryError::Overlap { .. })));
    }

    #[test]
    fn a_region_in_the_middle_of_a_page_of_its_file_is_found_there() {
        let fd = file(0x3000);
        nix::sys::uio::pwrite(&fd, b"here", 0x1800).expect("pwrite");
        let spec = RegionSpec { mmap_offset: 0x1800, ..spec(0x5000, 0x800) };
        let memory = GuestMemory::map(vec![(spec, fd)]).expect("map");
        let piece = Translator::default().translate(&memory, 0x5000, 4).expect("translate");
        // SAFETY: the piece has four bytes and `memory` lives.
        let bytes = unsafe { std::slice::from_raw_parts(piece.host.as_ptr(), 4) };
        assert_eq!(bytes, b"here");
    }
}
