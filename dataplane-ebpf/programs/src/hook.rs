// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What the hooks do with what the walk does not take, and the egress hook of ports.

use weft_abi::{DropReason, Hook, MARK_DELIVERED};

use crate::{report, skb::Skb};

/// `TCX_NEXT`: the next program of the device, else the host's stack.
pub const NEXT: i32 = -1;
/// `TCX_DROP`.
pub const DROP: i32 = 2;

/// Whether a hook sees the host's own traffic too: what the walk does not know there is the host stack's business.
#[inline(always)]
pub const fn is_shared(hook: u8) -> bool {
    hook == Hook::FromUplink as u8
}

/// Lets through what a program or the agent marked; all else came past the dataplane.
#[inline(always)]
pub fn to_workload(skb: Skb) -> i32 {
    if skb.mark() == MARK_DELIVERED {
        skb.set_mark(0);
        return NEXT;
    }
    report::forget();
    report::dropped(&skb, Hook::ToWorkload as u8, DropReason::Unmarked)
}
