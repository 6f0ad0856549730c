// SPDX-License-Identifier: Apache-2.0
//! Services that follow their changes: a slice changes its Service, a Service its frontends, and a frontend that changes hands
//! the Services that want it as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_abi::{Addr, CLUSTER_NET, CidrKey, FrontendKey};

use super::set;
use crate::{
    apply::Patch,
    model::{
        Attachment, Desired, DesiredBalancer, HealthCheck, HealthChecks, NodeFacts, Numbers, ObjectKey, Refusal, Room,
        Snapshot, objects::EndpointSlice,
    },
    plan::{
        backends,
        numbers::{Given, Turnover},
        services::{
            self, Lead, Planned,
            host_ports::{self, HostPorts},
        },
    },
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Services {
    planned: BTreeMap<ObjectKey, Standing>,
    /// Services that want a frontend, whether they have it or not.
    wanting: BTreeMap<FrontendKey, BTreeSet<ObjectKey>>,
    holders: BTreeMap<FrontendKey, ObjectKey>,
    /// Slices by their Services.
    slices: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Workloads that have ports of the host.
    host_ports: HostPorts,
    dirty: BTreeSet<ObjectKey>,
    /// What load balancers ask for.
    checks: BTreeMap<ObjectKey, HealthCheck>,
    /// Those of them that are others since they were told.
    changed_checks: HealthChecks,
    /// What they all take of [`Room::of_services`].
    totals: [usize; 2],
    /// Numbers and entries are as the whole plan would have them: not before the first plan, nor where something was refused.
    settled: bool,
    /// Of the last whole plan.
    room: Option<[usize; 2]>,
    /// Of the last whole plan.
    refused: (Vec<String>, BTreeSet<Refusal>),
    /// How often all were planned at once.
    #[cfg(test)]
    pub(super) planned_whole: usize,
}

#[derive(Debug, Default)]
struct Standing {
    wanted: Vec<FrontendKey>,
    frontends: Vec<FrontendKey>,
    /// Those of them that Service ports are numbered by.
    first: BTreeSet<FrontendKey>,
    /// What it takes of [`Room::of_services`].
    room: [usize; 2],
    problems: Vec<String>,
}

/// What a turn found out.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Whether any Service changed.
    pub(super) any: bool,
    pub(super) numbers: Turnover<FrontendKey>,
    frontends: BTreeMap<FrontendKey, Lead>,
    touched: BTreeSet<FrontendKey>,
}

impl Services {
    /// A Service has changed.
    pub(super) fn touch(&mut self, service: &ObjectKey) {
        self.dirty.insert(service.clone());
    }

    /// The node's zone has changed, and hints may mean other endpoints.
    pub(super) fn touch_all(&mut self, snapshot: &Snapshot) {
        self.dirty.extend(snapshot.services.keys().cloned());
    }

    /// Workloads have come or gone.
    pub(super) fn follow_attachments(&mut self, attachments: &[Arc<Attachment>]) {
        let before = std::mem::replace(&mut self.host_ports, host_ports::of(attachments));
        let after = &self.host_ports;
        let changed = before.iter().filter(|(key, attachment)| after.get(*key) != Some(*attachment));
        let new = after.keys().filter(|key| !before.contains_key(*key));
        self.dirty.extend(changed.map(|(key, _)| key).chain(new).cloned());
    }

    /// A slice has changed; `service`: the name of the one that it belonged to, and of the one that it belongs to.
    pub(super) fn touch_slice(&mut self, key: &ObjectKey, before: Option<&str>, after: Option<&str>) {
        let of = |name: &str| ObjectKey::new(&key.namespace, name);
        if let Some(service) = before.map(of) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(key);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.dirty.insert(service);
        }
        if let Some(service) = after.map(of) {
            self.slices.entry(service.clone()).or_default().insert(key.clone());
            self.dirty.insert(service);
        }
    }

    /// Plans what has changed, Services in their order: a frontend that one of them lets go goes to the next.
    pub(super) fn find(&mut self, snapshot: &Snapshot, facts: &NodeFacts) -> Found {
        let mut found = Found { any: !self.dirty.is_empty(), ..Found::default() };
        while let Some(key) = self.dirty.pop_first() {
            self.follow_check(&key, snapshot, facts);
            let Planned { wanted, frontends, problems } = self.plan(&key, snapshot, facts);
            let old = self.withdraw(&key, &mut found);
            let mut changed: BTreeSet<FrontendKey> = old.iter().copied().collect();
            for frontend in frontends.iter().map(|(frontend, _)| *frontend) {
                if !changed.remove(&frontend) {
                    changed.insert(frontend);
                }
            }
            for want in &wanted {
                self.wanting.entry(*want).or_default().insert(key.clone());
            }
            for frontend in changed {
                let later = self.wanting.get(&frontend).into_iter().flatten().filter(|other| **other > key);
                self.dirty.extend(later.cloned());
            }
            let mut standing = Standing { wanted, problems, room: [frontends.len(), 0], ..Standing::default() };
            for (frontend, lead) in frontends {
                self.holders.insert(frontend, key.clone());
                if let Some(balancer) = lead.balancer() {
                    standing.room[1] += balancer.room();
                    standing.first.insert(frontend);
                    if !found.numbers.gone.remove(&frontend) {
                        found.numbers.new.insert(frontend);
                    }
                }
                found.touched.insert(frontend);
                standing.frontends.push(frontend);
                found.frontends.insert(frontend, lead);
            }
            for (total, more) in self.totals.iter_mut().zip(standing.room) {
                *total += more;
            }
            if !standing.wanted.is_empty() || !standing.problems.is_empty() {
                self.planned.insert(key, standing);
            }
        }
        found
    }

    fn plan(&self, key: &ObjectKey, snapshot: &Snapshot, facts: &NodeFacts) -> Planned {
        let taken = |frontend: &FrontendKey| self.holders.get(frontend).filter(|holder| *holder < key);
        if let Some((key, attachment)) = self.host_ports.get_key_value(key) {
            return host_ports::plan_one(key, attachment, taken);
        }
        let Some((key, service)) = snapshot.services.get_key_value(key) else { return Planned::default() };
        let slices = self.slices_of(snapshot, key);
        services::plan_one(key, service, &slices, backends::Here::of(snapshot, facts), taken)
    }

    fn follow_check(&mut self, key: &ObjectKey, snapshot: &Snapshot, facts: &NodeFacts) {
        let service = snapshot.services.get(key);
        let check = service.and_then(|one| services::health_check(one, &self.slices_of(snapshot, key), facts));
        if self.checks.get(key) == check.as_ref() {
            return;
        }
        match &check {
            Some(check) => drop(self.checks.insert(key.clone(), check.clone())),
            None => drop(self.checks.remove(key)),
        }
        self.changed_checks.insert(key.clone(), check);
    }

    /// What load balancers are to be told, as far as it has changed since this was asked last.
    pub(super) fn take_checks(&mut self) -> HealthChecks {
        std::mem::take(&mut self.changed_checks)
    }

    /// The slices of a Service, in their order.
    pub(super) fn slices_of<'a>(&self, snapshot: &'a Snapshot, service: &ObjectKey) -> Vec<&'a EndpointSlice> {
        let slices = self.slices.get(service).into_iter().flatten().filter_map(|slice| snapshot.slices.get(slice));
        slices.map(|slice| &**slice).collect()
    }

    /// Takes what a Service had away from it; tells its frontends.
    fn withdraw(&mut self, key: &ObjectKey, found: &mut Found) -> Vec<FrontendKey> {
        let Some(Standing { wanted, frontends, first, room, .. }) = self.planned.remove(key) else {
            return Vec::new();
        };
        for want in wanted {
            if let Some(wanting) = self.wanting.get_mut(&want) {
                wanting.remove(key);
                if wanting.is_empty() {
                    self.wanting.remove(&want);
                }
            }
        }
        for (total, less) in self.totals.iter_mut().zip(room) {
            *total -= less;
        }
        for frontend in &frontends {
            if self.holders.get(frontend) == Some(key) {
                self.holders.remove(frontend);
                found.frontends.remove(frontend);
            }
            // One that has another holder by now keeps its number.
            if first.contains(frontend) && !found.numbers.new.remove(frontend) {
                found.numbers.gone.insert(*frontend);
            }
            found.touched.insert(*frontend);
        }
        frontends
    }

    /// Whether everything fits by far enough that nobody has to be asked who goes.
    pub(super) fn fits(&self, room: &Room) -> bool {
        self.settled && self.totals.iter().zip(room.of_services()).all(|(total, room)| *total <= room)
    }

    /// Whether the last whole plan was made with this room: where no Service has changed since, it stands.
    pub(super) fn is_planned_for(&self, room: &Room) -> bool {
        self.room == Some(room.of_services())
    }

    /// Writes what was found, under the numbers that it was given since.
    pub(super) fn put(&self, mut found: Found, numbers: &Numbers, desired: &mut Desired, patch: &mut Patch) {
        let touched = std::mem::take(&mut found.touched);
        // Numbers may have changed hands.
        for key in &touched {
            let old = desired.frontends.get(key).filter(|frontend| frontend.is_numbered());
            if let Some(old) = old.map(|old| old.service).filter(|old| numbers.services.get(key) != Some(old)) {
                set_balancer(desired, patch, old, None);
            }
        }
        for key in &touched {
            // Whoever holds a frontend that was touched was planned in this turn.
            let lead = found.frontends.remove(key);
            let first = lead.as_ref().map(|lead| if let Lead::Further { first, .. } = lead { first } else { key });
            let number = first.and_then(|first| numbers.services.get(first).copied());
            let entry = number.zip(lead.as_ref()).map(|(number, lead)| services::entry(number, lead));
            set(&mut desired.frontends, &mut patch.frontends, *key, entry);
            if let Some((number, balancer)) = number.zip(lead.and_then(Lead::into_balancer)) {
                set_balancer(desired, patch, number, Some(balancer));
            }
        }
        let addresses: BTreeSet<Addr> = touched.iter().map(|key| key.addr).collect();
        for addr in addresses {
            let entry = services::address_entry(&desired.frontends, addr);
            set(&mut desired.frontends, &mut patch.frontends, FrontendKey::of_address(CLUSTER_NET, addr), entry);
        }
    }

    /// All at once, as the whole plan does it.
    pub(super) fn put_whole(
        &mut self,
        snapshot: &Snapshot,
        facts: &NodeFacts,
        (room, workloads): (&Room, &BTreeSet<String>),
        (numbers, given): (&mut Numbers, &mut Given),
        (desired, patch): (&mut Desired, &mut Patch),
    ) {
        #[cfg(test)]
        {
            self.planned_whole += 1;
        }
        let mut frontends = services::frontends(snapshot, facts, &self.host_ports);
        frontends.fit(room, numbers);
        numbers.assign_slots(workloads);
        numbers.assign_services(&frontends.number_keys(), room.services);
        *given = Given::of(numbers);
        let mut whole = Desired::default();
        frontends.describe(snapshot, numbers, &mut whole);
        super::set_all(&mut desired.frontends, &mut patch.frontends, whole.frontends);
        super::set_all(&mut desired.balancers, &mut patch.balancers, whole.balancers);
        super::set_all(&mut desired.sources, &mut patch.sources, whole.sources);
        self.settled = numbers.refused.is_empty();
        self.room = Some(room.of_services());
        // Where everything fits each Service tells its own.
        self.refused = if self.settled { Default::default() } else { (whole.problems, whole.refusals) };
    }

    /// What is refused.
    pub(super) fn refusals(&self) -> &BTreeSet<Refusal> {
        &self.refused.1
    }

    /// What is wrong.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.planned.values().flat_map(|standing| &standing.problems).chain(&self.refused.0)
    }

    /// Whose a frontend is.
    pub(super) fn holder(&self, frontend: &FrontendKey) -> Option<&ObjectKey> {
        self.holders.get(frontend)
    }
}

/// With its sources.
fn set_balancer(desired: &mut Desired, patch: &mut Patch, number: u32, balancer: Option<DesiredBalancer>) {
    let entries = |balancer: Option<&DesiredBalancer>| -> BTreeMap<CidrKey, u32> {
        balancer.into_iter().flat_map(|balancer| balancer.source_entries(number)).collect()
    };
    let (old, new) = (entries(desired.balancers.get(&number)), entries(balancer.as_ref()));
    for key in old.keys().chain(new.keys()) {
        set(&mut desired.sources, &mut patch.sources, *key, new.get(key).copied());
    }
    set(&mut desired.balancers, &mut patch.balancers, number, balancer);
}

/// The name of the Service of a slice, owned.
pub(super) fn service_of(slice: &EndpointSlice) -> Option<String> {
    backends::service_of(slice).map(str::to_owned)
}
