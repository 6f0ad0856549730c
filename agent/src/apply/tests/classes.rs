// SPDX-License-Identifier: Apache-2.0
//! Classes that cannot be written.

use weft_abi::{AddressKey, CLOSED_LIST, Class, Interval, List, ListFlags, Port, RuleKey, Run, Tier, Verdict};

use super::{
    cases::address,
    fake::Fake,
    reader::{State, check_what_is_open},
};
use crate::{apply::Applier, model::Desired};

const CLASS: u64 = 40;
const TERM: u64 = weft_abi::part::TERM | 3 << 16;

/// A port whose list lets pods in by a term, and the pod of a class that has that term or has not.
fn plan(pod: u8, matches: bool) -> Desired {
    let head = List { filter: [u64::MAX; 4], flags: ListFlags::TERMS | ListFlags::ISOLATES, ..List::EMPTY };
    let mut accept = Run::default();
    accept.intervals[0] = Interval {
        last: u16::MAX,
        protocol: 6,
        bits: Interval::bits(Verdict::Accept, Tier::Network),
        ..accept.intervals[0]
    };
    let mut class = Class { version: 1 + u64::from(matches), ..Class::default() };
    class.terms[0] = if matches { TERM } else { 0 };
    Desired {
        ports: [(10, Port { ingress_list: 10, workload: 110, ..Port::default() })].into(),
        lists: [(10, head)].into(),
        rules: [(RuleKey { list: 10, part: TERM }, accept)].into(),
        peers: [(AddressKey::of_cluster(address(pod)), CLASS)].into(),
        classes: [(CLASS, class)].into(),
        ..Desired::default()
    }
}

/// A pod joins a class that still has a term which it should have lost: lists that know the term are closed before.
#[test]
fn nobody_joins_a_class_that_could_not_be_written_while_lists_know_what_it_was() {
    let (fake, mut applier) = (Fake::new(), Applier::default());
    let (old, new) = (plan(1, true), plan(2, false));
    applier.apply(&*fake, &old).unwrap();
    let (before, after) = (State::from(&*fake), State::from(&new));
    fake.watch(move |fake| check_what_is_open(&State::from(fake), &before, &after));
    fake.classes.refuse(|class| class.terms[0] == 0);
    let problems = applier.apply(&*fake, &new).unwrap().problems;
    assert_eq!((fake.ports.find(&10).unwrap().ingress_list, problems.len()), (CLOSED_LIST, 1), "{problems:?}");
    fake.classes.refuse(|_| false);
    assert!(applier.apply(&*fake, &new).unwrap().problems.is_empty());
    assert_eq!(fake.ports.find(&10).unwrap().ingress_list, 10);
}
