// SPDX-License-Identifier: Apache-2.0
//! `dhcp6`: a DHCPv6 client (RFC 8415) for guests, since Debian's static busybox has none. Solicit, advertise, request,
//! reply; one address.

use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    time::{Duration, Instant},
};

use weft_probe::frames::index_of;

use crate::arguments::Arguments;

/// All_DHCP_Relay_Agents_and_Servers, RFC 8415 section 7.1.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const REPLY: u8 = 7;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const OPTION_REQUEST: u16 = 6;
const ELAPSED_TIME: u16 = 8;
const DNS_SERVERS: u16 = 23;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let iface = arguments.required("IFACE")?;
    let patience = Duration::from_millis(arguments.option("--timeout")?.unwrap_or(20_000));
    arguments.finish()?;
    let address = acquire(&iface, patience).map_err(|error| format!("dhcp6 on {iface}: {error}"))?;
    println!("{address}");
    Ok(())
}

fn acquire(iface: &str, patience: Duration) -> io::Result<Ipv6Addr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, CLIENT_PORT))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let server = SocketAddrV6::new(SERVERS, SERVER_PORT, 0, index_of(iface)?);
    let client = Client { socket, server, client_id: client_id(iface)?, deadline: Instant::now() + patience };
    let offer = client.exchange(SOLICIT, ADVERTISE, 0x0077_6501, None)?;
    let server_id = find(&offer, SERVER_ID).ok_or_else(|| io::Error::other("the advertisement has no server id"))?;
    let lease = client.exchange(REQUEST, REPLY, 0x0077_6502, Some((server_id, &offer)))?;
    leased(&lease).ok_or_else(|| io::Error::other("the reply has no address"))
}

struct Client {
    socket: UdpSocket,
    server: SocketAddrV6,
    client_id: Vec<u8>,
    deadline: Instant,
}

impl Client {
    /// Sends a message once a second until an answer of type `expected` comes; gives the answer's options.
    fn exchange(&self, kind: u8, expected: u8, id: u32, chosen: Option<(&[u8], &[u8])>) -> io::Result<Vec<u8>> {
        let message = self.message(kind, id, chosen);
        let mut buffer = [0; 1500];
        while Instant::now() < self.deadline {
            // Right after boot the link-local address may not be usable yet.
            drop(self.socket.send_to(&message, self.server));
            let Ok(read) = self.socket.recv(&mut buffer) else { continue };
            let answer = &buffer[..read];
            if read > 4 && answer[0] == expected && answer[1..4] == id.to_be_bytes()[1..] {
                return Ok(answer[4..].to_vec());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn message(&self, kind: u8, id: u32, chosen: Option<(&[u8], &[u8])>) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend_from_slice(&id.to_be_bytes()[1..]);
        push(&mut message, CLIENT_ID, &self.client_id);
        let mut association = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        if let Some((server_id, offer)) = chosen {
            push(&mut message, SERVER_ID, server_id);
            // IAID, T1 and T2 first, then the address as it was offered.
            let offered = find(offer, IA_NA).and_then(|association| find(association.get(12..)?, IA_ADDRESS));
            if let Some(address) = offered {
                push(&mut association, IA_ADDRESS, address);
            }
        }
        push(&mut message, IA_NA, &association);
        push(&mut message, OPTION_REQUEST, &DNS_SERVERS.to_be_bytes());
        push(&mut message, ELAPSED_TIME, &[0, 0]);
        message
    }
}

/// DUID-LL of the interface, RFC 8415 section 11.4.
fn client_id(iface: &str) -> io::Result<Vec<u8>> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{iface}/address"))?;
    let mut id = vec![0, 3, 0, 1];
    for byte in text.trim().split(':') {
        id.push(u8::from_str_radix(byte, 16).map_err(io::Error::other)?);
    }
    Ok(id)
}

fn push(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    message.extend_from_slice(value);
}

fn find(mut options: &[u8], code: u16) -> Option<&[u8]> {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = rest.get(..length)?;
        if u16::from_be_bytes([head[0], head[1]]) == code {
            return Some(value);
        }
        options = &rest[length..];
    }
    None
}

fn leased(options: &[u8]) -> Option<Ipv6Addr> {
    let address = find(find(options, IA_NA)?.get(12..)?, IA_ADDRESS)?;
    Some(Ipv6Addr::from(*address.first_chunk::<16>()?))
}

#[cfg(test)]
mod tests {
    use super::{IA_ADDRESS, IA_NA, leased, push};

    #[test]
    fn a_lease_is_found_in_its_association() {
        let mut association = vec![0; 12];
        let mut address = [0; 24];
        address[15] = 7;
        push(&mut association, IA_ADDRESS, &address);
        let mut options = Vec::new();
        push(&mut options, 99, &[1, 2, 3]);
        push(&mut options, IA_NA, &association);
        assert_eq!(leased(&options), Some("::7".parse().unwrap()));
        assert_eq!(leased(&options[..options.len() - 1]), None);
    }
}
