// SPDX-License-Identifier: Apache-2.0
//! Moves the maps to the plan: a whole plan by comparing it with what they hold, a [`Patch`] by its keys alone.
//!
//! Readers look at the maps between any two writes, so that the order of writes is part of the meaning:
//!
//! 1. what is about to change (`digests`); the node's facts, its addresses before the devices that masquerade with them; prefixes,
//!    the longest first (removals: the shortest first), so that each address goes from its old answer straight to its new one;
//! 2. Services: clients that limited frontends serve; frontends that go; new sets of members, then the balancer that leads to them, then
//!    frontends that come; then clients go that are served no more, and the names of backends that serve no more (`services`);
//! 3. policy: never is anything allowed that neither the old nor the new state allows (`policy`);
//! 4. ports, then the addresses that lead to them; removals in reverse; rules that nobody uses any more;
//! 5. generations, as [`weft_abi::generation`] says; only then what they stand for now, and the old sets go.
//!
//! The plan knows how much the maps hold ([`Applier::room`]). What the kernel refuses all the same concerns its own object: a
//! Service refuses new flows, the workloads of a policy set or of a peer that is not as it should be are closed.
//!
//! The agent is the only writer, so the maps are read once and remembered; after an error they are read again. One more pass
//! after a pass that worked changes nothing.

mod digests;
pub mod flows;
mod patch;
mod policy;
mod services;
mod tables;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};

use weft_abi::{
    AddressKey, BackendKey, Balancer, BlockKey, CidrKey, Class, Config, Device, Frontend, FrontendKey, List, Member,
    MemberKey, Owner, Port, Remote, RingNode, RuleKey, Run, TERMS_PER_CLASS, generation,
};
use weft_dataplane::Error;

pub use self::patch::{Changes, Patch};
use self::tables::Known;
pub use self::tables::{Array, Summary, Table, Tables};
use crate::{
    heap,
    model::{Desired, Room},
};

/// Applies plans one after the other.
#[derive(Debug, Default)]
pub struct Applier {
    observed: Option<Observed>,
}

/// What the maps are known to hold.
#[derive(Debug)]
struct Observed {
    config: Config,
    devices: Known<u32, Device>,
    ports: Known<u32, Port>,
    addresses: Known<AddressKey, Owner>,
    remotes: Known<CidrKey, Remote>,
    frontends: Known<FrontendKey, Frontend>,
    /// Those of Service ports, by their numbers.
    numbered: BTreeSet<(u32, FrontendKey)>,
    balancers: Known<u32, Balancer>,
    members: Known<MemberKey, Member>,
    rings: Known<MemberKey, RingNode>,
    backends: Known<BackendKey, u32>,
    sources: Known<CidrKey, u32>,
    peers: Known<AddressKey, u64>,
    classes: Known<u64, Class>,
    lists: Known<u64, List>,
    rules: Known<RuleKey, Run>,
    blocks: Known<BlockKey, u64>,
    digests: Known<u32, u64>,
    /// Members were not looked at since the maps were read: some may be left from a pass that broke off.
    fresh: bool,
}

/// Generations that are to be published.
#[derive(Debug, Default)]
struct Moved {
    /// By slot.
    slots: BTreeMap<u32, u32>,
    /// By the numbers of Service ports.
    services: BTreeMap<u32, u32>,
}

/// One pass under way.
struct Pass<'a> {
    tables: &'a dyn Tables,
    observed: &'a mut Observed,
    patch: &'a Patch,
    /// Numbers of Service ports that may have left members behind.
    left: BTreeSet<u32>,
    summary: Summary,
    /// Generations to publish at its end.
    moved: Moved,
    /// Lists that are not as they should be, or know a peer that is not: who has one is closed.
    unsure: BTreeSet<u64>,
    /// Ports that were closed for the time of the pass, as they were.
    reopened: BTreeMap<u32, Port>,
    /// Generation slots of workloads that are closed for that, or have no port: the next pass moves them again.
    unsettled: BTreeSet<u32>,
    /// Generation slots of what changes, and the digest that each will stand for.
    changing: Changes<u32, u64>,
}

impl Applier {
    /// Whether a patch is enough: what the maps hold is known, and is what the last plan wanted.
    #[must_use]
    pub const fn follows(&self) -> bool {
        matches!(&self.observed, Some(Observed { fresh: false, .. }))
    }

    /// How much room a plan has.
    #[must_use]
    pub fn room(tables: &dyn Tables) -> Room {
        Room {
            services: services::most(tables),
            members: services::most_members(tables),
            peers: tables.peers().capacity(),
            classes: tables.classes().capacity() / 2,
            terms: TERMS_PER_CLASS,
            rules: tables.rules().capacity() / 2,
            blocks: tables.blocks().capacity() / 2,
            work: Room::WORK,
        }
    }

    /// Takes nothing for granted any more: somebody else has written to the maps.
    pub fn forget(&mut self) {
        self.observed = None;
    }

    /// Packs what it knows, once much has been written at once.
    pub fn pack(&mut self) {
        let Some(observed) = &mut self.observed else { return };
        heap::pack(&mut observed.remotes.0);
        heap::pack(&mut observed.frontends.0);
        heap::pack(&mut observed.balancers.0);
        heap::pack(&mut observed.members.0);
        heap::pack(&mut observed.rings.0);
        heap::pack(&mut observed.backends.0);
        heap::pack(&mut observed.sources.0);
        heap::pack(&mut observed.peers.0);
        heap::pack(&mut observed.classes.0);
        heap::pack(&mut observed.rules.0);
        heap::pack(&mut observed.blocks.0);
    }

    /// Moves the maps to `desired`. What cannot be written for one object is named in the summary, and closes that object and
    /// what hangs on it; everything else is written.
    ///
    /// # Errors
    /// What the kernel refused of that which concerns everybody. The maps are then between the old and the new state, with
    /// nothing allowed that neither allows; the next pass reads them anew and goes on.
    pub fn apply(&mut self, tables: &dyn Tables, desired: &Desired) -> Result<Summary, Error> {
        let observed = match self.observed.take() {
            Some(observed) => observed,
            None => Observed::read(tables)?,
        };
        let patch = Patch::whole(&observed, desired);
        self.pass(tables, observed, &patch)
    }

    /// As [`Applier::apply`], where `patch` leads from the plan applied last to `desired`: work in proportion to it. After a
    /// pass that did not do everything, and before the first one, it is the whole plan all the same.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn patch(&mut self, tables: &dyn Tables, desired: &Desired, patch: &Patch) -> Result<Summary, Error> {
        match self.observed.take_if(|observed| !observed.fresh) {
            Some(observed) => self.pass(tables, observed, patch),
            None => self.apply(tables, desired),
        }
    }

    fn pass(&mut self, tables: &dyn Tables, mut observed: Observed, patch: &Patch) -> Result<Summary, Error> {
        let mut pass = Pass {
            tables,
            observed: &mut observed,
            patch,
            left: BTreeSet::new(),
            summary: Summary::default(),
            moved: Moved::default(),
            unsure: BTreeSet::new(),
            reopened: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            changing: Changes::new(),
        };
        pass.run()?;
        let summary = pass.summary;
        // After a refusal nothing is taken for granted.
        self.observed = summary.problems.is_empty().then_some(observed);
        Ok(summary)
    }
}

/// Every flow is decided anew that was decided by the host's routes, which are others now. The plan stands as it is.
///
/// # Errors
/// The map refuses.
pub fn move_routes(tables: &dyn Tables) -> Result<(), Error> {
    let generations = tables.generations();
    let next = generations.get(generation::ROUTES)?.wrapping_add(1);
    publish(tables, &Moved { slots: [(generation::ROUTES, next)].into(), ..Moved::default() })
}

/// Publishes generations; see [`weft_abi::generation`]. The epoch is odd meanwhile, so that a pass that broke off here is known:
/// flows may have compared generations that moved only then.
fn publish(tables: &dyn Tables, moved: &Moved) -> Result<(), Error> {
    let generations = tables.generations();
    let epoch = generations.get(generation::EPOCH)?;
    let odd = epoch.wrapping_add(1 + epoch % 2);
    generations.set(generation::EPOCH, &odd)?;
    moved.slots.iter().try_for_each(|(slot, value)| generations.set(*slot, value))?;
    moved.services.iter().try_for_each(|(number, value)| tables.service_generations().set(*number, value))?;
    generations.set(generation::EPOCH, &odd.wrapping_add(1))
}

/// Whether an earlier pass broke off in [`publish`].
///
/// # Errors
/// The map cannot be read.
pub fn is_half_published(tables: &dyn Tables) -> Result<bool, Error> {
    Ok(tables.generations().get(generation::EPOCH)? % 2 == 1)
}

/// Whether a pass broke off that had begun to change what decisions are made of: not all of it may be there, or published.
///
/// # Errors
/// The maps cannot be read.
pub fn is_amid_a_change(tables: &dyn Tables) -> Result<bool, Error> {
    Ok(is_half_published(tables)? || tables.digests().entries()?.values().any(|digest| *digest == digests::CHANGING))
}

impl Observed {
    fn read(tables: &dyn Tables) -> Result<Self, Error> {
        let frontends = Known::observe(tables.frontends())?;
        Ok(Self {
            config: tables.config().get(0)?,
            devices: Known::observe(tables.devices())?,
            ports: Known::observe(tables.ports())?,
            addresses: Known::observe(tables.addresses())?,
            remotes: Known::observe(tables.remotes())?,
            numbered: services::numbered(&frontends),
            frontends,
            balancers: Known::observe(tables.balancers())?,
            members: Known::observe(tables.members())?,
            rings: Known::observe(tables.rings())?,
            backends: Known::observe(tables.backends())?,
            sources: Known::observe(tables.sources())?,
            peers: Known::observe(tables.peers())?,
            classes: Known::observe(tables.classes())?,
            lists: Known::observe(tables.lists())?,
            rules: Known::observe(tables.rules())?,
            blocks: Known::observe(tables.blocks())?,
            digests: Known::observe(tables.digests())?,
            fresh: true,
        })
    }
}

impl Pass<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let patch = self.patch;
        self.begin_changes();
        self.put_config(patch.config)?;
        let policy = policy::Change::plan(self.observed, patch);
        self.close_ports(&policy)?;
        self.put_hosts()?;
        self.put_node_devices()?;
        self.put_remotes(&patch.remotes)?;
        let waiting = self.put_sources();
        self.put_services()?;
        self.take_sources(&waiting);
        self.make_room_for_lists();
        self.put_policy(&policy)?;
        self.put_places()?;
        self.remove_old_lists();
        self.move_changed()?;
        self.publish()?;
        self.end_changes();
        self.remove_old_sets();
        self.observed.fresh = false;
        Ok(())
    }

    fn put_config(&mut self, config: Option<Config>) -> Result<(), Error> {
        if let Some(config) = config.filter(|config| self.observed.config != *config) {
            self.tables.config().set(0, &config)?;
            self.observed.config = config;
            self.summary.written += 1;
        }
        Ok(())
    }

    /// The host's addresses that come, before the devices that workloads are masqueraded by: whatever a device has in its pools is the
    /// host's. Those that go are taken last, with all places.
    fn put_hosts(&mut self) -> Result<(), Error> {
        let hosts = self.patch.addresses.iter().map(|(address, owner)| (*address, owner.filter(Owner::is_host)));
        let hosts = hosts.filter(|(_, owner)| owner.is_some()).collect();
        let failed = self.observed.addresses.put_all(self.tables.addresses(), &hosts, &mut self.summary);
        failed.tell("addresses of the host", "nothing is masqueraded with them", &mut self.summary);
        self.close_any_pod(self.are_workloads(&failed.keys))
    }

    fn put_node_devices(&mut self) -> Result<(), Error> {
        let (table, known, summary) = (self.tables.devices(), &mut self.observed.devices, &mut self.summary);
        let failed = known.put_all(table, &self.patch.devices, summary);
        failed.tell("devices of the node", "nothing leaves by them", summary);
        for ifindex in failed.keys {
            // With its old pools something could leave with an address that the node has no more.
            known.take(table, ifindex, summary)?;
        }
        let failed = known.take_gone(table, &self.patch.devices, summary);
        failed.tell("old devices of the node", "they are still there", summary);
        Ok(())
    }

    fn put_remotes(&mut self, wanted: &Changes<CidrKey, Remote>) -> Result<(), Error> {
        let (table, known, summary) = (self.tables.remotes(), &mut self.observed.remotes, &mut self.summary);
        let put = known.put_all(table, wanted, summary);
        put.tell("routes to pods or Services", "what they lead to is not reached", summary);
        let gone = known.take_gone(table, wanted, summary);
        gone.tell("old routes", "they are still there", summary);
        self.close_any_pod(!put.keys.is_empty() || !gone.keys.is_empty())
    }

    /// Lists that know any pod tell a pod by where its address lies (`ADDRESSES`, `REMOTES`). Where one stands that should be another or
    /// gone, they could take another's address for a pod's, and are closed.
    fn close_any_pod(&mut self, is_stale: bool) -> Result<(), Error> {
        if is_stale { self.close_lists_of(&[weft_abi::part::ANY_POD].into()) } else { Ok(()) }
    }

    /// Whether one of these addresses is a workload's in the map.
    fn are_workloads(&self, addresses: &[AddressKey]) -> bool {
        let is_workload = |address| self.observed.addresses.0.get(address).is_some_and(Owner::is_workload);
        addresses.iter().any(is_workload)
    }

    /// A port before the addresses that lead to it; removals in reverse. Addresses that go before ports have other lists, which may
    /// know them as any pod's.
    fn put_places(&mut self) -> Result<(), Error> {
        let (table, summary) = (self.tables.addresses(), &mut self.summary);
        let failed = self.observed.addresses.take_gone(table, &self.patch.addresses, summary);
        failed.tell("old addresses of this node", "they are still there", summary);
        self.close_any_pod(self.are_workloads(&failed.keys))?;
        let wanted = self.settled_ports();
        let failed = self.observed.ports.put_all(self.tables.ports(), &wanted, &mut self.summary);
        failed.tell("ports of workloads", "they are closed", &mut self.summary);
        for ifindex in &failed.keys {
            wanted[ifindex].into_iter().for_each(|port| self.unsettle(port.workload));
            self.remove_port(*ifindex)?;
        }
        let Observed { ports, addresses, .. } = &mut *self.observed;
        let summary = &mut self.summary;
        let leads = |owner: &Owner| !owner.is_workload() || ports.0.contains_key(&owner.ifindex);
        let coming = self.patch.addresses.iter().filter_map(|(address, owner)| Some((*address, (*owner)?)));
        let places = coming.map(|(address, owner)| (address, Some(owner).filter(leads))).collect();
        let failed = addresses.put_all(self.tables.addresses(), &places, summary);
        failed.tell("addresses of this node", "they are not reached", summary);
        let failed = addresses.take_gone(self.tables.addresses(), &places, summary);
        failed.tell("old addresses of this node", "they are still there", summary);
        let mut gone = wanted;
        gone.retain(|_, port| port.is_none());
        if !gone.is_empty() {
            let led_to: BTreeSet<u32> = addresses.0.values().map(|owner| owner.ifindex).collect();
            gone.retain(|ifindex, _| !led_to.contains(ifindex));
        }
        ports.take_gone(self.tables.ports(), &gone, summary).tell("old ports", "they are still there", summary);
        Ok(())
    }

    /// A port without an entry is closed: better than one with its old policies.
    fn remove_port(&mut self, ifindex: u32) -> Result<(), Error> {
        let Observed { ports, addresses, .. } = &mut *self.observed;
        let leading: Vec<AddressKey> =
            addresses.0.iter().filter(|(_, owner)| owner.ifindex == ifindex).map(|(address, _)| *address).collect();
        for address in leading {
            addresses.take(self.tables.addresses(), address, &mut self.summary)?;
        }
        ports.take(self.tables.ports(), ifindex, &mut self.summary)
    }

    /// The ports of the patch; those of which a list is not as it should be are closed.
    fn settled_ports(&mut self) -> Changes<u32, Port> {
        let mut ports = self.patch.ports.clone();
        ports.extend(std::mem::take(&mut self.reopened).into_iter().map(|(ifindex, port)| (ifindex, Some(port))));
        for port in ports.values_mut().flatten() {
            let closed = self.closed(*port);
            if closed != *port {
                self.unsettle(port.workload);
                *port = closed;
            }
        }
        ports
    }

    /// The slot's generation goes to its next value. No flow stands under one that there is not: a number that only a damaged map
    /// has.
    fn move_next(&mut self, slot: u32) -> Result<(), Error> {
        if slot >= generation::SLOTS {
            return Ok(());
        }
        let value = self.tables.generations().get(slot)?.wrapping_add(1);
        self.moved.slots.insert(slot, value);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Error> {
        self.forget_backends()?;
        let moved = &self.moved;
        let count = moved.slots.len() + moved.services.len();
        if count == 0 && !(self.observed.fresh && is_half_published(self.tables)?) {
            return Ok(());
        }
        publish(self.tables, moved)?;
        self.summary.generations += count;
        self.moved = Moved::default();
        Ok(())
    }
}
