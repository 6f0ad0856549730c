// SPDX-License-Identifier: Apache-2.0
//! One rtnetlink connection in the caller's network namespace.

use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::{Error, Result};

/// A connection that lives as long as this value. The socket belongs to the network namespace of the thread that opened it.
pub(super) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens the socket; must run inside a tokio runtime.
    pub(super) fn open() -> Result<Self> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(|source| Error::Netlink {
            action: "open",
            object: "rtnetlink socket".to_owned(),
            source,
        })?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl std::ops::Deref for Netlink {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}
