// SPDX-License-Identifier: Apache-2.0
//! Guest memory: a memfd that the monitor, KVM and the device share.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;
use vhost::VhostUserMemoryRegionInfo;

use crate::guest::abi::{CONTROL, Control, RAM};
use crate::guest::memory::Memory;

/// All of guest memory, mapped in this process; guest address 0 is the start of the file.
#[derive(Debug)]
pub struct Ram {
    file: OwnedFd,
    map: NonNull<u8>,
}

// SAFETY: the mapping is shared memory; what is accessed by several sides at once is accessed as atomics.
unsafe impl Send for Ram {}
// SAFETY: see `Send`.
unsafe impl Sync for Ram {}

impl Ram {
    /// New memory, all zero.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new() -> Result<Self> {
        let file = memfd(RAM)?;
        let size = std::num::NonZeroUsize::new(RAM as usize).context("no memory")?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let map = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, &file, 0) }.context("mmap of guest memory")?;
        Ok(Self { file, map: map.cast() })
    }

    /// Address of guest memory in this process.
    pub fn address(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// The memory table for a device.
    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 1] {
        [VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: RAM,
            userspace_addr: self.address(),
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }]
    }

    /// The memory as the guest and a device see it. It must not outlive `self`.
    pub fn memory(&self) -> Memory {
        // SAFETY: the mapping has that many bytes; the callers of this crate keep the `Ram` while they use it.
        unsafe { Memory::new(self.map.as_ptr(), RAM) }
    }

    /// The control page.
    pub fn control(&self) -> &Control {
        const { assert!(size_of::<Control>() <= 4096) };
        // SAFETY: it lies in the mapping, is aligned, and consists of atomics, for which any bytes are values.
        unsafe { &*self.map.as_ptr().add(CONTROL as usize).cast() }
    }

    /// Writes bytes at a guest address.
    ///
    /// # Errors
    /// When it is outside memory.
    pub fn write(&self, guest: u64, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        ensure!(guest <= RAM && len <= RAM - guest, "{len} bytes at {guest:#x} are outside guest memory");
        // SAFETY: the range was checked; the source is a Rust slice elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_ptr().add(guest as usize), bytes.len()) };
        Ok(())
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the range is this value's mapping.
        if let Err(error) = unsafe { munmap(self.map.cast(), RAM as usize) } {
            eprintln!("munmap of guest memory: {error}");
        }
    }
}

/// A memfd of this many bytes.
///
/// # Errors
/// When the kernel refuses it.
pub(crate) fn memfd(bytes: u64) -> Result<OwnedFd> {
    let fd = memfd_create("weft-test-vmm", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
    ftruncate(&fd, i64::try_from(bytes)?).context("ftruncate of a memfd")?;
    Ok(fd)
}
