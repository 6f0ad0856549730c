// SPDX-License-Identifier: Apache-2.0
//! A port's life, from the reservation of its addresses until they are free again. Pure: a [`Life`] takes an [`Event`] and gives
//! its next state, the answers that are due, and a script of [`Effect`]s. No I/O and no clock: what was observed and what time
//! it is comes with the events.
//!
//! | State | On disk | In the plan | Its link |
//! |---|---|---|---|
//! | gone | no record | no | none |
//! | reserved | a record without a link | no | not announced yet |
//! | linked | as before | no | announced, untouched; waits for its pod |
//! | known | the record with the link, once programs are attached | yes | down, until its entry is written |
//! | served | as before | yes | up |
//! | lost | as before | no | gone, and the port is asked for again |
//! | leaving | as before, until the very last | no | goes |
//!
//! Whoever carries a script out runs it in order up to the first effect that fails, tells what came of it
//! ([`Event::Did`], [`Event::Reserved`], [`Event::Passed`]), and gives the port no other event before that, but where the
//! script ends in a [`Effect::Pass`]: more may happen until the pass that all ports of a turn share.

mod steps;
#[cfg(test)]
mod tests;

use tokio::time::Instant;
use weft_api::{ApiError, PortLink};

/// Who asked: a number, answered exactly once by each port that was asked under it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ask(pub u64);

/// Where a port is in its life.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Life {
    /// Nobody knows it.
    #[default]
    Gone,
    /// It has addresses and a name.
    Reserved,
    /// Its link was announced, and waits for its pod.
    Linked {
        /// The link.
        link: PortLink,
        /// How long it waits.
        until: Instant,
        /// Who waits with it.
        asks: Vec<Ask>,
    },
    /// Its pod is known, or was waited for in vain: it becomes whole.
    Known {
        /// Its link.
        link: PortLink,
        /// How far it is.
        stage: Stage,
        /// Who waits for it to be served.
        asks: Vec<Ask>,
    },
    /// Packets pass.
    Served {
        /// Its link.
        link: PortLink,
    },
    /// What its link has left behind is being taken out; then its addresses may be reserved again.
    Lost {
        /// The link that is gone.
        link: PortLink,
        /// Who asked for it again; none at a start.
        ask: Option<Ask>,
    },
    /// It goes, and cannot be asked for.
    Leaving {
        /// Its link, where it was in the plan.
        link: Option<PortLink>,
        /// How far it is.
        stage: Farewell,
        /// Who waits for it to be gone.
        asks: Vec<Ask>,
    },
}

/// How far a port is that is not served yet, or no more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Whether it has programs is not known, or it cannot have them: the next look at the node tries.
    Closed,
    /// A script gives it its programs.
    Arming {
        /// Its record has the link.
        noted: bool,
        /// It has its entry.
        entry: bool,
    },
    /// It has its programs and waits for its entry: for the next pass that gives it one.
    Armed,
    /// It has both; a script brings it up.
    Opening,
}

/// How far a port is that leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Farewell {
    /// It waits for the pass that takes its entries out.
    Withdrawing,
    /// A script removes what is left of it.
    Removing,
    /// Something could not be removed, and whoever asked has the error: the next release, or look, tries again.
    Stuck,
}

/// What happens to a port.
#[derive(Clone, Debug)]
pub enum Event {
    /// At a start: the record of an earlier run.
    Found {
        /// Its link, if it had one.
        link: Option<PortLink>,
        /// The link is there.
        is_there: bool,
        /// Somebody may ask for its release: its network namespace is there, or it never had one.
        is_wanted: bool,
    },
    /// Addresses are asked for.
    Allocate {
        /// Who asked.
        ask: Ask,
        /// The link of [`Life::link`] is there.
        is_there: bool,
    },
    /// What came of [`Effect::Reserve`].
    Reserved {
        /// Who asked for it.
        ask: Ask,
        /// What came of it.
        result: Result<(), ApiError>,
    },
    /// Its link was made, and it is to be served.
    Attach {
        /// Who asked for it.
        ask: Ask,
        /// The link.
        link: PortLink,
        /// How long to wait for its pod.
        until: Instant,
    },
    /// There is nothing to wait for: its pod is known, or nobody will tell of it.
    PodKnown,
    /// It is that late.
    Waited {
        /// The time.
        now: Instant,
    },
    /// A look at the node.
    Looked(Seen),
    /// A pass has ended: whether the port has an entry; or it broke off, and what was written nobody knows.
    Passed(Result<bool, ApiError>),
    /// It is to go.
    Release {
        /// Who asked for it.
        ask: Ask,
    },
    /// What came of a script that does not end in a pass.
    Did(Result<(), ApiError>),
}

/// A port, as the node has it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Its link is there.
    pub is_there: bool,
    /// Its programs are attached, or those of another version.
    pub programs: bool,
    /// It has its entry, or those of another version have theirs. Looked for only where it is not served, or has lost its
    /// programs.
    pub entry: bool,
    /// Its settings are right, and it is up.
    pub right: bool,
}

/// One thing to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Reserves the addresses that were asked for; answered by [`Event::Reserved`].
    Reserve(Ask),
    /// Takes the link down, if it is there.
    Close(PortLink),
    /// Gives the link, which is down, its settings and programs.
    Arm(PortLink),
    /// Sees to it that its device runs, where it has one.
    StartDevice(PortLink),
    /// Writes the link into the record, or takes it out.
    Note(Option<PortLink>),
    /// One pass over the maps for all who want one; always the last of a script.
    Pass,
    /// Brings the link up.
    Open(PortLink),
    /// Sees to it that its guest is answered, where it has one.
    ServeGuest,
    /// Puts the settings of a served link right, and brings it up.
    Mend(PortLink),
    /// Its guest is answered no more, and its device begins to end. Cannot fail.
    StopServing,
    /// Waits until its device has ended. Cannot fail: in the end it is killed.
    AwaitDevice,
    /// Takes its entries out of the maps without a plan.
    RemoveEntries(PortLink),
    /// Removes the link that has its name, and the programs of the one that it had.
    RemoveLink(Option<PortLink>),
    /// Forgets its flows: one sweep for all who want one.
    ForgetFlows(PortLink),
    /// Removes the record: its addresses are free.
    Free,
}

/// Why it cannot be as it was asked.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// Nobody knows it, or it was released meanwhile.
    Unknown,
    /// It has a link already.
    InUse,
    /// It is being released.
    Leaving,
    /// It was asked for anew meanwhile.
    Superseded,
    /// Something else is being done with it.
    Busy,
    /// The pass gave it no entry.
    NoEntry,
    /// An effect failed.
    Failed(ApiError),
}

/// What came of an ask.
pub type Verdict = Result<(), Refusal>;

/// What follows from an event.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The next state.
    pub life: Life,
    /// Answers that are due.
    pub answers: Vec<(Ask, Verdict)>,
    /// What is to be done now, in this order; nothing: no [`Event::Did`] is waited for.
    pub script: Vec<Effect>,
}

impl Life {
    /// Its link, where its record has one or may have one.
    #[must_use]
    pub const fn link(&self) -> Option<&PortLink> {
        match self {
            Self::Known { link, .. } | Self::Served { link } | Self::Lost { link, .. } => Some(link),
            Self::Leaving { link, .. } => link.as_ref(),
            Self::Gone | Self::Reserved | Self::Linked { .. } => None,
        }
    }

    /// Until when it waits for its pod; none: it does not.
    #[must_use]
    pub const fn waits_until(&self) -> Option<Instant> {
        match self {
            Self::Linked { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// It belongs into the plan.
    #[must_use]
    pub const fn is_planned(&self) -> bool {
        matches!(self, Self::Known { .. } | Self::Served { .. })
    }

    /// Something of it could not be removed.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        matches!(self, Self::Leaving { stage: Farewell::Stuck, .. })
    }

    /// It wants to know what a pass brought it.
    #[must_use]
    pub const fn awaits_pass(&self) -> bool {
        matches!(self, Self::Known { stage: Stage::Armed, .. } | Self::Leaving { stage: Farewell::Withdrawing, .. })
    }

    /// What follows from `event`.
    #[must_use]
    pub fn step(self, event: Event) -> Step {
        match event {
            Event::Found { link, is_there, is_wanted } => self.found(link, is_there, is_wanted),
            Event::Allocate { ask, is_there } => self.allocate(ask, is_there),
            Event::Reserved { ask, result } => self.reserved(ask, result),
            Event::Attach { ask, link, until } => self.attach(ask, link, until),
            Event::PodKnown => self.arm(),
            Event::Waited { now } if self.waits_until().is_some_and(|until| until <= now) => self.arm(),
            Event::Waited { .. } => self.stays(),
            Event::Looked(seen) => self.looked(seen),
            Event::Passed(entry) => self.passed(entry),
            Event::Release { ask } => self.release(ask),
            Event::Did(result) => self.did(result),
        }
    }
}
