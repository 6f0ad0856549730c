// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What the hooks return to the kernel.

use weft_abi::Hook;

/// `TCX_NEXT`: the next program of the device, else the host's stack.
pub const NEXT: i32 = -1;
/// `TCX_DROP`.
pub const DROP: i32 = 2;

/// Whether a hook sees the host's own traffic too: what the walk does not know there is the host stack's business.
#[inline(always)]
pub const fn is_shared(hook: u8) -> bool {
    hook == Hook::FromUplink as u8
}
