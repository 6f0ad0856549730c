// SPDX-License-Identifier: Apache-2.0
//! glibc's allocator, for a process that reads a cluster once and then changes a little of it again and again.

use std::collections::BTreeMap;

/// To be called before any other thread runs.
///
/// Without this glibc keeps what is freed in lists for small sizes (`M_MXFAST`), which it walks whole at the next large request:
/// after the first lists that is some hundred thousand chunks, and a third of the time of a small change. And it would
/// give every thread a heap of its own (`M_ARENA_MAX`), of which none gets smaller. See mallopt(3).
pub fn adjust() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MXFAST, 0), (libc::M_ARENA_MAX, 2)] {
        // SAFETY: mallopt(3) takes two numbers; no other thread runs yet.
        let taken = unsafe { libc::mallopt(parameter, value) };
        if taken == 0 {
            tracing::warn!(parameter, value, "mallopt refused a parameter");
        }
    }
}

/// Packs a tree: one that was filled in order, as lists are, has nodes of which half is empty.
pub(crate) fn pack<K: Ord, V>(tree: &mut BTreeMap<K, V>) {
    *tree = std::mem::take(tree).into_iter().collect();
}

/// Gives memory that is free back to the system: glibc keeps what lies below something that is in use, which after the first
/// lists is as much again as the cluster takes.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number and has no other conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
