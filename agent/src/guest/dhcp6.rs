// SPDX-License-Identifier: Apache-2.0
//! DHCPv6 (RFC 8415) for one client and one address. Pure.

use std::net::Ipv6Addr;

use dhcproto::{
    Decodable, Encodable,
    v6::{
        DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, OptionCode, Status, StatusCode,
        UnknownOption,
    },
};
use weft_abi::GATEWAY_MAC;

use super::{
    lease::{LEASE_SECONDS, Lease, Lease6},
    options::known_v6,
};

/// DUID-LL (RFC 8415, section 11.4) of the gateway: the same on every node, so that a guest that moved can renew.
const SERVER_DUID: [u8; 10] = {
    let [a, b, c, d, e, f] = GATEWAY_MAC;
    [0, 3, 0, 1, a, b, c, d, e, f]
};

/// Answers one message of the client; nothing where none is due (RFC 8415, section 16).
pub(super) fn answer(lease: &Lease, payload: &[u8]) -> Option<Vec<u8>> {
    let v6 = lease.v6.as_ref()?;
    let request = Message::from_bytes(&known_v6(payload)?).ok()?;
    let reply_kind = decide(&request)?;
    let mut reply = Message::new_with_id(reply_kind, request.xid());
    let options = reply.opts_mut();
    if let Some(id) = request.opts().get(OptionCode::ClientId) {
        options.insert(id.clone());
    }
    options.insert(DhcpOption::ServerId(SERVER_DUID.to_vec()));
    match request.msg_type() {
        MessageType::Confirm => confirm(v6, &request, options)?,
        MessageType::Release | MessageType::Decline => options.insert(status(Status::Success, "")),
        MessageType::InformationRequest => add_settings(lease, v6, &request, options),
        _ => {
            add_bindings(v6, &request, options);
            add_settings(lease, v6, &request, options);
        }
    }
    if request.msg_type() == MessageType::Solicit && reply_kind == MessageType::Reply {
        options.insert(DhcpOption::RapidCommit);
    }
    reply.to_vec().ok()
}

/// Which message answers, after the checks of RFC 8415, sections 16.2 to 16.12.
fn decide(request: &Message) -> Option<MessageType> {
    let options = request.opts();
    let client = matches!(options.get(OptionCode::ClientId), Some(DhcpOption::ClientId(id)) if !id.is_empty());
    let server = match options.get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id == &SERVER_DUID),
        _ => None,
    };
    match (request.msg_type(), client, server) {
        (MessageType::Solicit, true, None) if options.get(OptionCode::RapidCommit).is_some() => {
            Some(MessageType::Reply)
        }
        (MessageType::Solicit, true, None) => Some(MessageType::Advertise),
        (MessageType::Confirm | MessageType::Rebind, true, None) => Some(MessageType::Reply),
        (MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline, true, Some(true)) => {
            Some(MessageType::Reply)
        }
        (MessageType::InformationRequest, _, None | Some(true)) => Some(MessageType::Reply),
        _ => None,
    }
}

/// RFC 8415, section 18.3.3: silent where the client names no address.
fn confirm(v6: &Lease6, request: &Message, options: &mut DhcpOptions) -> Option<()> {
    let addresses: Vec<_> = associations(request).flat_map(addresses_of).collect();
    if addresses.is_empty() {
        return None;
    }
    let right = addresses.iter().all(|address| *address == v6.address);
    options.insert(if right {
        status(Status::Success, "")
    } else {
        status(Status::NotOnLink, "not this port's address")
    });
    Some(())
}

fn associations(request: &Message) -> impl Iterator<Item = &IANA> {
    request.opts().iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association),
        _ => None,
    })
}

fn addresses_of(association: &IANA) -> impl Iterator<Item = Ipv6Addr> {
    association.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(address) => Some(address.addr),
        _ => None,
    })
}

/// The association with the lowest number gets the port's address (their order in the message is not kept by the
/// decoder); others, and prefixes, get their refusal.
fn add_bindings(v6: &Lease6, request: &Message, options: &mut DhcpOptions) {
    let first = associations(request).map(|association| association.id).min();
    for association in associations(request) {
        let is_first = Some(association.id) == first;
        let mut opts = DhcpOptions::new();
        if is_first {
            opts.insert(binding(v6.address, LEASE_SECONDS));
            // RFC 8415, section 18.3.4: what is not the client's is taken back with lifetime zero.
            for stale in addresses_of(association).filter(|address| *address != v6.address) {
                opts.insert(binding(stale, 0));
            }
        } else {
            opts.insert(status(Status::NoAddrsAvail, "a port has one address"));
        }
        let (t1, t2) = if is_first { (LEASE_SECONDS / 2, LEASE_SECONDS / 5 * 4) } else { (0, 0) };
        options.insert(DhcpOption::IANA(IANA { id: association.id, t1, t2, opts }));
    }
    let prefixes: Vec<_> = request
        .opts()
        .iter()
        .filter_map(|option| match option {
            DhcpOption::IAPD(prefix) => Some(prefix.id),
            _ => None,
        })
        .collect();
    for id in prefixes {
        let mut opts = DhcpOptions::new();
        opts.insert(status(Status::NoPrefixAvail, "no prefixes are delegated"));
        options.insert(DhcpOption::IAPD(IAPD { id, t1: 0, t2: 0, opts }));
    }
}

fn binding(addr: Ipv6Addr, lifetime: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr { addr, preferred_life: lifetime, valid_life: lifetime, opts: DhcpOptions::new() })
}

fn status(status: Status, message: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: message.to_owned() })
}

/// RFC 3646: servers and search list, where they are asked for.
fn add_settings(lease: &Lease, v6: &Lease6, request: &Message, options: &mut DhcpOptions) {
    if asked(request, OptionCode::DomainNameServers) && !v6.nameservers.is_empty() {
        options.insert(DhcpOption::DomainNameServers(v6.nameservers.clone()));
    }
    if asked(request, OptionCode::DomainSearchList) && !lease.search.is_empty() {
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::DomainSearchList, lease.search_wire())));
    }
}

/// A client that sends no list gets everything.
fn asked(request: &Message, code: OptionCode) -> bool {
    match request.opts().get(OptionCode::ORO) {
        Some(DhcpOption::ORO(list)) => list.opts.contains(&code),
        _ => true,
    }
}

#[cfg(test)]
#[path = "dhcp6_tests.rs"]
mod tests;
