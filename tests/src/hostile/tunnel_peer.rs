// SPDX-License-Identifier: Apache-2.0

//! A2: who may speak in the overlay. A neighbour that is no node, a node that speaks for others, and a wrong network.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result};

use super::{
    Case,
    attacker::Family,
    drops::counted,
    encapsulation::{INNER, STRANGER},
    frame,
    net::Place as _,
    site::{PORT, Site, VNI, VXLAN},
    witness::{Mark, Witness},
};

/// The reason that counts these attacks.
const REASON: &str = "tunnel-peer";

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        let mut add = |what: &str, who: &str, run: fn(&Site, Family) -> Result<()>| {
            cases.push(Case::new(format!("A2/{what}/{who}/{family}"), move |site: &Site| run(site, family)));
        };
        add("new-flow-to-a-pod", "neighbour", new_flow_to_a_pod);
        add("new-flow-to-a-pod-over-ipv6", "neighbour", new_flow_to_a_pod_over_ipv6);
        add("new-flow-to-the-host", "neighbour", new_flow_to_the_host);
        add("for-a-pod-of-another-node", "neighbour", for_a_pod_of_another_node);
        add("into-an-established-flow", "neighbour", into_an_established_flow);
        add("into-an-established-flow-over-ipv6", "neighbour", into_an_established_flow_over_ipv6);
        add("other-network-new-flow", "node", other_network_new_flow);
        add("other-network-established-flow", "node", other_network_established_flow);
        add("for-a-pod-of-the-receiving-node", "node", for_a_pod_of_the_receiving_node);
        add("for-the-receiving-node", "node", for_the_receiving_node);
    }
    cases
}

/// Somebody who sends encapsulated frames to node 1.
struct Tunnel {
    socket: UdpSocket,
    node: SocketAddr,
    vni: u32,
}

impl Tunnel {
    /// The neighbour on the wire that is no node.
    fn of_a_neighbour(site: &Site, underlay: Family) -> Result<Self> {
        let socket = site.outside().udp(SocketAddr::new(underlay.any(), 0))?;
        Ok(Self { socket, node: SocketAddr::new(site.own().address_for(underlay.any()), VXLAN), vni: VNI })
    }

    /// Node 2 itself.
    fn of_the_peer(site: &Site, vni: u32) -> Result<Self> {
        let socket = site.peer().udp(SocketAddr::new(Family::V4.any(), 0))?;
        Ok(Self { socket, node: SocketAddr::new(site.own().v4().into(), VXLAN), vni })
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, mark: &Mark) -> Result<()> {
        let payload = frame::vxlan(self.vni, &frame::udp(INNER, from, to, mark));
        self.socket.send_to(&payload, self.node).map(drop).context("send an encapsulated frame")
    }
}

fn stranger(family: Family) -> SocketAddr {
    SocketAddr::new(family.pick(STRANGER.0, STRANGER.1), PORT)
}

fn at(family: Family, addresses: &[IpAddr]) -> Result<SocketAddr> {
    Ok(SocketAddr::new(family.of(addresses)?, PORT))
}

fn to_a_pod(site: &Site, family: Family, tunnel: &Tunnel, from: SocketAddr) -> Result<()> {
    let pod = &site.open[0];
    let to = at(family, pod.addresses())?;
    let receiver = pod.receiver("eth0")?;
    counted(site.own(), REASON, || {
        Witness::new("a pod", &receiver)
            .refuses(|mark| tunnel.send(from, to, mark), |mark| site.honest(&site.friends[1], to, mark))
    })
}

fn new_flow_to_a_pod(site: &Site, family: Family) -> Result<()> {
    to_a_pod(site, family, &Tunnel::of_a_neighbour(site, Family::V4)?, stranger(family))
}

fn new_flow_to_a_pod_over_ipv6(site: &Site, family: Family) -> Result<()> {
    to_a_pod(site, family, &Tunnel::of_a_neighbour(site, Family::V6)?, stranger(family))
}

fn for_a_pod_of_another_node(site: &Site, family: Family) -> Result<()> {
    let from = at(family, site.open[1].addresses())?;
    to_a_pod(site, family, &Tunnel::of_a_neighbour(site, Family::V4)?, from)
}

fn for_a_pod_of_the_receiving_node(site: &Site, family: Family) -> Result<()> {
    let from = at(family, site.friends[0].addresses())?;
    to_a_pod(site, family, &Tunnel::of_the_peer(site, VNI)?, from)
}

fn other_network_new_flow(site: &Site, family: Family) -> Result<()> {
    let from = at(family, site.open[1].addresses())?;
    to_a_pod(site, family, &Tunnel::of_the_peer(site, 4_242)?, from)
}

fn to_the_host(site: &Site, family: Family, tunnel: &Tunnel, from: SocketAddr) -> Result<()> {
    let to = SocketAddr::new(site.own().address_for(family.any()), PORT);
    let socket = site.own().udp(SocketAddr::new(family.any(), PORT))?;
    counted(site.own(), REASON, || {
        Witness::new("the host's socket", &socket)
            .refuses(|mark| tunnel.send(from, to, mark), |mark| site.honest(&site.hostile, to, mark))
    })
}

fn new_flow_to_the_host(site: &Site, family: Family) -> Result<()> {
    to_the_host(site, family, &Tunnel::of_a_neighbour(site, Family::V4)?, stranger(family))
}

fn for_the_receiving_node(site: &Site, family: Family) -> Result<()> {
    let from = SocketAddr::new(site.own().address_for(family.any()), PORT);
    to_the_host(site, family, &Tunnel::of_the_peer(site, VNI)?, from)
}

/// A pod of node 1 has asked one of node 2; `tunnel` answers in its place.
fn injected(site: &Site, family: Family, tunnel: &Tunnel) -> Result<()> {
    let client = site.friends[0].udp(SocketAddr::new(family.any(), 0))?;
    let server = at(family, site.open[1].addresses())?;
    let answers = site.open[1].udp(SocketAddr::new(family.any(), PORT))?;
    Witness::new("the server", &answers).sees(|mark| client.send_to(mark, server).map(drop).context("ask"))?;
    let asker = SocketAddr::new(family.of(site.friends[0].addresses())?, client.local_addr()?.port());
    counted(site.own(), REASON, || {
        Witness::new("the client's socket", &client).refuses(
            |mark| tunnel.send(server, asker, mark),
            |mark| answers.send_to(mark, asker).map(drop).context("answer"),
        )
    })
}

fn into_an_established_flow(site: &Site, family: Family) -> Result<()> {
    injected(site, family, &Tunnel::of_a_neighbour(site, Family::V4)?)
}

fn into_an_established_flow_over_ipv6(site: &Site, family: Family) -> Result<()> {
    injected(site, family, &Tunnel::of_a_neighbour(site, Family::V6)?)
}

fn other_network_established_flow(site: &Site, family: Family) -> Result<()> {
    injected(site, family, &Tunnel::of_the_peer(site, 4_242)?)
}
