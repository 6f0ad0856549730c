// SPDX-License-Identifier: Apache-2.0
//! Classes of addresses.

use weft_abi::Addr;

use crate::masquerade;

/// Whether a packet to or from `addr` is never forwarded: multicast, broadcast, loopback, IPv6 link-local, unspecified.
///
/// IPv4 link-local destinations are forwarded (cloud metadata services live there), and so is 240.0.0.0/4, which Linux takes
/// for unicast.
#[inline(always)]
#[must_use]
pub fn is_unroutable(addr: &Addr) -> bool {
    if addr.is_v4() {
        let [first, ..] = addr.v4_word().to_ne_bytes();
        first == 0 || first == 127 || (224..240).contains(&first) || addr.v4_word() == u32::MAX
    } else {
        let [first, second, ..] = addr.0[0].to_ne_bytes();
        let loopback_or_unspecified = addr.0[0] == 0 && addr.0[1] == 0 && addr.0[2] == 0;
        first == 0xff || (first == 0xfe && second & 0xc0 == 0x80) || loopback_or_unspecified
    }
}

/// Whether `addr` is a host's name for itself (127.0.0.0/8, ::1).
#[inline(always)]
#[must_use]
pub fn is_loopback(addr: &Addr) -> bool {
    let [first, ..] = addr.v4_word().to_ne_bytes();
    (addr.is_v4() && first == 127) || addr.0 == [0, 0, 0, 1_u32.to_be()]
}

/// Whether `addr` is IPv4 link-local (RFC 3927).
#[inline(always)]
#[must_use]
pub fn is_link_local_v4(addr: &Addr) -> bool {
    let [first, second, ..] = addr.v4_word().to_ne_bytes();
    addr.is_v4() && first == 169 && second == 254
}

/// Whether `addr` is IPv6 link-local (RFC 4291, 2.5.6).
#[inline(always)]
#[must_use]
pub fn is_link_local_v6(addr: &Addr) -> bool {
    let [first, second, ..] = addr.0[0].to_ne_bytes();
    first == 0xfe && second & 0xc0 == 0x80
}

/// A word of an address, all of it considered.
#[inline(always)]
pub(crate) const fn word(addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    a.wrapping_mul(3) ^ b.wrapping_mul(5) ^ c.wrapping_mul(7) ^ masquerade::mix(d)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Addr {
        Addr::v4(u32::from_ne_bytes([a, b, c, d]))
    }

    fn v6(first: u16, last: u16) -> Addr {
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&first.to_be_bytes());
        octets[14..].copy_from_slice(&last.to_be_bytes());
        Addr::from_octets(octets)
    }

    #[test]
    fn only_unicast_beyond_the_link_is_routable() {
        for addr in [v4(0, 1, 2, 3), v4(127, 0, 0, 1), v4(224, 0, 0, 1), v4(239, 1, 2, 3), v4(255, 255, 255, 255)] {
            assert!(is_unroutable(&addr), "{addr:x?}");
        }
        for addr in [v6(0xff02, 1), v6(0xfe80, 1), v6(0, 1), v6(0, 0)] {
            assert!(is_unroutable(&addr), "{addr:x?}");
        }
        for addr in [v4(10, 0, 0, 1), v4(169, 254, 169, 254), v4(240, 0, 0, 1), v6(0x2001, 1), v6(0xfd00, 1)] {
            assert!(!is_unroutable(&addr), "{addr:x?}");
        }
    }
}
