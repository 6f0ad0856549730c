// SPDX-License-Identifier: Apache-2.0
//! Sets of blocks, which lists share: what is wrong with one is wrong with all lists that have it.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use weft_abi::{BlockKey, CLOSED_LIST, List, ListFlags, NO_LIST, Port, RuleKey, Run, part};

use super::{cases::address, fake::Fake};
use crate::{
    apply::{Applier, Table as _},
    model::Desired,
};

const SET: u64 = 77;
const OTHER: u64 = 78;

/// Two ports with a list each of one set of blocks, and a port whose list has another set.
fn plan() -> Desired {
    let mut desired = Desired::default();
    for (ifindex, blocks) in [(10, SET), (11, SET), (12, OTHER)] {
        let list = u64::from(ifindex);
        desired.ports.insert(ifindex, Port { ingress_list: list, workload: 100 + ifindex, ..Port::default() });
        let mut head = List { flags: ListFlags::BLOCKS | ListFlags::ISOLATES, blocks, ..List::EMPTY };
        head.lengths[0][0] = 128;
        desired.lists.insert(list, head);
        desired.rules.insert(RuleKey { list: blocks, part: part::BLOCKS }, Run::default());
        let key = BlockKey { blocks, addr: address(1), prefix_len: 128, pad: 0 };
        // Runs differ in their part, so that a test can refuse one of them.
        desired.blocks.insert(key, part::BLOCKS + (blocks - SET) * part::STEP);
    }
    desired
}

fn lists(fake: &Fake) -> Vec<u64> {
    fake.ports.all().values().map(|port| port.ingress_list).collect()
}

#[test]
fn a_set_of_blocks_that_cannot_be_written_closes_all_who_have_it() {
    let (fake, mut applier, plan) = (Fake::new(), Applier::default(), plan());
    fake.blocks.refuse(|part| *part == part::BLOCKS);
    let summary = applier.apply(&*fake, &plan).unwrap();
    assert_eq!((lists(&fake), summary.problems.len()), (vec![CLOSED_LIST, CLOSED_LIST, 12], 1), "{summary:?}");
    fake.blocks.refuse(|_| false);
    applier.apply(&*fake, &plan).unwrap();
    assert_eq!(lists(&fake), [10, 11, 12]);
}

#[test]
fn a_set_of_blocks_that_somebody_wrote_to_closes_all_who_have_it_until_it_is_right() {
    let (fake, plan) = (Fake::new(), plan());
    Applier::default().apply(&*fake, &plan).unwrap();
    let mut wrong = Run::default();
    wrong.intervals[0].bits = 1;
    fake.rules.insert(&RuleKey { list: SET, part: part::BLOCKS }, &wrong).unwrap();
    let seen = Rc::new(RefCell::new(BTreeSet::new()));
    let states = seen.clone();
    fake.watch(move |fake| {
        states.borrow_mut().insert(lists(fake));
    });
    Applier::default().apply(&*fake, &plan).unwrap();
    assert_eq!((lists(&fake), fake.rules.all()), (vec![10, 11, 12], plan.rules));
    assert!(seen.borrow().contains(&vec![CLOSED_LIST, CLOSED_LIST, 12]), "{seen:?}");
    assert!(!seen.borrow().iter().any(|lists| lists.contains(&NO_LIST)));
}
