// SPDX-License-Identifier: Apache-2.0
//! The protocols that Services and policies know.

/// IP protocol number (IANA) of the API's name.
pub(crate) fn number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// The API's name of a number that [`number`] gave.
pub(crate) fn name(number: u8) -> &'static str {
    match number {
        6 => "TCP",
        17 => "UDP",
        _ => "SCTP",
    }
}
