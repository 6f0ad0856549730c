// SPDX-License-Identifier: Apache-2.0
//! A sandbox: the network namespace that the runtime made for a container.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use crate::{error::CniError, netlink::Netlink};

/// An open sandbox.
pub(crate) struct Sandbox {
    path: String,
    netns: File,
    /// Links, addresses and routes of the sandbox.
    pub(crate) netlink: Netlink,
}

/// Why a sandbox cannot be opened.
pub(crate) enum OpenError {
    /// It is not there (any more).
    Gone(CniError),
    /// It is not one.
    Wrong(CniError),
}

impl From<OpenError> for CniError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Gone(error) | OpenError::Wrong(error) => error,
        }
    }
}

impl Sandbox {
    /// Opens the network namespace at `path`, the value of `CNI_NETNS`.
    pub(crate) fn open(path: &str) -> Result<Self, OpenError> {
        let failed = |what: &str| CniError::environment(format!("CNI_NETNS '{path}' {what}"));
        // A FIFO would have the plugin wait for a writer.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let netns = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::Gone(failed("does not exist; the runtime must make the namespace")),
            _ => OpenError::Wrong(failed(&format!("cannot be opened: {error}"))),
        })?;
        match fstatfs(&netns) {
            Ok(found) if found.filesystem_type() == NSFS_MAGIC => {}
            // What is left of an unmounted `ip netns` name is an empty file.
            Ok(_) => return Err(OpenError::Gone(failed("is not a network namespace"))),
            Err(errno) => return Err(OpenError::Wrong(failed(&format!("cannot be examined: {errno}")))),
        }
        if is_own(&netns).map_err(|error| OpenError::Wrong(failed(&format!("cannot be examined: {error}"))))? {
            return Err(OpenError::Wrong(failed("is the host's own namespace; give the container one of its own")));
        }
        let netlink = within(&netns, Netlink::open)
            .map_err(|error| OpenError::Wrong(failed(&format!("cannot be entered: {error}"))))?;
        Ok(Self { path: path.to_owned(), netns, netlink })
    }

    /// Runs `work` in the sandbox.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, CniError> {
        within(&self.netns, work).map_err(|error| CniError::io(format!("in the sandbox {}", self.path), error))
    }
}

impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// Runs `work` in a thread of its own, so that no error can leave the plugin itself in the sandbox.
fn within<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let entered = move || {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| describe("setns", errno))?;
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, entered)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the sandbox panicked")))
    })
}

fn describe(call: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{call}: {error}"))
}

fn is_own(netns: &File) -> io::Result<bool> {
    let own = File::open("/proc/thread-self/ns/net")?.metadata()?;
    let other = netns.metadata()?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}
