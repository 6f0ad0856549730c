// SPDX-License-Identifier: Apache-2.0
//! Checksums that a sender leaves to whoever has the packet last: to the kernel, or the network card.

use crate::protocol;

/// Segments of a TCP packet that is still to be cut are no shorter (`TCP_MIN_SND_MSS` of Linux): shorter ones would cost the
/// node a packet for some bytes each.
const MIN_SEGMENT: u32 = 48;

/// Datagrams that one packet may become (`UDP_MAX_SEGMENTS` of Linux, 6.8; 64 before).
const MAX_DATAGRAMS: u32 = 128;

/// Whether a packet of `len` bytes may be cut into pieces of `segment` bytes; 0: it is none to cut.
#[inline(always)]
#[must_use]
pub const fn may_be_cut(protocol_number: u8, len: u32, segment: u32) -> bool {
    match protocol_number {
        _ if segment == 0 => true,
        protocol::TCP => segment >= MIN_SEGMENT,
        protocol::UDP => segment as u64 * MAX_DATAGRAMS as u64 >= len as u64,
        _ => true,
    }
}

/// Where the checksum is in a transport header, and the bytes of it that are judged; both 0 of one without.
#[inline(always)]
const fn header(protocol_number: u8) -> (u32, u32) {
    match protocol_number {
        protocol::TCP => (16, 20),
        protocol::UDP | protocol::UDP_LITE => (6, 8),
        protocol::SCTP => (8, 12),
        protocol::ICMP | protocol::ICMPV6 => (2, 8),
        _ => (0, 0),
    }
}

/// Whether a checksum over what follows `start` may be written at `start` + `field`, after policy has judged the packet: at
/// its place in the transport header at `transport`, or behind that header. There it is of an overlay that the sender has of
/// its own, or writes over the sender's own data. `transport` and `start` count from the Ethernet header on.
#[inline(always)]
#[must_use]
pub const fn is_harmless(protocol_number: u8, transport: u32, start: u32, field: u32) -> bool {
    let (checksum, len) = header(protocol_number);
    start >= transport + len || (len != 0 && start == transport && field == checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet and IPv4.
    const TRANSPORT: u32 = 34;

    #[test]
    fn what_is_cut_becomes_a_bounded_number_of_packets() {
        assert!(may_be_cut(protocol::TCP, 65_000, 48) && !may_be_cut(protocol::TCP, 65_000, 47));
        assert!(may_be_cut(protocol::UDP, 1_280, 10) && !may_be_cut(protocol::UDP, 1_281, 10));
        assert!(may_be_cut(protocol::UDP, 65_000, 0) && !may_be_cut(protocol::UDP, 65_000, 1));
    }

    #[test]
    fn the_checksum_of_the_transport_header_is_harmless() {
        for (protocol_number, field) in [(protocol::TCP, 16), (protocol::UDP, 6), (protocol::SCTP, 8)] {
            assert!(is_harmless(protocol_number, TRANSPORT, TRANSPORT, field));
        }
    }

    #[test]
    fn headers_that_were_judged_are_not_written() {
        // Bytes from the start of IPv4 to the end of the ports, and all others but the checksum.
        for protocol_number in [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::ICMP] {
            let (checksum, len) = header(protocol_number);
            for start in 14..TRANSPORT + len {
                for field in 0..32 {
                    let allowed = start == TRANSPORT && field == checksum;
                    assert_eq!(is_harmless(protocol_number, TRANSPORT, start, field), allowed, "{start} + {field}");
                }
            }
        }
    }

    #[test]
    fn an_overlay_of_the_senders_own_goes_on() {
        // UDP 8, VXLAN 8, Ethernet 14, IPv4 20, TCP.
        assert!(is_harmless(protocol::UDP, TRANSPORT, TRANSPORT + 50, 16));
        // IP in IP.
        assert!(is_harmless(4, TRANSPORT, TRANSPORT + 20, 16));
    }
}
