// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The egress hook of ports.

use weft_abi::{DropReason, Hook, MARK_DELIVERED};

use crate::{hook, report, skb::Skb};

/// Lets through what a program or the agent marked; all else came past the dataplane.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    if skb.mark() == MARK_DELIVERED {
        skb.set_mark(0);
        return hook::NEXT;
    }
    report::forget();
    report::dropped(&skb, Hook::ToWorkload as u8, DropReason::Unmarked)
}
