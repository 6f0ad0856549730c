// SPDX-License-Identifier: Apache-2.0
//! Test runs and events, on what every version does with an unknown workload: drop it and say so.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd as _;
use weft_abi::{DropReason, EventKind, GATEWAY_MAC, Hook};
use weft_dataplane::{Arrival, Error, Program};

use crate::support::{Netns, Sandbox, Veth};

/// `TC_ACT_SHOT`.
const SHOT: u32 = 2;

pub(crate) fn through(ifindex: u32) -> Arrival {
    Arrival { ifindex, received_by: ifindex, ..Arrival::default() }
}

pub(crate) fn packet() -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], GATEWAY_MAC);
    let builder = builder.ipv4([10, 9, 9, 1], [10, 9, 9, 2], 64).udp(1000, 2000);
    let mut packet = Vec::with_capacity(builder.size(4));
    builder.write(&mut packet, b"weft").expect("write into memory");
    packet
}

#[test]
fn a_test_run_tells_verdict_and_packet_and_counts() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let netns = Netns::new();
    let veth = Veth::new("pod", &netns);
    let report = dataplane.test_run(Program::FromWorkload, &packet(), through(veth.ifindex), 3).unwrap();
    assert_eq!((report.action, report.packet), (SHOT, packet()));
    let tally = dataplane.maps().dropped(DropReason::UnknownPort).unwrap();
    assert_eq!((tally.packets, tally.bytes), (3, 3 * packet().len() as u64));
}

#[test]
fn events_come_through_the_ring_and_make_it_readable() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let netns = Netns::new();
    let veth = Veth::new("pod", &netns);
    let mut events = dataplane.events().unwrap();
    assert_eq!(events.next(), None);
    assert!(!readable(&events, PollTimeout::ZERO));
    dataplane.test_run(Program::FromWorkload, &packet(), through(veth.ifindex), 1).unwrap();
    assert!(readable(&events, PollTimeout::from(10_000_u16)));
    let event = events.next().expect("an event");
    assert_eq!((event.kind, event.reason), (EventKind::Drop as u8, DropReason::UnknownPort as u8));
    assert_eq!((event.hook, event.ifindex), (Hook::FromWorkload as u8, veth.ifindex));
    assert_eq!(event.len as usize, packet().len());
    assert!(event.time_ns > 0);
    assert_eq!(events.next(), None);
}

fn readable(events: &weft_dataplane::Events, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).expect("poll") == 1
}

#[test]
fn a_test_run_without_its_device_or_header_is_an_error() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    for (packet, ifindex) in [(packet(), 4_000_000), (vec![0; 13], 1)] {
        let error = dataplane.test_run(Program::FromUplink, &packet, through(ifindex), 1).unwrap_err();
        assert!(matches!(error, Error::Program { program: "from_uplink", .. }), "{error}");
    }
}
