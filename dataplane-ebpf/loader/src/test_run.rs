// SPDX-License-Identifier: Apache-2.0
//! Running a program on a made-up packet (`BPF_PROG_TEST_RUN`), for golden tests and benches.

use std::time::Duration;

use aya::{TestRun as _, TestRunOptions};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Dataplane, Error, Program, error::Result};

/// What a program did with a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TestRunReport {
    /// The program's return value, `TC_ACT_*`.
    pub action: u32,
    /// The packet after the last run.
    pub packet: Vec<u8>,
    /// `skb->mark` after the last run.
    pub mark: u32,
    /// Mean time of a run in whole nanoseconds.
    pub ns: u64,
}

/// `struct __sk_buff` up to what is set here.
#[repr(C)]
#[derive(Clone, Copy, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(crate) struct SkBuff {
    len: u32,
    pkt_type: u32,
    mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan_present: u32,
    vlan_tci: u32,
    vlan_proto: u32,
    priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
    /// Left zero.
    others: [[u32; 11]; 3],
    gso_size: u32,
}

/// Room for the whole `struct __sk_buff` of any kernel to come: it writes all of its own back.
const CONTEXT_ROOM: usize = 512;

/// Room for headers that a program may add.
const GROWTH: usize = 256;

/// How a packet comes to a program.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Arrival {
    /// The device whose hook it is at; it must exist in the calling thread's network namespace (an index below 2: the loopback
    /// device).
    pub ifindex: u32,
    /// The device that the host received it by; 0: the host made it.
    pub received_by: u32,
    /// `skb->mark`.
    pub mark: u32,
    /// `skb_shared_info.gso_size`; 0: no segments are to be made.
    pub segment: u32,
}

/// The context of a packet.
pub(crate) fn context(arrival: Arrival) -> SkBuff {
    let Arrival { ifindex, received_by, mark, segment } = arrival;
    SkBuff { mark, ingress_ifindex: received_by, ifindex, gso_size: segment, ..SkBuff::default() }
}

impl Dataplane {
    /// Runs `program` `repeat` times over `packet` (Ethernet header first, at least 14 bytes) as if it came as `arrival` says.
    ///
    /// Each run sees what the one before it left of the packet. Maps change as they would under traffic; redirects are not
    /// carried out.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn test_run(&self, program: Program, packet: &[u8], arrival: Arrival, repeat: u32) -> Result<TestRunReport> {
        let context = context(arrival);
        let mut packet_out = vec![0; packet.len() + GROWTH];
        let mut context_out = [0; CONTEXT_ROOM];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut packet_out),
            ctx_in: Some(context.as_bytes()),
            ctx_out: Some(&mut context_out),
            repeat,
            ..TestRunOptions::new()
        };
        let result = self.classifier(program)?.test_run(options);
        let result = result.map_err(|error| Error::Program {
            program: program.name(),
            operation: "test-run",
            source: Box::new(error),
        })?;
        packet_out.truncate(result.data_size_out as usize);
        let mark = SkBuff::read_from_prefix(&context_out).map_or(0, |(context, _)| context.mark);
        let ns = result.duration.as_nanos().try_into().unwrap_or(Duration::MAX.as_secs());
        Ok(TestRunReport { action: result.return_value, packet: packet_out, mark, ns })
    }
}
