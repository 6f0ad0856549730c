// SPDX-License-Identifier: Apache-2.0
//! Parsing, with etherparse as the oracle, and on any bytes at all.

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use proptest::prelude::*;
use weft_abi::DropReason;
use weft_logic::header::{self, ETHERNET, Kind, Piece, Transport};

use crate::world::Bytes;

/// As the programs do it: near where it can be, else far.
fn parse(bytes: &[u8]) -> Result<Transport, DropReason> {
    let frame = Bytes(bytes);
    if bytes.get(12..14) == Some(&[8, 0]) {
        match header::ipv4(&frame)?.1 {
            Some(transport) => Ok(transport),
            None => header::ipv4_far(&frame),
        }
    } else {
        match header::ipv6(&frame)?.1 {
            Some(transport) => Ok(transport),
            None => header::ipv6_far(&frame),
        }
    }
}

fn v4_headers() -> impl Strategy<Value = IpHeaders> {
    (any::<[u8; 4]>(), any::<[u8; 4]>(), 0..=10_usize, any::<u16>()).prop_map(|(src, dst, words, id)| {
        let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, src, dst).expect("short");
        header.options = Ipv4Options::try_from([1_u8; 40].get(..words * 4).expect("short")).expect("whole words");
        header.identification = id;
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    })
}

fn v6_headers() -> impl Strategy<Value = IpHeaders> {
    let raw =
        || {
            prop::option::of((0..12_usize).prop_map(|len| {
                Ipv6RawExtHeader::new_raw(IpNumber::UDP, &vec![0; 6 + len * 8]).expect("within the limit")
            }))
        };
    let fragment = prop::option::of(any::<u32>());
    (any::<[u8; 16]>(), any::<[u8; 16]>(), raw(), raw(), fragment).prop_map(|(source, destination, hop, dst, id)| {
        let header = Ipv6Header { source, destination, hop_limit: 64, ..Ipv6Header::default() };
        let fragment = id.map(|id| Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, false, id));
        let extensions =
            Ipv6Extensions { hop_by_hop_options: hop, destination_options: dst, fragment, ..Ipv6Extensions::default() };
        IpHeaders::Ipv6(header, extensions)
    })
}

/// A packet that etherparse built.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let headers = prop_oneof![v4_headers().boxed(), v6_headers().boxed()];
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    (headers, 0..3_u8, any::<[u16; 2]>(), any::<u8>(), payload).prop_map(|(headers, kind, [a, b], flags, payload)| {
        let is_v4 = matches!(headers, IpHeaders::Ipv4(..));
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ip(headers);
        let mut out = Vec::new();
        match kind {
            0 => builder.udp(a, b).write(&mut out, &payload),
            1 => {
                let mut tcp = etherparse::TcpHeader::new(a, b, 1, 2);
                (tcp.fin, tcp.syn, tcp.rst, tcp.ack) =
                    (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0, flags & 16 != 0);
                builder.tcp_header(tcp).write(&mut out, &payload)
            }
            _ if is_v4 => builder.icmpv4_echo_request(a, b).write(&mut out, &payload),
            _ => builder.icmpv6_echo_request(a, b).write(&mut out, &payload),
        }
        .expect("write into memory");
        out
    })
}

fn offset_of(outer: &[u8], inner: &[u8]) -> usize {
    inner.as_ptr() as usize - outer.as_ptr() as usize
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_etherparse_builds_is_found_where_it_finds_it(bytes in packets()) {
        let ours = parse(&bytes).expect("a good packet");
        let sliced = SlicedPacket::from_ethernet(&bytes).expect("a good packet");
        let payload = match sliced.net.as_ref().expect("IP") {
            NetSlice::Ipv4(slice) => slice.payload().clone(),
            NetSlice::Ipv6(slice) => slice.payload().clone(),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!((ours.protocol, ours.offset), (payload.ip_number.0, offset_of(&bytes, payload.payload)));
        prop_assert_eq!((ours.piece, ours.kind), (Piece::Whole, Kind::FLOW));
        let ports = (u16::from_be(ours.sport), u16::from_be(ours.dport));
        match sliced.transport.expect("a transport header") {
            TransportSlice::Udp(udp) => prop_assert_eq!(ports, (udp.source_port(), udp.destination_port())),
            TransportSlice::Tcp(tcp) => {
                prop_assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
                let flags = (ours.flags.syn(), ours.flags.ack(), ours.flags.fin_or_rst());
                prop_assert_eq!(flags, (tcp.syn(), tcp.ack(), tcp.fin() || tcp.rst()));
            }
            TransportSlice::Icmpv4(icmp) => prop_assert_eq!(ports.0.to_be_bytes().to_vec(), icmp.slice()[4..6].to_vec()),
            TransportSlice::Icmpv6(icmp) => prop_assert_eq!(ports.0.to_be_bytes().to_vec(), icmp.slice()[4..6].to_vec()),
            other @ TransportSlice::Igmp(_) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cut_packet_is_refused(bytes in packets(), cut in any::<prop::sample::Index>()) {
        let len = ETHERNET + cut.index(bytes.len() - ETHERNET);
        prop_assert!(parse(&bytes[..len]).is_err(), "{} of {} bytes", len, bytes.len());
    }

    #[test]
    fn any_bytes_are_parsed_within_the_frame_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 14..200),
        is_v4 in any::<bool>(),
        version in any::<bool>(),
    ) {
        let mut bytes = bytes;
        bytes[12..14].copy_from_slice(if is_v4 { &[8, 0] } else { &[0x86, 0xdd] });
        if let Some(first) = bytes.get_mut(14).filter(|_| version) {
            *first = if is_v4 { 0x40 | (*first & 0xf) } else { 0x60 };
        }
        if let Ok(transport) = parse(&bytes) && transport.piece != Piece::Later {
            let needed = match transport.protocol { 6 => 20, 17 | 132 | 1 | 58 => 8, _ => 0 };
            prop_assert!(transport.offset + needed <= bytes.len(), "{:?} of {} bytes", transport, bytes.len());
        }
    }

    #[test]
    fn mutated_packets_are_parsed_within_the_frame_or_refused(
        bytes in packets(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = bytes;
        for (at, value) in changes {
            let at = ETHERNET + at.index(bytes.len() - ETHERNET);
            bytes[at] = value;
        }
        if let Ok(transport) = parse(&bytes) && transport.piece != Piece::Later {
            let needed = match transport.protocol { 6 => 20, 17 | 132 | 1 | 58 => 8, _ => 0 };
            prop_assert!(transport.offset + needed <= bytes.len(), "{:?} of {} bytes", transport, bytes.len());
        }
    }
}

/// A last extension header that says it is longer than the packet, before a protocol without a header that is read.
#[test]
fn an_extension_header_beyond_the_end_is_refused() {
    const DESTINATION_OPTIONS: u8 = 60;
    const IGMP: u8 = 2;
    for (words, fits) in [(0, true), (1, false)] {
        let mut bytes = vec![0; ETHERNET + 40 + 8];
        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        bytes[14] = 0x60;
        bytes[18..21].copy_from_slice(&[0, 8, DESTINATION_OPTIONS]);
        bytes[54..56].copy_from_slice(&[IGMP, words]);
        assert_eq!(parse(&bytes).map(|found| found.offset), if fits { Ok(62) } else { Err(DropReason::BadHeader) });
    }
}
