// SPDX-License-Identifier: Apache-2.0
//! Properties of decisions: both entries of a flow fit each other, whoever sends what to whom.

use proptest::prelude::*;
use weft_abi::{
    Addr, AddressKey, Connection, ConnectionFlags, Deliver, DropReason, Flow, FlowKey6, FrontendFlags, Way,
};
use weft_logic::{
    decide::moved,
    flow, masquerade, plan,
    walk::{Place, Question, Sender, Standing, Walk},
};

use crate::world::{FIRST_PORT, HOST, OVERLAY, UPLINK, WORKLOADS, World, decide, host, mac, v4, vip, walk, workload};

/// Who sends: a workload of this node, the host, another node through the tunnel, somebody through the uplink.
fn senders() -> impl Strategy<Value = (Sender, u32, Addr)> {
    prop_oneof![
        (0..WORKLOADS).prop_map(|index| (Sender::Workload, FIRST_PORT + index, workload(index))),
        Just((Sender::Host, HOST, host())),
        Just((Sender::Overlay, OVERLAY, v4(2, 7))),
        Just((Sender::Uplink, UPLINK, v4(3, 7))),
        Just((Sender::Uplink, UPLINK, v4(50, 7))),
    ]
}

/// Workloads, the host, Services of each of these, remote ones, the outside, nobody.
fn destinations() -> impl Strategy<Value = Addr> {
    prop_oneof![
        (0..WORKLOADS).prop_map(workload),
        (0..8_u8).prop_map(vip),
        Just(host()),
        Just(v4(2, 5)),
        Just(v4(3, 5)),
        Just(v4(50, 5)),
        Just(v4(1, 99)),
    ]
}

/// A packet: its sender, destination, ports and protocol.
fn packets() -> impl Strategy<Value = Walk> {
    let ports = (1..u16::MAX, prop_oneof![Just(80), Just(8080), any::<u16>()]);
    let protocol = prop_oneof![Just(6_u8), Just(17)];
    (senders(), destinations(), ports, protocol)
        .prop_map(|((sender, ifindex, src), dst, ports, protocol)| walk(sender, ifindex, src, dst, ports, protocol))
}

fn worlds() -> impl Strategy<Value = World> {
    (any::<[[bool; 2]; WORKLOADS as usize]>(), any::<bool>())
        .prop_map(|(isolated, lenient)| World::new(isolated, lenient))
}

/// Decides and plans; a masqueraded flow gets its first port.
fn decided(world: &World, walk: &mut Walk) -> Result<(), DropReason> {
    decide(world, walk)?;
    plan::plan(walk, &world.config);
    if !walk.question.answers() && walk.decision.masquerade == masquerade::BY_PORT {
        let port = masquerade::port(&world.config, walk.question.key.ifindex, walk.question.random, 0);
        plan::leave_under(walk, port.to_be());
    }
    Ok(())
}

/// Source, source port, destination, destination port.
type Ends = (Addr, u16, Addr, u16);

/// What a packet becomes.
fn rewritten(key: &FlowKey6, flow: &Flow) -> Ends {
    let (mut ends, has) = ((key.src, key.sport, key.dst, key.dport), |flag| flow.connection.flags & flag != 0);
    if has(ConnectionFlags::REWRITE_SRC) {
        (ends.0, ends.1) = (flow.connection.src, flow.connection.sport);
    }
    if has(ConnectionFlags::REWRITE_DST) {
        (ends.2, ends.3) = (flow.connection.dst, flow.connection.dport);
    }
    ends
}

const fn swapped((src, sport, dst, dport): Ends) -> Ends {
    (dst, dport, src, sport)
}

/// The sender of the answer, as the hooks tell it.
fn answerer(reverse: &FlowKey6) -> Sender {
    match reverse.ifindex {
        HOST => Sender::Host,
        weft_abi::OVERLAY => Sender::Overlay,
        weft_abi::UPLINK => Sender::Uplink,
        _ => Sender::Workload,
    }
}

/// The walk of the packet that answers, as the slow path begins it on the entry there is.
fn answer(walk: &Walk) -> Walk {
    let sender = answerer(&walk.reverse_key);
    let question = Question {
        key: walk.reverse_key,
        standing: Standing::Answer as u8,
        sender: sender as u32,
        now: walk.question.now,
        random: walk.question.random,
        ..Question::default()
    };
    let mut answer = Walk { question, forward: walk.reverse, ..Walk::default() };
    if sender == Sender::Workload {
        answer.question.sender_mac = mac(walk.reverse_key.ifindex);
    }
    if sender == Sender::Uplink {
        answer.question.sender_mac = mac(UPLINK);
    }
    if sender == Sender::Overlay {
        answer.question.tunnel_peer = walk.forward.way.remote;
    }
    answer
}

/// The next packet of the side that opened it, after a change.
fn standing(walk: &Walk) -> Walk {
    let mut again = *walk;
    again.question.standing = Standing::Opener as u8;
    again
}

/// Whether the connection's answers need an address of this node to come back here.
fn is_brought_back(walk: &Walk) -> bool {
    let of_node = walk.decision.client.is_here() || walk.decision.own_host != 0;
    walk.decision.translated != 0 && !of_node && !walk.decision.server.is_here()
}

/// From one tunnel into another, a way has no room for the peer that its packets must come from.
fn is_decided_each_time(walk: &Walk) -> bool {
    let leads_on = |way: &Way| [Deliver::Tunnel as u8, Deliver::Neighbour as u8].contains(&way.deliver);
    let both = walk.decision.client.is_at(Place::Tunnel) && walk.decision.server.is_at(Place::Tunnel);
    both || walk.decision.client.is_at(Place::Tunnel) && leads_on(&walk.forward.way)
        || walk.decision.server.is_at(Place::Tunnel) && leads_on(&walk.reverse.way)
}

proptest! {
    // Many packets are refused for good reason; a property speaks of the others.
    #![proptest_config(ProptestConfig {
        cases: 512,
        max_global_rejects: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_answer_is_known_by_its_entry_and_goes_back_as_what_was_asked(world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok());
        let sent = rewritten(&walk.question.key, &walk.forward);
        let FlowKey6 { src, sport, dst, dport, .. } = walk.reverse_key;
        prop_assert_eq!((src, sport, dst, dport), swapped(sent), "the answer swaps what was sent");
        let back = rewritten(&walk.reverse_key, &walk.reverse);
        let FlowKey6 { src, sport, dst, dport, .. } = walk.question.key;
        prop_assert_eq!(back, swapped((src, sport, dst, dport)), "the sender sees whom it asked");
        prop_assert_eq!(walk.question.key.protocol, walk.reverse_key.protocol);
    }

    #[test]
    fn the_entries_of_both_directions_name_each_other(world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok());
        prop_assert_eq!(flow::answer_key(&walk.forward, walk.question.key.protocol), walk.reverse_key);
        prop_assert_eq!(flow::answer_key(&walk.reverse, walk.question.key.protocol), walk.question.key);
    }

    #[test]
    fn what_is_allowed_is_allowed_as_an_answer(world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok());
        let mut answer = answer(&walk);
        prop_assert_eq!(decided(&world, &mut answer), Ok(()));
        prop_assert!(flow::stands(&world, &answer.forward.way) || is_decided_each_time(&walk));
        prop_assert_eq!(answer.forward.way.deliver, walk.reverse.way.deliver);
        prop_assert_ne!(answer.forward.connection.flags & ConnectionFlags::REPLY, 0);
    }

    #[test]
    fn an_answer_is_judged_by_the_port_that_was_asked(mut walk in packets(), isolated in any::<[[bool; 2]; 3]>()) {
        let mut world = World::new(isolated, false);
        world.allow(walk.question.key.protocol as u8, 8080, 8080);
        prop_assume!(decided(&world, &mut walk).is_ok());
        prop_assert_eq!(decided(&world, &mut answer(&walk)), Ok(()));
    }

    #[test]
    fn a_packet_that_policy_forbids_is_forbidden_as_an_answer(mut walk in packets(), isolated in any::<[[bool; 2]; 3]>()) {
        let open = World::new([[false; 2]; 3], true);
        prop_assume!(decided(&open, &mut walk).is_ok());
        let closed = World::new(isolated, false);
        let mut again = standing(&walk);
        let forward = decided(&closed, &mut again);
        let backward = decide(&closed, &mut answer(&walk));
        prop_assert_eq!(forward, backward, "both directions are judged by the same rules");
    }

    #[test]
    fn decisions_stand_until_what_they_were_made_of_changes(mut world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok() && !is_decided_each_time(&walk));
        prop_assert!(flow::stands(&world, &walk.forward.way) && flow::stands(&world, &walk.reverse.way));
        world.publish(7777);
        prop_assert!(flow::stands(&world, &walk.forward.way) && flow::stands(&world, &walk.reverse.way), "a change elsewhere");
        world.publish_service(7777);
        prop_assert!(flow::stands(&world, &walk.forward.way) && flow::stands(&world, &walk.reverse.way), "of another Service");
        let service = walk.forward.way.service;
        if service != 0 {
            world.publish(service);
            prop_assert!(flow::stands(&world, &walk.forward.way), "numbers of Services are their own");
            world.generations.clear();
            world.publish_service(service);
            prop_assert!(!flow::stands(&world, &walk.forward.way));
            world.service_generations.clear();
        }
        for slot in [walk.forward.way.egress, walk.forward.way.ingress].map(u32::from) {
            if slot != 0 {
                world.publish(slot);
                prop_assert!(!flow::stands(&world, &walk.forward.way));
                world.generations.clear();
            }
        }
    }

    #[test]
    fn a_decision_that_ran_beside_a_change_does_not_stand(mut world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok());
        prop_assert!(!moved(&world, &walk.decision));
        world.publish(7777);
        prop_assert!(moved(&world, &walk.decision));
        plan::poison(&mut walk);
        prop_assert!(!flow::stands(&world, &walk.forward.way) && !flow::stands(&world, &walk.reverse.way));
    }

    #[test]
    fn delivery_is_to_where_the_target_is(world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok());
        let Flow { connection: Connection { dst, .. }, way: Way { deliver, ifindex, dst_mac, .. } } = walk.forward;
        let port = world.ports.get(&ifindex);
        if deliver == Deliver::Peer as u8 || deliver == Deliver::Port as u8 {
            let port = port.expect("a workload's port");
            prop_assert_eq!(world.addresses[&AddressKey::of_cluster(dst)].ifindex, ifindex);
            prop_assert_eq!(port.mac, dst_mac);
            let veth_from_ingress = port.kind == 0 && walk.question.sender != Sender::Host as u32;
            prop_assert_eq!(deliver == Deliver::Peer as u8, veth_from_ingress);
        } else {
            prop_assert!(port.is_none() && !(0..WORKLOADS).any(|index| workload(index) == dst));
            let transit = walk.question.sender == Sender::Overlay as u32 && deliver != Deliver::Host as u8;
            prop_assert!(!transit || walk.decision.translated != 0, "no transit but by a Service");
        }
        let masqueraded = walk.question.sender == Sender::Workload as u32 && deliver == Deliver::Route as u8;
        prop_assert_eq!(walk.decision.masquerade != 0, masqueraded || is_brought_back(&walk));
        if masqueraded {
            prop_assert_eq!(walk.forward.connection.src, host());
            let port = u16::from_be(walk.forward.connection.sport);
            prop_assert!((61_000..61_100).contains(&port), "{}", port);
        }
    }

    #[test]
    fn nobody_speaks_for_another(world in worlds(), mut walk in packets(), other in 0..WORKLOADS) {
        prop_assume!(walk.question.sender == Sender::Workload as u32 && walk.question.key.src != workload(other));
        walk.question.key.src = workload(other);
        prop_assert_eq!(decide(&world, &mut walk), Err(DropReason::SourceAddress));
        walk.question.sender_mac = [2, 9, 9, 9, 9, 9];
        prop_assert_eq!(decide(&world, &mut walk), Err(DropReason::SourceMac));
    }

    #[test]
    fn a_tunnel_speaks_for_its_own_node_only(world in worlds(), mut walk in packets()) {
        prop_assume!(walk.question.sender == Sender::Overlay as u32);
        walk.question.tunnel_peer = v4(0, 201);
        prop_assert_eq!(decide(&world, &mut walk), Err(DropReason::TunnelPeer));
    }

    #[test]
    fn deciding_again_changes_nothing_where_nothing_changed(world in worlds(), mut walk in packets()) {
        prop_assume!(decided(&world, &mut walk).is_ok());
        let mut again = standing(&walk);
        prop_assert_eq!(decided(&world, &mut again), Ok(()));
        prop_assert_eq!((again.forward, again.reverse, again.reverse_key), (walk.forward, walk.reverse, walk.reverse_key));
    }

    #[test]
    fn tcp_stays_and_udp_moves_when_its_backend_goes(mut walk in packets(), stays in any::<bool>()) {
        let mut world = World::new([[false; 2]; 3], true);
        prop_assume!(decided(&world, &mut walk).is_ok() && walk.decision.translated != 0);
        let (id, old) = (walk.decision.service.slot, walk.decision.target);
        let new = if old == workload(0) { workload(1) } else { workload(0) };
        prop_assume!(new != walk.question.key.src);
        let before = world.members[&(id, 3, 0)];
        world.members.get_mut(&(id, 3, 0)).expect("a member").addr = new;
        if stays {
            // Beside the new one, and never chosen by this random word.
            world.members.insert((id, 3, 1), before);
        }
        world.publish_service(id);
        let mut again = standing(&walk);
        prop_assert_eq!(decided(&world, &mut again), Ok(()));
        let expected = if walk.question.key.protocol == 6 || stays { old } else { new };
        prop_assert_eq!(again.decision.target, expected);
    }

    #[test]
    fn established_tcp_goes_on_without_a_service_that_comes_to_have_its_address(mut walk in packets()) {
        let mut world = World::new([[false; 2]; 3], true);
        walk.question.key.dst = v4(80, 1);
        prop_assume!(decided(&world, &mut walk).is_ok() && walk.decision.server.is_at(Place::Outside));
        let (protocol, old) = (walk.question.key.protocol, walk.decision.target);
        let mut frontend = *world.frontends.get(&(vip(1).v4_word(), 80, protocol as u8)).expect("a frontend");
        frontend.flags = FrontendFlags::EXTERNAL | FrontendFlags::FURTHER;
        world.frontends.insert((old.v4_word(), u16::from_be(walk.question.key.dport), protocol as u8), frontend);
        for answered in [true, false] {
            let mut again = standing(&walk);
            again.question.answered = answered.into();
            prop_assert_eq!(decided(&world, &mut again), Ok(()));
            prop_assert_eq!(again.decision.translated == 0, protocol == 6 && answered);
            prop_assert_eq!(again.decision.target == old, protocol == 6 && answered);
        }
    }

    #[test]
    fn a_set_that_goes_between_two_look_ups_refuses_nobody(world in worlds(), mut walk in packets()) {
        (walk.question.key.dst, walk.question.key.dport) = (vip(1), 80_u16.to_be());
        let (mut calm, mut raced) = (walk, walk);
        let without = decided(&world, &mut calm);
        prop_assume!(calm.decision.translated != 0);
        world.late.set(1);
        prop_assert_eq!(decided(&world, &mut raced), without);
        prop_assert_eq!(raced.decision.target, calm.decision.target);
        world.late.set(2);
        prop_assert_eq!(decided(&world, &mut walk), Err(DropReason::NoBackend));
    }

    #[test]
    fn a_port_of_a_cluster_ip_that_nobody_defines_has_a_reason_of_its_own(world in worlds(), mut walk in packets()) {
        let (outcome, key) = (decided(&world, &mut walk), walk.question.key);
        let is_cluster_ip = (0..7).any(|index| vip(index) == key.dst);
        prop_assert!(outcome != Err(DropReason::NoService) || !is_cluster_ip);
        prop_assert!(outcome != Err(DropReason::NoServicePort) || is_cluster_ip && u16::from_be(key.dport) != 80);
    }
}
