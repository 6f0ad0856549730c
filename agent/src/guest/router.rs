// SPDX-License-Identifier: Apache-2.0
//! Router advertisements (RFC 4861): the default route, the MTU, name servers, and "ask DHCPv6 for your address". Pure.

use std::net::Ipv6Addr;

use weft_abi::GATEWAY_MAC;

use super::lease::{Lease, Lease6};

/// ICMPv6 type of a router solicitation.
pub(super) const SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub(super) const ADVERTISEMENT: u8 = 134;

/// Managed addresses and other configuration (RFC 4861, section 4.2).
const FLAGS_MANAGED_OTHER: u8 = 0b1100_0000;
const HOP_LIMIT: u8 = 64;
/// The most that RFC 4861, section 6.2.1 allows, in seconds: guests keep their route while the agent is away.
const LIFETIME_SECONDS: u16 = 9000;

const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;

/// Whether an ICMPv6 message is a valid solicitation (RFC 4861, section 6.1.1; the hop limit is checked by the parser).
/// `body` is what follows the checksum.
pub(super) fn is_solicitation(source: Ipv6Addr, kind: u8, code: u8, body: &[u8]) -> bool {
    let Some((_reserved, mut options)) = body.split_at_checked(4) else { return false };
    let mut link_layer = false;
    while let Some(&option) = options.first() {
        let len = options.get(1).map_or(0, |units| usize::from(*units) * 8);
        let Some((_, rest)) = options.split_at_checked(len).filter(|_| len > 0) else { return false };
        link_layer |= option == OPTION_SOURCE_LINK_LAYER;
        options = rest;
    }
    kind == SOLICITATION && code == 0 && !(source.is_unspecified() && link_layer)
}

/// The advertisement's bytes after type, code and checksum. No prefix is announced: nothing is on-link but the gateway, and
/// the address comes from DHCPv6.
pub(super) fn advertisement(lease: &Lease, v6: &Lease6) -> Vec<u8> {
    let mut body = vec![HOP_LIMIT, FLAGS_MANAGED_OTHER];
    body.extend(LIFETIME_SECONDS.to_be_bytes());
    // Reachable time and retransmission timer: the guest's own.
    body.extend([0; 8]);
    body.extend([OPTION_SOURCE_LINK_LAYER, 1]);
    body.extend(GATEWAY_MAC);
    body.extend([OPTION_MTU, 1, 0, 0]);
    body.extend(lease.mtu.to_be_bytes());
    // RFC 8106, sections 5.1 and 5.2.
    let servers: Vec<u8> = v6.nameservers.iter().flat_map(Ipv6Addr::octets).collect();
    add_dns_option(&mut body, OPTION_RDNSS, servers);
    add_dns_option(&mut body, OPTION_DNSSL, lease.search_wire());
    body
}

/// Padded to units of eight bytes; left out where it is empty or too long for its length field.
fn add_dns_option(body: &mut Vec<u8>, option: u8, mut content: Vec<u8>) {
    content.resize(content.len().next_multiple_of(8), 0);
    let Ok(units) = u8::try_from(content.len() / 8 + 1) else { return };
    if content.is_empty() {
        return;
    }
    body.extend([option, units, 0, 0]);
    body.extend(u32::from(LIFETIME_SECONDS).to_be_bytes());
    body.extend(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::tests::port;

    #[test]
    fn an_advertisement_byte_for_byte() {
        let lease = Lease::new(&port());
        let mut golden = vec![64, 0xc0, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 0, 0];
        golden.extend([1, 1, 0x02, 0x77, 0x65, 0x66, 0x74, 0x01]);
        golden.extend([5, 1, 0, 0, 0, 0, 0x05, 0xaa]);
        golden.extend([25, 3, 0, 0, 0, 0, 0x23, 0x28]);
        golden.extend([0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
        golden.extend([31, 5, 0, 0, 0, 0, 0x23, 0x28]);
        golden.extend(*b"\x07default\x03svc\x07cluster\x05local\x00");
        golden.extend([0; 5]);
        assert_eq!(advertisement(&lease, lease.v6.as_ref().unwrap()), golden);
    }

    #[test]
    fn without_name_service_there_are_no_such_options() {
        let mut port = port();
        port.dns = weft_api::DnsSettings::default();
        let lease = Lease::new(&port);
        assert_eq!(advertisement(&lease, lease.v6.as_ref().unwrap()).len(), 12 + 8 + 8);
    }

    #[test]
    fn solicitations_are_checked() {
        let source: Ipv6Addr = "fe80::5".parse().unwrap();
        let link_layer = [0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 5];
        assert!(is_solicitation(source, 133, 0, &[0; 4]));
        assert!(is_solicitation(source, 133, 0, &link_layer));
        assert!(is_solicitation(Ipv6Addr::UNSPECIFIED, 133, 0, &[0; 4]));
        assert!(!is_solicitation(Ipv6Addr::UNSPECIFIED, 133, 0, &link_layer), "a link-layer option without a source");
        assert!(!is_solicitation(source, 134, 0, &[0; 4]), "another type");
        assert!(!is_solicitation(source, 133, 1, &[0; 4]), "another code");
        assert!(!is_solicitation(source, 133, 0, &[0, 0, 0, 0, 1, 0, 0, 0]), "an option of length zero");
        for len in (0..link_layer.len()).filter(|len| *len != 4) {
            assert!(!is_solicitation(source, 133, 0, &link_layer[..len]), "cut after {len}");
        }
    }
}
