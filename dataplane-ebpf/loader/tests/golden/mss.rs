// SPDX-License-Identifier: Apache-2.0
//! The largest TCP segment that both sides name: lowered to what the way takes where that is asked for, in SYNs alone.

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HOST_IP, NATIVE_IP, Node, OUTSIDE_IP, OVERLAY, REDIRECT, SERVER_IP, UPLINK, mac,
    },
    packet::{ACK, L4, SYN, SYN_ACK, check_transport, frame, ip, ip_headers, pseudo_header, sum, word},
    support::ip as run_ip,
};

/// A TCP packet with these options and some data; the checksum is right also where they are of no whole words.
fn tcp(src: (&str, u16), dst: (&str, u16), flags: u8, words: u8, options: &[u8]) -> Vec<u8> {
    let (from, to) = (ip(src.0), ip(dst.0));
    let mut packet = frame(mac(CLIENT), ip_headers(from, to), L4::Tcp(src.1, dst.1, flags), options);
    let header = if from.is_ipv4() { 34 } else { 54 };
    packet[header + 12] = words << 4;
    packet[header + 16..header + 18].fill(0);
    let pseudo = pseudo_header(from, to, 6, packet.len() - header);
    let checksum = !sum(&[&pseudo, &packet[header..]]);
    packet[header + 16..header + 18].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Lets the ways out take this much.
fn with_mtus(node: &Node, clamp: u16) {
    for (device, mtu) in [(UPLINK, "1400"), (OVERLAY, "1350")] {
        run_ip(&["link", "set", &format!("port{device}"), "mtu", mtu]);
    }
    node.reconfigure(|config| config.mss_clamp = clamp);
}

const OPTION: [u8; 4] = [2, 4, 0x05, 0xb4];
const NAMED: u16 = 1460;

#[test]
fn what_leaves_and_what_answers_names_no_more_than_the_way_takes() {
    let node = Node::new();
    for (clamp, device, tunnel) in [(0, NAMED + 40, NAMED + 40), (u16::MAX, 1400, 1350), (1200, 1240, 1240)] {
        with_mtus(&node, clamp);
        for family in 0..2 {
            // A number is the segment's own, of either family.
            let headers = if matches!(clamp, 0 | 1200) { 40 } else { [40, 60][family] };
            let client = (CLIENT_IP[family], 4000 + clamp % 100);
            let named = |packet: &[u8]| {
                // Parsing checks the checksum.
                word(&node.from_workload(CLIENT, packet).redirected().transport, 22)
            };
            for (dst, mtu) in [(OUTSIDE_IP, device), (NATIVE_IP, device), (FAR_IP, tunnel)] {
                for _ in 0..2 {
                    let sent = tcp(client, (dst[family], 80), SYN, 6, &OPTION);
                    assert_eq!(named(&sent), mtu - headers, "to {} at {clamp}", dst[family]);
                }
                assert_eq!(named(&tcp(client, (dst[family], 80), SYN_ACK, 6, &OPTION)), mtu - headers, "as a server");
                let low = tcp(client, (dst[family], 81), SYN, 6, &[2, 4, 0x02, 0x18]);
                assert_eq!(named(&low), 536, "never raised");
                assert_eq!(named(&tcp(client, (dst[family], 80), ACK, 6, &OPTION)), NAMED, "data like that");
            }
            assert_eq!(named(&tcp(client, (SERVER_IP[family], 80), SYN, 6, &OPTION)), NAMED, "on the node");
            let sport = node.from_workload(CLIENT, &tcp(client, (OUTSIDE_IP[family], 80), SYN, 6, &OPTION));
            let sport = sport.redirected().tuple.sport;
            let answer = tcp((OUTSIDE_IP[family], 80), (HOST_IP[family], sport), SYN_ACK, 6, &OPTION);
            let seen = node.from_uplink(&answer).redirected();
            assert_eq!((word(&seen.transport, 22), seen.tuple.dst), (device - headers, ip(CLIENT_IP[family])));
            // The host's own.
            let answer = tcp((OUTSIDE_IP[family], 80), (HOST_IP[family], 50_000), SYN_ACK, 6, &OPTION);
            node.from_uplink(&answer).passed(&answer);
        }
        node.flush();
    }
}

#[test]
fn options_as_nobody_should_write_them_are_left_alone_and_no_byte_beside_them_changes() {
    let node = Node::new();
    with_mtus(&node, u16::MAX);
    let fits = |family: usize| [1360_u16, 1340][family].to_be_bytes();
    // Options, length of the header in words as it says, and where a value is lowered.
    let cases: [(&[u8], u8, &[usize]); 11] = [
        (&[1, 2, 4, 0xff, 0xff, 0, 0, 0], 7, &[3]),
        (&[2, 4, 9, 9, 1, 2, 4, 9, 9, 0, 0, 0], 8, &[2, 7]),
        (&[8, 0, 2, 4, 9, 9, 0, 0], 7, &[]),
        (&[8, 1, 2, 4, 9, 9, 0, 0], 7, &[]),
        (&[8, 60, 2, 4, 9, 9, 0, 0], 7, &[]),
        (&[0, 2, 4, 9, 9, 0, 0, 0], 7, &[]),
        (&[2, 5, 9, 9, 9, 0, 0, 0], 7, &[]),
        (&[1, 1, 1, 2, 4, 9, 9, 9], 6, &[]),
        (&[1, 1, 2, 4, 9], 15, &[]),
        (&[2, 4, 9, 9], 15, &[2]),
        (&[1; 40], 15, &[]),
    ];
    for family in 0..2 {
        for (index, (options, words, lowered)) in cases.iter().enumerate() {
            let port = 5000 + u16::try_from(index).unwrap();
            let sent = tcp((CLIENT_IP[family], port), (NATIVE_IP[family], 80), SYN, *words, options);
            let outcome = node.from_workload(CLIENT, &sent);
            assert_eq!((outcome.action, outcome.drops.len()), (REDIRECT, 0), "{outcome:?}");
            // Headers that are longer than their packet nobody else reads.
            let segment = &outcome.bytes[[34, 54][family]..];
            check_transport(ip(CLIENT_IP[family]), ip(NATIVE_IP[family]), 6, segment);
            let mut expected = options.to_vec();
            for at in lowered.iter().copied() {
                expected[at..at + 2].copy_from_slice(&fits(family));
            }
            assert_eq!(segment[20..], expected, "{options:?}");
            assert_eq!(outcome.bytes.len(), sent.len());
        }
    }
}

/// Behind options of the IP header, and extension headers.
#[test]
fn a_tcp_header_is_found_wherever_it_is() {
    let node = Node::new();
    with_mtus(&node, u16::MAX);
    let mut v4 = tcp((CLIENT_IP[0], 4000), (NATIVE_IP[0], 80), SYN, 6, &OPTION);
    v4.splice(34..34, [1; 8]);
    v4[14] = 0x47;
    let total = u16::try_from(v4.len() - 14).unwrap();
    v4[16..18].copy_from_slice(&total.to_be_bytes());
    v4[24..26].fill(0);
    let checksum = !sum(&[&v4[14..42]]);
    v4[24..26].copy_from_slice(&checksum.to_be_bytes());
    let mut v6 = tcp((CLIENT_IP[1], 4000), (NATIVE_IP[1], 80), SYN, 6, &OPTION);
    v6.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    v6[20] = 60;
    v6[19] += 8;
    for (packet, most) in [(v4, 1360), (v6, 1340)] {
        assert_eq!(word(&node.from_workload(CLIENT, &packet).redirected().transport, 22), most);
    }
}
