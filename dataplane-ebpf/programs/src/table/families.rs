// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The tables of both families. The functions here are exported, and thereby global to the verifier, as in `far`.

use core::borrow::Borrow as _;

use aya_ebpf::bindings::BPF_ANY;
use weft_abi::{Flow, FlowKey4, FlowKey6, FlowSeeds, Line4, Line6};
use weft_logic::set::Written;

use super::{
    BUSY, Buffer, FlowTable, OTHER,
    clear::{clear_in, clear_line},
    find_for_walk, find_in, read_into, remove_in, touch_spilled, write_in,
};
use crate::{
    family::{Family as _, V4, V6},
    maps::{DIRECTORY4, DIRECTORY6, FLOWS4, FLOWS6, LINE4, LINE6, SEEDS4, SEEDS6, SPILLED4, SPILLED6},
};

macro_rules! table {
    (
        $family:ty, $key:ty, $line:ty, $lines:ident, $seeds:ident, $directory:ident, $spilled:ident, $scratch:ident,
        $read:ident, $find:ident, $touch:ident, $find_common:ident, $write:ident, $remove:ident, $clear_line:ident
    ) => {
        impl FlowTable for $family {
            type Key = $key;
            type Line = $line;

            #[inline(always)]
            fn line(index: u32) -> Option<*mut $line> {
                $lines.get_ptr_mut(index)
            }

            #[inline(always)]
            fn seeds() -> Option<&'static FlowSeeds> {
                $seeds.get(0)
            }

            #[inline(always)]
            fn directory(set: u32) -> Option<*mut u64> {
                $directory.get_ptr_mut(set)
            }

            #[inline(always)]
            fn spilled(key: &$key) -> Option<*mut $line> {
                $spilled.get_ptr_mut(key)
            }

            #[inline(always)]
            fn spill(key: &$key, line: &$line) -> bool {
                $spilled.insert(key, line, u64::from(BPF_ANY)).is_ok()
            }

            #[inline(always)]
            fn unspill(key: &$key) -> bool {
                $spilled.remove(key).is_ok()
            }

            #[inline(always)]
            fn scratch() -> Option<*mut $line> {
                $scratch.get_ptr_mut(0)
            }

            #[inline(always)]
            fn read_into(key: &$key, line: u32, buffer: u32) -> u32 {
                $read(key, line, buffer)
            }

            #[inline(always)]
            fn find_far(key: &$key) -> u32 {
                $find(key)
            }

            #[inline(always)]
            fn touch_far(key: &$key, len: u32, now: u32) -> u32 {
                $touch(key, len, now)
            }

            #[inline(always)]
            fn find_common(key: &FlowKey6, buffer: u32) -> u32 {
                $find_common(key, buffer)
            }

            #[inline(always)]
            fn write(key: &FlowKey6, flow: &Flow, mode: u32) -> u32 {
                $write(key, flow, mode)
            }

            #[inline(always)]
            fn remove_common(key: &FlowKey6, over: u32) -> u32 {
                $remove(key, over)
            }

            #[inline(always)]
            fn clear(key: &FlowKey6) -> bool {
                clear_in::<$family>(<$family>::narrow(key).borrow(), $clear_line).is_some()
            }
        }

        /// [`FlowTable::read_into`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $read(key: *const $key, line: u32, buffer: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return OTHER };
            read_into::<$family>(key, line, buffer).unwrap_or(OTHER)
        }

        /// [`FlowTable::find_far`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(key: *const $key) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return BUSY };
            find_in::<$family>(key, Buffer::Packet as u32).unwrap_or(BUSY)
        }

        /// [`FlowTable::touch_far`]. Always 0.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $touch(key: *const $key, len: u32, now: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            if let Some(key) = unsafe { key.as_ref() } {
                let _done = touch_spilled::<$family>(key, len, now);
            }
            0
        }

        /// [`FlowTable::find_common`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find_common(key: *const FlowKey6, buffer: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return BUSY };
            find_for_walk::<$family>(<$family>::narrow(key).borrow(), buffer)
        }

        /// [`FlowTable::write`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $write(key: *const FlowKey6, flow: *const Flow, mode: u32) -> u32 {
            // SAFETY: the caller's references; the verifier checked their sizes.
            let (Some(key), Some(flow)) = (unsafe { (key.as_ref(), flow.as_ref()) }) else {
                return Written::Other as u32;
            };
            write_in::<$family>(<$family>::narrow(key).borrow(), flow, mode).unwrap_or(Written::Busy) as u32
        }

        /// [`FlowTable::remove_common`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remove(key: *const FlowKey6, over: u32) -> u32 {
            // SAFETY: the caller's reference; the verifier checked its size.
            let Some(key) = (unsafe { key.as_ref() }) else { return Written::Other as u32 };
            remove_in::<$family>(<$family>::narrow(key).borrow(), over).unwrap_or(Written::Busy) as u32
        }

        /// Of [`FlowTable::clear`]: 1, or 0.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $clear_line(line: u32, which: u32) -> u32 {
            u32::from(clear_line::<$family>(line, which).is_some())
        }
    };
}

table!(
    V4,
    FlowKey4,
    Line4,
    FLOWS4,
    SEEDS4,
    DIRECTORY4,
    SPILLED4,
    LINE4,
    weft_read_v4,
    weft_find_far_v4,
    weft_touch_v4,
    weft_find_v4,
    weft_write_v4,
    weft_remove_v4,
    weft_clear_line_v4
);
table!(
    V6,
    FlowKey6,
    Line6,
    FLOWS6,
    SEEDS6,
    DIRECTORY6,
    SPILLED6,
    LINE6,
    weft_read_v6,
    weft_find_far_v6,
    weft_touch_v6,
    weft_find_v6,
    weft_write_v6,
    weft_remove_v6,
    weft_clear_line_v6
);
