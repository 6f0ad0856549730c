// SPDX-License-Identifier: Apache-2.0
//! Files of the agent's own: each is replaced whole, and removed whether or not it is there.

use std::{
    io::{self, Write as _},
    path::Path,
};

use serde::Serialize;
pub(crate) use weft_api::file::{gone, remove, replace, settle, sweep};

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
    replace(path, |file| file.write_all(bytes))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::save;

    #[test]
    fn a_value_is_saved_whole_or_its_path_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        save(&path, &"old").unwrap();
        save(&path, &"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\"new\"");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = save(&dir.path().join("none/f.json"), &"new").unwrap_err();
        assert!(error.to_string().contains("none/f.json"), "{error}");
    }
}
