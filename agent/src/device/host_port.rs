// SPDX-License-Identifier: Apache-2.0
//! The host's own port: the veth pair `weft0`/`weft1`.
//!
//! What the host's stack routes into `weft0` meets `from_host` on its way out; what workloads send to the host enters the
//! stack as if `weft0` had received it. `weft1` only holds the other end up: no packet reaches it.

use std::net::IpAddr;

use rtnetlink::{
    LinkVeth,
    packet_route::link::{InfoData, InfoVeth, LinkMessage},
};

use super::{
    Error, HOST_PORT, HOST_PORT_PEER, Result, addresses,
    links::{self, Link, Settings},
    netlink::Netlink,
    sysctl,
};

/// Set by us, so that no udev rule for persistent addresses changes it under the programs, which know it.
const HOST_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x03];
const PEER_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x04];

/// Makes or repairs the pair and gives `weft0` exactly `gateways`.
pub(super) async fn apply(netlink: &Netlink, mtu: u32, gateways: &[IpAddr]) -> Result<Link> {
    let existing = adopt(netlink).await?;
    if existing.is_none() {
        tracing::info!(link = HOST_PORT, "creating the host's port");
        links::create(netlink, HOST_PORT, pair(mtu)).await?;
    }
    let settings = |mac| Settings { mac, mtu, noarp: true, any_source: true, up: true };
    links::repair(netlink, HOST_PORT_PEER, settings(PEER_MAC)).await?;
    let link = links::repair(netlink, HOST_PORT, settings(HOST_MAC)).await?;
    if gateways.iter().any(IpAddr::is_ipv6) {
        sysctl::enable_ipv6(HOST_PORT)?;
    }
    if let Err(error) = sysctl::enable_forwarding(HOST_PORT) {
        tracing::warn!(%error, "the host's routes cannot be asked for: what leaves the node goes by the uplink");
    }
    addresses::apply(netlink, &link, gateways).await?;
    Ok(link)
}

/// The pair as it is; none where it has to be made.
async fn adopt(netlink: &Netlink) -> Result<Option<Link>> {
    let host = links::find_with(netlink, HOST_PORT).await?;
    let peer = links::find_with(netlink, HOST_PORT_PEER).await?;
    for (name, link) in [(HOST_PORT, &host), (HOST_PORT_PEER, &peer)] {
        if let Some(link) = link.as_ref().filter(|link| link.kind != "veth") {
            return Err(Error::ForeignLink { name, found: kind_of(link), wanted: "veth pair weft0/weft1" });
        }
    }
    match (host, peer) {
        (None, None) => Ok(None),
        (Some(host), Some(peer)) if host.peer == Some(peer.index) => Ok(Some(host)),
        (Some(_), _) => Err(broken_pair(HOST_PORT)),
        (None, Some(_)) => Err(broken_pair(HOST_PORT_PEER)),
    }
}

fn broken_pair(name: &'static str) -> Error {
    Error::ForeignLink { name, found: "an end of another veth pair".to_owned(), wanted: "veth pair weft0/weft1" }
}

pub(super) fn kind_of(link: &Link) -> String {
    if link.kind.is_empty() { "a hardware device".to_owned() } else { format!("a {} device", link.kind) }
}

fn pair(mtu: u32) -> LinkMessage {
    let mut pair = LinkVeth::new(HOST_PORT, HOST_PORT_PEER).mtu(mtu).address(HOST_MAC.to_vec()).arp(false);
    let peer = rtnetlink::LinkUnspec::new_with_name(HOST_PORT_PEER).mtu(mtu).address(PEER_MAC.to_vec()).arp(false);
    pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    pair.build()
}

/// Deletes the pair, where it is there and ours.
pub(super) async fn remove(netlink: &Netlink) -> Result<()> {
    if adopt(netlink).await?.is_some() {
        links::delete_with(netlink, HOST_PORT).await?;
    }
    Ok(())
}
