// SPDX-License-Identifier: Apache-2.0
//! Dataplanes that several tests use are as new ones for each.

use std::collections::BTreeSet;

use aya::EbpfLoader;
use weft_abi::map;
use weft_dataplane::Program;

use crate::{
    filters::OBJECT,
    links::workload,
    run::{packet, through},
    support::{
        Sandbox,
        content::{AnyMap, Content},
        pool::Loaded,
    },
};

/// The programs' constants, which nobody can write to any more.
fn is_constant(name: &str) -> bool {
    name.starts_with(".rodata")
}

fn changed(maps: &[(AnyMap, Content)]) -> BTreeSet<&str> {
    maps.iter().filter(|(map, new)| map.content() != *new).map(|(map, _)| map.name()).collect()
}

/// What no map holds that has just been made, at the first and the last index of an array.
fn soil(map: &AnyMap, new: &Content) {
    let (key, value) = map.entry_of(0xa5);
    let last = new.keys.len().checked_sub(key.len()).map(|from| new.keys[from..].to_vec());
    for key in [Some(key), last].into_iter().flatten() {
        map.write(&key, &value);
    }
}

#[test]
fn after_a_reset_every_map_holds_what_a_new_one_does() {
    let sandbox = Sandbox::enter();
    let loaded = Loaded::open(&sandbox, &sandbox.options());
    let maps = loaded.new_content();
    let can_change: Vec<_> = maps.iter().filter(|(map, _)| !is_constant(map.name())).collect();
    // None is left out: neither one that the table of maps has, nor one that the programs have for themselves.
    let object = EbpfLoader::new().btf(None).load(OBJECT).expect("load the object");
    let short = |name: &str| name.chars().take(15).collect::<String>();
    let all: BTreeSet<String> = object.maps().map(|(name, _)| short(name)).filter(|name| !is_constant(name)).collect();
    // What is told is read and gone.
    let known = can_change.iter().map(|(map, _)| map.name()).chain([map::EVENTS]);
    assert_eq!(known.map(short).collect::<BTreeSet<_>>(), all);
    assert_eq!(changed(maps), BTreeSet::new(), "listings of the same are the same");

    loaded.dataplane.test_run(Program::FromWorkload, &packet(), through(1), 1).expect("run");
    assert!(changed(maps).contains(map::DROPS), "a program writes to them, too");
    can_change.iter().for_each(|(map, new)| soil(map, new));
    assert_eq!(changed(maps), can_change.iter().map(|(map, _)| map.name()).collect());

    loaded.reset();
    assert_eq!(changed(maps), BTreeSet::new());
    assert_eq!(loaded.dataplane.events().expect("open the ring").next(), None);
}

/// Its programs would write to maps that another test has.
#[test]
fn what_is_attached_yet_is_not_used_again() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    assert!(dataplane.is_idle());
    for program in [Program::FromWorkload, Program::FromOverlay] {
        dataplane.attach(program, &veth.name, veth.ifindex).expect("attach");
        assert!(!dataplane.is_idle(), "{program}");
        dataplane.detach(veth.ifindex).expect("detach");
        assert!(dataplane.is_idle(), "{program}");
    }
}
