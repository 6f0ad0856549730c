// SPDX-License-Identifier: Apache-2.0
//! Malformed and hostile packets at every hook: never a fault, always a known action, and no drop that is not counted.
//!
//! Drops that are not counted did their work, and `link` names them: ARP probes, announcements and replies, solicitations
//! that want silence; and the host's own link-local ICMPv6, which ends at `weft0` and the tunnel device.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use weft_abi::Counter;
use weft_dataplane::Program;

use crate::{
    node::{
        CLIENT, CLIENT_IP, HOST, HOST_IP, NEXT, Node, OUTSIDE_IP, OVERLAY, REDIRECT, SERVER_IP, SHOT, UPLINK, VIP, VM,
        mac,
    },
    packet::{ACK, L4, SYN, frame, ip, ip_headers, v4, v6},
};

/// Bytes of the header that is put before what comes by a device without one, and that the walk alone can tell whose it is.
const ETHERNET: usize = 14;

const HOOKS: [(Program, u32); 7] = [
    (Program::FromWorkload, CLIENT),
    (Program::FromWorkload, VM),
    (Program::FromHost, HOST),
    (Program::FromUplink, UPLINK),
    (Program::FromL3, UPLINK),
    (Program::FromOverlay, OVERLAY),
    (Program::ToWorkload, VM),
];

/// Packets of every kind that the programs look into.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for family in 0..2 {
        for destination in [SERVER_IP, VIP, OUTSIDE_IP, HOST_IP, CLIENT_IP] {
            let headers = || ip_headers(ip(CLIENT_IP[family]), ip(destination[family]));
            for l4 in [L4::Tcp(4000, 80, SYN), L4::Tcp(4000, 80, ACK), L4::Udp(4000, 80), L4::Echo(3), L4::EchoReply(3)]
            {
                corpus.push(frame(mac(CLIENT), headers(), l4, b"hostile"));
            }
        }
        let about = corpus.last().expect("some").clone();
        let mut error =
            frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VIP[family])), L4::Echo(0), &about[14..]);
        let l4 = if family == 0 { 34 } else { 54 };
        error[l4] = if family == 0 { 3 } else { 1 };
        corpus.push(error);
    }
    corpus.extend([options(), extensions(), fragment_v4(), fragment_v6(), arp(), solicitation()]);
    corpus
}

fn options() -> Vec<u8> {
    let mut packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])), L4::Udp(4000, 80), b"options");
    packet[14] = 0x46;
    packet[17] += 4;
    packet.splice(34..34, [1, 1, 1, 0]);
    packet
}

fn extensions() -> Vec<u8> {
    let mut packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])), L4::Tcp(4000, 80, SYN), b"long");
    packet[20] = 0;
    packet[19] += 16;
    packet.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]);
    packet
}

fn fragment_v4() -> Vec<u8> {
    let mut packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])), L4::Udp(4000, 80), b"fragment");
    packet[20] = 0x20;
    packet
}

fn fragment_v6() -> Vec<u8> {
    let mut packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])), L4::Udp(4000, 80), b"fragment");
    packet[20] = 44;
    packet[19] += 8;
    packet.splice(54..54, [17, 0, 0, 1, 0, 0, 0, 9]);
    packet
}

fn arp() -> Vec<u8> {
    let mut packet = [[0xff; 6], mac(CLIENT)].concat();
    packet.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend([mac(CLIENT).as_slice(), &v4(ip(CLIENT_IP[0])), &[0; 6], &v4(ip(SERVER_IP[0]))].concat());
    packet
}

fn solicitation() -> Vec<u8> {
    let mut packet = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip("ff02::1:ff00:20")), L4::Echo(0), &[0; 24]);
    packet[21] = 255;
    packet[54..58].copy_from_slice(&[135, 0, 0, 0]);
    packet[62..78].copy_from_slice(&v6(ip(SERVER_IP[1])));
    packet[78..86].copy_from_slice(&[1, 1, 2, 0, 0, 0, 0, mac(CLIENT)[5]]);
    packet
}

/// Whether a drop of this packet may be silent: link-local traffic that did its work, by its type field.
fn may_be_silent(packet: &[u8]) -> bool {
    match packet.get(12..14) {
        Some([8, 6]) => true,
        // ICMPv6, or an extension header before it.
        Some([0x86, 0xdd]) => matches!(packet.get(20), Some(58 | 0 | 43 | 44 | 51 | 60)),
        _ => false,
    }
}

/// Whether the kernel makes a test packet of it: it wants a whole IP header behind the EtherType.
fn is_runnable(packet: &[u8]) -> bool {
    packet.len()
        >= match packet.get(12..14) {
            Some([8, 0]) => 34,
            Some([0x86, 0xdd]) => 54,
            _ => 14,
        }
}

/// Sends the packet to every hook.
fn attack(node: &Node, packet: &[u8]) {
    if !is_runnable(packet) {
        return;
    }
    for (program, ifindex) in HOOKS {
        let outcome = node.send(program, ifindex, packet);
        let counted: u64 = outcome.drops.iter().map(|(_, count)| count).sum();
        match outcome.action {
            SHOT if counted == 0 => assert!(may_be_silent(packet), "silent at {program:?}: {packet:02x?}"),
            SHOT => assert_eq!(counted, 1, "{program:?}: {packet:02x?}"),
            // Refused aloud: the answer goes back to its sender.
            REDIRECT if outcome.drops.iter().any(|(reason, _)| reason.is_told()) => assert_eq!(counted, 1),
            0 | REDIRECT | NEXT => assert_eq!(counted, 0, "{program:?}: {packet:02x?}"),
            action => panic!("action {action} of {program:?} on {packet:02x?}"),
        }
        let answered = |(counter, _): &(Counter, u64)| matches!(counter, Counter::ArpAnswered | Counter::IcmpAnswered);
        let grown = outcome.bytes.len() - packet.len().min(outcome.bytes.len());
        let has_header = program == Program::FromL3 && grown == ETHERNET;
        if !has_header && !outcome.counts.iter().any(answered) {
            assert_eq!(outcome.bytes.len(), packet.len(), "only an answer has another length");
        }
    }
}

#[test]
fn packets_cut_at_every_byte() {
    let node = Node::new();
    for packet in corpus() {
        for len in 14..=packet.len() {
            attack(&node, &packet[..len]);
        }
    }
}

/// Every 16-bit word of the headers is once 0, 1 and all ones: lengths, offsets, types, checksums.
#[test]
fn fields_that_lie() {
    let node = Node::new();
    for packet in corpus() {
        for at in 12..packet.len().min(80) - 1 {
            for lie in [0_u16, 1, 0xffff] {
                let mut packet = packet.clone();
                packet[at..at + 2].copy_from_slice(&lie.to_be_bytes());
                attack(&node, &packet);
            }
        }
    }
}

/// Chains of extension headers without end, with every next header, of every length.
#[test]
fn header_chains_without_end() {
    let node = Node::new();
    let base = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(VIP[1])), L4::Udp(4000, 80), b"");
    for next in [0, 43, 44, 51, 59, 60, 135, 139, 140] {
        for len in [0, 1, 2, 255] {
            let mut packet = base[..54].to_vec();
            packet[20] = next;
            for _ in 0..170 {
                packet.extend([next, len, 0, 0, 0, 0, 0, 0]);
            }
            let payload = u16::try_from(packet.len() - 54).expect("short");
            packet[18..20].copy_from_slice(&payload.to_be_bytes());
            attack(&node, &packet);
        }
    }
}

#[test]
fn random_changes() {
    let node = Node::new();
    let corpus = corpus();
    let change = (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(1)]);
    let changes = prop::collection::vec(change, 1..6);
    let cut = any::<prop::sample::Index>();
    let mut runner = TestRunner::new(Config { cases: 3000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(prop::sample::select(corpus), changes, cut), |(mut packet, changes, cut)| {
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        // Half of them are cut, too.
        let cut = cut.index(packet.len() * 2);
        packet.truncate(cut.max(14));
        attack(&node, &packet);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
