// SPDX-License-Identifier: Apache-2.0
//! Snapshot and node facts to the dataplane as it should be. Pure and deterministic: no I/O, no clock.
//!
//! | File | Concern |
//! |---|---|
//! | `services` | frontends of Services |
//! | `backends` | which endpoints serve them |
//! | `policy` | NetworkPolicies: who is isolated, and what is allowed |
//! | `identity` | which peers of policies each address matches |
//! | `pods` | which pod has which address |
//! | `ports` | ports and local addresses |
//! | `routes` | other nodes and Service CIDRs |
//! | `numbers` | numbers that objects keep while they live |

use std::collections::BTreeSet;

use weft_api::PodRef;

use crate::model::{Attachment, Desired, NodeFacts, Numbers, Snapshot};

mod address;
mod backends;
mod digest;
mod identity;
mod numbers;
mod pods;
mod policy;
mod ports;
mod protocol;
mod routes;
mod services;
#[cfg(test)]
mod tests;

pub(crate) use address::parse_ip;
pub(crate) use policy::check as check_policy;

/// Plans the whole dataplane of this node.
///
/// `numbers` are the numbers given out so far; it is changed only where an object is new or gone, so that a second plan of
/// the same input gives an equal [`Desired`] and leaves `numbers` as they were. Never fails: an object that cannot be
/// planned is left out (a policy: closed) and named in [`Desired::problems`].
///
/// A workload whose pod the snapshot does not have is closed both ways if the snapshot is not yet synced or its namespace
/// has any policy.
#[must_use]
pub fn plan(snapshot: &Snapshot, facts: &NodeFacts, attachments: &[Attachment], numbers: &mut Numbers) -> Desired {
    let mut desired = Desired { config: facts.config, ..Desired::default() };
    let frontends = services::frontends(snapshot, facts);
    numbers.assign_slots(&ports::number_keys(attachments), frontends.number_keys());
    frontends.describe(numbers, &mut desired);
    let owners = pods::owners(snapshot, attachments);
    pods::describe(&owners, attachments, &mut desired);
    let policies = policy::compile(snapshot, attachments, &owners, numbers);
    let judged = policies.describe(&mut desired);
    ports::describe(facts, attachments, &judged, numbers, &mut desired);
    routes::describe(snapshot, facts, &mut desired);
    desired.problems = desired.problems.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    desired
}

/// Whether the snapshot has exactly this pod (the uid counts where it is told): its policy then holds from the first packet
/// on, and until then it is closed if its namespace has any.
#[must_use]
pub fn knows_pod(snapshot: &Snapshot, pod: &PodRef) -> bool {
    pods::find(snapshot, pod).is_some()
}
