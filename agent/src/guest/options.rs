// SPDX-License-Identifier: Apache-2.0
//! The options of a client that are of interest, picked out by their lengths before anything decodes them. Clients send many
//! more (Windows its FQDN, for one), some of them not as their RFC has it: what is not needed is never looked at, and what
//! does not have its length counts as not sent. Pure.

/// Of DHCPv4 (RFC 2132): END, PAD.
const PAD: u8 = 0;
const END: u8 = 255;
/// Length of what comes before the options: the header of RFC 2131 and the magic number.
pub(super) const HEADER_V4: usize = 240;
/// Where in it the texts `sname` and `file` begin, which nobody reads.
const SNAME: usize = 44;
const MAGIC: usize = 236;

/// Type and transaction of a DHCPv6 message (RFC 8415, section 8).
const HEADER_V6: usize = 4;
/// What an IA_NA and an IA_PD have before their options (RFC 8415, section 21.4), and an address without its options.
const ASSOCIATION: usize = 12;
const ADDRESS: usize = 24;

/// The DHCPv4 message with nothing in it but options that are of interest, each once; none where it is too short.
pub(super) fn known_v4(message: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = message.split_at_checked(HEADER_V4)?;
    let mut known = header.to_vec();
    known.get_mut(SNAME..MAGIC)?.fill(0);
    let mut seen = [false; 256];
    while let Some((code, tail)) = rest.split_first() {
        match *code {
            END => break,
            PAD => rest = tail,
            code => {
                let Some((value, tail)) =
                    tail.split_first().and_then(|(len, tail)| tail.split_at_checked(usize::from(*len)))
                else {
                    break;
                };
                rest = tail;
                if is_known_v4(code, value.len()) && !std::mem::replace(&mut seen[usize::from(code)], true) {
                    known.extend([code, u8::try_from(value.len()).ok()?]);
                    known.extend(value);
                }
            }
        }
    }
    known.push(END);
    Some(known)
}

/// Requested address, message type, server, parameter list, client identifier (RFC 2132), rapid commit (RFC 4039).
const fn is_known_v4(code: u8, len: usize) -> bool {
    match code {
        50 | 54 => len == 4,
        53 => len == 1,
        55 => len >= 1,
        61 => len >= 2,
        80 => len == 0,
        _ => false,
    }
}

/// The DHCPv6 message with nothing in it but options that are of interest; none where it is too short.
pub(super) fn known_v6(message: &[u8]) -> Option<Vec<u8>> {
    let (header, options) = message.split_at_checked(HEADER_V6)?;
    let mut known = header.to_vec();
    for (code, value) in OptionsV6(options) {
        match (code, value.len()) {
            // Client and server: a DUID, of a type and at most 128 bytes (RFC 8415, section 11.1). Requested options. Rapid commit.
            (1 | 2, 1..=130) | (14, 0) => push_v6(&mut known, code, value),
            (6, len) if len % 2 == 0 => push_v6(&mut known, code, value),
            (3, ASSOCIATION..) => push_v6(&mut known, code, &association(value)),
            // Prefixes are refused: which ones were asked for does not matter.
            (25, ASSOCIATION..) => push_v6(&mut known, code, value.get(..ASSOCIATION)?),
            _ => {}
        }
    }
    Some(known)
}

/// An IA_NA with nothing in it but addresses.
fn association(value: &[u8]) -> Vec<u8> {
    const IA_ADDRESS: u16 = 5;
    let (head, options) = value.split_at(ASSOCIATION);
    let mut known = head.to_vec();
    let addresses = OptionsV6(options).filter(|(code, _)| *code == IA_ADDRESS);
    for (code, address) in addresses.filter_map(|(code, value)| Some((code, value.get(..ADDRESS)?))) {
        push_v6(&mut known, code, address);
    }
    known
}

fn push_v6(known: &mut Vec<u8>, code: u16, value: &[u8]) {
    // A frame is far shorter than 64 KiB, and so is everything in it.
    let Ok(len) = u16::try_from(value.len()) else { return };
    known.extend(code.to_be_bytes());
    known.extend(len.to_be_bytes());
    known.extend(value);
}

/// Options with 16-bit codes and lengths (RFC 8415, section 21.1), up to one that is cut off.
struct OptionsV6<'a>(&'a [u8]);

impl<'a> Iterator for OptionsV6<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (code, rest) = self.0.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        self.0 = rest;
        Some((u16::from_be_bytes(*code), value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{HEADER_V4, known_v4, known_v6};

    fn v4(options: &[u8]) -> Vec<u8> {
        let mut message = vec![7; HEADER_V4];
        message.extend(options);
        known_v4(&message).unwrap().split_off(HEADER_V4)
    }

    #[test]
    fn what_is_not_known_or_has_another_length_is_skipped() {
        let fqdn = *b"\x51\x0c\0\0\0WIN-7T2Q9";
        let request =
            [&fqdn[..], &[53, 1, 3, 0, 0, 81, 2, 0, 0, 94, 2, 1, 2, 80, 1, 0], &[50, 4, 10, 1, 1, 5, 255, 54, 4]];
        assert_eq!(v4(&request.concat()), [53, 1, 3, 50, 4, 10, 1, 1, 5, 255]);
        assert_eq!(v4(&[53, 2, 1, 1, 50, 3, 1, 1, 1, 55, 0, 61, 1, 1]), [255]);
        assert_eq!(v4(&[53, 1, 1, 53, 1, 3, 55, 2, 1]), [53, 1, 1, 255], "the first counts; one that is cut off ends");
        assert_eq!(known_v4(&[0; HEADER_V4 - 1]), None);
    }

    #[test]
    fn associations_keep_their_addresses_alone() {
        let address = [&[0, 5, 0, 28][..], &[1; 24], &[0, 13, 0, 0]].concat();
        let len = u8::try_from(12 + 6 + address.len() + 8).unwrap();
        let association =
            [&[0, 3, 0, len][..], &[9; 12], &[0, 13, 0, 2, 0, 0], &address, &[0, 5, 0, 4, 1, 1, 1, 1]].concat();
        let message = [&[1, 1, 2, 3, 0, 1, 0, 2, 0, 3, 0, 39, 0, 1, 0][..], &association, &[0, 14, 0, 1, 0]].concat();
        let kept = [&[1, 1, 2, 3, 0, 1, 0, 2, 0, 3, 0, 3, 0, 40][..], &[9; 12], &[0, 5, 0, 24], &[1; 24]].concat();
        assert_eq!(known_v6(&message).unwrap(), kept);
    }

    proptest! {
        #[test]
        fn a_known_message_is_kept_as_it_is(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(once) = known_v4(&bytes) {
                prop_assert_eq!(known_v4(&once).unwrap(), once);
            }
            if let Some(once) = known_v6(&bytes) {
                prop_assert_eq!(known_v6(&once).unwrap(), once);
            }
        }
    }
}
