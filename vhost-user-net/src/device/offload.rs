// SPDX-License-Identifier: Apache-2.0
//! What a guest's virtio-net header may ask of the kernel for a frame.
//!
//! With a partial checksum the kernel, or a NIC, writes two bytes at `csum_start` + `csum_offset`, after every program and
//! policy has looked at the frame. A guest that may choose the place changes an address or a port behind their back. So the
//! place must be the checksum field of the very transport header that a receiver would find, and segmentation must be of that
//! header's protocol and family.
//!
//! A header inside of a tunnel is none of these: tunnel offloads (`VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO`) are not offered, and a
//! driver to which they are not offered finishes inner checksums itself (Linux: `hw_enc_features` without checksum features).
//!
//! Sources: virtio 1.3, 5.1.6.2 (the fields), RFC 791, RFC 8200, section 4, IEEE 802.1Q.

use crate::metrics::DropReason;
use crate::protocol::features::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO};

use super::vring::ETHERNET_HEADER;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Bytes of a frame that are looked at, at most: two VLAN tags, an IPv6 header, a TCP header with all its options, and
/// 122 bytes of extension headers.
pub const FRONT: usize = 244;
/// Bytes a TCP segment must carry at least: Linux, too, sends none smaller (`TCP_MIN_SND_MSS`). 64 KiB are at most 1,366
/// segments so, and not 65,000, each of which costs the host as much as a whole frame.
const MIN_TCP_SEGMENT: usize = 48;
/// Datagrams that one frame may be cut into, as many as Linux lets a sender ask for (`UDP_MAX_SEGMENTS`).
const MAX_DATAGRAMS: usize = 128;
/// IPv6 extension headers that are followed at most; as many as by the programs of the data path.
const MAX_EXTENSIONS: usize = 8;
/// VLAN tags (802.1Q in 802.1ad) that are passed over.
const MAX_TAGS: usize = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The fields of a virtio-net header that concern offloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    flags: u8,
    gso: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Asked {
    /// Reads a header's first ten bytes; little-endian, as every supported host and guest has it.
    #[inline]
    pub fn of(header: &[u8; 10]) -> Self {
        let [flags, gso, _, _, size @ .., start_low, start_high, offset_low, offset_high] = *header;
        Self {
            flags,
            gso,
            gso_size: u16::from_le_bytes(size),
            csum_start: u16::from_le_bytes([start_low, start_high]),
            csum_offset: u16::from_le_bytes([offset_low, offset_high]),
        }
    }

    /// Whether the frame is finished: nothing is asked.
    #[inline]
    pub fn is_nothing(self) -> bool {
        self.gso == GSO_NONE && self.flags & NEEDS_CSUM == 0
    }

    /// Why this must not be done to a frame of `len` bytes that begins with `front`, under these virtio features.
    #[inline]
    pub fn objection(self, front: &[u8], len: usize, features: u64) -> Option<DropReason> {
        if self.is_nothing() {
            return None;
        }
        if self.needed().is_none_or(|needed| needed & !features != 0) {
            return Some(DropReason::NotNegotiated);
        }
        let transport = Transport::of(front);
        let Some(transport) = transport.filter(|transport| self.is_its_checksum(transport, len)) else {
            return Some(DropReason::BadChecksumPlace);
        };
        let fits = self.gso == GSO_NONE || self.fits(&transport, len);
        (!fits).then_some(DropReason::BadSegmentation)
    }

    /// The features for this; none: there is no such offload.
    #[inline]
    fn needed(self) -> Option<u64> {
        let segmentation = match self.gso & !GSO_ECN {
            GSO_NONE => 0,
            GSO_TCPV4 => HOST_TSO4,
            GSO_TCPV6 => HOST_TSO6,
            GSO_UDP_L4 => HOST_USO,
            _ => return None,
        };
        let ecn = if self.gso & GSO_ECN != 0 { HOST_ECN } else { 0 };
        Some(CSUM | segmentation | ecn)
    }

    /// Segments without a checksum to be finished are refused with the rest: virtio 1.3, 5.1.6.2.1 wants both flags together.
    #[inline]
    fn is_its_checksum(self, transport: &Transport, len: usize) -> bool {
        let (checksum, header) = match transport.protocol {
            TCP => (16, 20),
            UDP => (6, 8),
            SCTP => (8, 12),
            _ => return false,
        };
        self.flags & NEEDS_CSUM != 0
            && usize::from(self.csum_start) == transport.offset
            && self.csum_offset == checksum
            && transport.offset + header <= len
    }

    fn fits(self, transport: &Transport, len: usize) -> bool {
        let size = usize::from(self.gso_size);
        let payload = len.saturating_sub(transport.offset + 8);
        let of_kind = match self.gso {
            GSO_UDP_L4 => transport.protocol == UDP && payload <= size * MAX_DATAGRAMS,
            _ => {
                let v6 = self.gso & !GSO_ECN == GSO_TCPV6;
                transport.protocol == TCP && transport.v6 == v6 && size >= MIN_TCP_SEGMENT
            }
        };
        of_kind && transport.whole
    }
}

/// Where a frame's transport header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Transport {
    protocol: u8,
    offset: usize,
    v6: bool,
    /// Not the first fragment of several.
    whole: bool,
}

impl Transport {
    /// Finds it; none in what is no IP packet, or a later fragment, and where it lies beyond the front.
    #[inline]
    fn of(front: &[u8]) -> Option<Self> {
        let mut at = ETHERNET_HEADER;
        let mut ethertype = be16(front, at - 2)?;
        for _ in 0..MAX_TAGS {
            if ethertype != 0x8100 && ethertype != 0x88a8 {
                break;
            }
            at += 4;
            ethertype = be16(front, at - 2)?;
        }
        match ethertype {
            0x0800 => Self::of_v4(front, at),
            0x86dd => Self::of_v6(front, at),
            _ => None,
        }
    }

    #[inline]
    fn of_v4(front: &[u8], at: usize) -> Option<Self> {
        let version_ihl = *front.get(at)?;
        let (fragment, protocol) = (be16(front, at + 6)?, *front.get(at + 9)?);
        let header = usize::from(version_ihl & 0xf) * 4;
        let is_valid = version_ihl >> 4 == 4 && header >= 20 && fragment & 0x1fff == 0;
        is_valid.then_some(Self { protocol, offset: at + header, v6: false, whole: fragment & 0x2000 == 0 })
    }

    #[inline]
    fn of_v6(front: &[u8], at: usize) -> Option<Self> {
        if front.get(at)? >> 4 != 6 {
            return None;
        }
        let mut found = Self { protocol: *front.get(at + 6)?, offset: at + 40, v6: true, whole: true };
        for _ in 0..MAX_EXTENSIONS {
            let next = || front.get(found.offset).copied();
            let len = || front.get(found.offset + 1).map(|len| usize::from(*len));
            let (next, len) = match found.protocol {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => (next()?, (len()? + 1) * 8),
                // Authentication.
                51 => (next()?, (len()? + 2) * 4),
                44 => {
                    let fragment = be16(front, found.offset + 2)?;
                    if fragment >> 3 != 0 {
                        return None;
                    }
                    found.whole &= fragment & 1 == 0;
                    (next()?, 8)
                }
                _ => return Some(found),
            };
            (found.protocol, found.offset) = (next, found.offset + len);
        }
        None
    }
}

#[inline]
fn be16(front: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*front.get(at)?, *front.get(at + 1)?]))
}
