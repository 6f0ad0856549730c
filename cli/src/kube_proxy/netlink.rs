// SPDX-License-Identifier: Apache-2.0
//! As much of netlink(7) as a few requests by name take: a request, its answers, no state between two of them.

use std::io;

use netlink_sys::{Socket, SocketAddr};

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;

/// `NLM_F_DUMP_INTR`: the list changed while it was read.
const INTERRUPTED: u16 = 0x10;
/// Bytes of a message's header: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Message types of netlink itself.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The list changes all the time.
const ATTEMPTS: usize = 8;

/// A message of `kind` to the kernel.
pub(super) fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    padded(bytes)
}

/// An attribute of a message.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    padded([&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat())
}

/// An attribute that is a name: it ends with a zero.
pub(super) fn name(kind: u16, name: &str) -> Vec<u8> {
    attribute(kind, &[name.as_bytes(), &[0]].concat())
}

/// The name that the attribute `kind` among `bytes` has.
pub(super) fn name_in(bytes: &[u8], kind: u16) -> Option<String> {
    let value = value_in(bytes, kind)?;
    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
}

/// The value of the attribute `kind` among `bytes`.
pub(super) fn value_in(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let found = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        // The upper bits say that attributes are within, or the order of bytes.
        if found & 0x3fff == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Sends `messages` and gives the payloads of the answers.
///
/// # Errors
/// The kernel refuses, or does not speak `protocol`.
pub(super) fn ask(protocol: isize, messages: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    for _ in 0..ATTEMPTS {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(messages, 0)?;
        if let Some(answers) = collect(&socket)? {
            return Ok(answers);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Reads until the kernel says that there is no more; nothing if the list changed meanwhile.
fn collect(socket: &Socket) -> io::Result<Option<Vec<Vec<u8>>>> {
    let (mut answers, mut whole) = (Vec::new(), true);
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, flags, payload) in Messages(&datagram) {
            whole &= flags & INTERRUPTED == 0;
            let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            match kind {
                ERROR | DONE if code < 0 => return Err(io::Error::from_raw_os_error(-code)),
                ERROR | DONE => return Ok(whole.then_some(answers)),
                _ => answers.push(payload.to_vec()),
            }
        }
    }
}

/// Type, flags and payload of each message of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*self.0.get(4..)?.first_chunk()?);
        let flags = u16::from_ne_bytes(*self.0.get(6..)?.first_chunk()?);
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, payload))
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{ACK, Messages, attribute, message, name, name_in, value_in};

    #[test]
    fn attributes_are_found_behind_others_and_lengths_that_lie_end_the_search() {
        let bytes = [attribute(1, &[7]), name(0x8003, "kube-proxy"), attribute(4, &[1, 2, 3, 4])].concat();
        assert_eq!(bytes.len(), 8 + 16 + 8);
        assert_eq!(name_in(&bytes, 3).unwrap(), "kube-proxy");
        assert_eq!(value_in(&bytes, 4).unwrap(), [1, 2, 3, 4]);
        for bytes in [&bytes[..], &[], &[0, 0, 1, 0], &[99, 0, 2, 0]] {
            assert_eq!(value_in(bytes, 2), None);
        }
    }

    #[test]
    fn a_datagram_is_cut_at_its_messages() {
        let datagram = [message(16, 0, &[1, 2, 3]), message(17, ACK, &[])].concat();
        let found: Vec<_> = Messages(&datagram).collect();
        assert_eq!(found, [(16, 1, &[1, 2, 3][..]), (17, 5, &[])]);
        for lie in [0, 15, 99, u32::MAX] {
            assert_eq!(Messages(&[&u32::to_ne_bytes(lie)[..], &[0; 12]].concat()).count(), 0);
        }
    }
}
