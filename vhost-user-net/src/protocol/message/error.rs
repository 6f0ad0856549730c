// SPDX-License-Identifier: Apache-2.0
//! Why bytes are not a message.

use thiserror::Error;

use super::{MAX_PAYLOAD, Request};

/// Why bytes are not a message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// Another protocol version.
    #[error("protocol version {version} where 1 was expected")]
    Version {
        /// The version in the flags.
        version: u32,
    },
    /// The front end set the reply flag.
    #[error("request {request} carries the reply flag")]
    ReplyFromFrontEnd {
        /// Number of the request.
        request: u32,
    },
    /// More payload than any message has.
    #[error("request {request} announces {size} bytes of payload, at most {MAX_PAYLOAD} are possible")]
    TooLong {
        /// Number of the request.
        request: u32,
        /// Announced bytes.
        size: u32,
    },
    /// A request this device does not know, or one whose protocol feature it does not offer.
    #[error("request {0} is unknown or belongs to a protocol feature this device does not offer")]
    Unknown(u32),
    /// The payload has the wrong size.
    #[error("{request:?} has {got} bytes of payload where {want} were expected")]
    PayloadSize {
        /// The request.
        request: Request,
        /// Bytes received.
        got: usize,
        /// Bytes expected.
        want: usize,
    },
    /// The wrong number of file descriptors came with the message.
    #[error("{request:?} came with {got} file descriptors where {want} were expected")]
    FdCount {
        /// The request.
        request: Request,
        /// Descriptors received.
        got: usize,
        /// Descriptors expected.
        want: usize,
    },
    /// A field is out of range.
    #[error("{request:?}: {field} is {value}, at most {max} is possible")]
    Range {
        /// The request.
        request: Request,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Greatest legal value.
        max: u64,
    },
}
