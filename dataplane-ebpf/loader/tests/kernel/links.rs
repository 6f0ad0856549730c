// SPDX-License-Identifier: Apache-2.0
//! tcx links: attaching, detaching, adopting, and what becomes of links whose device is gone.

use std::{fs, net::UdpSocket};

use aya::programs::{SchedClassifier, TcAttachType};
use weft_abi::DropReason;
use weft_dataplane::{Attachment, Dataplane, Error, Maps, Options, Program};

use crate::support::{Netns, Sandbox, Veth, eventually, ip};

/// Drops whatever comes without a tunnel.
const FROM_OVERLAY: Program = Program::FromOverlay;

/// Sends a UDP datagram out of the workload's end of its veth.
pub(crate) fn send(workload: &Netns) {
    workload.run(|| {
        let socket = UdpSocket::bind("10.9.9.1:0").expect("bind in the workload's namespace");
        socket.send_to(b"weft", "10.9.9.2:9").expect("send");
    });
}

/// A workload that can send without asking for a neighbour first.
pub(crate) fn workload(name: &str) -> (Netns, Veth) {
    let netns = Netns::new();
    let veth = Veth::new(name, &netns);
    netns.run(|| {
        ip(&["address", "add", "10.9.9.1/24", "dev", Veth::PEER]);
        ip(&["neighbour", "add", "10.9.9.2", "lladdr", "02:00:00:00:00:02", "dev", Veth::PEER]);
    });
    (netns, veth)
}

/// How many packets were dropped, for whatever reason.
pub(crate) fn dropped(maps: &Maps) -> u64 {
    DropReason::ALL.iter().map(|reason| maps.dropped(*reason).expect("read the counter").packets).sum()
}

pub(crate) fn program_ids(ifname: &str) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(ifname, TcAttachType::Ingress).expect("query tcx");
    programs.iter().map(|program| program.id()).collect()
}

#[test]
fn an_attached_program_sees_packets_until_it_is_detached() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (netns, veth) = workload("pod");
    send(&netns);
    assert_eq!(dropped(dataplane.maps()), 0, "nothing is attached yet");
    for program in [FROM_OVERLAY, Program::FromHost] {
        dataplane.attach(program, &veth.name, veth.ifindex).unwrap();
    }
    let attached = |program| Attachment { ifindex: veth.ifindex, program };
    assert_eq!(dataplane.attachments().unwrap(), [Program::FromHost, FROM_OVERLAY].map(attached));
    let before = dropped(dataplane.maps());
    send(&netns);
    eventually("the program counts a packet", || dropped(dataplane.maps()) > before);
    dataplane.detach(veth.ifindex).unwrap();
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new(), "at once, not after a grace period");
    assert_eq!(dataplane.attachments().unwrap(), []);
    assert_eq!(fs::read_dir(sandbox.pins("links")).unwrap().count(), 0);
    dataplane.detach(veth.ifindex).expect("nothing to detach is fine");
    dataplane.detach(4_000_000).expect("no such device is fine");
}

#[test]
fn attaching_twice_changes_nothing() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    let programs = program_ids(&veth.name);
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    assert_eq!(program_ids(&veth.name), programs);
    assert_eq!(programs.len(), 1);
}

#[test]
fn is_attached_before_programs_of_others() {
    let sandbox = Sandbox::enter();
    let (_netns, veth) = workload("pod");
    let mut other = Dataplane::open(&Options { pin_dir: sandbox.bpffs().join("other"), ..sandbox.options() }).unwrap();
    other.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    let others = program_ids(&veth.name);
    let mut dataplane = sandbox.open();
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    let programs = program_ids(&veth.name);
    assert_eq!(programs.len(), 2);
    assert_eq!(programs[1..], others, "the other one comes last");
}

#[test]
fn links_outlive_the_process_and_are_swapped_in_place() {
    let sandbox = Sandbox::enter();
    let (netns, veth) = workload("pod");
    let mut first = sandbox.open();
    first.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    let maps = first.maps().clone();
    drop(first);
    let old = program_ids(&veth.name);
    assert_eq!(old.len(), 1, "still attached");
    send(&netns);
    eventually("it still counts", || dropped(&maps) > 0);
    let second = sandbox.open();
    let attachment = Attachment { ifindex: veth.ifindex, program: FROM_OVERLAY };
    assert_eq!(second.report().links.adopted, [attachment]);
    assert_eq!(second.report().links.removed, Vec::<String>::new());
    let new = program_ids(&veth.name);
    assert_eq!(new.len(), 1, "swapped, not added");
    assert_ne!(new, old);
    let before = dropped(second.maps());
    assert!(before > 0, "the counters went on");
    send(&netns);
    eventually("the new program counts", || dropped(second.maps()) > before);
    drop(second);
    assert_eq!(program_ids(&veth.name), new, "an adopted link outlives the process, too");
}

#[test]
fn links_of_devices_that_are_gone_are_removed() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.open();
    let (_netns, veth) = workload("pod");
    let pin = format!("{}-{FROM_OVERLAY}", veth.ifindex);
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    drop(veth);
    assert_eq!(dataplane.attachments().unwrap(), []);
    drop(dataplane);
    let dataplane = sandbox.open();
    assert_eq!(dataplane.report().links.removed, [pin]);
    assert_eq!(fs::read_dir(sandbox.pins("links")).unwrap().count(), 0);
}

#[test]
fn a_device_that_got_the_index_of_one_that_is_gone_is_attached_anew() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    let ifindex = veth.ifindex;
    dataplane.attach(FROM_OVERLAY, &veth.name, ifindex).unwrap();
    drop(veth);
    let netns = Netns::new();
    let successor = Veth::with_index("successor", ifindex, &netns);
    assert_eq!(dataplane.attachments().unwrap(), [], "the pin belongs to the one that is gone");
    dataplane.attach(FROM_OVERLAY, &successor.name, ifindex).unwrap();
    assert_eq!(program_ids(&successor.name).len(), 1);
    assert_eq!(dataplane.attachments().unwrap(), [Attachment { ifindex, program: FROM_OVERLAY }]);
}

#[test]
fn detach_of_a_device_that_is_gone_removes_the_pin() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    let ifindex = veth.ifindex;
    dataplane.attach(FROM_OVERLAY, &veth.name, ifindex).unwrap();
    drop(veth);
    dataplane.detach(ifindex).unwrap();
    assert_eq!(fs::read_dir(sandbox.pins("links")).unwrap().count(), 0);
}

#[test]
fn the_pin_of_a_device_that_went_unnoticed_is_swept() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let [(_gone_netns, gone), (_netns, veth)] = ["gone", "pod"].map(workload);
    for veth in [&gone, &veth] {
        dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    }
    assert_eq!(dataplane.remove_defunct_links().unwrap(), Vec::<String>::new());
    let pin = format!("{}-{FROM_OVERLAY}", gone.ifindex);
    drop(gone);
    assert_eq!(dataplane.remove_defunct_links().unwrap(), [pin]);
    let left = [Attachment { ifindex: veth.ifindex, program: FROM_OVERLAY }];
    assert_eq!(dataplane.attachments().unwrap(), left);
    assert_eq!(fs::read_dir(sandbox.pins("links")).unwrap().count(), 1);
}

#[test]
fn a_name_with_another_index_is_refused_and_left_alone() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    let error = dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex + 100).unwrap_err();
    assert!(
        matches!(&error, Error::Interface { ifname, found, .. } if *ifname == veth.name && *found == veth.ifindex),
        "{error}"
    );
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new());
    assert_eq!(dataplane.attachments().unwrap(), []);
}

#[test]
fn a_device_that_is_not_here_is_named_in_the_error() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let error = dataplane.attach(FROM_OVERLAY, "nowhere0", 77).unwrap_err();
    assert!(matches!(error, Error::Link { program: FROM_OVERLAY, ifindex: 77, .. }), "{error}");
    assert!(error.to_string().contains("nowhere0"), "{error}");
    assert_eq!(fs::read_dir(sandbox.pins("links")).unwrap().count(), 0);
}

#[test]
fn a_link_of_a_program_that_no_longer_exists_is_removed() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.open();
    let (_netns, veth) = workload("pod");
    dataplane.attach(FROM_OVERLAY, &veth.name, veth.ifindex).unwrap();
    drop(dataplane);
    let links = sandbox.pins("links");
    let old = format!("{}-from_the_past", veth.ifindex);
    fs::rename(links.join(format!("{}-{FROM_OVERLAY}", veth.ifindex)), links.join(&old)).unwrap();
    let dataplane = sandbox.open();
    assert_eq!(dataplane.report().links.removed, [old]);
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new(), "it does not go on unseen");
}
