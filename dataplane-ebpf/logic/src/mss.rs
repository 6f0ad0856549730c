// SPDX-License-Identifier: Apache-2.0
//! The largest segment that a side of a TCP connection says it takes (RFC 9293, 3.7.1; RFC 6691), and what of it a way allows.

use crate::{
    Frame,
    header::{IPV4, IPV6},
};

/// Options of a TCP header: 40 bytes at most, each of which may be an option.
pub const MOST_OPTIONS: u32 = 40;

/// Bytes of a TCP header without options.
const TCP: u32 = 20;
/// No way is so narrow that less is said (as Linux has it, `TCP_MIN_SND_MSS`).
const LEAST: u16 = 48;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Bytes of an option that names the largest segment.
const MSS_LEN: u8 = 4;

/// The largest segment that fits packets of `mtu` bytes, and that `configured` allows.
#[inline(always)]
#[must_use]
pub const fn most(configured: u16, mtu: u32, is_v6: bool) -> u16 {
    let headers = TCP + if is_v6 { IPV6 as u32 } else { IPV4 as u32 };
    let fits = mtu.saturating_sub(headers);
    let fits = if fits > u16::MAX as u32 { u16::MAX } else { fits as u16 };
    let most = if fits < configured { fits } else { configured };
    if most < LEAST { LEAST } else { most }
}

/// Where the options of the TCP header at `header` end: what it says of itself, and not behind the frame's end.
#[inline(always)]
pub fn end_of_options<F: Frame>(frame: &F, header: usize) -> u32 {
    let words = frame.load::<u8>(header + 12).unwrap_or(0) >> 4;
    let end = header as u32 + u32::from(words) * 4;
    if end < frame.len() { end } else { frame.len() }
}

/// An option of a TCP header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Found {
    /// Where the next one begins; no further than the options' end.
    pub next: u32,
    /// Where in the frame the largest segment stands, if the option names it; else 0.
    pub mss_at: u32,
}

/// The option at `at`; the options end at `end`. What follows one of a wrong length is no option.
#[inline(always)]
pub fn option<F: Frame>(frame: &F, at: u32, end: u32) -> Found {
    let over = Found { next: end, mss_at: 0 };
    if at >= end {
        return over;
    }
    let Some(kind) = frame.load::<u8>(at as usize) else { return over };
    match kind {
        END => return over,
        NO_OPERATION => return Found { next: at + 1, mss_at: 0 },
        _ => {}
    }
    let Some(len) = frame.load::<u8>(at as usize + 1) else { return over };
    if len < 2 || at + u32::from(len) > end {
        return over;
    }
    let mss_at = if kind == MSS && len == MSS_LEN { at + 2 } else { 0 };
    Found { next: at + u32::from(len), mss_at }
}

/// The value as a half of the checksum's sum: one that begins at an odd byte of the header stands in two halves (RFC 1071, 2).
#[inline(always)]
#[must_use]
pub const fn as_summed(value: u16, header: u32, at: u32) -> u16 {
    if at.wrapping_sub(header) & 1 == 0 { value } else { value.swap_bytes() }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{mem::size_of, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    struct Bytes(Vec<u8>);

    impl Frame for Bytes {
        fn len(&self) -> u32 {
            u32::try_from(self.0.len()).expect("short")
        }

        fn read<T: Copy>(&self, offset: usize) -> Option<T> {
            self.load(offset)
        }

        #[expect(unsafe_code, reason = "an integer is read from a slice that has room for it")]
        fn load<T: Copy>(&self, offset: usize) -> Option<T> {
            let bytes = self.0.get(offset..offset + size_of::<T>())?;
            // SAFETY: in bounds, and tests ask for integers alone.
            Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
        }
    }

    /// Where the values are, of a header at byte 3 with these options; `words`: its length as it says.
    fn places(options: &[u8], words: u8) -> Vec<u32> {
        let mut bytes = vec![0xee; 3 + 20];
        bytes[3 + 12] = words << 4;
        bytes.extend(options);
        let frame = Bytes(bytes);
        let end = end_of_options(&frame, 3);
        assert!(end <= frame.len());
        let (mut at, mut found) = (23, Vec::new());
        for _ in 0..MOST_OPTIONS {
            let Found { next, mss_at } = option(&frame, at, end);
            assert!(next > at || at >= end, "no step back");
            assert!(next <= end.max(at));
            if mss_at != 0 {
                assert!(mss_at + 2 <= end);
                found.push(mss_at - 23);
            }
            at = next;
        }
        assert!(at >= end, "the end is reached");
        found
    }

    #[test]
    fn options_as_they_come_and_as_nobody_should_write_them() {
        assert_eq!(places(&[2, 4, 5, 180], 6), [2]);
        assert_eq!(places(&[1, 1, 1, 2, 4, 5, 180, 0], 7), [5], "at an odd byte");
        assert_eq!(places(&[2, 4, 5, 180, 2, 4, 9, 9], 7), [2, 6], "the last one counts: all are found");
        assert_eq!(places(&[3, 0, 2, 4, 5, 180, 0, 0], 7), [] as [u32; 0], "a length of nothing");
        assert_eq!(places(&[3, 1, 2, 4, 5, 180, 0, 0], 7), [] as [u32; 0]);
        assert_eq!(places(&[0, 2, 4, 5, 180, 0, 0, 0], 7), [] as [u32; 0], "behind the end");
        assert_eq!(places(&[2, 4, 5], 6), [] as [u32; 0], "cut");
        assert_eq!(places(&[2, 6, 5, 180, 0, 0, 0, 0], 7), [] as [u32; 0], "of another length");
        assert_eq!(places(&[8, 200, 2, 4, 5, 180, 0, 0], 7), [] as [u32; 0], "longer than the header");
        assert_eq!(places(&[2, 4, 5, 180], 5), [] as [u32; 0], "data");
        assert_eq!(places(&[2, 4, 5, 180], 15), [2], "a header longer than the packet");
        assert_eq!(places(&[2, 4, 5, 180], 0), [] as [u32; 0]);
    }

    proptest! {
        #[test]
        fn any_options_have_an_end_and_stay_inside(
            options in proptest::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..60), words in 0_u8..16,
        ) {
            places(&options, words);
        }
    }

    #[test]
    fn what_a_way_allows() {
        assert_eq!((most(u16::MAX, 1500, false), most(u16::MAX, 1500, true)), (1460, 1440));
        assert_eq!((most(1200, 1500, false), most(1200, 1250, true)), (1200, 1190));
        assert_eq!((most(u16::MAX, 68, false), most(u16::MAX, 0, true)), (48, 48));
        assert_eq!(most(u16::MAX, 1 << 20, false), u16::MAX);
    }
}
