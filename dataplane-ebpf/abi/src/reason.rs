// SPDX-License-Identifier: Apache-2.0
//! Why packets are dropped, and other counters.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident, $(#[$table_meta:meta])* $table:ident: $($variant:ident = $text:literal, $help:literal;)+) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u8)]
        pub enum $name {
            $(#[doc = $help] $variant,)+
        }

        $(#[$table_meta])*
        pub const $table: &[(&str, &str)] = &[$(($text, $help)),+];

        impl $name {
            /// Every value, in the order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name shown to people.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

numbered! {
    /// Why a packet was dropped; the index of its counter.
    DropReason,
    /// Name and meaning of each [`DropReason`], by number.
    DROP_REASONS:
    Truncated = "truncated", "a header reaches past the end of the packet";
    BadHeader = "bad-header", "a length or version field contradicts itself";
    ExtensionHeaders = "extension-headers", "more IPv6 extension headers than Weft follows, or an unknown one";
    UnknownEtherType = "unknown-ethertype", "neither IPv4, IPv6 nor ARP";
    UnknownPort = "unknown-port", "the interface has no port entry: the workload is not attached (yet)";
    SourceMac = "source-mac", "the sender's Ethernet address is not that of the workload or node whose address it has";
    SourceAddress = "source-address", "the sender's IP address is not the workload's; from the uplink: is a pod's, a Service's or the node's own";
    ArpSpoofed = "arp-spoofed", "an ARP or neighbour message claims an address that is not the workload's";
    Multicast = "multicast", "multicast, broadcast and link-local traffic is not forwarded";
    PolicyEgress = "policy-egress", "no NetworkPolicy that selects the sender allows it";
    PolicyIngress = "policy-ingress", "no NetworkPolicy that selects the receiver allows it";
    NoBackend = "no-backend", "the Service has no ready backend";
    NoService = "no-service", "no Service has this address; where it is no ClusterIP: this address and port";
    NoEndpoint = "no-endpoint", "no workload of this node has this address";
    NoRoute = "no-route", "nothing leads to this address in this address family";
    FragmentUnknown = "fragment-unknown", "a later fragment came before its first one, or too late";
    MasqueradeFull = "masquerade-full", "no free port towards this destination in the masquerade range";
    FlowTable = "flow-table", "the flow table refused an entry";
    IcmpUnrelated = "icmp-unrelated", "an ICMP error about a packet that no flow knows";
    Unrewritable = "unrewritable", "the packet's protocol cannot be translated (SCTP in pieces with another port)";
    TunnelPeer = "tunnel-peer", "encapsulated by somebody who is no node or does not own the source address, or for another network";
    Unmarked = "unmarked", "reached a workload's interface past the dataplane";
    Kernel = "kernel", "a kernel helper refused the packet";
    Encapsulated = "encapsulated", "encapsulation towards a node on Weft's port that is not Weft's own";
    ChecksumOffload = "checksum-offload", "a checksum or segmentation to be done elsewhere than in the transport header";
    Vlan = "vlan", "the frame has a VLAN tag";
    SourceRoute = "source-route", "an IPv4 option that names routers to go by";
    HopLimit = "hop-limit", "the packet has passed as many routers as it may";
    MasqueradeTaken = "masquerade-taken", "another workload speaks this protocol, which has no ports to tell them apart, to this destination";
    FlowShare = "flow-share", "the workload has taken its share of the flow table";
    FlowRate = "flow-rate", "the workload opens new flows faster than its rate";
    AnswerRate = "answer-rate", "the workload asks the node itself (ARP, neighbour discovery, DHCP, ICMP) faster than its rate";
    TooBig = "too-big", "larger than the way out of the node takes; its sender was told, unless it lets routers cut it (IPv4): then it fits no datagram between nodes";
    TupleTaken = "tuple-taken", "another connection looks the same once it is translated, and the protocol's ports cannot change";
    FragmentShare = "fragment-share", "the workload sends datagrams in pieces faster than its rate";
    NoServicePort = "no-service-port", "the ClusterIP has no such port";
    NoMasqueradeAddress = "no-masquerade-address", "none of masqueradeAddresses that it could leave with is on the node";
    Takeover = "takeover", "programs of another version are being exchanged for these, and a connection that only they know must not begin anew: it is sent again";
    FlowBusy = "flow-busy", "other CPUs write to this part of the flow table all the time: it is sent again";
    NoLocalBackend = "no-local-backend", "the Service's traffic policy is Local, and none of its ready backends is on this node";
    SourceRange = "source-range", "the client is in none of the Service's loadBalancerSourceRanges";
}

numbered! {
    /// Events that are counted, per CPU; the index of the counter.
    Counter,
    /// Name and meaning of each [`Counter`], by number.
    COUNTERS:
    EventsLost = "events-lost", "events that the ring buffer had no room for";
    FlowHits = "flow-hits", "packets decided by their flow entry alone";
    FlowMisses = "flow-misses", "packets without a flow entry";
    FlowsRedecided = "flows-redecided", "packets whose flow entry was void or of an older generation";
    ArpAnswered = "arp-answered", "ARP and neighbour solicitations answered";
    IcmpAnswered = "icmp-answered", "packets answered by an ICMP error";
    EventsHeld = "events-held", "events of drops beyond the rate of their port and reason";
    Reset = "reset", "TCP packets answered by RST: nobody serves where they go to";
    FlowsGivenUp = "flows-given-up", "connections that were over, closed or unanswered and made room for another one, whose part of the flow table was full";
}

impl DropReason {
    /// Whether the sender is told at once (TCP: RST; else: unreachable port), as a host does on whose ports nobody listens.
    #[must_use]
    pub const fn is_told(self) -> bool {
        matches!(self, Self::NoBackend | Self::NoServicePort)
    }
}

crate::layout! {
    /// A counter of packets and bytes.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
    pub struct Tally {
        /// Packets.
        pub packets: u64,
        /// Bytes, Ethernet header included.
        pub bytes: u64,
    }
}

crate::pod!(Tally);
