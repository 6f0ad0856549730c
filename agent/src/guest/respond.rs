// SPDX-License-Identifier: Apache-2.0
//! From one frame of the guest to the frame that answers it. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use weft_abi::GATEWAY_MAC;

use super::{
    dhcp4, dhcp6,
    frame::{self, Link, Packet, Udp},
    lease::{Lease, Lease6},
    router,
};

const DHCP4_SERVER: u16 = 67;
const DHCP4_CLIENT: u16 = 68;
const DHCP6_SERVER: u16 = 547;
const DHCP6_CLIENT: u16 = 546;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// RFC 8415, section 7.1.
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// The answer to a frame, if it is due one.
pub(super) fn respond(lease: &Lease, frame: &[u8]) -> Option<Vec<u8>> {
    match frame::parse(frame, lease.mac)? {
        Packet::Udp4(udp) if (udp.source_port, udp.destination_port) == (DHCP4_CLIENT, DHCP4_SERVER) => {
            dhcp4(lease, &udp)
        }
        Packet::Udp6(udp) if (udp.source_port, udp.destination_port) == (DHCP6_CLIENT, DHCP6_SERVER) => {
            dhcp6(lease, &udp)
        }
        Packet::Icmp6 { source, kind, code, body } if router::is_solicitation(source, kind, code, body) => {
            advertise(lease)
        }
        _ => None,
    }
}

/// A router advertisement to everybody on the link, which is the guest.
pub(super) fn advertise(lease: &Lease) -> Option<Vec<u8>> {
    let v6 = lease.v6.as_ref()?;
    let link = Link { source: GATEWAY_MAC, destination: ALL_NODES_MAC };
    frame::neighbour_discovery(link, v6.gateway, ALL_NODES, router::ADVERTISEMENT, &router::advertisement(lease, v6))
}

fn dhcp4(lease: &Lease, request: &Udp<'_, Ipv4Addr>) -> Option<Vec<u8>> {
    let reply = dhcp4::answer(lease, request.payload)?;
    let destination = if reply.destination.is_broadcast() { [0xff; 6] } else { lease.mac.0 };
    let udp = Udp {
        source: lease.v4.as_ref()?.gateway,
        destination: reply.destination,
        source_port: DHCP4_SERVER,
        destination_port: DHCP4_CLIENT,
        payload: &reply.payload,
    };
    frame::udp4(Link { source: GATEWAY_MAC, destination }, &udp)
}

fn dhcp6(lease: &Lease, request: &Udp<'_, Ipv6Addr>) -> Option<Vec<u8>> {
    let Lease6 { gateway, .. } = lease.v6.as_ref()?;
    // RFC 8415, section 18.4: only a client that was told so may send to a server's own address, and ours is told none.
    if request.destination != ALL_SERVERS || !request.source.is_unicast_link_local() {
        return None;
    }
    let payload = dhcp6::answer(lease, request.payload)?;
    let udp = Udp {
        source: *gateway,
        destination: request.source,
        source_port: DHCP6_SERVER,
        destination_port: DHCP6_CLIENT,
        payload: &payload,
    };
    frame::udp6(Link { source: GATEWAY_MAC, destination: lease.mac.0 }, &udp)
}
