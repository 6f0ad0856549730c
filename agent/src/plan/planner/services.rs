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
        choice::Weights,
        numbers::{Given, Turnover},
        services::{
            self, Lead, Planned,
            claim::{Claim, Rank},
            host_ports::{self, HostPorts},
        },
    },
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Services {
    planned: BTreeMap<ObjectKey, Standing>,
    /// Who wants a frontend, whether it has it or not.
    wanting: BTreeMap<FrontendKey, BTreeSet<Rank>>,
    holders: BTreeMap<FrontendKey, Rank>,
    /// Those of them that Service ports are numbered by.
    numbered: BTreeSet<FrontendKey>,
    /// Slices by their Services.
    slices: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Workloads that have ports of the host.
    host_ports: HostPorts,
    /// What Pods tell of their part of new connections.
    pub(super) weights: Weights,
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
    /// Those of `planned` that have problems.
    with_problems: BTreeSet<ObjectKey>,
    /// How often all were planned at once.
    #[cfg(test)]
    pub(super) planned_whole: usize,
    /// How often one was planned.
    #[cfg(test)]
    pub(super) planned_one: usize,
}

#[derive(Debug, Default)]
struct Standing {
    wanted: Vec<(Rank, FrontendKey)>,
    frontends: BTreeMap<FrontendKey, Rank>,
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
    /// Those that changed, and whether Service ports were numbered by them.
    touched: BTreeMap<FrontendKey, bool>,
}

impl Found {
    /// A frontend changes; `numbered`: those that Service ports are numbered by, as they were before it does.
    fn touch(&mut self, frontend: FrontendKey, numbered: &BTreeSet<FrontendKey>) {
        self.touched.entry(frontend).or_insert_with(|| numbered.contains(&frontend));
    }

    /// Finds out which numbers come and go, now that `numbered` is what it will be.
    fn count_numbers(&mut self, numbered: &BTreeSet<FrontendKey>) {
        for (frontend, before) in &self.touched {
            match (*before, numbered.contains(frontend)) {
                (false, true) => drop(self.numbers.new.insert(*frontend)),
                (true, false) => drop(self.numbers.gone.insert(*frontend)),
                _ => {}
            }
        }
    }
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

    /// A Pod has changed: where its part of new connections has, so do the Services that it is an endpoint of. They are looked for in
    /// its namespace: few Pods tell anything, and seldom something else.
    pub(super) fn touch_pod(&mut self, key: &ObjectKey, snapshot: &Snapshot) {
        if !self.weights.follow(key, snapshot.pods.get(key)) {
            return;
        }
        let is_of = |slice: &&ObjectKey| {
            let endpoints = snapshot.slices.get(*slice).into_iter().flat_map(|slice| slice.endpoints.iter().flatten());
            endpoints.filter_map(|endpoint| endpoint.pod.as_ref()).any(|pod| *pod == key.name)
        };
        let services = self.slices.range(ObjectKey::new(&key.namespace, "")..);
        let of_namespace = services.take_while(|(service, _)| service.namespace == key.namespace);
        let touched = of_namespace.filter(|(_, slices)| slices.iter().any(|slice| is_of(&slice)));
        self.dirty.extend(touched.map(|(service, _)| service.clone()));
    }

    /// Plans what has changed, and whoever may get, or lose, a frontend by that.
    pub(super) fn find(&mut self, snapshot: &Snapshot, facts: &NodeFacts) -> Found {
        let mut found = Found { any: !self.dirty.is_empty(), ..Found::default() };
        let mut queue = BTreeSet::new();
        loop {
            queue.extend(std::mem::take(&mut self.dirty).into_iter().map(|key| turn(&key, snapshot)));
            let Some(Rank { object: key, .. }) = queue.pop_first() else { break };
            #[cfg(test)]
            {
                self.planned_one += 1;
            }
            self.follow_check(&key, snapshot, facts);
            let planned = self.plan(&key, snapshot, facts);
            let old = self.withdraw(&key, &mut found);
            let standing = self.stand(&key, planned, snapshot, &mut found);
            self.touch_weaker(&key, &old, &standing.frontends);
            if !standing.problems.is_empty() {
                self.with_problems.insert(key.clone());
            }
            if !standing.wanted.is_empty() || !standing.problems.is_empty() {
                self.planned.insert(key, standing);
            }
        }
        found.count_numbers(&self.numbered);
        found
    }

    /// Those whose claims come after that of one who has a frontend now, had it, or has it by another claim.
    fn touch_weaker(&mut self, key: &ObjectKey, old: &BTreeMap<FrontendKey, Rank>, new: &BTreeMap<FrontendKey, Rank>) {
        for frontend in old.keys().chain(new.keys()) {
            let (before, after) = (old.get(frontend), new.get(frontend));
            if before == after {
                continue;
            }
            let Some(strongest) = before.into_iter().chain(after).min() else { continue };
            let others = self.wanting.get(frontend).into_iter().flat_map(|wanting| wanting.range(strongest..));
            self.dirty.extend(others.filter(|other| other.object != *key).map(|other| other.object.clone()));
        }
    }

    /// Enters what was planned for somebody.
    fn stand(&mut self, key: &ObjectKey, planned: Planned, snapshot: &Snapshot, found: &mut Found) -> Standing {
        let Planned { wanted, frontends, problems } = planned;
        let rank = |claim| rank(claim, key, snapshot);
        let wanted = wanted.into_iter().map(|(claim, frontend)| (rank(claim), frontend)).collect();
        let mut standing = Standing { wanted, problems, room: [frontends.len(), 0], ..Standing::default() };
        for (rank, want) in &standing.wanted {
            self.wanting.entry(*want).or_default().insert(rank.clone());
        }
        for (claim, frontend, lead) in frontends {
            let rank = rank(claim);
            found.touch(frontend, &self.numbered);
            self.holders.insert(frontend, rank.clone());
            match lead.balancer() {
                Some(balancer) => {
                    standing.room[1] += balancer.room();
                    self.numbered.insert(frontend);
                }
                None => drop(self.numbered.remove(&frontend)),
            }
            standing.frontends.insert(frontend, rank);
            found.frontends.insert(frontend, lead);
        }
        for (total, more) in self.totals.iter_mut().zip(standing.room) {
            *total += more;
        }
        standing
    }

    fn plan(&self, key: &ObjectKey, snapshot: &Snapshot, facts: &NodeFacts) -> Planned {
        let taken = |claim: Claim, frontend: &FrontendKey| {
            let holder = self.holders.get(frontend).filter(|holder| holder.object != *key)?;
            (*holder < rank(claim, key, snapshot)).then(|| holder.object.clone())
        };
        if let Some((key, attachment)) = self.host_ports.get_key_value(key) {
            return host_ports::plan_one(key, attachment, taken);
        }
        let Some((key, service)) = snapshot.services.get_key_value(key) else { return Planned::default() };
        let slices = self.slices_of(snapshot, key);
        services::plan_one(key, service, &slices, backends::Here::of(snapshot, facts, &self.weights), taken)
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

    /// Takes what somebody had away from it; tells its frontends.
    fn withdraw(&mut self, key: &ObjectKey, found: &mut Found) -> BTreeMap<FrontendKey, Rank> {
        let Some(Standing { wanted, frontends, room, .. }) = self.planned.remove(key) else { return BTreeMap::new() };
        self.with_problems.remove(key);
        for (rank, want) in wanted {
            if let Some(wanting) = self.wanting.get_mut(&want) {
                wanting.remove(&rank);
                if wanting.is_empty() {
                    self.wanting.remove(&want);
                }
            }
        }
        for (total, less) in self.totals.iter_mut().zip(room) {
            *total -= less;
        }
        for frontend in frontends.keys() {
            found.touch(*frontend, &self.numbered);
            // Another one may have it by now.
            if self.holders.get(frontend).is_some_and(|holder| holder.object == *key) {
                self.holders.remove(frontend);
                self.numbered.remove(frontend);
                found.frontends.remove(frontend);
            }
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
        for key in touched.keys() {
            let old = desired.frontends.get(key).filter(|frontend| frontend.is_numbered());
            if let Some(old) = old.map(|old| old.service).filter(|old| numbers.services.get(key) != Some(old)) {
                set_balancer(desired, patch, old, None);
            }
        }
        for key in touched.keys() {
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
        let addresses: BTreeSet<Addr> = touched.keys().map(|key| key.addr).collect();
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
        let mut frontends = services::frontends(snapshot, facts, (&self.host_ports, &self.weights));
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
        let standing = self.with_problems.iter().filter_map(|key| self.planned.get(key));
        let of_services = standing.flat_map(|standing| &standing.problems);
        of_services.chain(&self.refused.0).chain(self.weights.problems())
    }

    /// Services, and workloads with ports of the host, that something is wrong with.
    pub(super) fn with_problems(&self) -> impl Iterator<Item = &ObjectKey> {
        self.with_problems.iter()
    }

    /// What is wrong with one of them, and the addresses that it has.
    pub(super) fn problems_of(&self, key: &ObjectKey) -> (&[String], BTreeSet<Addr>) {
        let Some(standing) = self.planned.get(key) else { return (&[], BTreeSet::new()) };
        (&standing.problems, standing.frontends.keys().map(|frontend| frontend.addr).collect())
    }

    /// Whose a frontend is.
    pub(super) fn holder(&self, frontend: &FrontendKey) -> Option<&ObjectKey> {
        self.holders.get(frontend).map(|holder| &holder.object)
    }
}

/// The rank of a Service, or of a workload.
fn rank(claim: Claim, key: &ObjectKey, snapshot: &Snapshot) -> Rank {
    match snapshot.services.get(key) {
        Some(service) => services::rank_of(claim, key, service),
        None => host_ports::rank_of(key),
    }
}

/// When somebody is planned: who has strong claims first, so that of many who ask for one frontend only one has to be planned again for
/// each kind of claim.
fn turn(key: &ObjectKey, snapshot: &Snapshot) -> Rank {
    let is_balanced = snapshot.services.get(key).is_some_and(|service| services::is_balanced(service));
    rank(if is_balanced { Claim::LoadBalancer } else { Claim::ExternalIp }, key, snapshot)
}

/// With its sources.
fn set_balancer(desired: &mut Desired, patch: &mut Patch, number: u32, balancer: Option<DesiredBalancer>) {
    let sources = |balancer: Option<&DesiredBalancer>| balancer.map(|balancer| Arc::clone(&balancer.sources));
    let old = desired.balancers.get(&number);
    // There may be many, and most changes are of backends.
    if sources(old).unwrap_or_default() != sources(balancer.as_ref()).unwrap_or_default() {
        let entries = |balancer: Option<&DesiredBalancer>| -> BTreeMap<CidrKey, u32> {
            balancer.into_iter().flat_map(|balancer| balancer.source_entries(number)).collect()
        };
        let (old, new) = (entries(old), entries(balancer.as_ref()));
        for key in old.keys().chain(new.keys()) {
            set(&mut desired.sources, &mut patch.sources, *key, new.get(key).copied());
        }
    }
    set(&mut desired.balancers, &mut patch.balancers, number, balancer);
}

/// The name of the Service of a slice, owned.
pub(super) fn service_of(slice: &EndpointSlice) -> Option<String> {
    backends::service_of(slice).map(str::to_owned)
}
