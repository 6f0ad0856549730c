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

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;

use crate::{
    model::{Deltas, Standing},
    watch::Teller,
};

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
pub(crate) async fn run(path: PathBuf, teller: Teller) {
    let mut folder = Folder::new(path);
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = teller.closed() => return,
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
        tell(&folder, scanned.map_err(|error| error.to_string()), &teller);
    }
}

/// Tells what is new: another state of the folder, or that it cannot be read (any more, or again).
fn tell(folder: &Folder, scanned: Result<bool, String>, teller: &Teller) {
    let began = Instant::now();
    let last = teller.standing();
    let (deltas, next) = match scanned {
        Ok(true) => {
            let snapshot = merge::snapshot(folder.files());
            let problems = snapshot.problems.clone();
            match snapshot.deltas() {
                Ok(deltas) => (deltas, Standing { synced: true, problems, ..Standing::default() }),
                // Every one of them was read from such a text.
                Err(error) => return tracing::error!(%error, "objects of the folder cannot be read back"),
            }
        }
        Ok(false) if last.error.is_some() => (Deltas::default(), Standing { error: None, ..last.clone() }),
        Err(error) if last.error.as_ref() != Some(&error) => {
            tracing::warn!(error);
            (Deltas::default(), Standing { error: Some(error), ..last.clone() })
        }
        _ => return,
    };
    for problem in next.problems.iter().filter(|problem| !last.problems.contains(problem)) {
        tracing::warn!(problem);
    }
    teller.tell(began, |pending, standing| {
        pending.extend(deltas);
        *standing = next;
        true
    });
}
