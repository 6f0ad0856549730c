// SPDX-License-Identifier: Apache-2.0
//! A sender whose frames share their memory: a packet socket on an interface all of whose frames the kernel mirrors to
//! the tap, many times each.
//!
//! Thousands of frames of 64 KiB that were copied one by one lie in memory no processor's cache holds, and reading them
//! measures that memory. A real sender has just written what it sends. Mirrored frames are references to one copy, so a
//! full queue of them stays in the cache.

use anyhow::{Context, Result};

use crate::bare::wait_for_carrier;
use crate::peer::host::{Host, Wire, run};

/// References to a frame that one filter makes; it may have 32 actions.
const ACTIONS: usize = 31;
/// Two interfaces in a row: a frame on the first goes to the second, and from there to the tap.
const FIRST: &str = "source0";
const SECOND: &str = "source1";
/// Their other ends, where the frames themselves go.
const DRAINS: [&str; 2] = ["drain0", "drain1"];
/// References to one frame that reach the tap.
const COPIES: usize = ACTIONS * ACTIONS;

/// The interfaces; they go away with the value.
pub(crate) struct Mirror {
    wire: Wire,
}

impl Mirror {
    /// Frames sent here come to the tap.
    pub(crate) fn new(host: &Host) -> Result<Self> {
        for (interface, drain) in [FIRST, SECOND].into_iter().zip(DRAINS) {
            run(&format!("ip link add {interface} type veth peer name {drain}"))?;
            run(&format!("ip link set dev {drain} up"))?;
            run(&format!("ip link set dev {interface} up"))?;
            wait_for_carrier(interface)?;
        }
        mirror(FIRST, SECOND)?;
        mirror(SECOND, &host.tap)?;
        Ok(Self { wire: Wire::open(FIRST, true)? })
    }

    /// Sends a packet, a virtio-net header of ten bytes and a frame, at least so often.
    pub(crate) fn send(&self, packet: &[u8], count: usize) -> Result<()> {
        (0..count.div_ceil(COPIES)).try_for_each(|_| self.wire.send(packet))
    }
}

/// Has all that leaves one interface leave another one, too, many times.
fn mirror(from: &str, to: &str) -> Result<()> {
    run(&format!("tc qdisc add dev {from} clsact"))?;
    let actions = format!(" action mirred egress mirror dev {to}").repeat(ACTIONS);
    run(&format!("tc filter add dev {from} egress protocol all u32 match u32 0 0{actions}"))
        .with_context(|| format!("mirroring {from} to {to} (act_mirred, cls_u32)"))
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for interface in [FIRST, SECOND] {
            if let Err(error) = run(&format!("ip link delete {interface}")) {
                eprintln!("removing an interface that is mirrored: {error:#}");
            }
        }
    }
}
