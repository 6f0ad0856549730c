// SPDX-License-Identifier: Apache-2.0
//! Properties of the packet logic on the host: the same code that the programs run, on tables and packets in memory.

#[path = "logic/admission.rs"]
mod admission;
#[path = "logic/affinity.rs"]
mod affinity;
#[path = "logic/decisions.rs"]
mod decisions;
#[path = "logic/headers.rs"]
mod headers;
#[path = "logic/sources.rs"]
mod sources;
#[path = "logic/world.rs"]
mod world;
