// SPDX-License-Identifier: Apache-2.0
//! A sender whose frames share their memory: a packet socket on an interface all of whose frames the kernel mirrors to
//! the tap, some times each.
//!
//! A thousand frames of 64 KiB that were copied one by one lie in memory no processor's cache holds, and reading them
//! measures that memory. A real sender has just written what it sends. Mirrored frames are references to one copy, so a
//! full queue of them stays in the cache.

use anyhow::{Context, Result};

use crate::peer::host::{Host, Wire, run};

/// Copies of a frame; a filter may have 32 actions.
const COPIES: usize = 31;
const INTERFACE: &str = "source";
const PEER: &str = "drain";

/// The interface; it goes away with the value.
pub(crate) struct Mirror {
    wire: Wire,
}

impl Mirror {
    /// Frames sent here come to the tap.
    pub(crate) fn new(host: &Host) -> Result<Self> {
        run(&format!("ip link add {INTERFACE} type veth peer name {PEER}"))?;
        for interface in [INTERFACE, PEER] {
            run(&format!("ip link set dev {interface} up"))?;
        }
        run(&format!("tc qdisc add dev {INTERFACE} clsact"))?;
        let mirror = format!(" action mirred egress mirror dev {}", host.tap).repeat(COPIES);
        run(&format!("tc filter add dev {INTERFACE} egress protocol all u32 match u32 0 0{mirror}"))
            .context("mirroring frames to the tap (act_mirred, cls_u32)")?;
        Ok(Self { wire: Wire::open(INTERFACE, true)? })
    }

    /// Sends a packet, a virtio-net header of ten bytes and a frame, at least so often.
    pub(crate) fn send(&self, packet: &[u8], count: usize) -> Result<()> {
        (0..count.div_ceil(COPIES)).try_for_each(|_| self.wire.send(packet))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Err(error) = run(&format!("ip link delete {INTERFACE}")) {
            eprintln!("removing the interface that is mirrored: {error:#}");
        }
    }
}
