// SPDX-License-Identifier: Apache-2.0
//! Tests of the loader on the running kernel, as root.

mod support;

#[path = "kernel/filters.rs"]
mod filters;
#[path = "kernel/links.rs"]
mod links;
#[path = "kernel/maps.rs"]
mod maps;
#[path = "kernel/offload.rs"]
mod offload;
#[path = "kernel/open.rs"]
mod open;
#[path = "kernel/reuse.rs"]
mod reuse;
#[path = "kernel/run.rs"]
mod run;
#[path = "kernel/upgrade.rs"]
mod upgrade;
