// SPDX-License-Identifier: Apache-2.0

//! Frames as they are forged.

use std::net::{IpAddr, SocketAddr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpNumber, PacketBuilder, PacketBuilderStep};
use weft_probe::frames::Offload;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// ICMPv6's protocol number.
pub(super) const ICMPV6: u8 = 58;

/// Ethernet destination and source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) to: [u8; 6],
    pub(super) from: [u8; 6],
}

/// One frame and what it asks of the device.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    pub(super) offload: Option<Offload>,
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, offload: None }
    }
}

fn ip(link: Link, source: IpAddr, destination: IpAddr, hops: u8) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(link.from, link.to);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), hops),
        (source, destination) => ethernet.ipv6(v6_octets(source), v6_octets(destination), hops),
    }
}

fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Writing to memory does not fail.
fn finish<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes).expect("writing to memory");
    bytes
}

/// A UDP datagram.
pub(super) fn udp(link: Link, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    udp_with_hops(link, source, destination, 64, payload)
}

/// A UDP datagram with a time to live.
pub(super) fn udp_with_hops(
    link: Link,
    source: SocketAddr,
    destination: SocketAddr,
    hops: u8,
    payload: &[u8],
) -> Vec<u8> {
    let builder = ip(link, source.ip(), destination.ip(), hops).udp(source.port(), destination.port());
    finish(|bytes| builder.write(bytes, payload))
}

/// A TCP segment with the flags of its first byte as `S` (SYN), `A` (ACK) or `R` (RST).
pub(super) fn tcp(link: Link, source: SocketAddr, destination: SocketAddr, flags: &str, payload: &[u8]) -> Vec<u8> {
    let mut builder = ip(link, source.ip(), destination.ip(), 64).tcp(source.port(), destination.port(), 77, 4096);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(88),
            _ => builder.rst(),
        };
    }
    finish(|bytes| builder.write(bytes, payload))
}

/// An IP packet of any protocol; the payload as it is.
pub(super) fn raw(link: Link, source: IpAddr, destination: IpAddr, hops: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let builder = ip(link, source, destination, hops);
    finish(|bytes| builder.write(bytes, IpNumber(protocol), payload))
}

/// An ICMPv6 message of type `kind`.
pub(super) fn icmpv6(link: Link, source: IpAddr, destination: IpAddr, hops: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let builder = ip(link, source, destination, hops).icmpv6_raw(kind, 0, [0; 4]);
    finish(|bytes| builder.write(bytes, body))
}

/// An ARP request of `sender` for `target`.
pub(super) fn arp(link: Link, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &link.from,
        &sender,
        &[0; 6],
        &target,
    )
    .expect("lengths of Ethernet and IPv4");
    finish(|bytes| PacketBuilder::ethernet2(link.from, link.to).arp(packet).write(bytes))
}

/// What VXLAN (RFC 7348) carries in UDP: its header with `vni`, and the frame.
pub(super) fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend_from_slice(&(vni << 8).to_be_bytes());
    bytes.extend_from_slice(inner);
    bytes
}

/// The frame with VLAN tags (outermost first) behind its addresses.
pub(super) fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat());
    frame[..12].iter().copied().chain(tags).chain(frame[12..].iter().copied()).collect()
}

/// The IPv4 frame with these options, a multiple of 4 bytes, behind its fixed header.
pub(super) fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes.splice(ETHERNET + 20..ETHERNET + 20, options.iter().copied());
    bytes[ETHERNET] = 0x40 | u8::try_from(5 + options.len() / 4).unwrap_or(15);
    let total = u16::try_from(bytes.len() - ETHERNET).unwrap_or(u16::MAX);
    bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
    seal(&mut bytes);
    bytes
}

/// A datagram's payload (from the transport header on) in pieces, the first of `first` bytes (a multiple of 8).
pub(super) fn fragments(frame: &[u8], id: u32, first: usize) -> [Vec<u8>; 2] {
    if frame[12..14] == [0x08, 0x00] { fragments_v4(frame, id, first) } else { fragments_v6(frame, id, first) }
}

fn fragments_v4(frame: &[u8], id: u32, first: usize) -> [Vec<u8>; 2] {
    let (header, payload) = frame.split_at(ETHERNET + 20);
    let piece = |offset: usize, part: &[u8], more: bool| {
        let mut bytes = [header, part].concat();
        let bits = u16::try_from(offset / 8).unwrap_or(0) | if more { 0x2000 } else { 0 };
        let total = u16::try_from(20 + part.len()).unwrap_or(u16::MAX);
        bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
        bytes[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes()[2..]);
        bytes[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&bits.to_be_bytes());
        seal(&mut bytes);
        bytes
    };
    [piece(0, &payload[..first], true), piece(first, &payload[first..], false)]
}

fn fragments_v6(frame: &[u8], id: u32, first: usize) -> [Vec<u8>; 2] {
    let (header, payload) = frame.split_at(ETHERNET + 40);
    let piece = |offset: usize, part: &[u8], more: bool| {
        let bits = u16::try_from(offset).unwrap_or(0) | u16::from(more);
        let mut extension = vec![header[ETHERNET + 6], 0];
        extension.extend_from_slice(&bits.to_be_bytes());
        extension.extend_from_slice(&id.to_be_bytes());
        let mut bytes = [header, &extension, part].concat();
        bytes[ETHERNET + 6] = 44;
        let length = u16::try_from(8 + part.len()).unwrap_or(u16::MAX);
        bytes[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    [piece(0, &payload[..first], true), piece(first, &payload[first..], false)]
}

/// Writes the checksum of the IPv4 header.
fn seal(bytes: &mut [u8]) {
    let end = ETHERNET + usize::from(bytes[ETHERNET] & 0xf) * 4;
    bytes[ETHERNET + 10..ETHERNET + 12].fill(0);
    let mut sum: u32 =
        bytes[ETHERNET..end].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
    bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
}
