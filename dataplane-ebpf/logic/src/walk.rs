// SPDX-License-Identifier: Apache-2.0
//! One packet on the slow path: what it asks, and what is decided.

use weft_abi::{Addr, AffinityKey, ConnectionFlags, Flow, FlowKey6, FragmentKey};

use crate::masquerade::Choice;

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

/// What the flow table has on the connection of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Standing {
    /// Nothing, or what is over: the packet opens a connection.
    New = 0,
    /// The packet is of the side that opened it.
    Opener = 1,
    /// The packet is of the side that answers: the question is the opener's, turned round.
    Answer = 2,
}

impl Standing {
    /// Which side of a connection that stands sends the packets of `flow`.
    #[inline(always)]
    #[must_use]
    pub const fn of(flow: &Flow) -> Self {
        if flow.connection.flags & ConnectionFlags::REPLY != 0 { Self::Answer } else { Self::Opener }
    }
}

/// A packet that no standing decision is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Question {
    /// The packet before any rewrite; IPv4 addresses are mapped.
    pub key: FlowKey6,
    /// The node that encapsulated it.
    pub tunnel_peer: Addr,
    /// [`Sender`].
    pub sender: u32,
    /// Now, in ticks of [`weft_abi::TICK_SHIFT`].
    pub now: u32,
    /// A random word.
    pub random: u32,
    /// Ethernet source of the frame.
    pub sender_mac: [u8; 6],
    /// [`Origin`] of what the host sends.
    pub origin: u8,
    /// [`Standing`].
    pub standing: u8,
    /// There is an entry for `key`, though none to go by.
    pub found: u8,
    /// The packet is IPv6.
    pub is_v6: u8,
    /// Flags of the TCP header, else 0.
    pub tcp_flags: u8,
    /// Not 0: an ICMP error asks for the packet that it is about, and who sent the error is no matter of this packet's source.
    pub related: u8,
    /// Not 0: both sides of its connection were heard.
    pub answered: u8,
    /// Reserved, zero.
    pub pad: [u8; 3],
}

impl Question {
    /// Whether the packet is of the side that answers.
    #[inline(always)]
    #[must_use]
    pub const fn answers(&self) -> bool {
        self.standing == Standing::Answer as u8
    }

    /// Whether its connection stands.
    #[inline(always)]
    #[must_use]
    pub const fn stands(&self) -> bool {
        self.standing != Standing::New as u8
    }

    /// Who sent it.
    #[inline(always)]
    #[must_use]
    pub const fn is_from(&self, sender: Sender) -> bool {
        self.sender == sender as u32
    }
}

/// Where an end of a connection is, seen from this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Place {
    /// A workload of this node, behind its port.
    Workload = 0,
    /// The node's host, behind `weft0`.
    Host = 1,
    /// Another node, by the tunnel.
    Tunnel = 2,
    /// A neighbour on the uplink.
    Neighbour = 3,
    /// Beyond the uplink, as the host's routes say.
    Outside = 4,
}

/// A generation, and the value that it had when a decision was made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GenerationRef {
    /// Its slot in `GENERATIONS`, of a Service port in `SERVICE_GENERATIONS`; 0: there is none to compare.
    pub slot: u32,
    /// The value then.
    pub generation: u32,
}

/// One end of a connection: how it is reached, and how it is known as the sender of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct End {
    /// Decision list of the direction that counts: egress of the side that opens, ingress of the other one.
    pub list: u64,
    /// The node, or next hop, that leads to it.
    pub next_hop: Addr,
    /// The node that encapsulates what it sends.
    pub peer: Addr,
    /// The workload's generation, else the routes'.
    pub generation: GenerationRef,
    /// The device that leads to it.
    pub ifindex: u32,
    /// Its Ethernet address: a workload's, or that of a neighbour.
    pub mac: [u8; 6],
    /// [`Place`].
    pub place: u8,
    /// [`weft_abi::PortKind`].
    pub kind: u8,
    /// What it sends must have `mac` as its source.
    pub checks_mac: u8,
    /// Reserved, zero.
    pub pad: [u8; 7],
}

impl End {
    /// Whether it is a workload of this node.
    #[inline(always)]
    #[must_use]
    pub const fn is_here(&self) -> bool {
        self.place == Place::Workload as u8
    }

    /// Whether it is there.
    #[inline(always)]
    #[must_use]
    pub const fn is_at(&self, place: Place) -> bool {
        self.place == place as u8
    }
}

/// The answer to a [`Question`], for the whole connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Decision {
    /// Key of the packets of the side that opened it.
    pub opener: FlowKey6,
    /// Where they go after load balancing.
    pub target: Addr,
    /// The address that a masqueraded source becomes.
    pub source: Addr,
    /// The side that opened it.
    pub client: End,
    /// The side that answers, behind `target`.
    pub server: End,
    /// Whose backend is to be remembered, where `keeps_client` says so.
    pub affinity: AffinityKey,
    /// The Service port's generation.
    pub service: GenerationRef,
    /// Value of the epoch at the start.
    pub epoch: u32,
    /// Numbers of the rules that decided, of egress and of ingress; see [`weft_abi::rule`].
    pub rules: [u32; 2],
    /// The network that both ends are in: the sender's.
    pub net: u32,
    /// The target's port, network byte order.
    pub target_port: u16,
    /// A Service was addressed.
    pub translated: u8,
    /// How the source is masqueraded, see [`crate::masquerade::kind`].
    pub masquerade: u8,
    /// The client is the host itself: ingress policy does not apply (kubelet's probes).
    pub own_host: u8,
    /// A backend was chosen for a client that the Service keeps there: `affinity` names it.
    pub keeps_client: u8,
    /// A backend was chosen whose connections are counted.
    pub counts_load: u8,
    /// Reserved, zero.
    pub pad: u8,
}

impl Decision {
    /// Of the sender's policies.
    pub const EGRESS: usize = 0;
    /// Of the receiver's policies.
    pub const INGRESS: usize = 1;
}

/// What is known of one packet on its way through the slow path. Lives in a per-CPU map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// What the packet asks.
    pub question: Question,
    /// What was decided.
    pub decision: Decision,
    /// The entry for the question's key. Before the decision: the entry as it was, where the connection stands.
    pub forward: Flow,
    /// The entry for `reverse_key`; of a question that answers there is none to make.
    pub reverse: Flow,
    /// Key of the packets that answer.
    pub reverse_key: FlowKey6,
    /// The packet that an ICMP error is about, as its sender saw it.
    pub about: FlowKey6,
    /// Where that packet's transport header is.
    pub about_offset: u32,
    /// What that packet is for whom the error goes to.
    pub about_there: FlowKey6,
    /// The error's sender is the receiver of that packet, not a router on its way.
    pub from_end: u8,
    /// The entry that the error goes by was decided before something moved.
    pub has_moved: u8,
    /// Not 0: the packet is a piece of a datagram that goes by the host's stack, see [`weft_abi::Datagram::by_stack`].
    pub by_stack: u8,
    /// What the flow table has refused to this packet, see [`Refused`]: it does nothing more there.
    pub refused: u8,
    /// Identification that a piece of a datagram is masqueraded with, as in the packet.
    pub masqueraded_id: u32,
    /// Where the datagram is remembered that the packet is a piece of.
    pub datagram: FragmentKey,
    /// What a slow parse found.
    pub far: Far,
    /// The address that it leaves with, of several of the node's.
    pub choice: Choice,
}

/// Why the flow table does nothing for a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Refused {
    /// It does.
    Nothing = 0,
    /// Others wrote all the time: what is there is not known, and must not be taken for nothing.
    Busy = 1,
    /// There is no room.
    Full = 2,
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
