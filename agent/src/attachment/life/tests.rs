// SPDX-License-Identifier: Apache-2.0
//! Every state that a port can get into, with every event in it, and every effect failing or not: until there is no state left
//! that was not tried. So it holds for event sequences of any length, with up to [`world::MOST_ASKS`] askers at a time.

mod node;
mod world;

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    time::Duration,
};

use self::{
    node::{HAPPENINGS, Node, deadline, name},
    world::{failure, link},
};
use super::{Ask, Effect, Event, Farewell, Life, Seen, Stage, Step};

#[test]
fn a_life_is_right_in_every_state_after_every_event() {
    let first = Node::first();
    let mut known = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    let mut lives = BTreeSet::new();
    while let Some(node) = queue.pop_front() {
        node.check_ends();
        lives.insert(name(&node.life));
        for next in HAPPENINGS.into_iter().flat_map(|happening| node.after(happening, true)) {
            if known.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    // The others are those of a script under way.
    let quiet = ["armed", "closed", "gone", "linked", "reserved", "served", "stuck", "withdrawing"];
    assert_eq!(lives.into_iter().collect::<Vec<_>>(), quiet);
    assert!(known.len() > 1000, "{} states: the world is too simple to find anything", known.len());
}

/// What would come out of turn is answered, and changes nothing.
#[test]
fn while_a_script_runs_nothing_else_begins() {
    let stages = [Stage::Arming { noted: false, entry: false }, Stage::Opening];
    let known = stages.map(|stage| Life::Known { link: link(0), stage, asks: vec![Ask(1)] });
    let leaving = Life::Leaving { link: Some(link(0)), stage: Farewell::Removing, asks: vec![Ask(1)] };
    let lost = Life::Lost { link: link(0), ask: Some(Ask(1)) };
    for life in known.into_iter().chain([leaving, lost]) {
        let ask = Ask(2);
        let requests = [
            Event::Allocate { ask, is_there: true },
            Event::Allocate { ask, is_there: false },
            Event::Attach { ask, link: link(0), until: deadline() },
            Event::Release { ask },
        ];
        for request in requests {
            let step = life.clone().step(request);
            assert_eq!((&step.life, step.script.len(), step.answers.len()), (&life, 0, 1));
            assert!(step.answers[0].0 == ask && step.answers[0].1.is_err());
        }
        let seen = Seen { is_there: true, programs: false, entry: false, right: false };
        for event in [Event::PodKnown, Event::Waited { now: deadline() }, Event::Looked(seen), Event::Passed(Ok(true))]
        {
            let step = life.clone().step(event);
            assert_eq!((step.life, step.script, step.answers.len()), (life.clone(), vec![], 0));
        }
    }
}

fn script(life: Life, event: Event) -> (Life, Vec<Effect>) {
    let Step { life, script, .. } = life.step(event);
    (life, script)
}

#[test]
fn at_a_start_the_kernel_is_asked() {
    let found = |link: Option<usize>, is_there, is_wanted| {
        let (life, script) = script(Life::Gone, Event::Found { link: link.map(self::link), is_there, is_wanted });
        (name(&life), script)
    };
    assert_eq!(found(Some(0), true, false), ("closed", vec![Effect::StartDevice(link(0))]));
    assert_eq!(found(None, false, true), ("reserved", vec![]));
    // Of the link only the record is left.
    let (life, script) = found(Some(0), false, true);
    assert_eq!((life, script.last()), ("lost", Some(&Effect::Note(None))));
    // As after a reboot.
    for link in [Some(0), None] {
        let (life, script) = found(link, false, false);
        assert_eq!((life, script.last()), ("removing", Some(&Effect::Free)));
        assert_eq!(script.contains(&Effect::RemoveEntries(self::link(0))), link.is_some());
    }
}

#[test]
fn an_attach_waits_for_its_pod_until_its_deadline() {
    let linked = || Life::Linked { link: link(0), until: deadline(), asks: vec![Ask(1)] };
    let early = Event::Waited { now: deadline() - Duration::from_millis(1) };
    assert_eq!(script(linked(), early), (linked(), vec![]));
    let late = script(linked(), Event::Waited { now: deadline() });
    let expected =
        [Effect::Close(link(0)), Effect::Arm(link(0)), Effect::StartDevice(link(0)), Effect::Note(Some(link(0)))];
    assert_eq!(late.1, expected);
    assert_eq!(script(linked(), Event::PodKnown), late);
}

#[test]
fn without_a_pass_a_port_that_leaves_is_taken_out_directly() {
    let leaving = || Life::Leaving { link: Some(link(0)), stage: Farewell::Withdrawing, asks: vec![Ask(1)] };
    let direct = |passed| script(leaving(), Event::Passed(passed)).1.contains(&Effect::RemoveEntries(link(0)));
    assert!(direct(Err(failure())) && direct(Ok(true)) && !direct(Ok(false)));
}
