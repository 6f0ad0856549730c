// SPDX-License-Identifier: Apache-2.0
//! What follows from each event, in each state.

use tokio::time::Instant;
use weft_api::{ApiError, PortLink};

use super::{Ask, Effect, Farewell, Life, Refusal, Seen, Stage, Step, Verdict};

impl Life {
    pub(super) fn found(self, link: Option<PortLink>, is_there: bool, is_wanted: bool) -> Step {
        match (self, link) {
            // At once, so that nobody ends the device of an earlier run; the look that follows tells of its programs.
            (Self::Gone, Some(link)) if is_there => {
                let script = [Effect::StartDevice(link.clone())];
                known(link, Stage::Closed, Vec::new()).does(script)
            }
            (Self::Gone, Some(link)) if is_wanted => lose(link, None),
            (Self::Gone, None) if is_wanted => Self::Reserved.stays(),
            (Self::Gone, link) => remove(link, Vec::new(), Entries::MayStand),
            (life, _) => life.stays(),
        }
    }

    pub(super) fn allocate(self, ask: Ask, is_there: bool) -> Step {
        match self {
            life if life.is_busy() => life.answers(ask, Err(Refusal::Busy)),
            Self::Leaving { .. } => self.answers(ask, Err(Refusal::Leaving)),
            Self::Known { .. } | Self::Served { .. } if is_there => self.answers(ask, Err(Refusal::InUse)),
            Self::Known { link, asks, .. } => lose(link, Some(ask)).and_all(asks, &Err(Refusal::Superseded)),
            Self::Served { link } => lose(link, Some(ask)),
            life => life.does([Effect::Reserve(ask)]),
        }
    }

    pub(super) fn reserved(self, ask: Ask, result: Result<(), ApiError>) -> Step {
        let life = if self == Self::Gone && result.is_ok() { Self::Reserved } else { self };
        life.answers(ask, result.map_err(Refusal::Failed))
    }

    pub(super) fn attach(self, ask: Ask, link: PortLink, until: Instant) -> Step {
        match self {
            life if life.is_busy() => life.answers(ask, Err(Refusal::Busy)),
            Self::Gone | Self::Lost { .. } | Self::Leaving { .. } => self.answers(ask, Err(Refusal::Unknown)),
            Self::Reserved => linked(link, until, vec![ask]),
            Self::Linked { link: announced, until, asks } if announced == link => linked(link, until, and(asks, ask)),
            Self::Linked { asks, .. } => linked(link, until, vec![ask]).and_all(asks, &Err(Refusal::Superseded)),
            // It was not asked for again, so that its own is there still.
            Self::Known { link: ref has, .. } | Self::Served { link: ref has } if *has != link => {
                self.answers(ask, Err(Refusal::InUse))
            }
            Self::Known { stage, asks, .. } if !asks.is_empty() => known(link, stage, and(asks, ask)).stays(),
            Self::Known { .. } | Self::Served { .. } => arm_again(link, false, vec![ask]),
        }
    }

    /// The wait for its pod is over.
    pub(super) fn arm(self) -> Step {
        let Self::Linked { link, asks, .. } = self else { return self.stays() };
        let mut script = arming(&link);
        script.push(Effect::Note(Some(link.clone())));
        known(link, Stage::Arming { noted: false, entry: false }, asks).does(script)
    }

    pub(super) fn looked(self, seen: Seen) -> Step {
        let Seen { is_there, programs, entry, right } = seen;
        match self {
            // Nobody may ask for it any more: a container that is gone has no DEL.
            Self::Leaving { link, stage: Farewell::Stuck, .. } => remove(link, Vec::new(), Entries::MayStand),
            life if !is_there || life.is_busy() => life.stays(),
            Self::Known { link, asks, .. } if !programs => arm_again(link, entry && asks.is_empty(), asks),
            Self::Served { link } if !programs => arm_again(link, entry, Vec::new()),
            // Its pass is to come.
            life if life.is_asked() => life.stays(),
            Self::Known { link, stage: Stage::Closed, asks } => {
                let script = [Effect::StartDevice(link.clone())];
                known(link, Stage::Arming { noted: true, entry }, asks).does(script)
            }
            Self::Known { link, asks, .. } if entry => open(link, asks),
            Self::Served { link } if !right => Self::Served { link: link.clone() }.does([Effect::Mend(link)]),
            life => life.stays(),
        }
    }

    pub(super) fn passed(self, entry: Result<bool, ApiError>) -> Step {
        match (self, entry) {
            (Self::Known { link, stage: Stage::Armed, asks }, Ok(true)) => open(link, asks),
            (Self::Known { link, stage: Stage::Armed, asks }, entry) => {
                let why = entry.map_or_else(Refusal::Failed, |_| Refusal::NoEntry);
                known(link, Stage::Armed, Vec::new()).stays().and_all(asks, &Err(why))
            }
            (Self::Leaving { link, stage: Farewell::Withdrawing, asks }, Ok(false)) => {
                remove(link, asks, Entries::AreOut)
            }
            // A release never waits for others' objects.
            (Self::Leaving { link, stage: Farewell::Withdrawing, asks }, _) => remove(link, asks, Entries::MayStand),
            (life, _) => life.stays(),
        }
    }

    pub(super) fn release(self, ask: Ask) -> Step {
        match self {
            life if life.is_busy() => life.answers(ask, Err(Refusal::Busy)),
            Self::Gone | Self::Reserved => remove(None, vec![ask], Entries::AreOut),
            // Its Attach must not come after it.
            Self::Linked { asks, .. } => remove(None, vec![ask], Entries::AreOut).and_all(asks, &Err(Refusal::Unknown)),
            Self::Known { link, asks, .. } => withdraw(link, ask).and_all(asks, &Err(Refusal::Unknown)),
            Self::Served { link } | Self::Leaving { link: Some(link), stage: Farewell::Stuck, .. } => {
                withdraw(link, ask)
            }
            Self::Leaving { link, stage: Farewell::Withdrawing, asks } => {
                leaving(link, Farewell::Withdrawing, and(asks, ask)).stays()
            }
            Self::Leaving { .. } | Self::Lost { .. } => remove(None, vec![ask], Entries::AreOut),
        }
    }

    pub(super) fn did(self, result: Result<(), ApiError>) -> Step {
        match (self, result) {
            (Self::Known { link, stage: Stage::Arming { noted, entry }, asks }, Ok(())) => match (noted, entry) {
                (true, true) => open(link, asks),
                (true, false) if asks.is_empty() => known(link, Stage::Armed, asks).stays(),
                _ => known(link, Stage::Armed, asks).does([Effect::Pass]),
            },
            (Self::Known { stage: Stage::Arming { noted: false, .. }, asks, .. }, Err(error)) => {
                Self::Reserved.stays().and_all(asks, &Err(Refusal::Failed(error)))
            }
            (Self::Known { link, stage: Stage::Arming { .. }, asks }, Err(error)) => {
                known(link, Stage::Closed, Vec::new()).stays().and_all(asks, &Err(Refusal::Failed(error)))
            }
            (Self::Known { link, stage: Stage::Opening, asks }, Ok(())) => {
                Self::Served { link }.stays().and_all(asks, &Ok(()))
            }
            (Self::Known { link, stage: Stage::Opening, asks }, Err(error)) => {
                known(link, Stage::Armed, Vec::new()).stays().and_all(asks, &Err(Refusal::Failed(error)))
            }
            (Self::Lost { ask, .. }, Ok(())) => Self::Reserved.does(ask.map(Effect::Reserve)),
            (Self::Lost { link, ask }, Err(error)) => {
                known(link, Stage::Closed, Vec::new()).stays().and_all(ask, &Err(Refusal::Failed(error)))
            }
            (Self::Leaving { stage: Farewell::Removing, asks, .. }, Ok(())) => {
                Self::Gone.stays().and_all(asks, &Ok(()))
            }
            (Self::Leaving { link, stage: Farewell::Removing, asks }, Err(error)) => {
                leaving(link, Farewell::Stuck, Vec::new()).stays().and_all(asks, &Err(Refusal::Failed(error)))
            }
            (life, _) => life.stays(),
        }
    }

    /// A script runs whose end changes what it is.
    const fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Known { stage: Stage::Arming { .. } | Stage::Opening, .. }
                | Self::Lost { .. }
                | Self::Leaving { stage: Farewell::Removing, .. }
        )
    }

    /// Somebody waits for the next pass.
    const fn is_asked(&self) -> bool {
        matches!(self, Self::Known { asks, .. } if !asks.is_empty())
    }

    pub(super) fn stays(self) -> Step {
        Step { life: self, ..Step::default() }
    }

    fn does(self, script: impl IntoIterator<Item = Effect>) -> Step {
        Step { life: self, answers: Vec::new(), script: script.into_iter().collect() }
    }

    fn answers(self, ask: Ask, verdict: Verdict) -> Step {
        Step { life: self, answers: vec![(ask, verdict)], script: Vec::new() }
    }
}

impl Step {
    /// And all these are answered so.
    fn and_all(mut self, asks: impl IntoIterator<Item = Ask>, verdict: &Verdict) -> Self {
        self.answers.extend(asks.into_iter().map(|ask| (ask, verdict.clone())));
        self
    }
}

/// Whether a port's entries may stand in the maps.
#[derive(Clone, Copy)]
enum Entries {
    AreOut,
    MayStand,
}

fn and(mut asks: Vec<Ask>, ask: Ask) -> Vec<Ask> {
    asks.push(ask);
    asks
}

fn linked(link: PortLink, until: Instant, asks: Vec<Ask>) -> Step {
    Life::Linked { link, until, asks }.stays()
}

const fn known(link: PortLink, stage: Stage, asks: Vec<Ask>) -> Life {
    Life::Known { link, stage, asks }
}

const fn leaving(link: Option<PortLink>, stage: Farewell, asks: Vec<Ask>) -> Life {
    Life::Leaving { link, stage, asks }
}

/// Down first: no packet passes a link that has no programs.
fn arming(link: &PortLink) -> Vec<Effect> {
    vec![Effect::Close(link.clone()), Effect::Arm(link.clone()), Effect::StartDevice(link.clone())]
}

fn arm_again(link: PortLink, entry: bool, asks: Vec<Ask>) -> Step {
    let script = arming(&link);
    known(link, Stage::Arming { noted: true, entry }, asks).does(script)
}

fn open(link: PortLink, asks: Vec<Ask>) -> Step {
    let script = [Effect::Open(link.clone()), Effect::ServeGuest];
    known(link, Stage::Opening, asks).does(script)
}

/// Its link is gone: what leads to it goes before its addresses can be another's.
fn lose(link: PortLink, ask: Option<Ask>) -> Step {
    let script = [Effect::StopServing, Effect::AwaitDevice, Effect::RemoveEntries(link.clone()), Effect::Note(None)];
    Life::Lost { link, ask }.does(script)
}

/// Out of the plan; the next pass takes its entries out.
fn withdraw(link: PortLink, ask: Ask) -> Step {
    leaving(Some(link), Farewell::Withdrawing, vec![ask]).does([Effect::StopServing, Effect::Pass])
}

/// Everything that is left, and at the very last the addresses.
fn remove(link: Option<PortLink>, asks: Vec<Ask>, entries: Entries) -> Step {
    let mut script = vec![Effect::AwaitDevice];
    if let (Some(link), Entries::MayStand) = (&link, entries) {
        script.push(Effect::RemoveEntries(link.clone()));
    }
    script.push(Effect::RemoveLink(link.clone()));
    script.extend(link.clone().map(Effect::ForgetFlows));
    script.push(Effect::Free);
    leaving(link, Farewell::Removing, asks).does(script)
}
