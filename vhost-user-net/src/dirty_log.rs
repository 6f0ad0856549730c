// SPDX-License-Identifier: Apache-2.0
//! The dirty log of a live migration: one bit per 4 KiB page of guest memory the device wrote.
//!
//! Source: QEMU `docs/interop/vhost-user.rst`, "Migration". The bitmap is shared with the front end, which clears bits
//! while the device sets them, so bits are set atomically and always after the write they report.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use thiserror::Error;

use crate::memory::sigbus;

const LOG_PAGE_SHIFT: u32 = 12;
const HOST_PAGE: u64 = 4096;

/// Why a log cannot be used.
#[derive(Debug, Error)]
pub enum LogError {
    /// A log of no bytes, or one that wraps around.
    #[error("dirty log of {size:#x} bytes at offset {offset:#x} is empty or wraps around")]
    Range {
        /// Bytes.
        size: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// The file is shorter than the log.
    #[error("dirty log needs {need:#x} bytes of its file, which has {have:#x}")]
    FileTooShort {
        /// Bytes needed.
        need: u64,
        /// Bytes the file has.
        have: u64,
    },
    /// A system call failed.
    #[error("{call} for the dirty log")]
    System {
        /// Name of the system call.
        call: &'static str,
        /// What it said.
        source: nix::Error,
    },
}

/// The mapped bitmap.
#[derive(Debug)]
pub struct DirtyLog {
    map: NonNull<c_void>,
    map_len: usize,
    lead: usize,
    bytes: u64,
    missed: AtomicU64,
    watch: sigbus::Watch,
}

// SAFETY: the bitmap is shared memory that is accessed with atomic operations only.
unsafe impl Send for DirtyLog {}
// SAFETY: see `Send`.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps the log.
    ///
    /// # Errors
    /// When it is empty, longer than its file, or cannot be mapped.
    pub fn map(size: u64, offset: u64, fd: &OwnedFd) -> Result<Self, LogError> {
        let range = || LogError::Range { size, offset };
        let need = offset.checked_add(size).filter(|end| size > 0 && *end <= i64::MAX as u64).ok_or_else(range)?;
        let stat = fstat(fd).map_err(|source| LogError::System { call: "fstat", source })?;
        let have = stat.st_size.max(0) as u64;
        if have < need {
            return Err(LogError::FileTooShort { need, have });
        }
        let from = offset & !(HOST_PAGE - 1);
        let map_len = usize::try_from(need - from).ok().and_then(NonZeroUsize::new).ok_or_else(range)?;
        let at = i64::try_from(from).map_err(|_| range())?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses; the file's length was checked.
        let map = unsafe { mmap(None, map_len, prot, MapFlags::MAP_SHARED, fd, at) }
            .map_err(|source| LogError::System { call: "mmap", source })?;
        let (map_len, lead) = (map_len.get(), (offset - from) as usize);
        let watch = sigbus::Watch::new(map.as_ptr() as usize, map_len);
        Ok(Self { map, map_len, lead, bytes: size, missed: AtomicU64::new(0), watch })
    }

    /// Bytes of guest memory the log covers.
    pub fn covers(&self) -> u64 {
        self.bytes.saturating_mul(8) << LOG_PAGE_SHIFT
    }

    /// Pages written past the end of the log, for which the front end gave too small a log.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Marks the pages of `len` bytes at `guest_addr`. To be called after the bytes were written.
    pub fn mark(&self, guest_addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = guest_addr.saturating_add(len - 1) >> LOG_PAGE_SHIFT;
        for page in (guest_addr >> LOG_PAGE_SHIFT)..=last {
            self.mark_page(page);
        }
    }

    fn mark_page(&self, page: u64) {
        let byte = page / 8;
        if byte >= self.bytes {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let bit = 1u8 << (page % 8);
        // SAFETY: byte < bytes, and lead + bytes = map_len; the mapping lives as long as `self`.
        let cell = unsafe { AtomicU8::from_ptr(self.map.as_ptr().cast::<u8>().add(self.lead + byte as usize)) };
        // A page is written over and over between two looks of the front end: a read is cheaper than a locked write.
        // The order after the data's write is kept by the read being ordered too.
        std::sync::atomic::fence(Ordering::SeqCst);
        if cell.load(Ordering::Relaxed) & bit == 0 {
            cell.fetch_or(bit, Ordering::SeqCst);
        }
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        self.watch.end();
        // SAFETY: the range is this log's mapping and nothing else points into it.
        if let Err(error) = unsafe { munmap(self.map, self.map_len) } {
            tracing::error!(%error, "munmap of the dirty log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    fn file(len: i64) -> OwnedFd {
        let fd = memfd_create("log", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
        ftruncate(&fd, len).expect("ftruncate");
        fd
    }

    fn content(fd: &OwnedFd, offset: i64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        nix::sys::uio::pread(fd, &mut bytes, offset).expect("pread");
        bytes
    }

    #[test]
    fn every_page_touched_is_marked_and_no_other() {
        let fd = file(0x3000);
        let log = DirtyLog::map(16, 0x1ff0, &fd).expect("map");
        log.mark(0x0fff, 2);
        log.mark(0x9000, 1);
        log.mark(0x20000, 0);
        assert_eq!(content(&fd, 0x1ff0, 4), [0b11, 0b10, 0, 0]);
        assert_eq!((log.covers(), log.missed()), (16 * 8 * 4096, 0));
    }

    #[test]
    fn pages_past_the_log_are_counted_and_not_written() {
        let fd = file(0x1000);
        let log = DirtyLog::map(1, 0, &fd).expect("map");
        log.mark(7 << 12, 0x2000);
        assert_eq!((content(&fd, 0, 2), log.missed()), (vec![0x80, 0], 1));
    }

    #[test]
    fn a_log_longer_than_its_file_is_refused() {
        assert!(matches!(DirtyLog::map(0x1001, 0, &file(0x1000)), Err(LogError::FileTooShort { .. })));
        assert!(matches!(DirtyLog::map(0, 0, &file(0x1000)), Err(LogError::Range { .. })));
        assert!(matches!(DirtyLog::map(2, u64::MAX, &file(0x1000)), Err(LogError::Range { .. })));
    }
}
