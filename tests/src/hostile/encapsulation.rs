// SPDX-License-Identifier: Apache-2.0

//! A1: a workload encapsulates frames itself, to pass for its node's tunnel.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Case,
    attacker::{Attacker, Family, Who},
    drops::counted,
    frame::{self, Frame, Link},
    net::Place as _,
    site::{self, PORT, Site, VNI, VXLAN},
    uplink::Wire,
    witness::{Mark, Witness},
};
use crate::{node::Node, shell::Shell as _, wait::until_ok};

/// Somebody who is nowhere in the bed.
pub(super) const STRANGER: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x88, 0, 0, 0, 0, 9)));
/// Gateways of the pods of node 1.
const GATEWAYS: (IpAddr, IpAddr) =
    (IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 1, 0, 0, 0, 1)));
/// A Service that leads to VXLAN's port of node 2.
const DOOR: [&str; 2] = ["10.96.0.41", "fd00:96::41"];
/// A Service that leads to an honest port of it.
const HONEST_DOOR: [&str; 2] = ["10.96.0.43", "fd00:96::43"];
/// The reason that counts these attacks.
const REASON: &str = "encapsulated";
/// How many ARP requests one attack has.
const REQUESTS: u8 = 16;

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for who in Who::ALL {
        for family in Family::ALL {
            let mut add = |what: &str, run: fn(&Site, Who, Family) -> Result<()>| {
                cases.push(Case::new(format!("A1/{what}/{who}/{family}"), move |site: &Site| run(site, who, family)));
            };
            add("to-another-node", to_another_node);
            add("to-another-node-over-ipv6", to_another_node_over_ipv6);
            add("to-the-own-node", to_the_own_node);
            add("to-the-gateway", to_the_gateway);
            add("through-a-service", through_a_service);
            add("answer-for-another-pod", answer_for_another_pod);
            add("own-overlay-goes-on", own_overlay_goes_on);
        }
        cases.push(Case::new(format!("A1/arp-of-any-network/{who}/ipv4"), move |site: &Site| arp(site, who)));
    }
    for family in Family::ALL {
        cases.push(Case::new(format!("A1/forwarded/neighbour/{family}"), move |site: &Site| forwarded(site, family)));
    }
    cases
}

/// Addresses inside a tunnel's frame.
pub(super) const INNER: Link = Link { to: weft_abi::GATEWAY_MAC, from: weft_abi::OVERLAY_MAC };

/// The attacker's datagram to `node` on VXLAN's port, with `inner` inside.
fn encapsulated(attacker: &Attacker<'_>, node: SocketAddr, inner: &[u8]) -> Result<Vec<Frame>> {
    let family = if node.is_ipv4() { Family::V4 } else { Family::V6 };
    let payload = frame::vxlan(VNI, inner);
    Ok(vec![frame::udp(attacker.link(), attacker.socket(family, 5555)?, node, &payload).into()])
}

/// The source is a friend on the attacker's node: masqueraded, the frame comes from the node that owns it.
fn to_another_node(site: &Site, who: Who, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    let victim = SocketAddr::new(family.of(site.victims[1].addresses())?, PORT);
    let friend = SocketAddr::new(family.of(site.friends[0].addresses())?, PORT);
    let node = SocketAddr::new(site.peer().v4().into(), VXLAN);
    let receiver = site.victims[1].receiver("eth0")?;
    let attack = |mark: &Mark| attacker.send(&encapsulated(&attacker, node, &frame::udp(INNER, friend, victim, mark))?);
    counted(site.own(), REASON, || {
        Witness::new("the other node's protected pod", &receiver)
            .refuses(attack, |mark| site.honest(&site.friends[0], victim, mark))
    })
}

/// That a host's socket hears no stranger from inside a frame that the attacker sends to `underlay`.
fn host_hears_no_stranger(
    site: &Site,
    attacker: &Attacker<'_>,
    victim: &Node,
    underlay: SocketAddr,
    family: Family,
) -> Result<()> {
    let socket = victim.udp(SocketAddr::new(family.any(), PORT))?;
    let target = SocketAddr::new(victim.address_for(family.any()), PORT);
    let stranger = SocketAddr::new(family.pick(STRANGER.0, STRANGER.1), PORT);
    let attack =
        |mark: &Mark| attacker.send(&encapsulated(attacker, underlay, &frame::udp(INNER, stranger, target, mark))?);
    counted(site.own(), REASON, || {
        Witness::new(format!("a socket of {}", victim.name()), &socket)
            .refuses(attack, |mark| site.honest(&site.hostile, target, mark))
    })
}

fn to_another_node_over_ipv6(site: &Site, who: Who, family: Family) -> Result<()> {
    let underlay = SocketAddr::new(site.peer().v6().into(), VXLAN);
    host_hears_no_stranger(site, &site.attacker(who)?, site.peer(), underlay, family)
}

fn to_the_own_node(site: &Site, who: Who, family: Family) -> Result<()> {
    let underlay = SocketAddr::new(site.own().address_for(family.any()), VXLAN);
    host_hears_no_stranger(site, &site.attacker(who)?, site.own(), underlay, family)
}

fn to_the_gateway(site: &Site, who: Who, family: Family) -> Result<()> {
    let underlay = SocketAddr::new(family.pick(GATEWAYS.0, GATEWAYS.1), VXLAN);
    host_hears_no_stranger(site, &site.attacker(who)?, site.own(), underlay, family)
}

/// A Service whose backend is a node's VXLAN port, for the time of `work`.
fn with_door(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let node = site.peer();
    let ports = |port| [(node.v4().into(), port), (node.v6().into(), port)];
    let mut objects = site::leads_to("honest-door", HONEST_DOOR, PORT, ports(PORT));
    objects.extend(site::leads_to("door", DOOR, PORT, ports(VXLAN)));
    for object in &objects {
        site.bed.apply(object)?;
    }
    let known = until_ok("the Service", Duration::from_secs(10), || {
        let services: Vec<weft_api::ServiceReport> = site.own().weft_json("services")?;
        let doors = services.iter().filter(|service| service.name.ends_with("door"));
        let backends: usize = doors.flat_map(|door| &door.ports).map(|port| port.backends.len()).sum();
        ensure!(backends == 8, "{backends} backends");
        Ok(())
    });
    let outcome = known.and_then(|()| work());
    for object in &objects {
        site.bed.delete(object)?;
    }
    outcome
}

/// The address of a Service becomes the node's only after the packet was let in.
fn through_a_service(site: &Site, who: Who, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    with_door(site, || {
        let door = SocketAddr::new(family.pick(DOOR[0], DOOR[1]).parse()?, PORT);
        host_hears_no_stranger(site, &attacker, site.peer(), door, family)
    })
}

/// A friend on the other node asks a pod on the attacker's; the attacker answers in its place.
fn answer_for_another_pod(site: &Site, who: Who, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    let client = site.friends[1].udp(SocketAddr::new(family.any(), 0))?;
    let server = SocketAddr::new(family.of(site.open[0].addresses())?, PORT);
    let answers = site.open[0].udp(SocketAddr::new(family.any(), PORT))?;
    let seen = Witness::new("the server", &answers);
    seen.sees(|mark| client.send_to(mark, server).map(drop).context("ask"))?;
    let client_at = SocketAddr::new(family.of(site.friends[1].addresses())?, client.local_addr()?.port());
    let node = SocketAddr::new(site.peer().v4().into(), VXLAN);
    let attack =
        |mark: &Mark| attacker.send(&encapsulated(&attacker, node, &frame::udp(INNER, server, client_at, mark))?);
    counted(site.own(), REASON, || {
        Witness::new("the client's socket", &client)
            .refuses(attack, |mark| answers.send_to(mark, client_at).map(drop).context("answer"))
    })
}

/// Encapsulation on the same port towards what is no node, and on another port towards a node, is a guest's own business.
fn own_overlay_goes_on(site: &Site, who: Who, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    let own = attacker.socket(family, 5556)?;
    let inner = |mark: &Mark| frame::vxlan(77, &frame::udp(INNER, own, own, mark));
    let outside = site.outside().udp(SocketAddr::new(family.any(), VXLAN))?;
    let pod = site.open[1].udp(SocketAddr::new(family.any(), VXLAN))?;
    let node = site.peer().udp(SocketAddr::new(family.any(), 4789))?;
    let places = [
        ("the outside", &outside, SocketAddr::new(site.outside().address_for(family.any()), VXLAN)),
        ("another pod", &pod, SocketAddr::new(family.of(site.open[1].addresses())?, VXLAN)),
        ("another port of the other node", &node, SocketAddr::new(site.peer().address_for(family.any()), 4789)),
    ];
    for (place, socket, to) in places {
        let send = |mark: &Mark| attacker.send(&[frame::udp(attacker.link(), own, to, &inner(mark)).into()]);
        Witness::new(place, socket).sees(send)?;
    }
    Ok(())
}

/// ARP inside a tunnel's frame, of any network, must not fill the node's neighbour table.
fn arp(site: &Site, who: Who) -> Result<()> {
    let attacker = site.attacker(who)?;
    let own = site.own();
    let node = SocketAddr::new(own.v4().into(), VXLAN);
    let mut frames = Vec::new();
    for number in 0..REQUESTS {
        let link = Link { to: [0xff; 6], from: [2, 0, 0, 0, 1, number] };
        let request = frame::arp(link, [198, 51, network(who), number], own.v4().octets());
        let payload = frame::vxlan(4_000 + u32::from(number), &request);
        frames.push(frame::udp(attacker.link(), attacker.socket(Family::V4, 5557)?, node, &payload).into());
    }
    counted(own, REASON, || {
        attacker.send(&frames)?;
        honest_neighbour_is_learned(site)?;
        neighbours_are_free(site, network(who))
    })
}

/// What one attacker left, the next must not be blamed for.
const fn network(who: Who) -> u8 {
    100 + who as u8
}

fn neighbours_are_free(site: &Site, network: u8) -> Result<()> {
    let table = site.own().sh("ip neigh show dev weft_vxlan")?.ok()?;
    let forged = table.lines().filter(|line| line.starts_with(&format!("198.51.{network}."))).count();
    ensure!(forged == 0, "the node's neighbour table has {forged} entries of the attack");
    Ok(())
}

/// What the witness of [`arp`] would see: a neighbour on the wire that asks is learned.
fn honest_neighbour_is_learned(site: &Site) -> Result<()> {
    let own = site.own();
    let wire = site.outside().sender("eth0", false)?;
    let request =
        frame::arp(Link { to: [0xff; 6], from: [2, 0, 0, 0, 1, 99] }, [192, 168, 119, 199], own.v4().octets());
    wire.send(&request, weft_probe::frames::Offload::default())?;
    until_ok("the neighbour to be learned", Duration::from_secs(5), || {
        let table = own.sh("ip neigh show dev eth0")?.ok()?;
        ensure!(table.contains("192.168.119.199"), "{table}");
        Ok(())
    })
}

/// A neighbour of the node lets it forward the frame: by way of a Service that leads to the other node's VXLAN port.
fn forwarded(site: &Site, family: Family) -> Result<()> {
    with_door(site, || {
        let wire = Wire::to(site, site.own())?;
        let from = SocketAddr::new(site.outside().address_for(family.any()), 5558);
        let honest = SocketAddr::new(family.pick(HONEST_DOOR[0], HONEST_DOOR[1]).parse()?, PORT);
        let door = SocketAddr::new(family.pick(DOOR[0], DOOR[1]).parse()?, PORT);
        let stranger = SocketAddr::new(family.pick(STRANGER.0, STRANGER.1), PORT);
        let target = SocketAddr::new(site.peer().address_for(family.any()), PORT);
        let socket = site.peer().udp(SocketAddr::new(family.any(), PORT))?;
        let attack = |mark: &Mark| {
            let payload = frame::vxlan(VNI, &frame::udp(INNER, stranger, target, mark));
            wire.send(&frame::udp(wire.link(), from, door, &payload))
        };
        Witness::new("a socket of the other node", &socket).refuses(attack, |mark| wire.datagram(from, honest, mark))
    })
}
