// SPDX-License-Identifier: Apache-2.0
//! Policy: what follows changes, and what takes a whole compilation.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Isolates, Planner, set_all};
use crate::{
    apply::Patch,
    model::{Desired, Name, Room},
    plan::policy::{
        self, Held,
        follow::{Changed, Edited, Recompile, Written},
        isolation,
    },
};

impl Planner {
    /// To be called now and then: policies that are closed for how many pods there are, and namespaces whose pods do not fit, stay so
    /// while pods are followed. The next patch decides anew about them, where something has changed; whether it does.
    pub fn reconsider(&mut self) -> bool {
        let due = self.followed && self.policy.as_ref().is_some_and(|policy| policy.holds());
        self.due.compile |= due;
        due
    }

    pub(super) fn patch_policy(&mut self, room: &Room, patch: &mut Patch) {
        let namespaces = std::mem::take(&mut self.due.namespaces);
        let Isolates { everywhere, namespaces: isolating } = std::mem::take(&mut self.due.isolation);
        let isolates = everywhere || !isolating.is_empty();
        let dirty = self.addresses.take_dirty(&self.snapshot);
        if self.due.compile || self.policy.is_none() {
            return self.compile(room, patch);
        }
        if !isolates && namespaces.is_empty() && dirty.is_empty() {
            return;
        }
        self.followed = true;
        let edit = isolates.then(|| self.edited(everywhere, isolating));
        // Who is known there is thought to have had room at the last plan.
        let had_room = edit.is_some().then(|| self.numbers.lists.clone());
        let changed = Changed { addresses: &dirty, namespaces: &namespaces };
        if let Err(Recompile) = self.follow_policy(edit, &changed, room, patch) {
            if let Some(had_room) = had_room {
                self.numbers.lists = had_room;
            }
            self.compile(room, patch);
        }
    }

    /// What has changed of who is isolated by what.
    fn edited(&mut self, everywhere: bool, mut namespaces: BTreeSet<Name>) -> Edited {
        if everywhere {
            let pods = self.attachments.iter().filter_map(|attachment| attachment.spec.pod.as_ref());
            namespaces.extend(pods.map(|pod| Name::shared(&pod.namespace)));
        }
        let asked = |namespace: &str| namespaces.contains(namespace);
        let isolation = isolation::isolate_some(&self.snapshot, &self.attachments, &self.forms, asked);
        Edited { policies: std::mem::take(&mut self.due.policies), namespaces, isolation }
    }

    /// Policy as far as these edits, pods and namespaces touch it.
    fn follow_policy(
        &mut self,
        edit: Option<Edited>,
        changed: &Changed<'_>,
        room: &Room,
        patch: &mut Patch,
    ) -> Result<(), Recompile> {
        let Self { snapshot, forms, addresses, numbers, desired, policy, .. } = self;
        let Some(policy) = policy else { return Ok(()) };
        let mut written = Written { numbers, desired, patch };
        let owner = |address: IpAddr| addresses.owner(snapshot, address).flatten();
        let edit = edit.map(|edited| (&*forms, edited));
        if policy.follow(snapshot, owner, changed, edit, room, &mut written)? {
            let judges = policy.judges();
            self.due.ports |= judges != self.judges;
            self.judges = judges;
        }
        // All else that could be refused takes a compilation.
        let mut described = Desired::default();
        policy.describe_closed(snapshot, &mut described);
        described.refusals.extend(policy.unknown_namespaces().chain(policy.crowded_namespaces()));
        self.due.ports |= described.refusals != self.refused[0] || described.closed != desired.closed;
        self.refused[0] = described.refusals;
        desired.closed = described.closed;
        Ok(())
    }

    /// All of policy.
    fn compile(&mut self, room: &Room, patch: &mut Patch) {
        self.followed = false;
        #[cfg(test)]
        {
            self.compiled += 1;
        }
        let Self { snapshot, attachments, forms, numbers, desired, .. } = self;
        let isolation = isolation::isolate(snapshot, attachments, forms);
        let owners = self.addresses.owners(snapshot);
        let mut whole = Desired::default();
        let policies = policy::compile(
            snapshot,
            forms,
            isolation,
            &owners,
            (room, &desired.classes, &Held::default()),
            numbers,
            &mut whole,
        );
        self.judges = policies.judges();
        policies.describe_reports(snapshot, forms, &mut whole);
        let Desired { peers, classes, lists, rules, blocks, closed, refusals, .. } = whole;
        set_all(&mut desired.peers, &mut patch.peers, peers);
        set_all(&mut desired.classes, &mut patch.classes, classes);
        set_all(&mut desired.lists, &mut patch.lists, lists);
        set_all(&mut desired.rules, &mut patch.rules, rules);
        set_all(&mut desired.blocks, &mut patch.blocks, blocks);
        desired.closed = closed;
        self.refused[0] = refusals;
        self.due.ports = true;
        self.policy = Some(Box::new(policies));
    }
}
