// SPDX-License-Identifier: Apache-2.0
//! Ethernet frames with UDP and ICMPv6: read what a guest sent, build what it gets. Pure; input is hostile.

use std::net::{Ipv4Addr, Ipv6Addr};

use weft_api::Mac;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;
const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// RFC 4861, section 6.1.1: neighbour discovery never crosses a router.
const ND_HOP_LIMIT: u8 = 255;

/// What a guest sent, as far as this room is concerned.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Packet<'a> {
    /// UDP over IPv4.
    Udp4(Udp<'a, Ipv4Addr>),
    /// UDP over IPv6.
    Udp6(Udp<'a, Ipv6Addr>),
    /// ICMPv6 with hop limit 255: type, code and what follows them.
    Icmp6 {
        /// Who sent it.
        source: Ipv6Addr,
        /// ICMPv6 type.
        kind: u8,
        /// ICMPv6 code.
        code: u8,
        /// Bytes after the checksum.
        body: &'a [u8],
    },
}

/// A UDP datagram with its addresses; ports in host byte order.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Udp<'a, A> {
    pub(super) source: A,
    pub(super) destination: A,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) payload: &'a [u8],
}

/// Who sends to whom, on the Ethernet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) source: [u8; 6],
    pub(super) destination: [u8; 6],
}

/// Reads one frame that `sender` sent; anything else, or cut short, or with lengths that lie, gives nothing.
///
/// Checksums are not verified: a guest with checksum offload leaves them to a device that is not there.
pub(super) fn parse(frame: &[u8], sender: Mac) -> Option<Packet<'_>> {
    let (header, packet) = frame.split_at_checked(ETHERNET_LEN)?;
    if header.get(6..12)? != sender.0 {
        return None;
    }
    match be16(header, 12)? {
        ETHERTYPE_IPV4 => parse_ipv4(packet),
        ETHERTYPE_IPV6 => parse_ipv6(packet),
        _ => None,
    }
}

fn parse_ipv4(packet: &[u8]) -> Option<Packet<'_>> {
    let first = *packet.first()?;
    let header_len = usize::from(first & 0xf) * 4;
    let total_len = usize::from(be16(packet, 2)?);
    // Neither "more fragments" nor an offset: DHCP fits one packet.
    let whole = be16(packet, 6)? & 0x3fff == 0;
    if first >> 4 != 4 || header_len < 20 || !whole || *packet.get(9)? != PROTOCOL_UDP {
        return None;
    }
    let datagram = packet.get(header_len..total_len)?;
    Some(Packet::Udp4(parse_udp(datagram, array(packet, 12)?.into(), array(packet, 16)?.into())?))
}

fn parse_ipv6(packet: &[u8]) -> Option<Packet<'_>> {
    let payload_len = usize::from(be16(packet, 4)?);
    let (next_header, hop_limit) = (*packet.get(6)?, *packet.get(7)?);
    let source = Ipv6Addr::from(array::<16>(packet, 8)?);
    let destination = Ipv6Addr::from(array::<16>(packet, 24)?);
    let payload = packet.get(IPV6_LEN..IPV6_LEN.checked_add(payload_len)?)?;
    if *packet.first()? >> 4 != 6 {
        return None;
    }
    match next_header {
        PROTOCOL_UDP => Some(Packet::Udp6(parse_udp(payload, source, destination)?)),
        PROTOCOL_ICMPV6 if hop_limit == ND_HOP_LIMIT => {
            Some(Packet::Icmp6 { source, kind: *payload.first()?, code: *payload.get(1)?, body: payload.get(4..)? })
        }
        _ => None,
    }
}

fn parse_udp<A>(datagram: &[u8], source: A, destination: A) -> Option<Udp<'_, A>> {
    let payload = datagram.get(UDP_LEN..usize::from(be16(datagram, 4)?))?;
    let (source_port, destination_port) = (be16(datagram, 0)?, be16(datagram, 2)?);
    Some(Udp { source, destination, source_port, destination_port, payload })
}

/// A frame with UDP over IPv4, checksums filled in; nothing where the payload does not fit an IPv4 packet.
pub(super) fn udp4(link: Link, udp: &Udp<'_, Ipv4Addr>) -> Option<Vec<u8>> {
    let addresses = [udp.source.octets(), udp.destination.octets()].concat();
    let datagram = udp_datagram(udp.source_port, udp.destination_port, udp.payload, &addresses)?;
    let total_len = u16::try_from(20 + datagram.len()).ok()?;
    // Version and header length, TOS, length; no identification, no fragment; TTL 64.
    let mut header =
        [&[0x45, 0][..], &total_len.to_be_bytes(), &[0; 4], &[64, PROTOCOL_UDP, 0, 0], &addresses].concat();
    let sum = checksum(&[&header]);
    header.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    Some(ethernet(link, ETHERTYPE_IPV4, &[&header, &datagram]))
}

/// A frame with UDP over IPv6, checksum filled in; nothing where the payload does not fit.
pub(super) fn udp6(link: Link, udp: &Udp<'_, Ipv6Addr>) -> Option<Vec<u8>> {
    let addresses = [udp.source.octets(), udp.destination.octets()].concat();
    let datagram = udp_datagram(udp.source_port, udp.destination_port, udp.payload, &addresses)?;
    let header = ipv6_header(PROTOCOL_UDP, 64, datagram.len(), &addresses)?;
    Some(ethernet(link, ETHERTYPE_IPV6, &[&header, &datagram]))
}

/// A frame with a neighbour discovery message (RFC 4861: hop limit 255, code 0); `body` is what follows the checksum.
pub(super) fn neighbour_discovery(
    link: Link,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    body: &[u8],
) -> Option<Vec<u8>> {
    let addresses = [source.octets(), destination.octets()].concat();
    let mut message = [&[kind, 0, 0, 0], body].concat();
    let sum = checksum(&[&addresses, &pseudo_tail(message.len(), PROTOCOL_ICMPV6)?, &message]);
    message.get_mut(2..4)?.copy_from_slice(&sum.to_be_bytes());
    let header = ipv6_header(PROTOCOL_ICMPV6, ND_HOP_LIMIT, message.len(), &addresses)?;
    Some(ethernet(link, ETHERTYPE_IPV6, &[&header, &message]))
}

fn udp_datagram(source_port: u16, destination_port: u16, payload: &[u8], addresses: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(UDP_LEN + payload.len()).ok()?;
    let ports = [source_port.to_be_bytes(), destination_port.to_be_bytes(), len.to_be_bytes(), [0; 2]].concat();
    let mut datagram = [&ports, payload].concat();
    let sum = checksum(&[addresses, &pseudo_tail(datagram.len(), PROTOCOL_UDP)?, &datagram]);
    // RFC 768: zero means "none"; its other form in ones' complement stands for it.
    let sum = if sum == 0 { u16::MAX } else { sum };
    datagram.get_mut(6..8)?.copy_from_slice(&sum.to_be_bytes());
    Some(datagram)
}

fn ipv6_header(next_header: u8, hop_limit: u8, payload_len: usize, addresses: &[u8]) -> Option<Vec<u8>> {
    let payload_len = u16::try_from(payload_len).ok()?;
    Some([&[0x60, 0, 0, 0][..], &payload_len.to_be_bytes(), &[next_header, hop_limit], addresses].concat())
}

/// Length and protocol of the pseudo header; the form of IPv6 (RFC 8200, section 8.1), which sums up alike for IPv4.
fn pseudo_tail(len: usize, protocol: u8) -> Option<[u8; 8]> {
    let [a, b, c, d] = u32::try_from(len).ok()?.to_be_bytes();
    Some([a, b, c, d, 0, 0, 0, protocol])
}

fn ethernet(link: Link, ethertype: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut frame = [&link.destination[..], &link.source, &ethertype.to_be_bytes()].concat();
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// The Internet checksum (RFC 1071) over parts, all but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for word in part.chunks(2) {
            let high = word.first().copied().map_or(0, u64::from);
            let low = word.get(1).copied().map_or(0, u64::from);
            sum += high << 8 | low;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop above leaves 16 bits.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 5]);
    const LINK: Link = Link { source: GUEST.0, destination: [0xff; 6] };

    fn v4_frame(payload: &[u8]) -> Vec<u8> {
        let udp = Udp {
            source: Ipv4Addr::new(10, 1, 1, 1),
            destination: Ipv4Addr::BROADCAST,
            source_port: 68,
            destination_port: 67,
            payload,
        };
        udp4(LINK, &udp).unwrap()
    }

    fn v6_frame(payload: &[u8]) -> Vec<u8> {
        let source = "fe80::5".parse().unwrap();
        let destination = "ff02::1:2".parse().unwrap();
        udp6(LINK, &Udp { source, destination, source_port: 546, destination_port: 547, payload }).unwrap()
    }

    #[test]
    fn checksums_are_those_of_another_implementation() {
        // Odd and even lengths; enough of them to meet carries.
        for len in 0..64_u8 {
            let payload: Vec<u8> = (0..len).map(|byte| byte.wrapping_mul(249)).collect();
            for frame in [v4_frame(&payload), v6_frame(&payload)] {
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no udp in {frame:02x?}") };
                let right = match packet.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
                        udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), &payload)
                    }
                    NetSlice::Ipv6(ip) => udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), &payload),
                    other => panic!("{other:?}"),
                };
                assert_eq!(udp.checksum(), right.unwrap());
            }
        }
    }

    #[test]
    fn what_is_built_is_what_is_read() {
        let udp = Udp {
            source: Ipv4Addr::new(10, 1, 1, 1),
            destination: Ipv4Addr::BROADCAST,
            source_port: 68,
            destination_port: 67,
            payload: b"hello",
        };
        assert_eq!(parse(&v4_frame(b"hello"), GUEST), Some(Packet::Udp4(udp)));
        assert_eq!(parse(&v4_frame(b"hello"), Mac([9; 6])), None, "another sender");
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        for frame in [v4_frame(b"hello"), v6_frame(b"hello")] {
            for len in 0..frame.len() {
                assert_eq!(parse(&frame[..len], GUEST), None, "{len} of {} bytes", frame.len());
            }
            assert!(parse(&[frame, vec![0; 20]].concat(), GUEST).is_some(), "padding of the Ethernet is no harm");
        }
    }

    #[test]
    fn fragments_and_lengths_that_lie_are_refused() {
        let frame = v4_frame(b"hello");
        for (offset, value) in
            [(14, 0x44), (14, 0x4f), (14, 0x65), (20, 0x20), (21, 1), (23, 6), (17, 255), (17, 20), (39, 255)]
        {
            let mut wrong = frame.clone();
            wrong[offset] = value;
            assert_eq!(parse(&wrong, GUEST), None, "byte {offset} = {value:#x}");
        }
    }
}
