// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The packet: context fields and direct access to its linear part.

use core::mem;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use weft_logic::Frame;

use crate::helpers;

/// A program's packet.
#[derive(Clone, Copy)]
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    /// The packet of a program's context.
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { raw: ctx.as_ptr().cast() }
    }

    /// The packet of a context that was handed to a function of its own.
    #[inline(always)]
    pub fn of(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// The context, for helpers.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// The device that the hook is on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).ifindex }
    }

    /// The device that the host received the packet by; 0: it made the packet.
    #[inline(always)]
    pub fn received_by(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).ingress_ifindex }
    }

    /// Whether the frame has, or had, a VLAN tag; the kernel has taken the outermost off before the hooks.
    #[inline(always)]
    pub fn has_vlan_tag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).vlan_present != 0 }
    }

    /// EtherType in network byte order.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.raw).protocol as u16 }
    }

    /// `skb->mark`.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).mark }
    }

    /// Sets `skb->mark`.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: as above.
        unsafe { (*self.raw).mark = mark }
    }

    /// Bytes of payload in each packet that a sender lets the kernel cut this one into; 0: it is one packet.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw).gso_size }
    }

    /// Whether the packet's Ethernet destination was this host's.
    #[inline(always)]
    pub fn is_for_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).pkt_type == helpers::PACKET_HOST }
    }

    /// A pointer to a `T` at `offset` of the linear part.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: as above.
        let (start, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        if start + offset + mem::size_of::<T>() > end {
            return None;
        }
        Some((start + offset) as *mut T)
    }

    /// Makes the headers that the fast path reads linear, where they are not; a frame from a tap or of a GSO packet may keep
    /// them in fragments.
    #[inline(always)]
    pub fn pull_headers<const LEN: usize>(&self) {
        if self.at::<[u8; LEN]>(0).is_none() {
            let len = if self.len() < 128 { self.len() } else { 128 };
            // A failure shows when the header is read.
            let _pulled = helpers::pull(self.raw, len);
        }
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.raw).len }
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds; BPF loads need no alignment on the targets' JITs.
        self.at::<T>(offset).map(|value| unsafe { *value })
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        helpers::load(self.raw, offset)
    }
}
