// SPDX-License-Identifier: Apache-2.0
//! Removes what is planned, one step after the other, whatever became of the one before.

use std::fmt::Display;

use anyhow::Result;

use super::{
    Event, State, kernel,
    names::{DEVICE, TABLE},
    plan::Step,
};

/// Does all steps and tells of each thing as it goes. Also where nobody hears it any more: half of kube-proxy's is worse than all of it.
///
/// # Errors
/// `tell` fails.
pub(super) fn apply(steps: &[Step], tell: &mut impl FnMut(Event) -> Result<()>) -> Result<()> {
    let (mut servers_stay, mut told) = (false, Ok(()));
    for step in steps {
        let done = match step {
            Step::Device if servers_stay => {
                Err("the next try knows by it that the virtual servers are kube-proxy's".into())
            }
            _ => remove(step),
        };
        servers_stay |= matches!(step, Step::Servers(_)) && done.is_err();
        let removed = |what| Event { state: State::Removed, what, why: None };
        let events = match done {
            Ok(()) => step.things().into_iter().map(removed).collect(),
            Err(why) => vec![Event::failed(step.told(), why)],
        };
        told = told.and_then(|()| events.into_iter().try_for_each(&mut *tell));
    }
    told
}

fn remove(step: &Step) -> Result<(), String> {
    match step {
        Step::Rules { variant, table, removal } => {
            variant.restore(&removal.script(table)).map_err(|error| format!("{error:#}"))
        }
        Step::Servers(_) => kernel::flush_servers().map_err(in_words),
        Step::Device => kernel::delete_device(DEVICE).map_err(in_words),
        Step::Set(set) => kernel::destroy_set(set).map_err(in_words),
        Step::Table(family) => kernel::delete_table(*family, TABLE).map_err(in_words),
    }
}

fn in_words(error: impl Display) -> String {
    error.to_string()
}
