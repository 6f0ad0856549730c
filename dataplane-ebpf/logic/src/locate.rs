// SPDX-License-Identifier: Apache-2.0
//! Where the ends of a connection are.

use weft_abi::{
    Addr, CLUSTER_NET, Config, DropReason, HAIRPIN_V4, HAIRPIN_V6, OVERLAY, Port, Remote, RemoteFlags, RemoteKind,
    UPLINK, class_of,
};

use crate::{
    Tables, admit, masquerade,
    walk::{Decision, End, Place, Question, Sender},
};

/// Where the target is: sets the server's end, and how the source is masqueraded.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub(crate) fn server<T: Tables>(
    tables: &T,
    config: &Config,
    question: &Question,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    decision.masquerade = masquerade::NONE;
    let generation = admit::routes(tables);
    if let Some(owner) = tables.owner(decision.net, &decision.target) {
        if owner.is_host() {
            refuse_encapsulation(decision, config)?;
            admit::set_place(&mut decision.server, Place::Host, config.host_ifindex, generation);
            return Ok(());
        }
        let port = port_in(tables, decision.net, owner.ifindex).ok_or(DropReason::NoEndpoint)?;
        admit::set_workload(tables, &mut decision.server, owner.ifindex, port, false);
        return Ok(());
    }
    // What came through a tunnel ends here, unless it is a NodePort's: with routes of two times, nodes would send it to each other for
    // ever.
    if question.is_from(Sender::Overlay) && decision.translated == 0 {
        return Err(DropReason::NoEndpoint);
    }
    let Some(remote) = tables.remote(decision.net, &decision.target) else {
        return outside(tables, config, question, decision);
    };
    match remote.kind {
        kind if kind == RemoteKind::Node as u32 => {
            refuse_encapsulation(decision, config)?;
            if !goes_by_tunnel(question, config, remote) {
                let is_plain = remote.flags & RemoteFlags::PLAIN != 0 && remote.via.is_unspecified();
                return if is_plain {
                    leave(tables, config, decision)
                } else {
                    outside(tables, config, question, decision)
                };
            }
        }
        kind if kind == RemoteKind::Plain as u32 => return leave(tables, config, decision),
        kind if kind == RemoteKind::Services as u32 => return Err(DropReason::NoService),
        kind if kind == RemoteKind::Unreachable as u32 => return Err(DropReason::NoRoute),
        kind if kind == RemoteKind::OwnPods as u32 => return Err(DropReason::NoEndpoint),
        _ => {}
    }
    set_remote(&mut decision.server, config, remote);
    decision.server.generation = generation;
    Ok(())
}

/// An end on another node, or behind a next hop; without its generation.
#[inline(always)]
fn set_remote(end: &mut End, config: &Config, remote: &Remote) {
    let generation = end.generation;
    if remote.kind == RemoteKind::Tunnel as u32 || remote.kind == RemoteKind::Node as u32 {
        admit::set_place(end, Place::Tunnel, config.overlay_ifindex, generation);
        end.peer = remote.via;
    } else {
        admit::set_place(end, Place::Neighbour, config.uplink_ifindex, generation);
        if remote.kind == RemoteKind::Native as u32 {
            (end.mac, end.checks_mac) = (remote.mac, 1);
        }
    }
    end.next_hop = remote.via;
}

/// Nodes hear encapsulated packets from nodes, told by their addresses, and what leaves the node has its address: only the
/// VXLAN device may encapsulate towards them. Elsewhere a workload may have an overlay of its own.
#[inline(always)]
fn refuse_encapsulation(decision: &Decision, config: &Config) -> Result<(), DropReason> {
    if admit::is_encapsulation(config, decision.opener.protocol, decision.target_port) {
        return Err(DropReason::Encapsulated);
    }
    Ok(())
}

/// A workload whose address is left alone reaches other nodes by the tunnel: on their uplinks no pod is heard.
#[inline(always)]
fn goes_by_tunnel(question: &Question, config: &Config, remote: &Remote) -> bool {
    question.is_from(Sender::Workload)
        && (masquerade::is_plain(config, question.is_v6 != 0) || remote.flags & RemoteFlags::PLAIN != 0)
        && !remote.via.is_unspecified()
}

#[inline(always)]
fn outside<T: Tables>(
    tables: &T,
    config: &Config,
    question: &Question,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    leave(tables, config, decision)?;
    // What a workload sends to the outside leaves with the node's address, unless that is off.
    if question.is_from(Sender::Workload) {
        decision.masquerade = masquerade::kind(config, &question.key, question.is_v6 != 0)?;
        decision.source = masquerade::source(config, question.is_v6 != 0);
    }
    Ok(())
}

/// Lets what somebody beyond this node asks of a Service be answered through it: towards another node and the outside it leaves with
/// this node's address, and towards the host with one whose packets the host sends through `weft0`. A workload of this node answers
/// through its port, and sees who asks.
///
/// # Errors
/// [`DropReason::NoRoute`]: the node has no address of this family.
#[inline(always)]
pub(crate) fn bring_answers_back(
    config: &Config,
    question: &Question,
    decision: &mut Decision,
) -> Result<(), DropReason> {
    let of_node = decision.client.is_here() || decision.own_host != 0;
    if decision.translated == 0 || of_node || decision.server.is_here() {
        return Ok(());
    }
    let is_v6 = question.is_v6 != 0;
    if decision.server.is_at(Place::Host) {
        decision.masquerade = masquerade::WITH_PORT;
        decision.source = if is_v6 { HAIRPIN_V6 } else { HAIRPIN_V4 };
        return Ok(());
    }
    decision.masquerade = masquerade::kind_of(question.key.protocol);
    decision.source = *admit::known_address(config, is_v6);
    if decision.source.is_unspecified() { Err(DropReason::NoRoute) } else { Ok(()) }
}

/// To the outside with the addresses that the packet has.
#[inline(always)]
fn leave<T: Tables>(tables: &T, config: &Config, decision: &mut Decision) -> Result<(), DropReason> {
    // The node's own routes are the cluster's. Another network ends where its own prefixes do.
    if decision.net != CLUSTER_NET {
        return Err(DropReason::NoRoute);
    }
    // Link-local, and here only: what answers it has an entry.
    if decision.target == HAIRPIN_V4 || decision.target == HAIRPIN_V6 {
        return Err(DropReason::NoRoute);
    }
    admit::set_place(&mut decision.server, Place::Outside, config.uplink_ifindex, admit::routes(tables));
    Ok(())
}

/// What the host's routes say of an address beyond the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// The device that leads there.
    pub ifindex: u32,
    /// The next hop there, which may be of the other family (RFC 5549); the address itself where that is on the link.
    pub next_hop: Addr,
    /// The source that the host itself would take; unspecified: not told.
    pub source: Addr,
}

/// The address that the host's routes are asked for: of the end beyond the uplink that some packet goes to. None: no packet does.
/// Where the question is of an answer (`answers`), nothing goes to the server.
#[inline(always)]
#[must_use]
pub fn beyond(decision: &Decision, answers: bool) -> Option<&Addr> {
    if leads_out(decision, answers) {
        Some(&decision.target)
    } else if decision.client.is_at(Place::Outside) {
        Some(&decision.opener.src)
    } else {
        None
    }
}

/// Source, source port and destination port (network byte order) of the packets that go to the address of [`beyond`], as the
/// host's rules would see them: before masquerade, after load balancing.
#[inline(always)]
#[must_use]
pub fn leaving(decision: &Decision, answers: bool) -> (&Addr, u16, u16) {
    let Decision { opener, target, target_port, .. } = decision;
    if leads_out(decision, answers) {
        (&opener.src, opener.sport, *target_port)
    } else {
        (target, *target_port, opener.sport)
    }
}

/// Whether packets go to a server beyond the uplink.
#[inline(always)]
fn leads_out(decision: &Decision, answers: bool) -> bool {
    !answers && decision.server.is_at(Place::Outside)
}

/// Sends what goes to the address of [`beyond`] where the host itself would send it, masqueraded with the source that it would take.
#[inline(always)]
pub fn follow(decision: &mut Decision, answers: bool, route: &Route) {
    if !leads_out(decision, answers) {
        (decision.client.ifindex, decision.client.next_hop) = (route.ifindex, route.next_hop);
        return;
    }
    (decision.server.ifindex, decision.server.next_hop) = (route.ifindex, route.next_hop);
    if !route.source.is_unspecified() {
        decision.source = route.source;
    }
}

/// Where the side is that opened the connection: where its packets come from. Sets the client's end.
///
/// # Errors
/// [`DropReason::NoEndpoint`]: its port is gone, or another's address now; [`DropReason::NoRoute`]: its node is.
#[inline(always)]
pub(crate) fn client<T: Tables>(tables: &T, config: &Config, decision: &mut Decision) -> Result<(), DropReason> {
    let (ifindex, address, net) = (decision.opener.ifindex, decision.opener.src, decision.net);
    let (end, generation) = (&mut decision.client, admit::routes(tables));
    if class_of(ifindex) == UPLINK {
        admit::set_place(end, Place::Outside, config.uplink_ifindex, generation);
    } else if class_of(ifindex) == OVERLAY {
        let remote = tables.remote(net, &address).ok_or(DropReason::NoRoute)?;
        let of_a_node = remote.kind == RemoteKind::Tunnel as u32 || remote.kind == RemoteKind::Node as u32;
        if !of_a_node {
            return Err(DropReason::NoRoute);
        }
        set_remote(end, config, remote);
        end.generation = generation;
    } else if ifindex == config.host_ifindex {
        admit::set_place(end, Place::Host, ifindex, generation);
    } else {
        let port = own_port(tables, net, &address, ifindex).ok_or(DropReason::NoEndpoint)?;
        admit::set_workload(tables, end, ifindex, port, true);
    }
    Ok(())
}

/// The port of this index, where the address leads to it.
#[inline(always)]
fn own_port<'t, T: Tables>(tables: &'t T, net: u32, address: &Addr, ifindex: u32) -> Option<&'t Port> {
    admit::leads_to(tables.owner(net, address), ifindex).then(|| port_in(tables, net, ifindex))?
}

/// The port of this index in this network. The index may be another port's by now, in another one.
#[inline(always)]
fn port_in<T: Tables>(tables: &T, net: u32, ifindex: u32) -> Option<&Port> {
    tables.port(ifindex).filter(|port| port.net == net)
}
