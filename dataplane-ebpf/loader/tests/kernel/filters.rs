// SPDX-License-Identifier: Apache-2.0
//! Filters on workloads' ports: attaching, detaching, adopting, and what is others'.

use std::{
    fs,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::{
    include_bytes_aligned,
    programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, send as send_to, socket,
};
use weft_abi::{ABI_VERSION, PinFolder};
use weft_dataplane::{Attachment, Dataplane, Error, LinkReport, Program, remove_everything};

use crate::{
    links::{dropped, program_ids, send, workload},
    support::{Netns, Sandbox, Veth, eventually, ip},
};

const FROM_WORKLOAD: Program = Program::FromWorkload;
const TO_WORKLOAD: Program = Program::ToWorkload;
const PROGRAMS: [Program; 2] = [FROM_WORKLOAD, TO_WORKLOAD];

/// The programs as they were built.
pub(crate) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-dataplane.o"));

/// Runs `tc` in the calling thread's namespaces; what it says.
fn tc(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split(' ')).output().expect("run tc (iproute2)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tc {arguments}: {error}");
    String::from_utf8(output.stdout).expect("tc prints text")
}

fn filters(veth: &Veth, hook: &str) -> String {
    tc(&format!("filter show dev {} {hook}", veth.name))
}

fn has_qdisc(veth: &Veth) -> bool {
    tc(&format!("qdisc show dev {}", veth.name)).contains("clsact")
}

fn attached(veth: &Veth) -> [Attachment; 2] {
    PROGRAMS.map(|program| Attachment { ifindex: veth.ifindex, program })
}

fn attach(dataplane: &mut Dataplane, veth: &Veth) {
    for program in PROGRAMS {
        dataplane.attach(program, &veth.name, veth.ifindex).expect("attach");
    }
}

#[test]
fn ports_are_filtered_until_they_are_detached_and_nothing_is_left() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (netns, veth) = workload("pod");
    attach(&mut dataplane, &veth);
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth));
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new(), "no tcx link, which would have to wait");
    assert_eq!(fs::read_dir(sandbox.pins("links")).unwrap().count(), 0);
    for (hook, program) in [("ingress", FROM_WORKLOAD), ("egress", TO_WORKLOAD)] {
        let text = filters(&veth, hook);
        for part in ["pref 1 bpf", "handle 0x1", "direct-action", &format!("weft/{program}/clsact")] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let before = dropped(dataplane.maps());
    send(&netns);
    eventually("the program counts a packet", || dropped(dataplane.maps()) > before);
    dataplane.detach(veth.ifindex).unwrap();
    assert_eq!(dataplane.attachments().unwrap(), []);
    assert!(!has_qdisc(&veth), "it was made for the filters");
    dataplane.detach(veth.ifindex).expect("nothing to detach is fine");
}

#[test]
fn attaching_twice_changes_nothing() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    attach(&mut dataplane, &veth);
    let before = filters(&veth, "ingress");
    attach(&mut dataplane, &veth);
    assert_eq!(filters(&veth, "ingress"), before);
    assert_eq!(before.matches("direct-action").count(), 1, "{before}");
}

#[test]
fn the_next_process_swaps_the_programs_in_place() {
    let sandbox = Sandbox::enter();
    let (netns, veth) = workload("pod");
    let mut first = sandbox.open();
    attach(&mut first, &veth);
    let maps = first.maps().clone();
    drop(first);
    let old = filters(&veth, "ingress");
    send(&netns);
    eventually("it still counts", || dropped(&maps) > 0);
    let second = sandbox.open();
    assert_eq!(second.report().links, LinkReport { adopted: attached(&veth).to_vec(), removed: Vec::new() });
    let new = filters(&veth, "ingress");
    assert_eq!(new.matches("direct-action").count(), 1, "swapped, not added: {new}");
    assert_ne!(new, old);
    assert_eq!(second.attachments().unwrap(), attached(&veth));
    let before = dropped(second.maps());
    send(&netns);
    eventually("the new program counts", || dropped(second.maps()) > before);
    drop(second);
    let mut third = sandbox.open();
    third.detach(veth.ifindex).unwrap();
    assert!(!has_qdisc(&veth), "it is known over restarts that Weft made it");
}

/// A swap that first took the old one away, or put the new one behind it, would let packets by into the host's stack.
#[test]
fn no_packet_passes_while_programs_are_swapped() {
    let sandbox = Sandbox::enter();
    let (netns, veth) = workload("pod");
    ip(&["link", "set", &veth.name, "address", "02:00:00:00:00:02"]);
    ip(&["address", "add", "10.9.9.2/24", "dev", &veth.name]);
    let host = UdpSocket::bind("10.9.9.2:9").expect("bind on the host");
    host.set_nonblocking(true).expect("nonblocking");
    let received = || host.recv(&mut [0; 16]).is_ok();
    let mut dataplane = sandbox.open();
    attach(&mut dataplane, &veth);
    let before = dropped(dataplane.maps());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                send(&netns);
            }
        });
        for _ in 0..5 {
            drop(sandbox.open());
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("sender");
    });
    eventually("packets came", || dropped(dataplane.maps()) > before + 100);
    assert!(!received(), "one passed");
    dataplane.detach(veth.ifindex).unwrap();
    send(&netns);
    eventually("without filters the host receives", received);
}

#[test]
fn what_others_have_on_the_device_stays() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    tc(&format!("qdisc add dev {} clsact", veth.name));
    attach(&mut dataplane, &veth);
    let text = filters(&veth, "ingress");
    assert!(text.contains("from_workload") && !text.contains("/clsact"), "it is not Weft's: {text}");
    dataplane.detach(veth.ifindex).unwrap();
    assert!(has_qdisc(&veth), "somebody else's qdisc");
    tc(&format!("qdisc del dev {} clsact", veth.name));

    attach(&mut dataplane, &veth);
    tc(&format!("filter add dev {} ingress pref 9 protocol ip u32 match u32 0 0 flowid 1:1", veth.name));
    dataplane.detach(veth.ifindex).unwrap();
    let text = filters(&veth, "ingress");
    assert!(text.contains("pref 9") && !text.contains("weft"), "only Weft's goes: {text}");
}

#[test]
fn a_filter_of_somebody_else_in_weft_s_place_is_named_and_stays() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    tc(&format!("qdisc add dev {} clsact", veth.name));
    tc(&format!("filter add dev {} ingress pref 1 protocol ip u32 match u32 0 0 flowid 1:1", veth.name));
    let before = filters(&veth, "ingress");
    let error = dataplane.attach(FROM_WORKLOAD, &veth.name, veth.ifindex).unwrap_err();
    assert!(matches!(error, Error::Link { program: FROM_WORKLOAD, .. }), "{error}");
    for part in ["u32", "priority 1", "Ingress", "move that"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    assert_eq!(filters(&veth, "ingress"), before);
    tc(&format!("qdisc del dev {} clsact", veth.name));
    tc(&format!("qdisc add dev {} ingress", veth.name));
    let error = dataplane.attach(TO_WORKLOAD, &veth.name, veth.ifindex).unwrap_err();
    assert!(error.to_string().contains("`ingress` qdisc of somebody else's"), "{error}");
    assert_eq!(dataplane.attachments().unwrap(), []);
}

#[test]
fn what_somebody_removed_is_missed_and_can_be_put_back() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    attach(&mut dataplane, &veth);
    tc(&format!("filter del dev {} ingress pref 1", veth.name));
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth)[1..]);
    attach(&mut dataplane, &veth);
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth));
    tc(&format!("qdisc del dev {} clsact", veth.name));
    assert_eq!(dataplane.attachments().unwrap(), []);
    attach(&mut dataplane, &veth);
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth));
    dataplane.detach(veth.ifindex).unwrap();
    assert!(!has_qdisc(&veth));
}

#[test]
fn names_and_indexes_that_do_not_fit_are_refused() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    let error = dataplane.attach(FROM_WORKLOAD, &veth.name, veth.ifindex + 100).unwrap_err();
    assert!(
        matches!(&error, Error::Interface { ifname, found, .. } if *ifname == veth.name && *found == veth.ifindex),
        "{error}"
    );
    let error = dataplane.attach(FROM_WORKLOAD, "nowhere0", 77).unwrap_err();
    assert!(error.to_string().contains("nowhere0"), "{error}");
    assert!(!has_qdisc(&veth));
}

#[test]
fn a_device_that_got_the_index_of_one_that_is_gone_has_nothing() {
    let sandbox = Sandbox::enter();
    let mut dataplane = sandbox.pooled();
    let (_netns, veth) = workload("pod");
    let ifindex = veth.ifindex;
    attach(&mut dataplane, &veth);
    drop(veth);
    let netns = Netns::new();
    let successor = Veth::with_index("successor", ifindex, &netns);
    assert_eq!(dataplane.attachments().unwrap(), []);
    attach(&mut dataplane, &successor);
    assert_eq!(dataplane.attachments().unwrap(), attached(&successor));
}

/// Makes a pinned tcx link on a port, as builds before the filters did: `version` is that of its folder.
fn old_link(sandbox: &Sandbox, veth: &Veth, version: &str) -> PathBuf {
    let mut ebpf = aya::EbpfLoader::new().btf(None).load(OBJECT).expect("load the object");
    let program: &mut SchedClassifier =
        ebpf.program_mut("from_workload").expect("a link of the old kind").try_into().expect("a link of the old kind");
    program.load().expect("load from_workload");
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&veth.name, TcAttachType::Ingress, order).expect("attach by tcx");
    let link = program.take_link(id).expect("a link of the old kind");
    let folder = sandbox.options().pin_dir.join(version).join("links");
    fs::create_dir_all(&folder).expect("a link of the old kind");
    let pin = folder.join(format!("{}-from_workload", veth.ifindex));
    FdLink::try_from(link).expect("a link of the old kind").pin(&pin).expect("pin the link");
    pin
}

#[test]
fn a_link_of_an_earlier_build_becomes_a_filter() {
    let sandbox = Sandbox::enter();
    let (netns, veth) = workload("pod");
    let pin = old_link(&sandbox, &veth, &PinFolder.to_string());
    assert_eq!(program_ids(&veth.name).len(), 1);
    let dataplane = sandbox.open();
    assert_eq!(dataplane.report().links.adopted, attached(&veth)[..1]);
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new());
    assert!(!pin.exists());
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth)[..1]);
    let before = dropped(dataplane.maps());
    send(&netns);
    eventually("the filter counts", || dropped(dataplane.maps()) > before);
}

#[test]
fn a_link_of_another_version_works_on_until_it_is_taken_over_and_becomes_a_filter() {
    let sandbox = Sandbox::enter();
    let (_netns, veth) = workload("pod");
    let pin = old_link(&sandbox, &veth, &format!("v{}", ABI_VERSION + 1));
    let old = program_ids(&veth.name);
    let mut dataplane = sandbox.open();
    assert_eq!(program_ids(&veth.name), old);
    assert_eq!(dataplane.attachments_of_other_versions().unwrap(), attached(&veth)[..1]);
    assert_eq!(dataplane.attachments().unwrap(), []);
    assert_eq!(dataplane.take_over_other_versions().unwrap().adopted, attached(&veth)[..1]);
    assert_eq!(program_ids(&veth.name), Vec::<u32>::new());
    assert!(!pin.exists());
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth)[..1]);
    assert_eq!(dataplane.attachments_of_other_versions().unwrap(), []);
}

/// Gives the ingress filter another name, as another version would have; its program goes on. `tc` chooses names itself, so the
/// message is put together here: RTM_NEWTFILTER with the attributes TCA_KIND and TCA_OPTIONS (descriptor, name, direct action).
fn rename(veth: &Veth, name: &str) {
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).expect("a message of netlink");
        let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let program = programs_of(veth).pop().expect("a filter");
    let fd = program.fd().expect("descriptor of the program");
    let options = [
        attribute(6, &fd.as_fd().as_raw_fd().to_ne_bytes()),
        attribute(7, &[name.as_bytes(), b"\0"].concat()),
        attribute(8, &1_u32.to_ne_bytes()),
    ];
    let protocol = u32::from(3_u16.to_be());
    let object = [0, veth.ifindex, 1, 0xffff_fff2, 1 << 16 | protocol].map(u32::to_ne_bytes).concat();
    let body = [object, attribute(1, b"bpf\0"), attribute(2, &options.concat())].concat();
    let length = u32::try_from(16 + body.len()).expect("a message of netlink");
    let kind_and_flags = [44_u16.to_ne_bytes(), 5_u16.to_ne_bytes()].concat();
    let message = [&length.to_ne_bytes(), kind_and_flags.as_slice(), &[0; 8], &body].concat();
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
        .expect("a message of netlink");
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).expect("a message of netlink");
    send_to(socket.as_raw_fd(), &message, MsgFlags::empty()).expect("send to the kernel");
    assert!(filters(veth, "ingress").contains(name));
}

/// The program of the ingress filter.
fn programs_of(veth: &Veth) -> Vec<aya::programs::ProgramInfo> {
    let text = filters(veth, "ingress");
    let id = text.split(" id ").nth(1).and_then(|rest| rest.split(' ').next()).expect("number of the program");
    let all = aya::programs::loaded_programs().map(|program| program.expect("look at a program"));
    all.filter(|program| program.id().to_string() == id).collect()
}

#[test]
fn filters_of_another_version_work_on_until_they_are_taken_over() {
    let sandbox = Sandbox::enter();
    let (netns, veth) = workload("pod");
    let mut other = sandbox.open();
    other.attach(FROM_WORKLOAD, &veth.name, veth.ifindex).unwrap();
    let maps = other.maps().clone();
    drop(other);
    let root = sandbox.options().pin_dir;
    let folder = root.join(format!("v{}", ABI_VERSION + 1));
    fs::rename(root.join(PinFolder.to_string()), &folder).unwrap();
    let mut dataplane = sandbox.open();
    assert_eq!(dataplane.report().links, LinkReport::default());
    assert_eq!(dataplane.attachments().unwrap(), []);
    assert_eq!(dataplane.attachments_of_other_versions().unwrap(), attached(&veth)[..1]);
    let before = dropped(&maps);
    send(&netns);
    eventually("the other version's still counts", || dropped(&maps) > before);
    assert_eq!(dataplane.take_over_other_versions().unwrap().adopted, attached(&veth)[..1]);
    assert!(!folder.exists());
    assert_eq!(dataplane.attachments().unwrap(), attached(&veth)[..1]);
    assert_eq!(dataplane.attachments_of_other_versions().unwrap(), []);
    let before = dropped(dataplane.maps());
    send(&netns);
    eventually("this version's counts", || dropped(dataplane.maps()) > before);
    // A program of the past, and its qdisc.
    rename(&veth, "weft/from_the_past/clsact");
    drop(dataplane);
    let dataplane = sandbox.open();
    assert_eq!(dataplane.report().links.removed, [format!("{}-from_the_past", veth.ifindex)]);
    assert!(!has_qdisc(&veth), "it does not go on unseen");
}

#[test]
fn removing_everything_removes_filters() {
    let sandbox = Sandbox::enter();
    let (_netns, veth) = workload("pod");
    attach(&mut sandbox.open(), &veth);
    remove_everything(&sandbox.options().pin_dir).unwrap();
    assert!(!has_qdisc(&veth));
    remove_everything(&sandbox.options().pin_dir).expect("nothing to remove is fine");
}
