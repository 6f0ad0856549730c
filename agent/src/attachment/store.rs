// SPDX-License-Identifier: Apache-2.0
//! Attachments on disk: `<stateDir>/allocations/<network>.<container>.<ifname>.json`, one [`Attachment`] each.
//!
//! A file is written, made durable, and put in its place; the folder is made durable after that. So after a crash at any
//! point each file is the old one or the new one, and nothing that was answered is forgotten.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use weft_api::AttachmentId;

use crate::{file, model::Attachment};

/// The folder below the state folder.
pub const FOLDER: &str = "allocations";

/// The store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {call} {}: {source}", path.display())]
    Io {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A record that this agent did not write so. To ignore it could give its address to a second workload.
    #[error("the attachment record {} does not parse: {source}; remove the file once that workload is gone", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The folder of records.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens the store, makes its folder if need be, and reads all records.
    pub(super) fn open(state_dir: &Path) -> Result<(Self, BTreeMap<AttachmentId, Attachment>), StoreError> {
        let folder = state_dir.join(FOLDER);
        fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let path = entry.map_err(io_error("list", &folder))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let record = read(&path)?;
                records.insert(record.spec.id.clone(), record);
            } else {
                // Left from a write that was cut off before it was in its place: it was never answered.
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok((Self { folder }, records))
    }

    /// Writes the record, durably.
    pub(super) fn save(&self, record: &Attachment) -> Result<(), StoreError> {
        let path = self.path(&record.spec.id);
        let written = file::replace(&path, |file| {
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()
        });
        written.map_err(io_error("write", &path))?;
        self.sync()
    }

    /// Removes the record, durably; one that is gone is fine.
    pub(super) fn remove(&self, id: &AttachmentId) -> Result<(), StoreError> {
        let path = self.path(id);
        file::remove(&path).map_err(io_error("remove", &path))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), StoreError> {
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", &self.folder))
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.folder.join(id.file_name())
    }
}

fn read(path: &Path) -> Result<Attachment, StoreError> {
    let text = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&text).map_err(|source| StoreError::Parse { path: path.to_owned(), source })
}

fn io_error(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { call, path, source }
}
