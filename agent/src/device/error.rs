// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the node's devices.

use std::{io, path::PathBuf};

/// The result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// Every text names the object and, where there is one, the field of the configuration and the fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("cannot {action} {object}: {source}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The configuration does not fit the node or itself.
    #[error("{field}: {problem}")]
    Config {
        /// Field of the configuration.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A name of ours is taken.
    #[error("link '{name}' is {found}, not Weft's {wanted}: delete or rename it")]
    ForeignLink {
        /// Name of the link.
        name: &'static str,
        /// Kind of device that was found.
        found: String,
        /// Kind of device that Weft makes.
        wanted: &'static str,
    },
    /// A setting of the kernel could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Sysctl {
        /// `read` or `write`.
        action: &'static str,
        /// File below `/proc/sys`.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` of an rtnetlink request.
    pub(super) fn netlink(action: &'static str, object: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let object = object.into();
        move |error| Self::Netlink { action, object, source: to_io(error) }
    }

    /// A configuration error.
    pub(super) fn config(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Config { field, problem: problem.into() }
    }
}

/// The errno of a netlink error, where it has one.
pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
