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
//! | `places` | which node's pods may have an address |
//! | `ports` | ports and local addresses |
//! | `routes` | other nodes and Service CIDRs |
//! | `numbers` | numbers that objects keep while they live |
//! | `share` | who gets room where there is not enough |

use std::collections::BTreeSet;

use weft_api::PodRef;

use crate::model::{Attachment, Desired, NodeFacts, Numbers, Room, Snapshot, address, protocol};

mod backends;
mod digest;
mod identity;
mod numbers;
mod places;
pub(crate) mod planner;
mod pods;
mod policy;
mod ports;
mod routes;
mod services;
mod share;
#[cfg(test)]
mod tests;

pub use planner::{Planner, Versions};
pub(crate) use policy::{
    check as check_policy,
    peers::{Namespaces, PodPeer},
    rules::PolicyForm,
    selector::{Labels, Selector},
};

/// Plans the whole dataplane of this node.
///
/// `numbers` are the numbers given out so far; it is changed only where an object is new or gone, so that a second plan of
/// the same input gives an equal [`Desired`] and leaves `numbers` as they were. Never fails: an object that cannot be
/// planned is left out (a policy: closed) and named in [`Desired::problems`].
///
/// What does not fit into `room` is closed for its owner alone (a workload: isolated; a Service: new flows are refused) and
/// named in [`Desired::refusals`]. Which objects these are depends on nothing but the input: no namespace takes more than its
/// share of what others need, and what fitted at the last plan (by `numbers`) stays.
///
/// A workload whose pod the snapshot does not have is closed both ways if the snapshot is not yet synced, or remembered from an
/// earlier run, or if its namespace has any policy.
#[must_use]
pub fn plan(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    attachments: &[Attachment],
    room: &Room<'_>,
    numbers: &mut Numbers,
) -> Desired {
    let mut desired = Desired { config: facts.config, ..Desired::default() };
    let mut frontends = services::frontends(snapshot, facts);
    let workloads = ports::number_keys(attachments);
    frontends.fit(room, workloads.len(), numbers);
    numbers.assign_slots(&workloads, &frontends.number_keys());
    frontends.describe(snapshot, numbers, &mut desired);
    let owners = pods::owners(snapshot, facts, attachments, &mut desired.problems);
    pods::describe(&owners, attachments, &mut desired);
    let forms = policy::read(snapshot);
    let isolation = policy::isolation::isolate(snapshot, attachments, &forms);
    let policies = policy::compile(snapshot, &forms, isolation, &owners, room, numbers);
    let judged = policies.describe(snapshot, &forms, &mut desired);
    ports::describe(snapshot, facts, attachments, &judged, numbers, &mut desired);
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
