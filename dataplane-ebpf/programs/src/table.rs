// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The flow table, as everything else sees it, on the kernel's LRU hash.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use weft_abi::{Flow, FlowKey4, FlowKey6};

use crate::{
    family::{Family, V4, V6},
    maps::{FLOWS4, FLOWS6},
};

/// The connections of one family, an entry for each direction. An entry stays readable for as long as the program runs, also one that
/// is removed meanwhile; whoever finds it may find another connection's in its place, but for its key.
pub trait FlowTable {
    /// How the table names packets.
    type Key: Copy;

    /// The entry of a packet, on the established path.
    fn established(key: &Self::Key) -> Option<&'static mut Flow>;
    /// The same of a key in common form. One in a map value takes no stack where it is the table's own.
    fn find(key: &FlowKey6) -> Option<&'static Flow>;
    /// [`FlowTable::find`], to write to: fields are written whole, and other CPUs may write to it, too.
    fn find_mut(key: &FlowKey6) -> Option<&'static mut Flow>;
    /// Makes an entry; `false`: there is one, or no room.
    fn add(key: &FlowKey6, flow: &Flow) -> bool;
    /// Makes or replaces an entry; `false`: there is no room.
    fn put(key: &FlowKey6, flow: &Flow) -> bool;
    /// Removes an entry, if it is there.
    fn remove(key: &FlowKey6);
}

macro_rules! on_lru {
    ($family:ty, $map:ident, $key:ty) => {
        impl FlowTable for $family {
            type Key = $key;

            #[inline(always)]
            fn established(key: &$key) -> Option<&'static mut Flow> {
                // SAFETY: the kernel gives memory of an entry back after all programs that may have found it, and every bit
                // pattern is a flow.
                $map.get_ptr_mut(key).map(|found| unsafe { &mut *found })
            }

            #[inline(always)]
            fn find(key: &FlowKey6) -> Option<&'static Flow> {
                Self::find_mut(key).map(|found| &*found)
            }

            #[inline(always)]
            fn find_mut(key: &FlowKey6) -> Option<&'static mut Flow> {
                // SAFETY: as for `established`.
                $map.get_ptr_mut(Self::narrow(key)).map(|found| unsafe { &mut *found })
            }

            #[inline(always)]
            fn add(key: &FlowKey6, flow: &Flow) -> bool {
                $map.insert(Self::narrow(key), flow, u64::from(BPF_NOEXIST)).is_ok()
            }

            #[inline(always)]
            fn put(key: &FlowKey6, flow: &Flow) -> bool {
                $map.insert(Self::narrow(key), flow, u64::from(BPF_ANY)).is_ok()
            }

            #[inline(always)]
            fn remove(key: &FlowKey6) {
                let _was_there = $map.remove(Self::narrow(key));
            }
        }
    };
}

on_lru!(V4, FLOWS4, FlowKey4);
on_lru!(V6, FLOWS6, FlowKey6);
