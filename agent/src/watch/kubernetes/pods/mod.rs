// SPDX-License-Identifier: Apache-2.0
//! Which pods are watched: those of this node, and those that peers of policies mean which select one of them. Pods of the rest
//! of the cluster never come here: at 150,000 pods their changes alone are half a megabyte a second for every node.
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
    Changed, Deltas, ObjectKey,
    objects::{NetworkPolicy, Pod},
};

/// Number of a watch; the pods of this node are watch 0.
pub(super) type WatchId = u8;

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
    /// What waits for pods, and until when.
    policies: BTreeMap<ObjectKey, Arc<NetworkPolicy>>,
    pods: BTreeMap<ObjectKey, Arc<Pod>>,
    until: Option<Instant>,
    /// All kinds were listed once.
    started: bool,
}

/// Watches to begin and to end.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Orders {
    pub(super) begin: Vec<(WatchId, Scope)>,
    pub(super) end: Vec<WatchId>,
}

impl Pods {
    pub(super) fn new(node: &str) -> Self {
        Self {
            needs: Needs::new(node),
            watches: BTreeMap::new(),
            policies: BTreeMap::new(),
            pods: BTreeMap::new(),
            until: None,
            started: false,
        }
    }

    /// Whether it is known which pods of other nodes are needed.
    pub(super) const fn is_started(&self) -> bool {
        self.started
    }

    /// All kinds are listed: what is needed is known.
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
        let missing = self.needs.update(deltas, |peer, namespaces| scope::cover(self.watches.keys(), peer, namespaces));
        if !self.started {
            return Orders::default();
        }
        let mut orders = Orders::default();
        if !missing.is_empty() {
            let more = self.needs.scopes_of(&missing);
            let is_many = self.watches.values().filter(|watch| !watch.leaving).count() + more.len() > scope::MOST;
            orders = if is_many { self.replace(self.needs.scopes()) } else { self.watch(more) };
        }
        if self.watches.values().any(|watch| !watch.listed) {
            self.hold(deltas, now);
        }
        orders
    }

    /// A watch has told all that there is.
    pub(super) fn listed(&mut self, id: WatchId) -> Orders {
        for watch in self.watches.values_mut().filter(|watch| watch.id == id) {
            watch.listed = true;
        }
        if self.watches.values().all(|watch| watch.listed) {
            return self.end(|watch| watch.leaving);
        }
        Orders::default()
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
            policies: told(std::mem::take(&mut self.policies)),
            pods: told(std::mem::take(&mut self.pods)),
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
        if self.watches.len() > scope::MOST / 2 {
            let few = self.needs.scopes();
            if few.len() <= self.watches.len() / 2 {
                let Orders { begin, end } = self.replace(few);
                orders.begin.extend(begin);
                orders.end.extend(end);
            }
        }
        orders
    }

    /// What is told now replaces what waits.
    fn supersede(&mut self, deltas: &Deltas) {
        let Deltas { policies, pods, .. } = deltas;
        self.policies.retain(|key, _| !policies.all && !policies.objects.contains_key(key));
        self.pods.retain(|key, _| !pods.all && !pods.objects.contains_key(key));
    }

    /// Takes out what asks for pods that are not there yet. A list stays whole: what it lacks would be gone.
    fn hold(&mut self, deltas: &mut Deltas, now: Instant) {
        let Self { needs, watches, .. } = self;
        let listed = watches.iter().filter(|(_, watch)| watch.listed).map(|(scope, _)| scope);
        let waits = |policy: &ObjectKey| {
            needs.peers_of(policy).any(|peer| !scope::cover(listed.clone(), peer, needs.namespaces()))
        };
        if !deltas.policies.all {
            self.policies.extend(take(&mut deltas.policies, waits));
        }
        let selected = |pod: &ObjectKey| needs.selecting(pod).any(waits);
        self.pods.extend(take(&mut deltas.pods, selected));
        if !self.policies.is_empty() || !self.pods.is_empty() {
            self.until.get_or_insert(now + PATIENCE);
        }
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
            let Some(id) = (1..64).find(|id| !used.contains(id)) else { break };
            self.watches.insert(scope.clone(), Watch { id, listed: false, leaving: false, unused: 0 });
            orders.begin.push((id, scope));
        }
        orders
    }

    /// Watches these in place of all others, which end when these are listed.
    fn replace(&mut self, scopes: BTreeSet<Scope>) -> Orders {
        // One that is not listed has nothing that anybody would miss; and there is a number for each that is.
        let mut orders = self.end(|watch| watch.leaving || !watch.listed);
        for (scope, watch) in &mut self.watches {
            watch.leaving = !scopes.contains(scope);
        }
        let Orders { begin, end } = self.watch(scopes);
        orders.begin.extend(begin);
        orders.end.extend(end);
        orders
    }

    fn end(&mut self, ends: impl Fn(&Watch) -> bool) -> Orders {
        let gone = self.watches.extract_if(.., |_, watch| ends(watch));
        Orders { begin: Vec::new(), end: gone.map(|(_, watch)| watch.id).collect() }
    }
}

fn told<T>(objects: BTreeMap<ObjectKey, Arc<T>>) -> Changed<T> {
    Changed { all: false, objects: objects.into_iter().map(|(key, object)| (key, Some(object))).collect() }
}

/// Takes out the objects that wait; what is gone never does.
fn take<T>(changed: &mut Changed<T>, waits: impl Fn(&ObjectKey) -> bool) -> BTreeMap<ObjectKey, Arc<T>> {
    let waiting = changed.objects.extract_if(.., |key, object| object.is_some() && waits(key));
    waiting.filter_map(|(key, object)| Some((key, object?))).collect()
}

#[cfg(test)]
mod tests;
