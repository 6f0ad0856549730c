// SPDX-License-Identifier: Apache-2.0
//! One rtnetlink connection in the caller's network namespace.

use std::sync::atomic::{AtomicUsize, Ordering};

use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::{Error, Result};

/// A connection that lives as long as this value. The socket belongs to the network namespace of the thread that opened it.
pub(super) struct Netlink {
    handle: Handle,
    changes: AtomicUsize,
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
        Ok(Self { handle, changes: AtomicUsize::new(0), task: tokio::spawn(connection) })
    }

    /// Counts a change that is sent to the kernel.
    pub(super) fn count_change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// How many changes were sent.
    pub(super) fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
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
