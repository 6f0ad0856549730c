// SPDX-License-Identifier: Apache-2.0
//! Which pods are watched: those of this node, those with a weight, and those that peers of policies mean which select one of this
//! node's. Pods of the rest of the cluster never come here: at 150,000 pods their changes alone are half a megabyte a second for every node.
//!
//! A policy, or a pod of this node, that is new and asks for more is told after the pods that it asks for: otherwise what is
//! allowed would be closed for as long as they take to come.

mod needs;
mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use self::needs::Needs;
pub(super) use self::scope::Scope;
use crate::model::{
    Changed, Deltas, Name, ObjectKey,
    objects::{NetworkPolicy, Pod},
};

/// Number of a watch, [`WATCHES`] at most; the pods of this node are watch 0.
pub(super) type WatchId = u8;

/// Numbers of watches: while some take the place of others there are twice [`scope::MOST`] and one more.
const WATCHES: WatchId = 127;
/// The watch of pods that tell their part of new connections, wherever they are and whoever means them.
pub(super) const WEIGHTS: WatchId = WATCHES;

/// How long something is held back for pods that do not come; a pod's ADD waits three seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Looks at what is used that a watch survives without use: a workload that comes again finds its peers.
const LINGER: u8 = 2;

/// A watch of some pods of all nodes.
#[derive(Debug)]
struct Watch {
    id: WatchId,
    listed: bool,
    /// Others have its pods as soon as they are listed.
    leaving: bool,
    /// Looks in a row that found no use for it.
    unused: u8,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pods {
    needs: Needs,
    watches: BTreeMap<Scope, Watch>,
    /// What waits for pods, and until when. While something of a namespace waits, so does all that comes of its policies and
    /// of its pods here: what goes must not overtake what comes in its place.
    policies: BTreeMap<ObjectKey, Option<Arc<NetworkPolicy>>>,
    pods: BTreeMap<ObjectKey, Option<Arc<Pod>>>,
    until: Option<Instant>,
    /// Looks in a row that found all pods watched for no reason.
    wide: u8,
    /// What says which pods are needed was listed once.
    started: bool,
}

/// Watches to begin and to end.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Orders {
    pub(super) begin: Vec<(WatchId, Scope)>,
    pub(super) end: Vec<WatchId>,
}

impl Orders {
    fn extend(&mut self, Self { begin, end }: Self) {
        self.begin.extend(begin);
        self.end.extend(end);
    }
}

impl Pods {
    pub(super) fn new(node: &str) -> Self {
        Self {
            needs: Needs::new(node),
            watches: BTreeMap::new(),
            policies: BTreeMap::new(),
            pods: BTreeMap::new(),
            until: None,
            wide: 0,
            started: false,
        }
    }

    /// Whether it is known which pods of other nodes are needed.
    pub(super) const fn is_started(&self) -> bool {
        self.started
    }

    /// Policies, namespaces and this node's pods are listed: what is needed is known.
    pub(super) fn start(&mut self) -> Orders {
        self.started = true;
        self.watch(self.needs.scopes())
    }

    /// Takes note of what has changed, and out of it what has to wait.
    pub(super) fn screen(&mut self, deltas: &mut Deltas, now: Instant) -> Orders {
        if deltas.is_empty() {
            // A part of a list, of which there are many.
            return Orders::default();
        }
        self.supersede(deltas);
        let watches = &self.watches;
        let missing = self.needs.update(deltas, |peer, namespaces| scope::cover(staying(watches), peer, namespaces));
        if !self.started {
            return Orders::default();
        }
        let mut orders = Orders::default();
        if !missing.is_empty() {
            let more = self.needs.scopes_of(&missing);
            let is_many = staying(&self.watches).count() + more.len() > scope::MOST;
            orders = if is_many { self.replace(self.needs.scopes()) } else { self.watch(more) };
        }
        self.hold(deltas, now);
        orders
    }

    /// A watch has told all that there is.
    pub(super) fn listed(&mut self, id: WatchId) -> Orders {
        for watch in self.watches.values_mut().filter(|watch| watch.id == id) {
            watch.listed = true;
        }
        self.end_leaving()
    }

    /// When [`Pods::release`] has something at the latest.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.until
    }

    /// What has waited long enough.
    pub(super) fn release(&mut self, now: Instant) -> Deltas {
        let all_listed = self.watches.values().all(|watch| watch.listed);
        if !all_listed && self.until.is_none_or(|until| now < until) {
            return Deltas::default();
        }
        self.until = None;
        Deltas {
            policies: Changed { all: false, objects: std::mem::take(&mut self.policies) },
            pods: Changed { all: false, objects: std::mem::take(&mut self.pods) },
            ..Deltas::default()
        }
    }

    /// From time to time: watches that nobody needs end, and many become few where they can.
    pub(super) fn tidy(&mut self) -> Orders {
        if !self.started || self.watches.values().any(|watch| !watch.listed) {
            return Orders::default();
        }
        let Self { needs, watches, .. } = self;
        for (scope, watch) in watches.iter_mut() {
            watch.unused = if needs.use_of(scope) { 0 } else { watch.unused + 1 };
        }
        let mut orders = self.end(|watch| watch.unused > LINGER);
        let (needs, watches) = (&self.needs, &self.watches);
        let missing = needs.uncovered(|peer| scope::cover(staying(watches), peer, needs.namespaces()));
        orders.extend(self.watch(self.needs.scopes_of(&missing)));
        let all = Scope::all();
        if self.watches.len() > scope::MOST / 2 || self.watches.contains_key(&all) {
            let few = self.needs.scopes();
            self.wide = if self.watches.contains_key(&all) && !few.contains(&all) { self.wide + 1 } else { 0 };
            if few.len() <= self.watches.len() / 2 || self.wide > LINGER {
                self.wide = 0;
                orders.extend(self.replace(few));
            }
        }
        orders
    }

    /// What is told now replaces what waits.
    fn supersede(&mut self, deltas: &mut Deltas) {
        if deltas.policies.all {
            // All policies as they are now, so that nothing waits for them any more.
            self.policies.clear();
            for (key, pod) in std::mem::take(&mut self.pods) {
                deltas.pods.objects.entry(key).or_insert(pod);
            }
        }
        self.policies.retain(|key, _| !deltas.policies.objects.contains_key(key));
        self.pods.retain(|key, _| !deltas.pods.objects.contains_key(key));
    }

    /// Takes out what asks for pods that are not there yet, and what comes after it in its namespace. A list stays whole: what
    /// it lacks would be gone.
    fn hold(&mut self, deltas: &mut Deltas, now: Instant) {
        if deltas.policies.all {
            return;
        }
        let Self { needs, watches, .. } = self;
        let listed = watches.iter().filter(|(_, watch)| watch.listed).map(|(scope, _)| scope);
        let waits = |policy: &ObjectKey| {
            needs.peers_of(policy).any(|peer| !scope::cover(listed.clone(), peer, needs.namespaces()))
        };
        let policies = deltas.policies.objects.keys().filter(|key| waits(key));
        let pods = deltas.pods.objects.keys().filter(|key| needs.selecting(key).any(waits));
        let waiting = policies.chain(pods).chain(self.policies.keys()).chain(self.pods.keys());
        let namespaces: BTreeSet<Name> = waiting.map(|key| key.namespace.clone()).collect();
        if namespaces.is_empty() {
            return;
        }
        let of_policies = deltas.policies.objects.extract_if(.., |key, _| namespaces.contains(&key.namespace));
        self.policies.extend(of_policies);
        let is_local = |key: &ObjectKey| namespaces.contains(&key.namespace) && needs.is_local(key);
        self.pods.extend(deltas.pods.objects.extract_if(.., |key, _| is_local(key)));
        self.until.get_or_insert(now + PATIENCE);
    }

    /// Begins what is not watched yet.
    fn watch(&mut self, scopes: BTreeSet<Scope>) -> Orders {
        let mut orders = Orders::default();
        for scope in scopes {
            if let Some(watch) = self.watches.get_mut(&scope) {
                watch.leaving = false;
                continue;
            }
            let used: BTreeSet<WatchId> = self.watches.values().map(|watch| watch.id).collect();
            let Some(id) = (1..WATCHES).find(|id| !used.contains(id)) else { break };
            self.watches.insert(scope.clone(), Watch { id, listed: false, leaving: false, unused: 0 });
            orders.begin.push((id, scope));
        }
        orders
    }

    /// Watches these in place of all others, which end when these are listed. Where others are leaving already, everything is
    /// watched: what leaves is all that has some pods, and there is a number for one watch more.
    fn replace(&mut self, mut scopes: BTreeSet<Scope>) -> Orders {
        if self.watches.values().any(|watch| watch.leaving) {
            scopes = BTreeSet::from([Scope::all()]);
        }
        for (scope, watch) in &mut self.watches {
            watch.leaving = !scopes.contains(scope);
        }
        // One that is not listed has nothing that anybody would miss.
        let mut orders = self.end(|watch| watch.leaving && !watch.listed);
        orders.extend(self.watch(scopes));
        orders.extend(self.end_leaving());
        orders
    }

    /// Once all that stay are listed, the others end.
    fn end_leaving(&mut self) -> Orders {
        let is_whole = self.watches.values().all(|watch| watch.listed);
        self.end(|watch| is_whole && watch.leaving)
    }

    fn end(&mut self, ends: impl Fn(&Watch) -> bool) -> Orders {
        let gone = self.watches.extract_if(.., |_, watch| ends(watch));
        Orders { begin: Vec::new(), end: gone.map(|(_, watch)| watch.id).collect() }
    }
}

/// Those that are to stay.
fn staying(watches: &BTreeMap<Scope, Watch>) -> impl Iterator<Item = &Scope> + Clone {
    watches.iter().filter(|(_, watch)| !watch.leaving).map(|(scope, _)| scope)
}

#[cfg(test)]
mod tests;
