// SPDX-License-Identifier: Apache-2.0
//! Addresses of links.

use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::{Error, Result, links::Link, netlink::Netlink};
use crate::plan::Digest;

/// An address as the kernel has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Assigned {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    pub(super) prefix_len: u8,
    /// Scope global (RFC 4007), not link or host.
    pub(super) global: bool,
    /// Neither temporary, tentative nor a duplicate; it may be deprecated.
    pub(super) usable: bool,
    /// It is usable, and not deprecated: the host takes it of itself.
    pub(super) preferred: bool,
    /// As the kernel wants it for deletion.
    message: AddressMessage,
}

/// Every address of the network namespace.
pub(super) async fn list(netlink: &Netlink) -> Result<Vec<Assigned>> {
    let messages: Vec<AddressMessage> =
        netlink.address().get().execute().try_collect().await.map_err(Error::netlink("list", "addresses"))?;
    Ok(messages.into_iter().filter_map(Assigned::new).collect())
}

/// Gives `link` exactly the global addresses `wanted`, each for itself (/32, /128) and without a prefix route.
pub(super) async fn apply(netlink: &Netlink, link: &Link, wanted: &[IpAddr]) -> Result<()> {
    let found: Vec<_> =
        list(netlink).await?.into_iter().filter(|found| found.ifindex == link.index && found.global).collect();
    for address in wanted.iter().filter(|address| !found.iter().any(|found| found.is_host_address(**address))) {
        add(netlink, link, *address).await?;
    }
    for stale in found.into_iter().filter(|found| !wanted.iter().any(|address| found.is_host_address(*address))) {
        tracing::info!(link = link.name, address = %stale.address, "removing address");
        let object = format!("address {} of '{}'", stale.address, link.name);
        netlink.count_change();
        netlink.address().del(stale.message).execute().await.map_err(Error::netlink("delete", object))?;
    }
    Ok(())
}

async fn add(netlink: &Netlink, link: &Link, address: IpAddr) -> Result<()> {
    tracing::info!(link = link.name, %address, "adding address");
    netlink.count_change();
    let mut request = netlink.address().add(link.index, address, host_prefix(address));
    let mut flags = AddressFlags::Noprefixroute;
    if address.is_ipv6() {
        // Nobody else on this link: usable at once.
        flags |= AddressFlags::Nodad;
    }
    request.message_mut().attributes.push(AddressAttribute::Flags(flags));
    request.execute().await.map_err(Error::netlink("add", format!("address {address} to '{}'", link.name)))
}

const fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Assigned {
    fn new(message: AddressMessage) -> Option<Self> {
        let mut address = None;
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point link IFA_ADDRESS is the other side's; IFA_LOCAL, where present, is ours.
                AddressAttribute::Local(local) => address = Some(*local),
                AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        let unfit = AddressFlags::Tentative | AddressFlags::Dadfailed;
        let temporary = address.is_some_and(|address| address.is_ipv6()) && flags.contains(AddressFlags::Secondary);
        let usable = !flags.intersects(unfit) && !temporary;
        Some(Self {
            ifindex: message.header.index,
            address: address?,
            prefix_len: message.header.prefix_len,
            global: message.header.scope == AddressScope::Universe,
            usable,
            preferred: usable && !flags.contains(AddressFlags::Deprecated),
            message,
        })
    }

    /// Of what makes it another address: not how long it lasts.
    pub(super) fn digest(&self) -> u64 {
        Digest::spread(format!("{} {}/{}", self.ifindex, self.address, self.prefix_len).as_bytes())
    }

    /// Without a network around it (/32, /128).
    pub(super) fn is_alone(&self) -> bool {
        self.prefix_len == host_prefix(self.address)
    }

    fn is_host_address(&self, address: IpAddr) -> bool {
        self.address == address && self.prefix_len == host_prefix(address)
    }
}
