// SPDX-License-Identifier: Apache-2.0
//! Who may speak for whom: sources by hook, and encapsulation towards nodes.

use weft_abi::{Addr, AddressKey, DropReason, Remote, RemoteKind, WayFlags};
use weft_logic::{
    flow, plan,
    walk::{Origin, Sender, Standing, Walk},
};

use crate::world::{
    FIRST_PORT, HOST, UPLINK, VNI_PEER, VXLAN_PORT, World, admit_for_host, decide, host, mac, v4, vip, walk, workload,
};

const UDP: u8 = 17;

fn from(sender: Sender, src: Addr) -> Walk {
    walk(sender, if sender == Sender::Host { HOST } else { UPLINK }, src, workload(0), (4000, 80), UDP)
}

/// The world, with the last workload isolated for ingress by a policy without rules.
fn world() -> World {
    World::new([[false, false], [false, false], [true, false]], false)
}

#[test]
fn the_overlay_carries_the_pods_and_addresses_of_the_node_that_encapsulated_and_nothing_else() {
    let world = world();
    for src in [v4(2, 7), v4(4, 1)] {
        decide(&world, &mut from(Sender::Overlay, src)).expect("of that node");
        let mut other = from(Sender::Overlay, src);
        other.question.tunnel_peer = v4(0, VNI_PEER + 1);
        assert_eq!(decide(&world, &mut other), Err(DropReason::TunnelPeer), "another node's {src:?}");
    }
    // The outside, this node, its workloads, nobody of its pod CIDR, a node's pods by the network, a Service.
    for src in [v4(50, 7), host(), workload(1), v4(1, 99), v4(3, 7), vip(0)] {
        assert_eq!(decide(&world, &mut from(Sender::Overlay, src)), Err(DropReason::TunnelPeer), "{src:?}");
    }
    assert_eq!(decide(&world, &mut from(Sender::Overlay, Addr::v4(0))), Err(DropReason::SourceAddress), "unspecified");
}

#[test]
fn nobody_on_the_uplink_is_a_pod_of_the_overlay_a_service_or_this_node() {
    let world = world();
    // The outside, another node, a pod of the network's own routes.
    for src in [v4(50, 7), v4(4, 1), v4(3, 7)] {
        decide(&world, &mut from(Sender::Uplink, src)).expect("somebody outside");
        admit_for_host(&world, &from(Sender::Uplink, src)).expect("somebody outside");
    }
    for src in [v4(2, 7), host(), workload(1), v4(1, 99), vip(0)] {
        let refused = Err(DropReason::SourceAddress);
        assert_eq!(decide(&world, &mut from(Sender::Uplink, src)), refused, "{src:?}");
        assert_eq!(admit_for_host(&world, &from(Sender::Uplink, src)), refused, "{src:?} to the host");
    }
}

#[test]
fn a_pod_of_a_neighbour_is_heard_from_that_nodes_ethernet_address_only() {
    let mut world = world();
    let sent_by = |mac| {
        let mut walk = from(Sender::Uplink, v4(3, 7));
        walk.question.sender_mac = mac;
        walk
    };
    let refused = Err(DropReason::SourceMac);
    for other in [[2, 0, 0, 0, 0, 99], [0; 6]] {
        assert_eq!(decide(&world, &mut sent_by(other)), refused, "{other:?}");
        assert_eq!(admit_for_host(&world, &sent_by(other)), refused, "{other:?} to the host");
    }
    let mut heard = sent_by(mac(UPLINK));
    assert_eq!((decide(&world, &mut heard), heard.decision.client.checks_mac), (Ok(()), 1));
    // Not known yet: of nobody, also not of a frame without an address.
    world.remotes.get_mut(&3).expect("the neighbour").mac = [0; 6];
    for any in [mac(UPLINK), [0; 6]] {
        assert_eq!(decide(&world, &mut sent_by(any)), refused, "{any:?}");
    }
    // By a router.
    world.remotes.insert(3, Remote::new(v4(0, VNI_PEER), RemoteKind::Routed));
    let mut routed = sent_by([2, 0, 0, 0, 0, 99]);
    assert_eq!((decide(&world, &mut routed), routed.decision.client.checks_mac), (Ok(()), 0));
}

/// Both directions of what goes to and comes from a neighbour's pods remember its Ethernet address.
#[test]
fn the_entries_of_a_neighbours_pods_are_for_its_ethernet_address() {
    let mut world = world();
    let mut to = walk(Sender::Workload, FIRST_PORT, workload(0), v4(3, 7), (4000, 80), UDP);
    decide(&world, &mut to).unwrap();
    plan::plan(&mut to, &world.config);
    assert_eq!(
        (to.reverse.way.flags & WayFlags::CHECK_MAC, to.reverse.way.sender_mac),
        (WayFlags::CHECK_MAC, mac(UPLINK))
    );
    let mut from = from(Sender::Uplink, v4(3, 7));
    decide(&world, &mut from).unwrap();
    plan::plan(&mut from, &world.config);
    assert_eq!(
        (from.forward.way.flags & WayFlags::CHECK_MAC, from.forward.way.sender_mac),
        (WayFlags::CHECK_MAC, mac(UPLINK))
    );
    // Its next card: the answer is decided on, and goes by that one from then on.
    let next = [2, 0, 0, 0, 0, 98];
    world.remotes.get_mut(&3).expect("the neighbour").mac = next;
    let answer = |mac| {
        let asked = walk(Sender::Uplink, UPLINK, v4(3, 7), workload(0), (80, 4000), UDP);
        let mut answer = Walk { forward: to.reverse, ..asked };
        (answer.question.sender_mac, answer.question.standing) = (mac, Standing::Answer as u8);
        let decided = decide(&world, &mut answer);
        plan::plan(&mut answer, &world.config);
        (decided, answer.forward.way.sender_mac)
    };
    assert_eq!(answer(next), (Ok(()), next));
    assert_eq!(answer(mac(UPLINK)).0, Err(DropReason::SourceMac));
    // Not known: no frame goes by the entry, also not one without an address.
    world.remotes.get_mut(&3).expect("the neighbour").mac = [0; 6];
    let mut to = walk(Sender::Workload, FIRST_PORT, workload(0), v4(3, 7), (4000, 80), UDP);
    decide(&world, &mut to).unwrap();
    plan::plan(&mut to, &world.config);
    assert!(to.reverse.way.epoch != to.decision.epoch && !flow::stands(&world, &to.reverse.way));
}

#[test]
fn the_hosts_exemption_from_policy_is_for_what_it_made_itself() {
    let world = world();
    let isolated = |src: Addr, origin: Origin| {
        let mut walk = walk(Sender::Host, HOST, src, workload(2), (4000, 80), UDP);
        walk.question.origin = origin as u8;
        decide(&world, &mut walk)
    };
    assert_eq!(isolated(host(), Origin::Own), Ok(()), "a probe");
    for origin in [Origin::Dataplane, Origin::Elsewhere] {
        assert_eq!(isolated(host(), origin), Err(DropReason::PolicyIngress), "{origin:?}");
    }
    // By way of the host's stack workloads stay themselves; what comes by another device cannot be one.
    assert_eq!(isolated(workload(1), Origin::Dataplane), Err(DropReason::PolicyIngress));
    for src in [workload(1), v4(2, 7), v4(3, 7), vip(0)] {
        assert_eq!(isolated(src, Origin::Elsewhere), Err(DropReason::SourceAddress), "{src:?}");
    }
}

#[test]
fn only_nodes_encapsulate_towards_nodes() {
    let mut world = world();
    // Directly, and by a Service that leads there.
    let hosts = [host(), v4(4, 1)];
    let targets = hosts.into_iter().map(|address| (address, VXLAN_PORT)).chain([(vip(5), 80)]);
    let service = world.frontends[&(vip(5).v4_word(), 80, UDP)].service;
    world.members.get_mut(&(service, 3, 0)).expect("the Service of the host").port = VXLAN_PORT.to_be();
    for (dst, port) in targets {
        let from = |sender, ifindex, src| walk(sender, ifindex, src, dst, (4000, port), UDP);
        for mut walk in [
            from(Sender::Workload, FIRST_PORT, workload(0)),
            from(Sender::Host, HOST, v4(50, 7)),
            from(Sender::Uplink, UPLINK, v4(50, 7)),
        ] {
            assert_eq!(decide(&world, &mut walk), Err(DropReason::Encapsulated), "{dst:?} {walk:?}");
        }
    }
    // An overlay of the sender's own, another port, another protocol.
    for (dst, port, protocol) in
        [(v4(50, 7), VXLAN_PORT, UDP), (v4(4, 1), VXLAN_PORT + 1, UDP), (v4(4, 1), VXLAN_PORT, 6)]
    {
        let mut walk = walk(Sender::Workload, FIRST_PORT, workload(0), dst, (4000, port), protocol);
        assert_eq!(decide(&world, &mut walk), Ok(()), "{dst:?}:{port}");
    }
    world.config.vxlan_port = 0;
    let mut native = walk(Sender::Workload, FIRST_PORT, workload(0), v4(4, 1), (4000, VXLAN_PORT), UDP);
    assert_eq!(decide(&world, &mut native), Ok(()), "nodes without tunnels");
}

#[test]
fn what_is_encapsulated_reaches_the_address_that_nodes_know_and_no_other() {
    let mut world = world();
    let to = |dst| walk(Sender::Uplink, UPLINK, v4(4, 1), dst, (4000, VXLAN_PORT), UDP);
    let other = v4(0, 77);
    let owner = world.addresses[&AddressKey::of_cluster(host())];
    world.addresses.insert(AddressKey::of_cluster(other), owner);
    assert_eq!(admit_for_host(&world, &to(host())), Ok(()));
    assert_eq!(admit_for_host(&world, &to(other)), Err(DropReason::Encapsulated), "another address of the host");
    assert_eq!(admit_for_host(&world, &to(v4(4, 1))), Err(DropReason::Encapsulated), "forwarded to a node");
    assert_eq!(admit_for_host(&world, &to(v4(50, 7))), Ok(()), "somebody else's overlay");
}

#[test]
fn a_workload_without_an_address_of_a_family_sends_nothing_in_it() {
    let mut world = world();
    let owner = world.addresses[&AddressKey::of_cluster(workload(0))];
    world.addresses.insert(AddressKey::of_cluster(Addr::UNSPECIFIED), owner);
    let destination = Addr::from_octets([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    let mut walk = walk(Sender::Workload, FIRST_PORT, Addr::UNSPECIFIED, destination, (4000, 80), UDP);
    walk.question.is_v6 = 1;
    assert_eq!(decide(&world, &mut walk), Err(DropReason::SourceAddress));
}
