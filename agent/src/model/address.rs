// SPDX-License-Identifier: Apache-2.0
//! Addresses and prefixes of the API in the shape of the maps.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use weft_abi::{AddressKey, CidrKey};

/// Prefix length of the mapped IPv4 space in the 128-bit form.
pub(crate) const MAPPED_PREFIX: u8 = 96;

/// The map form of an address of the cluster's network.
pub(crate) fn address_key(address: IpAddr) -> AddressKey {
    AddressKey::of_cluster(address.into())
}

/// The map form of a prefix of the cluster's network, host bits cleared.
pub(crate) fn cidr_key(net: IpNet) -> CidrKey {
    let net = net.trunc();
    let bits = match net {
        IpNet::V4(v4) => u32::from(v4.prefix_len()) + u32::from(MAPPED_PREFIX),
        IpNet::V6(v6) => u32::from(v6.prefix_len()),
    };
    CidrKey::of_cluster(net.addr().into(), bits)
}

/// The prefix under which every IPv4 address stands in the maps.
pub(crate) fn mapped_root() -> Ipv6Net {
    let addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    Ipv6Net::new_assert(addr, MAPPED_PREFIX)
}

/// Whether an IPv6 prefix lies within the mapped IPv4 space, where it would mean IPv4 addresses (refused).
pub(crate) fn is_mapped(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if mapped_root().contains(&v6))
}

/// Whether an IPv6 prefix is so wide that it covers the mapped IPv4 space, so that an LPM over [`weft_abi::Addr`] alone
/// would give it to IPv4 addresses too.
pub(crate) fn covers_mapped(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.prefix_len() < MAPPED_PREFIX && v6.contains(&mapped_root()))
}

/// Parses an address; IPv4 in its IPv6 form is no address of the API.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()))
}

/// Reads a prefix; host bits are cleared, as the API server's older validation and all implementations do.
///
/// # Errors
/// No prefix, or one of IPv4-mapped IPv6 addresses.
pub(crate) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| format!("'{text}' is not a prefix such as 10.0.0.0/8 or fd00::/8"))?;
    if is_mapped(net) || parse_ip(&net.addr().to_string()).is_none() {
        return Err(format!("'{text}' is an IPv4 prefix in IPv6 form; write it as IPv4"));
    }
    Ok(net.trunc())
}
