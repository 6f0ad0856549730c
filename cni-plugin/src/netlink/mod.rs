// SPDX-License-Identifier: Apache-2.0
//! A small synchronous route netlink client (rtnetlink(7)): one request, its answer, no threads, no runtime.

mod address;
mod link;
mod route;
mod rule;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub(crate) use link::{Link, VethPair};
pub(crate) use route::Route;
pub(crate) use rule::SourceRule;

/// `NLM_F_DUMP_INTR`: the dump is inconsistent because something changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: attributes follow the error's header.
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ATTR_MSG: u16 = 1;
/// Bytes of the request's header that the kernel repeats in an error.
const REPEATED_HEADER: usize = 16;
/// Larger than any datagram of the kernel's dumps (`NLMSG_GOODSIZE` is 8 KiB, one link can have 32 KiB).
const BUFFER_SIZE: usize = 64 * 1024;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}{}", .hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
pub(crate) struct NetlinkError {
    /// What was asked, with the names of the objects.
    operation: String,
    /// The kernel's error.
    source: io::Error,
    /// The kernel's extended acknowledgement.
    hint: Option<String>,
}

/// An error without the name of the operation.
#[derive(Debug)]
struct Refusal {
    source: io::Error,
    hint: Option<String>,
}

impl Refusal {
    fn during(self, operation: impl Into<String>) -> NetlinkError {
        NetlinkError { operation: operation.into(), source: self.source, hint: self.hint }
    }
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, hint: None }
    }
}

/// A route netlink socket: it speaks of the network namespace in which it was opened.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER_SIZE) })
    }

    /// Sends `message` with `flags` and waits for the kernel's acknowledgement.
    fn execute(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.request(message, NLM_F_ACK | flags).map(drop)
    }

    /// Sends `message`, whose answer is one message.
    fn get(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, Refusal> {
        Ok(self.request(message, NLM_F_ACK)?.0.pop())
    }

    /// Sends `message`, whose answer is a list; asks again when the list changed under the dump.
    fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        for _ in 0..8 {
            let (answers, interrupted) = self.request(message.clone(), NLM_F_DUMP)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy).into())
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        self.collect()
    }

    /// Reads answers to the latest request until the kernel says that there are no more.
    fn collect(&mut self) -> Result<(Vec<RouteNetlinkMessage>, bool), Refusal> {
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for datagram in Datagrams(&self.buffer) {
                // Skips what this version cannot read, such as another driver's link attributes in a dump.
                let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else { continue };
                let (header, payload) = message.into_parts();
                if header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok((answers, interrupted)),
                    NetlinkPayload::Error(error) => {
                        let hint = (header.flags & ACK_ATTRIBUTES != 0).then(|| words(&error.header)).flatten();
                        return Err(Refusal { source: error.to_io(), hint });
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code).into());
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of one datagram.
struct Datagrams<'a>(&'a [u8]);

impl<'a> Iterator for Datagrams<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?);
        let length = usize::try_from(length).ok().filter(|length| (16..=self.0.len()).contains(length))?;
        let (message, _) = self.0.split_at(length);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// The kernel's extended acknowledgement behind the repeated header.
fn words(payload: &[u8]) -> Option<String> {
    let attributes = NlasIterator::new(payload.get(REPEATED_HEADER..)?).flatten();
    let message = attributes.into_iter().find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == ATTR_MSG)?;
    netlink_packet_core::parse_string(message.value()).ok()
}

#[cfg(test)]
mod tests {
    use super::Datagrams;

    #[test]
    fn a_datagram_is_cut_at_its_messages_and_lengths_that_lie_end_it() {
        let message = |length: u32, bytes: usize| {
            let mut message = length.to_ne_bytes().to_vec();
            message.resize(bytes, 0);
            message
        };
        let lengths = |bytes: &[u8]| Datagrams(bytes).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&[message(17, 20), message(16, 16)].concat()), [17, 16]);
        assert_eq!(lengths(&[message(16, 16), message(99, 20)].concat()), [16]);
        for lie in [0, 15, u32::MAX] {
            assert_eq!(lengths(&message(lie, 16)), [0; 0]);
        }
        assert_eq!(lengths(&[1, 2]), [0; 0]);
    }
}
