// SPDX-License-Identifier: Apache-2.0

//! Frames, made and read by the oracle's own code: a checksum that the dataplane got wrong must not be believed by the same
//! code.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};

use super::world::Protocol;

/// Hops that every frame begins with.
pub(super) const HOPS: u8 = 64;

/// TCP flags.
pub(super) const SYN: u8 = 0x02;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const ACK: u8 = 0x10;

/// What a frame says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Frame {
    pub(super) macs: [[u8; 6]; 2],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) hops: u8,
    pub(super) tcp_flags: u8,
    /// An echo reply instead of a request; the identifier is `sport` of a request and `dport` of a reply.
    pub(super) reply: bool,
}

const ETHERNET: usize = 14;
const PAYLOAD: &[u8; 8] = b"oracle-1";

/// The frame's bytes, with right checksums.
pub(super) fn build(frame: &Frame) -> Vec<u8> {
    let ipv4 = frame.source.is_ipv4();
    let mut transport = transport(frame, ipv4);
    let mut bytes = [frame.macs[0], frame.macs[1]].concat();
    let number = frame.protocol.number(ipv4);
    let pseudo = pseudo_sum(frame.source, frame.destination, number, transport.len());
    let sum = finish(if ipv4 && frame.protocol == Protocol::Echo { 0 } else { pseudo }, &transport);
    match frame.protocol {
        Protocol::Tcp => put(&mut transport, 16, sum),
        Protocol::Udp => put(&mut transport, 6, non_zero(sum)),
        Protocol::Echo => put(&mut transport, 2, sum),
        Protocol::Sctp => {
            let crc = crc32c(&transport);
            transport[8..12].copy_from_slice(&crc.to_le_bytes());
        }
    }
    bytes.extend(if ipv4 { [8, 0] } else { [0x86, 0xdd] });
    bytes.extend(ip_header(frame, number, transport.len()));
    bytes.extend(transport);
    bytes
}

fn transport(frame: &Frame, ipv4: bool) -> Vec<u8> {
    let ports = [frame.sport.to_be_bytes(), frame.dport.to_be_bytes()].concat();
    let head = match frame.protocol {
        Protocol::Tcp => {
            let rest = [
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                if frame.tcp_flags & ACK != 0 { 1 } else { 0 },
                0x50,
                frame.tcp_flags,
                0xff,
                0xff,
            ];
            [ports, rest.to_vec(), vec![0; 4]].concat()
        }
        Protocol::Udp => [ports, vec![0, 16, 0, 0]].concat(),
        // One chunk: DATA of 16 + 8 bytes.
        Protocol::Sctp => {
            [ports, vec![0, 0, 0, 9, 0, 0, 0, 0], vec![0, 3, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
        }
        Protocol::Echo => {
            let kind = match (ipv4, frame.reply) {
                (true, false) => 8,
                (true, true) => 0,
                (false, false) => 128,
                (false, true) => 129,
            };
            let id = if frame.reply { frame.dport } else { frame.sport }.to_be_bytes();
            vec![kind, 0, 0, 0, id[0], id[1], 0, 7]
        }
    };
    [head, PAYLOAD.to_vec()].concat()
}

fn ip_header(frame: &Frame, protocol: u8, length: usize) -> Vec<u8> {
    let length = length as u16;
    match (frame.source, frame.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (length + 20).to_be_bytes();
            let mut header = vec![0x45, 0, total[0], total[1], 0x12, 0x34, 0x40, 0, frame.hops, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = finish(0, &header);
            put(&mut header, 10, sum);
            header
        }
        (source, destination) => {
            let length = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, frame.hops];
            header.extend(octets(source));
            header.extend(octets(destination));
            header
        }
    }
}

/// Reads a frame.
///
/// # Errors
/// It is not one that [`build`] makes, however rewritten, or a checksum is wrong.
pub(super) fn parse(bytes: &[u8]) -> Result<Frame> {
    ensure!(bytes.len() > ETHERNET + 20, "a frame of {} bytes", bytes.len());
    let mut macs = [[0; 6]; 2];
    macs[0].copy_from_slice(&bytes[..6]);
    macs[1].copy_from_slice(&bytes[6..12]);
    let ip = &bytes[ETHERNET..];
    let ipv4 = match bytes[12..14] {
        [8, 0] => true,
        [0x86, 0xdd] => false,
        _ => bail!("neither IPv4 nor IPv6"),
    };
    let (size, number, hops, source, destination) = if ipv4 {
        ensure!(ip[0] == 0x45, "a first byte {:#x}", ip[0]);
        ensure!(finish(0, &ip[..20]) == 0, "a wrong checksum of the IPv4 header");
        (20, ip[9], ip[8], IpAddr::from(take::<4>(&ip[12..])), IpAddr::from(take::<4>(&ip[16..])))
    } else {
        ensure!(ip.len() > 40, "an IPv6 packet of {} bytes", ip.len());
        (40, ip[6], ip[7], IpAddr::from(take::<16>(&ip[8..])), IpAddr::from(take::<16>(&ip[24..])))
    };
    let length = if ipv4 {
        u16::from_be_bytes(take(&ip[2..])) as usize
    } else {
        40 + u16::from_be_bytes(take(&ip[4..])) as usize
    };
    ensure!(length <= ip.len() && length >= size + 16, "a length of {length} in {} bytes", ip.len());
    let transport = &ip[size..length];
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Echo]
        .into_iter()
        .find(|protocol| protocol.number(ipv4) == number);
    let Some(protocol) = protocol else { bail!("IP protocol {number}") };
    check_transport(transport, protocol, pseudo_sum(source, destination, number, transport.len()), ipv4)?;
    let (first, second) = (u16::from_be_bytes(take(transport)), u16::from_be_bytes(take(&transport[2..])));
    let echo = matches!((ipv4, transport[0]), (true, 0 | 8) | (false, 128 | 129));
    ensure!(protocol != Protocol::Echo || echo, "a message of ICMP of type {}", transport[0]);
    let reply = protocol == Protocol::Echo && matches!((ipv4, transport[0]), (true, 0) | (false, 129));
    let id = u16::from_be_bytes(take(&transport[4..]));
    let (sport, dport) = match protocol {
        Protocol::Echo if reply => (0, id),
        Protocol::Echo => (id, 0),
        _ => (first, second),
    };
    let tcp_flags = if protocol == Protocol::Tcp { transport[13] } else { 0 };
    Ok(Frame { macs, source, destination, protocol, sport, dport, hops, tcp_flags, reply })
}

fn check_transport(transport: &[u8], protocol: Protocol, pseudo: u32, ipv4: bool) -> Result<()> {
    ensure!(transport.ends_with(PAYLOAD), "another payload");
    let right = match protocol {
        Protocol::Tcp | Protocol::Udp => finish(pseudo, transport) == 0,
        Protocol::Echo => finish(if ipv4 { 0 } else { pseudo }, transport) == 0,
        Protocol::Sctp => {
            let mut clear = transport.to_vec();
            clear[8..12].fill(0);
            crc32c(&clear).to_le_bytes() == transport[8..12]
        }
    };
    ensure!(right, "a wrong checksum of {protocol:?}");
    Ok(())
}

fn take<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[..N]);
    taken
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

/// RFC 768: no checksum is zero, so that one that is zero is written as its other form.
const fn non_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    sum(&octets(source)) + sum(&octets(destination)) + u32::from(protocol) + length as u32
}

fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).map(word).sum()
}

/// RFC 1071.
fn finish(start: u32, bytes: &[u8]) -> u16 {
    let mut total = start + sum(bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

/// RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::{Frame, HOPS, SYN, build, crc32c, parse};
    use crate::oracle::world::Protocol;

    #[test]
    fn a_frame_reads_back_and_a_changed_one_does_not() {
        for (source, destination) in [("10.1.2.3", "10.9.8.7"), ("fd00::1", "fd00:5::ffff")] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Echo] {
                let tcp_flags = if protocol == Protocol::Tcp { SYN } else { 0 };
                let (sport, dport) = (4000, if protocol == Protocol::Echo { 0 } else { 53 });
                let [source, destination] = [source, destination].map(|text| text.parse().unwrap());
                let macs = [[2; 6], [4; 6]];
                let frame =
                    Frame { macs, source, destination, protocol, sport, dport, hops: HOPS, tcp_flags, reply: false };
                let mut bytes = build(&frame);
                assert_eq!(parse(&bytes).unwrap(), frame);
                let port = bytes.len() - 1;
                bytes[port - 9] ^= 1;
                parse(&bytes).unwrap_err();
            }
        }
    }

    /// RFC 3720, B.4.
    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
