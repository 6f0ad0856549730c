// SPDX-License-Identifier: Apache-2.0
//! Files on disk: each is replaced whole, and removed whether or not it is there.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::de::DeserializeOwned;
pub(crate) use weft_api::file::{remove, settle, sweep};

/// Replaces `path`, in a folder that need not be there yet, by what `write` writes: readers see the old file or the whole
/// new one. On an error nothing is left beside it.
///
/// # Errors
/// What `write` or the system said, without a path.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    weft_api::file::replace(path, write)
}

/// Reads `path`; one that is absent or does not parse is as none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "ignoring a file that does not parse"))
        .ok()
}
