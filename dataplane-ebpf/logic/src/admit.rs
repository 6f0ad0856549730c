// SPDX-License-Identifier: Apache-2.0
//! The source check: nobody speaks for another.

use weft_abi::{Addr, CLUSTER_NET, Config, DropReason, Owner, Port, Remote, RemoteKind, generation, net_of_class};

use crate::{
    Tables, address, protocol,
    walk::{End, GenerationRef, Origin, Place, Question, Sender},
};

/// Checks the sender of a question by its hook; the end that it is, and the network that it is in. `own_host` is set where it is
/// the host itself.
///
/// | From | Sources that are admitted |
/// |---|---|
/// | a workload | those that lead to its port, by its own Ethernet address |
/// | the host itself, or the dataplane by way of the host's stack | any |
/// | another device, forwarded by the host | those that the uplink admits, and the node's own |
/// | the overlay | pods of the node that encapsulated the packet, and its own addresses |
/// | the uplink | all but pods', Services' and the node's own; in native mode other nodes' pods by their node's Ethernet address |
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub(crate) fn admit<T: Tables>(
    tables: &T,
    config: &Config,
    question: &Question,
    end: &mut End,
    net: &mut u32,
    own_host: &mut u8,
) -> Result<(), DropReason> {
    *own_host = 0;
    // The host is in the cluster's network alone.
    *net = net_of_class(question.key.ifindex).unwrap_or(CLUSTER_NET);
    if address::is_unroutable(&question.key.src) {
        return Err(DropReason::SourceAddress);
    }
    match question.sender {
        sender if sender == Sender::Workload as u32 => admit_workload(tables, question, end, net),
        sender if sender == Sender::Host as u32 => {
            *own_host = admit_host(tables, question)?.into();
            set_place(end, Place::Host, config.host_ifindex, routes(tables));
            Ok(())
        }
        sender if sender == Sender::Overlay as u32 => {
            set_place(end, Place::Tunnel, config.overlay_ifindex, routes(tables));
            admit_overlay(tables, *net, question, end)
        }
        _ => {
            set_place(end, Place::Outside, config.uplink_ifindex, routes(tables));
            admit_uplink(tables, *net, question, end)
        }
    }
}

/// The routes' generation.
#[inline(always)]
pub(crate) fn routes<T: Tables>(tables: &T) -> GenerationRef {
    GenerationRef { slot: generation::ROUTES, generation: tables.generation(generation::ROUTES) }
}

/// An end beyond a port.
#[inline(always)]
pub(crate) const fn set_place(end: &mut End, place: Place, ifindex: u32, generation: GenerationRef) {
    end.place = place as u8;
    end.ifindex = ifindex;
    end.generation = generation;
    end.next_hop = Addr::UNSPECIFIED;
    end.peer = Addr::UNSPECIFIED;
    end.mac = [0; 6];
    end.checks_mac = 0;
    end.list = weft_abi::NO_LIST;
}

/// A workload of this node as an end: the one that `opens` the connection is held to its egress policy, the other one to ingress.
#[inline(always)]
pub(crate) fn set_workload<T: Tables>(tables: &T, end: &mut End, ifindex: u32, port: &Port, opens: bool) {
    let generation = GenerationRef { slot: port.workload, generation: tables.generation(port.workload) };
    set_place(end, Place::Workload, ifindex, generation);
    end.list = if opens { port.egress_list } else { port.ingress_list };
    end.mac = port.mac;
    end.kind = port.kind;
    end.checks_mac = 1;
}

#[inline(always)]
fn admit_workload<T: Tables>(tables: &T, question: &Question, end: &mut End, net: &mut u32) -> Result<(), DropReason> {
    let port = tables.port(question.key.ifindex).ok_or(DropReason::UnknownPort)?;
    // What an error is about was the workload's own once before; who sends the error is looked at elsewhere.
    if question.sender_mac != port.mac && question.related == 0 {
        return Err(DropReason::SourceMac);
    }
    *net = port.net;
    if !leads_to(tables.owner(port.net, &question.key.src), question.key.ifindex) {
        return Err(DropReason::SourceAddress);
    }
    set_workload(tables, end, question.key.ifindex, port, !question.answers());
    Ok(())
}

/// Whether an address is of the workload behind this port.
#[inline(always)]
#[must_use]
pub fn leads_to(owner: Option<&Owner>, ifindex: u32) -> bool {
    owner.is_some_and(|owner| owner.ifindex == ifindex && owner.is_workload())
}

/// Whether it is the host itself.
#[inline(always)]
fn admit_host<T: Tables>(tables: &T, question: &Question) -> Result<bool, DropReason> {
    let src = &question.key.src;
    let own = tables.owner(CLUSTER_NET, src).is_some_and(Owner::is_host);
    if own || question.origin != Origin::Elsewhere as u8 {
        return Ok(own && question.origin == Origin::Own as u8);
    }
    // The frame that the host forwards has no Ethernet address of its sender any more.
    let remote = tables.remote(CLUSTER_NET, src);
    if is_taken(remote) || neighbour(remote).is_some() || tables.owner(CLUSTER_NET, src).is_some() {
        return Err(DropReason::SourceAddress);
    }
    Ok(false)
}

#[inline(always)]
fn admit_overlay<T: Tables>(tables: &T, net: u32, question: &Question, end: &mut End) -> Result<(), DropReason> {
    let remote = tables.remote(net, &question.key.src).ok_or(DropReason::TunnelPeer)?;
    let of_a_node = remote.kind == RemoteKind::Tunnel as u32 || remote.kind == RemoteKind::Node as u32;
    if !of_a_node || tables.owner(net, &question.key.src).is_some() {
        return Err(DropReason::TunnelPeer);
    }
    (end.next_hop, end.peer) = (remote.via, question.tunnel_peer);
    if !is_same_node(tables, &question.tunnel_peer, &remote.via) {
        return Err(DropReason::TunnelPeer);
    }
    Ok(())
}

/// Whether `peer` is an address of the node that is reached at `via`: a node may encapsulate from any of its own, which are of the
/// cluster's network.
#[inline(always)]
fn is_same_node<T: Tables>(tables: &T, peer: &Addr, via: &Addr) -> bool {
    !via.is_unspecified()
        && (*peer == *via
            || tables
                .remote(CLUSTER_NET, peer)
                .is_some_and(|remote| remote.kind == RemoteKind::Node as u32 && remote.via == *via))
}

/// Checks the source of a packet that came in by the uplink. A pod of a node that is a neighbour there is heard from that
/// node's Ethernet address, which the decision then goes by.
///
/// # Errors
/// [`DropReason::SourceAddress`], [`DropReason::SourceMac`].
#[inline(always)]
fn admit_uplink<T: Tables>(tables: &T, net: u32, question: &Question, end: &mut End) -> Result<(), DropReason> {
    let remote = tables.remote(net, &question.key.src);
    if is_taken(remote) || tables.owner(net, &question.key.src).is_some() {
        return Err(DropReason::SourceAddress);
    }
    let Some(mac) = neighbour(remote) else { return Ok(()) };
    if question.related == 0 && (*mac != question.sender_mac || *mac == [0; 6]) {
        return Err(DropReason::SourceMac);
    }
    (end.mac, end.checks_mac) = (*mac, 1);
    Ok(())
}

/// Whether nobody outside may have an address of this prefix: it is a Service's, or a pod's that is reached by a tunnel or not at
/// all.
#[inline(always)]
fn is_taken(remote: Option<&Remote>) -> bool {
    let heard =
        [RemoteKind::Native as u32, RemoteKind::Routed as u32, RemoteKind::Node as u32, RemoteKind::Plain as u32];
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
pub fn admit_for_host<T: Tables>(tables: &T, question: &Question, end: &mut End) -> Result<(), DropReason> {
    let config: &Config = tables.config().ok_or(DropReason::UnknownPort)?;
    if is_encapsulation(config, question.key.protocol, question.key.dport)
        && *known_address(config, question.is_v6 != 0) != question.key.dst
        && is_of_a_node(tables, &question.key.dst)
    {
        return Err(DropReason::Encapsulated);
    }
    admit_uplink(tables, CLUSTER_NET, question, end)
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
    tables.owner(CLUSTER_NET, addr).is_some_and(Owner::is_host)
        || tables.remote(CLUSTER_NET, addr).is_some_and(|remote| remote.kind == RemoteKind::Node as u32)
}
