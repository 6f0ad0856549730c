// SPDX-License-Identifier: Apache-2.0
//! The decision on the first packet of a flow: admit, translate, locate, judge.

use weft_abi::{
    Addr, Config, Deliver, DropReason, Flow, FlowFlags, FlowKey6, GenerationRef, HAIRPIN_V4, HAIRPIN_V6, LocalKind,
    Port, PortKind, Remote, RemoteKind, ServiceKey, SlotKey, generation,
};

use crate::{Tables, address, admit, masquerade, policy, protocol, select};

/// Who sent a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Sender {
    /// A workload, through its own port.
    Workload = 0,
    /// The node's host, through `weft0`.
    Host = 1,
    /// Another node, through the VXLAN device.
    Overlay = 2,
    /// Anybody, through the uplink.
    Uplink = 3,
}

/// Where the host has a packet from that it sends through `weft0`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Origin {
    /// One of its own processes made it.
    Own = 0,
    /// It forwards what came in through `weft0`: the dataplane has admitted its sender.
    Dataplane = 1,
    /// It forwards what came in by another device.
    Elsewhere = 2,
}

/// One packet under way: what is known of it, and the decision as it grows. Lives in a per-CPU map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// The packet before any rewrite; IPv4 addresses are mapped.
    pub key: FlowKey6,
    /// Key of the replies.
    pub reverse_key: FlowKey6,
    /// The entry for `key`. On entry to [`decide`] with `old`: the entry as it was.
    pub forward: Flow,
    /// The entry for `reverse_key`.
    pub reverse: Flow,
    /// Where it goes after load balancing.
    pub target: Addr,
    /// The node that encapsulated it.
    pub tunnel_peer: Addr,
    /// The sending workload.
    pub from: Party,
    /// The receiving workload; its generation is the routes' where it is not here.
    pub to: Party,
    /// The Service's generation.
    pub service: GenerationRef,
    /// Node or next hop of a remote target.
    pub remote: Addr,
    /// Device to the target.
    pub ifindex: u32,
    /// [`Sender`].
    pub sender: u32,
    /// Value of the epoch at the start.
    pub epoch: u32,
    /// Now, in ticks of [`weft_abi::TICK_SHIFT`].
    pub now: u32,
    /// A random word.
    pub random: u32,
    /// Policy set that denied it, or 0.
    pub denied_by: u32,
    /// The target's port, network byte order.
    pub target_port: u16,
    /// Ethernet source of the frame.
    pub sender_mac: [u8; 6],
    /// `forward` holds an older decision on this flow.
    pub old: u8,
    /// A Service was addressed.
    pub translated: u8,
    /// How the source is masqueraded, see [`masquerade::kind`]; the caller finds a port for it.
    pub masquerade: u8,
    /// The packet is IPv6.
    pub is_v6: u8,
    /// Flags of the TCP header, else 0.
    pub tcp_flags: u8,
    /// [`Deliver`].
    pub deliver: u8,
    /// The sender is the host itself: ingress policy does not apply (kubelet's probes).
    pub own_host: u8,
    /// [`Origin`] of what the host sends.
    pub origin: u8,
    /// There is an entry for `key`, though none to go by.
    pub found: u8,
    /// The sender is a pod of a node that is a neighbour, by whose Ethernet address the frame was checked.
    pub from_neighbour: u8,
    /// The target is a pod of a node that is a neighbour: `remote_mac`, zero where it is not known, must answer.
    pub to_neighbour: u8,
    /// See `to_neighbour`.
    pub remote_mac: [u8; 6],
    /// Identification that a piece of a datagram is masqueraded with, as in the packet.
    pub masqueraded_id: u32,
    /// What a slow parse found.
    pub far: Far,
}

/// A workload of this node on one end of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Party {
    /// Its generation.
    pub generation: GenerationRef,
    /// Policy set of the direction that counts: egress of a sender, ingress of a receiver.
    pub policy: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// There is one.
    pub here: u8,
    /// [`PortKind`].
    pub kind: u8,
}

/// A [`crate::header::Transport`] in a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Far {
    /// See [`crate::header::Transport::offset`].
    pub offset: u32,
    /// See [`crate::header::Transport::sport`].
    pub sport: u16,
    /// See [`crate::header::Transport::dport`].
    pub dport: u16,
    /// See [`crate::header::Transport::protocol`].
    pub protocol: u8,
    /// See [`crate::header::Transport::flags`].
    pub flags: u8,
    /// [`crate::header::Piece`].
    pub piece: u8,
    /// [`crate::header::Kind`].
    pub kind: u8,
}

/// A part of a decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Whether the sender is who it says.
    Admit,
    /// Which backend of a Service.
    Translate,
    /// Where the target is.
    Locate,
    /// What policy says.
    Judge,
}

impl Step {
    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Translate => "translate",
            Self::Locate => "locate",
            Self::Judge => "judge",
        }
    }
}

/// Decides on `walk.key`: admit, translate, locate, judge. On success [`crate::plan::plan`] makes both entries of it.
///
/// # Errors
/// The reason to drop the packet; nothing may be inserted then.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    walk.epoch = tables.generation(generation::EPOCH);
    if address::is_unroutable(&walk.key.dst) {
        return Err(DropReason::Multicast);
    }
    let config = tables.config().ok_or(DropReason::UnknownPort)?;
    tables.enter(Step::Admit);
    admit::admit(tables, walk)?;
    tables.enter(Step::Translate);
    translate(tables, walk)?;
    tables.enter(Step::Locate);
    locate(tables, walk, config)?;
    tables.enter(Step::Judge);
    judge(tables, walk)
}

/// Judges again a flow that answers another one (`walk.forward` with [`FlowFlags::REPLY`]): policy speaks of the direction
/// that was opened, so client and server change places.
///
/// # Errors
/// The reason to drop the packet.
#[inline(always)]
pub fn decide_reply<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    walk.epoch = tables.generation(generation::EPOCH);
    admit::admit(tables, walk)?;
    let rewritten = walk.forward.flags & FlowFlags::REWRITE_DST != 0;
    walk.target = if rewritten { walk.forward.dst } else { walk.key.dst };
    let protocol = walk.key.protocol as u8;
    let port = u16::from_be(walk.key.sport);
    walk.forward.service = GenerationRef::default();
    walk.forward.epoch = walk.epoch;
    if walk.sender == Sender::Overlay as u32 {
        walk.forward.remote = walk.tunnel_peer;
    }
    if walk.sender == Sender::Uplink as u32 {
        walk.forward.flags &= !FlowFlags::CHECK_MAC;
        if walk.from_neighbour != 0 {
            walk.forward.flags |= FlowFlags::CHECK_MAC;
            walk.forward.sender_mac = walk.sender_mac;
        }
    }
    walk.forward.last_seen = walk.now;
    let client = workload_at(tables, &walk.target);
    if client.is_none() && goes_to_workload(&walk.forward) {
        return Err(DropReason::NoEndpoint);
    }
    // Its own answer, by way of a Service.
    let hairpin = walk.from.here != 0 && walk.target == walk.key.src;
    if hairpin {
        (walk.forward.egress, walk.forward.ingress) = (walk.from.generation, walk.from.generation);
        return settle(tables, walk);
    }
    if let Some(client) = client {
        walk.forward.ingress = workload_generation(tables, client);
        if !policy::allows(tables, client.egress_policy, &walk.key.src, protocol, port) {
            walk.denied_by = client.egress_policy;
            return Err(DropReason::PolicyEgress);
        }
    }
    if walk.from.here != 0 {
        walk.forward.egress = walk.from.generation;
        let server = tables.port(walk.key.ifindex).ok_or(DropReason::UnknownPort)?;
        let exempt = walk.forward.flags & FlowFlags::FROM_HOST != 0;
        if !exempt && !policy::allows(tables, server.ingress_policy, &walk.target, protocol, port) {
            walk.denied_by = server.ingress_policy;
            return Err(DropReason::PolicyIngress);
        }
    }
    settle(tables, walk)
}

/// A decision on an answer that ran beside a change must not stand.
#[inline(always)]
fn settle<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    if moved(tables, walk) {
        walk.forward.service = NEVER;
    }
    Ok(())
}

#[inline(always)]
const fn goes_to_workload(flow: &Flow) -> bool {
    flow.deliver == Deliver::Peer as u8 || flow.deliver == Deliver::Port as u8
}

/// A generation that never is: a decision that ran beside a change must not stand.
pub const NEVER: GenerationRef = GenerationRef { slot: generation::ROUTES, generation: u32::MAX };

/// Whether something changed since the decision began.
#[inline(always)]
pub fn moved<T: Tables>(tables: &T, walk: &Walk) -> bool {
    tables.generation(generation::EPOCH) != walk.epoch
}

#[inline(always)]
pub(crate) fn set_party(party: &mut Party, port: &Port, policy: u32, generation: GenerationRef) {
    party.generation = generation;
    party.policy = policy;
    party.mac = port.mac;
    party.kind = port.kind;
    party.here = 1;
}

/// Load balancing: sets `target`, `target_port` and the Service's generation.
#[inline(always)]
fn translate<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    walk.target = walk.key.dst;
    walk.target_port = walk.key.dport;
    walk.translated = 0;
    walk.service = GenerationRef::default();
    let protocol = walk.key.protocol as u8;
    let key = ServiceKey { addr: walk.key.dst, port: walk.key.dport, protocol, pad: 0 };
    let Some(service) = tables.service(&key) else { return Ok(()) };
    walk.service = GenerationRef { slot: service.id, generation: tables.generation(service.id) };
    walk.translated = 1;
    if keeps_backend(walk) {
        walk.target = walk.forward.dst;
        walk.target_port = walk.forward.dport;
        return Ok(());
    }
    let index = select::index(walk.random, service.count);
    let slot = SlotKey { service: service.id, generation: service.generation, index };
    let backend = tables.slot(&slot).ok_or(DropReason::NoBackend)?;
    walk.target = backend.addr;
    walk.target_port = backend.port;
    if protocol == protocol::SCTP && backend.port != walk.key.dport {
        // SCTP's CRC32c covers the ports and cannot be updated from a difference in bounded time.
        return Err(DropReason::Unrewritable);
    }
    Ok(())
}

/// Established TCP stays with its backend while other backends come and go (Kubernetes' contract); UDP chooses again.
#[inline(always)]
fn keeps_backend(walk: &Walk) -> bool {
    walk.old != 0 && walk.key.protocol == u32::from(protocol::TCP) && walk.forward.flags & FlowFlags::REWRITE_DST != 0
}

/// Where the target is: sets `deliver`, `ifindex`, `remote` and the receiving party.
#[inline(always)]
fn locate<T: Tables>(tables: &T, walk: &mut Walk, config: &Config) -> Result<(), DropReason> {
    walk.to.here = 0;
    walk.to.policy = 0;
    walk.masquerade = masquerade::NONE;
    walk.remote = Addr::UNSPECIFIED;
    walk.to_neighbour = 0;
    walk.to.generation = GenerationRef { slot: generation::ROUTES, generation: tables.generation(generation::ROUTES) };
    if let Some(local) = tables.local(&walk.target) {
        if local.kind == LocalKind::Host as u32 {
            refuse_encapsulation(walk, config)?;
            return set_place(walk, Deliver::Host, config.host_ifindex);
        }
        let port = tables.port(local.ifindex).ok_or(DropReason::NoEndpoint)?;
        set_party(&mut walk.to, port, port.ingress_policy, workload_generation(tables, port));
        return set_place(walk, deliver_to(port.kind, walk.sender == Sender::Host as u32), local.ifindex);
    }
    // What came through a tunnel ends here: with routes of two times, nodes would send it to each other for ever.
    if walk.sender == Sender::Overlay as u32 {
        return Err(DropReason::NoEndpoint);
    }
    let Some(remote) = tables.remote(&walk.target) else { return outside(walk, config) };
    if remote.kind == RemoteKind::Node as u32 {
        refuse_encapsulation(walk, config)?;
        if !goes_by_tunnel(walk, config, remote) {
            return outside(walk, config);
        }
        walk.remote = remote.via;
        return set_place(walk, Deliver::Tunnel, config.overlay_ifindex);
    }
    walk.remote = remote.via;
    match remote.kind {
        kind if kind == RemoteKind::Tunnel as u32 => set_place(walk, Deliver::Tunnel, config.overlay_ifindex),
        kind if kind == RemoteKind::Native as u32 => {
            (walk.to_neighbour, walk.remote_mac) = (1, remote.mac);
            set_place(walk, Deliver::Neighbour, config.uplink_ifindex)
        }
        kind if kind == RemoteKind::Routed as u32 => set_place(walk, Deliver::Neighbour, config.uplink_ifindex),
        kind if kind == RemoteKind::Services as u32 => Err(DropReason::NoService),
        kind if kind == RemoteKind::Unreachable as u32 => Err(DropReason::NoRoute),
        _ => Err(DropReason::NoEndpoint),
    }
}

/// Nodes hear encapsulated packets from nodes, told by their addresses, and what leaves the node has its address: only the
/// VXLAN device may encapsulate towards them. Elsewhere a workload may have an overlay of its own.
#[inline(always)]
fn refuse_encapsulation(walk: &Walk, config: &Config) -> Result<(), DropReason> {
    if admit::is_encapsulation(config, walk.key.protocol, walk.target_port) {
        return Err(DropReason::Encapsulated);
    }
    Ok(())
}

/// A workload whose address is left alone reaches other nodes by the tunnel: on their uplinks no pod is heard.
#[inline(always)]
fn goes_by_tunnel(walk: &Walk, config: &Config, node: &Remote) -> bool {
    let plain = masquerade::is_plain(config, walk.is_v6 != 0);
    walk.sender == Sender::Workload as u32 && plain && !node.via.is_unspecified()
}

/// To other nodes themselves and whatever lies beyond.
#[inline(always)]
fn outside(walk: &mut Walk, config: &Config) -> Result<(), DropReason> {
    // Link-local, and here only: what answers it has an entry.
    if walk.target == HAIRPIN_V4 || walk.target == HAIRPIN_V6 {
        return Err(DropReason::NoRoute);
    }
    masqueraded(walk, config)?;
    set_place(walk, Deliver::Route, config.uplink_ifindex)
}

#[inline(always)]
fn set_place(walk: &mut Walk, deliver: Deliver, ifindex: u32) -> Result<(), DropReason> {
    walk.deliver = deliver as u8;
    walk.ifindex = ifindex;
    Ok(())
}

/// `bpf_redirect_peer` works from ingress hooks only, and the host's hook is an egress one.
#[inline(always)]
pub(crate) fn deliver_to(kind: u8, from_egress_hook: bool) -> Deliver {
    if kind == PortKind::Veth as u8 && !from_egress_hook { Deliver::Peer } else { Deliver::Port }
}

/// What a workload sends to the outside leaves with the node's address, unless that is off.
#[inline(always)]
fn masqueraded(walk: &mut Walk, config: &Config) -> Result<(), DropReason> {
    if walk.sender != Sender::Workload as u32 {
        return Ok(());
    }
    walk.masquerade = masquerade::kind(config, &walk.key, walk.is_v6 != 0)?;
    Ok(())
}

/// Egress after DNAT, ingress by the original source; a workload reaches itself, the host reaches its own workloads.
#[inline(always)]
fn judge<T: Tables>(tables: &T, walk: &mut Walk) -> Result<(), DropReason> {
    let protocol = walk.key.protocol as u8;
    let port = u16::from_be(walk.target_port);
    if walk.from.here != 0 && walk.target == walk.key.src {
        return Ok(());
    }
    if walk.from.here != 0 && !policy::allows(tables, walk.from.policy, &walk.target, protocol, port) {
        walk.denied_by = walk.from.policy;
        return Err(DropReason::PolicyEgress);
    }
    let judged = walk.to.here != 0 && walk.own_host == 0;
    if judged && !policy::allows(tables, walk.to.policy, &walk.key.src, protocol, port) {
        walk.denied_by = walk.to.policy;
        return Err(DropReason::PolicyIngress);
    }
    Ok(())
}

/// Whether `dst` is where a guest's DHCP client sends to: everybody on its link, its server, which is a gateway or the host.
/// Workloads, Services and whatever lies beyond the node are not: towards them the ports are like any other.
#[inline(always)]
pub fn is_configuration_server<T: Tables>(tables: &T, dst: &Addr) -> bool {
    if address::is_unroutable(dst) || address::is_link_local_v4(dst) {
        return true;
    }
    if let Some(local) = tables.local(dst) {
        return local.kind == LocalKind::Host as u32;
    }
    tables.remote(dst).is_some_and(|remote| remote.kind == RemoteKind::OwnPods as u32)
}

#[inline(always)]
pub(crate) fn workload_generation<T: Tables>(tables: &T, port: &Port) -> GenerationRef {
    GenerationRef { slot: port.workload, generation: tables.generation(port.workload) }
}

#[inline(always)]
fn workload_at<'t, T: Tables>(tables: &'t T, addr: &Addr) -> Option<&'t Port> {
    let local = tables.local(addr)?;
    if local.kind == LocalKind::Host as u32 { None } else { tables.port(local.ifindex) }
}
