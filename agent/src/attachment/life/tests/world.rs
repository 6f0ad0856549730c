// SPDX-License-Identifier: Apache-2.0
//! A made-up world in which a port lives. Each effect asserts what must be so before it.

use std::collections::BTreeMap;

use weft_api::{ApiError, ErrorCode, PortLink};

use super::super::{Ask, Effect};

/// Askers at a time.
pub(super) const MOST_ASKS: usize = 2;

/// What somebody asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Asked {
    Allocate,
    Attach,
    Release,
}

/// A link with the index of its place in [`World::links`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Link {
    pub(super) exists: bool,
    pub(super) up: bool,
    pub(super) programs: bool,
    /// Its port and addresses are in the maps.
    pub(super) entry: bool,
    /// So are flows that have passed it.
    pub(super) flows: bool,
}

/// What effects change, as far as a port's life is about it.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct World {
    /// The record, and the link in it.
    pub(super) record: Option<Option<usize>>,
    pub(super) links: [Link; 2],
    pub(super) device: bool,
    pub(super) guest: bool,
    /// Others have done what no look has seen yet: a link was made, or has lost its programs.
    pub(super) harmed: bool,
    /// Something has failed since it was served last: what was done may be done again.
    pub(super) failed: bool,
    /// Asked and not answered.
    pub(super) asked: BTreeMap<u64, Asked>,
    /// A script wants a pass.
    pub(super) pass: bool,
}

pub(super) fn link(index: usize) -> PortLink {
    PortLink { ifindex: u32::try_from(index).unwrap(), ifname: "weft0a1b2c3d4e".into() }
}

pub(super) fn index(link: &PortLink) -> usize {
    usize::try_from(link.ifindex).unwrap()
}

pub(super) fn failure() -> ApiError {
    ApiError { code: ErrorCode::Io, message: "refused".into() }
}

impl Link {
    /// What is in the maps stays.
    pub(super) fn goes(&mut self) {
        *self = Self { entry: self.entry, flows: self.flows, ..Self::default() };
    }
}

impl World {
    /// Carries an effect out, and holds it to what must be so before it.
    pub(super) fn perform(&mut self, effect: &Effect) -> Result<(), ApiError> {
        match effect {
            Effect::Reserve(_) => {
                assert!(!matches!(self.record, Some(Some(_))), "reserved what has a link");
                assert!(
                    self.links.iter().all(|link| !link.entry),
                    "addresses are changed while an entry leads to them"
                );
                self.record = Some(None);
            }
            Effect::Close(link) => {
                let link = &mut self.links[index(link)];
                if !link.exists {
                    return Err(failure());
                }
                link.up = false;
            }
            Effect::Arm(link) => {
                let link = &mut self.links[index(link)];
                assert!(!link.up, "programs are attached to a link that is up");
                link.programs = true;
                self.harmed = false;
            }
            Effect::StartDevice(_) => self.device = true,
            Effect::Note(link) => {
                let link = link.as_ref().map(index);
                assert_ne!(self.record, Some(link), "noted twice");
                assert!(link.is_none_or(|link| self.links[link].programs), "noted before it has programs");
                let noted = self.record.flatten().map(|link| self.links[link]);
                assert!(link.is_some() || !noted.is_some_and(|link| link.exists), "taken back while it is there");
                self.record = Some(link);
            }
            Effect::Pass => self.pass = true,
            Effect::Open(link) => {
                let Link { exists, up, programs, entry, .. } = self.links[index(link)];
                if !exists {
                    return Err(failure());
                }
                assert!(programs || self.harmed, "brought up without programs");
                assert!(entry, "brought up without an entry");
                assert!(self.failed || self.harmed || !(up && self.guest), "opened twice");
                (self.links[index(link)].up, self.links[index(link)].flows) = (true, true);
            }
            Effect::ServeGuest => (self.guest, self.failed) = (true, false),
            Effect::Mend(link) => {
                let link = &mut self.links[index(link)];
                assert!(link.programs, "mended without programs");
                link.up = link.exists;
            }
            Effect::StopServing => self.guest = false,
            Effect::AwaitDevice => self.device = false,
            Effect::RemoveEntries(link) => self.links[index(link)].entry = false,
            Effect::RemoveLink(_) => {
                assert!(!self.device && !self.guest, "removed while it is used");
                for link in &mut self.links {
                    link.goes();
                }
            }
            Effect::ForgetFlows(link) => {
                let link = &mut self.links[index(link)];
                assert!(!link.exists && !link.entry, "flows are forgotten while new ones may come");
                link.flows = false;
            }
            Effect::Free => {
                assert!(self.links.iter().all(|link| !link.exists), "addresses are freed while a link is there");
                assert!(self.links.iter().all(|link| !link.entry), "addresses are freed while an entry leads to them");
                let noted = self.record.flatten().map(|link| self.links[link]);
                assert!(noted.is_none_or(|link| !link.flows), "addresses are freed while flows may follow them");
                self.record = None;
            }
        }
        Ok(())
    }

    /// Takes an answer and holds it to what it says.
    pub(super) fn answered(&mut self, Ask(ask): Ask, is_ok: bool) {
        let asked = self.asked.remove(&ask).expect("answered twice, or never asked");
        if is_ok {
            match asked {
                Asked::Allocate => assert!(self.record.is_some()),
                Asked::Release => assert_eq!(self.record, None, "told to be gone"),
                Asked::Attach => {
                    let open = |link: &Link| link.up && link.entry && (link.programs || self.harmed);
                    assert!(self.links.iter().any(open), "told to be served: {self:?}");
                }
            }
        }
    }

    pub(super) fn asks(&mut self, what: Asked) -> Option<Ask> {
        let free = (0..).find(|ask| !self.asked.contains_key(ask)).unwrap();
        (self.asked.len() < MOST_ASKS).then(|| {
            self.asked.insert(free, what);
            Ask(free)
        })
    }
}
