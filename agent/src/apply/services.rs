// SPDX-License-Identifier: Apache-2.0
//! Services and their backends: no reader ever meets a slot without a backend.
//!
//! A Service's value carries the generation of its slots; `GENERATIONS[id]` is set to that same number when the change is
//! published. Where the two differ, or slots are there that no value points to, an earlier pass broke off before it
//! published: this one does it.

use std::collections::{BTreeMap, BTreeSet};

use weft_abi::{Service, ServiceKey, SlotKey};
use weft_dataplane::Error;

use super::Pass;
use crate::model::DesiredService;

impl Pass<'_> {
    /// Forward half: what is new. A Service that does not fit stays as it was and is told in the summary.
    pub(super) fn put_services(&mut self, wanted: &BTreeMap<ServiceKey, DesiredService>) -> Result<(), Error> {
        if self.observed.fresh {
            self.find_unpublished()?;
        }
        for (key, service) in wanted {
            match self.put_service(key, service) {
                Ok(()) => {}
                Err(error @ Error::Full { .. }) => self.summary.problems.push(format!(
                    "service number {} with {} backends: {error}; raise mapSizes in the agent's configuration",
                    service.id,
                    service.backends.len()
                )),
                Err(error) => return Err(error),
            }
        }
        let gone: Vec<_> = self.observed.services.0.iter().filter(|(key, _)| !wanted.contains_key(key)).collect();
        let gone: Vec<_> = gone.into_iter().map(|(key, service)| (*key, service.id)).collect();
        for (key, id) in gone {
            self.observed.services.take(self.tables.services(), key, &mut self.summary)?;
            self.move_next(id)?;
        }
        Ok(())
    }

    /// What a pass that broke off has left.
    fn find_unpublished(&mut self) -> Result<(), Error> {
        let services: Vec<Service> = self.observed.services.0.values().copied().collect();
        for service in &services {
            if self.tables.generations().get(service.id)? != service.generation {
                self.moved.insert(service.id, service.generation);
            }
        }
        let known: BTreeSet<u32> = services.iter().map(|service| service.id).collect();
        let stray: BTreeSet<u32> = self.observed.slots.0.keys().map(|slot| slot.service).collect();
        stray.difference(&known).try_for_each(|id| self.move_next(*id))
    }

    fn put_service(&mut self, key: &ServiceKey, wanted: &DesiredService) -> Result<(), Error> {
        let old = self.observed.services.0.get(key).copied();
        if old.is_some_and(|old| self.is_as_wanted(&old, wanted)) {
            return Ok(());
        }
        let generation = self.free_generation(wanted.id, old)?;
        self.put_slots(wanted, generation)?;
        let count = u32::try_from(wanted.backends.len()).unwrap_or(u32::MAX);
        let value = Service { id: wanted.id, generation, count, flags: 0 };
        self.observed.services.put(self.tables.services(), *key, value, &mut self.summary)?;
        self.moved.insert(wanted.id, generation);
        match old {
            Some(old) if old.id != wanted.id => self.move_next(old.id),
            _ => Ok(()),
        }
    }

    fn is_as_wanted(&self, old: &Service, wanted: &DesiredService) -> bool {
        let slot = |index| SlotKey { service: old.id, generation: old.generation, index };
        old.id == wanted.id
            && old.count as usize == wanted.backends.len()
            && (0..)
                .zip(&wanted.backends)
                .all(|(index, backend)| self.observed.slots.0.get(&slot(index)) == Some(backend))
    }

    /// The next generation that no live slot has.
    fn free_generation(&self, id: u32, old: Option<Service>) -> Result<u32, Error> {
        let next = self.tables.generations().get(id)?.wrapping_add(1);
        let taken = old.is_some_and(|old| old.id == id && old.generation == next);
        Ok(if taken { next.wrapping_add(1) } else { next })
    }

    /// All slots or none.
    fn put_slots(&mut self, wanted: &DesiredService, generation: u32) -> Result<(), Error> {
        let (table, known) = (self.tables.slots(), &mut self.observed.slots);
        let slot = |index| SlotKey { service: wanted.id, generation, index };
        for (index, backend) in (0..).zip(&wanted.backends) {
            if let Err(error) = known.put(table, slot(index), *backend, &mut self.summary) {
                (0..index).try_for_each(|index| known.take(table, slot(index), &mut self.summary))?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Second half, after publishing: slots that no value points to.
    pub(super) fn remove_old_slots(&mut self) -> Result<(), Error> {
        if self.moved.is_empty() && !self.observed.fresh {
            return Ok(());
        }
        let live: BTreeMap<u32, Service> = self.observed.services.0.values().map(|s| (s.id, *s)).collect();
        let is_live = |slot: &SlotKey| {
            live.get(&slot.service).is_some_and(|s| s.generation == slot.generation && slot.index < s.count)
        };
        let old: Vec<SlotKey> = self.observed.slots.0.keys().filter(|slot| !is_live(slot)).copied().collect();
        for slot in old {
            self.observed.slots.take(self.tables.slots(), slot, &mut self.summary)?;
        }
        self.observed.fresh = false;
        Ok(())
    }
}
