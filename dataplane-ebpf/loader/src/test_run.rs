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

/// First fields of `struct __sk_buff`.
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
}

/// Room for the whole `struct __sk_buff` of any kernel to come: it writes all of its own back.
const CONTEXT_ROOM: usize = 512;

/// Room for headers that a program may add.
const GROWTH: usize = 256;

/// The context of a packet that comes through `ifindex`.
pub(crate) fn context(ifindex: u32, mark: u32) -> SkBuff {
    SkBuff { mark, ingress_ifindex: ifindex, ifindex, ..SkBuff::default() }
}

impl Dataplane {
    /// Runs `program` `repeat` times over `packet` (Ethernet header first, at least 14 bytes) as if it came through the
    /// device `ifindex`, which must exist in the calling thread's network namespace (an index below 2: the loopback device).
    ///
    /// Each run sees what the one before it left of the packet. Maps change as they would under traffic; redirects are not
    /// carried out.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn test_run(&self, program: Program, packet: &[u8], ifindex: u32, repeat: u32) -> Result<TestRunReport> {
        self.test_run_marked(program, packet, ifindex, 0, repeat)
    }

    /// [`Dataplane::test_run`] of a packet that comes with this `skb->mark`.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn test_run_marked(
        &self,
        program: Program,
        packet: &[u8],
        ifindex: u32,
        mark: u32,
        repeat: u32,
    ) -> Result<TestRunReport> {
        let context = context(ifindex, mark);
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
        let result =
            result.map_err(|error| Error::Program { program, operation: "test-run", source: Box::new(error) })?;
        packet_out.truncate(result.data_size_out as usize);
        let mark = SkBuff::read_from_prefix(&context_out).map_or(0, |(context, _)| context.mark);
        let ns = result.duration.as_nanos().try_into().unwrap_or(Duration::MAX.as_secs());
        Ok(TestRunReport { action: result.return_value, packet: packet_out, mark, ns })
    }
}
