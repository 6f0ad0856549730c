// SPDX-License-Identifier: Apache-2.0
//! Objects from a folder of manifests that the agents of all nodes share (standalone mode).
//!
//! | File | What it does |
//! |---|---|
//! | `folder` | finds the files that changed, and keeps the last good form of each object |
//! | `manifest` | YAML to objects, with lines for errors |
//! | `object` | one of them, and its name |
//! | `validate` | what the API server would fill in and refuse |
//! | `merge` | all files to one snapshot |
//! | `derive` | EndpointSlices from Service selectors |
//! | `publish` | what this node tells the others: `DIR/.weft/NODE/` |

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch::Sender, time::MissedTickBehavior};

use crate::model::Snapshot;

mod derive;
mod folder;
mod manifest;
mod merge;
mod object;
mod publish;
#[cfg(test)]
mod tests;
mod validate;

pub use publish::{PublishError, publish};

use folder::Folder;

/// How often the folder is looked through. Polling sees every change on every file system, bind mounts and network mounts
/// among them, where inotify is silent.
const POLL: Duration = Duration::from_millis(300);

/// Watches until every receiver is gone.
pub(crate) async fn run(path: PathBuf, sender: Sender<Arc<Snapshot>>) {
    let mut folder = Folder::new(path);
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = sender.closed() => return,
            _ = ticks.tick() => {}
        }
        let scan = tokio::task::spawn_blocking(move || {
            let scanned = folder.scan();
            (folder, scanned)
        });
        let scanned;
        (folder, scanned) = match scan.await {
            Ok(done) => done,
            // Only where the runtime shuts down.
            Err(_) => return,
        };
        tell(&folder, scanned.map_err(|error| error.to_string()), &sender);
    }
}

/// Sends what is new: another state of the folder, or that it cannot be read (any more, or again).
fn tell(folder: &Folder, scanned: Result<bool, String>, sender: &Sender<Arc<Snapshot>>) {
    let last = sender.borrow().clone();
    let next = match scanned {
        Ok(true) => merge::snapshot(folder.files()),
        Ok(false) if last.error.is_some() => Snapshot { error: None, ..(*last).clone() },
        Err(error) if last.error.as_ref() != Some(&error) => {
            tracing::warn!(error);
            Snapshot { error: Some(error), ..(*last).clone() }
        }
        _ => return,
    };
    for problem in next.problems.iter().filter(|problem| !last.problems.contains(problem)) {
        tracing::warn!(problem);
    }
    sender.send_replace(Arc::new(next));
}
