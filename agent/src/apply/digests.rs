// SPDX-License-Identifier: Apache-2.0
//! What the generations of workloads and of the routes stand for. It is kept beside them, in `DIGESTS`, so that a restart moves
//! none without need.
//!
//! A digest is taken back before anything changes that its generation stands for, and the next one is written once the
//! generation has moved. So wherever a pass breaks off, and whatever is planned after it, a generation moves once too often
//! rather than once too few.

use std::collections::BTreeSet;

use weft_abi::{Config, Owner, Timeouts, generation};
use weft_dataplane::Error;

use super::{
    Observed, Pass,
    patch::Changes,
    tables::{Failed, Known},
};

/// In place of a digest: what it would tell is changing.
pub(super) const CHANGING: u64 = 0;

/// A digest as the map has it.
const fn kept(digest: u64) -> u64 {
    if digest == CHANGING { 1 } else { digest }
}

/// What decisions depend on: not shares, rates, timeouts or the MSS clamp.
const fn decides(config: Config) -> Config {
    let none = [0; 2];
    Config {
        flow_share: none,
        flow_most: none,
        flow_floor: none,
        flow_rate: 0,
        answer_rate: 0,
        fragment_rate: 0,
        mss_clamp: 0,
        timeouts: Timeouts::DEFAULT,
        ..config
    }
}

/// Without the routes, which no plan leaves out.
pub(super) fn of_workloads(known: &Known<u32, u64>) -> impl Iterator<Item = u32> {
    known.0.keys().copied().filter(|slot| *slot != generation::ROUTES)
}

impl Pass<'_> {
    /// Before anything else: takes back the digests of what is new, changes or goes.
    pub(super) fn begin_changes(&mut self) {
        let routes = self.patch.routes_digest.map(|digest| (generation::ROUTES, Some(digest)));
        let workloads = self.patch.workload_digests.iter().map(|(slot, digest)| (*slot, *digest));
        let wanted = workloads.chain(routes).map(|(slot, digest)| (slot, digest.map(kept)));
        let known = &self.observed.digests.0;
        self.changing = wanted.filter(|(slot, digest)| known.get(slot) != digest.as_ref()).collect();
        if self.is_another_node() {
            // What the node is decisions were made of as well: what leads to other nodes and outside is decided again.
            let digest = self.patch.routes_digest.map(kept).or_else(|| known.get(&generation::ROUTES).copied());
            self.changing.insert(generation::ROUTES, digest);
        }
        let slots: Vec<u32> = self.changing.keys().copied().collect();
        self.take_back(&slots);
    }

    /// Whether the node's facts, devices or own addresses change: decisions were made of them.
    fn is_another_node(&self) -> bool {
        let Observed { config, devices, addresses, .. } = &*self.observed;
        let is_hosts = |owner: Option<&Owner>| owner.is_some_and(Owner::is_host);
        self.patch.config.is_some_and(|new| decides(new) != decides(*config))
            || self.patch.devices.iter().any(|(index, new)| devices.0.get(index) != new.as_ref())
            || self.patch.addresses.iter().any(|(address, new)| {
                let old = addresses.0.get(address);
                old != new.as_ref() && (is_hosts(old) || is_hosts(new.as_ref()))
            })
    }

    /// The generation of this slot moves, though it stands for the same at the end.
    pub(super) fn disturb(&mut self, slot: u32) {
        if self.changing.contains_key(&slot) {
            return;
        }
        self.changing.insert(slot, self.observed.digests.0.get(&slot).copied());
        self.take_back(&[slot]);
    }

    /// The next pass moves the generation of this slot again, whatever it plans: the workload is closed.
    pub(super) fn unsettle(&mut self, slot: u32) {
        if self.unsettled.insert(slot) {
            self.take_back(&[slot]);
        }
    }

    fn take_back(&mut self, slots: &[u32]) {
        let marks: Changes<u32, u64> = slots.iter().map(|slot| (*slot, Some(CHANGING))).collect();
        let failed = self.observed.digests.put_all(self.tables.digests(), &marks, &mut self.summary);
        self.tell_digests(&failed);
    }

    /// Workloads that are new, changed or gone, and routes.
    pub(super) fn move_changed(&mut self) -> Result<(), Error> {
        let slots: BTreeSet<u32> = self.changing.keys().chain(&self.unsettled).copied().collect();
        slots.into_iter().try_for_each(|slot| self.move_next(slot))
    }

    /// Once the generations have moved.
    pub(super) fn end_changes(&mut self) {
        let mut changes = std::mem::take(&mut self.changing);
        changes.retain(|slot, _| !self.unsettled.contains(slot));
        let known = &mut self.observed.digests;
        let put = known.put_all(self.tables.digests(), &changes, &mut self.summary);
        let taken = known.take_gone(self.tables.digests(), &changes, &mut self.summary);
        self.tell_digests(&put);
        self.tell_digests(&taken);
    }

    fn tell_digests(&mut self, failed: &Failed<u32>) {
        failed.tell("digests of what generations stand for", "these generations move once more", &mut self.summary);
    }
}
