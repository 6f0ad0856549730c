// SPDX-License-Identifier: Apache-2.0
//! ICMP errors: both addresses of both headers, both ports and all checksums are right on the other side.

use std::net::IpAddr;

use weft_abi::DropReason;

use crate::{
    node::{CLIENT, CLIENT_IP, HOST_MAC, Node, OUTSIDE_IP, Outcome, SERVER, SERVER_IP, VIP, VM, mac, workload},
    packet::{
        L4, SYN, SYN_ACK, Seen, Tuple, check_transport, frame, ip, ip_headers, parse, pseudo_header, sum, tuple, word,
    },
};

/// An ICMP error of `kind` from `src` to `dst` about the first `len` bytes of the transport part of the frame `about`.
pub(crate) fn error(ifindex_mac: [u8; 6], [src, dst]: [IpAddr; 2], kind: [u8; 2], about: &[u8], len: usize) -> Vec<u8> {
    let header = if src.is_ipv4() { 20 } else { 40 };
    let inner = &about[14..about.len().min(14 + header + len)];
    let echo = frame(ifindex_mac, ip_headers(src, dst), L4::Echo(0), inner);
    let at = 14 + header;
    let mut packet = echo;
    packet[at..at + 8].copy_from_slice(&[kind[0], kind[1], 0, 0, 0, 0, 5, 0]);
    let pseudo = if src.is_ipv4() { Vec::new() } else { pseudo_header(src, dst, 58, packet.len() - at) };
    let checksum = !sum(&[&pseudo, &packet[at..]]);
    packet[at + 2..at + 4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Unreachable port, too big.
const KINDS: [[[u8; 2]; 2]; 2] = [[[3, 3], [3, 4]], [[1, 4], [2, 0]]];

/// The packet inside an error: addresses, ports; its checksums are checked where they are there.
fn inner(seen: &Seen) -> Tuple {
    let bytes = &seen.transport[8..];
    let (src, dst, protocol, l4): (IpAddr, IpAddr, u8, usize) = if seen.tuple.src.is_ipv4() {
        assert_eq!(sum(&[&bytes[..20]]), 0xffff, "inner IPv4 header checksum");
        let at = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four"));
        (at(12), at(16), bytes[9], 20)
    } else {
        let at = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen"));
        (at(8), at(24), bytes[6], 40)
    };
    let transport = &bytes[l4..];
    let whole = if l4 == 20 { usize::from(word(bytes, 2)) - 20 } else { usize::from(word(bytes, 4)) };
    if transport.len() == whole {
        check_transport(src, dst, protocol, transport);
    }
    Tuple { src, sport: word(transport, 0), dst, dport: word(transport, 2) }
}

fn ips(src: &str, dst: &str) -> [IpAddr; 2] {
    [ip(src), ip(dst)]
}

const EXCHANGES: [(L4, L4); 3] = [
    (L4::Tcp(4000, 80, SYN), L4::Tcp(8080, 4000, SYN_ACK)),
    (L4::Udp(4000, 80), L4::Udp(8080, 4000)),
    (L4::Sctp(4000, 80), L4::Sctp(8080, 4000)),
];

/// All of the inner packet, TCP's header without more, and the 8 bytes that RFC 792 asks for.
const LENGTHS: [usize; 3] = [1000, 20, 8];

#[test]
fn an_error_of_a_backend_is_about_the_service() {
    let node = Node::new();
    for family in 0..2 {
        for (request, _) in EXCHANGES {
            let there = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VIP[family])), request, b"hello");
            let outcome = node.from_workload(CLIENT, &there);
            outcome.redirected();
            for kind in KINDS[family] {
                for len in LENGTHS {
                    let ends = ips(SERVER_IP[family], CLIENT_IP[family]);
                    let packet = error(mac(SERVER), ends, kind, &outcome.bytes, len);
                    let seen = node.from_workload(SERVER, &packet).redirected();
                    assert_eq!((seen.dst_mac, seen.transport[0]), (mac(CLIENT), kind[0]));
                    assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(VIP[family]), ip(CLIENT_IP[family])));
                    assert_eq!(inner(&seen), tuple(CLIENT_IP[family], 4000, VIP[family], 80));
                }
            }
        }
    }
}

#[test]
fn an_error_of_a_client_is_about_the_backend() {
    let node = Node::new();
    for family in 0..2 {
        for (request, answer) in EXCHANGES {
            let there = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VIP[family])), request, b"hello");
            node.from_workload(CLIENT, &there).redirected();
            let back = frame(mac(SERVER), ip_headers(ip(SERVER_IP[family]), ip(CLIENT_IP[family])), answer, b"answer");
            let outcome = node.from_workload(SERVER, &back);
            outcome.redirected();
            for len in LENGTHS {
                let ends = ips(CLIENT_IP[family], VIP[family]);
                let packet = error(mac(CLIENT), ends, KINDS[family][0], &outcome.bytes, len);
                let seen = node.from_workload(CLIENT, &packet).redirected();
                assert_eq!(seen.dst_mac, mac(SERVER));
                assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(CLIENT_IP[family]), ip(SERVER_IP[family])));
                assert_eq!(inner(&seen), tuple(SERVER_IP[family], 8080, CLIENT_IP[family], 4000));
            }
        }
    }
}

#[test]
fn an_error_from_the_outside_finds_the_masqueraded_flow() {
    let node = Node::new();
    const ROUTER: [&str; 2] = ["203.0.113.1", "2001:db8:aaaa::1"];
    for family in 0..2 {
        for l4 in [L4::Tcp(4000, 443, SYN), L4::Udp(4000, 443), L4::Sctp(4000, 443), L4::Echo(66)] {
            let there = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(OUTSIDE_IP[family])), l4, b"hello");
            let outcome = node.from_workload(CLIENT, &there);
            let node_ip = outcome.redirected().tuple.src;
            // From the server itself and from a router on the way, which keeps its address.
            for source in [OUTSIDE_IP[family], ROUTER[family]] {
                for len in LENGTHS {
                    let ends = [ip(source), node_ip];
                    let packet = error(HOST_MAC, ends, KINDS[family][1], &outcome.bytes, len);
                    let seen = node.from_uplink(&packet).redirected();
                    assert_eq!(seen.dst_mac, mac(CLIENT));
                    assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(source), ip(CLIENT_IP[family])));
                    let inner = inner(&seen);
                    assert_eq!((inner.src, inner.dst), (ip(CLIENT_IP[family]), ip(OUTSIDE_IP[family])));
                    let header = if family == 0 { 28 } else { 48 };
                    match l4 {
                        L4::Echo(id) => assert_eq!(word(&seen.transport, header + 4), id),
                        _ => assert_eq!((inner.sport, inner.dport), (4000, 443)),
                    }
                }
            }
        }
    }
}

#[test]
fn an_error_without_translation_keeps_what_is_inside() {
    let node = Node::new();
    for family in 0..2 {
        let there =
            frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), L4::Udp(4000, 9), b"hello");
        let outcome = node.from_workload(CLIENT, &there);
        let ends = ips(SERVER_IP[family], CLIENT_IP[family]);
        let packet = error(mac(SERVER), ends, KINDS[family][0], &outcome.bytes, 1000);
        let error = node.from_workload(SERVER, &packet);
        error.redirected_unchanged(&packet);
        assert_eq!(inner(&parse(&error.bytes)), tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 9));
    }
}

#[test]
fn errors_about_nothing_that_was_said_are_dropped() {
    let node = Node::new();
    for family in 0..2 {
        let there =
            frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(SERVER_IP[family])), L4::Udp(4000, 9), b"hello");
        let ends = ips(SERVER_IP[family], CLIENT_IP[family]);
        let packet = error(mac(SERVER), ends, KINDS[family][0], &there, 1000);
        let refused = |outcome: Outcome, reason: DropReason| {
            outcome.dropped(reason);
        };
        refused(node.from_workload(SERVER, &packet), DropReason::IcmpUnrelated);
        node.from_uplink(&packet).passed(&packet);
        node.from_workload(CLIENT, &there).redirected();
        // By another workload; with another's Ethernet address; to somebody else; from a router that a workload is not.
        refused(node.from_workload(VM, &packet), DropReason::IcmpUnrelated);
        let other_mac = error(mac(VM), ends, KINDS[family][0], &there, 1000);
        refused(node.from_workload(SERVER, &other_mac), DropReason::SourceMac);
        let elsewhere = error(mac(SERVER), ips(SERVER_IP[family], OUTSIDE_IP[family]), KINDS[family][0], &there, 1000);
        refused(node.from_workload(SERVER, &elsewhere), DropReason::IcmpUnrelated);
        let router = error(mac(SERVER), ips(OUTSIDE_IP[family], CLIENT_IP[family]), KINDS[family][0], &there, 1000);
        refused(node.from_workload(SERVER, &router), DropReason::SourceAddress);
        // Less inside than the ports.
        refused(
            node.from_workload(SERVER, &error(mac(SERVER), ends, KINDS[family][0], &there, 7)),
            DropReason::Truncated,
        );
    }
}

/// Path MTU discovery works also between a change and the next packet of the flow: the connection is decided on for the error.
#[test]
fn an_error_after_a_change_is_about_what_stands_and_about_nothing_else() {
    for family in 0..2 {
        let node = Node::new();
        let there =
            frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[family]), ip(VIP[family])), L4::Tcp(4000, 80, SYN), b"hello");
        let outcome = node.from_workload(CLIENT, &there);
        outcome.redirected();
        let ends = ips(SERVER_IP[family], CLIENT_IP[family]);
        let packet = error(mac(SERVER), ends, KINDS[family][1], &outcome.bytes, 1000);
        for moved in [SERVER, CLIENT] {
            node.publish(&[workload(moved)]);
            let seen = node.from_workload(SERVER, &packet).redirected();
            assert_eq!(inner(&seen), tuple(CLIENT_IP[family], 4000, VIP[family], 80));
        }
        // What a policy has closed meanwhile hears of no error either.
        node.isolate(SERVER, 21, 0);
        node.publish(&[workload(SERVER)]);
        node.from_workload(SERVER, &packet).dropped(DropReason::PolicyIngress);
    }
}

/// A router that cannot send a piece of a large datagram on tells so with its fragment header inside.
#[test]
fn a_packet_inside_may_have_extension_headers() {
    const ROUTER: &str = "2001:db8:aaaa::1";
    let node = Node::new();
    let there = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[1]), ip(OUTSIDE_IP[1])), L4::Udp(4000, 443), b"hello");
    let outcome = node.from_workload(CLIENT, &there);
    let seen = outcome.redirected();
    // The first piece of it: next header 44, then the fragment header (UDP follows, more to come).
    let mut about = outcome.bytes.clone();
    about[20] = 44;
    about[18..20].copy_from_slice(&(word(&outcome.bytes, 18) + 8).to_be_bytes());
    about.splice(54..54, [17, 0, 0, 1, 0, 0, 0, 7]);
    let packet = error([2, 0, 0, 0, 9, 9], [ip(ROUTER), seen.tuple.src], KINDS[1][1], &about, 1000);
    let back = node.from_uplink(&packet).redirected();
    assert_eq!((back.tuple.src, back.tuple.dst), (ip(ROUTER), ip(CLIENT_IP[1])));
    let inside = &back.transport[8..];
    let addresses = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&inside[at..at + 16]).expect("sixteen"));
    assert_eq!((addresses(8), addresses(24)), (ip(CLIENT_IP[1]), ip(OUTSIDE_IP[1])));
    assert_eq!((word(inside, 48), word(inside, 50)), (4000, 443), "the ports behind the fragment header");
    check_transport(ip(CLIENT_IP[1]), ip(OUTSIDE_IP[1]), 17, &inside[48..]);
    // A later piece has no ports to tell its connection by.
    let mut later = about;
    later[56..58].copy_from_slice(&[1, 0]);
    let packet = error([2, 0, 0, 0, 9, 9], [ip(ROUTER), seen.tuple.src], KINDS[1][1], &later, 1000);
    node.from_uplink(&packet).passed(&packet);
}
