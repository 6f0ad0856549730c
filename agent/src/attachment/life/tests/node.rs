// SPDX-License-Identifier: Apache-2.0
//! A port in its world, all that can happen there, and what must hold after each of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    time::Duration,
};

use tokio::time::Instant;
use weft_api::ApiError;

use super::{
    super::{Ask, Effect, Event, Farewell, Life, Seen, Stage, Step},
    world::{Asked, Link, World, failure, index, link},
};

/// A port and its world, between two events.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Node {
    pub(super) life: Life,
    world: World,
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (name(&self.life), asks(&self.life)).hash(state);
        self.world.hash(state);
    }
}

/// What happens between two quiet moments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    Allocate,
    /// With this link, which the plugin has made or not.
    Attach(usize, bool),
    PodKnown,
    Waited(bool),
    Look,
    /// It does everything or nothing of what it should for this port, and ends well or not.
    Pass(bool, bool),
    Release,
    LinkGoes,
    ProgramsGo,
    /// A pass could not write it any more, or somebody has removed it: its programs let nothing through.
    EntryGoes,
    IsTakenDown,
    /// With the maps or without, and somebody may ask for the release or not.
    Restart(bool, bool),
}

pub(super) const HAPPENINGS: [Happening; 22] = [
    Happening::Allocate,
    Happening::Attach(0, true),
    Happening::Attach(0, false),
    Happening::Attach(1, true),
    Happening::Attach(1, false),
    Happening::PodKnown,
    Happening::Waited(false),
    Happening::Waited(true),
    Happening::Look,
    Happening::Pass(true, true),
    Happening::Pass(true, false),
    Happening::Pass(false, true),
    Happening::Pass(false, false),
    Happening::Release,
    Happening::LinkGoes,
    Happening::ProgramsGo,
    Happening::EntryGoes,
    Happening::IsTakenDown,
    Happening::Restart(true, true),
    Happening::Restart(true, false),
    Happening::Restart(false, true),
    Happening::Restart(false, false),
];

impl Node {
    /// Before everything.
    pub(super) fn first() -> Self {
        Self { life: Life::Gone, world: World::default() }
    }

    /// All that can come of an event, each effect of its scripts failing in turn (all: with `fails`).
    fn play(mut self, event: Event, fails: bool, ends: &mut Vec<Self>) {
        let Step { life, answers, script } = std::mem::take(&mut self.life).step(event);
        self.life = life;
        for (ask, verdict) in answers {
            self.world.answered(ask, verdict.is_ok());
        }
        assert!(!script.iter().rev().skip(1).any(|effect| *effect == Effect::Pass), "a pass in a script's midst");
        if script.is_empty() {
            return ends.push(self);
        }
        for effect in &script {
            if fails && !matches!(effect, Effect::Pass | Effect::StopServing | Effect::AwaitDevice) {
                let mut failed = self.clone();
                failed.world.failed = true;
                failed.play(feedback(effect, Err(failure())), fails, ends);
            }
            let result = self.world.perform(effect);
            let is_last = script.last() == Some(effect);
            match result {
                Ok(()) if *effect == Effect::Pass => return ends.push(self),
                Ok(()) if !is_last => {}
                result => return self.play(feedback(effect, result), fails, ends),
            }
        }
    }

    /// All that can come of what happens; nothing: it cannot happen here.
    pub(super) fn after(&self, happening: Happening, fails: bool) -> Vec<Self> {
        let _trace = Trace(self, happening);
        let mut node = self.clone();
        let mut ends = Vec::new();
        match happening {
            Happening::Look => {
                for mut end in node.looked(fails) {
                    let is_open = |link: &Link| link.up && !link.programs;
                    let own = self.life.link().map(|link| end.world.links[index(link)]);
                    assert!(fails || !own.is_some_and(|own| is_open(&own)), "a look has left it open: {end:?}");
                    // What fails, fails; and nobody has asked for a link that was not told.
                    end.world.harmed = end.world.links.iter().any(is_open);
                    ends.push(end);
                }
            }
            Happening::Restart(keeps_maps, is_wanted) => {
                node.restart(keeps_maps);
                let Some(link) = node.world.record else { return vec![node] };
                let is_there = link.is_some_and(|link| node.world.links[link].exists);
                let found = Event::Found { link: link.map(self::link), is_there, is_wanted: is_wanted || is_there };
                node.play(found, fails, &mut ends);
            }
            _ => match node.event(happening) {
                Some(event) => node.play(event, fails, &mut ends),
                None => ends.push(node),
            },
        }
        ends.iter().for_each(Self::check);
        ends
    }

    /// What happens, for the world; and the event of it.
    fn event(&mut self, happening: Happening) -> Option<Event> {
        let world = &mut self.world;
        match happening {
            Happening::Allocate => {
                let is_there = self.life.link().is_some_and(|link| world.links[index(link)].exists);
                Some(Event::Allocate { ask: world.asks(Asked::Allocate)?, is_there })
            }
            Happening::Attach(index, is_made) => {
                let ask = world.asks(Asked::Attach)?;
                // Links have names: there is one at a time. An older plugin brings it up at once.
                if is_made && world.links.iter().all(|link| !link.exists) {
                    world.links[index] = Link { exists: true, up: true, ..world.links[index] };
                    world.harmed = true;
                }
                Some(Event::Attach { ask, link: link(index), until: deadline() })
            }
            Happening::PodKnown => Some(Event::PodKnown),
            Happening::Waited(long) => {
                let late = Duration::from_secs(u64::from(long));
                Some(Event::Waited { now: deadline() + late - Duration::from_millis(500) })
            }
            Happening::Pass(does, ends_well) => self.pass(does, ends_well),
            Happening::Release => Some(Event::Release { ask: world.asks(Asked::Release)? }),
            Happening::LinkGoes => {
                for link in &mut world.links {
                    link.goes();
                }
                None
            }
            Happening::ProgramsGo => {
                world.links.iter_mut().for_each(|link| link.programs = false);
                world.harmed = true;
                None
            }
            Happening::EntryGoes => {
                world.links.iter_mut().for_each(|link| link.entry = false);
                None
            }
            Happening::IsTakenDown => {
                world.links.iter_mut().for_each(|link| link.up = false);
                None
            }
            Happening::Look | Happening::Restart(..) => None,
        }
    }

    fn pass(&mut self, does: bool, ends_well: bool) -> Option<Event> {
        let planned = self.life.link().filter(|_| self.life.is_planned()).map(index);
        if does {
            for (index, link) in self.world.links.iter_mut().enumerate() {
                link.entry = planned == Some(index);
            }
        }
        self.world.pass = false;
        let link = self.life.link().filter(|_| self.life.awaits_pass())?;
        let entry = self.world.links[index(link)].entry;
        Some(Event::Passed(if ends_well { Ok(entry) } else { Err(failure()) }))
    }

    fn looked(&self, fails: bool) -> Vec<Self> {
        let mut ends = Vec::new();
        if self.life.is_stuck() {
            self.clone().play(Event::Looked(Seen::default()), fails, &mut ends);
            return ends;
        }
        let Some(link) = self.life.link() else { return vec![self.clone()] };
        let Link { exists, up, programs, entry, .. } = self.world.links[index(link)];
        let seen = Seen { is_there: exists, programs, entry, right: up };
        self.clone().play(Event::Looked(seen), fails, &mut ends);
        ends
    }

    fn restart(&mut self, keeps_maps: bool) {
        self.life = Life::Gone;
        let world = &mut self.world;
        (world.asked, world.pass, world.guest) = (BTreeMap::new(), false, false);
        if !keeps_maps {
            world.links.iter_mut().for_each(|link| (link.entry, link.flows) = (false, false));
        }
    }

    /// What holds between two events.
    fn check(&self) {
        let Self { life, world } = self;
        let asks = asks(life);
        assert_eq!(asks.iter().copied().collect::<BTreeSet<_>>(), world.asked.keys().copied().collect(), "who waits");
        assert_eq!(asks.len(), world.asked.len(), "waits twice");
        for link in &world.links {
            assert!(!link.up || link.programs || world.harmed, "up without programs");
        }
        let expected = match life {
            Life::Gone => None,
            Life::Reserved | Life::Linked { .. } => Some(None),
            Life::Known { link, stage: Stage::Closed | Stage::Armed, .. } | Life::Served { link } => {
                Some(Some(index(link)))
            }
            // What a release has left after a failure.
            Life::Leaving { stage: Farewell::Stuck, .. } => world.record,
            Life::Leaving { link, stage: Farewell::Withdrawing, .. } => Some(link.as_ref().map(index)),
            busy => panic!("a script has ended, and {busy:?} waits for its end"),
        };
        assert_eq!(world.record, expected, "the record");
        if let Life::Served { .. } = life {
            assert!(world.guest && world.device, "served without guest or device");
        }
        // Whoever waits waits for a time, or for a pass that was asked for.
        let will_end = life.waits_until().is_some() || (world.pass && life.awaits_pass());
        assert!(world.asked.is_empty() || will_end, "waits for ever");
    }

    /// A port that can be whole is so after two looks, the first of which may have to arm it.
    fn check_mends(&self, one: impl Fn(&Self, Happening) -> Self) {
        let Some(link) = self.life.link().filter(|_| self.life.is_planned()) else { return };
        let Link { exists, entry, .. } = self.world.links[index(link)];
        let looked = one(&one(self, Happening::Look), Happening::Look);
        let is_whole = matches!(&looked.life, Life::Served { .. }) && looked.world.links[index(link)].up;
        assert!(is_whole || !exists || !entry, "closed for ever: {looked:?}");
    }

    /// Nothing fails any more: what it waits for ends every wait, and a release ends everything.
    pub(super) fn check_ends(&self) {
        let one = |node: &Self, happening| {
            let mut ends = node.after(happening, false);
            assert_eq!(ends.len(), 1, "{happening:?}");
            ends.remove(0)
        };
        if asks(&self.life).is_empty() {
            self.check_mends(one);
        }
        if self.life.is_stuck() {
            assert_eq!(one(self, Happening::Look).life, Life::Gone, "nobody asks for it: {self:?}");
        }
        let waited = one(&one(self, Happening::Waited(true)), Happening::Pass(true, true));
        assert!(waited.world.asked.is_empty(), "still waits: {waited:?}");
        waited.check_mends(one);
        let mut released = one(&waited, Happening::Release);
        if released.world.pass {
            released = one(&released, Happening::Pass(true, true));
        }
        let World { record, links, device, guest, asked, .. } = &released.world;
        assert_eq!(released.life, Life::Gone, "released");
        assert!(record.is_none() && asked.is_empty() && !device && !guest, "released: {released:?}");
        assert!(links.iter().all(|link| !link.exists && !link.entry), "released: {released:?}");
    }
}

fn feedback(effect: &Effect, result: Result<(), ApiError>) -> Event {
    match effect {
        Effect::Reserve(ask) => Event::Reserved { ask: *ask, result },
        _ => Event::Did(result),
    }
}

fn asks(life: &Life) -> Vec<u64> {
    match life {
        Life::Linked { asks, .. } | Life::Known { asks, .. } | Life::Leaving { asks, .. } => {
            asks.iter().map(|Ask(ask)| *ask).collect()
        }
        Life::Lost { ask, .. } => ask.iter().map(|Ask(ask)| *ask).collect(),
        Life::Gone | Life::Reserved | Life::Served { .. } => Vec::new(),
    }
}

/// Tells where a check fails.
struct Trace<'a>(&'a Node, Happening);

impl Drop for Trace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?} in {:?}", self.1, self.0);
        }
    }
}

/// The same for all, so that states are the same.
pub(super) fn deadline() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(3)
}

pub(super) fn name(life: &Life) -> &'static str {
    match life {
        Life::Gone => "gone",
        Life::Reserved => "reserved",
        Life::Linked { .. } => "linked",
        Life::Known { stage: Stage::Closed, .. } => "closed",
        Life::Known { stage: Stage::Armed, .. } => "armed",
        Life::Known { .. } => "busy",
        Life::Served { .. } => "served",
        Life::Lost { .. } => "lost",
        Life::Leaving { stage: Farewell::Withdrawing, .. } => "withdrawing",
        Life::Leaving { stage: Farewell::Removing, .. } => "removing",
        Life::Leaving { stage: Farewell::Stuck, .. } => "stuck",
    }
}
