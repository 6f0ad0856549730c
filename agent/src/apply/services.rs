// SPDX-License-Identifier: Apache-2.0
//! Services and their backends: no reader ever meets a slot without a backend.
//!
//! A Service's value carries the generation of its slots; `GENERATIONS[id]` is set to that same number when the change is
//! published. Where the two differ, or slots are there that no value points to, an earlier pass broke off before it
//! published: this one does it.

use std::collections::{BTreeMap, BTreeSet};

use weft_abi::{Addr, BackendKey, BackendState, Service, ServiceKey, SlotKey, generation};
use weft_dataplane::Error;

use super::{Observed, Pass, patch::Changes};
use crate::model::DesiredService;

/// Before every other key.
const FIRST_KEY: ServiceKey = ServiceKey { addr: weft_abi::Addr::UNSPECIFIED, port: 0, protocol: 0, pad: 0 };

impl Observed {
    /// The frontends that have this number: one, but in a damaged map.
    fn frontends(&self, id: u32) -> impl Iterator<Item = &ServiceKey> {
        self.numbered.range((id, FIRST_KEY)..).take_while(move |(of, _)| *of == id).map(|(_, key)| key)
    }

    /// The names of a Service's backends.
    fn names(&self, id: u32) -> impl Iterator<Item = BackendKey> {
        let first = BackendKey::new(id, Addr::UNSPECIFIED, 0);
        self.backends.0.range(first..).map(|(name, _)| *name).take_while(move |name| name.service == id)
    }

    /// Whether exactly those that serve have their names.
    fn has_names(&self, wanted: &DesiredService) -> bool {
        self.names(wanted.id).eq(wanted.names().collect::<BTreeSet<_>>())
    }

    /// Names of a Service's backends that none of its values leads to, and that do not serve on either.
    fn gone_backends(&self, id: u32, patch: &Changes<ServiceKey, DesiredService>) -> Vec<BackendKey> {
        let slots = self.frontends(id).filter_map(|key| self.services.0.get(key)).flat_map(|value| {
            let slot = |index| SlotKey { service: id, generation: value.generation, index };
            self.slots.0.range(slot(0)..slot(value.count)).map(|(_, backend)| backend)
        });
        let wanted = self.frontends(id).filter_map(|key| patch.get(key)?.as_ref()).filter(|service| service.id == id);
        let backends = slots.chain(wanted.flat_map(|service| &service.keeping));
        let serving: BTreeSet<_> = backends.map(|backend| BackendKey::new(id, backend.addr, backend.port)).collect();
        self.names(id).filter(|name| !serving.contains(name)).collect()
    }
}

impl Pass<'_> {
    /// Forward half: what is new. Slots of the next generation stand beside those of the last one, and what shrinks makes room
    /// for what grows: a Service that does not fit at first is put once what is published already has left its old slots,
    /// then once it has left its own. One that does not fit even so has no backend, rather than an old one: new flows to it
    /// are refused, and the summary tells it.
    pub(super) fn put_services(&mut self) -> Result<(), Error> {
        if self.observed.fresh {
            self.find_unpublished()?;
        }
        let changes = &self.patch.services;
        self.remove_gone_services(changes)?;
        let wanted = changes.iter().filter_map(|(key, service)| Some((key, service.as_ref()?)));
        let mut waiting: Vec<_> = wanted.filter(|(key, service)| self.put_service(key, service).is_err()).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        self.leave_old_slots()?;
        waiting.retain(|(key, service)| self.put_service(key, service).is_err());
        for (key, service) in &waiting {
            self.refuse_service(key, service.id)?;
        }
        self.leave_old_slots()?;
        for (key, service) in waiting {
            if let Err(error) = self.put_service(key, service) {
                self.summary.problems.push(format!(
                    "service number {} with {} backends: {error}; new flows to it are refused; raise mapSizes in the agent's \
                     configuration",
                    service.id,
                    service.backends.len()
                ));
            }
        }
        Ok(())
    }

    /// Publishes what has moved so far, so that its old slots may go.
    fn leave_old_slots(&mut self) -> Result<(), Error> {
        self.publish()?;
        self.remove_slots();
        Ok(())
    }

    /// Takes all backends away.
    fn refuse_service(&mut self, key: &ServiceKey, id: u32) -> Result<(), Error> {
        let old = self.observed.services.0.get(key).copied();
        let generation = self.free_generation(id, old)?;
        let value = Service { id, generation, count: 0, flags: 0 };
        if self.put_value(*key, value).is_err() {
            // A Service without an entry has no backend either.
            return self.remove_service(*key, old.map(|old| old.id));
        }
        self.moved.insert(id, generation);
        match old {
            Some(old) if old.id != id => self.move_next(old.id),
            _ => Ok(()),
        }
    }

    /// The value that leads to the slots of its generation; those that it led to before go at the end of the pass.
    fn put_value(&mut self, key: ServiceKey, value: Service) -> Result<(), Error> {
        let Observed { services, numbered, .. } = &mut *self.observed;
        let old = services.0.get(&key).map(|old| old.id);
        services.put(self.tables.services(), key, value, &mut self.summary)?;
        if let Some(old) = old.filter(|old| *old != value.id) {
            numbered.remove(&(old, key));
            self.left.insert(old);
        }
        numbered.insert((value.id, key));
        self.left.insert(value.id);
        Ok(())
    }

    fn remove_gone_services(&mut self, changes: &Changes<ServiceKey, DesiredService>) -> Result<(), Error> {
        for key in self.observed.services.gone(changes) {
            let id = self.observed.services.0.get(&key).map(|service| service.id);
            self.remove_service(key, id)?;
        }
        Ok(())
    }

    fn remove_service(&mut self, key: ServiceKey, id: Option<u32>) -> Result<(), Error> {
        let Observed { services, numbered, .. } = &mut *self.observed;
        services.take(self.tables.services(), key, &mut self.summary)?;
        let Some(id) = id else { return Ok(()) };
        numbered.remove(&(id, key));
        self.left.insert(id);
        self.move_next(id)
    }

    /// What a pass that broke off has left.
    fn find_unpublished(&mut self) -> Result<(), Error> {
        let services: Vec<Service> = self.observed.services.0.values().copied().collect();
        // A number that only a damaged map has is nobody's.
        for service in services.iter().filter(|service| service.id < generation::SLOTS) {
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
        self.left.insert(wanted.id);
        self.put_slots(wanted, generation)?;
        let count = u32::try_from(wanted.backends.len()).unwrap_or(u32::MAX);
        let value = Service { id: wanted.id, generation, count, flags: 0 };
        self.put_value(*key, value)?;
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
            && self.observed.has_names(wanted)
    }

    /// The next generation that no live slot has.
    fn free_generation(&self, id: u32, old: Option<Service>) -> Result<u32, Error> {
        let next = self.tables.generations().get(id)?.wrapping_add(1);
        let taken = old.is_some_and(|old| old.id == id && old.generation == next);
        Ok(if taken { next.wrapping_add(1) } else { next })
    }

    /// All slots or none; the names of backends first.
    fn put_slots(&mut self, wanted: &DesiredService, generation: u32) -> Result<(), Error> {
        let slot = |index| SlotKey { service: wanted.id, generation, index };
        for name in wanted.names() {
            let serving = BackendState::Serving as u32;
            self.observed.backends.put(self.tables.backends(), name, serving, &mut self.summary)?;
        }
        for (index, backend) in (0..).zip(&wanted.backends) {
            let (table, known) = (self.tables.slots(), &mut self.observed.slots);
            if let Err(error) = known.put(table, slot(index), *backend, &mut self.summary) {
                (0..index).try_for_each(|index| known.take(table, slot(index), &mut self.summary))?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Before anything is published: the names of backends that no Service's value leads to any more. A flow that decides again
    /// finds those that serve.
    pub(super) fn forget_backends(&mut self) -> Result<(), Error> {
        let fresh = self.observed.fresh.then(|| self.observed.backends.0.keys().map(|name| name.service));
        let numbers: BTreeSet<u32> = self.left.iter().copied().chain(fresh.into_iter().flatten()).collect();
        let gone: Vec<BackendKey> =
            numbers.into_iter().flat_map(|id| self.observed.gone_backends(id, &self.patch.services)).collect();
        let Observed { backends, .. } = &mut *self.observed;
        gone.into_iter().try_for_each(|name| backends.take(self.tables.backends(), name, &mut self.summary))
    }

    /// Second half, after publishing: slots that no value points to.
    pub(super) fn remove_old_slots(&mut self) {
        if self.summary.generations > 0 || self.observed.fresh {
            self.remove_slots();
        }
    }

    fn remove_slots(&mut self) {
        let observed = &*self.observed;
        let Observed { slots, fresh, .. } = observed;
        let slot = |service, generation, index| SlotKey { service, generation, index };
        let mut old = Vec::new();
        let mut look_at = |id: u32| {
            let values = observed.frontends(id).filter_map(|key| observed.services.0.get(key));
            let live: BTreeMap<u32, u32> = values.map(|value| (value.generation, value.count)).collect();
            let is_live = |slot: &SlotKey| live.get(&slot.generation).is_some_and(|count| slot.index < *count);
            let all = slots.0.range(slot(id, 0, 0)..=slot(id, u32::MAX, u32::MAX));
            old.extend(all.map(|(slot, _)| *slot).filter(|slot| !is_live(slot)));
        };
        if *fresh {
            slots.0.keys().map(|slot| slot.service).collect::<BTreeSet<_>>().into_iter().for_each(&mut look_at);
        } else {
            self.left.iter().copied().for_each(&mut look_at);
        }
        let mut first = None;
        for slot in old {
            if let Err(error) = self.observed.slots.take(self.tables.slots(), slot, &mut self.summary) {
                first.get_or_insert(error);
            }
        }
        let problem = first.map(|error| format!("old backends of Services: {error}; they are still there"));
        self.summary.problems.extend(problem);
    }
}
