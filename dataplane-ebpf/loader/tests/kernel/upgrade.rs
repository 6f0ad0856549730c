// SPDX-License-Identifier: Apache-2.0
//! Another ABI version's pins, and removing everything.

use std::{fs, path::PathBuf};

use weft_abi::{ABI_VERSION, LAYOUT, PinFolder};
use weft_dataplane::{Attachment, Origin, Program, remove_everything};

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
    assert!(dataplane.report().maps.iter().all(|map| map.origin == Origin::Created), "maps are never shared");
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
        assert!(dataplane.report().maps.iter().all(|map| map.origin == Origin::Created), "{folder}");
        let attachment = Attachment { ifindex: veth.ifindex, program: FROM_OVERLAY };
        assert_eq!(dataplane.attachments_of_other_versions().unwrap(), [attachment], "{folder}");
        assert_eq!(dataplane.take_over_other_versions().unwrap().adopted, [attachment], "{folder}");
        assert!(!other.exists(), "{folder}");
    }
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
