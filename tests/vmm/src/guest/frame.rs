// SPDX-License-Identifier: Apache-2.0
//! Numbered frames: every byte of one follows from its number, and it says how far the other side may go on.
//!
//! | Bytes | |
//! |---|---|
//! | 0..14 | Ethernet: broadcast, from 52:54:00:00:00:01, type 0x88b5 (local experiments, IEEE 802) |
//! | 14..22 | number, little endian |
//! | 22..30 | numbers below this may be sent to the sender of this frame |
//! | 30.. | a pattern of the number and the place |

/// The Ethernet header of all frames of the tests.
pub const ETHERNET: [u8; 14] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5];
/// Shortest frame.
pub const MIN: usize = 64;
/// Longest frame.
pub const MAX: usize = 1514;
const NUMBER: usize = 14;
const LIMIT: usize = 22;
const PATTERN: usize = 30;

/// What a numbered frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered {
    /// Its number.
    pub number: u64,
    /// Numbers below this may be sent back.
    pub limit: u64,
}

/// Length of the frame of this number.
pub fn len(number: u64) -> usize {
    MIN + (number.wrapping_mul(397) % (MAX - MIN + 1) as u64) as usize
}

fn pattern(number: u64, at: usize) -> u8 {
    (number as u8).wrapping_mul(167).wrapping_add((number >> 8) as u8).wrapping_add((at as u8).wrapping_mul(31))
}

/// Writes the frame into the beginning of `to` and returns its length. `to` must have `len(number)` bytes.
pub fn write(to: &mut [u8], frame: Numbered) -> usize {
    let len = len(frame.number);
    let to = &mut to[..len];
    to[..NUMBER].copy_from_slice(&ETHERNET);
    to[NUMBER..LIMIT].copy_from_slice(&frame.number.to_le_bytes());
    to[LIMIT..PATTERN].copy_from_slice(&frame.limit.to_le_bytes());
    to.iter_mut().enumerate().skip(PATTERN).for_each(|(at, byte)| *byte = pattern(frame.number, at));
    len
}

/// Whether this is a frame of this kind at all.
pub fn is_numbered(frame: &[u8]) -> bool {
    frame.len() >= PATTERN && frame[..NUMBER] == ETHERNET
}

/// Reads a frame of this kind; `None` when a byte or the length is wrong.
pub fn read(frame: &[u8]) -> Option<Numbered> {
    let word = |at: usize| frame.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let numbered = Numbered { number: word(NUMBER)?, limit: word(LIMIT)? };
    let right = frame.len() == len(numbered.number)
        && frame.iter().enumerate().skip(PATTERN).all(|(at, byte)| *byte == pattern(numbered.number, at));
    right.then_some(numbered)
}

/// What became of a stream of numbered frames, seen from its receiver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stream {
    /// One more than the greatest number that came.
    pub next: u64,
    /// Frames that came in order.
    pub good: u64,
    /// Frames with wrong bytes.
    pub corrupt: u64,
    /// Frames that came again, or behind a later one.
    pub repeated: u64,
    /// Numbers that were left out.
    pub lost: u64,
}

impl Stream {
    /// Takes one frame into account and returns what it says, if it is right.
    pub fn see(&mut self, frame: &[u8]) -> Option<Numbered> {
        let Some(numbered) = read(frame) else {
            self.corrupt += 1;
            return None;
        };
        if numbered.number < self.next {
            self.repeated += 1;
            return Some(numbered);
        }
        self.lost += numbered.number - self.next;
        self.next = numbered.number + 1;
        self.good += 1;
        Some(numbered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64) -> Vec<u8> {
        let mut bytes = vec![0; MAX];
        let len = write(&mut bytes, Numbered { number, limit: 7 });
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for number in (0..5000).chain([u64::MAX - 1]) {
            assert_eq!(read(&frame(number)), Some(Numbered { number, limit: 7 }));
        }
    }

    #[test]
    fn a_changed_byte_of_number_or_pattern_is_seen() {
        for number in [0, 3, 1000] {
            let right = frame(number);
            for at in (NUMBER..LIMIT).chain(PATTERN..right.len()) {
                let mut wrong = right.clone();
                wrong[at] ^= 1;
                assert_eq!(read(&wrong), None, "byte {at} of frame {number}");
            }
            assert_eq!(read(&right[..right.len() - 1]), None);
        }
    }

    #[test]
    fn a_stream_counts_gaps_and_repetitions() {
        let mut stream = Stream::default();
        for number in [0, 1, 1, 4, 3] {
            stream.see(&frame(number));
        }
        assert_eq!(stream, Stream { next: 5, good: 3, corrupt: 0, repeated: 2, lost: 2 });
    }
}
