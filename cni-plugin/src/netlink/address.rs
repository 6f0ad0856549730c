// SPDX-License-Identifier: Apache-2.0
//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};

use super::{Link, Netlink, NetlinkError};

/// The kernel's number of an address's family.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Netlink {
    /// Gives `address` to `link`.
    ///
    /// Without duplicate address detection (RFC 4862, section 5.4): the agent gives no address twice, and a tentative
    /// IPv6 address would keep the workload silent for more than a second.
    pub(crate) fn add_address(&mut self, link: &Link, address: IpNet) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = link.index;
        message.attributes.push(AddressAttribute::Local(address.addr()));
        message.attributes.push(AddressAttribute::Address(address.addr()));
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.execute(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|refusal| refusal.during(format!("add the address {address} to the interface '{}'", link.name)))
    }

    /// The addresses of the link at `index`.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let answers = answers.map_err(|refusal| refusal.during("list the addresses"))?;
        Ok(answers.into_iter().filter_map(|answer| observed(answer, index)).collect())
    }
}

fn observed(message: RouteNetlinkMessage, index: u32) -> Option<IpNet> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.index != index {
        return None;
    }
    // IPv4 tells the own address as IFA_LOCAL, IPv6 as IFA_ADDRESS.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}
