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

    /// `0.0.0.0` of an IPv4 address, `::` of an IPv6 one.
    #[inline(always)]
    #[must_use]
    pub const fn unspecified(&self) -> Self {
        if self.is_v4() { Self::v4(0) } else { Self::UNSPECIFIED }
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

/// The network that pods and nodes of the cluster are in, and Services. Addresses mean something within one network.
pub const CLUSTER_NET: u32 = 0;

/// Highest number of a network: they fit beside the class in a flow key, see [`crate::UPLINK`], and into a VNI (RFC 7348).
pub const MAX_NET: u32 = 0x00ff_ffff;

crate::layout! {
    /// An address in one network.
    #[repr(C)]
    #[derive(
        Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
    )]
    pub struct AddressKey {
        /// The network: [`CLUSTER_NET`], up to [`MAX_NET`].
        pub net: u32,
        /// The address there.
        pub addr: Addr,
    }
}

impl AddressKey {
    /// An address of the cluster's network.
    #[inline(always)]
    #[must_use]
    pub const fn of_cluster(addr: Addr) -> Self {
        Self { net: CLUSTER_NET, addr }
    }
}

crate::layout! {
    /// A key of an LPM trie over [`AddressKey`]: all bits of the network count, then those of the address in its 128-bit form.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
    pub struct CidrKey {
        /// Bits of `net` and `addr` that count, in this order: [`CidrKey::NET_BITS`] at least.
        pub prefix_len: u32,
        /// The network. Tries compare keys bit by bit as they lie in memory: of a number all bits or none.
        pub net: u32,
        /// The prefix's address.
        pub addr: Addr,
    }
}

impl CidrKey {
    /// Bits of a network's number.
    pub const NET_BITS: u32 = 32;

    /// Bits of a key that counts whole.
    pub const ALL_BITS: u32 = Self::NET_BITS + 128;

    /// A prefix of `net`; `bits` of the 128-bit form of the address count (IPv4 `/24` is 120).
    #[inline(always)]
    #[must_use]
    pub const fn new(net: u32, addr: Addr, bits: u32) -> Self {
        Self { prefix_len: Self::NET_BITS + bits, net, addr }
    }

    /// A prefix of the cluster's network, as [`CidrKey::new`].
    #[inline(always)]
    #[must_use]
    pub const fn of_cluster(addr: Addr, bits: u32) -> Self {
        Self::new(CLUSTER_NET, addr, bits)
    }

    /// Bits of the address, in its 128-bit form, that count.
    #[inline(always)]
    #[must_use]
    pub const fn address_bits(&self) -> u32 {
        self.prefix_len.saturating_sub(Self::NET_BITS)
    }
}

crate::pod!(Addr, AddressKey, CidrKey);

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);
const _: () = assert!(size_of::<AddressKey>() == 20);
const _: () = assert!(size_of::<CidrKey>() == 24);

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
