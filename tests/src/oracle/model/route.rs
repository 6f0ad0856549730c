// SPDX-License-Identifier: Apache-2.0

//! Where an address is, and who may send with it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    super::{
        site::SERVICE_CIDRS,
        world::{From, Mode, Node, Packet, World},
    },
    frontend::hairpin,
};

/// Where an address is, seen from a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// A pod of the node, `namespace/name`.
    Pod(String),
    /// The node itself.
    Host,
    /// In the node's prefix for pods, and no pod has it; or of the node for itself, and nobody is there.
    OwnUnused,
    /// In another node's prefix for pods.
    OtherNode(String),
    /// A Service's prefix.
    Service,
    /// Anywhere else.
    Outside,
}

/// Where `address` is.
pub(super) fn place(world: &World, here: &str, address: IpAddr) -> Place {
    if address == hairpin(address.is_ipv4()) {
        return Place::OwnUnused;
    }
    if world.node(here).is_some_and(|node| is_of_node(node, address)) {
        return Place::Host;
    }
    let owns = |node: &&super::super::world::Node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address));
    if let Some(owner) = world.nodes.iter().find(owns) {
        if owner.name != here {
            return Place::OtherNode(owner.name.clone());
        }
        let pod =
            world.pods.iter().find(|pod| pod.node == here && !pod.host_network && pod.addresses.contains(&address));
        return pod.map_or(Place::OwnUnused, |pod| Place::Pod(pod.id()));
    }
    if is_service(address) { Place::Service } else { Place::Outside }
}

/// Whether an address is the node's own: one that others know it by, or the one that it speaks to pods with.
pub(super) fn is_of_node(node: &Node, address: IpAddr) -> bool {
    node.addresses.contains(&address) || node.pod_cidrs.iter().any(|cidr| offset(cidr, address) == Some(1))
}

/// The place of an address in a prefix; none: it is in another one. A node speaks to pods as the one at 1 of its pod CIDR.
pub(super) fn offset(cidr: &IpNet, address: IpAddr) -> Option<u128> {
    if !cidr.contains(&address) {
        return None;
    }
    match (cidr.network(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => Some((address.to_bits() - network.to_bits()).into()),
        (IpAddr::V6(network), IpAddr::V6(address)) => Some(address.to_bits() - network.to_bits()),
        _ => None,
    }
}

/// Whether an address is in a Service's prefix.
pub(in crate::oracle) fn is_service(address: IpAddr) -> bool {
    SERVICE_CIDRS.iter().filter_map(|text| text.parse::<IpNet>().ok()).any(|cidr| cidr.contains(&address))
}

/// Nobody speaks for another: a pod has its own addresses, and from the wire nobody is a pod that is elsewhere, a Service, or
/// the node itself.
pub(super) fn may_speak(world: &World, here: &str, packet: &Packet) -> bool {
    match &packet.from {
        From::Pod(id) => !packet.wrong_mac && world.pod(id).is_some_and(|pod| pod.addresses.contains(&packet.source)),
        From::Host => true,
        From::Wire => match place(world, here, packet.source) {
            Place::Outside => true,
            Place::OtherNode(_) => world.mode == Mode::Native,
            Place::Pod(_) | Place::Host | Place::OwnUnused | Place::Service => false,
        },
    }
}
