// SPDX-License-Identifier: Apache-2.0
//! Services: no reader ever meets a frontend without its balancer, or a set without its members.
//!
//! A set of members never changes. A balancer that changes is given the sets that it has not yet, then its value is swapped, and the
//! old sets go at the end of the pass. Who comes is met by new flows alone. Where somebody leaves (a frontend, or a backend's name)
//! flows decide again: the balancer has the next generation *before* anything goes, and `SERVICE_GENERATIONS` follows when the change is
//! published. Where the two differ, an earlier pass broke off before it published: this one does it. Balancers that nothing leads to
//! go last, after that.

use std::{collections::BTreeSet, rc::Rc};

use weft_abi::{
    Addr, BackendKey, Balancer, CLUSTER_NET, CidrKey, Frontend, FrontendFlags, FrontendKey, Member, MemberKey,
    MemberSet, RingNode, generation,
};
use weft_dataplane::Error;

use super::{
    Observed, Pass,
    tables::{Failed, Known, Tables},
};
use crate::model::{DesiredAffinity, DesiredBalancer, DesiredChoice, ring};

/// How many Service ports there is room for. Each frontend may have its address beside it.
pub(super) fn most(tables: &dyn Tables) -> usize {
    let numbers = tables.service_generations().capacity().saturating_sub(1) as usize;
    numbers.min(tables.balancers().capacity()).min(tables.frontends().capacity() / 2)
}

/// See [`Room::members`](crate::model::Room::members).
pub(super) fn most_members(tables: &dyn Tables) -> usize {
    let rings = tables.rings().capacity().saturating_mul(RingNode::MEMBERS as usize);
    tables.members().capacity().min(rings).min(tables.backends().capacity())
}

/// Frontends of Service ports by their numbers.
pub(super) fn numbered(frontends: &Known<FrontendKey, Frontend>) -> BTreeSet<(u32, FrontendKey)> {
    frontends.0.iter().map(|(key, frontend)| (frontend.service, *key)).filter(|(service, _)| *service != 0).collect()
}

/// All members of all sets of a Service port.
fn all_of(service: u32) -> std::ops::RangeInclusive<MemberKey> {
    MemberKey { service, set: 0, index: 0 }..=MemberKey { service, set: u32::MAX, index: u32::MAX }
}

impl Observed {
    /// The frontends that lead to this number.
    fn leading_to(&self, service: u32) -> impl Iterator<Item = FrontendKey> {
        let first = (service, FrontendKey::of_address(CLUSTER_NET, Addr::UNSPECIFIED));
        self.numbered
            .range(first..)
            .map(|(of, key)| (*of, *key))
            .take_while(move |(of, _)| *of == service)
            .map(|(_, key)| key)
    }

    /// The names of a Service port's backends.
    fn names(&self, service: u32) -> impl Iterator<Item = BackendKey> {
        self.backends(service).map(|(name, _)| name)
    }

    /// The same, with what is told of each.
    fn backends(&self, service: u32) -> impl Iterator<Item = (BackendKey, u32)> {
        let first = BackendKey::new(service, Addr::UNSPECIFIED, 0);
        let all = self.backends.0.range(first..).map(|(name, flags)| (*name, *flags));
        all.take_while(move |(name, _)| name.service == service)
    }

    /// Whether a set is these members, on this ring.
    fn is_set(&self, service: u32, MemberSet { set, count, levels }: MemberSet, wanted: &WantedSet<'_>) -> bool {
        let key = |index| MemberKey { service, set, index };
        let members = self.members.0.range(key(0)..=key(u32::MAX)).map(|(_, member)| member);
        let ring = self.rings.0.range(key(0)..=key(u32::MAX)).map(|(_, node)| node);
        (count as usize, levels) == (wanted.members.len(), ring::levels(wanted.ring.len()))
            && members.eq(wanted.members)
            && ring.eq(&*wanted.ring)
    }

    fn is_as_wanted(&self, service: u32, wanted: &DesiredBalancer, sets: &[WantedSet<'_>; 3]) -> bool {
        let Some(standing) = self.balancers.0.get(&service) else { return false };
        let DesiredBalancer { affinity, choice, .. } = wanted;
        let mut sets = standing.sets().into_iter().zip(sets);
        (DesiredAffinity { ticks: standing.affinity, name: standing.name } == *affinity)
            && (standing.algorithm, standing.seed) == (choice.algorithm as u32, choice.seed)
            && standing.first == wanted.first
            && sets.all(|(set, wanted)| self.is_set(service, set, wanted))
            && self.backends(service).eq(wanted.names(service))
    }

    /// A number that no set of this Service port has: the highest was given last. 0 is the empty set.
    fn free_set(&self, service: u32) -> u32 {
        let highest = self.members.0.range(all_of(service)).next_back().map_or(0, |(key, _)| key.set);
        let is_free = |set: &u32| {
            let of_set = MemberKey { service, set: *set, index: 0 }..=MemberKey { service, set: *set, index: u32::MAX };
            *set != 0
                && self.members.0.range(of_set.clone()).next().is_none()
                && self.rings.0.range(of_set).next().is_none()
        };
        // There are more numbers than any memory holds members.
        (1..=u32::MAX).map(|step| highest.wrapping_add(step)).find(is_free).unwrap_or(1)
    }

    /// Members, and nodes of rings, that the balancer does not lead to.
    fn stray(&self, service: u32) -> [Vec<MemberKey>; 2] {
        let sets = self.balancers.0.get(&service).map(Balancer::sets).unwrap_or_default();
        let leads_to = |key: &MemberKey, is_of: fn(&MemberSet, u32) -> bool| {
            sets.iter().any(|set| set.set == key.set && is_of(set, key.index))
        };
        let members = self.members.0.range(all_of(service)).map(|(key, _)| *key);
        let nodes = self.rings.0.range(all_of(service)).map(|(key, _)| *key);
        [
            members.filter(|key| !leads_to(key, |set, index| index < set.count)).collect(),
            nodes.filter(|key| !leads_to(key, |set, _| set.levels != 0)).collect(),
        ]
    }
}

/// A set that a balancer is to have.
#[derive(Clone)]
struct WantedSet<'w> {
    members: &'w [Member],
    /// Empty: it has none.
    ring: Rc<[RingNode]>,
}

impl<'w> WantedSet<'w> {
    /// Those of a balancer, in their order.
    fn all_of(balancer: &'w DesiredBalancer) -> [Self; 3] {
        let of = |members: &'w [Member]| Self { members, ring: balancer.choice.ring(members).into() };
        let [internal, external, cluster] = balancer.sets();
        let cluster = of(cluster);
        // Most have one set for all.
        let other = |members: &'w [Member]| if members == cluster.members { cluster.clone() } else { of(members) };
        [other(internal), other(external), cluster.clone()]
    }
}

impl Pass<'_> {
    /// First half: what is new stands beside what is old. A balancer that does not fit at first is put once what has changed already has
    /// left its old sets, then once it has left its own. One that does not fit even so has no member, rather than an old one: new
    /// flows to it are refused, and the summary tells it.
    pub(super) fn put_services(&mut self) -> Result<(), Error> {
        if self.observed.fresh {
            self.find_unpublished()?;
        }
        let patch = self.patch;
        for key in self.observed.frontends.gone(&patch.frontends) {
            self.take_frontend(key)?;
        }
        let wanted = patch.balancers.iter().filter_map(|(service, wanted)| Some((*service, wanted.as_ref()?)));
        let (standing, new): (Vec<_>, Vec<_>) =
            wanted.partition(|(service, _)| self.observed.balancers.0.contains_key(service));
        let mut waiting = self.put_balancers(new.iter().copied());
        self.change_numbers(&standing)?;
        waiting.extend(self.put_balancers(standing.into_iter()));
        let stale = if waiting.is_empty() { BTreeSet::new() } else { self.put_waiting(waiting)? };
        self.put_frontends(&stale);
        Ok(())
    }

    /// Adds clients of limited frontends; those that do not fit beside the ones that go.
    pub(super) fn put_sources(&mut self) -> Failed<CidrKey> {
        self.observed.sources.put_all(self.tables.sources(), &self.patch.sources, &mut self.summary)
    }

    /// Removes clients that limited frontends serve no more, once frontends that are not limited any more are written. Then those fit that
    /// were `waiting`.
    pub(super) fn take_sources(&mut self, waiting: &Failed<CidrKey>) {
        let (table, known) = (self.tables.sources(), &mut self.observed.sources);
        let failed = known.take_gone(table, &self.patch.sources, &mut self.summary);
        failed.tell("old loadBalancerSourceRanges", "new flows from there are still served", &mut self.summary);
        if !waiting.keys.is_empty() {
            let failed = self.put_sources();
            failed.tell("loadBalancerSourceRanges", "new flows from there are dropped", &mut self.summary);
        }
    }

    /// What a pass that broke off has not published.
    fn find_unpublished(&mut self) -> Result<(), Error> {
        let generations = self.tables.service_generations();
        for (service, balancer) in &self.observed.balancers.0 {
            // A number that only a damaged map has is nobody's.
            if *service < generations.capacity() && generations.get(*service)? != balancer.generation {
                self.moved.services.insert(*service, balancer.generation);
            }
        }
        Ok(())
    }

    /// The generation of a Service port goes to its next value: from here on until it is published its balancer tells so.
    fn leave(&mut self, service: u32) -> Result<(), Error> {
        let generations = self.tables.service_generations();
        if service == 0 || service >= generations.capacity() {
            return Ok(());
        }
        let generation = generations.get(service)?.wrapping_add(1);
        self.left.insert(service);
        self.moved.services.insert(service, generation);
        if let Some(balancer) = self.observed.balancers.0.get(&service).copied() {
            self.put_value(service, Balancer { generation, ..balancer })?;
        }
        Ok(())
    }

    fn put_value(&mut self, service: u32, value: Balancer) -> Result<(), Error> {
        self.observed.balancers.put(self.tables.balancers(), service, value, &mut self.summary)
    }

    fn take_frontend(&mut self, key: FrontendKey) -> Result<(), Error> {
        let Some(old) = self.observed.frontends.0.get(&key).copied() else { return Ok(()) };
        self.leave(old.service)?;
        self.observed.frontends.take(self.tables.frontends(), key, &mut self.summary)?;
        self.observed.numbered.remove(&(old.service, key));
        Ok(())
    }

    fn put_frontend(&mut self, key: FrontendKey, frontend: Frontend) -> Result<(), Error> {
        let old = self.observed.frontends.0.get(&key).copied();
        if let Some(old) = old.filter(|old| old.service != frontend.service) {
            self.leave(old.service)?;
        }
        let is_new = old.is_none_or(|old| old.service != frontend.service);
        if is_new && frontend.flags & FrontendFlags::EXTERNAL != 0 {
            // What went there before went to the host or the outside, whose entries go by the routes.
            self.disturb(generation::ROUTES);
        }
        let Observed { frontends, numbered, .. } = &mut *self.observed;
        frontends.put(self.tables.frontends(), key, frontend, &mut self.summary)?;
        if let Some(old) = old {
            numbered.remove(&(old.service, key));
        }
        if frontend.service != 0 {
            numbered.insert((frontend.service, key));
        }
        Ok(())
    }

    /// Frontends leave the balancers that they led to before these change: at once where the next one is new. One that stands already
    /// changes as well, and until it has, the frontend leads nowhere; only numbers that were found in a damaged map change so.
    fn change_numbers(&mut self, standing: &[(u32, &DesiredBalancer)]) -> Result<(), Error> {
        let wanted = self.patch.frontends.iter().filter_map(|(key, frontend)| Some((*key, (*frontend)?)));
        for (key, frontend) in wanted {
            let old = self.observed.frontends.0.get(&key).copied();
            if old.is_none_or(|old| old.service == frontend.service) {
                continue;
            }
            let stood = standing.binary_search_by_key(&frontend.service, |(service, _)| *service).is_ok();
            if stood || !self.observed.balancers.0.contains_key(&frontend.service) {
                self.take_frontend(key)?;
            } else {
                self.put_frontend(key, frontend)?;
            }
        }
        Ok(())
    }

    /// Frontends whose balancers stand, and are not `stale`.
    fn put_frontends(&mut self, stale: &BTreeSet<u32>) {
        let mut failed = Failed::new();
        // Addresses last: until its ports stand, a ClusterIP refuses none of them.
        let (addresses, ports): (Vec<_>, Vec<_>) = self.patch.frontends.iter().partition(|(key, _)| key.is_address());
        for (key, frontend) in ports.into_iter().chain(addresses) {
            let Some(frontend) = frontend.filter(|frontend| !stale.contains(&frontend.service)) else { continue };
            if frontend.service == 0 || self.observed.balancers.0.contains_key(&frontend.service) {
                let put = self.put_frontend(*key, frontend);
                if put.is_err() && frontend.is_limited() {
                    // One that stands may serve everybody.
                    failed.note(*key, self.take_frontend(*key));
                }
                failed.note(*key, put);
            }
        }
        failed.tell("frontends of Services", "they are not served", &mut self.summary);
    }

    /// Those that cannot be put.
    fn put_balancers<'w>(
        &mut self,
        wanted: impl Iterator<Item = (u32, &'w DesiredBalancer)>,
    ) -> Vec<(u32, &'w DesiredBalancer)> {
        wanted.filter(|(service, wanted)| self.put_balancer(*service, wanted).is_err()).collect()
    }

    /// Tries once more; which have their old members yet, that nothing may lead to.
    fn put_waiting(&mut self, mut waiting: Vec<(u32, &DesiredBalancer)>) -> Result<BTreeSet<u32>, Error> {
        self.leave_old_sets()?;
        waiting.retain(|(service, wanted)| self.put_balancer(*service, wanted).is_err());
        for (service, _) in &waiting {
            self.refuse(*service)?;
        }
        self.leave_old_sets()?;
        let mut stale = BTreeSet::new();
        for (service, wanted) in waiting {
            if let Err(error) = self.put_balancer(service, wanted) {
                self.summary.problems.push(format!(
                    "service number {service} with {} backends: {error}; new flows to it are refused; raise mapSizes in the \
                     agent's configuration",
                    wanted.names(service).len()
                ));
                let standing = self.observed.balancers.0.get(&service);
                if standing.is_some_and(|balancer| balancer.sets().iter().any(|set| set.count != 0)) {
                    stale.insert(service);
                }
            }
        }
        Ok(stale)
    }

    fn put_balancer(&mut self, service: u32, wanted: &DesiredBalancer) -> Result<(), Error> {
        let wanted_sets = WantedSet::all_of(wanted);
        if self.observed.is_as_wanted(service, wanted, &wanted_sets) {
            return Ok(());
        }
        self.left.insert(service);
        let names = wanted.names(service);
        let leaves = self.observed.names(service).any(|name| !names.contains_key(&name));
        let old = self.observed.balancers.0.get(&service).copied();
        let generations = self.tables.service_generations();
        let generation = match old {
            Some(old) if !leaves => old.generation,
            _ => generations.get(service)?.wrapping_add(leaves.into()),
        };
        for (name, flags) in names {
            self.observed.backends.put(self.tables.backends(), name, flags, &mut self.summary)?;
        }
        let sets = self.put_sets(service, old, &wanted_sets);
        let put = sets.and_then(|[internal, external, cluster]| {
            let DesiredAffinity { ticks: affinity, name } = wanted.affinity;
            let DesiredChoice { algorithm, seed } = wanted.choice;
            let (algorithm, first) = (algorithm as u32, wanted.first);
            let value =
                Balancer { internal, external, cluster, generation, affinity, algorithm, name, seed, first, pad: 0 };
            self.put_value(service, value)
        });
        if put.is_err() {
            self.take_stray(service, |_, taken| taken)?;
            return put;
        }
        if leaves {
            self.moved.services.insert(service, generation);
        }
        Ok(())
    }

    /// The sets of a balancer, written as far as they do not stand.
    fn put_sets(
        &mut self,
        service: u32,
        old: Option<Balancer>,
        wanted: &[WantedSet<'_>; 3],
    ) -> Result<[MemberSet; 3], Error> {
        let standing = old.map(|old| old.sets()).unwrap_or_default();
        let mut sets = [MemberSet::default(); 3];
        for place in 0..sets.len() {
            let set = &wanted[place];
            let twin = (0..place).find(|earlier| wanted[*earlier].members == set.members).map(|earlier| sets[earlier]);
            let known = twin.or_else(|| standing.into_iter().find(|known| self.observed.is_set(service, *known, set)));
            sets[place] = match known {
                Some(known) => known,
                None if set.members.is_empty() => MemberSet::default(),
                None => self.put_set(service, set)?,
            };
        }
        Ok(sets)
    }

    fn put_set(&mut self, service: u32, wanted: &WantedSet<'_>) -> Result<MemberSet, Error> {
        let set = self.observed.free_set(service);
        let key = |index| MemberKey { service, set, index };
        for (index, member) in (0..).zip(wanted.members) {
            self.observed.members.put(self.tables.members(), key(index), *member, &mut self.summary)?;
        }
        for (index, node) in (0..).zip(&*wanted.ring) {
            self.observed.rings.put(self.tables.rings(), key(index), *node, &mut self.summary)?;
        }
        let count = u32::try_from(wanted.members.len()).unwrap_or(u32::MAX);
        Ok(MemberSet { set, count, levels: ring::levels(wanted.ring.len()) })
    }

    /// Takes all members away. A Service port without a balancer has no frontend either.
    fn refuse(&mut self, service: u32) -> Result<(), Error> {
        self.leave(service)?;
        let generation = self.moved.services.get(&service).copied().unwrap_or_default();
        let first = self.observed.balancers.0.get(&service).map(|standing| standing.first).unwrap_or_default();
        if self.put_value(service, Balancer { generation, first, ..Balancer::default() }).is_err() {
            let leading: Vec<FrontendKey> = self.observed.leading_to(service).collect();
            leading.into_iter().try_for_each(|key| self.take_frontend(key))?;
        }
        Ok(())
    }

    /// Publishes what has moved so far, so that its old sets may go.
    fn leave_old_sets(&mut self) -> Result<(), Error> {
        self.publish()?;
        self.remove_sets();
        Ok(())
    }

    /// Before anything is published: the names of backends that no balancer leads to any more, and that do not serve on either. A flow
    /// that decides again finds those that serve.
    pub(super) fn forget_backends(&mut self) -> Result<(), Error> {
        let numbers: BTreeSet<u32> = if self.observed.fresh {
            self.observed.backends.0.keys().map(|name| name.service).collect()
        } else {
            self.moved.services.keys().copied().collect()
        };
        for service in numbers {
            let gone = self.gone_backends(service);
            if gone.is_empty() {
                continue;
            }
            if !self.moved.services.contains_key(&service) {
                self.leave(service)?;
            }
            for name in gone {
                self.observed.backends.take(self.tables.backends(), name, &mut self.summary)?;
            }
        }
        Ok(())
    }

    fn gone_backends(&self, service: u32) -> Vec<BackendKey> {
        let observed = &*self.observed;
        let wanted = match self.patch.balancers.get(&service) {
            Some(wanted) => wanted.as_ref(),
            // It stands as it is; what nobody plans is from a pass that broke off.
            None if !observed.fresh => return Vec::new(),
            None => None,
        };
        let Some(wanted) = wanted else { return observed.names(service).collect() };
        let sets = observed.balancers.0.get(&service).map(Balancer::sets).unwrap_or_default();
        let led_to = sets.into_iter().flat_map(|MemberSet { set, count, .. }| {
            let key = |index| MemberKey { service, set, index };
            observed.members.0.range(key(0)..key(count)).map(|(_, member)| member)
        });
        let led_to = led_to.map(|member| BackendKey::new(service, member.addr, member.port));
        let serving: BTreeSet<BackendKey> = wanted.names(service).into_keys().chain(led_to).collect();
        observed.names(service).filter(|name| !serving.contains(name)).collect()
    }

    /// Second half, after publishing: balancers that nothing leads to, and sets that no balancer leads to.
    pub(super) fn remove_old_sets(&mut self) {
        if !self.left.is_empty() || self.observed.fresh {
            self.remove_sets();
        }
    }

    fn remove_sets(&mut self) {
        let (mut balancers, mut members) = (Failed::new(), Failed::new());
        for service in self.observed.balancers.gone(&self.patch.balancers) {
            self.left.insert(service);
            if self.observed.leading_to(service).next().is_none() {
                let known = &mut self.observed.balancers;
                balancers.note(service, known.take(self.tables.balancers(), service, &mut self.summary));
            }
        }
        let numbers: BTreeSet<u32> = if self.observed.fresh {
            let keys = self.observed.members.0.keys().chain(self.observed.rings.0.keys());
            keys.map(|key| key.service).collect()
        } else {
            self.left.clone()
        };
        for service in numbers {
            let _all_tried = self.take_stray(service, |key, taken| {
                members.note(key, taken);
                Ok(())
            });
        }
        balancers.tell("old Service ports", "they are still there", &mut self.summary);
        members.tell("old backends of Services", "they are still there", &mut self.summary);
    }

    /// Removes the members and nodes of rings that a Service port's balancer does not lead to; `done` says of each whether to go on.
    fn take_stray(
        &mut self,
        service: u32,
        mut done: impl FnMut(MemberKey, Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [members, nodes] = self.observed.stray(service);
        for key in members {
            done(key, self.observed.members.take(self.tables.members(), key, &mut self.summary))?;
        }
        for key in nodes {
            done(key, self.observed.rings.take(self.tables.rings(), key, &mut self.summary))?;
        }
        Ok(())
    }
}
