// SPDX-License-Identifier: Apache-2.0
//! Snapshot and node facts to the dataplane as it should be. Pure and deterministic: no I/O, no clock.

use crate::model::{Attachment, Desired, NodeFacts, Numbers, Snapshot};

/// Plans the whole dataplane of this node.
///
/// `numbers` are the numbers given out so far; it is changed only where an object is new or gone, so that a second plan of
/// the same input gives an equal [`Desired`] and leaves `numbers` as they were. Never fails: an object that cannot be
/// planned is left out (a policy: closed) and named in [`Desired::problems`].
#[must_use]
pub fn plan(snapshot: &Snapshot, facts: &NodeFacts, attachments: &[Attachment], numbers: &mut Numbers) -> Desired {
    let _ = (snapshot, attachments, numbers);
    Desired { config: facts.config, ..Desired::default() }
}
