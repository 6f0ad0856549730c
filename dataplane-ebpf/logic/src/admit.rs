// SPDX-License-Identifier: Apache-2.0
//! The source check: nobody speaks for another.

use weft_abi::{Addr, Config, DropReason, LocalKind, Remote, RemoteKind};

use crate::{
    Tables, address,
    decide::{self, Origin, Sender, Walk},
    protocol,
};

/// Checks the sender of `walk.key` by its hook, and sets the sending workload and whether it is the host itself.
///
/// | From | Sources that are admitted |
/// |---|---|
/// | a workload | its own, by its own Ethernet address |
/// | the host itself, or the dataplane by way of the host's stack | any |
/// | another device, forwarded by the host | those that the uplink admits, and the node's own |
/// | the overlay | pods of the node that encapsulated the packet, and its own addresses |
/// | the uplink | all but pods', Services' and the node's own; in native mode other nodes' pods by their node's Ethernet address |
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub(crate) fn admit<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    walk.from.here = 0;
    (walk.own_host, walk.from_neighbour) = (0, 0);
    if address::is_unroutable(&walk.key.src) {
        return Err(DropReason::SourceAddress);
    }
    match walk.sender {
        sender if sender == Sender::Workload as u32 => admit_workload(tables, walk),
        sender if sender == Sender::Host as u32 => admit_host(tables, walk),
        sender if sender == Sender::Overlay as u32 => admit_overlay(tables, walk),
        _ => admit_uplink(tables, walk),
    }
}

#[inline(always)]
fn admit_workload<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    let port = tables.port(walk.key.ifindex).ok_or(DropReason::UnknownPort)?;
    if walk.sender_mac != port.mac {
        return Err(DropReason::SourceMac);
    }
    let own = if walk.is_v6 == 0 { &port.v4 } else { &port.v6 };
    if *own != walk.key.src {
        return Err(DropReason::SourceAddress);
    }
    decide::set_party(&mut walk.from, port, port.egress_policy, decide::workload_generation(tables, port));
    Ok(())
}

#[inline(always)]
fn admit_host<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    let own = tables.local(&walk.key.src).is_some_and(|local| local.kind == LocalKind::Host as u32);
    walk.own_host = (own && walk.origin == Origin::Own as u8).into();
    if own || walk.origin != Origin::Elsewhere as u8 {
        return Ok(());
    }
    // The frame that the host forwards has no Ethernet address of its sender any more.
    let remote = tables.remote(&walk.key.src);
    if is_taken(remote) || neighbour(remote).is_some() || tables.local(&walk.key.src).is_some() {
        return Err(DropReason::SourceAddress);
    }
    Ok(())
}

#[inline(always)]
fn admit_overlay<T: Tables>(tables: &T, walk: &Walk) -> Result<(), DropReason> {
    let remote = tables.remote(&walk.key.src).ok_or(DropReason::TunnelPeer)?;
    let of_a_node = remote.kind == RemoteKind::Tunnel as u32 || remote.kind == RemoteKind::Node as u32;
    if !of_a_node || remote.via != walk.tunnel_peer || tables.local(&walk.key.src).is_some() {
        return Err(DropReason::TunnelPeer);
    }
    Ok(())
}

/// Checks the source of a packet that came in by the uplink. A pod of a node that is a neighbour there is heard from that
/// node's Ethernet address, which the decision then goes by (`walk.from_neighbour`).
///
/// # Errors
/// [`DropReason::SourceAddress`], [`DropReason::SourceMac`].
#[inline(always)]
fn admit_uplink<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    let remote = tables.remote(&walk.key.src);
    if is_taken(remote) || tables.local(&walk.key.src).is_some() {
        return Err(DropReason::SourceAddress);
    }
    let Some(mac) = neighbour(remote) else { return Ok(()) };
    if *mac != walk.sender_mac || *mac == [0; 6] {
        return Err(DropReason::SourceMac);
    }
    walk.from_neighbour = 1;
    Ok(())
}

/// Whether nobody outside may have an address of this prefix: it is a Service's, or a pod's that is reached by a tunnel or not at
/// all.
#[inline(always)]
fn is_taken(remote: Option<&Remote>) -> bool {
    let heard = [RemoteKind::Native as u32, RemoteKind::Routed as u32, RemoteKind::Node as u32];
    remote.is_some_and(|remote| !heard.contains(&remote.kind))
}

/// The Ethernet address of the neighbour on the uplink whose pods have this prefix.
#[inline(always)]
fn neighbour(remote: Option<&Remote>) -> Option<&[u8; 6]> {
    remote.filter(|remote| remote.kind == RemoteKind::Native as u32).map(|remote| &remote.mac)
}

/// Checks a packet from the uplink that is the host stack's business: it may not speak for a pod, a Service or the node
/// either, and what is encapsulated is for the address that the other nodes know. The VXLAN device listens on all addresses
/// of the node, and workloads of other nodes may reach those that nobody knows with their node's address as source. Who
/// encapsulated it is asked of what is inside, by the overlay's hook.
///
/// # Errors
/// [`DropReason::SourceAddress`], [`DropReason::SourceMac`], [`DropReason::Encapsulated`].
#[inline(always)]
pub fn admit_for_host<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    let config: &Config = tables.config().ok_or(DropReason::UnknownPort)?;
    if is_encapsulation(config, walk.key.protocol, walk.key.dport)
        && *known_address(config, walk.is_v6 != 0) != walk.key.dst
        && is_of_a_node(tables, &walk.key.dst)
    {
        return Err(DropReason::Encapsulated);
    }
    admit_uplink(tables, walk)
}

/// Whether a packet of this protocol to this port (network byte order) is encapsulated as nodes do it.
#[inline(always)]
pub(crate) const fn is_encapsulation(config: &Config, protocol_number: u32, port: u16) -> bool {
    config.vxlan_port != 0 && port == config.vxlan_port && protocol_number == protocol::UDP as u32
}

/// The node's address of a family that the other nodes know.
#[inline(always)]
#[must_use]
pub const fn known_address(config: &Config, is_v6: bool) -> &Addr {
    if is_v6 { &config.node_v6 } else { &config.node_v4 }
}

/// Whether `addr` is an address of this node or another one.
#[inline(always)]
fn is_of_a_node<T: Tables>(tables: &T, addr: &Addr) -> bool {
    tables.local(addr).is_some_and(|local| local.kind == LocalKind::Host as u32)
        || tables.remote(addr).is_some_and(|remote| remote.kind == RemoteKind::Node as u32)
}
