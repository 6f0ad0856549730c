// SPDX-License-Identifier: Apache-2.0
//! Another ABI version's pins, and removing everything.

use std::{fs, path::PathBuf};

use weft_abi::{
    ABI_VERSION, CarriedPin, Connection, Flow, FlowKey4, FlowKey6, LAYOUT, MAPS, MapInfo, PinFolder, Way,
    generation::EPOCH, map, program,
};
use weft_dataplane::{Attachment, Dataplane, Error, Origin, Program, remove_everything};

use crate::{
    links::{program_ids, workload},
    support::{Sandbox, Veth},
};

const FROM_OVERLAY: Program = Program::FromOverlay;

/// A sandbox in which another version has attached itself to `veth`; also where that version pinned.
fn after_another_version(veth: &Veth, sandbox: &Sandbox) -> PathBuf {
    after(&format!("v{}", ABI_VERSION + 1), veth, sandbox)
}

/// The same of whoever pins in that folder.
fn after(folder: &str, veth: &Veth, sandbox: &Sandbox) -> PathBuf {
    sandbox.open().attach(FROM_OVERLAY, &veth.name, veth.ifindex).expect("attach");
    let root = sandbox.options().pin_dir;
    let other = root.join(folder);
    fs::rename(root.join(PinFolder.to_string()), &other).expect("rename the pin folder");
    other
}

#[test]
fn another_version_works_on_until_it_is_taken_over() {
    let sandbox = Sandbox::enter();
    let (_netns, veth) = workload("pod");
    let other = after_another_version(&veth, &sandbox);
    let old = program_ids(&veth.name);
    let mut dataplane = sandbox.open();
    assert!(
        dataplane.report().maps.iter().all(|map| map.origin == Origin::Created),
        "what its values mean is not known"
    );
    assert_eq!(program_ids(&veth.name), old, "not before this version's maps are filled");
    let attachment = Attachment { ifindex: veth.ifindex, program: FROM_OVERLAY };
    assert_eq!(dataplane.attachments_of_other_versions().unwrap(), [attachment]);
    assert_eq!(dataplane.attachments().unwrap(), []);
    assert_eq!(dataplane.take_over_other_versions().unwrap().adopted, [attachment]);
    let new = program_ids(&veth.name);
    assert!(new.len() == 1 && new != old, "{new:?} {old:?}");
    assert!(!other.exists());
    assert_eq!(dataplane.attachments().unwrap(), [attachment]);
    assert_eq!(dataplane.attachments_of_other_versions().unwrap(), []);
    assert_eq!(dataplane.take_over_other_versions().unwrap(), weft_dataplane::LinkReport::default());
}

/// Somebody has changed a layout and not thought of the version; or an earlier build, which did not tell its layouts.
#[test]
fn another_layout_of_the_same_version_is_another_version() {
    for folder in [format!("v{ABI_VERSION}-{:016x}", LAYOUT ^ 1), format!("v{ABI_VERSION}")] {
        let sandbox = Sandbox::enter();
        let (_netns, veth) = workload("pod");
        let other = after(&folder, &veth, &sandbox);
        let mut dataplane = sandbox.open();
        // The earlier build's are not known by layout.
        let carries = folder.contains('-');
        for (map, report) in MAPS.iter().zip(&dataplane.report().maps) {
            let is_adopted = carries && map.role.is_shared();
            assert_eq!(report.origin == Origin::Adopted, is_adopted, "{folder}: {}", map.name);
        }
        let attachment = Attachment { ifindex: veth.ifindex, program: FROM_OVERLAY };
        assert_eq!(dataplane.attachments_of_other_versions().unwrap(), [attachment], "{folder}");
        assert_eq!(dataplane.take_over_other_versions().unwrap().adopted, [attachment], "{folder}");
        assert!(!other.exists(), "{folder}");
    }
}

/// A key of each family.
fn keys() -> (FlowKey4, FlowKey6) {
    let four = FlowKey4 { ifindex: 7, src: 1, dst: 2, sport: 3, dport: 4, protocol: 6 };
    (four, FlowKey6 { ifindex: 7, protocol: 17, ..FlowKey6::default() })
}

/// The connections of [`keys`], as packets found them.
fn packets(dataplane: &Dataplane) -> [Option<u64>; 2] {
    let (four, six) = keys();
    let found = [dataplane.maps().flows4().get(&four), dataplane.maps().flows6().get(&six)];
    found.map(|flow| flow.expect("look up").map(|flow| flow.connection.packets))
}

/// A sandbox after one that had connections, and generations.
fn leave_connections(sandbox: &Sandbox) {
    let before = sandbox.open();
    let (four, six) = keys();
    let after = |packets| Flow { connection: Connection { packets, ..Connection::default() }, ..Flow::default() };
    before.maps().flows4().insert(&four, &after(44)).expect("write");
    before.maps().flows6().insert(&six, &after(66)).expect("write");
    before.maps().generations().set(EPOCH, &7).expect("write");
    before.maps().generations().set(5, &9).expect("write");
    before.maps().service_generations().set(3, &4).expect("write");
}

/// The same of one of another layout: where it has pinned.
fn after_connections(sandbox: &Sandbox) -> PathBuf {
    leave_connections(sandbox);
    let root = sandbox.options().pin_dir;
    let other = root.join(format!("v{ABI_VERSION}-{:016x}", LAYOUT ^ 1));
    fs::rename(root.join(PinFolder.to_string()), &other).expect("rename the pin folder");
    other
}

#[test]
fn connections_go_on_in_programs_of_another_layout() {
    let sandbox = Sandbox::enter();
    let other = after_connections(&sandbox);
    let mut dataplane = sandbox.open();
    assert_eq!(packets(&dataplane), [Some(44), Some(66)]);
    let generations = |dataplane: &Dataplane| {
        let maps = dataplane.maps();
        let of = [EPOCH, 5, 6].map(|slot| maps.generations().get(slot).expect("look up"));
        (of, maps.service_generations().get(3).expect("look up"))
    };
    assert_eq!(generations(&dataplane), ([8, 10, 1], 5), "no decision of the other programs stands");
    dataplane.maps().generations().set(5, &20).expect("write");
    // Killed before it has taken over.
    drop(dataplane);
    dataplane = sandbox.open();
    assert_eq!(generations(&dataplane), ([8, 20, 1], 5), "and none goes down");
    dataplane.take_over_other_versions().expect("take over");
    assert!(!other.exists());
    assert_eq!(packets(&dataplane), [Some(44), Some(66)]);
    // The way back, to the layout before.
    drop(dataplane);
    let root = sandbox.options().pin_dir;
    fs::rename(root.join(PinFolder.to_string()), &other).expect("rename the pin folder");
    let dataplane = sandbox.open();
    assert_eq!((packets(&dataplane), generations(&dataplane)), ([Some(44), Some(66)], ([9, 21, 2], 6)));
}

#[test]
fn where_no_generations_are_known_no_connections_are_adopted() {
    let sandbox = Sandbox::enter();
    let other = after_connections(&sandbox);
    fs::remove_dir_all(&other).expect("remove pins");
    assert_eq!(packets(&sandbox.open()), [None, None]);
}

/// New, back to a build that carries nothing, and new again: what the first one left names numbers that have come again since.
#[test]
fn what_an_earlier_version_left_is_not_adopted() {
    let sandbox = Sandbox::enter();
    let other = after_connections(&sandbox);
    for name in MapInfo::carried().map(|map| map.name) {
        fs::remove_file(other.join("maps").join(name)).expect("remove pins");
    }
    assert_eq!(packets(&sandbox.open()), [None, None]);
}

/// Tables of another size are made beside those that are there, whose connections come along; shares have places for ports and Services.
#[test]
fn another_size_takes_connections_over() {
    let sandbox = Sandbox::enter();
    leave_connections(&sandbox);
    let mut options = sandbox.options();
    for (ports, flows4) in [(2, 2), (1, 1)] {
        options.sizes.ports *= ports;
        options.sizes.flows4 = flows4 * sandbox.options().sizes.flows4;
        let mut dataplane = Dataplane::open(&options).expect("open");
        assert_eq!(packets(&dataplane)[0], None, "until the programs are exchanged");
        dataplane.take_over_other_versions().expect("take over");
        assert_eq!(packets(&dataplane), [Some(44), Some(66)]);
        assert_eq!(dataplane.maps().flows4().capacity(), options.sizes.flows4.next_multiple_of(6));
        assert_eq!(dataplane.maps().shares().capacity(), 2 * options.sizes.ports + 16_386, "and for each Service");
        assert_eq!(dataplane.maps().takeover().get(0).expect("look up"), 0);
        drop(dataplane);
        let again = Dataplane::open(&options).expect("open");
        assert!(again.report().maps.iter().all(|map| map.origin == Origin::Adopted));
    }
}

/// An entry of this version's and what another one tells of it: the last packet counts, and in the same tick what was decided here.
#[test]
fn what_another_version_tells_counts_by_the_last_packet() {
    const TOLD: u64 = 44;
    const OWN: u64 = 5;
    let cases =
        [(99, true, TOLD), (100, true, OWN), (100, false, TOLD), (101, true, OWN), (101, false, OWN)].into_iter();
    let cases = (1..).map(|sport| FlowKey4 { sport, ..keys().0 }).zip(cases);
    let entry = |packets, last_seen, egress| Flow {
        connection: Connection { packets, ..Connection::default() },
        way: Way { last_seen, egress, ..Way::default() },
    };
    let sandbox = Sandbox::enter();
    let before = sandbox.open();
    for (key, _) in cases.clone() {
        before.maps().flows4().insert(&key, &entry(TOLD, 100, 1)).expect("write");
    }
    let mut options = sandbox.options();
    options.sizes.flows4 *= 2;
    let mut dataplane = Dataplane::open(&options).expect("open");
    for (key, (own_seen, is_decided, _)) in cases.clone() {
        dataplane.maps().flows4().insert(&key, &entry(OWN, own_seen, u16::from(is_decided))).expect("write");
    }
    dataplane.take_over_other_versions().expect("take over");
    for (key, (own_seen, is_decided, packets_then)) in cases {
        let flow = dataplane.maps().flows4().get(&key).expect("look up").expect("an entry");
        assert_eq!(flow.connection.packets, packets_then, "{own_seen} {is_decided}");
    }
}

/// Where maps of other sizes cannot be made, what was there is as it was.
#[test]
fn what_was_set_aside_is_put_back() {
    let sandbox = Sandbox::enter();
    leave_connections(&sandbox);
    let carried = sandbox.options().pin_dir.join("carried").join(CarriedPin(&MapInfo::COUNTS).to_string());
    fs::remove_file(&carried).expect("remove pin");
    let foreign = aya::maps::HashMap::<_, u32, u64>::create(16, 0).expect("make a map");
    foreign.pin(&carried).expect("pin");
    let mut options = sandbox.options();
    options.sizes.flows4 *= 2;
    let error = Dataplane::open(&options).expect_err("a map of another layout");
    assert!(matches!(error, Error::Layout { .. }), "{error}");
    fs::remove_file(&carried).expect("remove pin");
    let dataplane = sandbox.open();
    assert_eq!(packets(&dataplane), [Some(44), Some(66)]);
    assert!(dataplane.report().maps.iter().all(|map| map.origin == Origin::Adopted));
    assert_eq!(dataplane.attachments_of_other_versions().expect("look"), []);
}

/// Entries of Service ports that have no generation here stand by nothing.
#[test]
fn fewer_services_make_every_connection_decide_again() {
    let sandbox = Sandbox::enter();
    leave_connections(&sandbox);
    let mut options = sandbox.options();
    options.sizes.services /= 2;
    let mut dataplane = Dataplane::open(&options).expect("open");
    assert_eq!(packets(&dataplane), [None, None], "the table is not shared");
    dataplane.take_over_other_versions().expect("take over");
    assert_eq!(packets(&dataplane), [Some(44), Some(66)]);
    let way = dataplane.maps().flows4().get(&keys().0).expect("look up").expect("an entry").way;
    assert_eq!((way.service, way.generations), (0, u32::MAX));
}

/// A version that cannot tell of its connections is taken over all the same.
#[test]
fn connections_of_a_version_that_cannot_tell_begin_anew() {
    let sandbox = Sandbox::enter();
    leave_connections(&sandbox);
    fs::remove_file(sandbox.pins("maps").join(program::EXPORT_CONNECTIONS)).expect("remove pins");
    let mut options = sandbox.options();
    options.sizes.flows4 *= 2;
    let mut dataplane = Dataplane::open(&options).expect("open");
    dataplane.take_over_other_versions().expect("take over");
    assert_eq!(packets(&dataplane), [None, Some(66)], "the table of the other family is shared");
}

#[test]
fn a_map_whose_pin_was_removed_begins_anew() {
    let sandbox = Sandbox::enter();
    leave_connections(&sandbox);
    fs::remove_file(sandbox.pins("maps").join(map::FLOWS4)).expect("remove pins");
    assert_eq!(packets(&sandbox.open()), [None, Some(66)]);
    // Builds of other layouts find the map that is in use.
    let root = sandbox.options().pin_dir;
    fs::rename(root.join(PinFolder.to_string()), root.join(format!("v{ABI_VERSION}-{:016x}", LAYOUT ^ 1)))
        .expect("rename the pin folder");
    assert_eq!(packets(&sandbox.open()), [None, Some(66)]);
}

#[test]
fn where_this_version_is_attached_already_the_other_one_goes() {
    let sandbox = Sandbox::enter();
    let (_netns, veth) = workload("pod");
    let other = after_another_version(&veth, &sandbox);
    let mut dataplane = sandbox.open();
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    let both = program_ids(&veth.name);
    assert_eq!(both.len(), 2);
    let report = dataplane.take_over_other_versions().unwrap();
    assert_eq!(report.removed, [format!("{}-{FROM_OVERLAY}", veth.ifindex)]);
    assert_eq!(program_ids(&veth.name), both[..1], "ours came first");
    assert!(!other.exists());
}

#[test]
fn removing_everything_leaves_nothing() {
    let sandbox = Sandbox::enter();
    let (_netns, veth) = workload("pod");
    after_another_version(&veth, &sandbox);
    let mut dataplane = sandbox.open();
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    drop(dataplane);
    let root = sandbox.options().pin_dir;
    remove_everything(&root).unwrap();
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new());
    assert!(!root.exists());
    remove_everything(&root).expect("nothing to remove is fine");
}
