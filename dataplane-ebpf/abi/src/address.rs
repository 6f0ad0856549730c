// SPDX-License-Identifier: Apache-2.0
//! Addresses of both families in one shape.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2); words in network byte order.
///
/// All maps but the flow tables key on this, so that the control plane and the slow path have one code for both families.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
pub struct Addr(pub [u32; 4]);

impl crate::Layout for Addr {
    const HASH: u64 = crate::Digest::EMPTY.number(<[u32; 4] as crate::Layout>::HASH).text("address").finish();
}

impl Addr {
    /// No address.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The address of an IPv4 word in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// The address of 16 bytes as they stand in an IPv6 header.
    #[inline(always)]
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The IPv4 word in network byte order; meaningful for a mapped address only.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// Whether this is [`Addr::UNSPECIFIED`].
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }
}

impl From<IpAddr> for Addr {
    #[inline]
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

/// A mapped address becomes the IPv4 one.
impl From<Addr> for IpAddr {
    #[inline]
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            return Ipv4Addr::from(addr.v4_word().to_ne_bytes()).into();
        }
        let octets: [u8; 16] = zerocopy::transmute!(addr);
        Ipv6Addr::from(octets).into()
    }
}

crate::layout! {
    /// A key of an LPM trie over [`Addr`]: prefix lengths are those of the 128-bit form (IPv4 `/24` is 120).
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct CidrKey {
        /// Bits of `addr` that count.
        pub prefix_len: u32,
        /// The network's address.
        pub addr: Addr,
    }
}

crate::pod!(Addr, CidrKey);

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);
const _: () = assert!(size_of::<CidrKey>() == 20);

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::Addr;

    #[test]
    fn an_address_keeps_its_family() {
        for text in ["10.1.2.3", "fd00:1::5", "::", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!((IpAddr::from(Addr::from(ip)), Addr::from(ip).is_v4()), (ip, ip.is_ipv4()));
        }
        let mapped = "::ffff:10.1.2.3".parse::<IpAddr>().unwrap();
        assert_eq!(IpAddr::from(Addr::from(mapped)), IpAddr::from([10, 1, 2, 3]));
    }
}
