// SPDX-License-Identifier: Apache-2.0

//! A3: plain packets on the node's network whose source is somebody inside.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use weft_probe::frames::{FrameSender, Offload};

use super::{
    Case,
    attacker::Family,
    drops::counted,
    frame::{self, Link},
    net::{Place as _, mac_of},
    site::{self, PORT, PROTECTED, SEALED, Site},
    witness::{Mark, Witness},
};
use crate::{container::Container, node::Node};

/// The reason that counts these attacks.
const REASON: &str = "source-address";

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        let mut add = |what: &str, run: fn(&Site, Family) -> Result<()>| {
            cases.push(Case::new(format!("A3/{what}/neighbour/{family}"), move |site: &Site| run(site, family)));
        };
        add("as-a-pod-of-another-node", as_a_pod_of_another_node);
        add("as-a-pod-of-the-node", as_a_pod_of_the_node);
        add("as-a-service", as_a_service);
        add("as-the-node-to-a-pod", as_the_node_to_a_pod);
        add("as-the-node-to-a-service", as_the_node_to_a_service);
        add("as-a-pod-to-a-service", as_a_pod_to_a_service);
    }
    cases
}

/// The cases of nodes that are joined by routes.
pub(super) fn native_cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        let mut add = |what: &str, run: fn(&Site, Family) -> Result<()>| {
            cases.push(Case::new(format!("A3/routed-{what}/neighbour/{family}"), move |site: &Site| run(site, family)));
        };
        add("as-a-pod-of-another-node", as_a_pod_that_has_routes);
        add("as-a-pod-of-the-node", as_a_pod_of_the_node);
        add("as-the-node-to-a-service", as_the_node_to_a_service);
    }
    cases
}

/// The neighbour's side of the wire.
pub(super) struct Wire {
    sender: FrameSender,
    link: Link,
}

impl Wire {
    /// To a node.
    pub(super) fn to(site: &Site, node: &Node) -> Result<Self> {
        let link = Link { to: mac_of(node, "eth0")?, from: mac_of(site.outside(), "eth0")? };
        Ok(Self { sender: site.outside().sender("eth0", false)?, link })
    }

    pub(super) fn link(&self) -> Link {
        self.link
    }

    pub(super) fn send(&self, frame: &[u8]) -> Result<()> {
        self.sender.send(frame, Offload::default()).context("send on the wire")
    }

    /// A datagram whose source is free to choose.
    pub(super) fn datagram(&self, from: SocketAddr, to: SocketAddr, mark: &Mark) -> Result<()> {
        self.send(&frame::udp(self.link, from, to, mark))
    }
}

/// That `pod` does not hear what the neighbour sends to `to` as `from`, and does hear `honest`.
fn is_not_heard(
    site: &Site,
    pod: &Container,
    from: IpAddr,
    to: SocketAddr,
    honest: impl Fn(&Mark) -> Result<()>,
) -> Result<()> {
    is_counted(site, REASON, pod, from, to, honest)
}

/// As [`is_not_heard`], for another reason.
fn is_counted(
    site: &Site,
    reason: &str,
    pod: &Container,
    from: IpAddr,
    to: SocketAddr,
    honest: impl Fn(&Mark) -> Result<()>,
) -> Result<()> {
    let wire = Wire::to(site, site.own())?;
    let receiver = pod.receiver("eth0")?;
    let from = SocketAddr::new(from, 5_600);
    counted(site.own(), reason, || {
        Witness::new("the pod", &receiver).refuses(|mark| wire.datagram(from, to, mark), honest)
    })
}

/// Its node is a neighbour, whose Ethernet address is known.
fn as_a_pod_that_has_routes(site: &Site, family: Family) -> Result<()> {
    let victim = &site.victims[0];
    let to = SocketAddr::new(family.of(victim.addresses())?, PORT);
    let friend = family.of(site.friends[1].addresses())?;
    is_counted(site, "source-mac", victim, friend, to, |mark| site.honest(&site.friends[1], to, mark))
}

fn as_a_pod_of_another_node(site: &Site, family: Family) -> Result<()> {
    let victim = &site.victims[0];
    let to = SocketAddr::new(family.of(victim.addresses())?, PORT);
    let friend = family.of(site.friends[1].addresses())?;
    is_not_heard(site, victim, friend, to, |mark| site.honest(&site.friends[1], to, mark))
}

fn as_a_pod_of_the_node(site: &Site, family: Family) -> Result<()> {
    let victim = &site.victims[0];
    let to = SocketAddr::new(family.of(victim.addresses())?, PORT);
    let friend = family.of(site.friends[0].addresses())?;
    is_not_heard(site, victim, friend, to, |mark| site.honest(&site.friends[0], to, mark))
}

/// Everybody outside may reach this pod: only the source is wrong.
fn as_a_service(site: &Site, family: Family) -> Result<()> {
    let to = SocketAddr::new(family.of(site.open[0].addresses())?, PORT);
    let service = family.pick(SEALED[0], SEALED[1]).parse()?;
    is_not_heard(site, &site.open[0], service, to, |mark| site.honest(&site.hostile, to, mark))
}

fn as_the_node_to_a_pod(site: &Site, family: Family) -> Result<()> {
    let to = SocketAddr::new(family.of(site.open[0].addresses())?, PORT);
    let node = site.own().address_for(family.any());
    is_not_heard(site, &site.open[0], node, to, |mark| site::datagram(site.own(), to, mark))
}

/// The node's own packets pass every ingress policy (probes); forwarded ones must not pass for them.
fn as_the_node_to_a_service(site: &Site, family: Family) -> Result<()> {
    let to = SocketAddr::new(family.pick(SEALED[0], SEALED[1]).parse()?, PORT);
    let node = site.own().address_for(family.any());
    is_not_forwarded(site, &site.sealed, node, to)
}

fn as_a_pod_to_a_service(site: &Site, family: Family) -> Result<()> {
    let to = SocketAddr::new(family.pick(PROTECTED[0], PROTECTED[1]).parse()?, PORT);
    let friend = family.of(site.friends[1].addresses())?;
    is_not_forwarded(site, &site.victims[0], friend, to)
}

/// As [`is_not_heard`], where the host's stack forwards the packet to `to`, a Service. Who drops it (Weft, or the stack for
/// its own source) is not said; that the stack forwards, the outside's own datagram to an open Service shows.
fn is_not_forwarded(site: &Site, pod: &Container, from: IpAddr, to: SocketAddr) -> Result<()> {
    let wire = Wire::to(site, site.own())?;
    let receiver = pod.receiver("eth0")?;
    let from = SocketAddr::new(from, 5_600);
    Witness::new("the pod", &receiver)
        .refuses(|mark| wire.datagram(from, to, mark), |mark| site::datagram(site.own(), to, mark))
}
