// SPDX-License-Identifier: Apache-2.0
//! Parsing of headers. Lengths that lie and headers that are cut are refused with a reason.

use weft_abi::{Addr, DropReason};

use crate::{Frame, protocol};

/// Bytes of an Ethernet header; Weft's ports carry no VLAN tags.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// IPv6 extension headers that are followed at most.
const MAX_EXTENSIONS: u32 = 8;
/// Bytes of IPv4 options at most, each of which may be an option.
const MAX_OPTIONS: u32 = 40;

/// EtherTypes (IEEE 802) in host byte order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// ICMP and ICMPv6 types that Weft looks at (IANA).
pub mod icmp {
    /// ICMP echo reply.
    pub const V4_ECHO_REPLY: u8 = 0;
    /// ICMP echo request.
    pub const V4_ECHO_REQUEST: u8 = 8;
    /// ICMPv6 echo request.
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// ICMPv6 echo reply.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// First of the ICMPv6 types that never leave a link: MLD (130-132), ND (133-137), ...
    pub const V6_FIRST_LINK_TYPE: u8 = 130;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
}

/// The flags byte of a TCP header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN or RST.
    #[inline(always)]
    #[must_use]
    pub const fn fin_or_rst(self) -> bool {
        self.0 & 0x05 != 0
    }

    /// RST.
    #[inline(always)]
    #[must_use]
    pub const fn rst(self) -> bool {
        self.0 & 0x04 != 0
    }

    /// SYN without ACK: it opens a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        self.syn() && !self.ack()
    }

    /// SYN.
    #[inline(always)]
    #[must_use]
    pub const fn syn(self) -> bool {
        self.0 & 0x02 != 0
    }

    /// ACK.
    #[inline(always)]
    #[must_use]
    pub const fn ack(self) -> bool {
        self.0 & 0x10 != 0
    }
}

/// An Ethernet header (IEEE 802.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ethernet {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// EtherType, network byte order.
    pub ethertype: u16,
}

/// An IPv4 header without options (RFC 791); fields in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

/// An IPv6 header (RFC 8200); fields in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_class_label: u32,
    /// Bytes after this header.
    pub payload_len: u16,
    /// Type of the next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
}

/// A TCP header without options (RFC 9293).
#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    sport: u16,
    dport: u16,
    seq: u32,
    ack: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

/// A UDP header (RFC 768); also the first 8 bytes of SCTP (ports, tag).
#[repr(C)]
#[derive(Clone, Copy)]
struct Udp {
    sport: u16,
    dport: u16,
    len: u16,
    checksum: u16,
}

/// An ICMP or ICMPv6 header with the first word of its body.
#[repr(C)]
#[derive(Clone, Copy)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: u16,
    id: u16,
    sequence: u16,
}

/// A generic IPv6 extension header; a fragment header fills all of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extension {
    next: u8,
    len: u8,
    fragment: u16,
    id: u32,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Piece {
    /// All of it.
    #[default]
    Whole,
    /// Its first fragment: it has the transport header.
    First,
    /// A later fragment: it has none.
    Later,
}

/// What the packet carries, as far as its handling differs; of ICMPv6 that never leaves a link it is the type.
///
/// No enum with a field: the compiler leaves the field undefined in the other variants, and the verifier refuses to spill that.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Kind(pub u8);

impl Kind {
    /// Something that flows: TCP, UDP, SCTP, echo, other protocols.
    pub const FLOW: Self = Self(0);
    /// An ICMP or ICMPv6 error: it belongs to the flow of the packet inside.
    pub const ICMP_ERROR: Self = Self(1);
}

/// What follows the IP header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transport {
    /// IP protocol number.
    pub protocol: u8,
    /// Flags of a TCP header, else 0.
    pub flags: TcpFlags,
    /// Source port, network byte order; identifier of an echo request.
    pub sport: u16,
    /// Destination port, network byte order; identifier of an echo reply.
    pub dport: u16,
    /// Where the transport header starts in the frame.
    pub offset: usize,
    /// Which part of a datagram.
    pub piece: Piece,
    /// Identification of the datagram, where it is in pieces.
    pub fragment_id: u32,
    /// What it carries.
    pub kind: Kind,
}

/// Parses an IPv4 header and, where it is right behind and whole, the transport header; `None`: [`ipv4_far`] must.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::BadHeader`].
#[inline(always)]
pub fn ipv4<F: Frame>(frame: &F) -> Result<(Ipv4, Option<Transport>), DropReason> {
    let ip: Ipv4 = frame.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let total = u32::from(u16::from_be(ip.total_len));
    if ETHERNET as u32 + total > frame.len() {
        return Err(DropReason::BadHeader);
    }
    let fragmented = ip.fragment & 0x3fff_u16.to_be() != 0;
    if ip.version_ihl != 0x45 || fragmented {
        return Ok((ip, None));
    }
    if total < IPV4 as u32 {
        return Err(DropReason::BadHeader);
    }
    let payload = total as usize - IPV4;
    Ok((ip, Some(transport(ip.protocol, ETHERNET + IPV4, payload, &Near(frame))?)))
}

/// The transport header of an IPv4 packet with options or in pieces.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::BadHeader`].
#[inline(always)]
pub fn ipv4_far<F: Frame>(frame: &F) -> Result<Transport, DropReason> {
    let ip: Ipv4 = frame.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let header = usize::from(ip.version_ihl & 0xf) * 4;
    let total = usize::from(u16::from_be(ip.total_len));
    if ip.version_ihl >> 4 != 4 || header < IPV4 || total < header {
        return Err(DropReason::BadHeader);
    }
    if has_source_route(frame, header) {
        return Err(DropReason::SourceRoute);
    }
    let fragment = u16::from_be(ip.fragment);
    let piece = piece(fragment & 0x1fff, fragment & 0x2000 != 0);
    far_transport(frame, ip.protocol, ETHERNET + header, total - header, piece, u32::from(ip.id))
}

/// Whether the options of an IPv4 header of `header` bytes name routers to go by (RFC 791, 3.1: loose and strict). What follows
/// an option of a wrong length is no option: the kernel drops it.
#[inline(always)]
fn has_source_route<F: Frame>(frame: &F, header: usize) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut offset = IPV4;
    for _ in 0..MAX_OPTIONS {
        if offset + 2 > header {
            return false;
        }
        let Some([kind, len]) = frame.load::<[u8; 2]>(ETHERNET + offset) else { return false };
        match kind {
            END => return false,
            NO_OPERATION => offset += 1,
            LOOSE | STRICT => return true,
            _ if len < 2 => return false,
            _ => offset += usize::from(len),
        }
    }
    false
}

/// Parses an IPv6 header and, where it is right behind, the transport header; `None`: [`ipv6_far`] must.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::BadHeader`].
#[inline(always)]
pub fn ipv6<F: Frame>(frame: &F) -> Result<(Ipv6, Option<Transport>), DropReason> {
    let ip: Ipv6 = frame.read(ETHERNET).ok_or(DropReason::Truncated)?;
    let payload = usize::from(u16::from_be(ip.payload_len));
    if u32::from_be(ip.version_class_label) >> 28 != 6 || (ETHERNET + IPV6 + payload) as u32 > frame.len() {
        return Err(DropReason::BadHeader);
    }
    if is_extension(ip.next_header) || payload == 0 {
        return Ok((ip, None));
    }
    Ok((ip, Some(transport(ip.next_header, ETHERNET + IPV6, payload, &Near(frame))?)))
}

/// The transport header of an IPv6 packet with extension headers, or of a jumbogram.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::BadHeader`], [`DropReason::ExtensionHeaders`].
#[inline(always)]
pub fn ipv6_far<F: Frame>(frame: &F) -> Result<Transport, DropReason> {
    let ip: Ipv6 = frame.read(ETHERNET).ok_or(DropReason::Truncated)?;
    // A payload length of 0 is a jumbogram (RFC 2675), as the kernel makes of large GSO packets.
    let payload = match u32::from(u16::from_be(ip.payload_len)) {
        0 => frame.len().saturating_sub((ETHERNET + IPV6) as u32),
        payload => payload,
    };
    behind_extensions(frame, ip.next_header, payload as usize)
}

/// How a transport header is read: at a constant offset, or anywhere.
trait Reader {
    fn get<T: Copy>(&self, offset: usize) -> Option<T>;
}

struct Near<'f, F>(&'f F);
struct Far<'f, F>(&'f F);

impl<F: Frame> Reader for Near<'_, F> {
    #[inline(always)]
    fn get<T: Copy>(&self, offset: usize) -> Option<T> {
        self.0.read(offset)
    }
}

impl<F: Frame> Reader for Far<'_, F> {
    #[inline(always)]
    fn get<T: Copy>(&self, offset: usize) -> Option<T> {
        self.0.load(offset)
    }
}

#[inline(always)]
fn piece(offset: u16, more: bool) -> Piece {
    match (offset, more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First,
        _ => Piece::Later,
    }
}

/// The transport header of a packet with options, extension headers, or in pieces.
#[inline(always)]
fn far_transport<F: Frame>(
    frame: &F,
    protocol: u8,
    offset: usize,
    payload: usize,
    piece: Piece,
    fragment_id: u32,
) -> Result<Transport, DropReason> {
    if piece == Piece::Later {
        return Ok(Transport { protocol, offset, piece, fragment_id, ..Transport::default() });
    }
    let transport = transport(protocol, offset, payload, &Far(frame))?;
    Ok(Transport { piece, fragment_id, ..transport })
}

#[inline(always)]
fn transport<R: Reader>(protocol: u8, offset: usize, payload: usize, reader: &R) -> Result<Transport, DropReason> {
    let found = Transport { protocol, offset, ..Transport::default() };
    match protocol {
        protocol::TCP => {
            let tcp: Tcp = within(reader, offset, payload)?;
            if tcp.offset >> 4 < 5 {
                return Err(DropReason::BadHeader);
            }
            Ok(Transport { sport: tcp.sport, dport: tcp.dport, flags: TcpFlags(tcp.flags), ..found })
        }
        protocol::UDP | protocol::SCTP => {
            let udp: Udp = within(reader, offset, payload)?;
            Ok(Transport { sport: udp.sport, dport: udp.dport, ..found })
        }
        protocol::ICMP => Ok(icmp_v4(within(reader, offset, payload)?, found)),
        protocol::ICMPV6 => Ok(icmp_v6(within(reader, offset, payload)?, found)),
        _ => Ok(found),
    }
}

#[inline(always)]
fn within<T: Copy, R: Reader>(reader: &R, offset: usize, payload: usize) -> Result<T, DropReason> {
    if payload < size_of::<T>() {
        return Err(DropReason::BadHeader);
    }
    reader.get(offset).ok_or(DropReason::Truncated)
}

#[inline(always)]
fn icmp_v4(header: Icmp, found: Transport) -> Transport {
    match header.kind {
        icmp::V4_ECHO_REQUEST => Transport { sport: header.id, ..found },
        icmp::V4_ECHO_REPLY => Transport { dport: header.id, ..found },
        // Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
        3 | 4 | 5 | 11 | 12 => Transport { kind: Kind::ICMP_ERROR, ..found },
        _ => found,
    }
}

#[inline(always)]
fn icmp_v6(header: Icmp, found: Transport) -> Transport {
    match header.kind {
        icmp::V6_ECHO_REQUEST => Transport { sport: header.id, ..found },
        icmp::V6_ECHO_REPLY => Transport { dport: header.id, ..found },
        // Types below 128 are errors (RFC 4443, 2.1).
        kind if kind < icmp::V6_ECHO_REQUEST => Transport { kind: Kind::ICMP_ERROR, ..found },
        kind => Transport { kind: Kind(kind), ..found },
    }
}

/// Where the identification in the fragment header of an IPv6 packet is; `None`: the packet has no such header.
#[inline(always)]
pub fn ipv6_identification_at<F: Frame>(frame: &F) -> Option<usize> {
    let ip: Ipv6 = frame.read(ETHERNET)?;
    let (mut next, mut offset) = (ip.next_header, ETHERNET + IPV6);
    for _ in 0..MAX_EXTENSIONS {
        if next == 44 {
            return Some(offset + 4);
        }
        let header: Extension = frame.load(offset)?;
        offset += match next {
            0 | 43 | 60 => (usize::from(header.len) + 1) * 8,
            51 => (usize::from(header.len) + 2) * 4,
            _ => return None,
        };
        next = header.next;
    }
    None
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    // Hop-by-hop, routing, fragment, AH, destination options, mobility, HIP, shim6, no next header.
    matches!(next, 0 | 43 | 44 | 51 | 59 | 60 | 135 | 139 | 140)
}

/// What follows the extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct Behind {
    /// IP protocol number.
    pub protocol: u8,
    /// Where its header starts in the frame.
    pub offset: usize,
    /// Which part of a datagram the packet is; of a later one there is no transport header.
    pub piece: Piece,
    /// Identification of the datagram, where it is in pieces.
    pub fragment_id: u32,
}

/// Walks the IPv6 extension headers (RFC 8200, 4) from `offset` on, the first of them of type `first`; the packet ends at `end`.
///
/// # Errors
/// [`DropReason::Truncated`], [`DropReason::BadHeader`], [`DropReason::ExtensionHeaders`].
#[inline(always)]
pub fn walk_extensions<F: Frame>(frame: &F, first: u8, offset: usize, end: usize) -> Result<Behind, DropReason> {
    let mut behind = Behind { protocol: first, offset, piece: Piece::Whole, fragment_id: 0 };
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(behind.protocol) {
            return Ok(behind);
        }
        if behind.offset + size_of::<Extension>() > end {
            return Err(DropReason::BadHeader);
        }
        let header: Extension = frame.load(behind.offset).ok_or(DropReason::Truncated)?;
        behind.offset += match behind.protocol {
            0 | 43 | 60 => (usize::from(header.len) + 1) * 8,
            51 => (usize::from(header.len) + 2) * 4,
            44 => {
                let bits = u16::from_be(header.fragment);
                (behind.piece, behind.fragment_id) = (piece(bits >> 3, bits & 1 != 0), header.id);
                8
            }
            _ => return Err(DropReason::ExtensionHeaders),
        };
        behind.protocol = header.next;
        if behind.piece == Piece::Later {
            return Ok(behind);
        }
    }
    Err(DropReason::ExtensionHeaders)
}

#[inline(always)]
fn behind_extensions<F: Frame>(frame: &F, first: u8, payload: usize) -> Result<Transport, DropReason> {
    let end = ETHERNET + IPV6 + payload;
    let Behind { protocol, offset, piece, fragment_id } = walk_extensions(frame, first, ETHERNET + IPV6, end)?;
    let payload = match piece {
        Piece::Later => 0,
        // An extension header may say that it is longer than the packet.
        _ => end.checked_sub(offset).ok_or(DropReason::BadHeader)?,
    };
    far_transport(frame, protocol, offset, payload, piece, fragment_id)
}
