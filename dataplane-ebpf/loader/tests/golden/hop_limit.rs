// SPDX-License-Identifier: Apache-2.0
//! Time to live: one less beyond the node, and an answer where none is left.

use weft_abi::{Counter, DropReason, GATEWAY_MAC, OVERLAY_MAC};
use weft_dataplane::{Arrival, Program};

use crate::{
    node::{CLIENT, CLIENT_IP, FAR_IP, HOST_IP, HOST_MAC, NATIVE_IP, Node, OUTSIDE_IP, REDIRECT, SERVER_IP, mac},
    packet::{ACK, L4, SYN, check_transport, frame, ip, ip_headers, parse, sum, word},
};

/// Where IPv4 has its time to live, and IPv6 its hop limit.
const HOPS: [usize; 2] = [22, 21];

/// A packet of the client's that may pass this many routers.
fn sent(family: usize, dst: &str, hops: u8, l4: L4) -> Vec<u8> {
    let mut packet =
        frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(dst)), l4, b"some data, more than is quoted");
    packet[HOPS[family]] = hops;
    if family == 0 { summed(packet) } else { packet }
}

/// A packet of IPv4 whose header was changed, with its checksum.
fn summed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[24..26].fill(0);
    let checksum = !sum(&[&packet[14..34]]);
    packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The MTU of devices in the sandbox.
const DEVICE: usize = 1500;

#[test]
fn beyond_the_node_a_packet_has_passed_one_router() {
    let node = Node::new();
    for family in 0..2 {
        for dst in [FAR_IP[family], NATIVE_IP[family], OUTSIDE_IP[family]] {
            // A new flow, and an established one.
            for hops in [64, 2] {
                let outcome = node.from_workload(CLIENT, &sent(family, dst, hops, L4::Udp(4000, 53)));
                outcome.redirected();
                assert_eq!(outcome.bytes[HOPS[family]], hops - 1, "to {dst}");
            }
        }
        let outcome = node.from_workload(CLIENT, &sent(family, SERVER_IP[family], 1, L4::Udp(4000, 53)));
        outcome.redirected();
        assert_eq!(outcome.bytes[HOPS[family]], 1, "on the node there is no router");
    }
}

#[test]
fn a_packet_whose_time_is_over_is_answered() {
    let node = Node::new();
    for family in 0..2 {
        for (dst, hops, l4) in [
            (OUTSIDE_IP[family], 1, L4::Udp(4000, 33_434)),
            (OUTSIDE_IP[family], 0, L4::Tcp(4000, 80, SYN)),
            (FAR_IP[family], 1, L4::Echo(7)),
        ] {
            let packet = sent(family, dst, hops, l4);
            let outcome = node.from_workload(CLIENT, &packet);
            assert_eq!((outcome.action, outcome.drops.len()), (REDIRECT, 0), "{outcome:?}");
            assert!(outcome.counts.contains(&(Counter::IcmpAnswered, 1)), "{outcome:?}");
            outcome.marked(true);
            let seen = parse(&outcome.bytes);
            assert_eq!((seen.dst_mac, seen.src_mac), (mac(CLIENT), GATEWAY_MAC));
            assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(HOST_IP[family]), ip(CLIENT_IP[family])));
            let (protocol, kind, header) = [(1, 11, 20), (58, 3, 40)][family];
            assert_eq!((seen.protocol, &seen.transport[..2]), (protocol, [kind, 0].as_slice()));
            check_transport(seen.tuple.src, seen.tuple.dst, protocol, &seen.transport);
            assert_eq!(seen.transport[4..8], [0; 4], "unused");
            let quoted = if matches!(l4, L4::Tcp(..)) { 20 } else { 8 };
            assert_eq!(seen.transport[8..], packet[14..14 + header + quoted], "the packet as it came");
        }
    }
}

#[test]
fn later_fragments_and_what_has_options_end_without_an_answer() {
    let node = Node::new();
    let mut options = sent(0, OUTSIDE_IP[0], 1, L4::Udp(4000, 53));
    options.splice(34..34, [148, 4, 0, 0]);
    options[14] = 0x46;
    let total = u16::try_from(options.len() - 14).expect("short");
    options[16..18].copy_from_slice(&total.to_be_bytes());
    node.from_workload(CLIENT, &options).dropped(DropReason::HopLimit);
}

/// Path MTU discovery (RFC 1191, RFC 8201): who sends more than the way out takes is told how much that is.
#[test]
fn a_packet_that_is_too_big_is_answered_with_what_fits() {
    let node = Node::new();
    node.reconfigure(|config| config.mtu = 1400);
    for family in 0..2 {
        let header = [20, 40][family] + 8;
        let sized = |dst: &str, size: usize| {
            let headers = ip_headers(ip(CLIENT_IP[family]), ip(dst));
            frame(mac(CLIENT), headers, L4::Udp(4000, 53), &vec![7; size - header])
        };
        for dst in [OUTSIDE_IP[family], FAR_IP[family], NATIVE_IP[family]] {
            for size in [1400, DEVICE] {
                node.from_workload(CLIENT, &sized(dst, size)).redirected();
            }
            let outcome = node.from_workload(CLIENT, &sized(dst, DEVICE + 1));
            assert_eq!((outcome.action, outcome.drops.len()), (REDIRECT, 0), "{outcome:?}");
            outcome.marked(true);
            let seen = parse(&outcome.bytes);
            assert_eq!((seen.dst_mac, seen.tuple.dst), (mac(CLIENT), ip(CLIENT_IP[family])));
            assert_eq!(&seen.transport[..2], [[3, 4], [2, 0]][family]);
            assert_eq!(usize::from(word(&seen.transport, 6)), DEVICE);
        }
        // On the node nothing is routed.
        node.from_workload(CLIENT, &sized(SERVER_IP[family], DEVICE + 1)).redirected();
    }
}

/// Who was started with a larger MTU than workloads have now, and hears of it: by every way, also of segments that the kernel is to
/// cut.
#[test]
fn what_is_larger_than_the_configured_mtu_is_answered_by_every_way() {
    for workload_mtu in [1400, 0] {
        // As configured, or of the devices themselves.
        larger_than_a_way_takes(workload_mtu, if workload_mtu == 0 { DEVICE } else { 1400 });
    }
}

fn larger_than_a_way_takes(workload_mtu: u16, most: usize) {
    let node = Node::new();
    for family in 0..2 {
        node.reconfigure(|config| (config.mtu, config.workload_mtu) = (1400, workload_mtu));
        let headers = [20, 40][family] + 20;
        for dst in [OUTSIDE_IP[family], FAR_IP[family], NATIVE_IP[family]] {
            let sent = |payload: usize, segment: u32| {
                let packet = frame(
                    mac(CLIENT),
                    ip_headers(ip(CLIENT_IP[family]), ip(dst)),
                    L4::Tcp(4000, 80, ACK),
                    &vec![7; payload],
                );
                let arrival = Arrival { ifindex: CLIENT, received_by: CLIENT, segment, ..Arrival::default() };
                let outcome = node.send_as(Program::FromWorkload, &packet, arrival);
                assert_eq!((outcome.action, outcome.drops.len()), (REDIRECT, 0), "{outcome:?}");
                if !outcome.counts.contains(&(Counter::IcmpAnswered, 1)) {
                    return None;
                }
                let seen = parse(&outcome.bytes);
                assert_eq!((seen.dst_mac, &seen.transport[..2]), (mac(CLIENT), [[3, 4], [2, 0]][family].as_slice()));
                Some(word(&seen.transport, 6))
            };
            assert_eq!(sent(most - headers, 0), None);
            assert_eq!(sent(most + 1 - headers, 0), Some(u16::try_from(most).unwrap()));
            let segment = u32::try_from(most - headers).unwrap();
            assert_eq!(sent(2900, segment), None, "{dst}");
            assert_eq!(sent(2900, segment + 1), Some(u16::try_from(most).unwrap()), "{dst}");
        }
        // The device's own, where that is less.
        node.reconfigure(|config| (config.mtu, config.workload_mtu) = (1400, 9000));
        let packet = frame(
            mac(CLIENT),
            ip_headers(ip(CLIENT_IP[family]), ip(OUTSIDE_IP[family])),
            L4::Udp(4000, 80),
            &vec![7; 1600],
        );
        assert_eq!(word(&parse(&node.from_workload(CLIENT, &packet).bytes).transport, 6), 1500);
    }
}

/// What routers may cut, of this many bytes behind its Ethernet header.
fn may_be_cut(dst: &str, size: usize) -> Vec<u8> {
    let headers = ip_headers(ip(CLIENT_IP[0]), ip(dst));
    let mut packet = frame(mac(CLIENT), headers, L4::Udp(4000, 53), &vec![7; size - 28]);
    packet[20] = 0;
    summed(packet)
}

/// What the stack cuts has the identification of the packet: were it the workload's own, another one behind the same address could
/// choose its own so that its pieces are taken for somebody else's.
#[test]
fn a_packet_that_is_cut_for_a_workload_has_an_identification_of_the_nodes() {
    let node = Node::new();
    node.reconfigure(|config| config.mtu = 1400);
    let sent = |dst: &str| {
        let outcome = node.from_workload(CLIENT, &may_be_cut(dst, 3000));
        outcome.redirected();
        assert_eq!(sum(&[&outcome.bytes[14..34]]), 0xffff, "the header's checksum");
        [outcome.bytes[18], outcome.bytes[19]]
    };
    let masqueraded: std::collections::BTreeSet<_> = (0..20).map(|_| sent(OUTSIDE_IP[0])).collect();
    assert_eq!(masqueraded.len(), 20, "each has one of its own");
    let own = may_be_cut(NATIVE_IP[0], 3000);
    assert_eq!(sent(NATIVE_IP[0])[..], own[18..20], "under its own address it may choose");
}

/// RFC 791: routers cut what is too big and may be cut. The host's stack does, once the packet is translated, and is the one
/// router that it passes; towards another node's workloads what encapsulates it is cut.
#[test]
fn a_packet_that_is_too_big_and_may_be_cut_goes_on() {
    let node = Node::new();
    node.reconfigure(|config| config.mtu = 1400);
    for (dst, src) in [(OUTSIDE_IP[0], HOST_IP[0]), (NATIVE_IP[0], CLIENT_IP[0])] {
        for size in [1501, 3000] {
            let outcome = node.from_workload(CLIENT, &may_be_cut(dst, size));
            let seen = outcome.redirected();
            assert_eq!((seen.dst_mac, seen.src_mac), (HOST_MAC, GATEWAY_MAC));
            assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(src), ip(dst)));
            assert_eq!((outcome.bytes[HOPS[0]], outcome.bytes.len()), (64, size + 14));
            outcome.marked(false);
        }
        let outcome = node.from_workload(CLIENT, &may_be_cut(dst, 1500));
        assert_ne!(outcome.redirected().dst_mac, HOST_MAC, "it fits");
        assert_eq!(outcome.bytes[HOPS[0]], 63);
    }
    let outcome = node.from_workload(CLIENT, &may_be_cut(FAR_IP[0], 3000));
    assert_eq!(outcome.redirected().src_mac, OVERLAY_MAC);
    assert_eq!(outcome.bytes[HOPS[0]], 63);
    // Its time is over, all the same.
    let mut last = may_be_cut(OUTSIDE_IP[0], 3000);
    last[HOPS[0]] = 1;
    assert!(node.from_workload(CLIENT, &summed(last)).counts.contains(&(Counter::IcmpAnswered, 1)));
    // It costs the node's own time: no more than the port's share of datagrams in pieces.
    node.reconfigure(|config| config.fragment_rate = 10);
    let refused = (0..100).filter(|_| {
        let outcome = node.from_workload(CLIENT, &may_be_cut(OUTSIDE_IP[0], 3000));
        outcome.drops == [(DropReason::FragmentShare, 1)]
    });
    assert!(refused.count() > 50);
}

/// A piece of a datagram of the client's: `size` bytes behind its Ethernet header, at `offset` of the datagram.
fn piece(dst: &str, id: u16, offset: usize, more: bool, size: usize) -> Vec<u8> {
    let mut packet = may_be_cut(dst, size);
    packet[18..20].copy_from_slice(&id.to_be_bytes());
    let fragment = u16::try_from(offset / 8).expect("13 bits") | u16::from(more) << 13;
    packet[20..22].copy_from_slice(&fragment.to_be_bytes());
    summed(packet)
}

/// A stack that tracks connections puts a datagram together before it cuts it: one piece that goes another way is missing there.
#[test]
fn all_pieces_of_a_datagram_go_the_way_of_the_first_that_is_too_big() {
    let node = Node::new();
    node.reconfigure(|config| config.mtu = 1400);
    for dst in [OUTSIDE_IP[0], NATIVE_IP[0]] {
        let sent = |packet: &[u8]| {
            let outcome = node.from_workload(CLIENT, packet);
            let by_stack = outcome.redirected().dst_mac == HOST_MAC;
            assert_eq!(outcome.bytes[HOPS[0]], if by_stack { 64 } else { 63 }, "one router");
            assert_eq!(sum(&[&outcome.bytes[14..34]]), 0xffff, "the header's checksum");
            (by_stack, word(&outcome.bytes, 18))
        };
        let large = [piece(dst, 7, 0, true, 1620), piece(dst, 7, 1600, true, 1620), piece(dst, 7, 3200, false, 120)];
        let ways = large.each_ref().map(|packet| sent(packet));
        assert!(ways.iter().all(|way| *way == (true, ways[0].1)), "one way, one identification: {ways:?}");
        let small = [piece(dst, 8, 0, true, 1420), piece(dst, 8, 1400, false, 120)];
        assert!(small.iter().all(|packet| !sent(packet).0), "all of it fits");
        // The same identification, for a datagram that fits.
        assert!([piece(dst, 7, 0, true, 1420), piece(dst, 7, 1400, false, 120)].iter().all(|packet| !sent(packet).0));
    }
    // What encapsulates a piece is cut, each for itself.
    for packet in [piece(FAR_IP[0], 9, 0, true, 1620), piece(FAR_IP[0], 9, 1600, false, 120)] {
        assert_eq!(node.from_workload(CLIENT, &packet).redirected().src_mac, OVERLAY_MAC);
    }
    // Small pieces behind a large one cost the host's stack as much.
    node.reconfigure(|config| config.fragment_rate = 10);
    let _first = node.from_workload(CLIENT, &piece(OUTSIDE_IP[0], 10, 0, true, 1620));
    let last = piece(OUTSIDE_IP[0], 10, 1600, false, 120);
    let refused = (0..100).filter(|_| node.from_workload(CLIENT, &last).drops == [(DropReason::FragmentShare, 1)]);
    assert!(refused.count() > 50);
}
