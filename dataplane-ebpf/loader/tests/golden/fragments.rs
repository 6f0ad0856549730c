// SPDX-License-Identifier: Apache-2.0
//! Options, extension headers, datagrams in pieces: the transport header is found, translated, or there is a reason.

use std::collections::BTreeSet;

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Options, Ipv6FragmentHeader, Ipv6RawExtHeader,
    ip_number::{IPV6_DESTINATION_OPTIONS, IPV6_HEADER_HOP_BY_HOP},
};
use weft_abi::DropReason;

use crate::{
    node::{CLIENT, CLIENT_IP, NATIVE_IP, NATIVE_MAC, Node, OUTSIDE_IP, SERVER, SERVER_IP, VIP, VM_IP, mac},
    packet::{L4, SYN, Seen, frame, ip, ip_headers, sum, tuple, word},
};

/// Headers to the Service with hop-by-hop and destination options of `len` times 8 bytes more than their least size.
fn extended(len: usize, dst: &str) -> IpHeaders {
    let IpHeaders::Ipv6(header, mut extensions) = ip_headers(ip(CLIENT_IP[1]), ip(dst)) else { panic!("IPv6") };
    let padding = |len: usize| {
        let mut bytes = vec![0; 6 + len * 8];
        bytes[0] = 1;
        bytes[1] = u8::try_from((4 + len * 8) % 256).expect("a byte");
        bytes
    };
    let raw = |next: IpNumber| Ipv6RawExtHeader::new_raw(next, &padding(len)).expect("within the limit");
    extensions.hop_by_hop_options = Some(raw(IPV6_DESTINATION_OPTIONS));
    extensions.destination_options = Some(raw(IpNumber::UDP));
    let mut header = header;
    header.next_header = IPV6_HEADER_HOP_BY_HOP;
    IpHeaders::Ipv6(header, extensions)
}

#[test]
fn ipv4_options_are_stepped_over() {
    let node = Node::new();
    for len in [4, 20, 40] {
        for l4 in [L4::Tcp(4000, 80, SYN), L4::Udp(4000, 80)] {
            let IpHeaders::Ipv4(mut header, extensions) = ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])) else {
                panic!("IPv4")
            };
            // No operation, all of them.
            header.options = Ipv4Options::try_from([1_u8; 40].get(..len).expect("short")).expect("whole words");
            let packet = frame(mac(CLIENT), IpHeaders::Ipv4(header, extensions), l4, b"optional");
            let seen = node.from_workload(CLIENT, &packet).redirected();
            assert_eq!(seen.tuple, tuple(CLIENT_IP[0], 4000, SERVER_IP[0], 8080));
            node.from_workload(CLIENT, &packet).hit().redirected();
        }
        node.flush();
    }
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    let node = Node::new();
    for len in [0, 1, 9] {
        for l4 in [L4::Tcp(4000, 80, SYN), L4::Udp(4000, 80)] {
            let packet = frame(mac(CLIENT), extended(len, VIP[1]), l4, b"extended");
            let seen = node.from_workload(CLIENT, &packet).redirected();
            assert_eq!(seen.tuple, tuple(CLIENT_IP[1], 4000, SERVER_IP[1], 8080));
            node.from_workload(CLIENT, &packet).hit().redirected();
        }
        let echo = frame(mac(CLIENT), extended(len, SERVER_IP[1]), L4::Echo(1), b"extended");
        node.from_workload(CLIENT, &echo).redirected();
        node.flush();
    }
}

#[test]
fn headers_too_long_or_too_many_are_refused() {
    let node = Node::new();
    // The transport header would start past byte 1023.
    let packet = frame(mac(CLIENT), extended(100, VIP[1]), L4::Udp(4000, 80), b"far");
    node.from_workload(CLIENT, &packet).dropped(DropReason::ExtensionHeaders);
    let mut chain = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])), L4::Udp(4000, 80), b"");
    for count in 0_u16..12 {
        let outcome = node.from_workload(CLIENT, &chain);
        if count < 8 {
            outcome.redirected();
        } else {
            outcome.dropped(DropReason::ExtensionHeaders);
        }
        let next = chain[20];
        chain.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        chain[20] = 60;
        let len = word(&chain, 18) + 8;
        chain[18..20].copy_from_slice(&len.to_be_bytes());
    }
    // Mobility, HIP, no next header: not followed.
    for next in [135, 139, 59] {
        let mut packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])), L4::Udp(4000, 80), b"12345678");
        packet[20] = next;
        node.from_workload(CLIENT, &packet).dropped(DropReason::ExtensionHeaders);
    }
}

/// A datagram of the client in two pieces: 24 bytes of the transport part, and the rest.
pub(crate) fn pieces(family: usize, dst: &str, l4: L4, id: u16) -> [Vec<u8>; 2] {
    pieces_of(CLIENT, CLIENT_IP[family], dst, l4, id)
}

/// [`pieces`] of any workload.
fn pieces_of(ifindex: u32, src: &str, dst: &str, l4: L4, id: u16) -> [Vec<u8>; 2] {
    let payload = b"0123456789abcdefghij";
    let family = usize::from(ip(src).is_ipv6());
    let sender = if src == NATIVE_IP[family] { NATIVE_MAC } else { mac(ifindex) };
    let whole = frame(sender, ip_headers(ip(src), ip(dst)), l4, payload);
    if family == 0 { pieces_v4(&whole, id) } else { pieces_v6(&whole, id) }
}

fn pieces_v4(whole: &[u8], id: u16) -> [Vec<u8>; 2] {
    [(0x2000_u16, &whole[34..58]), (3, &whole[58..])].map(|(fragment, data)| {
        let mut packet = [&whole[..34], data].concat();
        let len = u16::try_from(20 + data.len()).expect("short");
        packet[16..18].copy_from_slice(&len.to_be_bytes());
        packet[18..20].copy_from_slice(&id.to_be_bytes());
        packet[20..22].copy_from_slice(&fragment.to_be_bytes());
        packet[24..26].fill(0);
        let checksum = !sum(&[&packet[14..34]]);
        packet[24..26].copy_from_slice(&checksum.to_be_bytes());
        packet
    })
}

fn pieces_v6(whole: &[u8], id: u16) -> [Vec<u8>; 2] {
    [(0, true, &whole[54..78]), (3, false, &whole[78..])].map(|(offset, more, data)| {
        let offset = IpFragOffset::try_new(offset).expect("13 bits");
        let fragment = Ipv6FragmentHeader::new(IpNumber(whole[20]), offset, more, id.into()).to_bytes();
        let mut packet = [&whole[..54], &fragment, data].concat();
        packet[20] = 44;
        let len = u16::try_from(8 + data.len()).expect("short");
        packet[18..20].copy_from_slice(&len.to_be_bytes());
        packet
    })
}

/// The transport bytes of both pieces, put together.
pub(crate) fn assemble(seen: &[Seen; 2]) -> Vec<u8> {
    assert!(seen.iter().all(|seen| seen.fragment), "still in pieces");
    [seen[0].transport.clone(), seen[1].transport.clone()].concat()
}

#[test]
fn a_datagram_in_pieces_is_translated_as_one() {
    let node = Node::new();
    for family in 0..2 {
        for (id, l4) in [(1, L4::Udp(4000, 80)), (2, L4::Tcp(4000, 80, SYN))] {
            let pieces = pieces(family, VIP[family], l4, id);
            node.from_workload(CLIENT, &pieces[1]).dropped(DropReason::FragmentUnknown);
            let seen = [0, 1].map(|piece| node.from_workload(CLIENT, &pieces[piece]).redirected());
            assert!(seen.iter().all(|seen| seen.dst_mac == mac(SERVER) && seen.tuple.dst == ip(SERVER_IP[family])));
            let whole = assemble(&seen);
            assert_eq!((word(&whole, 0), word(&whole, 2)), (4000, 8080));
            crate::packet::check_transport(ip(CLIENT_IP[family]), ip(SERVER_IP[family]), seen[0].protocol, &whole);
            // Of another datagram nothing is known.
            let others = self::pieces(family, VIP[family], l4, id + 100);
            node.from_workload(CLIENT, &others[1]).dropped(DropReason::FragmentUnknown);
        }
    }
}

#[test]
fn a_masqueraded_datagram_in_pieces_keeps_its_port_and_echo_its_identifier() {
    let node = Node::new();
    for family in 0..2 {
        for (id, l4) in [(1, L4::Udp(4000, 80)), (2, L4::Echo(99))] {
            let pieces = pieces(family, OUTSIDE_IP[family], l4, id);
            let seen = [0, 1].map(|piece| node.from_workload(CLIENT, &pieces[piece]).redirected());
            assert_eq!(seen[0].tuple.src, seen[1].tuple.src);
            crate::packet::check_transport(seen[0].tuple.src, seen[0].tuple.dst, seen[0].protocol, &assemble(&seen));
        }
    }
}

#[test]
fn a_first_piece_without_its_ports_is_refused() {
    let node = Node::new();
    let [mut short, _] = pieces(0, VIP[0], L4::Tcp(4000, 80, SYN), 9);
    // 16 bytes hold no TCP header.
    short.truncate(34 + 16);
    short[16..18].copy_from_slice(&36_u16.to_be_bytes());
    node.from_workload(CLIENT, &short).dropped(DropReason::BadHeader);
}

#[test]
fn an_atomic_fragment_is_whole() {
    let node = Node::new();
    let whole = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])), L4::Udp(4000, 80), b"whole");
    let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, false, 5).to_bytes();
    let mut packet = [&whole[..54], &fragment, &whole[54..]].concat();
    packet[20] = 44;
    packet[19] += 8;
    let seen = node.from_workload(CLIENT, &packet).redirected();
    assert_eq!(seen.tuple, tuple(CLIENT_IP[1], 4000, SERVER_IP[1], 8080));
}

/// The identification of a piece.
fn id(family: usize, piece: &[u8]) -> u32 {
    if family == 0 { word(piece, 18).into() } else { u32::from_be_bytes(piece[58..62].try_into().expect("four bytes")) }
}

#[test]
fn masqueraded_pieces_of_two_workloads_never_have_one_identifier() {
    let node = Node::new();
    for family in 0..2 {
        let mut seen = BTreeSet::new();
        for round in 0..100 {
            // The same identifier, protocol and destination: the receiver would put together what is not one datagram's.
            for (ifindex, address) in [(CLIENT, CLIENT_IP[family]), (SERVER, SERVER_IP[family])] {
                let pieces = pieces_of(ifindex, address, OUTSIDE_IP[family], L4::Udp(4000, 80), 7 + round);
                let sent = [0, 1].map(|piece| {
                    let outcome = node.from_workload(ifindex, &pieces[piece]);
                    outcome.redirected();
                    id(family, &outcome.bytes)
                });
                assert_eq!(sent[0], sent[1], "the pieces of one datagram");
                assert!(seen.insert(sent[0]), "{} was given twice", sent[0]);
            }
        }
    }
}

#[test]
fn a_first_piece_that_comes_twice_keeps_its_identifier_and_one_to_a_workload_too() {
    let node = Node::new();
    for family in 0..2 {
        let pieces = pieces(family, OUTSIDE_IP[family], L4::Udp(4000, 80), 7);
        let sent = [0, 0, 1].map(|piece| id(family, &node.from_workload(CLIENT, &pieces[piece]).bytes));
        assert!(sent[0] == sent[1] && sent[0] == sent[2], "{sent:?}");
        let pieces = self::pieces(family, SERVER_IP[family], L4::Udp(4000, 80), 7);
        for piece in &pieces {
            assert_eq!(id(family, &node.from_workload(CLIENT, piece).bytes), 7, "not masqueraded");
        }
    }
}

#[test]
fn pieces_of_one_workload_push_out_its_own_only() {
    let node = Node::new();
    let [first, last] = pieces_of(SERVER, SERVER_IP[0], CLIENT_IP[0], L4::Udp(4000, 80), 1);
    node.from_workload(SERVER, &first).redirected();
    for id in 0..3000 {
        let [flood, _] = pieces(0, SERVER_IP[0], L4::Udp(4000, 80), id);
        node.from_workload(CLIENT, &flood).redirected();
    }
    node.from_workload(SERVER, &last).redirected();
    let of_client = node.maps().fragments().iter().map(Result::unwrap).filter(|(key, _)| key.ifindex == CLIENT).count();
    assert_eq!(of_client, weft_abi::FRAGMENT_SLOTS as usize);
    // And those from other nodes to one workload push out none to another.
    let [first, last] = pieces_of(SERVER, NATIVE_IP[0], CLIENT_IP[0], L4::Udp(4000, 80), 1);
    node.from_uplink(&first).redirected();
    for id in 0..3000 {
        let [flood, _] = pieces_of(SERVER, NATIVE_IP[0], VM_IP[0], L4::Udp(4000, 80), id);
        node.from_uplink(&flood).redirected();
    }
    node.from_uplink(&last).redirected();
}
