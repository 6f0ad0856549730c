// SPDX-License-Identifier: Apache-2.0
//! DHCPv4 (RFC 2131) for one client and one address. Pure.

use std::net::Ipv4Addr;

use dhcproto::{
    Decodable, Encodable,
    v4::{DhcpOption, DhcpOptions, HType, Message, MessageType, Opcode, OptionCode, UnknownOption},
};

use super::{
    lease::{LEASE_SECONDS, Lease, Lease4},
    options::known_v4,
};

/// RFC 1542, section 2.1: relays and clients may drop shorter ones.
const MIN_LEN: usize = 300;
const MAGIC_OFFSET: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// An answer, and where it goes.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
    /// Where the client hears it (RFC 2131, section 4.1): its address, or everybody's.
    pub(super) destination: Ipv4Addr,
}

/// Answers one message of the client; nothing where none is due.
pub(super) fn answer(lease: &Lease, payload: &[u8]) -> Option<Reply> {
    let v4 = lease.v4.as_ref()?;
    if payload.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len())? != MAGIC {
        return None;
    }
    let request = Message::from_bytes(&known_v4(payload)?).ok()?;
    let ours = request.opcode() == Opcode::BootRequest
        && request.htype() == HType::Eth
        // `chaddr()` slices by hlen, which may lie.
        && request.hlen() == 6
        && request.chaddr() == lease.mac.0
        && request.giaddr().is_unspecified();
    let kind = request.opts().msg_type().filter(|_| ours)?;
    let reply_kind = decide(v4, &request, kind)?;
    let mut reply = skeleton(&request, reply_kind, v4);
    match reply_kind {
        MessageType::Nak => {}
        _ if kind == MessageType::Inform => add_settings(lease, v4, &request, reply.opts_mut()),
        _ => {
            reply.set_yiaddr(v4.address);
            add_lease(reply.opts_mut());
            add_settings(lease, v4, &request, reply.opts_mut());
        }
    }
    if reply_kind == MessageType::Ack && kind == MessageType::Discover {
        reply.opts_mut().insert(DhcpOption::RapidCommit);
    }
    let mut payload = reply.to_vec().ok()?;
    payload.resize(payload.len().max(MIN_LEN), 0);
    Some(Reply { payload, destination: destination(v4, &request, reply_kind) })
}

/// RFC 2131, section 4.3.
fn decide(v4: &Lease4, request: &Message, kind: MessageType) -> Option<MessageType> {
    let options = request.opts();
    match kind {
        MessageType::Discover if options.contains(OptionCode::RapidCommit) => Some(MessageType::Ack),
        MessageType::Discover => Some(MessageType::Offer),
        MessageType::Inform => Some(MessageType::Ack),
        MessageType::Request => {
            if server_id(options).is_some_and(|server| server != v4.gateway) {
                // The client took another server's offer.
                return None;
            }
            let wanted = requested_address(options).unwrap_or_else(|| request.ciaddr());
            Some(if wanted == v4.address { MessageType::Ack } else { MessageType::Nak })
        }
        MessageType::Decline => {
            tracing::warn!(address = %v4.address, "a guest says that its address is in use by another");
            None
        }
        // A released address stays this port's: nothing to do.
        _ => None,
    }
}

fn server_id(options: &DhcpOptions) -> Option<Ipv4Addr> {
    match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(address)) => Some(*address),
        _ => None,
    }
}

fn requested_address(options: &DhcpOptions) -> Option<Ipv4Addr> {
    match options.get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
        _ => None,
    }
}

fn skeleton(request: &Message, kind: MessageType, v4: &Lease4) -> Message {
    let mut reply = Message::default();
    reply.set_opcode(Opcode::BootReply).set_htype(HType::Eth).set_chaddr(request.chaddr());
    reply.set_xid(request.xid()).set_flags(request.flags());
    if kind != MessageType::Nak {
        reply.set_ciaddr(request.ciaddr());
    }
    reply.opts_mut().insert(DhcpOption::MessageType(kind));
    reply.opts_mut().insert(DhcpOption::ServerIdentifier(v4.gateway));
    // RFC 6842: the identifier comes back as it went.
    if let Some(id) = request.opts().get(OptionCode::ClientIdentifier) {
        reply.opts_mut().insert(id.clone());
    }
    reply
}

fn add_lease(options: &mut DhcpOptions) {
    options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
    options.insert(DhcpOption::Renewal(LEASE_SECONDS / 2));
    options.insert(DhcpOption::Rebinding(LEASE_SECONDS / 8 * 7));
}

fn add_settings(lease: &Lease, v4: &Lease4, request: &Message, options: &mut DhcpOptions) {
    options.insert(DhcpOption::SubnetMask(v4.mask));
    options.insert(DhcpOption::Router(vec![v4.gateway]));
    if !v4.nameservers.is_empty() {
        options.insert(DhcpOption::DomainNameServer(v4.nameservers.clone()));
    }
    if let Ok(mtu) = u16::try_from(lease.mtu) {
        options.insert(DhcpOption::InterfaceMtu(mtu));
    }
    if let Some(hostname) = &lease.hostname {
        options.insert(DhcpOption::Hostname(hostname.clone()));
    }
    if let Some(domain) = lease.search.first() {
        options.insert(DhcpOption::DomainName(domain.clone()));
    }
    if asked(request, OptionCode::DomainSearch) && !lease.search.is_empty() {
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::DomainSearch, lease.search_wire())));
    }
    if asked(request, OptionCode::ClasslessStaticRoute) {
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClasslessStaticRoute, classless_routes(v4))));
    }
}

fn asked(request: &Message, code: OptionCode) -> bool {
    match request.opts().get(OptionCode::ParameterRequestList) {
        Some(DhcpOption::ParameterRequestList(codes)) => codes.contains(&code),
        _ => false,
    }
}

/// RFC 3442: a client that knows this option ignores the router option, so the default route is here too. A gateway
/// outside of the guest's own subnet gets an on-link route first.
fn classless_routes(v4: &Lease4) -> Vec<u8> {
    let mask = v4.mask.to_bits();
    let mut routes = Vec::new();
    if v4.prefix_len == 32 || v4.gateway.to_bits() & mask != v4.address.to_bits() & mask {
        routes.push(32);
        routes.extend(v4.gateway.octets());
        routes.extend(Ipv4Addr::UNSPECIFIED.octets());
    }
    routes.push(0);
    routes.extend(v4.gateway.octets());
    routes
}

/// RFC 2131, section 4.1.
fn destination(v4: &Lease4, request: &Message, kind: MessageType) -> Ipv4Addr {
    if kind == MessageType::Nak {
        Ipv4Addr::BROADCAST
    } else if !request.ciaddr().is_unspecified() {
        request.ciaddr()
    } else if request.flags().broadcast() {
        Ipv4Addr::BROADCAST
    } else {
        v4.address
    }
}

#[cfg(test)]
#[path = "dhcp4_tests.rs"]
mod tests;
