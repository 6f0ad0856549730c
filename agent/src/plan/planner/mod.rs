// SPDX-License-Identifier: Apache-2.0
//! The plan that stands, and follows what changes: `Deltas -> Planner -> Patch`. Every part is recomputed by the pure functions
//! of the whole plan, as far as a change touches it:
//!
//! | What changed | What is planned anew |
//! |---|---|
//! | Service, EndpointSlice | the frontends of that Service, and the ways to its addresses |
//! | Pod of another node | the classes of its addresses; where its weight changes, the Services that it is an endpoint of |
//! | attachment, Pod of this node | the node's ports, host ports of the workload, who isolates them, the classes of their addresses |
//! | Namespace | what the classes of its pods match |
//! | NetworkPolicy that selects pods here, or a workload that brings a list of its own | that list, and what classes match of peers that come or go |
//! | Node | routes, and the classes of addresses of its pod CIDRs; of this node's zone all Services |
//! | ServiceCIDR | routes, and all Services: none has an address beyond the cluster in it |
//!
//! Where something does not fit, or may not, the part that shares the map is planned whole, so that who is refused is
//! decided among all that want room: Services where one of them changes, policies where a list comes, changes or goes, or what stood
//! does not fit any more. What is closed meanwhile stays so while pods are followed, see [`Planner::reconsider`].

mod addresses;
mod policy;
mod reports;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_abi::{Addr, AddressKey, FrontendKey};
use weft_api::PodRef;

use self::{addresses::Addresses, services::Services};
use super::{
    backends::zone_of,
    numbers::{Given, Turnover},
    pods::PodEntry,
    policy::{JudgesByWorkload, Policies, isolation::Forms, rules::PolicyForm},
    ports,
    routes::Routes,
    services::host_ports,
};
use crate::{
    apply::{Changes, Patch},
    heap,
    model::{
        Attachment, Deltas, Desired, HealthChecks, Name, News, NodeFacts, Numbers, ObjectKey, Refusal, Room, Snapshot,
        Standing, address::address_key,
    },
};

/// How many Services [`Planner::services_with_problems`] names at most, and how many of one namespace.
const NAMED: usize = 1000;
const NAMED_OF_NAMESPACE: usize = 20;

/// See the module.
#[derive(Debug, Default)]
pub struct Planner {
    snapshot: Snapshot,
    facts: Option<NodeFacts>,
    attachments: Vec<Arc<Attachment>>,
    /// Pods that attachments name.
    local: BTreeSet<ObjectKey>,
    workloads: BTreeSet<String>,
    numbers: Numbers,
    given: Given,
    services: Services,
    addresses: Addresses,
    forms: Forms,
    policy: Option<Box<Policies>>,
    judges: JudgesByWorkload,
    refused: [BTreeSet<Refusal>; 2],
    port_problems: Vec<String>,
    routes: Routes,
    desired: Desired,
    due: Due,
    /// See [`Planner::versions`].
    versions: Versions,
    /// Whether policy has followed anything since it was compiled whole.
    followed: bool,
    /// How often policy was compiled whole.
    #[cfg(test)]
    compiled: usize,
}

/// Counts changes of what the plan and the state on disk are made of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Versions {
    /// Of all objects.
    pub objects: u64,
    /// Of those that say who is isolated by what: policies, namespaces, the pods of this node.
    pub isolation: u64,
    /// Of the nodes.
    pub nodes: u64,
    /// Of Services.
    pub services: u64,
    /// Of EndpointSlices.
    pub slices: u64,
}

/// What changed since the last patch, beside Services and addresses.
#[derive(Debug, Default)]
struct Due {
    places: bool,
    routes: bool,
    attachments: bool,
    isolation: Isolates,
    ports: bool,
    compile: bool,
    policies: BTreeSet<ObjectKey>,
    namespaces: BTreeSet<Name>,
}

/// Where somebody may be isolated by something else.
#[derive(Debug, Default)]
struct Isolates {
    everywhere: bool,
    namespaces: BTreeSet<Name>,
}

impl Planner {
    /// Goes on with the numbers that an earlier agent gave out, before anything is planned.
    pub fn resume(&mut self, numbers: Numbers) {
        self.numbers = numbers;
    }

    /// A plan that somebody else has made, for tests of what shows it.
    #[cfg(test)]
    pub(crate) fn of(desired: Desired) -> Self {
        Self { desired, ..Self::default() }
    }

    /// How often policy was compiled whole.
    #[cfg(test)]
    pub(crate) const fn compiled(&self) -> usize {
        self.compiled
    }

    /// What is held from the last compilation.
    #[cfg(test)]
    pub(crate) fn held(&self) -> super::policy::Held {
        self.policy.as_ref().map(|policy| policy.held()).unwrap_or_default()
    }

    /// How often all Services were planned at once.
    #[cfg(test)]
    pub(crate) const fn services_planned(&self) -> usize {
        self.services.planned_whole
    }

    /// How often a Service was planned by itself.
    #[cfg(test)]
    pub(crate) const fn single_services_planned(&self) -> usize {
        self.services.planned_one
    }

    /// Takes what the source has told; whether there is something to plan.
    pub fn take(&mut self, News { deltas, standing, since: _ }: News) -> bool {
        let Standing { synced, problems, error, remembered } = standing;
        let mut objects = 0;
        if (synced, remembered) != (self.snapshot.synced, self.snapshot.remembered) {
            (self.due.isolation.everywhere, self.due.ports) = (true, true);
            objects += 1;
        }
        let Snapshot { synced: is_synced, problems: known, error: why, remembered: since, .. } = &mut self.snapshot;
        (*is_synced, *known, *why, *since) = (synced, problems, error, remembered);
        let Deltas { pods, namespaces, nodes, services, slices, policies, service_cidrs } = deltas;
        let here = self.facts.as_ref().map(|facts| facts.name.as_str());
        let is_here = |pod: PodEntry<'_>| here.is_none() || pod.pod.node.as_deref() == here;
        for (key, before) in pods.put(&mut self.snapshot.pods) {
            objects += 1;
            let before = before.as_ref().map(|pod| PodEntry { key: &key, pod });
            let after = self.snapshot.pods.get(&key).map(|pod| PodEntry { key: &key, pod });
            if before.into_iter().chain(after).any(is_here) {
                self.versions.isolation += 1;
            }
            self.addresses.touch(&key, before, after);
            self.services.touch_pod(&key, &self.snapshot);
            if self.local.contains(&key) {
                self.addresses.touch_attached(&key);
                self.due.isolation.namespaces.insert(key.namespace);
                self.due.ports = true;
            }
        }
        for (key, _) in namespaces.put(&mut self.snapshot.namespaces) {
            objects += 1;
            self.versions.isolation += 1;
            self.due.namespaces.insert(key.name);
        }
        for (key, before) in nodes.put(&mut self.snapshot.nodes) {
            objects += 1;
            self.versions.nodes += 1;
            (self.due.places, self.due.routes) = (true, true);
            let after = self.snapshot.nodes.get(&key).and_then(|node| zone_of(node));
            if here == Some(&*key.name) && before.as_deref().and_then(zone_of) != after {
                self.services.touch_all(&self.snapshot);
            }
        }
        for _ in service_cidrs.put(&mut self.snapshot.service_cidrs) {
            objects += 1;
            self.due.routes = true;
            self.services.touch_all(&self.snapshot);
        }
        for (key, _) in services.put(&mut self.snapshot.services) {
            objects += 1;
            self.versions.services += 1;
            self.services.touch(&key);
        }
        for (key, before) in slices.put(&mut self.snapshot.slices) {
            objects += 1;
            self.versions.slices += 1;
            let before = before.and_then(|slice| services::service_of(&slice));
            let after = self.snapshot.slices.get(&key).and_then(|slice| services::service_of(slice));
            self.services.touch_slice(&key, before.as_deref(), after.as_deref());
        }
        for (key, _) in policies.put(&mut self.snapshot.policies) {
            objects += 1;
            self.versions.isolation += 1;
            match self.snapshot.policies.get(&key) {
                Some(policy) => {
                    drop(self.forms.insert(key.clone(), PolicyForm::read(policy.spec().as_ref(), &key.namespace)))
                }
                None => drop(self.forms.remove(&key)),
            }
            self.due.isolation.namespaces.insert(key.namespace.clone());
            self.due.policies.insert(key);
        }
        self.versions.objects += objects;
        objects > 0
    }

    /// Takes what the node is, and what is plugged into it.
    pub fn observe(&mut self, facts: &NodeFacts, attachments: Vec<Arc<Attachment>>) {
        if self.facts.as_ref() != Some(facts) {
            if self.facts.as_ref().is_some_and(|known| known.serve_otherwise(facts)) {
                self.services.touch_all(&self.snapshot);
            }
            self.facts = Some(facts.clone());
            (self.due.places, self.due.routes, self.due.ports) = (true, true, true);
        }
        let known = &self.attachments;
        if known.len() == attachments.len()
            && known.iter().zip(&attachments).all(|(one, other)| Arc::ptr_eq(one, other))
        {
            return;
        }
        let pods: Vec<Name> = differing(known, &attachments)
            .chain(differing(&attachments, known))
            .filter_map(|attachment| Some(Name::shared(&attachment.spec.pod.as_ref()?.namespace)))
            .collect();
        self.due.isolation.namespaces.extend(pods);
        self.attachments = attachments;
        self.due.attachments = true;
    }

    /// Takes nothing for granted of what the maps hold: policy is planned whole.
    pub fn distrust(&mut self) {
        self.due.compile = true;
    }

    /// The numbers that are given out.
    #[must_use]
    pub const fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// What the plan is made of.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The plan as it stands. What [`Planner`] tells when it is asked is not in it: reports of Services and policies, names and
    /// problems.
    #[must_use]
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Which state of the objects this is.
    #[must_use]
    pub const fn versions(&self) -> Versions {
        self.versions
    }

    /// Plans what has changed; what the maps need for it. Before the node is known, nothing. Never fails: an object that cannot be
    /// planned is left out (a policy: closed) and named in [`Planner::problems`].
    ///
    /// What does not fit into `room` is closed for its owner alone (a workload: isolated; a Service: new flows are refused) and
    /// named in [`Desired::refusals`]: no namespace takes more than its share of what others need, and what fitted stays.
    ///
    /// A workload whose pod is not known is closed both ways while the state is not yet synced, or remembered from an earlier run,
    /// or if its namespace has any policy.
    pub fn patch(&mut self, room: &Room) -> Patch {
        let mut patch = Patch::default();
        let Some(facts) = self.facts.clone() else { return patch };
        if self.desired.config != facts.config {
            self.desired.config = facts.config;
            patch.config = Some(facts.config);
        }
        if self.desired.devices != facts.devices {
            let before = std::mem::replace(&mut self.desired.devices, facts.devices.clone());
            patch.devices = before.into_keys().map(|index| (index, None)).collect();
            patch.devices.extend(facts.devices.iter().map(|(index, value)| (*index, Some(*value))));
        }
        if self.due.places {
            self.addresses.follow_nodes(&self.snapshot, &facts);
        }
        let workloads = self.follow_attachments();
        self.patch_services(&facts, &workloads, room, &mut patch);
        self.patch_policy(room, &mut patch);
        self.patch_ports(&facts, &mut patch);
        self.patch_routes(&facts, &mut patch);
        self.due = Due::default();
        patch
    }

    /// The answers to load balancers that changed since the last call, by Service.
    pub fn take_health_checks(&mut self) -> HealthChecks {
        self.services.take_checks()
    }

    /// Which workloads came and went.
    fn follow_attachments(&mut self) -> Turnover<String> {
        if !self.due.attachments {
            return Turnover::default();
        }
        self.addresses.follow_attachments(&self.attachments);
        self.services.follow_attachments(&self.attachments);
        let pods = self.attachments.iter().filter_map(|attachment| attachment.spec.pod.as_ref());
        self.local = pods.map(|PodRef { namespace, name, .. }| ObjectKey::new(namespace, name)).collect();
        let workloads = ports::number_keys(&self.attachments);
        let turnover = Turnover {
            gone: self.workloads.difference(&workloads).cloned().collect(),
            new: workloads.difference(&self.workloads).cloned().collect(),
        };
        self.workloads = workloads;
        self.due.ports = true;
        turnover
    }

    fn patch_services(&mut self, facts: &NodeFacts, workloads: &Turnover<String>, room: &Room, patch: &mut Patch) {
        let Self { snapshot, numbers, given, desired, services, .. } = self;
        let found = services.find(snapshot, facts);
        if services.fits(room) {
            if !workloads.is_empty() {
                given.change_slots(numbers, workloads);
            }
            if !found.numbers.is_empty() {
                given.change_services(numbers, &found.numbers, room.services);
            }
            services.put(found, numbers, desired, patch);
        } else if !found.any && services.is_planned_for(room) {
            given.change_slots(numbers, workloads);
        } else {
            let room = (room, &self.workloads);
            services.put_whole(snapshot, facts, room, (numbers, given), (desired, patch));
            self.due.ports = true;
        }
    }

    /// The ports of this node, all of them: they are few.
    fn patch_ports(&mut self, facts: &NodeFacts, patch: &mut Patch) {
        if !self.due.ports {
            return;
        }
        let Self { snapshot, attachments, numbers, desired, judges, .. } = self;
        let mut whole = Desired { closed: desired.closed.clone(), ..Desired::default() };
        ports::describe(snapshot, facts, attachments, judges, numbers, &mut whole);
        set_all(&mut desired.ports, &mut patch.ports, whole.ports);
        set_all(&mut desired.addresses, &mut patch.addresses, whole.addresses);
        set_all(&mut desired.workload_digests, &mut patch.workload_digests, whole.workload_digests);
        self.port_problems = whole.problems;
        self.refused[1] = whole.refusals;
        let all = self.refused.iter().chain([self.services.refusals()]).flatten();
        self.desired.refusals = all.cloned().collect();
    }

    /// After the Services.
    fn patch_routes(&mut self, facts: &NodeFacts, patch: &mut Patch) {
        let Self { snapshot, routes, desired, due, .. } = self;
        if !due.routes {
            return routes.follow(facts, desired, patch);
        }
        let whole;
        (*routes, whole) = Routes::describe(snapshot, facts, &desired.frontends);
        set_all(&mut desired.remotes, &mut patch.remotes, whole.remotes);
        if desired.routes_digest != whole.routes_digest {
            desired.routes_digest = whole.routes_digest;
            patch.routes_digest = Some(whole.routes_digest);
        }
        if desired.host_routes != whole.host_routes {
            desired.host_routes = whole.host_routes;
        }
        desired.route_reports = whole.route_reports;
    }

    /// Packs what holds most, once much has come at once.
    pub fn pack(&mut self) {
        let Self { snapshot, addresses, forms, desired, .. } = self;
        snapshot.pack();
        addresses.pack();
        heap::pack(forms);
        desired.pack();
    }

    /// Whether policies of this node ask for pods that have this address.
    #[must_use]
    pub fn means(&self, address: IpAddr) -> bool {
        let class = self.desired.peers.get(&address_key(address));
        class.is_some_and(|class| match &self.policy {
            Some(policy) => policy.means(*class),
            // Without the node's facts nothing is planned: the plan is somebody else's.
            None => true,
        })
    }

    /// Which rule of which policy has this number, for people; none: no policy decided.
    #[must_use]
    pub fn rule_name(&self, number: u32) -> Option<String> {
        match &self.policy {
            Some(policy) => policy.rule_name(number, &self.forms, self.numbers.key),
            None => (number != weft_abi::rule::NONE).then(|| format!("unknown rule {number}")),
        }
    }

    /// Whether the cluster has exactly this pod; see [`super::knows_pod`].
    #[must_use]
    pub fn knows_pod(&self, pod: &PodRef) -> bool {
        super::knows_pod(&self.snapshot, pod)
    }

    /// `namespace/name` of the pod that has an address.
    #[must_use]
    pub fn name(&self, address: Addr) -> Option<String> {
        let known = self.addresses.name(&self.snapshot, address.into());
        known.or_else(|| self.desired.names.get(&address).cloned())
    }

    /// The policies that isolate a workload, by their names: for ingress and for egress. `id`: the attachment's as text.
    #[must_use]
    pub fn isolated_by(&self, id: &str) -> (Vec<String>, Vec<String>) {
        let isolation = self.policy.as_ref().map(|policy| &policy.isolation);
        let known = isolation.and_then(|isolation| isolation.names_of(id));
        known.or_else(|| self.desired.isolation.get(id).cloned()).unwrap_or_default()
    }

    /// `namespace/name` of the Service that has a frontend, or the NodePort that an address of the node leads to.
    #[must_use]
    pub fn service_name(&self, frontend: &FrontendKey) -> Option<String> {
        let served = |frontend: &FrontendKey| {
            let holder = self.services.holder(frontend).filter(|_| self.desired.frontends.contains_key(frontend));
            holder.map(host_ports::shown).or_else(|| self.desired.service_names.get(frontend).cloned())
        };
        served(frontend).or_else(|| {
            let key = AddressKey { net: frontend.net, addr: frontend.addr };
            let owner = self.desired.addresses.get(&key)?;
            let of_any = FrontendKey::of_node_port(&frontend.addr, frontend.port, frontend.protocol);
            self.desired.frontends.get(&of_any).filter(|served| served.is_served_at(owner))?;
            served(&of_any)
        })
    }

    /// The addresses that the pod `namespace/name` is believed to have.
    #[must_use]
    pub fn addresses_of(&self, pod: &str) -> Vec<IpAddr> {
        let (namespace, name) = pod.split_once('/').unwrap_or_default();
        let of_pod = |attachment: &&Arc<Attachment>| {
            attachment
                .spec
                .pod
                .as_ref()
                .is_some_and(|pod| (pod.namespace.as_str(), pod.name.as_str()) == (namespace, name))
        };
        let attached = self.attachments.iter().filter(of_pod).flat_map(|attachment| &attachment.allocation.addresses);
        let told = self.snapshot.pods.get(&ObjectKey::new(namespace, name)).map(|pod| pod.addresses.iter().copied());
        let others = self.desired.names.keys().map(|addr| IpAddr::from(*addr));
        let all = attached.map(|assigned| assigned.address.addr()).chain(told.into_iter().flatten()).chain(others);
        let believed = all.filter(|address| self.name((*address).into()).as_deref() == Some(pod));
        believed.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The addresses at which the Service `namespace/name` is served.
    #[must_use]
    pub fn frontends_of(&self, service: &str) -> Vec<IpAddr> {
        let frontends = self.desired.frontends.keys();
        let own = frontends.filter(|frontend| self.service_name(frontend).as_deref() == Some(service));
        let addresses = own.map(|frontend| IpAddr::from(frontend.addr)).filter(|address| !address.is_unspecified());
        addresses.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many frontends Services have.
    #[must_use]
    pub fn frontends(&self) -> usize {
        self.desired.frontends.keys().filter(|key| !key.is_address()).count()
    }

    /// How many policies there are.
    #[must_use]
    pub fn policy_count(&self) -> usize {
        self.forms.len().max(self.desired.policy_reports.len())
    }

    /// Services that are served otherwise than they are written: so many of each namespace, and of all, the first of every namespace first.
    pub(crate) fn services_with_problems(&self) -> Vec<&ObjectKey> {
        let of_routes = self.routes.refused(&self.desired.frontends).filter_map(|(key, _)| self.services.holder(key));
        let all: BTreeSet<&ObjectKey> = self.services.with_problems().chain(of_routes).collect();
        let mut ranked = Vec::new();
        let (mut namespace, mut rank) = ("", 0);
        for key in all.into_iter().filter(|key| self.snapshot.services.contains_key(*key)) {
            rank = if *namespace == *key.namespace { rank + 1 } else { 0 };
            namespace = &key.namespace;
            if rank < NAMED_OF_NAMESPACE {
                ranked.push((rank, key));
            }
        }
        ranked.sort_unstable();
        ranked.into_iter().take(NAMED).map(|(_, key)| key).collect()
    }

    /// What is wrong with one of these; cut off beyond `most` bytes.
    pub(crate) fn problems_of(&self, service: &ObjectKey, most: usize) -> String {
        let prefix = format!("Service {service}: ");
        let (own, addresses) = self.services.problems_of(service);
        let own = own.iter().map(|problem| problem.trim_start_matches(&prefix).to_owned());
        let of_routes = addresses.into_iter().filter_map(|addr| self.routes.refusal(&self.desired.frontends, addr));
        let mut all = String::new();
        for why in own.chain(of_routes) {
            if all.len() > most {
                break;
            }
            all.push_str(if all.is_empty() { "" } else { "; " });
            all.push_str(&why);
        }
        all.truncate(all.floor_char_boundary(most));
        all
    }

    /// Objects that could not be planned, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut told = Desired { problems: self.desired.problems.clone(), ..Desired::default() };
        if let Some(policy) = &self.policy {
            policy.describe_reports(&self.snapshot, &self.forms, &mut told);
        }
        self.addresses.problems(&self.snapshot, &mut told.problems);
        let name = |frontend: &FrontendKey| self.service_name(frontend).unwrap_or_default();
        told.problems.extend(self.routes.problems(&self.desired.frontends, name));
        let others = self.services.problems().chain(&self.port_problems);
        let all: BTreeSet<String> = others.cloned().chain(told.problems).collect();
        all.into_iter().collect()
    }
}

/// Those of `some` that are not among the others.
fn differing<'a>(
    some: &'a [Arc<Attachment>],
    others: &'a [Arc<Attachment>],
) -> impl Iterator<Item = &'a Arc<Attachment>> {
    some.iter().filter(|one| !others.iter().any(|other| Arc::ptr_eq(one, other) || *one == other))
}

/// Sets or removes one value of the plan, and tells the maps.
pub(crate) fn set<K: Copy + Ord, V: Clone + PartialEq>(
    known: &mut BTreeMap<K, V>,
    changes: &mut Changes<K, V>,
    key: K,
    value: Option<V>,
) {
    if known.get(&key) == value.as_ref() {
        return;
    }
    match &value {
        Some(value) => drop(known.insert(key, value.clone())),
        None => drop(known.remove(&key)),
    }
    changes.insert(key, value);
}

/// Makes `known` what `wanted` is, and tells the maps what is different.
fn set_all<K: Copy + Ord, V: Clone + PartialEq>(
    known: &mut BTreeMap<K, V>,
    changes: &mut Changes<K, V>,
    wanted: BTreeMap<K, V>,
) {
    let gone = known.keys().filter(|key| !wanted.contains_key(key)).map(|key| (*key, None));
    changes.extend(gone);
    let new = wanted.iter().filter(|(key, value)| known.get(key) != Some(value));
    changes.extend(new.map(|(key, value)| (*key, Some(value.clone()))));
    *known = wanted;
}
