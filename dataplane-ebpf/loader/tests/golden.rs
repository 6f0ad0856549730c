// SPDX-License-Identifier: Apache-2.0
//! Golden packets: the real programs with real maps, packet in, verdict, packet, entries and counters out. As root.

// The loader's own tests use the rest of it.
#[expect(dead_code, reason = "shared with the tests of the loader")]
mod support;

#[path = "golden/link.rs"]
mod link;
#[path = "golden/node.rs"]
mod node;
#[path = "golden/packet.rs"]
mod packet;
#[path = "golden/workload.rs"]
mod workload;
