// SPDX-License-Identifier: Apache-2.0
//! The whole plan at once, slow and plain: what the planner that follows changes is held to.

use std::{
    collections::{BTreeSet, btree_map::Entry},
    sync::Arc,
};

use weft_abi::{Addr, FrontendKey};
use weft_api::PodRef;

use crate::{
    model::{Attachment, Desired, NodeFacts, Numbers, Room, Snapshot},
    plan::{
        choice::Weights,
        places::Places,
        pods::{Owners, PodEntry, find, in_order, tell_foreign},
        policy::{self, Held, isolation::Forms, rules::PolicyForm},
        ports, routes, services,
    },
};

/// Plans the whole dataplane of this node; see [`crate::plan::Planner::patch`].
///
/// `standing` is the last plan: what stands in it stays where there is not enough room for all. `held`: as the planner has it, where it
/// has followed; else nothing. `numbers` are the numbers given out so far; it is changed only where an object is new or gone, so that a second plan of
/// the same input gives an equal [`Desired`] and leaves `numbers` as they were.
#[must_use]
pub(in crate::plan) fn plan(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    attachments: &[Arc<Attachment>],
    room: &Room,
    (standing, held): (&Desired, &Held),
    numbers: &mut Numbers,
) -> Desired {
    let mut desired = Desired { config: facts.config, devices: facts.devices.clone(), ..Desired::default() };
    let host_ports = services::host_ports::of(attachments);
    let weights = Weights::of(&snapshot.pods);
    desired.problems.extend(weights.problems().cloned());
    let mut frontends = services::frontends(snapshot, facts, (&host_ports, &weights));
    let workloads = ports::number_keys(attachments);
    frontends.fit(room, numbers);
    numbers.assign_slots(&workloads);
    numbers.assign_services(&frontends.number_keys(), room.services);
    frontends.describe(snapshot, numbers, &mut desired);
    let owners = owners(snapshot, facts, attachments, &mut desired.problems);
    name_pods(&owners, attachments, &mut desired);
    let forms = forms_of(snapshot);
    let isolation = policy::isolation::isolate(snapshot, attachments, &forms);
    let policies =
        policy::compile(snapshot, &forms, isolation, &owners, (room, &standing.classes, held), numbers, &mut desired);
    let names_of = |id: &String| Some((id.clone(), policies.isolation.names_of(id)?));
    desired.isolation = policies.isolation.workloads().filter_map(|(id, _)| names_of(id)).collect();
    policies.describe_reports(snapshot, &forms, &mut desired);
    let judges = policies.judges();
    ports::describe(snapshot, facts, attachments, &judges, numbers, &mut desired);
    let (routes, described) = routes::Routes::describe(snapshot, facts, &desired.frontends);
    let name = |frontend: &FrontendKey| desired.service_names[frontend].clone();
    desired.problems.extend(routes.problems(&desired.frontends, name));
    let Desired { remotes, routes_digest, host_routes, route_reports, .. } = described;
    desired = Desired { remotes, routes_digest, host_routes, route_reports, ..desired };
    desired.problems = desired.problems.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    desired
}

/// Every address that pods and local workloads have. What this node attached itself is certain, whatever the API says (yet);
/// of other pods only addresses of their own node count, and `problems` names those that do not.
fn owners<'a>(
    snapshot: &'a Snapshot,
    facts: &NodeFacts,
    attachments: &[Arc<Attachment>],
    problems: &mut Vec<String>,
) -> Owners<'a> {
    let places = Places::new(snapshot, facts);
    let mut owners = Owners::new();
    let mut foreign = Vec::new();
    for (key, pod) in &snapshot.pods {
        let entry = PodEntry { key, pod };
        for address in entry.claims() {
            if !entry.is_at_home(address, &places) {
                foreign.push((entry, address));
                continue;
            }
            match owners.entry(address) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Some(entry));
                }
                Entry::Occupied(mut known) => {
                    if known.get().is_some_and(|known| known.precedence() < entry.precedence()) {
                        known.insert(Some(entry));
                    }
                }
            }
        }
    }
    let mut certain = BTreeSet::new();
    for attachment in in_order(attachments) {
        let pod = attachment.spec.pod.as_ref().and_then(|pod| find(snapshot, pod));
        for address in attachment.allocation.addresses.iter().map(|assigned| assigned.address.addr()) {
            if certain.insert(address) {
                owners.insert(address, pod);
            }
        }
    }
    foreign.retain(|(entry, address)| {
        !owners.get(address).is_some_and(|owner| owner.is_some_and(|pod| pod.key == entry.key))
    });
    tell_foreign(foreign.into_iter(), problems);
    owners
}

/// Names every address of pods, and of workloads here whose pod the API does not know yet.
fn name_pods(owners: &Owners<'_>, attachments: &[Arc<Attachment>], desired: &mut Desired) {
    for attachment in in_order(attachments).into_iter().rev() {
        if let Some(PodRef { namespace, name, uid: _ }) = &attachment.spec.pod {
            let addresses = attachment.allocation.addresses.iter().map(|assigned| Addr::from(assigned.address.addr()));
            desired.names.extend(addresses.map(|addr| (addr, format!("{namespace}/{name}"))));
        }
    }
    let named =
        owners.iter().filter_map(|(address, owner)| Some((Addr::from(*address), owner.as_ref()?.key.to_string())));
    desired.names.extend(named);
}

/// Reads every policy.
fn forms_of(snapshot: &Snapshot) -> Forms {
    let policies = snapshot.policies.iter();
    policies.map(|(key, policy)| (key.clone(), PolicyForm::read(policy.spec().as_ref(), &key.namespace))).collect()
}
