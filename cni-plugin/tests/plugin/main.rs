// SPDX-License-Identifier: Apache-2.0
//! The plugin's binary against a fake agent, with real links in network namespaces of the tests' own. Needs root.
//!
//! Each test has a "node": a namespace in which the plugin runs, so that the machine's own namespace is never touched.

#![expect(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

mod add;
mod bad_input;
mod check;
mod del;
mod device_info;
mod fake_agent;
mod gc;
mod node;
mod several;
mod status;
mod tap;
mod undo;
