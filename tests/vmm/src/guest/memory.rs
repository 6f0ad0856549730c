// SPDX-License-Identifier: Apache-2.0
//! Guest memory as the driver sees it: guest addresses from some base on.

use core::sync::atomic::AtomicU16;

// SAFETY: memory that several sides share; the fields they share are accessed as atomics.
unsafe impl Send for Memory {}

/// All of guest memory. Addresses are checked: a wrong one panics, which ends the job with a cause.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    base: *mut u8,
    bytes: u64,
}

impl Memory {
    /// Memory of this many bytes whose address 0 is at `base`.
    ///
    /// # Safety
    /// It must be there, writable, as long as the value is used.
    pub unsafe fn new(base: *mut u8, bytes: u64) -> Self {
        Self { base, bytes }
    }

    /// Where these bytes are.
    #[inline(always)]
    pub fn at(self, address: u64, len: u64) -> *mut u8 {
        assert!(address <= self.bytes && len <= self.bytes - address);
        self.base.wrapping_add(address as usize)
    }

    /// An index or flags field of a ring; it must be aligned.
    #[inline(always)]
    pub fn cell(&self, address: u64) -> &AtomicU16 {
        let at = self.at(address, 2);
        assert!(at.addr().is_multiple_of(2));
        // SAFETY: `at` checked that it is there, and it is aligned; the device uses it as an atomic, too.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// Reads a value the device may have written.
    #[inline(always)]
    pub fn read<T: Plain>(self, address: u64) -> T {
        // SAFETY: `at` checked the bytes; any bytes are a value; no alignment is asked for.
        unsafe { self.at(address, size_of::<T>() as u64).cast::<T>().read_unaligned() }
    }

    /// Writes a value.
    #[inline(always)]
    pub fn write<T: Plain>(self, address: u64, value: T) {
        // SAFETY: as `read`.
        unsafe { self.at(address, size_of::<T>() as u64).cast::<T>().write_unaligned(value) };
    }

    /// Copies bytes from one place to another that does not overlap.
    pub fn copy(self, from: u64, to: u64, len: u64) {
        assert!(from + len <= to || to + len <= from);
        // SAFETY: `at` checked both; they do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(self.at(from, len), self.at(to, len), len as usize) };
    }

    /// The bytes there.
    ///
    /// # Safety
    /// Nobody, the device included, may write them meanwhile.
    #[inline(always)]
    pub unsafe fn bytes<'a>(self, address: u64, len: u64) -> &'a mut [u8] {
        // SAFETY: `at` checked them; the caller's promise is that they are nobody else's.
        unsafe { core::slice::from_raw_parts_mut(self.at(address, len), len as usize) }
    }
}

/// Types any bytes of which are a value.
pub trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
