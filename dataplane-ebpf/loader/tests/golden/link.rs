// SPDX-License-Identifier: Apache-2.0
//! What stays on a workload's link: ARP, neighbour and router discovery, DHCP, and the egress hook.

use std::net::IpAddr;

use etherparse::IpHeaders;
use weft_abi::{Counter, DropReason, GATEWAY_MAC, MARK_DELIVERED};
use weft_dataplane::{Arrival, Program};

use crate::{
    node::{CLIENT, CLIENT_IP, NEXT, Node, REDIRECT, SERVER_IP, STRANGER, VM, VM_IP, mac},
    packet::{L4, check_transport, frame, ip, ip_headers, parse, pseudo_header, sum, v4, v6},
};

fn arp(operation: u16, sender_mac: [u8; 6], sender: &str, target: &str) -> Vec<u8> {
    let mut packet = [[0xff; 6], mac(CLIENT)].concat();
    packet.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    packet.extend(operation.to_be_bytes());
    packet.extend(sender_mac);
    packet.extend(v4(ip(sender)));
    packet.extend([0; 6]);
    packet.extend(v4(ip(target)));
    packet
}

#[test]
fn arp_is_answered_for_everybody_but_the_workload_itself() {
    let node = Node::new();
    let request = arp(1, mac(CLIENT), CLIENT_IP[0], "10.1.0.99");
    let outcome = node.from_workload(CLIENT, &request);
    assert_eq!((outcome.action, outcome.counts.as_slice()), (REDIRECT, [(Counter::ArpAnswered, 1)].as_slice()));
    outcome.marked(true);
    let mut answer = [mac(CLIENT), GATEWAY_MAC].concat();
    answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend([GATEWAY_MAC.as_slice(), &v4(ip("10.1.0.99")), &mac(CLIENT), &v4(ip(CLIENT_IP[0]))].concat());
    assert_eq!(outcome.bytes, answer);
    // Probe, announcement, an answer that nobody asked for.
    for silent in [
        arp(1, mac(CLIENT), "0.0.0.0", CLIENT_IP[0]),
        arp(1, mac(CLIENT), CLIENT_IP[0], CLIENT_IP[0]),
        arp(2, mac(CLIENT), CLIENT_IP[0], "10.1.0.99"),
    ] {
        node.from_workload(CLIENT, &silent).consumed();
    }
}

#[test]
fn arp_that_lies_is_dropped() {
    let node = Node::new();
    let request = arp(1, mac(CLIENT), CLIENT_IP[0], "10.1.0.99");
    let mut other_sender = request.clone();
    other_sender[6..12].copy_from_slice(&mac(VM));
    let mut other_hardware = request.clone();
    other_hardware[15] = 6;
    for (packet, reason) in [
        (arp(1, mac(CLIENT), SERVER_IP[0], "10.1.0.99"), DropReason::ArpSpoofed),
        (arp(1, mac(VM), CLIENT_IP[0], "10.1.0.99"), DropReason::ArpSpoofed),
        (arp(2, mac(CLIENT), SERVER_IP[0], CLIENT_IP[0]), DropReason::ArpSpoofed),
        (other_sender, DropReason::ArpSpoofed),
        (other_hardware, DropReason::BadHeader),
        (request[..41].to_vec(), DropReason::Truncated),
    ] {
        node.from_workload(CLIENT, &packet).dropped(reason);
    }
    node.from_workload(STRANGER, &request).dropped(DropReason::UnknownPort);
}

/// A neighbour message with one link-layer address option.
fn neighbour(kind: u8, src: &str, target: &str, option_mac: [u8; 6]) -> Vec<u8> {
    let (src, dst) = (ip(src), ip("ff02::1:ff00:99"));
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(v6(ip(target)));
    body.extend([1, 1]);
    body.extend(option_mac);
    link_local(src, dst, body)
}

/// An ICMPv6 packet with hop limit 255.
fn link_local(src: IpAddr, dst: IpAddr, mut body: Vec<u8>) -> Vec<u8> {
    let checksum = !sum(&[&pseudo_header(src, dst, 58, body.len()), &body]);
    body[2..4].copy_from_slice(&checksum.to_be_bytes());
    let IpHeaders::Ipv6(mut header, _) = ip_headers(src, dst) else { panic!("IPv6") };
    header.hop_limit = 255;
    header.next_header = etherparse::IpNumber::IPV6_ICMP;
    header.payload_length = u16::try_from(body.len()).expect("short");
    let mut packet = [[0x33, 0x33, 0xff, 0, 0, 0x99], mac(CLIENT)].concat();
    packet.extend([0x86, 0xdd]);
    packet.extend(header.to_bytes());
    packet.extend(body);
    packet
}

#[test]
fn neighbour_solicitations_are_answered_with_a_right_checksum() {
    let node = Node::new();
    for src in [CLIENT_IP[1], "fe80::10"] {
        for target in ["fd01::99", "fe80::1"] {
            let outcome = node.from_workload(CLIENT, &neighbour(135, src, target, mac(CLIENT)));
            assert_eq!(outcome.counts, [(Counter::ArpAnswered, 1)]);
            outcome.marked(true);
            let seen = outcome.redirected();
            assert_eq!((seen.dst_mac, seen.src_mac), (mac(CLIENT), GATEWAY_MAC));
            assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(target), ip(src)));
            check_transport(ip(target), ip(src), 58, &seen.transport);
            let mut expected = vec![136, 0, seen.transport[2], seen.transport[3], 0xe0, 0, 0, 0];
            expected.extend(v6(ip(target)));
            expected.extend([2, 1]);
            expected.extend(GATEWAY_MAC);
            assert_eq!(seen.transport, expected);
            assert_eq!(outcome.bytes[21], 255, "hop limit");
        }
    }
}

/// A solicitation for `fd01::99` with these options.
fn solicitation_with(options: &[u8]) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(v6(ip("fd01::99")));
    body.extend(options);
    link_local(ip(CLIENT_IP[1]), ip("fd01::99"), body)
}

#[test]
fn solicitations_are_answered_without_the_link_layer_option_and_with_others_before_it() {
    let node = Node::new();
    let own = [[1, 1].as_slice(), &mac(CLIENT)].concat();
    // A nonce (RFC 3971, 5.3.2) of 6 bytes, and of 14.
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let long_nonce = [14, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    for options in [
        vec![],
        own.clone(),
        nonce.to_vec(),
        [nonce.as_slice(), &own].concat(),
        [long_nonce.as_slice(), &own, &nonce].concat(),
    ] {
        let seen = node.from_workload(CLIENT, &solicitation_with(&options)).redirected();
        assert_eq!(seen.transport.len(), 32, "{options:?}");
        let mut expected = vec![136, 0, seen.transport[2], seen.transport[3], 0xe0, 0, 0, 0];
        expected.extend(v6(ip("fd01::99")));
        expected.extend([2, 1]);
        expected.extend(GATEWAY_MAC);
        assert_eq!(seen.transport, expected, "{options:?}");
    }
    let others = [[1, 1].as_slice(), &mac(VM)].concat();
    for (options, reason) in [
        ([nonce.as_slice(), &others].concat(), DropReason::ArpSpoofed),
        ([own.as_slice(), &others].concat(), DropReason::ArpSpoofed),
        (vec![14, 0, 0, 0, 0, 0, 0, 0], DropReason::BadHeader),
        (vec![14, 2, 0, 0, 0, 0, 0, 0], DropReason::BadHeader),
        ([nonce; 9].concat(), DropReason::BadHeader),
    ] {
        node.from_workload(CLIENT, &solicitation_with(&options)).dropped(reason);
    }
}

#[test]
fn neighbour_messages_that_want_silence_get_it_and_lies_are_dropped() {
    let node = Node::new();
    // Duplicate address detection; the workload's own address.
    node.from_workload(CLIENT, &neighbour(135, "::", "fd01::10", mac(CLIENT))).consumed();
    node.from_workload(CLIENT, &neighbour(135, CLIENT_IP[1], CLIENT_IP[1], mac(CLIENT))).consumed();
    node.from_workload(CLIENT, &neighbour(135, SERVER_IP[1], "fd01::99", mac(CLIENT))).dropped(DropReason::ArpSpoofed);
    node.from_workload(CLIENT, &neighbour(135, CLIENT_IP[1], "fd01::99", mac(VM))).dropped(DropReason::ArpSpoofed);
    // An advertisement claims something that nobody asked.
    node.from_workload(CLIENT, &neighbour(136, CLIENT_IP[1], CLIENT_IP[1], mac(CLIENT))).dropped(DropReason::Multicast);
    let mut forwarded = neighbour(135, CLIENT_IP[1], "fd01::99", mac(CLIENT));
    forwarded[21] = 254;
    node.from_workload(CLIENT, &forwarded).dropped(DropReason::BadHeader);
    let mut other_mac = neighbour(135, CLIENT_IP[1], "fd01::99", mac(CLIENT));
    other_mac[6..12].copy_from_slice(&mac(VM));
    node.from_workload(CLIENT, &other_mac).dropped(DropReason::ArpSpoofed);
    node.from_workload(STRANGER, &neighbour(135, CLIENT_IP[1], "fd01::99", mac(CLIENT)))
        .dropped(DropReason::UnknownPort);
}

#[test]
fn a_solicitation_behind_an_extension_header_is_not_answered() {
    let node = Node::new();
    let mut packet = neighbour(135, CLIENT_IP[1], "fd01::99", mac(CLIENT));
    packet[20] = 0;
    packet[19] += 8;
    packet.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
    node.from_workload(CLIENT, &packet).dropped(DropReason::BadHeader);
}

#[test]
fn router_solicitations_and_dhcp_of_a_vm_go_to_the_agent() {
    let node = Node::new();
    let solicitation = |ifindex| {
        let mut packet = link_local(ip("fe80::10"), ip("ff02::2"), vec![133, 0, 0, 0, 0, 0, 0, 0]);
        packet[6..12].copy_from_slice(&mac(ifindex));
        packet
    };
    let discover =
        |ifindex| frame(mac(ifindex), ip_headers(ip("0.0.0.0"), ip("255.255.255.255")), L4::Udp(68, 67), &[0; 240]);
    let solicit6 = |ifindex| frame(mac(ifindex), ip_headers(ip("fe80::10"), ip("ff02::1:2")), L4::Udp(546, 547), &[1]);
    for packet in [solicitation(VM), discover(VM), solicit6(VM)] {
        node.from_workload(VM, &packet).passed(&packet);
    }
    for packet in [solicitation(CLIENT), discover(CLIENT), solicit6(CLIENT)] {
        node.from_workload(CLIENT, &packet).dropped(DropReason::Multicast);
        node.from_workload(VM, &packet).dropped(DropReason::SourceMac);
        node.from_workload(STRANGER, &packet).dropped(DropReason::UnknownPort);
    }
    // Type 133 opens no way past policy: to where routers listen, from this link, and nothing before it.
    let tricks = |src: &str, dst: &str| {
        let mut packet = link_local(ip(src), ip(dst), vec![133, 0, 0, 0, 0, 0, 0, 0]);
        packet[6..12].copy_from_slice(&mac(VM));
        packet
    };
    node.from_workload(VM, &tricks("::", "fe80::1")).passed(&tricks("::", "fe80::1"));
    node.from_workload(VM, &tricks("fe80::10", "2001:db8:ffff::7")).dropped(DropReason::Multicast);
    node.from_workload(VM, &tricks("fe80::10", "ff02::1")).dropped(DropReason::Multicast);
    node.from_workload(VM, &tricks(VM_IP[1], "ff02::2")).dropped(DropReason::SourceAddress);
    node.from_workload(VM, &tricks("2001:db8::1", "ff02::2")).dropped(DropReason::SourceAddress);
    let mut routed = tricks("fe80::10", "ff02::2");
    routed[21] = 64;
    node.from_workload(VM, &routed).dropped(DropReason::BadHeader);
    let mut behind = tricks("fe80::10", "ff02::2");
    behind[20] = 60;
    behind[19] += 8;
    behind.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
    node.from_workload(VM, &behind).dropped(DropReason::BadHeader);
    assert_eq!(node.flows(), 0);
    // The ports do not open a way round policy: towards a workload they are traffic like any other.
    let packet = frame(mac(VM), ip_headers(ip(VM_IP[0]), ip(SERVER_IP[0])), L4::Udp(68, 67), &[1]);
    node.from_workload(VM, &packet).redirected();
}

#[test]
fn link_chatter_ends_at_the_port() {
    let node = Node::new();
    // MLD (RFC 3810): hop-by-hop with router alert, then a report.
    let mut report = link_local(ip("fe80::10"), ip("ff02::16"), vec![143, 0, 0, 0, 0, 0, 0, 0]);
    report[20] = 0;
    report[19] += 8;
    report.splice(54..54, [58, 0, 5, 2, 0, 0, 1, 0]);
    let mdns = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip("224.0.0.251")), L4::Udp(5353, 5353), &[1]);
    for packet in [report, mdns] {
        node.from_workload(CLIENT, &packet).dropped(DropReason::Multicast);
    }
    let mut lldp = [[1, 0x80, 0xc2, 0, 0, 0xe], mac(CLIENT)].concat();
    lldp.extend([0x88, 0xcc, 0, 0]);
    node.from_workload(CLIENT, &lldp).dropped(DropReason::UnknownEtherType);
}

#[test]
fn only_marked_packets_reach_a_workload_by_its_egress_hook() {
    let node = Node::new();
    let packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VM_IP[0])), L4::Udp(1, 2), &[]);
    node.send(Program::ToWorkload, VM, &packet).dropped(DropReason::Unmarked);
    let marked =
        node.send_as(Program::ToWorkload, &packet, Arrival { ifindex: VM, mark: MARK_DELIVERED, ..Arrival::default() });
    assert_eq!((marked.action, marked.mark), (NEXT, 0), "the mark ends here");
    assert_eq!(parse(&marked.bytes).tuple.dst, ip(VM_IP[0]));
    node.send_as(Program::ToWorkload, &packet, Arrival { ifindex: VM, mark: 1, ..Arrival::default() })
        .dropped(DropReason::Unmarked);
}
