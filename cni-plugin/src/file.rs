// SPDX-License-Identifier: Apache-2.0
//! Files on disk: each is replaced whole, and removed whether or not it is there.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Where `path` is until it is whole: a hidden file beside it. One per file is enough: a runtime runs one verb at a time on
/// an attachment.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Replaces `path`, in a folder that need not be there yet, by what `write` writes: readers see the old file or the whole
/// new one. On an error nothing is left beside it.
///
/// # Errors
/// What `write` or the system said, without a path.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary(path);
    let replaced = fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
        .and_then(|()| File::create(&temporary))
        .and_then(|mut file| write(&mut file))
        .and_then(|()| fs::rename(&temporary, path));
    replaced.inspect_err(|_| {
        if let Err(kept) = remove(&temporary) {
            tracing::debug!(path = %temporary.display(), %kept, "cannot remove a half-written file");
        }
    })
}

/// Removes `path`; one that is gone is fine.
///
/// # Errors
/// What the system said, without a path.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads `path`; one that is absent or does not parse is as none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "ignoring a file that does not parse"))
        .ok()
}
