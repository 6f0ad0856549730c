// SPDX-License-Identifier: Apache-2.0
//! One frame of a trace on one line: the ends that a person looks for, out of the first bytes that the device gave.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use crate::print::printable;

/// Bytes of the virtio-net header in front of each frame: virtio 1.2, section 5.1.6.
const VIRTIO_HEADER: usize = 12;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// Flags of TCP in their order from the lowest bit, as tcpdump writes them.
const TCP_FLAGS: [char; 6] = ['F', 'S', 'R', 'P', '.', 'U'];

/// The line for one record of `trace`.
pub(crate) fn line(record: &Value) -> String {
    let direction = if record["direction"] == "to_guest" { "to guest  " } else { "from guest" };
    let length = record["len"].as_u64().unwrap_or(0).saturating_sub(VIRTIO_HEADER as u64);
    let bytes = bytes(record["data"].as_str().unwrap_or_default());
    let (header, frame) = bytes.split_at_checked(VIRTIO_HEADER).unwrap_or((&[], &bytes));
    let what = ethernet(frame).unwrap_or_else(|| "cut short".to_owned());
    let error = record["error"].as_str().map(|error| format!(" refused: {}", printable(error))).unwrap_or_default();
    format!("{direction} {length:5} bytes  {what}{}{error}", offloads(header).unwrap_or_default())
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<u32> = hexadecimal.chars().map_while(|digit| digit.to_digit(16)).collect();
    digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect()
}

/// What is left to whoever takes the frame.
fn offloads(header: &[u8]) -> Option<String> {
    let (flags, kind) = (*header.first()?, *header.get(1)?);
    let size = u16::from_le_bytes(array(header, 4)?);
    let checksum = if flags & NEEDS_CHECKSUM != 0 { " checksum=partial" } else { "" };
    let segments = if kind != 0 { format!(" gso={size}") } else { String::new() };
    Some(format!("{checksum}{segments}"))
}

fn ethernet(frame: &[u8]) -> Option<String> {
    let packet = frame.get(14..)?;
    match u16::from_be_bytes(array(frame, 12)?) {
        0x0800 => ipv4(packet),
        0x86dd => ipv6(packet),
        0x0806 => arp(packet),
        other => Some(format!("ethertype {other:#06x}")),
    }
}

fn ipv4(packet: &[u8]) -> Option<String> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let fragment = u16::from_be_bytes(array(packet, 6)?) & 0x1fff;
    let from = Ipv4Addr::from(array::<4>(packet, 12)?);
    let to = Ipv4Addr::from(array::<4>(packet, 16)?);
    let payload = if fragment == 0 { packet.get(header..).unwrap_or_default() } else { &[] };
    Some(transport(*packet.get(9)?, payload, from.into(), to.into()))
}

fn ipv6(packet: &[u8]) -> Option<String> {
    let from = Ipv6Addr::from(array::<16>(packet, 8)?);
    let to = Ipv6Addr::from(array::<16>(packet, 24)?);
    Some(transport(*packet.get(6)?, packet.get(40..)?, from.into(), to.into()))
}

/// Without a whole header of it, the addresses alone.
fn transport(protocol: u8, payload: &[u8], from: std::net::IpAddr, to: std::net::IpAddr) -> String {
    let ports = || Some((u16::from_be_bytes(array(payload, 0)?), u16::from_be_bytes(array(payload, 2)?)));
    let name = match protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    };
    match (protocol, ports()) {
        (6 | 17 | 132, Some((source, destination))) => {
            let flags = payload.get(13).filter(|_| protocol == 6).map(|flags| flags_of(*flags)).unwrap_or_default();
            format!("{name} {} -> {}{flags}", SocketAddr::new(from, source), SocketAddr::new(to, destination))
        }
        (1 | 58, Some(_)) => format!("{name} {from} -> {to} type {}", payload[0]),
        _ => format!("{name} {from} -> {to}"),
    }
}

fn flags_of(flags: u8) -> String {
    let set = TCP_FLAGS.iter().enumerate().filter(|(bit, _)| flags & 1 << bit != 0).map(|(_, name)| name);
    format!(" [{}]", set.collect::<String>())
}

fn arp(packet: &[u8]) -> Option<String> {
    let from = Ipv4Addr::from(array::<4>(packet, 14)?);
    let to = Ipv4Addr::from(array::<4>(packet, 24)?);
    Some(match u16::from_be_bytes(array(packet, 6)?) {
        1 => format!("ARP {from} asks for {to}"),
        2 => format!("ARP {from} answers {to}"),
        other => format!("ARP operation {other}"),
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::line;

    const ETHERNET: &str = "027765667401020000000001";
    /// Up to the addresses, with a checksum of zero.
    const V4: &str = "4500003c0000400040060000";

    fn shown(header: &str, frame: &str) -> String {
        let data = format!("{header}{frame}");
        line(&json!({"direction": "from_guest", "len": data.len() / 2, "data": data}))
    }

    #[test]
    fn frames_show_their_ends() {
        let plain = "00".repeat(12);
        let v4 = format!("{ETHERNET}0800{V4}0af402060af40103");
        for (frame, expected) in [
            (format!("{v4}a30c1f90000000010000000250120000"), "TCP 10.244.2.6:41740 -> 10.244.1.3:8080 [S.]"),
            (v4.replace("4006", "4011") + "a30c0035", "UDP 10.244.2.6:41740 -> 10.244.1.3:53"),
            (v4.replace("4006", "4001") + "0800f7ff", "ICMP 10.244.2.6 -> 10.244.1.3 type 8"),
            (v4.replace("4006", "4032") + "0800f7ff", "protocol 50 10.244.2.6 -> 10.244.1.3"),
            (v4.replace("00004000", "00002001") + "a30c0035", "TCP 10.244.2.6 -> 10.244.1.3"),
            (
                format!("{ETHERNET}86dd600000000020 3aff fe80{z}01 ff02{z}02 8500", z = "0".repeat(26))
                    .replace(' ', ""),
                "ICMPv6 fe80::1 -> ff02::2",
            ),
            (
                format!("{ETHERNET}08060001080006040001 020000000001 0af40206 000000000000 0af40201").replace(' ', ""),
                "ARP 10.244.2.6 asks for 10.244.2.1",
            ),
            (format!("{ETHERNET}88cc0000"), "ethertype 0x88cc"),
            (ETHERNET.to_owned(), "cut short"),
        ] {
            let text = shown(&plain, &frame);
            assert_eq!(text, format!("from guest {:5} bytes  {expected}", frame.len() / 2), "{frame}");
        }
    }

    #[test]
    fn offloads_and_refusals_are_told() {
        let header = "0101 4200 a805 2200 1000 0100".replace(' ', "");
        assert!(shown(&header, &format!("{ETHERNET}88cc")).ends_with("ethertype 0x88cc checksum=partial gso=1448"));
        let refused = json!({"direction": "to_guest", "len": 60, "data": "", "error": "E\u{1b}IO"});
        assert_eq!(line(&refused), "to guest      48 bytes  cut short refused: EIO");
        assert_eq!(line(&json!(7)), "from guest     0 bytes  cut short");
    }
}
