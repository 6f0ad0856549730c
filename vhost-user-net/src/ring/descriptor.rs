// SPDX-License-Identifier: Apache-2.0
//! Descriptor chains: from a head in the ring to pieces of host memory.

use std::ptr::NonNull;

use super::{IndirectFault, MAX_SEGMENTS, Violation};
use crate::memory::{GuestMemory, Translator};

/// Bytes of one descriptor.
pub const DESCRIPTOR_LEN: u64 = 16;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// Which way the device uses the buffers of a chain. A chain of a network device has buffers of one direction only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads (transmit).
    Read,
    /// The device writes (receive).
    Write,
}

/// Pieces of host memory in the form the kernel takes them, each with its guest address for the dirty log.
#[derive(Debug, Default)]
pub struct Segments {
    iov: Vec<libc::iovec>,
    guest: Vec<u64>,
}

// SAFETY: the pointers are into guest memory, a shared mapping that any thread may use while its table lives.
unsafe impl Send for Segments {}

impl Segments {
    /// Empties the list and keeps its allocation.
    #[inline]
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Drops the pieces from `len` on.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.iov.truncate(len);
        self.guest.truncate(len);
    }

    /// Drops the first `count` pieces.
    pub fn drop_front(&mut self, count: usize) {
        self.iov.drain(..count);
        self.guest.drain(..count);
    }

    /// Number of pieces.
    #[inline]
    pub fn len(&self) -> usize {
        self.iov.len()
    }

    /// Whether there is no piece.
    pub fn is_empty(&self) -> bool {
        self.iov.is_empty()
    }

    /// The pieces as the kernel takes them.
    #[inline]
    pub fn iov(&self) -> &[libc::iovec] {
        &self.iov
    }

    /// The pieces as the kernel takes them, to be shortened or moved along.
    #[inline]
    pub fn iov_mut(&mut self) -> &mut [libc::iovec] {
        &mut self.iov
    }

    /// Guest addresses of the pieces, in the same order.
    #[inline]
    pub fn guest(&self) -> &[u64] {
        &self.guest
    }

    /// Adds a piece.
    #[inline]
    pub fn push(&mut self, host: NonNull<u8>, len: u64, guest: u64) {
        self.iov.push(libc::iovec { iov_base: host.as_ptr().cast(), iov_len: len as usize });
        self.guest.push(guest);
    }
}

/// A descriptor table in host memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    /// First byte of the first descriptor.
    pub(super) start: NonNull<u8>,
    /// Number of descriptors.
    pub(super) len: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Whether this is a whole chain for this access, in the ring's own table: what nearly every small frame is.
    #[inline]
    pub(super) fn is_alone(&self, access: Access) -> bool {
        let wanted = if access == Access::Write { F_WRITE } else { 0 };
        self.flags & (F_NEXT | F_INDIRECT | F_WRITE) == wanted
    }
}

impl Table {
    /// Copies one descriptor out of shared memory.
    ///
    /// # Safety
    /// The table's `len` descriptors must be mapped.
    #[inline]
    pub(super) unsafe fn read(&self, index: u32) -> Result<Descriptor, Violation> {
        if index >= self.len {
            return Err(Violation::DescriptorIndex { index, size: self.len });
        }
        // SAFETY: index < len, and the caller vouches for the table.
        let at = unsafe { self.start.as_ptr().add(index as usize * DESCRIPTOR_LEN as usize) };
        // SAFETY: sixteen mapped bytes.
        let (addr, rest) = unsafe {
            if at.addr().is_multiple_of(8) {
                let word = at.cast::<u64>();
                (word.read_volatile(), word.add(1).read_volatile())
            } else {
                read_unaligned(at)
            }
        };
        Ok(Descriptor {
            addr: u64::from_le(addr),
            len: u64::from_le(rest) as u32,
            flags: (u64::from_le(rest) >> 32) as u16,
            next: (u64::from_le(rest) >> 48) as u16,
        })
    }
}

/// Reads a descriptor of an indirect table, which may lie anywhere. Apart, so that it does not slow the others.
///
/// # Safety
/// Sixteen mapped bytes.
#[cold]
#[inline(never)]
unsafe fn read_unaligned(at: *const u8) -> (u64, u64) {
    // SAFETY: as the caller's; byte arrays need no alignment.
    let (addr, rest) = unsafe { (at.cast::<[u8; 8]>().read_volatile(), at.add(8).cast::<[u8; 8]>().read_volatile()) };
    (u64::from_ne_bytes(addr), u64::from_ne_bytes(rest))
}

/// What a walk needs to know of its ring.
pub(super) struct Walk<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) translator: &'a mut Translator,
    pub(super) table: Table,
    pub(super) indirect: bool,
    pub(super) access: Access,
    pub(super) head: u16,
}

impl Walk<'_> {
    /// Appends the pieces of the chain that begins with this descriptor to `out` and returns the bytes they have. On a
    /// violation `out` is as it was.
    ///
    /// # Safety
    /// The ring's descriptor table must be mapped, as part of `memory`.
    pub(super) unsafe fn run(mut self, first: Descriptor, out: &mut Segments) -> Result<u64, Violation> {
        let before = out.len();
        // SAFETY: as the caller's.
        let result = unsafe { self.collect(first, before, out) };
        if result.is_err() {
            out.truncate(before);
        }
        result
    }

    unsafe fn collect(&mut self, first: Descriptor, before: usize, out: &mut Segments) -> Result<u64, Violation> {
        let mut descriptor = first;
        let mut nested = false;
        let mut left = self.table.len;
        let mut total = 0;
        loop {
            if descriptor.flags & F_INDIRECT != 0 {
                self.enter(&descriptor, nested)?;
                (nested, left) = (true, self.table.len);
                // SAFETY: `enter` checked that the table is mapped.
                descriptor = unsafe { self.table.read(0)? };
                continue;
            }
            self.check_direction(descriptor.flags)?;
            self.push(&descriptor, out)?;
            if out.len() - before > MAX_SEGMENTS {
                return Err(Violation::TooManySegments { head: self.head });
            }
            total += u64::from(descriptor.len);
            if descriptor.flags & F_NEXT == 0 {
                return Ok(total);
            }
            left -= 1;
            if left == 0 {
                return Err(Violation::Loop { head: self.head });
            }
            // SAFETY: the table is the ring's, or one that `enter` checked.
            descriptor = unsafe { self.table.read(descriptor.next.into())? };
        }
    }

    #[inline]
    fn check_direction(&self, flags: u16) -> Result<(), Violation> {
        let access = if flags & F_WRITE != 0 { Access::Write } else { Access::Read };
        if access != self.access {
            return Err(Violation::Direction { head: self.head });
        }
        Ok(())
    }

    #[inline]
    fn push(&mut self, descriptor: &Descriptor, out: &mut Segments) -> Result<(), Violation> {
        let Descriptor { mut addr, len, .. } = *descriptor;
        if len == 0 {
            return Err(Violation::EmptyDescriptor { head: self.head });
        }
        let mut left = u64::from(len);
        // A buffer may cross from one region into the next where the two touch.
        while left > 0 {
            let outside = Violation::Address { addr: descriptor.addr, len };
            let piece = self.translator.translate(self.memory, addr, left).ok_or(outside)?;
            out.push(piece.host, piece.len, addr);
            left -= piece.len;
            addr = addr.wrapping_add(piece.len);
        }
        Ok(())
    }

    /// Goes on in an indirect table.
    fn enter(&mut self, descriptor: &Descriptor, nested: bool) -> Result<(), Violation> {
        let fault = |fault| Violation::Indirect { head: self.head, fault };
        if !self.indirect {
            return Err(fault(IndirectFault::NotNegotiated));
        }
        if nested {
            return Err(fault(IndirectFault::Nested));
        }
        if descriptor.flags & F_NEXT != 0 {
            return Err(fault(IndirectFault::WithNext));
        }
        let len = u64::from(descriptor.len);
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) {
            return Err(fault(IndirectFault::Length));
        }
        let piece = self.translator.translate(self.memory, descriptor.addr, len).filter(|piece| piece.len == len);
        let piece = piece.ok_or(fault(IndirectFault::Table))?;
        self.table = Table { start: piece.host, len: (len / DESCRIPTOR_LEN) as u32 };
        Ok(())
    }
}
