// SPDX-License-Identifier: Apache-2.0
//! SCTP, whose checksum covers its ports and all that is behind them: `packet::parse` computes that of every packet anew.

use etherparse::{IpHeaders, IpNumber, Ipv4Options, Ipv6RawExtHeader, ip_number::IPV6_DESTINATION_OPTIONS};
use weft_abi::DropReason;

use crate::{
    fragments::{assemble, pieces},
    node::{
        CLIENT, CLIENT_IP, HOST, HOST_IP, HOST_MAC, MASQUERADE, NATIVE_IP, NATIVE_MAC, Node, OUTSIDE_IP, SERVER,
        SERVER_IP, VIP, VM, VM_IP, mac, workload,
    },
    packet::{L4, Seen, crc32c, frame, ip, ip_headers, parse, tuple, word},
};

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

fn packet(sender: [u8; 6], [src, dst]: [&str; 2], [sport, dport]: [u16; 2], payload: &[u8]) -> Vec<u8> {
    frame(sender, ip_headers(ip(src), ip(dst)), L4::Sctp(sport, dport), payload)
}

/// Nothing but ports and checksum of what was sent has changed.
#[track_caller]
fn is_kept(seen: &Seen, sent: &[u8]) {
    let sent = &sent[sent.len() - seen.transport.len()..];
    assert_eq!(seen.transport[4..8], sent[4..8]);
    assert_eq!(seen.transport[12..], sent[12..]);
}

#[test]
fn another_target_port_there_and_back_at_any_length() {
    let node = Node::new();
    for family in 0..2 {
        for len in [0, 1, 4, 20, 243, 244, 245, 500, 1440, 1441, 3000] {
            let payload: Vec<u8> = (0..len).map(|place| (place * 7 % 251) as u8).collect();
            let there = packet(mac(CLIENT), [CLIENT_IP[family], VIP[family]], [4000, 80], &payload);
            for _ in 0..2 {
                let seen = node.from_workload(CLIENT, &there).redirected();
                assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 8080));
                is_kept(&seen, &there);
            }
            node.from_workload(CLIENT, &there).hit().redirected();
            let back = packet(mac(SERVER), [SERVER_IP[family], CLIENT_IP[family]], [8080, 4000], &payload);
            let seen = node.from_workload(SERVER, &back).hit().redirected();
            assert_eq!(seen.tuple, tuple(VIP[family], 80, CLIENT_IP[family], 4000));
            is_kept(&seen, &back);
        }
    }
}

#[test]
fn the_same_port_leaves_the_packet_as_it_is() {
    let node = Node::new();
    for family in 0..2 {
        node.set_service(VIP[family], 3868, 132, 950, 1, &[(SERVER_IP[family], 3868)]);
        let there = packet(mac(CLIENT), [CLIENT_IP[family], VIP[family]], [4000, 3868], b"odd");
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 3868));
        assert_eq!(seen.transport, there[there.len() - seen.transport.len()..]);
    }
}

/// From the host, and to a backend of another node, whose answers come by the uplink.
#[test]
fn the_other_hooks_do_so_too() {
    let node = Node::new();
    for family in 0..2 {
        let there = packet(HOST_MAC, [HOST_IP[family], VIP[family]], [4000, 80], b"from the host");
        let seen = node.from_host(&there).redirected();
        assert_eq!(seen.tuple, tuple(HOST_IP[family], 4000, SERVER_IP[family], 8080));
        let back = packet(mac(SERVER), [SERVER_IP[family], HOST_IP[family]], [8080, 4000], b"to the host");
        assert_eq!(node.from_workload(SERVER, &back).redirected().tuple, tuple(VIP[family], 80, HOST_IP[family], 4000));

        let vip = ["10.96.0.12", "fd96::12"][family];
        node.set_service(vip, 80, 132, 900, 1, &[(NATIVE_IP[family], 9090)]);
        let there = packet(mac(CLIENT), [CLIENT_IP[family], vip], [4000, 80], b"to another node");
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, NATIVE_IP[family], 9090));
        let back = packet(NATIVE_MAC, [NATIVE_IP[family], CLIENT_IP[family]], [9090, 4000], b"from another node");
        assert_eq!(node.from_uplink(&back).hit().redirected().tuple, tuple(vip, 80, CLIENT_IP[family], 4000));
    }
}

#[test]
fn options_and_extension_headers_are_stepped_over() {
    let node = Node::new();
    let IpHeaders::Ipv4(mut header, extensions) = ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])) else { panic!("IPv4") };
    header.options = Ipv4Options::try_from([1_u8; 20].as_slice()).unwrap();
    let v4 = IpHeaders::Ipv4(header, extensions);
    let IpHeaders::Ipv6(mut header, mut extensions) = ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])) else { panic!("IPv6") };
    header.next_header = IPV6_DESTINATION_OPTIONS;
    let padding = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    extensions.destination_options = Some(padding.unwrap());
    let v6 = IpHeaders::Ipv6(header, extensions);
    for (family, headers) in [v4, v6].into_iter().enumerate() {
        let there = frame(mac(CLIENT), headers, L4::Sctp(4000, 80), b"far behind");
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 8080));
        node.from_workload(CLIENT, &there).hit().redirected();
    }
}

/// A piece does not have what the checksum is of.
#[test]
fn pieces_are_refused_where_a_port_moves_and_go_on_where_none_does() {
    for family in 0..2 {
        let node = Node::new();
        for piece in pieces(family, VIP[family], L4::Sctp(4000, 80), 1) {
            node.from_workload(CLIENT, &piece).dropped(DropReason::Unrewritable);
        }
        let there = packet(mac(CLIENT), [CLIENT_IP[family], VIP[family]], [4000, 80], b"whole");
        node.from_workload(CLIENT, &there).hit().redirected();
        for piece in pieces(family, VIP[family], L4::Sctp(4000, 80), 2) {
            node.from_workload(CLIENT, &piece).hit().dropped(DropReason::Unrewritable);
        }
        node.set_service(VIP[family], 3868, 132, 950, 1, &[(SERVER_IP[family], 3868)]);
        let same = pieces(family, VIP[family], L4::Sctp(4000, 3868), 3);
        let seen = [0, 1].map(|piece| node.from_workload(CLIENT, &same[piece]).redirected());
        crate::packet::check_transport(ip(CLIENT_IP[family]), ip(SERVER_IP[family]), 132, &assemble(&seen));
    }
}

/// What ends before its checksum is no SCTP.
#[test]
fn what_has_no_checksum_is_refused() {
    let node = Node::new();
    let mut short = packet(mac(CLIENT), [CLIENT_IP[1], VIP[1]], [4000, 80], b"");
    short.truncate(54 + 8);
    short[19] = 8;
    node.from_workload(CLIENT, &short).dropped(DropReason::Unrewritable);
}

#[test]
fn clients_of_one_source_port_leave_under_ports_of_their_own() {
    let node = Node::new();
    let kept = MASQUERADE.0 + 5;
    for family in 0..2 {
        let mut ports = Vec::new();
        for (ifindex, src) in [(CLIENT, CLIENT_IP), (SERVER, SERVER_IP), (VM, VM_IP)] {
            let there = packet(mac(ifindex), [src[family], OUTSIDE_IP[family]], [kept, 3868], b"out");
            let seen = node.from_workload(ifindex, &there).redirected();
            assert_eq!((seen.tuple.src, seen.tuple.dport), (ip(HOST_IP[family]), 3868));
            is_kept(&seen, &there);
            assert!(!ports.contains(&seen.tuple.sport), "{ports:?}");
            ports.push(seen.tuple.sport);
            // After a change the flow keeps what it has.
            node.publish(&[workload(ifindex)]);
            assert_eq!(node.from_workload(ifindex, &there).redecided().redirected().tuple, seen.tuple);
            let ends = [OUTSIDE_IP[family], HOST_IP[family]];
            let back = packet(ROUTER_MAC, ends, [3868, seen.tuple.sport], b"back");
            let answered = node.from_uplink(&back).hit().redirected();
            assert_eq!((answered.tuple.dst, answered.tuple.dport), (ip(src[family]), kept));
            assert_eq!(answered.dst_mac, mac(ifindex));
        }
        assert_eq!(ports[0], kept, "the first one keeps it");
    }
}

/// The value says nothing where the kernel says that the packet is summed up: one in four billion sums is 0.
#[test]
fn a_sum_of_0_is_a_sum() {
    let node = Node::new();
    for family in 0..2 {
        let mut there = packet(mac(CLIENT), [CLIENT_IP[family], VIP[family]], [4000, 80], b"12345678");
        let l4 = there.len() - 20;
        there[l4 + 8..l4 + 12].fill(0);
        let end = there.len() - 4;
        // What has to be there for a register of all ones afterwards: 32 steps back, and what was before.
        let back =
            (0..32).fold(u32::MAX, |crc, _| if crc >> 31 == 1 { (crc ^ 0x82f6_3b78) << 1 | 1 } else { crc << 1 });
        let tail = back ^ !crc32c(&there[l4..end]);
        there[end..].copy_from_slice(&tail.to_le_bytes());
        assert_eq!(crc32c(&there[l4..]), 0);
        parse(&there);
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_ne!((word(&seen.transport, 8), word(&seen.transport, 10)), (0, 0));
    }
}

/// The host's own address has nobody who hears of a port that moved: nothing of it stays with the host.
#[test]
fn what_answers_nothing_is_the_hosts() {
    let node = Node::new();
    for family in 0..2 {
        let stranger = packet(ROUTER_MAC, [OUTSIDE_IP[family], HOST_IP[family]], [3868, 3868], b"x");
        node.from_uplink(&stranger).passed(&stranger);
        let own = packet(mac(HOST), [HOST_IP[family], OUTSIDE_IP[family]], [3868, 3868], b"x");
        node.from_host(&own).redirected();
    }
}
