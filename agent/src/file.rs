// SPDX-License-Identifier: Apache-2.0
//! Files of the agent's own: each is replaced whole, and removed whether or not it is there.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

/// Where a file is until it is whole, unless others look for files in its folder by another pattern.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// Replaces `path` by what `write` writes to `temporary`, in the same folder: readers see the old file or the new one. On an
/// error the old one stays, and nothing beside it.
///
/// # Errors
/// What `write` or the file system says, without a path.
pub(crate) fn replace(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let written = File::create(temporary).and_then(|mut file| write(&mut file));
    let replaced = written.and_then(|()| fs::rename(temporary, path));
    if replaced.is_err() {
        // The first error counts.
        drop(fs::remove_file(temporary));
    }
    replaced
}

/// Replaces `path` by `value` as JSON. Not durable: what a power cut may take along.
///
/// # Errors
/// What the file system says, with the path.
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    save_bytes(path, &serde_json::to_vec(value)?)
}

/// Replaces `path` by `bytes`; see [`save`].
///
/// # Errors
/// What the file system says, with the path.
pub(crate) fn save_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, &temporary(path), |file| file.write_all(bytes))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))
}

/// The result of a removal: what is gone already is fine.
///
/// # Errors
/// Every other error.
pub(crate) fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use super::{gone, replace, save, temporary};

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        save(&path, &"old").unwrap();
        let failed = replace(&path, &temporary(&path), |file| {
            io::Write::write_all(file, b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"\"old\"");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = save(&dir.path().join("none/f.json"), &"new").unwrap_err();
        assert!(error.to_string().contains("none/f.json"), "{error}");
    }

    #[test]
    fn what_is_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        gone(fs::remove_file(dir.path().join("f"))).unwrap();
        assert!(gone(fs::remove_file(dir.path())).is_err());
    }
}
