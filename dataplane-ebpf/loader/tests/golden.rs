// SPDX-License-Identifier: Apache-2.0
//! Golden packets: the real programs with real maps, packet in, verdict, packet, entries and counters out. As root.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::wrong_self_convention, reason = "from_workload and the like name hooks")]
#![expect(clippy::needless_range_loop, reason = "the family indexes several tables")]

// The loader's own tests use the rest of it.
#[expect(dead_code, reason = "shared with the tests of the loader")]
mod support;

#[path = "golden/affinity.rs"]
mod affinity;
#[path = "golden/choice.rs"]
mod choice;
#[path = "golden/connection.rs"]
mod connection;
#[path = "golden/events.rs"]
mod events;
#[path = "golden/fragments.rs"]
mod fragments;
#[path = "golden/frontends.rs"]
mod frontends;
#[path = "golden/hop_limit.rs"]
mod hop_limit;
#[path = "golden/hostile.rs"]
mod hostile;
#[path = "golden/icmp_error.rs"]
mod icmp_error;
#[path = "golden/isolation.rs"]
mod isolation;
#[path = "golden/l3.rs"]
mod l3;
#[path = "golden/life.rs"]
mod life;
#[path = "golden/link.rs"]
mod link;
#[path = "golden/lists.rs"]
mod lists;
#[path = "golden/masquerade.rs"]
mod masquerade;
#[path = "golden/mss.rs"]
mod mss;
#[path = "golden/network.rs"]
mod network;
#[path = "golden/node.rs"]
mod node;
#[path = "golden/outside.rs"]
mod outside;
#[path = "golden/packet.rs"]
mod packet;
#[path = "golden/policy.rs"]
mod policy;
#[path = "golden/pool.rs"]
mod pool;
#[path = "golden/sctp.rs"]
mod sctp;
#[path = "golden/service.rs"]
mod service;
#[path = "golden/share.rs"]
mod share;
#[path = "golden/table.rs"]
mod table;
#[path = "golden/workload.rs"]
mod workload;
