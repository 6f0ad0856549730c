// SPDX-License-Identifier: Apache-2.0
//! Devices without an Ethernet header.
//!
//! The kernel takes the first bytes of a packet that a program is tried with for an Ethernet header, and the EtherType from there. Of
//! the packets here, which begin with the IP header, these two bytes belong to the source: it says which family it is of.

use weft_abi::{Addr, CLUSTER_NET, Deliver, DropReason, Owner, OwnerKind, Remote, RemoteKind, generation};
use weft_dataplane::Program;

use crate::{
    node::{
        CLIENT, CLIENT_IP, HOST_IP, NEXT, Node, Outcome, STRANGER, address_key, cidr, delivers, key, mac, workload,
    },
    packet::{ACK, L4, SYN, SYN_ACK, frame, ip, ip_headers, tuple},
};

/// In 8.0.0.0/16 and 2001:db8:86dd::/48.
const PEER_IP: [&str; 2] = ["8.0.51.7", "2001:db8:86dd::7"];
const ROUTER_IP: [&str; 2] = ["8.0.1.1", "2001:db8:86dd:1::1"];

/// A packet as such a device has it; long enough for the kernel, which expects an IP header behind an Ethernet header.
fn bare(src: &str, dst: &str, l4: L4) -> Vec<u8> {
    frame([0; 6], ip_headers(ip(src), ip(dst)), l4, &[b'l'; 32])[14..].to_vec()
}

fn from_l3(node: &Node, packet: &[u8]) -> Outcome {
    node.send(Program::FromL3, STRANGER, packet)
}

fn out(node: &Node, family: usize, l4: L4) -> Outcome {
    node.from_workload(CLIENT, &frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(PEER_IP[family])), l4, b"out"))
}

#[test]
fn answers_of_masqueraded_connections_are_heard() {
    let node = Node::new();
    for family in 0..2 {
        for (there, answer) in [
            (L4::Tcp(4000, 443, SYN), (|port| L4::Tcp(443, port, SYN_ACK)) as fn(u16) -> L4),
            (L4::Udp(4000, 53), |port| L4::Udp(53, port)),
        ] {
            let sent = out(&node, family, there).redirected().tuple;
            let packet = bare(PEER_IP[family], HOST_IP[family], answer(sent.sport));
            for _ in 0..2 {
                let outcome = from_l3(&node, &packet);
                let seen = outcome.hit().redirected();
                assert_eq!(seen.dst_mac, mac(CLIENT));
                assert_eq!(seen.tuple, tuple(PEER_IP[family], sent.dport, CLIENT_IP[family], 4000));
            }
            // Something moves: the answer is decided on, and goes on.
            node.publish(&[generation::ROUTES]);
            assert_eq!(from_l3(&node, &packet).redecided().redirected().dst_mac, mac(CLIENT));
        }
    }
}

#[test]
fn errors_and_pieces_of_what_answers_are_heard() {
    let node = Node::new();
    for family in 0..2 {
        let outcome = out(&node, family, L4::Udp(4000, 53));
        let sent = outcome.redirected().tuple;
        let mut error = frame([0; 6], ip_headers(ip(ROUTER_IP[family]), sent.src), L4::Echo(0), &outcome.bytes[14..]);
        let kind = if family == 0 { 34 } else { 54 };
        error[kind] = if family == 0 { 11 } else { 3 };
        let seen = from_l3(&node, &error[14..]);
        // The checksum of what was written over is not looked at here.
        assert_eq!(seen.action, 7, "{seen:?}");
        assert_eq!(seen.bytes[..6], mac(CLIENT));
        let mut other = error.clone();
        other.truncate(error.len() - 8);
        assert_eq!(from_l3(&node, &other[14..]).action, NEXT, "cut short, so that it is about nothing");
    }
    let sent = out(&node, 0, L4::Udp(4000, 53)).redirected().tuple;
    let whole = bare(PEER_IP[0], HOST_IP[0], L4::Udp(53, sent.sport));
    let [first, later] =
        [(0x2000_u16, whole.clone()), (5, [&whole[..20], &[b'l'; 32]].concat())].map(|(bits, mut piece)| {
            piece[6..8].copy_from_slice(&bits.to_be_bytes());
            piece[10..12].fill(0);
            let len = u16::try_from(piece.len()).unwrap();
            piece[2..4].copy_from_slice(&len.to_be_bytes());
            let sum = !crate::packet::sum(&[&piece[..20]]);
            piece[10..12].copy_from_slice(&sum.to_be_bytes());
            piece
        });
    for piece in [first, later] {
        let seen = from_l3(&node, &piece);
        assert_eq!((seen.action, &seen.bytes[..6]), (7, &mac(CLIENT)[..]), "{seen:?}");
        assert_eq!(seen.bytes[30..34], crate::packet::v4(ip(CLIENT_IP[0])));
    }
}

#[test]
fn the_hosts_own_traffic_passes_untouched() {
    let node = Node::new();
    for family in 0..2 {
        for l4 in [L4::Tcp(443, 22, SYN), L4::Tcp(443, 22, ACK), L4::Udp(53, 4789), L4::Echo(3), L4::EchoReply(3)] {
            for dst in [HOST_IP, ["10.9.9.9", "fd09::9"]] {
                let packet = bare(PEER_IP[family], dst[family], l4);
                from_l3(&node, &packet).passed(&packet);
                let cut = &packet[..packet.len() - 4];
                from_l3(&node, cut).passed(cut);
            }
        }
    }
    assert_eq!(node.flows(), 0);
}

#[test]
fn workloads_are_reached_as_by_an_uplink_and_held_to_policy() {
    let node = Node::new();
    for family in 0..2 {
        let packet = bare(PEER_IP[family], CLIENT_IP[family], L4::Udp(53, 4000));
        assert_eq!(from_l3(&node, &packet).missed().redirected().dst_mac, mac(CLIENT));
        let entry = node.flow(&key(weft_abi::UPLINK, 17, tuple(PEER_IP[family], 53, CLIENT_IP[family], 4000)));
        delivers(&entry.expect("an entry"), Deliver::Peer, CLIENT);
        node.isolate(CLIENT, 9, 0);
        node.publish(&[workload(CLIENT)]);
        from_l3(&node, &packet).dropped(DropReason::PolicyIngress);
        node.isolate(CLIENT, 0, 0);
        node.publish(&[workload(CLIENT)]);
    }
}

/// As by an uplink: nobody speaks for a pod, a Service or the node, neither to a workload nor to the host; pods of a node whose
/// Ethernet address is known are heard from there alone.
#[test]
fn nobody_speaks_for_another() {
    let node = Node::new();
    for (networks, kind, reason) in [
        (["8.0.2", "2001:db8:86dd:2:"], RemoteKind::Tunnel, DropReason::SourceAddress),
        (["8.0.3", "2001:db8:86dd:3:"], RemoteKind::Services, DropReason::SourceAddress),
        (["8.0.4", "2001:db8:86dd:4:"], RemoteKind::Unreachable, DropReason::SourceAddress),
        (["8.0.5", "2001:db8:86dd:5:"], RemoteKind::Native, DropReason::SourceMac),
    ] {
        for (family, network) in networks.into_iter().enumerate() {
            let remote = Remote::new(Addr::from(ip(ROUTER_IP[family])), kind);
            let (prefix, src) = if family == 0 {
                (format!("{network}.0/24"), format!("{network}.9"))
            } else {
                (format!("{network}:/64"), format!("{network}:9"))
            };
            node.maps().remotes().insert(&cidr(&prefix), &remote).unwrap();
            for dst in [CLIENT_IP[family], HOST_IP[family], "10.9.9.9"] {
                if ip(dst).is_ipv4() == (family == 0) {
                    from_l3(&node, &bare(&src, dst, L4::Udp(53, 4000))).dropped(reason);
                }
            }
        }
    }
    for (family, own) in ["8.0.6.6", "2001:db8:86dd:6::6"].into_iter().enumerate() {
        for kind in [OwnerKind::Host, OwnerKind::Workload] {
            node.maps()
                .addresses()
                .insert(&address_key(CLUSTER_NET, own), &Owner { ifindex: CLIENT, kind: kind as u32 })
                .unwrap();
            for dst in [CLIENT_IP[family], HOST_IP[family]] {
                from_l3(&node, &bare(own, dst, L4::Udp(53, 4000))).dropped(DropReason::SourceAddress);
            }
        }
    }
}
