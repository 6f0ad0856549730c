// SPDX-License-Identifier: Apache-2.0
//! Snapshot and node facts to the dataplane as it should be. Pure and deterministic: no I/O, no clock.
//!
//! | File | Concern |
//! |---|---|
//! | `services` | frontends of Services |
//! | `backends` | which endpoints serve them |
//! | `affinity` | for how long clients keep one of them |
//! | `policy` | NetworkPolicies: who is isolated, and what is allowed |
//! | `classes` | what pods have in common that policies tell apart |
//! | `pods` | which pod has which address |
//! | `places` | which node's pods may have an address |
//! | `ports` | ports and local addresses |
//! | `routes` | other nodes and Service CIDRs |
//! | `numbers` | numbers that objects keep while they live |
//! | `share` | who gets room where there is not enough |

use weft_api::PodRef;

use crate::model::{Snapshot, address, protocol};

mod affinity;
mod backends;
mod choice;
mod classes;
mod digest;
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
pub(crate) mod tests;

pub(crate) use digest::Digest;
pub use planner::{Planner, Versions};
pub(crate) use policy::{
    check as check_policy,
    peers::{Namespaces, PodPeer},
    rules::PolicyForm,
    selector::{Labels, Selector},
};

/// Whether the snapshot has exactly this pod (the uid counts where it is told): its policy then holds from the first packet
/// on, and until then it is closed if its namespace has any.
#[must_use]
pub fn knows_pod(snapshot: &Snapshot, pod: &PodRef) -> bool {
    pods::find(snapshot, pod).is_some()
}
