// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What differs between IPv4 and IPv6: header, flow key, flow table, rewrite.

use core::borrow::Borrow;

use weft_abi::{Addr, DropReason, FlowKey4, FlowKey6};
use weft_logic::{
    Frame,
    header::{self, Ipv4, Ipv6, Transport},
};

use crate::{
    rewrite::{self, Rewrite},
    skb::Skb,
    table::FlowTable,
};

/// An address family.
pub trait Family: FlowTable {
    /// The IP header.
    type Header: Copy;

    /// Bytes of Ethernet, IP and TCP headers.
    const HEADERS: usize;

    /// Whether it is IPv6.
    const IS_V6: bool;

    /// Parses the packet; without a transport header where it is not right behind the IP header.
    fn parse<P: Frame>(packet: &P) -> Result<(Self::Header, Option<Transport>), DropReason>;
    /// Finds the transport header behind options or extension headers, or of a datagram in pieces.
    fn parse_far(skb: &Skb) -> Result<Transport, DropReason>;
    /// The flow key of a packet.
    fn key(ifindex: u32, ip: &Self::Header, transport: &Transport) -> Self::Key;
    /// The family's own form of a key.
    fn narrow(key: &FlowKey6) -> impl Borrow<Self::Key>;
    /// The common form of a key.
    fn widen(key: &Self::Key) -> FlowKey6;
    /// Source and destination of a key; IPv4 addresses mapped.
    fn addresses(key: &Self::Key) -> (Addr, Addr);
    /// Whether routers may cut the packet into pieces.
    fn may_be_cut(ip: &Self::Header) -> bool;
    /// How many routers the packet may pass yet.
    fn hops(ip: &Self::Header) -> u8;
    /// Rewrites addresses and ports, and counts a router.
    fn rewrite(skb: &Skb, ip: &Self::Header, transport: &Transport, rewrite: Rewrite<'_>) -> Result<(), DropReason>;
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Family for V4 {
    type Header = Ipv4;
    const IS_V6: bool = false;
    const HEADERS: usize = header::ETHERNET + header::IPV4 + 20;

    #[inline(always)]
    fn parse<P: Frame>(packet: &P) -> Result<(Ipv4, Option<Transport>), DropReason> {
        header::ipv4(packet)
    }

    #[inline(always)]
    fn parse_far(skb: &Skb) -> Result<Transport, DropReason> {
        header::ipv4_far(skb)
    }

    #[inline(always)]
    fn key(ifindex: u32, ip: &Ipv4, transport: &Transport) -> FlowKey4 {
        let protocol = u32::from(transport.protocol);
        FlowKey4 { ifindex, src: ip.src, dst: ip.dst, sport: transport.sport, dport: transport.dport, protocol }
    }

    #[inline(always)]
    fn narrow(key: &FlowKey6) -> impl Borrow<FlowKey4> {
        FlowKey4::of(key)
    }

    #[inline(always)]
    fn widen(key: &FlowKey4) -> FlowKey6 {
        key.common()
    }

    #[inline(always)]
    fn addresses(key: &FlowKey4) -> (Addr, Addr) {
        (Addr::v4(key.src), Addr::v4(key.dst))
    }

    #[inline(always)]
    fn may_be_cut(ip: &Ipv4) -> bool {
        const DO_NOT: u16 = 0x4000_u16.to_be();
        ip.fragment & DO_NOT == 0
    }

    #[inline(always)]
    fn hops(ip: &Ipv4) -> u8 {
        ip.ttl
    }

    #[inline(always)]
    fn rewrite(skb: &Skb, ip: &Ipv4, transport: &Transport, rewrite: Rewrite<'_>) -> Result<(), DropReason> {
        rewrite::ipv4(skb, ip, transport, rewrite)
    }
}

impl Family for V6 {
    type Header = Ipv6;
    const IS_V6: bool = true;
    const HEADERS: usize = header::ETHERNET + header::IPV6 + 20;

    #[inline(always)]
    fn parse<P: Frame>(packet: &P) -> Result<(Ipv6, Option<Transport>), DropReason> {
        header::ipv6(packet)
    }

    #[inline(always)]
    fn parse_far(skb: &Skb) -> Result<Transport, DropReason> {
        header::ipv6_far(skb)
    }

    #[inline(always)]
    fn key(ifindex: u32, ip: &Ipv6, transport: &Transport) -> FlowKey6 {
        let protocol = u32::from(transport.protocol);
        FlowKey6 { ifindex, src: ip.src, dst: ip.dst, sport: transport.sport, dport: transport.dport, protocol }
    }

    #[inline(always)]
    fn narrow(key: &FlowKey6) -> impl Borrow<FlowKey6> {
        key
    }

    #[inline(always)]
    fn widen(key: &FlowKey6) -> FlowKey6 {
        *key
    }

    #[inline(always)]
    fn addresses(key: &FlowKey6) -> (Addr, Addr) {
        (key.src, key.dst)
    }

    #[inline(always)]
    fn may_be_cut(_: &Ipv6) -> bool {
        false
    }

    #[inline(always)]
    fn hops(ip: &Ipv6) -> u8 {
        ip.hop_limit
    }

    #[inline(always)]
    fn rewrite(skb: &Skb, ip: &Ipv6, transport: &Transport, rewrite: Rewrite<'_>) -> Result<(), DropReason> {
        rewrite::ipv6(skb, ip, transport, rewrite)
    }
}
