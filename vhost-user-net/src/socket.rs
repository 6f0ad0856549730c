// SPDX-License-Identifier: Apache-2.0
//! Unix sockets by path: listening, connecting, permissions, what a dead process left behind.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, chown};
use thiserror::Error;

/// Bytes of `sun_path` less the terminator.
const MAX_PATH: usize = 107;

/// Why a socket cannot be used.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path does not fit.
    #[error("socket path {} has {} bytes, a Unix socket takes at most {MAX_PATH}; choose a shorter folder", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Something else is at the path.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Another process listens there.
    #[error("another process listens on {}", .0.display())]
    InUse(PathBuf),
    /// A system call failed.
    #[error("{call} of {}", .path.display())]
    System {
        /// Name of the call.
        call: &'static str,
        /// The path.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Who may connect.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// Owner and group, where they are to be changed.
    pub owner: Option<(Uid, Gid)>,
}

/// Checks that a path fits into a socket address.
///
/// # Errors
/// [`SocketError::TooLong`].
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Err(SocketError::TooLong(path.to_owned()));
    }
    Ok(())
}

/// Listens at a path. A socket nobody listens on any more is replaced.
///
/// # Errors
/// When the path is too long, is taken by another process or by another kind of file, or a system call fails.
pub fn listen(path: &Path, access: Access) -> Result<UnixListener, SocketError> {
    check_path(path)?;
    let system = |call| move |source| SocketError::System { call, path: path.to_owned(), source };
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(system("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode)).map_err(system("chmod"))?;
    if let Some((uid, gid)) = access.owner {
        chown(path, Some(uid), Some(gid)).map_err(|error| system("chown")(error.into()))?;
    }
    listener.set_nonblocking(true).map_err(system("fcntl"))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let system = |call| move |source| SocketError::System { call, path: path.to_owned(), source };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("lstat")(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing a socket nobody listens on");
            std::fs::remove_file(path).map_err(system("unlink"))
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}
