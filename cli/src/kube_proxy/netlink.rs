// SPDX-License-Identifier: Apache-2.0
//! As much of netlink(7) as a few requests by name take: a request, its answers, no state between two of them.

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable as _, NLA_HEADER_SIZE, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};

/// Bytes of a message's header: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// The list changes all the time.
const ATTEMPTS: usize = 8;

/// A message of `kind` to the kernel.
pub(super) fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = HEADER + payload.len();
    let mut bytes = vec![0; length.next_multiple_of(4)];
    let mut message = NetlinkBuffer::new(&mut bytes);
    message.set_length(u32::try_from(length).unwrap_or(u32::MAX));
    message.set_message_type(kind);
    message.set_flags(NLM_F_REQUEST | flags);
    message.payload_mut().copy_from_slice(payload);
    bytes
}

/// An attribute of a message.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
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
pub(super) fn value_in(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut attributes = NlasIterator::new(bytes).map_while(Result::ok);
    let found = attributes.find(|attribute| attribute.kind() == kind)?;
    let end = NLA_HEADER_SIZE + found.value_length();
    found.into_inner().get(NLA_HEADER_SIZE..end)
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
            whole &= flags & NLM_F_DUMP_INTR == 0;
            let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            match kind {
                NLMSG_ERROR | NLMSG_DONE if code < 0 => return Err(io::Error::from_raw_os_error(-code)),
                NLMSG_ERROR | NLMSG_DONE => return Ok(whole.then_some(answers)),
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
        let message = NetlinkBuffer::new_checked(self.0).ok()?;
        let end = usize::try_from(message.length()).ok()?.next_multiple_of(4);
        self.0 = self.0.get(end..).unwrap_or_default();
        Some((message.message_type(), message.flags(), message.payload()))
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_ACK;

    use super::{Messages, attribute, message, name, name_in, value_in};

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
        let datagram = [message(16, 0, &[1, 2, 3]), message(17, NLM_F_ACK, &[])].concat();
        let found: Vec<_> = Messages(&datagram).collect();
        assert_eq!(found, [(16, 1, &[1, 2, 3][..]), (17, 5, &[])]);
        for lie in [0, 15, 99, u32::MAX] {
            assert_eq!(Messages(&[&u32::to_ne_bytes(lie)[..], &[0; 12]].concat()).count(), 0);
        }
    }
}
