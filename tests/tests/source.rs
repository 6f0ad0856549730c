// SPDX-License-Identifier: Apache-2.0

//! What a hostile workload sends is dropped and counted, from a container and from a guest alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use weft_testbed::{Attachment, Bed, Node, Protocol, Shell};

const GATEWAY_MAC: [u8; 6] = weft_abi::GATEWAY_MAC;
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
const COUNT: u64 = 5;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Who the workload really is, and whom it writes to.
struct Workload {
    mac: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    peer4: Ipv4Addr,
    peer6: Ipv6Addr,
}

impl Workload {
    fn new(attachment: &Attachment, peer: &[IpAddr]) -> Result<Self> {
        let side = attachment.interface(true).or_else(|_| attachment.interface(false))?;
        let mac: weft_api::Mac = side["mac"].as_str().context("no mac")?.parse()?;
        let own = attachment.addresses()?;
        Ok(Self { mac: mac.0, v4: v4(&own)?, v6: v6(&own)?, peer4: v4(peer)?, peer6: v6(peer)? })
    }

    fn udp4(&self, mac: [u8; 6], source: Ipv4Addr) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2(mac, GATEWAY_MAC).ipv4(source.octets(), self.peer4.octets(), 64).udp(1000, 9);
        finish(|bytes| builder.write(bytes, b"hello"))
    }

    fn udp6(&self, source: Ipv6Addr) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2(self.mac, GATEWAY_MAC).ipv6(source.octets(), self.peer6.octets(), 64).udp(1000, 9);
        finish(|bytes| builder.write(bytes, b"hello"))
    }

    /// An ARP request that claims that `sender` is here.
    fn arp(&self, mac: [u8; 6], sender: Ipv4Addr) -> Result<Vec<u8>> {
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REQUEST,
            &mac,
            &sender.octets(),
            &[0; 6],
            &self.peer4.octets(),
        )?;
        Ok(finish(|bytes| PacketBuilder::ethernet2(self.mac, [0xff; 6]).arp(packet).write(bytes)))
    }

    /// A neighbour message (RFC 4861, 4.3 and 4.4) of type `kind` from `source` that has `target` and `mac` in it.
    fn neighbour(&self, kind: u8, source: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
        let mut body = target.octets().to_vec();
        // Source (1) or target (2) link-layer address, one unit of 8 bytes.
        body.extend_from_slice(&[kind - 134, 1]);
        body.extend_from_slice(&mac);
        let builder = PacketBuilder::ethernet2(self.mac, GATEWAY_MAC)
            .ipv6(source.octets(), self.peer6.octets(), 255)
            .icmpv6_raw(kind, 0, [0; 4]);
        finish(|bytes| builder.write(bytes, &body))
    }
}

fn finish<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), E>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes).expect("writing to memory");
    bytes
}

fn v4(addresses: &[IpAddr]) -> Result<Ipv4Addr> {
    let found = addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None });
    found.context("no IPv4 address")
}

fn v6(addresses: &[IpAddr]) -> Result<Ipv6Addr> {
    let found = addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None });
    found.context("no IPv6 address")
}

fn truncated(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(length);
    frame
}

/// Sends `frame` some times and looks that all of it was dropped for `reason`.
fn is_dropped(node: &Node, workload: &dyn Shell, name: &str, frame: &[u8], reason: &str) -> Result<()> {
    let before = node.drops(reason)?;
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    workload.sh(&format!("weft-probe send eth0 {hex} --count {COUNT}"))?.ok()?;
    let what = format!("{name} from {}: {COUNT} drops for {reason}", workload.label());
    weft_testbed::until_ok(&what, std::time::Duration::from_secs(5), || {
        let dropped = node.drops(reason)? - before;
        // Workloads send router solicitations and multicast reports of their own.
        let exact = reason != "multicast";
        anyhow::ensure!(
            dropped == COUNT || !exact && dropped > COUNT,
            "{dropped} were counted; all: {}",
            node.weft("drops")?
        );
        Ok(())
    })
}

fn hostile_frames(of: &Workload) -> Result<Vec<(&'static str, Vec<u8>, &'static str)>> {
    let honest = of.udp4(of.mac, of.v4);
    let mut lying_length = honest.clone();
    // Total length of the IPv4 header: more than there is.
    lying_length[16..18].copy_from_slice(&1400u16.to_be_bytes());
    let mut short_header = honest.clone();
    // Header length of 4 words: less than the fixed part.
    short_header[14] = 0x44;
    Ok(vec![
        ("a foreign Ethernet source", of.udp4(OTHER_MAC, of.v4), "source-mac"),
        ("the peer's IPv4 source", of.udp4(of.mac, of.peer4), "source-address"),
        ("the peer's IPv6 source", of.udp6(of.peer6), "source-address"),
        ("ARP for the peer's address", of.arp(of.mac, of.peer4)?, "arp-spoofed"),
        ("ARP with another sender", of.arp(OTHER_MAC, of.v4)?, "arp-spoofed"),
        ("a solicitation from the peer", of.neighbour(SOLICITATION, of.peer6, of.peer6, of.mac), "arp-spoofed"),
        ("a solicitation for a foreign device", of.neighbour(SOLICITATION, of.v6, of.peer6, OTHER_MAC), "arp-spoofed"),
        // Nobody's advertisements go on: the dataplane answers for everybody.
        ("an advertisement of the peer's address", of.neighbour(ADVERTISEMENT, of.v6, of.peer6, of.mac), "multicast"),
        ("half an IPv4 header", truncated(honest.clone(), 24), "truncated"),
        ("half a UDP header", truncated(honest, 38), "bad-header"),
        ("an IPv4 length that lies", lying_length, "bad-header"),
        ("an IPv4 header that is too short", short_header, "bad-header"),
    ])
}

#[test]
fn what_a_container_forges_is_dropped() -> Result<()> {
    let bed = Bed::new()?;
    let container = bed.container(1, "default/hostile", &[])?;
    let peer = bed.container(1, "default/peer", &[])?;
    peer.serve("peer", 8080)?;
    let workload = Workload::new(container.attachment(), peer.addresses())?;
    for (name, frame, reason) in hostile_frames(&workload)? {
        is_dropped(bed.node(1), &container, name, &frame, reason)?;
    }
    container.reaches(Protocol::Udp, peer.sockets(8080)[0], "peer").map(drop)
}

#[test]
fn what_a_guest_forges_is_dropped() -> Result<()> {
    let bed = Bed::new()?;
    let guest = bed.vm(1, "default/hostile", &[])?;
    let peer = bed.container(2, "default/peer", &[])?;
    peer.serve("peer", 8080)?;
    let workload = Workload::new(guest.attachment(), peer.addresses())?;
    for (name, frame, reason) in hostile_frames(&workload)? {
        is_dropped(bed.node(1), &guest, name, &frame, reason)?;
    }
    guest.reaches(Protocol::Udp, peer.sockets(8080)[0], "peer").map(drop)
}
