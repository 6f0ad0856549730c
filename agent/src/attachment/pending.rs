// SPDX-License-Identifier: Apache-2.0
//! Releases that the CNI plugin recorded while no agent answered: `<stateDir>/pending-del/*.json`, one [`AttachmentId`] each
//! (the plugin's `record` module writes them).
//!
//! The plugin removes such a file before it asks for the same attachment again. So whoever handles requests one after the
//! other, and finds the file there, may release the attachment: it cannot be a newer one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use weft_api::AttachmentId;

use crate::file;

/// The folder below the state folder.
#[must_use]
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("pending-del")
}

/// One recorded release.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pending {
    /// What to release.
    pub id: AttachmentId,
    file: PathBuf,
}

impl Pending {
    /// Whether the record is still there: nobody has asked for the attachment again since.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.file.exists()
    }

    /// Removes the record, after the release.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn finish(&self) -> io::Result<()> {
        file::remove(&self.file)
    }
}

/// All recorded releases. A file that does not parse is logged and left for the operator: its attachment cannot be told.
///
/// # Errors
/// The folder is there but cannot be listed.
pub fn list(folder: &Path) -> io::Result<Vec<Pending>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut pending = Vec::new();
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match fs::read(&file).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(id) => pending.push(Pending { id, file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a recorded release does not parse; remove the file")
            }
        }
    }
    Ok(pending)
}
