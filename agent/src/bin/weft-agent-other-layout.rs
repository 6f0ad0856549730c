// SPDX-License-Identifier: Apache-2.0
//! The agent with flow tables of another layout: a second version of Weft for tests of upgrades. Never shipped.

use std::process::ExitCode;

#[path = "../main.rs"]
mod agent;

fn main() -> ExitCode {
    agent::main()
}
