// SPDX-License-Identifier: Apache-2.0
//! The ports of workloads. What becomes of one is decided by its [`Life`]; here is who asks, and what carries it out.
//!
//! | File | What it does |
//! |---|---|
//! | `effects` | one effect each: links, programs, entries, guests, devices, records |
//! | `look` | what ports are on the node; those of an earlier run |
//! | `check` | CNI CHECK |
//!
//! A turn asks ports for what it is asked for, makes one pass for all who want one ([`Ports::want_pass`]), tells them what came
//! of it ([`Ports::passed`]), and sweeps the flow tables once for all who left ([`Ports::forget_flows`]).

mod check;
mod effects;
mod look;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use ipnet::IpNet;
use tokio::{task::block_in_place, time::Instant};
use weft_api::{ApiError, AttachmentId, AttachmentSpec, ErrorCode, PortLink};
use weft_dataplane::{Attachment as Served, Dataplane, Maps, Program};

pub(super) use self::look::Broken;
use super::asks::{Asked, Asks, Garbage, Reply, send};
use crate::{
    apply::flows,
    attachment::{
        Attachments, Pool, in_use,
        life::{Ask, Effect, Event, Life, Refusal, Verdict},
        pending::Pending,
        unknown,
    },
    guest::{self, GuestHandle},
    model::Attachment,
    vhost::Devices,
};

/// What is attached to every workload's port.
const WORKLOAD_PROGRAMS: [Program; 2] = [Program::FromWorkload, Program::ToWorkload];

/// See the module.
pub(super) struct Ports {
    attachments: Attachments,
    lives: BTreeMap<AttachmentId, Life>,
    asks: Asks,
    devices: Devices,
    guests: BTreeMap<AttachmentId, GuestHandle>,
    guest_counters: Arc<guest::Counters>,
    /// Scripts that go on once the flow tables are swept.
    parked: Vec<Parked>,
    /// Ports whose connections were forgotten while programs of another version may still have served.
    forgotten: Option<BTreeSet<u32>>,
    wants_pass: bool,
    /// Entries were taken out of the maps without a plan.
    wrote_maps: bool,
    /// During a look: what programs of other versions are attached to.
    others: Vec<Served>,
}

/// What is left of a script, and whose flows are to be forgotten before.
struct Parked {
    id: AttachmentId,
    ifindex: u32,
    script: VecDeque<Effect>,
}

impl Ports {
    pub(super) fn new(attachments: Attachments, devices: Devices, guest_counters: Arc<guest::Counters>) -> Self {
        Self {
            attachments,
            lives: BTreeMap::new(),
            asks: Asks::default(),
            devices,
            guests: BTreeMap::new(),
            guest_counters,
            parked: Vec::new(),
            forgotten: Some(BTreeSet::new()),
            wants_pass: false,
            wrote_maps: false,
            others: Vec::new(),
        }
    }

    /// All records.
    pub(super) fn records(&self) -> impl Iterator<Item = &Arc<Attachment>> {
        self.attachments.all()
    }

    /// What belongs into the plan, by id.
    pub(super) fn planned(&self) -> Vec<Arc<Attachment>> {
        let planned = |id| self.lives.get(id).is_some_and(Life::is_planned);
        self.records().filter(|record| record.link.is_some() && planned(&record.spec.id)).cloned().collect()
    }

    /// Whether every port that belongs into the plan is served already.
    pub(super) fn are_served(&self) -> bool {
        self.lives.values().filter(|life| life.is_planned()).all(|life| matches!(life, Life::Served { .. }))
    }

    /// Whether an attachment has a link: one that was deleted since has none.
    pub(super) fn has_link(&self, id: &AttachmentId) -> bool {
        self.attachments.get(id).is_some_and(|record| record.link.is_some())
    }

    pub(super) fn pools(&self) -> &[Pool] {
        self.attachments.pools()
    }

    pub(super) fn set_pod_cidrs(&mut self, pod_cidrs: &[IpNet]) {
        self.attachments.set_pod_cidrs(pod_cidrs);
    }

    /// The MTU of workloads that come from now on.
    pub(super) const fn set_mtu(&mut self, mtu: u32) {
        self.attachments.set_mtu(mtu);
    }

    /// What keeps guests from being answered.
    pub(super) fn guest_problems(&self) -> Vec<String> {
        let failed = |(id, guest): (&AttachmentId, &GuestHandle)| {
            Some(format!("DHCP and router advertisements of {id}: {}", guest.problem()?))
        };
        self.guests.iter().filter_map(failed).collect()
    }

    /// Reserves addresses. An attachment whose link has gone may be asked for again.
    pub(super) async fn allocate(&mut self, dataplane: &mut Dataplane, spec: AttachmentSpec, reply: Reply) {
        let id = spec.id.clone();
        let is_there = match self.lives.get(&id).and_then(Life::link) {
            Some(link) => effects::is_there(link).await,
            None => Ok(false),
        };
        match is_there {
            Ok(is_there) => {
                let ask = self.asks.open(Asked::Allocate(spec, reply));
                self.drive(dataplane, &id, Event::Allocate { ask, is_there }).await;
            }
            Err(error) => send(reply, Err(error)),
        }
    }

    /// A link was made for a port; it is served once its pod is known, or was waited for until then.
    pub(super) async fn attach(
        &mut self,
        dataplane: &mut Dataplane,
        id: &AttachmentId,
        link: PortLink,
        until: Instant,
        reply: Reply,
    ) {
        match self.attachments.get(id) {
            Some(record) if record.allocation.host_ifname != link.ifname => {
                send(reply, Err(effects::not_there(id, &link, &record.allocation.host_ifname)));
            }
            _ => {
                let ask = self.asks.open(Asked::Attach(reply));
                self.drive(dataplane, id, Event::Attach { ask, link, until }).await;
            }
        }
    }

    pub(super) async fn release(&mut self, dataplane: &mut Dataplane, id: &AttachmentId, reply: Reply) {
        let ask = self.asks.open(Asked::Del(reply));
        self.drive(dataplane, id, Event::Release { ask }).await;
    }

    /// A release that was recorded while no agent answered.
    pub(super) async fn release_recorded(&mut self, dataplane: &mut Dataplane, pending: Pending) {
        let id = pending.id.clone();
        let ask = self.asks.open(Asked::Record(pending));
        self.drive(dataplane, &id, Event::Release { ask }).await;
    }

    /// Releases every attachment of `network` that is not in `valid`.
    pub(super) async fn collect(
        &mut self,
        dataplane: &mut Dataplane,
        network: &str,
        valid: &[AttachmentId],
        reply: Reply,
    ) {
        let ids = self.attachments.garbage(network, valid);
        let Some(garbage) = Garbage::of(&ids, reply) else { return };
        let ask = self.asks.open(Asked::Gc(garbage));
        for id in ids {
            self.drive(dataplane, &id, Event::Release { ask }).await;
        }
    }

    /// Who waits for its pod, and until when.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&Attachment, Instant)> {
        self.lives.iter().filter_map(|(id, life)| Some((self.attachments.get(id)?, life.waits_until()?)))
    }

    /// These wait no longer, and neither does who has waited for long enough.
    pub(super) async fn end_waits(&mut self, dataplane: &mut Dataplane, known: &[AttachmentId], now: Instant) {
        for id in known {
            self.drive(dataplane, id, Event::PodKnown).await;
        }
        let waiting: Vec<AttachmentId> = self.waiting().map(|(record, _)| record.spec.id.clone()).collect();
        for id in waiting {
            self.drive(dataplane, &id, Event::Waited { now }).await;
        }
    }

    /// Whether a port wants a pass since this was asked last.
    pub(super) fn want_pass(&mut self) -> bool {
        std::mem::take(&mut self.wants_pass)
    }

    /// Whether entries were taken out of the maps without a plan since this was asked last.
    pub(super) fn wrote_maps(&mut self) -> bool {
        std::mem::take(&mut self.wrote_maps)
    }

    /// A pass has ended: whoever waits for its entry, or for having none any more, goes on.
    pub(super) async fn passed(&mut self, dataplane: &mut Dataplane, outcome: &Result<(), ApiError>) {
        let waiting = self.lives.iter().filter(|(_, life)| life.awaits_pass());
        let waiting: Vec<_> = waiting.filter_map(|(id, life)| Some((id.clone(), life.link()?.clone()))).collect();
        for (id, link) in waiting {
            let entry = outcome.clone().and_then(|()| effects::has_entry(dataplane.maps(), &link));
            self.drive(dataplane, &id, Event::Passed(entry)).await;
        }
    }

    /// One sweep of the flow tables for all ports that left, after which their addresses are free.
    pub(super) async fn forget_flows(&mut self, dataplane: &mut Dataplane) {
        while !self.parked.is_empty() {
            let parked = std::mem::take(&mut self.parked);
            let ports: BTreeSet<u32> = parked.iter().map(|parked| parked.ifindex).collect();
            if let Some(forgotten) = &mut self.forgotten {
                forgotten.extend(&ports);
            }
            let swept = block_in_place(|| flows::forget_ports(dataplane.maps(), &ports)).map_err(effects::refused);
            for Parked { id, script, .. } in parked {
                let removed = match &swept {
                    Ok(_) => self.play(dataplane, &id, script).await,
                    Err(error) => self.try_drive(dataplane, &id, Event::Did(Err(error.clone()))).await,
                };
                if let Err(error) = removed {
                    tracing::warn!(%id, %error, "cannot remove what is left of a port");
                }
            }
        }
    }

    /// Connections of another version have come along, those of ports that left meanwhile too: their addresses are free.
    pub(super) fn forget_again(&mut self, maps: &Maps) -> Result<(), weft_dataplane::Error> {
        let forgotten = self.forgotten.take().unwrap_or_default();
        block_in_place(|| flows::forget_ports(maps, &forgotten)).map(drop)
    }

    /// As [`Ports::try_drive`], where whoever asked is told of a failure; where nobody did, the next look at the node tries again
    /// and names it.
    async fn drive(&mut self, dataplane: &mut Dataplane, id: &AttachmentId, event: Event) {
        drop(self.try_drive(dataplane, id, event).await);
    }

    /// One event of a port, and everything that follows from it alone: up to a pass or a sweep that it shares with others.
    async fn try_drive(&mut self, dataplane: &mut Dataplane, id: &AttachmentId, event: Event) -> Result<(), ApiError> {
        let script = self.step(id, event);
        self.play(dataplane, id, script).await
    }

    /// Carries a script out, and those that follow from what came of it.
    async fn play(
        &mut self,
        dataplane: &mut Dataplane,
        id: &AttachmentId,
        mut script: VecDeque<Effect>,
    ) -> Result<(), ApiError> {
        let mut outcome = Ok(());
        while !script.is_empty() {
            let Some(event) = self.carry_out(dataplane, id, script).await else { break };
            if let Event::Did(Err(error)) = &event {
                outcome = Err(error.clone());
            }
            script = self.step(id, event);
        }
        outcome
    }

    /// What came of a script; none: it waits for others.
    async fn carry_out(
        &mut self,
        dataplane: &mut Dataplane,
        id: &AttachmentId,
        mut script: VecDeque<Effect>,
    ) -> Option<Event> {
        while let Some(effect) = script.pop_front() {
            match effect {
                Effect::Pass => {
                    self.wants_pass = true;
                    return None;
                }
                Effect::ForgetFlows(link) => {
                    self.parked.push(Parked { id: id.clone(), ifindex: link.ifindex, script });
                    return None;
                }
                Effect::Reserve(ask) => return Some(Event::Reserved { ask, result: self.reserve(id, ask) }),
                effect => {
                    if let Err(error) = self.perform(dataplane, id, effect).await {
                        return Some(Event::Did(Err(error)));
                    }
                }
            }
        }
        Some(Event::Did(Ok(())))
    }

    /// The next state of a port: its answers are given, its script is still to be carried out.
    fn step(&mut self, id: &AttachmentId, event: Event) -> VecDeque<Effect> {
        let step = self.lives.remove(id).unwrap_or_default().step(event);
        if step.life != Life::Gone {
            self.lives.insert(id.clone(), step.life);
        }
        for (ask, verdict) in step.answers {
            self.answer(id, ask, verdict);
        }
        step.script.into()
    }

    fn answer(&mut self, id: &AttachmentId, ask: Ask, verdict: Verdict) {
        let result = verdict.map_err(|refusal| self.explain(id, refusal));
        let allocation = self.attachments.get(id).map(|record| &record.allocation);
        self.asks.answer(ask, result, allocation, self.devices.ready(id));
    }

    fn explain(&self, id: &AttachmentId, refusal: Refusal) -> ApiError {
        let not_now = |why: &str| {
            let message = format!("the attachment {id} {why}; try again");
            ApiError { code: ErrorCode::NotReady, message }
        };
        let link = self.attachments.get(id).and_then(|record| record.link.as_ref());
        match (refusal, link) {
            (Refusal::Failed(error), _) => error,
            (Refusal::Leaving, _) => not_now("is being released"),
            (Refusal::Superseded, _) => not_now("was asked for anew meanwhile"),
            (Refusal::Busy, _) => not_now("is being changed"),
            (Refusal::InUse, Some(link)) => in_use(id, link),
            (Refusal::NoEntry, Some(PortLink { ifname, .. })) => {
                effects::refused(format!("the dataplane has no entry for {ifname}: see problems in `weft status`"))
            }
            (Refusal::Unknown | Refusal::InUse | Refusal::NoEntry, _) => unknown(id),
        }
    }
}
