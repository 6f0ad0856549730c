// SPDX-License-Identifier: Apache-2.0
//! SCTP's checksum (RFC 9260, 6.8), a CRC32c over the whole packet, where the ports in its first four bytes change.
//!
//! A CRC is linear: what it changes by follows from the bits that change and from how many bytes come behind them, whatever these are.
//! As polynomials over GF(2), modulo Castagnoli's, a difference of the first four bytes of `len` counts `difference * x^(8 * len)`.

use crate::{
    checksum::Summed,
    header::{IPV6, Ipv4, Ipv6, Piece},
};

/// Bytes of the common header: ports, verification tag, checksum.
const HEADER: usize = 12;

/// Castagnoli's polynomial but for x^32. In all of these words the highest bit is x^0, as the CRC has it.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^0.
const ONE: u32 = 1 << 31;
/// x^8: one byte further on.
const BYTE: u32 = 1 << 23;

/// What so many bytes further on count, and so many times 256.
static BYTES: [u32; 256] = powers(BYTE);
static PAGES: [u32; 256] = powers(multiply(powers(BYTE)[255], BYTE));

/// The powers of `base`.
const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut index = 1;
    while index < powers.len() {
        powers[index] = multiply(powers[index - 1], base);
        index += 1;
    }
    powers
}

/// The product of two polynomials. By masks: with branches the verifier would walk every way through them.
#[inline(always)]
const fn multiply(mut one: u32, mut other: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < u32::BITS {
        product ^= other & mask(one >> 31);
        one <<= 1;
        other = (other >> 1) ^ (POLYNOMIAL & mask(other & 1));
        bit += 1;
    }
    product
}

/// All ones of 1, nothing of 0.
#[inline(always)]
const fn mask(bit: u32) -> u32 {
    0_u32.wrapping_sub(bit)
}

/// The checksum of a packet of `len` bytes whose ports change. All of these words are as in the packet.
#[inline(always)]
#[must_use]
pub fn update(checksum: u32, before: u32, after: u32, len: u16) -> u32 {
    let [low, high] = len.to_le_bytes().map(usize::from);
    // The CRC takes the lowest bit of the first byte first, and is written with its lowest byte first.
    let difference = u32::from_le(before ^ after);
    checksum ^ multiply(multiply(difference, BYTES[low]), PAGES[high]).to_le()
}

/// Whether the checksum field has a sum to keep. Who leaves it to others (`CHECKSUM_PARTIAL`) leaves a 0 there, which it must stay:
/// Linux sums the packet up later with what the field has (`skb_crc32c_csum_help`). Where that is not known, 0 says so.
#[inline(always)]
#[must_use]
pub fn is_summed(summed: Summed, checksum: u32) -> bool {
    if summed == Summed::UNKNOWN { checksum != 0 } else { summed != Summed::PARTIAL }
}

/// The length of the SCTP packet `behind` bytes from the beginning of the IP header on; none: of a datagram in pieces, or too short for a
/// checksum.
#[inline(always)]
#[must_use]
pub fn len_v4(ip: &Ipv4, behind: usize) -> Option<u16> {
    if ip.fragment & 0x3fff_u16.to_be() != 0 {
        return None;
    }
    len(u16::from_be(ip.total_len).into(), behind)
}

/// [`len_v4`] of IPv6, where a header between the two tells of the `piece`.
#[inline(always)]
#[must_use]
pub fn len_v6(ip: &Ipv6, behind: usize, piece: Piece) -> Option<u16> {
    if piece != Piece::Whole {
        return None;
    }
    len(usize::from(u16::from_be(ip.payload_len)) + IPV6, behind)
}

#[inline(always)]
fn len(total: usize, behind: usize) -> Option<u16> {
    let len = total.checked_sub(behind)?;
    // Also of a jumbogram, whose length the header does not tell.
    if len < HEADER || len > usize::from(u16::MAX) { None } else { Some(len as u16) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// RFC 9260, appendix A, bit by bit.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 })
        })
    }

    /// A packet's checksum as it is written there.
    fn checksum(packet: &[u8]) -> u32 {
        let mut cleared = packet.to_vec();
        cleared[8..12].fill(0);
        u32::from_ne_bytes(crc32c(&cleared).to_le_bytes())
    }

    fn ports(packet: &[u8]) -> u32 {
        u32::from_ne_bytes([packet[0], packet[1], packet[2], packet[3]])
    }

    /// Whether the checksum is right after `packet`'s ports have become `to`.
    fn is_kept(mut packet: Vec<u8>, to: [u8; 4]) -> bool {
        let (was, before) = (checksum(&packet), ports(&packet));
        packet[..4].copy_from_slice(&to);
        let len = u16::try_from(packet.len()).unwrap();
        update(was, before, ports(&packet), len) == checksum(&packet)
    }

    /// RFC 3720, B.4, and the check value of the CRC catalogue.
    #[test]
    fn known_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, crc) in
            [(vec![0; 32], 0x8a91_36aa_u32), (vec![0xff; 32], 0x62a8_ab43), (ascending.clone(), 0x46dd_794e)]
        {
            assert_eq!(crc32c(&bytes), crc);
        }
        // From zeros to what differs in the first bytes alone, and back.
        let zeros = u32::from_ne_bytes(0x8a91_36aa_u32.to_le_bytes());
        let mut other = [0; 32];
        other[..4].copy_from_slice(&[1, 2, 3, 4]);
        let moved = update(zeros, 0, ports(&other), 32);
        assert_eq!(u32::from_le_bytes(moved.to_ne_bytes()), crc32c(&other));
        assert_eq!(update(moved, ports(&other), 0, 32), zeros);
    }

    #[test]
    fn every_length_keeps_its_checksum() {
        let whole: Vec<u8> = (0..=u16::MAX).map(|place| (place.wrapping_mul(40_503) >> 8) as u8).collect();
        let lens = (12..1600).chain([4096, 9000, 16_383, 16_384, 32_767, 32_768, 65_279, 65_280, 65_534, 65_535]);
        for len in lens {
            assert!(is_kept(whole[..len].to_vec(), [0x1f, 0x90, 0x0f, 0x1c]), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_ports_of_any_packet(packet in proptest::collection::vec(any::<u8>(), 12..3000), to: [u8; 4]) {
            prop_assert!(is_kept(packet, to));
        }

        #[test]
        fn any_length(len in 12_usize..65_536, fill: u8, from: [u8; 4], to: [u8; 4]) {
            let mut packet = vec![fill; len];
            packet[..4].copy_from_slice(&from);
            prop_assert!(is_kept(packet, to));
        }
    }

    #[test]
    fn what_is_left_to_others_stays_0() {
        assert!(!is_summed(Summed::PARTIAL, 0) && !is_summed(Summed::PARTIAL, 5));
        assert!(is_summed(Summed::of(0), 0), "a sum that happens to be 0");
        assert!(!is_summed(Summed::UNKNOWN, 0) && is_summed(Summed::UNKNOWN, 5));
    }

    #[test]
    fn lengths_are_those_of_whole_packets() {
        let v4 = |total: u16, fragment: u16| Ipv4 {
            total_len: total.to_be(),
            fragment: fragment.to_be(),
            ..Ipv4::default()
        };
        assert_eq!(len_v4(&v4(60, 0x4000), 20), Some(40), "not to be cut");
        assert_eq!(len_v4(&v4(60, 0), 60), None, "nothing behind its options");
        assert_eq!([31, 32].map(|total| len_v4(&v4(total, 0), 20)), [None, Some(12)]);
        assert_eq!([0x2000, 1].map(|fragment| len_v4(&v4(60, fragment), 20)), [None; 2], "a first and a later piece");
        let v6 = |payload: u16| Ipv6 { payload_len: payload.to_be(), ..Ipv6::default() };
        assert_eq!(len_v6(&v6(60), 48, Piece::Whole), Some(52), "behind 8 bytes of options");
        assert_eq!([Piece::First, Piece::Later].map(|piece| len_v6(&v6(60), 48, piece)), [None; 2]);
        assert_eq!(len_v6(&v6(0), 40, Piece::Whole), None, "a jumbogram");
        assert_eq!(len_v6(&v6(65_535), 40, Piece::Whole), Some(65_535));
    }
}
