// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! How the walk ends early, and how functions of their own say so: they return numbers.

use weft_abi::DropReason;

/// Why a packet does not go on through the walk.
pub enum Stop {
    /// Drop it.
    Drop(DropReason),
    /// It is not the dataplane's: return this to the kernel.
    Return(i32),
}

impl From<DropReason> for Stop {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// From here on a number is a reason + 1; the kernel's actions are all below.
const REFUSED: u32 = 0x100;

/// How a function of its own returns what may be an action or the end of the walk.
#[inline(always)]
pub fn suspend(result: Result<i32, Stop>) -> u32 {
    match result {
        Ok(action) | Err(Stop::Return(action)) => action as u32 & 0xff,
        Err(Stop::Drop(reason)) => REFUSED + code(Err(reason)),
    }
}

/// The result behind [`suspend`]; `TCX_NEXT` is the byte 0xff.
#[inline(always)]
pub fn resume(code: u32) -> Result<i32, Stop> {
    if code < REFUSED {
        return Ok(i32::from(code as u8 as i8));
    }
    check(code - REFUSED)?;
    Err(DropReason::Kernel.into())
}

/// How functions of their own return: 0, or the number of the reason + 1.
#[inline(always)]
pub fn code(result: Result<(), DropReason>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

/// The result behind a [`code`].
#[inline(always)]
pub fn check(code: u32) -> Result<(), DropReason> {
    if code == 0 {
        return Ok(());
    }
    let index = code - 1;
    if index < DropReason::ALL.len() as u32 {
        // SAFETY: the enum is `repr(u8)` with the values 0..ALL.len(), checked just above.
        return Err(unsafe { core::mem::transmute::<u8, DropReason>(index as u8) });
    }
    Err(DropReason::Kernel)
}
