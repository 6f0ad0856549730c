// SPDX-License-Identifier: Apache-2.0
//! Services: DNAT, reverse NAT, hairpin, no backend, the host as client and as backend.

use weft_abi::{
    Addr, ConnectionFlags, Deliver, DropReason, Frontend, FrontendFlags, GATEWAY_MAC, HAIRPIN_V4, HAIRPIN_V6, WayFlags,
};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HAIRPIN_IP, HOST, HOST_IP, HOST_MAC, Node, OVERLAY, SERVER, SERVER_IP, VIP, VM,
        VM_IP, delivers, key, mac, service_number, tunnel_end,
    },
    packet::{ACK, L4, RST, SYN, SYN_ACK, frame, ip, ip_headers, tuple, word},
};

/// Protocol, a client's packet to a port, the answer.
type Exchange = (u8, fn(u16, u16) -> L4, fn(u16, u16) -> L4);

const EXCHANGES: [Exchange; 2] =
    [(6, |s, d| L4::Tcp(s, d, SYN), |s, d| L4::Tcp(s, d, SYN_ACK)), (17, L4::Udp, L4::Udp)];

fn packet(ifindex: u32, src: &str, dst: &str, l4: L4) -> Vec<u8> {
    let mac = if ifindex == HOST { HOST_MAC } else { mac(ifindex) };
    frame(mac, ip_headers(ip(src), ip(dst)), l4, b"payload of odd length")
}

#[test]
fn the_hairpin_addresses_are_what_the_abi_says() {
    assert_eq!(HAIRPIN_IP.map(|text| Addr::from(ip(text))), [HAIRPIN_V4, HAIRPIN_V6]);
}

#[test]
fn a_service_is_translated_there_and_back() {
    let node = Node::new();
    for family in 0..2 {
        for (protocol, request, answer) in EXCHANGES {
            let there = packet(CLIENT, CLIENT_IP[family], VIP[family], request(4000, 80));
            for first in [true, false] {
                let outcome = node.from_workload(CLIENT, &there);
                if first {
                    outcome.missed()
                } else {
                    outcome.hit()
                };
                let seen = outcome.redirected();
                assert_eq!((seen.dst_mac, seen.src_mac), (mac(SERVER), GATEWAY_MAC));
                assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 8080));
            }
            let entry = node.flow(&key(CLIENT, protocol, tuple(CLIENT_IP[family], 4000, VIP[family], 80)));
            let entry = entry.expect("an entry");
            delivers(&entry, Deliver::Peer, SERVER);
            assert_eq!((entry.way.flags, entry.connection.flags), (WayFlags::CHECK_MAC, ConnectionFlags::REWRITE_DST));
            assert_ne!(entry.way.service, 0);
            let back = packet(SERVER, SERVER_IP[family], CLIENT_IP[family], answer(8080, 4000));
            let outcome = node.from_workload(SERVER, &back);
            let seen = outcome.hit().redirected();
            assert_eq!(seen.dst_mac, mac(CLIENT));
            assert_eq!(seen.tuple, tuple(VIP[family], 80, CLIENT_IP[family], 4000));
            let entry = node.flow(&key(SERVER, protocol, tuple(SERVER_IP[family], 8080, CLIENT_IP[family], 4000)));
            let entry = entry.expect("an entry");
            let flags = (WayFlags::CHECK_MAC, ConnectionFlags::REWRITE_SRC | ConnectionFlags::REPLY);
            assert_eq!((entry.way.flags, entry.connection.flags), flags);
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_none() {
    let node = Node::new();
    let mut there = packet(CLIENT, CLIENT_IP[0], VIP[0], L4::Udp(4000, 80));
    there[40..42].fill(0);
    for _ in 0..2 {
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!((seen.tuple.dst, word(&seen.transport, 6)), (ip(SERVER_IP[0]), 0));
    }
}

/// The sum of the rewritten packet is 0xffff in ones' complement: a field of 0 would say that there is no checksum.
#[test]
fn a_udp_checksum_that_becomes_zero_is_written_as_ones() {
    let node = Node::new();
    let found = (0..=u16::MAX).find(|filler| {
        let rewritten = frame(
            mac(CLIENT),
            ip_headers(ip(CLIENT_IP[0]), ip(SERVER_IP[0])),
            L4::Udp(4000, 8080),
            &filler.to_be_bytes(),
        );
        word(&rewritten, 40) == 0xffff
    });
    let filler = found.expect("one of all words makes the sum").to_be_bytes();
    let there = frame(mac(CLIENT), ip_headers(ip(CLIENT_IP[0]), ip(VIP[0])), L4::Udp(4000, 80), &filler);
    let seen = node.from_workload(CLIENT, &there).redirected();
    assert_eq!(word(&seen.transport, 6), 0xffff);
}

#[test]
fn a_vm_is_client_and_backend_like_any_other() {
    let node = Node::new();
    for family in 0..2 {
        for protocol in [6, 17] {
            node.set_service(["10.96.0.11", "fd96::11"][family], 80, protocol, 600, 1, &[(VM_IP[family], 81)]);
        }
        for (_, request, answer) in EXCHANGES {
            let there = packet(VM, VM_IP[family], VIP[family], request(5000, 80));
            let seen = node.from_workload(VM, &there).redirected();
            assert_eq!(seen.tuple, tuple(VM_IP[family], 5000, SERVER_IP[family], 8080));
            let back = packet(SERVER, SERVER_IP[family], VM_IP[family], answer(8080, 5000));
            let outcome = node.from_workload(SERVER, &back);
            assert_eq!(outcome.hit().marked(true).redirected().tuple, tuple(VIP[family], 80, VM_IP[family], 5000));
            let vip = ["10.96.0.11", "fd96::11"][family];
            let there = packet(CLIENT, CLIENT_IP[family], vip, request(5001, 80));
            let outcome = node.from_workload(CLIENT, &there);
            let seen = outcome.marked(true).redirected();
            assert_eq!((seen.dst_mac, seen.tuple), (mac(VM), tuple(CLIENT_IP[family], 5001, VM_IP[family], 81)));
        }
    }
}

#[test]
fn services_without_backend_or_without_such_a_port_are_refused() {
    let node = Node::new();
    for family in 0..2 {
        node.set_service(VIP[family], 81, 6, 700, 1, &[]);
        for (ifindex, source, mac) in [(CLIENT, CLIENT_IP, mac(CLIENT)), (HOST, HOST_IP, HOST_MAC)] {
            let there = |port| packet(ifindex, source[family], VIP[family], L4::Tcp(4000, port, SYN));
            let send = |packet: &[u8]| {
                if ifindex == HOST { node.from_host(packet) } else { node.from_workload(ifindex, packet) }
            };
            let seen = send(&there(81)).refused(DropReason::NoBackend);
            assert_eq!((seen.dst_mac, seen.tuple), (mac, tuple(VIP[family], 81, source[family], 4000)));
            let seen = send(&there(82)).refused(DropReason::NoServicePort);
            assert_eq!((seen.dst_mac, seen.tuple), (mac, tuple(VIP[family], 82, source[family], 4000)));
            // An address of no Service is none that answers.
            let nobodys = ["10.96.7.7", "fd96::99"][family];
            send(&packet(ifindex, source[family], nobodys, L4::Tcp(4000, 82, SYN))).dropped(DropReason::NoService);
        }
        let seen = node
            .from_workload(CLIENT, &packet(CLIENT, CLIENT_IP[family], VIP[family], L4::Udp(4000, 82)))
            .refused(DropReason::NoServicePort);
        assert_eq!(&seen.transport[..2], [[3, 3], [1, 4]][family], "unreachable port");
        let echo = packet(CLIENT, CLIENT_IP[family], VIP[family], L4::Echo(1));
        node.from_workload(CLIENT, &echo).dropped(DropReason::NoService);
    }
    assert_eq!(node.flows(), 0);
}

/// RFC 9293, 3.10.7.1, and RFC 792 and 4443: as a host whose port nobody listens on.
#[test]
fn who_asks_a_service_without_backend_is_told_in_its_name() {
    let node = Node::new();
    for family in 0..2 {
        for protocol in [6, 17] {
            node.set_service(VIP[family], 81, protocol, 700, 1, &[]);
        }
        let there = |l4| packet(CLIENT, CLIENT_IP[family], VIP[family], l4);
        let payload = b"payload of odd length".len();
        // What the test's frames have as sequence number is 1, SYN and data count; to what acknowledges, its number is repeated.
        for (flags, sequence, acknowledged, answer) in
            [(SYN, 0, 1 + 1 + payload, 0x14), (ACK, 0, 0, 0x04), (SYN_ACK, 0, 0, 0x04)]
        {
            let outcome = node.from_workload(CLIENT, &there(L4::Tcp(4000, 81, flags)));
            let seen = outcome.refused(DropReason::NoBackend);
            outcome.marked(true);
            assert_eq!((seen.dst_mac, seen.src_mac), (mac(CLIENT), GATEWAY_MAC));
            assert_eq!(seen.tuple, tuple(VIP[family], 81, CLIENT_IP[family], 4000));
            let word32 =
                |at: usize| usize::from(word(&seen.transport, at)) << 16 | usize::from(word(&seen.transport, at + 2));
            assert_eq!((word32(4), word32(8), seen.transport[13]), (sequence, acknowledged, answer));
        }
        node.from_workload(CLIENT, &there(L4::Tcp(4000, 81, RST))).dropped(DropReason::NoBackend);
        let seen = node.from_workload(CLIENT, &there(L4::Udp(4000, 81))).refused(DropReason::NoBackend);
        assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(VIP[family]), ip(CLIENT_IP[family])));
        assert_eq!(&seen.transport[..2], [[3, 3], [1, 4]][family], "unreachable port");
        let inside = 8 + [20, 40][family];
        assert_eq!((word(&seen.transport, inside), word(&seen.transport, inside + 2)), (4000, 81));
    }
    assert_eq!(node.flows(), 0);
}

/// A workload that addresses an external frontend gets the cluster's set, one that addresses the ClusterIP of the same Service port the
/// internal one.
#[test]
fn frontends_of_a_service_port_share_its_balancer_and_have_their_own_set() {
    let node = Node::new();
    for family in 0..2 {
        let service = service_number(500, 6, family);
        let mut balancer = node.maps().balancers().get(&service).unwrap().expect("a balancer");
        balancer.cluster = node.set_members(service, 2, &[(VM_IP[family], 81)]);
        node.maps().balancers().insert(&service, &balancer).unwrap();
        let external = ["203.0.113.9", "2001:db8:77::9"][family];
        node.set_frontend((external, 8000, 6), Frontend { service, flags: FrontendFlags::EXTERNAL });
        let to = |vip, sport, dport| {
            let packet = packet(CLIENT, CLIENT_IP[family], vip, L4::Tcp(sport, dport, SYN));
            node.from_workload(CLIENT, &packet)
        };
        for sport in 4000..4010 {
            assert_eq!(to(external, sport, 8000).redirected().tuple.dst, ip(VM_IP[family]));
            assert_eq!(to(VIP[family], sport, 80).redirected().tuple.dst, ip(SERVER_IP[family]));
        }
        let entry = node.flow(&key(CLIENT, 6, tuple(CLIENT_IP[family], 4000, external, 8000))).expect("an entry");
        assert_eq!(entry.way.service, service);
    }
}

/// Answers are within the workload's rate: what is beyond it hears nothing.
#[test]
fn refusals_take_tokens() {
    let node = Node::new();
    node.reconfigure(|config| config.answer_rate = 1);
    node.set_service(VIP[0], 81, 6, 700, 1, &[]);
    let there = |port| packet(CLIENT, CLIENT_IP[0], VIP[0], L4::Tcp(port, 81, SYN));
    for port in 1..=2 {
        node.from_workload(CLIENT, &there(port)).refused(DropReason::NoBackend);
    }
    node.from_workload(CLIENT, &there(3)).dropped(DropReason::NoBackend);
}

/// Who is connected never meets it: an established connection goes on although the last backend is gone.
#[test]
fn an_established_connection_is_not_refused() {
    let node = Node::new();
    for flags in [SYN, ACK] {
        node.from_workload(CLIENT, &packet(CLIENT, CLIENT_IP[0], VIP[0], L4::Tcp(4000, 80, flags))).redirected();
    }
    node.set_service(VIP[0], 80, 6, 500, 2, &[]);
    node.publish_service(service_number(500, 6, 0));
    node.from_workload(CLIENT, &packet(CLIENT, CLIENT_IP[0], VIP[0], L4::Tcp(4000, 80, ACK))).redirected();
    node.from_workload(CLIENT, &packet(CLIENT, CLIENT_IP[0], VIP[0], L4::Tcp(4001, 80, SYN)))
        .refused(DropReason::NoBackend);
}

#[test]
fn a_workload_reaches_itself_through_its_service_even_where_policy_isolates_it() {
    let node = Node::new();
    node.isolate(SERVER, 1, 2);
    for family in 0..2 {
        for (_, request, answer) in EXCHANGES {
            for round in 0..2 {
                let there = packet(SERVER, SERVER_IP[family], VIP[family], request(6000, 80));
                let seen = node.from_workload(SERVER, &there).redirected();
                assert_eq!(seen.dst_mac, mac(SERVER));
                assert_eq!(seen.tuple, tuple(HAIRPIN_IP[family], 6000, SERVER_IP[family], 8080));
                let back = packet(SERVER, SERVER_IP[family], HAIRPIN_IP[family], answer(8080, 6000));
                let outcome = node.from_workload(SERVER, &back);
                assert_eq!(outcome.redirected().tuple, tuple(VIP[family], 80, SERVER_IP[family], 6000));
                // A change elsewhere in the policy of the workload: both directions decide again.
                if round == 0 {
                    node.publish(&[crate::node::workload(SERVER)]);
                    let outcome = node.from_workload(SERVER, &back);
                    outcome.redecided().redirected();
                }
            }
        }
    }
}

#[test]
fn the_host_reaches_services() {
    let node = Node::new();
    for family in 0..2 {
        for (protocol, request, answer) in EXCHANGES {
            let there = packet(HOST, HOST_IP[family], VIP[family], request(7000, 80));
            let outcome = node.from_host(&there);
            let seen = outcome.marked(true).redirected();
            assert_eq!(seen.tuple, tuple(HOST_IP[family], 7000, SERVER_IP[family], 8080));
            let entry = node.flow(&key(HOST, protocol, tuple(HOST_IP[family], 7000, VIP[family], 80)));
            delivers(&entry.expect("an entry"), Deliver::Port, SERVER);
            let back = packet(SERVER, SERVER_IP[family], HOST_IP[family], answer(8080, 7000));
            let seen = node.from_workload(SERVER, &back).hit().redirected();
            assert_eq!((seen.dst_mac, seen.tuple), (HOST_MAC, tuple(VIP[family], 80, HOST_IP[family], 7000)));
        }
    }
}

/// The API server on this node, by its Service, from this node.
#[test]
fn the_host_reaches_its_own_backend_through_the_hairpin_address() {
    let node = Node::new();
    for family in 0..2 {
        let vip = ["10.96.0.1", "fd96::1"][family];
        node.set_service(vip, 443, 6, 800, 1, &[(HOST_IP[family], 6443)]);
        let there = packet(HOST, HOST_IP[family], vip, L4::Tcp(7001, 443, SYN));
        let seen = node.from_host(&there).redirected();
        assert_eq!(seen.dst_mac, HOST_MAC);
        assert_eq!(seen.tuple, tuple(HAIRPIN_IP[family], 7001, HOST_IP[family], 6443));
        let back = packet(HOST, HOST_IP[family], HAIRPIN_IP[family], L4::Tcp(6443, 7001, SYN_ACK));
        let seen = node.from_host(&back).hit().redirected();
        assert_eq!((seen.dst_mac, seen.tuple), (HOST_MAC, tuple(vip, 443, HOST_IP[family], 7001)));
        // A workload reaches it by the same Service without the hairpin.
        let there = packet(CLIENT, CLIENT_IP[family], vip, L4::Tcp(7002, 443, SYN));
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!((seen.dst_mac, seen.tuple), (HOST_MAC, tuple(CLIENT_IP[family], 7002, HOST_IP[family], 6443)));
    }
}

#[test]
fn a_remote_backend_is_reached_through_the_tunnel_and_its_answer_translated() {
    let node = Node::new();
    for family in 0..2 {
        let vip = ["10.96.0.12", "fd96::12"][family];
        node.set_service(vip, 80, 17, 900, 1, &[(FAR_IP[family], 9090)]);
        let there = packet(CLIENT, CLIENT_IP[family], vip, L4::Udp(4000, 80));
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, FAR_IP[family], 9090));
        let entry = node.flow(&key(CLIENT, 17, tuple(CLIENT_IP[family], 4000, vip, 80))).expect("an entry");
        delivers(&entry, Deliver::Tunnel, OVERLAY);
        let answer = tuple(FAR_IP[family], 9090, CLIENT_IP[family], 4000);
        let entry = node.flow(&key(weft_abi::OVERLAY, 17, answer)).expect("keyed by the backend");
        delivers(&entry, Deliver::Peer, CLIENT);
        assert_eq!(
            (entry.connection.flags & ConnectionFlags::REWRITE_SRC, entry.connection.sport),
            (ConnectionFlags::REWRITE_SRC, 80_u16.to_be())
        );
        assert_eq!(
            (entry.connection.src, entry.way.remote),
            (Addr::from(ip(vip)), tunnel_end()),
            "and by who encapsulates it"
        );
        // The same packet past the tunnel is a lie.
        let back = packet(HOST, FAR_IP[family], CLIENT_IP[family], L4::Udp(9090, 4000));
        node.from_uplink(&back).dropped(DropReason::SourceAddress);
    }
}

#[test]
fn backends_are_chosen_over_all_of_them() {
    let node = Node::new();
    let vip = "10.96.0.13";
    node.set_service(vip, 80, 6, 1200, 1, &[(SERVER_IP[0], 1), (VM_IP[0], 2), (FAR_IP[0], 3)]);
    let mut chosen = [0_u32; 4];
    for port in 1000..1200 {
        let there = packet(CLIENT, CLIENT_IP[0], vip, L4::Tcp(port, 80, ACK));
        chosen[usize::from(node.from_workload(CLIENT, &there).redirected().tuple.dport)] += 1;
    }
    // Each has a third; less than a tenth of them has a chance below 1e-12.
    assert!(chosen[1..].iter().all(|count| *count > 20), "{chosen:?}");
}
