// SPDX-License-Identifier: Apache-2.0
//! Observes the maps, diffs, and moves them closer to the plan.
//!
//! Readers look at the maps between any two writes, so that the order of writes is part of the meaning:
//!
//! 1. the node's facts; prefixes, the longest first (removals: the shortest first), so that each address goes from its old
//!    answer straight to its new one;
//! 2. Services: slots of the next generation, then the value that points to them (`services`);
//! 3. policy: never is anything allowed that neither the old nor the new state allows (`policy`);
//! 4. ports, then the addresses that lead to them; removals in reverse; rules that nobody uses any more;
//! 5. generations, as [`weft_abi::generation`] says; only then the old slots.
//!
//! The agent is the only writer, so the maps are read once and remembered; after an error they are read again. One more pass
//! after a pass that worked changes nothing.

pub mod flows;
mod policy;
mod services;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_abi::{
    Addr, Backend, CidrKey, Config, Local, Port, Remote, RuleKey, Rules, Service, ServiceKey, SlotKey, generation,
};
use weft_dataplane::Error;

use self::tables::Known;
pub use self::tables::{Array, Summary, Table, Tables};
use crate::model::Desired;

/// The digests that generations stand for now; kept over a restart, so that a restart moves no generation without need.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Digests {
    /// See [`Desired::workload_digests`].
    pub workloads: BTreeMap<u32, u64>,
    /// See [`Desired::routes_digest`].
    pub routes: u64,
}

/// Applies plans one after the other.
#[derive(Debug, Default)]
pub struct Applier {
    observed: Option<Observed>,
    digests: Digests,
}

/// What the maps are known to hold.
#[derive(Debug)]
struct Observed {
    config: Config,
    ports: Known<u32, Port>,
    locals: Known<Addr, Local>,
    remotes: Known<CidrKey, Remote>,
    services: Known<ServiceKey, Service>,
    slots: Known<SlotKey, Backend>,
    identities: Known<Addr, u32>,
    cidrs: Known<CidrKey, u32>,
    rules: Known<RuleKey, Rules>,
    /// Slots were not looked at since the maps were read: some may be left from a pass that broke off.
    fresh: bool,
}

/// One pass under way.
struct Pass<'a> {
    tables: &'a dyn Tables,
    observed: &'a mut Observed,
    summary: Summary,
    /// Generations to publish at its end, by slot.
    moved: BTreeMap<u32, u32>,
}

impl Applier {
    /// Goes on where an earlier run has left its `digests`.
    #[must_use]
    pub fn new(digests: Digests) -> Self {
        Self { observed: None, digests }
    }

    /// To be kept for [`Applier::new`] after each pass; never before it.
    #[must_use]
    pub const fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Moves the maps to `desired`.
    ///
    /// # Errors
    /// What the kernel refused. The maps are then between the old and the new state, with nothing allowed that neither
    /// allows; the next pass reads them anew and goes on.
    pub fn apply(&mut self, tables: &dyn Tables, desired: &Desired) -> Result<Summary, Error> {
        let mut observed = match self.observed.take() {
            Some(observed) => observed,
            None => Observed::read(tables)?,
        };
        let mut pass = Pass { tables, observed: &mut observed, summary: Summary::default(), moved: BTreeMap::new() };
        pass.run(desired, &self.digests)?;
        let summary = pass.summary;
        self.digests = Digests { workloads: desired.workload_digests.clone(), routes: desired.routes_digest };
        self.observed = Some(observed);
        Ok(summary)
    }
}

impl Observed {
    fn read(tables: &dyn Tables) -> Result<Self, Error> {
        Ok(Self {
            config: tables.config().get(0)?,
            ports: Known::observe(tables.ports())?,
            locals: Known::observe(tables.locals())?,
            remotes: Known::observe(tables.remotes())?,
            services: Known::observe(tables.services())?,
            slots: Known::observe(tables.slots())?,
            identities: Known::observe(tables.identities())?,
            cidrs: Known::observe(tables.cidrs())?,
            rules: Known::observe(tables.rules())?,
            fresh: true,
        })
    }
}

impl Pass<'_> {
    fn run(&mut self, desired: &Desired, digests: &Digests) -> Result<(), Error> {
        self.put_config(&desired.config)?;
        self.put_remotes(&desired.remotes)?;
        self.put_services(&desired.services)?;
        let policy = policy::Change::plan(self.observed, desired);
        self.put_policy(&policy, desired)?;
        self.put_places(desired)?;
        self.remove_unused_rules(desired)?;
        self.move_workloads(desired, digests)?;
        self.publish()?;
        self.remove_old_slots()
    }

    fn put_config(&mut self, config: &Config) -> Result<(), Error> {
        if self.observed.config != *config {
            self.tables.config().set(0, config)?;
            self.observed.config = *config;
            self.summary.written += 1;
        }
        Ok(())
    }

    fn put_remotes(&mut self, wanted: &BTreeMap<CidrKey, Remote>) -> Result<(), Error> {
        let (table, known) = (self.tables.remotes(), &mut self.observed.remotes);
        known.put_all(table, wanted, &mut self.summary)?;
        known.take_others(table, wanted, &mut self.summary)
    }

    /// A port before the addresses that lead to it; removals in reverse.
    fn put_places(&mut self, desired: &Desired) -> Result<(), Error> {
        let Observed { ports, locals, .. } = self.observed;
        ports.put_all(self.tables.ports(), &desired.ports, &mut self.summary)?;
        locals.put_all(self.tables.locals(), &desired.locals, &mut self.summary)?;
        locals.take_others(self.tables.locals(), &desired.locals, &mut self.summary)?;
        ports.take_others(self.tables.ports(), &desired.ports, &mut self.summary)
    }

    /// Workloads that are new, changed or gone, and routes.
    fn move_workloads(&mut self, desired: &Desired, old: &Digests) -> Result<(), Error> {
        let new = &desired.workload_digests;
        let changed =
            new.iter().filter(|(slot, digest)| old.workloads.get(slot) != Some(digest)).map(|(slot, _)| *slot);
        let gone = old.workloads.keys().filter(|slot| !new.contains_key(slot)).copied();
        let routes = (old.routes != desired.routes_digest).then_some(generation::ROUTES);
        let slots: Vec<u32> = changed.chain(gone).chain(routes).collect();
        slots.into_iter().try_for_each(|slot| self.move_next(slot))
    }

    /// The slot's generation goes to its next value.
    fn move_next(&mut self, slot: u32) -> Result<(), Error> {
        let value = self.tables.generations().get(slot)?.wrapping_add(1);
        self.moved.insert(slot, value);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Error> {
        if self.moved.is_empty() {
            return Ok(());
        }
        self.next_epoch()?;
        for (slot, value) in &self.moved {
            self.tables.generations().set(*slot, value)?;
        }
        self.summary.generations += self.moved.len();
        self.next_epoch()
    }

    fn next_epoch(&self) -> Result<(), Error> {
        let generations = self.tables.generations();
        generations.set(generation::EPOCH, &generations.get(generation::EPOCH)?.wrapping_add(1))
    }
}
