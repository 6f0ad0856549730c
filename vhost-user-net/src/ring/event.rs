// SPDX-License-Identifier: Apache-2.0
//! The arithmetic of ring indices and notifications. All indices are free-running and wrap at 2^16.

/// Whether moving an index from `old` to `new` passes `event` (virtio 1.3, 2.7.7.1: `vring_need_event`).
#[inline]
pub fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Entries between the next index to take and the index the guest published, or `None` when it ran ahead of the ring.
#[inline]
pub fn available(index: u16, next: u16, size: u16) -> Option<u16> {
    let count = index.wrapping_sub(next);
    (count <= size).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in words: some index in `old..new` equals `event`.
    fn passes_by_walking(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    #[test]
    fn passes_agrees_with_walking_for_all_events_around_every_wrap() {
        for old in (0..6).chain(65530..=65535).chain(32765..32771) {
            for step in 0..40u16 {
                let new = u16::wrapping_add(old, step);
                for event in 0..=u16::MAX {
                    assert_eq!(passes(event, new, old), passes_by_walking(event, new, old), "{event} {new} {old}");
                }
            }
        }
    }

    /// Both sides of the definition depend on two distances only, so that one `old` stands for all of them.
    #[test]
    fn passes_is_exact_for_every_event_and_every_distance_near_a_border() {
        for distance in (0..300).chain(32_700..32_800).chain(65_236..=65_535) {
            for event in 0..=u16::MAX {
                assert_eq!(passes(event, distance, 0), event < distance, "{event} {distance}");
            }
        }
    }

    #[test]
    fn available_is_exact_for_every_distance() {
        for size in [1u16, 2, 256, 1024, 32768] {
            for next in [0u16, 1, 255, 32767, 65535] {
                for distance in 0..=u16::MAX {
                    let want = (distance <= size).then_some(distance);
                    assert_eq!(available(next.wrapping_add(distance), next, size), want);
                }
            }
        }
    }
}
