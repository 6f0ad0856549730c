// SPDX-License-Identifier: Apache-2.0
//! `weft_vxlan`: one VXLAN device (RFC 7348) in external mode; the programs give each packet its remote and its VNI.

use rtnetlink::{LinkVxlan, packet_route::link::LinkMessage};
use weft_abi::GATEWAY_MAC;

use super::{
    Error, OVERLAY, Result,
    host_port::kind_of,
    links::{self, Link, Settings},
    netlink::Netlink,
};

/// Makes or repairs the device; a new one is down, see [`open`]. UDP port and mode cannot be changed on a living device, so one that differs is made anew.
pub(super) async fn apply(netlink: &Netlink, port: u16, mtu: u32) -> Result<Link> {
    let settings = Settings { mac: GATEWAY_MAC, mtu, noarp: false, any_source: false, up: false };
    match find(netlink).await? {
        Some(link) if link.vxlan_external && link.vxlan_port == Some(port) => {}
        None => create(netlink, port, mtu).await?,
        Some(old) => {
            tracing::warn!(link = OVERLAY, old_port = old.vxlan_port, new_port = port, "replacing the overlay device");
            links::delete_with(netlink, OVERLAY).await?;
            create(netlink, port, mtu).await?;
        }
    }
    links::repair(netlink, OVERLAY, settings).await
}

/// Brings the device up, whether it was down: to be called when its program is attached, and not before. Without it the frames
/// inside of what anybody encapsulates would go into the host's stack.
pub(super) async fn open(netlink: &Netlink, port: u16) -> Result<bool> {
    // The kernel takes the UDP port when the device comes up.
    links::set_with(netlink, OVERLAY, true).await.map_err(|error| port_taken(error, port))
}

async fn create(netlink: &Netlink, port: u16, mtu: u32) -> Result<()> {
    tracing::info!(link = OVERLAY, port, "creating the overlay device");
    let created = links::create(netlink, OVERLAY, device(port, mtu)).await;
    created.map(drop).map_err(|error| port_taken(error, port))
}

/// Deletes the device, where there is one and it is ours.
pub(super) async fn remove(netlink: &Netlink) -> Result<()> {
    if find(netlink).await?.is_some() {
        links::delete_with(netlink, OVERLAY).await?;
    }
    Ok(())
}

async fn find(netlink: &Netlink) -> Result<Option<Link>> {
    match links::find_with(netlink, OVERLAY).await? {
        Some(link) if link.kind != "vxlan" => {
            Err(Error::ForeignLink { name: OVERLAY, found: kind_of(&link), wanted: "VXLAN device" })
        }
        found => Ok(found),
    }
}

fn device(port: u16, mtu: u32) -> LinkMessage {
    LinkVxlan::new(OVERLAY, 0)
        .collect_metadata(true)
        .learning(false)
        .port(port)
        // Senders may leave out the outer checksum over IPv6 (RFC 6935); the inner ones protect the packet.
        .udp_zero_csum6_rx(true)
        .mtu(mtu)
        .address(GATEWAY_MAC.to_vec())
        .build()
}

/// The kernel has one external VXLAN device per UDP port and namespace.
fn port_taken(error: Error, port: u16) -> Error {
    match &error {
        Error::Netlink { source, .. } if matches!(source.raw_os_error(), Some(libc::EEXIST | libc::EADDRINUSE)) => {
            Error::config(
                "vxlanPort",
                format!("UDP port {port} is used by another device or process: choose another port"),
            )
        }
        _ => error,
    }
}
