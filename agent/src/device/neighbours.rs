// SPDX-License-Identifier: Apache-2.0
//! The other nodes that are neighbours on the uplink (native mode): the kernel is asked to know their Ethernet addresses at all
//! times, and tells them. The entries are of protocol 119, as the routes are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage},
        route::RouteProtocol,
    },
};
use weft_api::Mac;

use super::{Error, Result, error::to_io, netlink::Netlink, routes::ROUTE_PROTOCOL};

/// One entry of the kernel's tables.
struct Entry {
    address: IpAddr,
    /// None: it is not resolved, or nobody answers.
    mac: Option<Mac>,
    ours: bool,
    message: NeighbourMessage,
}

/// Lets the kernel keep the Ethernet addresses of `wanted` on `device`, and of nobody else for us; those that are known. What it
/// still has to find out it tells by a message to the group of neighbours.
///
/// Kernel 5.16 (`NTF_EXT_MANAGED`).
///
/// # Errors
/// The kernel does not tell its neighbours, or keeps one that is ours.
pub(super) async fn apply(netlink: &Netlink, device: u32, wanted: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Mac>> {
    let entries = list(netlink).await?;
    let is_wanted = |entry: &Entry| entry.message.header.ifindex == device && wanted.contains(&entry.address);
    let ours: BTreeSet<IpAddr> =
        entries.iter().filter(|entry| entry.ours && is_wanted(entry)).map(|entry| entry.address).collect();
    for address in wanted.difference(&ours) {
        if let Err(error) = keep(netlink, device, *address).await {
            // Its node's pods are not heard; the others' are.
            tracing::warn!(%address, %error, "cannot keep a neighbour");
        }
    }
    let known = entries.iter().filter(|entry| is_wanted(entry));
    let known = known.filter_map(|entry| Some((entry.address, entry.mac?))).collect();
    // Also those on the device that was the uplink before.
    for entry in entries.into_iter().filter(|entry| entry.ours && !is_wanted(entry)) {
        forget(netlink, entry).await?;
    }
    Ok(known)
}

/// Deletes every entry that [`apply`] made.
///
/// # Errors
/// The kernel refuses.
pub(super) async fn remove(netlink: &Netlink) -> Result<()> {
    for entry in list(netlink).await?.into_iter().filter(|entry| entry.ours) {
        forget(netlink, entry).await?;
    }
    Ok(())
}

async fn list(netlink: &Netlink) -> Result<Vec<Entry>> {
    let messages = netlink.neighbours().get().execute();
    let messages: Vec<_> = messages.try_collect().await.map_err(Error::netlink("list", "neighbours"))?;
    Ok(messages.into_iter().filter_map(Entry::read).collect())
}

impl Entry {
    fn read(message: NeighbourMessage) -> Option<Self> {
        let (mut address, mut mac, mut ours) = (None, None, false);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some((*found).into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some((*found).into()),
                NeighbourAttribute::LinkLayerAddress(found) => mac = found.as_slice().try_into().ok().map(Mac),
                NeighbourAttribute::Protocol(found) => ours = *found == RouteProtocol::Other(ROUTE_PROTOCOL),
                _ => {}
            }
        }
        Some(Self { address: address?, mac, ours, message })
    }
}

/// Makes an entry that the kernel resolves, and again before it grows old; no pressure on the table removes it.
async fn keep(netlink: &Netlink, device: u32, address: IpAddr) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = device;
    message.header.flags = NeighbourFlags::ExtLearned;
    let (family, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)),
        NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
    ];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    netlink.count_change();
    let failed = |source| Error::Netlink { action: "keep", object: format!("neighbour {address}"), source };
    let mut handle = (**netlink).clone();
    let mut answers = handle.request(request).map_err(|error| failed(to_io(error)))?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            return Err(failed(error.to_io()));
        }
    }
    Ok(())
}

async fn forget(netlink: &Netlink, entry: Entry) -> Result<()> {
    netlink.count_change();
    let deleted = netlink.neighbours().del(entry.message).execute().await;
    deleted.map_err(Error::netlink("delete", format!("neighbour {}", entry.address)))
}
