// SPDX-License-Identifier: Apache-2.0
//! External frontends: NodePorts and addresses of load balancers, from outside and from workloads, and which addresses they must not
//! take.

use weft_abi::{
    Addr, AddressKey, Balancer, CidrKey, Config, ConnectionFlags, Deliver, DropReason, Frontend, FrontendFlags,
    FrontendKey, MemberSet, Owner, UPLINK as FROM_UPLINK, WayFlags,
};

use crate::{
    node::{
        CLIENT, CLIENT_IP, FAR_IP, HAIRPIN_IP, HOST, HOST_IP, HOST_MAC, HOST_OTHER_IP, MASQUERADE, NATIVE_IP, NODE_IP,
        Node, OUTSIDE_IP, OVERLAY, SERVER, SERVER_IP, UPLINK, VIP, VM_IP, delivers, key, mac, service_number,
        tunnel_end,
    },
    packet::{ACK, L4, SYN, SYN_ACK, frame, ip, ip_headers, tuple, word},
    support::ip as run_ip,
};

const NODE_PORT: u16 = 30_080;
/// Of a load balancer, beyond the cluster.
const LOAD_BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8:77::9"];
/// Of whoever sends frames on the uplink.
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
const EXTERNAL: u32 = FrontendFlags::EXTERNAL | FrontendFlags::FURTHER;

/// A frame for the node itself.
fn outside(family: usize, dst: &str, l4: L4) -> Vec<u8> {
    frame(ROUTER_MAC, ip_headers(ip(OUTSIDE_IP[family]), ip(dst)), l4, b"from outside")
}

fn workloads(ifindex: u32, src: &str, dst: &str, l4: L4) -> Vec<u8> {
    frame(mac(ifindex), ip_headers(ip(src), ip(dst)), l4, b"from a pod")
}

/// The Service of [`VIP`] has a NodePort, at the address that others know and at no other.
fn with_node_port() -> Node {
    let node = Node::new();
    run_ip(&["link", "set", &format!("port{UPLINK}"), "address", "02:77:65:66:74:01"]);
    for family in 0..2 {
        let address = AddressKey::of_cluster(Addr::from(ip(HOST_IP[family])));
        node.maps().addresses().insert(&address, &Owner::node_ports(HOST)).unwrap();
        for protocol in [6, 17] {
            let service = service_number(500, protocol, family);
            let any = ["0.0.0.0", "::"][family];
            node.set_frontend((any, NODE_PORT, protocol), Frontend { service, flags: EXTERNAL });
        }
    }
    node
}

fn set_balancer(node: &Node, family: usize, protocol: u8, change: impl FnOnce(&mut Balancer, u32)) {
    let service = service_number(500, protocol, family);
    let mut balancer = node.maps().balancers().get(&service).unwrap().expect("a balancer");
    change(&mut balancer, service);
    node.maps().balancers().insert(&service, &balancer).unwrap();
}

/// All new connections go to this backend.
fn lead_to(node: &Node, family: usize, protocol: u8, backend: (&str, u16)) {
    set_balancer(node, family, protocol, |balancer, service| {
        let set = node.set_members(service, 9, &[backend]);
        *balancer = Balancer { internal: set, external: set, cluster: set, ..*balancer };
    });
}

#[test]
fn a_node_port_leads_to_a_pod_here_which_sees_the_client() {
    let node = with_node_port();
    for family in 0..2 {
        for (protocol, there, answer) in [
            (6, L4::Tcp(4000, NODE_PORT, SYN), L4::Tcp(8080, 4000, SYN_ACK)),
            (17, L4::Udp(4000, NODE_PORT), L4::Udp(8080, 4000)),
        ] {
            let outcome = node.from_uplink(&outside(family, HOST_IP[family], there));
            let seen = outcome.missed().redirected();
            assert_eq!(seen.dst_mac, mac(SERVER));
            assert_eq!(seen.tuple, tuple(OUTSIDE_IP[family], 4000, SERVER_IP[family], 8080));
            let entry = node
                .flow(&key(FROM_UPLINK, protocol, tuple(OUTSIDE_IP[family], 4000, HOST_IP[family], NODE_PORT)))
                .expect("an entry");
            delivers(&entry, Deliver::Peer, SERVER);
            assert_eq!(entry.connection.flags, ConnectionFlags::REWRITE_DST);
            let back = workloads(SERVER, SERVER_IP[family], OUTSIDE_IP[family], answer);
            let seen = node.from_workload(SERVER, &back).hit().redirected();
            assert_eq!(seen.tuple, tuple(HOST_IP[family], NODE_PORT, OUTSIDE_IP[family], 4000));
            node.from_uplink(&outside(family, HOST_IP[family], there)).hit().redirected();
        }
    }
}

/// What another node answers must come back by this one.
#[test]
fn a_node_port_leads_to_a_pod_of_another_node_with_the_nodes_address() {
    let node = with_node_port();
    for family in 0..2 {
        lead_to(&node, family, 6, (FAR_IP[family], 8080));
        let there = outside(family, HOST_IP[family], L4::Tcp(4000, NODE_PORT, SYN));
        let seen = node.from_uplink(&there).redirected();
        assert_eq!((seen.tuple.src, seen.tuple.dst, seen.tuple.dport), (ip(HOST_IP[family]), ip(FAR_IP[family]), 8080));
        assert!((MASQUERADE.0..MASQUERADE.0 + MASQUERADE.1).contains(&seen.tuple.sport), "{}", seen.tuple.sport);
        let opener = key(FROM_UPLINK, 6, tuple(OUTSIDE_IP[family], 4000, HOST_IP[family], NODE_PORT));
        let entry = node.flow(&opener).expect("an entry");
        delivers(&entry, Deliver::Tunnel, OVERLAY);
        assert_eq!(entry.way.remote, tunnel_end());
        let answers = key(weft_abi::OVERLAY, 6, tuple(FAR_IP[family], 8080, HOST_IP[family], seen.tuple.sport));
        let entry = node.flow(&answers).expect("an entry for what answers");
        delivers(&entry, Deliver::Route, UPLINK);
        assert_eq!((entry.way.remote, entry.way.flags), (tunnel_end(), WayFlags::BY_ROUTES), "who may answer");
        assert_eq!(
            (entry.connection.dst, entry.connection.dport),
            (Addr::from(ip(OUTSIDE_IP[family])), 4000_u16.to_be())
        );
        assert_eq!(
            (entry.connection.src, entry.connection.sport),
            (Addr::from(ip(HOST_IP[family])), NODE_PORT.to_be())
        );
        // The node is a router on this way.
        let mut last = there.clone();
        last[[22, 21][family]] = 1;
        if family == 0 {
            last[24..26].fill(0);
            let checksum = !crate::packet::sum(&[&last[14..34]]);
            last[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        let outcome = node.from_uplink(&last);
        let answer = crate::packet::parse(&outcome.bytes);
        assert_eq!((answer.dst_mac, &answer.transport[..2]), (ROUTER_MAC, [[11, 0], [3, 0]][family].as_slice()));
    }
}

/// A natively reached pod answers by the uplink.
#[test]
fn a_node_port_leads_to_a_pod_of_a_neighbour_with_the_nodes_address() {
    let node = with_node_port();
    for family in 0..2 {
        lead_to(&node, family, 17, (NATIVE_IP[family], 8080));
        let seen = node.from_uplink(&outside(family, HOST_IP[family], L4::Udp(4000, NODE_PORT))).redirected();
        assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(HOST_IP[family]), ip(NATIVE_IP[family])));
        let headers = ip_headers(ip(NATIVE_IP[family]), ip(HOST_IP[family]));
        let answer = frame(crate::node::NATIVE_MAC, headers, L4::Udp(8080, seen.tuple.sport), b"");
        let seen = node.from_uplink(&answer).hit().redirected();
        assert_eq!(seen.tuple, tuple(HOST_IP[family], NODE_PORT, OUTSIDE_IP[family], 4000));
    }
}

/// Its own routes would lead the host past Weft: it answers an address that leads back.
#[test]
fn a_node_port_leads_to_the_host_which_answers_through_its_port() {
    let node = with_node_port();
    for family in 0..2 {
        lead_to(&node, family, 6, (HOST_IP[family], 22));
        let there = outside(family, HOST_IP[family], L4::Tcp(4000, NODE_PORT, SYN));
        let seen = node.from_uplink(&there).redirected();
        assert_eq!((seen.dst_mac, seen.tuple), (HOST_MAC, tuple(HAIRPIN_IP[family], 4000, HOST_IP[family], 22)));
        let answer = ip_headers(ip(HOST_IP[family]), ip(HAIRPIN_IP[family]));
        let answer = frame(HOST_MAC, answer, L4::Tcp(22, 4000, SYN_ACK), b"");
        let seen = node.from_host(&answer).hit().redirected();
        assert_eq!(seen.tuple, tuple(HOST_IP[family], NODE_PORT, OUTSIDE_IP[family], 4000));
        // The same port of another client is taken: it is another one that the host sees.
        let other = ["198.51.100.8", "2001:db8:ffff::8"][family];
        let there = frame(ROUTER_MAC, ip_headers(ip(other), ip(HOST_IP[family])), L4::Tcp(4000, NODE_PORT, SYN), b"");
        let seen = node.from_uplink(&there).redirected();
        assert_eq!((seen.tuple.src, seen.tuple.dport), (ip(HAIRPIN_IP[family]), 22));
        assert_ne!(seen.tuple.sport, 4000);
    }
}

#[test]
fn a_workload_asks_a_node_port_of_its_node() {
    let node = with_node_port();
    for family in 0..2 {
        let there = workloads(CLIENT, CLIENT_IP[family], HOST_IP[family], L4::Tcp(4000, NODE_PORT, SYN));
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, SERVER_IP[family], 8080));
        // As whoever has a NodePort's backend on another node: a pod's address is known there.
        lead_to(&node, family, 17, (FAR_IP[family], 8080));
        let there = workloads(CLIENT, CLIENT_IP[family], HOST_IP[family], L4::Udp(4000, NODE_PORT));
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!(seen.tuple, tuple(CLIENT_IP[family], 4000, FAR_IP[family], 8080));
    }
}

#[test]
fn addresses_that_serve_no_node_ports_and_other_ports_stay_the_hosts() {
    let node = with_node_port();
    for family in 0..2 {
        for (address, port) in [(HOST_OTHER_IP[family], NODE_PORT), (HOST_IP[family], NODE_PORT + 1)] {
            for l4 in [L4::Tcp(4000, port, SYN), L4::Udp(4000, port)] {
                let there = outside(family, address, l4);
                node.from_uplink(&there).passed(&there);
            }
        }
        let echo = outside(family, HOST_IP[family], L4::Echo(NODE_PORT));
        node.from_uplink(&echo).passed(&echo);
    }
    assert_eq!(node.flows(), 0);
}

/// `externalTrafficPolicy: Local`: who asks from elsewhere gets what is here or nothing, aloud where nobody serves at all; who is here
/// gets all of the cluster.
#[test]
fn clients_from_elsewhere_and_of_the_node_have_their_own_sets() {
    let node = with_node_port();
    for family in 0..2 {
        for protocol in [6, 17] {
            set_balancer(&node, family, protocol, |balancer, service| {
                balancer.external = MemberSet::default();
                balancer.cluster = node.set_members(service, 2, &[(VM_IP[family], 81)]);
            });
        }
        let there = |l4| outside(family, HOST_IP[family], l4);
        for l4 in [L4::Tcp(4000, NODE_PORT, SYN), L4::Udp(4000, NODE_PORT)] {
            node.from_uplink(&there(l4)).dropped(DropReason::NoLocalBackend);
            let seen = node.from_workload(CLIENT, &workloads(CLIENT, CLIENT_IP[family], HOST_IP[family], l4));
            assert_eq!((seen.redirected().tuple.dst, seen.redirected().tuple.dport), (ip(VM_IP[family]), 81));
        }
        for protocol in [6, 17] {
            set_balancer(&node, family, protocol, |balancer, _| {
                let none = MemberSet::default();
                *balancer = Balancer { internal: none, external: none, cluster: none, ..*balancer };
            });
        }
        let seen = node.from_uplink(&there(L4::Tcp(4001, NODE_PORT, SYN))).refused(DropReason::NoBackend);
        assert_eq!(
            (seen.dst_mac, seen.tuple),
            (ROUTER_MAC, tuple(HOST_IP[family], NODE_PORT, OUTSIDE_IP[family], 4001))
        );
        let seen = node.from_uplink(&there(L4::Udp(4001, NODE_PORT))).refused(DropReason::NoBackend);
        assert_eq!((seen.dst_mac, seen.tuple.src), (ROUTER_MAC, ip(HOST_IP[family])));
        assert_eq!(&seen.transport[..2], [[3, 3], [1, 4]][family], "unreachable port");
        assert_eq!(word(&seen.transport, 8 + [20, 40][family] + 2), NODE_PORT);
    }
}

/// `internalTrafficPolicy: Local` without a backend here.
#[test]
fn a_cluster_ip_whose_backends_are_all_elsewhere_is_silent() {
    let node = with_node_port();
    for family in 0..2 {
        set_balancer(&node, family, 6, |balancer, _| balancer.internal = MemberSet::default());
        let there = workloads(CLIENT, CLIENT_IP[family], VIP[family], L4::Tcp(4000, 80, SYN));
        node.from_workload(CLIENT, &there).dropped(DropReason::NoLocalBackend);
    }
}

#[test]
fn an_address_of_a_load_balancer_is_served_wherever_it_is() {
    let node = with_node_port();
    for family in 0..2 {
        let service = service_number(500, 6, family);
        node.set_frontend((LOAD_BALANCER[family], 80, 6), Frontend { service, flags: EXTERNAL });
        let seen = node.from_uplink(&outside(family, LOAD_BALANCER[family], L4::Tcp(4000, 80, SYN))).redirected();
        assert_eq!(seen.tuple, tuple(OUTSIDE_IP[family], 4000, SERVER_IP[family], 8080));
        let there = workloads(CLIENT, CLIENT_IP[family], LOAD_BALANCER[family], L4::Tcp(4000, 80, SYN));
        assert_eq!(node.from_workload(CLIENT, &there).redirected().tuple.dst, ip(SERVER_IP[family]));
        // A port that is no frontend is the address's own: beyond the node.
        let there = workloads(CLIENT, CLIENT_IP[family], LOAD_BALANCER[family], L4::Tcp(4000, 81, SYN));
        let seen = node.from_workload(CLIENT, &there).redirected();
        assert_eq!((seen.tuple.src, seen.tuple.dst), (ip(HOST_IP[family]), ip(LOAD_BALANCER[family])));
        let there = outside(family, LOAD_BALANCER[family], L4::Tcp(4000, 81, SYN));
        node.from_uplink(&there).passed(&there);
        // Where the host has it, its NodePorts are not asked before it.
        let address = AddressKey::of_cluster(Addr::from(ip(LOAD_BALANCER[family])));
        node.maps().addresses().insert(&address, &Owner::node_ports(HOST)).unwrap();
        let seen = node.from_uplink(&outside(family, LOAD_BALANCER[family], L4::Tcp(4001, 80, SYN))).redirected();
        assert_eq!(seen.tuple, tuple(OUTSIDE_IP[family], 4001, SERVER_IP[family], 8080));
    }
}

/// At an address of the node: a load balancer's, a NodePort, a port of the host, `externalIPs`.
#[test]
fn the_stronger_claim_to_a_port_of_the_node_wins_however_it_is_written() {
    let node = with_node_port();
    for family in 0..2 {
        // The pod that has host ports, by a number of its own.
        let (own, pod) = (service_number(600, 6, family), (VM_IP[family], 8080));
        let set = node.set_members(own, 1, &[pod]);
        let balancer = Balancer { internal: set, external: set, cluster: set, name: own.into(), ..Balancer::default() };
        node.maps().balancers().insert(&own, &balancer).unwrap();
        let (service, exact) = (service_number(500, 6, family), LOAD_BALANCER[family]);
        let address = AddressKey::of_cluster(Addr::from(ip(exact)));
        node.maps().addresses().insert(&address, &Owner::node_ports(HOST)).unwrap();
        let host_port = Frontend { service: own, flags: EXTERNAL | FrontendFlags::HOST_PORT };
        let external_ip = Frontend { service, flags: EXTERNAL | FrontendFlags::EXTERNAL_IP };
        let balanced = Frontend { service, flags: EXTERNAL };
        let any = ["0.0.0.0", "::"][family];
        let mut sport = 5000;
        let mut wins = |port: u16, backend: &str| {
            sport += 1;
            let seen = node.from_uplink(&outside(family, exact, L4::Tcp(sport, port, SYN))).redirected();
            assert_eq!(seen.tuple.dst, ip(backend), "port {port}");
        };
        node.set_frontend((exact, NODE_PORT, 6), host_port);
        wins(NODE_PORT, SERVER_IP[family]);
        node.set_frontend((exact, NODE_PORT, 6), Frontend { service: own, ..external_ip });
        wins(NODE_PORT, SERVER_IP[family]);
        node.set_frontend((exact, NODE_PORT, 6), Frontend { service: own, ..balanced });
        wins(NODE_PORT, VM_IP[family]);
        node.set_frontend((any, 90, 6), host_port);
        wins(90, VM_IP[family]);
        node.set_frontend((exact, 90, 6), external_ip);
        wins(90, VM_IP[family]);
        node.set_frontend((exact, 90, 6), balanced);
        wins(90, SERVER_IP[family]);
        // Elsewhere none of that is a port of the node.
        node.maps().addresses().remove(&address).unwrap();
        node.set_frontend((exact, 90, 6), external_ip);
        wins(90, SERVER_IP[family]);
    }
}

/// `loadBalancerSourceRanges`.
#[test]
fn a_limited_address_serves_only_those_in_its_ranges() {
    let node = with_node_port();
    for family in 0..2 {
        let service = service_number(500, 6, family);
        let frontend = Frontend { service, flags: EXTERNAL | FrontendFlags::LIMITED };
        node.set_frontend((LOAD_BALANCER[family], 80, 6), frontend);
        let there = |sport| outside(family, LOAD_BALANCER[family], L4::Tcp(sport, 80, SYN));
        let from_pod = |sport| workloads(CLIENT, CLIENT_IP[family], LOAD_BALANCER[family], L4::Tcp(sport, 80, SYN));
        let range = |addr: &str, bits| CidrKey::new(service, Addr::from(ip(addr)), bits);
        node.from_uplink(&there(4000)).dropped(DropReason::SourceRange);
        node.from_workload(CLIENT, &from_pod(4000)).dropped(DropReason::SourceRange);
        // Of another Service.
        let other = CidrKey { net: service + 1, ..range(OUTSIDE_IP[family], 128) };
        node.maps().sources().insert(&other, &1).unwrap();
        node.from_uplink(&there(4001)).dropped(DropReason::SourceRange);
        let own = range(OUTSIDE_IP[family], [120, 64][family]);
        node.maps().sources().insert(&own, &1).unwrap();
        let seen = node.from_uplink(&there(4002)).redirected();
        assert_eq!(seen.tuple, tuple(OUTSIDE_IP[family], 4002, SERVER_IP[family], 8080));
        node.from_workload(CLIENT, &from_pod(4002)).dropped(DropReason::SourceRange);
        // A connection goes on whose client is served no more; it alone.
        node.maps().sources().remove(&own).unwrap();
        node.publish_service(service);
        assert_eq!(node.from_uplink(&there(4002)).redirected().tuple, seen.tuple);
        node.from_uplink(&there(4003)).dropped(DropReason::SourceRange);
        // Other frontends of the Service are for all.
        assert_eq!(
            node.from_uplink(&outside(family, HOST_IP[family], L4::Tcp(4004, NODE_PORT, SYN))).redirected().tuple.dst,
            ip(SERVER_IP[family])
        );
        // Where nobody serves, everybody hears that.
        set_balancer(&node, family, 6, |balancer, _| {
            (balancer.internal, balancer.external, balancer.cluster) = Default::default();
        });
        node.from_uplink(&there(4005)).refused(DropReason::NoBackend);
    }
}

/// CVE-2020-8554: who may write a Service has no right to what goes to others.
#[test]
fn an_external_address_takes_nothing_from_pods_nodes_and_other_services() {
    let node = with_node_port();
    for family in 0..2 {
        let service = service_number(500, 6, family);
        let free = ["10.96.200.1", "fd96::2001"][family];
        let victims = [CLIENT_IP, VM_IP, FAR_IP, NATIVE_IP, NODE_IP, HOST_IP].map(|addresses| addresses[family]);
        for victim in victims.into_iter().chain([free]) {
            node.set_frontend((victim, 443, 6), Frontend { service, flags: EXTERNAL });
            let there = workloads(SERVER, SERVER_IP[family], victim, L4::Tcp(4000, 443, SYN));
            if victim == free {
                node.from_workload(SERVER, &there).dropped(DropReason::NoService);
                continue;
            }
            let seen = node.from_workload(SERVER, &there).redirected();
            assert_eq!((seen.tuple.dst, seen.tuple.dport), (ip(victim), 443));
        }
        let there = outside(family, HOST_IP[family], L4::Tcp(4000, 443, SYN));
        node.from_uplink(&there).passed(&there);
    }
}

/// TCP that a NodePort took keeps its backend although the NodePort is gone; anything else is the host's from then on.
#[test]
fn connections_outlive_their_node_port_as_far_as_they_do_their_service() {
    let node = with_node_port();
    for family in 0..2 {
        for l4 in [L4::Tcp(4000, NODE_PORT, SYN), L4::Udp(4000, NODE_PORT)] {
            node.from_uplink(&outside(family, HOST_IP[family], l4)).redirected();
        }
        let answer = workloads(SERVER, SERVER_IP[family], OUTSIDE_IP[family], L4::Tcp(8080, 4000, SYN_ACK));
        node.from_workload(SERVER, &answer).hit().redirected();
        for protocol in [6, 17] {
            let any = Addr::from(ip(["0.0.0.0", "::"][family]));
            let frontend = FrontendKey::of_cluster(any, NODE_PORT.to_be(), protocol);
            node.maps().frontends().remove(&frontend).unwrap();
            node.publish_service(service_number(500, protocol, family));
        }
        let seen = node.from_uplink(&outside(family, HOST_IP[family], L4::Tcp(4000, NODE_PORT, ACK)));
        assert_eq!(seen.redecided().redirected().tuple.dst, ip(SERVER_IP[family]));
        let udp = outside(family, HOST_IP[family], L4::Udp(4000, NODE_PORT));
        assert_eq!(node.from_uplink(&udp).action, crate::node::NEXT);
    }
}

/// A flood towards a NodePort closes for its Service, and for no other one.
#[test]
fn what_a_service_leads_on_is_booked_on_it() {
    let node = with_node_port();
    node.reconfigure(|config: &mut Config| {
        (config.flow_share, config.flow_most, config.flow_floor) = ([4, 4], [1000, 1000], [2, 2]);
    });
    for protocol in [6, 17] {
        lead_to(&node, 0, protocol, (FAR_IP[0], 8080));
    }
    let there = |port| outside(0, HOST_IP[0], L4::Udp(port, NODE_PORT));
    for port in 1..=4 {
        node.from_uplink(&there(port)).redirected();
    }
    node.from_uplink(&there(5)).dropped(DropReason::FlowShare);
    let service = weft_abi::LED_ON | service_number(500, 17, 0);
    let share = node.maps().shares().get(&service).unwrap().expect("the Service port's share");
    assert_eq!(share.flows[weft_abi::RECEIVED].count, 4);
    // Another Service port on the same way.
    node.from_uplink(&outside(0, HOST_IP[0], L4::Tcp(1, NODE_PORT, SYN))).redirected();
}

/// A frame for everybody reaches all nodes, and so does one for another machine where a device hears all: one of them serves it.
#[test]
fn a_frame_for_somebody_else_is_not_served() {
    let node = with_node_port();
    for dst in [[0xff; 6], [2, 0, 0, 0, 7, 7]] {
        let mut there = outside(0, HOST_IP[0], L4::Tcp(4000, NODE_PORT, SYN));
        there[..6].copy_from_slice(&dst);
        node.from_uplink(&there).passed(&there);
    }
    node.from_uplink(&outside(0, HOST_IP[0], L4::Tcp(4000, NODE_PORT, SYN))).redirected();
}
