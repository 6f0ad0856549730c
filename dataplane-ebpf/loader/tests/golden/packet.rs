// SPDX-License-Identifier: Apache-2.0
//! Packets in and out. What a program leaves is parsed, and every checksum of it computed anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket};
use weft_abi::GATEWAY_MAC;

/// The address as people write it.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What follows the IP header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum L4 {
    Udp(u16, u16),
    /// Ports and flags.
    Tcp(u16, u16, u8),
    /// Identifier.
    Echo(u16),
    EchoReply(u16),
    Sctp(u16, u16),
}

pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN_ACK: u8 = 0x11;
pub(crate) const RST: u8 = 0x14;

/// IP headers without options.
pub(crate) fn ip_headers(src: IpAddr, dst: IpAddr) -> IpHeaders {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header::new(0, 64, IpNumber::UDP, src.octets(), dst.octets()).expect("short");
            IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header =
                Ipv6Header { hop_limit: 64, source: src.octets(), destination: dst.octets(), ..Ipv6Header::default() };
            IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
        }
        _ => panic!("{src} and {dst} are of two families"),
    }
}

/// A frame to the gateway.
pub(crate) fn frame(mac: [u8; 6], headers: IpHeaders, l4: L4, payload: &[u8]) -> Vec<u8> {
    let is_v4 = matches!(headers, IpHeaders::Ipv4(..));
    let builder = PacketBuilder::ethernet2(mac, GATEWAY_MAC).ip(headers);
    let mut out = Vec::new();
    match l4 {
        L4::Sctp(sport, dport) => {
            let mut bytes = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
            bytes.extend([0, 0, 0, 9, 0, 0, 0, 0]);
            bytes.extend(payload);
            let crc = crc32c(&bytes);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            builder.write(&mut out, IpNumber::SCTP, &bytes)
        }
        L4::Udp(sport, dport) => builder.udp(sport, dport).write(&mut out, payload),
        L4::Tcp(sport, dport, flags) => {
            let mut header = etherparse::TcpHeader::new(sport, dport, 1, 1024);
            header.fin = flags & 1 != 0;
            header.syn = flags & 2 != 0;
            header.rst = flags & 4 != 0;
            header.ack = flags & 16 != 0;
            builder.tcp_header(header).write(&mut out, payload)
        }
        L4::Echo(id) if is_v4 => builder.icmpv4_echo_request(id, 7).write(&mut out, payload),
        L4::Echo(id) => builder.icmpv6_echo_request(id, 7).write(&mut out, payload),
        L4::EchoReply(id) if is_v4 => builder.icmpv4_echo_reply(id, 7).write(&mut out, payload),
        L4::EchoReply(id) => builder.icmpv6_echo_reply(id, 7).write(&mut out, payload),
    }
    .expect("write into memory");
    out
}

/// Addresses and ports of a packet, without its Ethernet header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tuple {
    pub(crate) src: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dst: IpAddr,
    pub(crate) dport: u16,
}

/// A tuple as people write it.
pub(crate) fn tuple(src: &str, sport: u16, dst: &str, dport: u16) -> Tuple {
    Tuple { src: ip(src), sport, dst: ip(dst), dport }
}

/// A packet that a program left, found to be whole.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src_mac: [u8; 6],
    /// Ports of TCP, UDP and SCTP, else 0.
    pub(crate) tuple: Tuple,
    pub(crate) protocol: u8,
    /// Bytes from the transport header on.
    pub(crate) transport: Vec<u8>,
    /// A fragment, first or later.
    pub(crate) fragment: bool,
}

/// Parses a packet and checks every checksum of it.
pub(crate) fn parse(bytes: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(bytes).expect("a packet that etherparse takes");
    let (src, dst, payload) = match sliced.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(slice) => {
            let header = slice.header();
            assert_eq!(sum(&[header.slice()]), 0xffff, "IPv4 header checksum of {bytes:02x?}");
            (header.source_addr().into(), header.destination_addr().into(), slice.payload())
        }
        NetSlice::Ipv6(slice) => {
            let header = slice.header();
            (header.source_addr().into(), header.destination_addr().into(), slice.payload())
        }
        other => panic!("not IP: {other:?}"),
    };
    let protocol = payload.ip_number.0;
    let transport = payload.payload.to_vec();
    if !payload.fragmented {
        check_transport(src, dst, protocol, &transport);
    }
    let (sport, dport) = match protocol {
        6 | 17 | 132 => (word(&transport, 0), word(&transport, 2)),
        _ => (0, 0),
    };
    let tuple = Tuple { src, sport, dst, dport };
    let [dst_mac, src_mac] = [0, 6].map(|at| bytes[at..at + 6].try_into().expect("six bytes"));
    Seen { dst_mac, src_mac, tuple, protocol, transport, fragment: payload.fragmented }
}

/// The big-endian word at `at`, or 0 past the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |word| u16::from_be_bytes([word[0], word[1]]))
}

/// Checks a whole transport checksum; a UDP checksum of 0 over IPv4 is none.
pub(crate) fn check_transport(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) {
    if protocol == 17 && word(transport, 6) == 0 && src.is_ipv4() {
        return;
    }
    if protocol == 132 {
        let mut cleared = transport.to_vec();
        cleared[8..12].fill(0);
        assert_eq!(crc32c(&cleared).to_le_bytes(), transport[8..12], "checksum of SCTP: {transport:02x?}");
    }
    let found = match protocol {
        1 => sum(&[transport]),
        6 | 17 | 58 => sum(&[&pseudo_header(src, dst, protocol, transport.len()), transport]),
        _ => return,
    };
    assert_eq!(found, 0xffff, "checksum of protocol {protocol} from {src} to {dst}: {transport:02x?}");
}

/// RFC 768, RFC 9293 3.1, RFC 8200 8.1.
pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let len = u32::try_from(len).expect("short");
    let mut header = Vec::new();
    for ip in [src, dst] {
        match ip {
            IpAddr::V4(ip) => header.extend(ip.octets()),
            IpAddr::V6(ip) => header.extend(ip.octets()),
        }
    }
    header.extend(len.to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

/// Ones' complement sum (RFC 1071) of parts of even length, the last of any.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// RFC 9260, appendix A, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// The octets of an IPv4 address.
pub(crate) fn v4(ip: IpAddr) -> [u8; 4] {
    let IpAddr::V4(ip) = ip else { panic!("{ip} is not IPv4") };
    Ipv4Addr::octets(&ip)
}

/// The octets of an IPv6 address.
pub(crate) fn v6(ip: IpAddr) -> [u8; 16] {
    let IpAddr::V6(ip) = ip else { panic!("{ip} is not IPv6") };
    Ipv6Addr::octets(&ip)
}
