// SPDX-License-Identifier: Apache-2.0
//! Opening: what is made, what is adopted, what is refused.

use std::{fs, path::Path};

use weft_abi::{Port, map, program};
use weft_dataplane::{Dataplane, Error, Maps, OffloadCheck, Options, Origin};

use crate::support::Sandbox;

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list pins");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("pin").file_name().into_string().expect("name")).collect();
    names.sort();
    names
}

fn sorted(names: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

#[test]
fn makes_and_pins_every_map_in_the_size_asked_for() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.open();
    let pinned: Vec<&str> = map::ALL.into_iter().chain([program::EXPORT_CONNECTIONS, program::EDIT_FLOWS]).collect();
    assert_eq!(names(&sandbox.pins("maps")), sorted(&pinned));
    assert_eq!(names(&sandbox.pins("links")), Vec::<String>::new());
    let report = &dataplane.report().maps;
    assert_eq!(report.iter().map(|map| map.map).collect::<Vec<_>>(), map::ALL);
    assert!(report.iter().all(|map| map.origin == Origin::Created && map.max_entries == map.wanted), "{report:?}");
    // Whole sets of six.
    assert_eq!(dataplane.maps().flows4().capacity(), sandbox.options().sizes.flows4.next_multiple_of(6));
    assert_eq!(dataplane.maps().generations().capacity(), weft_abi::generation::SLOTS);
    let services = sandbox.options().sizes.services;
    assert_eq!(dataplane.maps().service_generations().capacity(), services + 1, "numbers begin at 1");
}

/// The kernel's own function is called, not only the copy that works as well and takes longer.
#[test]
fn programs_read_the_kernels_packet_where_they_may() {
    let sandbox = Sandbox::enter();
    assert_eq!(sandbox.open().report().offload, OffloadCheck::Read);
    let older = Options { as_kernel_6_1: true, ..sandbox.options() };
    assert_eq!(Dataplane::open(&older).unwrap().report().offload, OffloadCheck::Copied);
}

#[test]
fn adopts_maps_with_what_they_hold() {
    let sandbox = Sandbox::enter();
    let port = Port { workload: 7, ..Port::default() };
    sandbox.open().maps().ports().insert(&42, &port).unwrap();
    let dataplane = sandbox.open();
    assert_eq!(dataplane.maps().ports().get(&42).unwrap(), Some(port));
    assert!(dataplane.report().maps.iter().all(|map| map.origin == Origin::Adopted));
}

#[test]
fn handles_outlive_the_dataplane() {
    let sandbox = Sandbox::enter();
    let maps = sandbox.open().maps().clone();
    maps.ports().insert(&1, &Port::default()).unwrap();
    assert_eq!(sandbox.open().maps().ports().len().unwrap(), 1);
}

#[test]
fn another_process_can_look_without_loading() {
    let sandbox = Sandbox::enter();
    let pin_dir = sandbox.options().pin_dir;
    let error = Maps::open(&pin_dir).unwrap_err();
    assert!(matches!(&error, Error::Path { path, .. } if path.ends_with(map::CONFIG)), "{error}");
    let dataplane = sandbox.open();
    let maps = Maps::open(&pin_dir).unwrap();
    maps.generations().set(5, &6).unwrap();
    assert_eq!(dataplane.maps().generations().get(5).unwrap(), 6);
}

#[test]
fn a_map_of_another_layout_is_refused_and_nothing_is_left_behind() {
    let sandbox = Sandbox::enter();
    let dir = sandbox.pins("maps");
    fs::create_dir_all(&dir).unwrap();
    let foreign = aya::maps::HashMap::<_, u32, u64>::create(16, 0).unwrap();
    foreign.pin(dir.join(map::PORTS)).unwrap();
    let error = Dataplane::open(&sandbox.options()).unwrap_err();
    assert!(matches!(error, Error::Layout { map: map::PORTS, .. }), "{error}");
    let text = error.to_string();
    for part in
        ["map PORTS", "values of 8 bytes", &format!("values of {} bytes", size_of::<Port>()), "remove that file"]
    {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert_eq!(names(&dir), [map::PORTS]);
    // What the message says is the fix is one.
    fs::remove_file(dir.join(map::PORTS)).unwrap();
    drop(sandbox.open());
}

#[test]
fn a_map_of_another_type_is_refused() {
    let sandbox = Sandbox::enter();
    let dir = sandbox.pins("maps");
    fs::create_dir_all(&dir).unwrap();
    aya::maps::Array::<_, u32>::create(16, 0).unwrap().pin(dir.join(map::PEERS)).unwrap();
    let error = Dataplane::open(&sandbox.options()).unwrap_err();
    assert!(matches!(error, Error::Layout { map: map::PEERS, .. }), "{error}");
}

#[test]
fn a_failure_after_maps_were_made_takes_them_back() {
    let sandbox = Sandbox::enter();
    let dir = sandbox.pins("maps");
    fs::create_dir_all(&dir).unwrap();
    // There is no map to adopt there, and yet none can be pinned.
    std::os::unix::fs::symlink("nowhere", dir.join(map::EVENTS)).unwrap();
    let error = Dataplane::open(&sandbox.options()).unwrap_err();
    assert!(matches!(error, Error::Object { .. }), "{error}");
    assert!(error.to_string().contains(map::EVENTS), "{error}");
    assert_eq!(names(&dir), Vec::<String>::new());
    drop(sandbox.open());
}

#[test]
fn a_folder_outside_a_bpf_filesystem_is_refused() {
    let _sandbox = Sandbox::enter();
    let folder = tempfile::tempdir().unwrap();
    let pin_dir = folder.path().join("weft");
    let error = Dataplane::open(&Options::new(&pin_dir)).unwrap_err();
    assert!(matches!(&error, Error::NotBpffs { path } if *path == pin_dir), "{error}");
    assert!(!pin_dir.exists());
}

#[test]
fn sizes_out_of_range_are_refused_before_anything_is_made() {
    let sandbox = Sandbox::enter();
    let mut options = sandbox.options();
    options.sizes.rules = 0;
    let error = Dataplane::open(&options).unwrap_err();
    assert!(matches!(error, Error::Size { field: "rules", value: 0, .. }), "{error}");
    assert!(!options.pin_dir.exists());
}
