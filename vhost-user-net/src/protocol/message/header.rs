// SPDX-License-Identifier: Apache-2.0
//! The fixed part in front of every message.

use super::reader::Reader;
use super::{HEADER_LEN, MAX_PAYLOAD, MessageError};

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// The fixed part in front of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub request: u32,
    /// Protocol version and flags.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

impl Header {
    /// Splits the twelve bytes off the wire into their fields.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut reader = Reader(bytes);
        Self { request: reader.u32(), flags: reader.u32(), size: reader.u32() }
    }

    /// Checks version, direction and payload size before the payload is read.
    ///
    /// # Errors
    /// When the peer speaks another version, sends a reply, or announces more than [`MAX_PAYLOAD`] bytes.
    pub fn check(&self) -> Result<(), MessageError> {
        if self.flags & VERSION_MASK != VERSION {
            return Err(MessageError::Version { version: self.flags & VERSION_MASK });
        }
        if self.flags & FLAG_REPLY != 0 {
            return Err(MessageError::ReplyFromFrontEnd { request: self.request });
        }
        if self.size as usize > MAX_PAYLOAD {
            return Err(MessageError::TooLong { request: self.request, size: self.size });
        }
        Ok(())
    }

    /// Whether the front end waits for an acknowledgement (protocol feature `REPLY_ACK`).
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The bytes of the reply to this request with this payload.
    pub fn reply(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
        bytes.extend_from_slice(&self.request.to_ne_bytes());
        bytes.extend_from_slice(&(VERSION | FLAG_REPLY).to_ne_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }
}
