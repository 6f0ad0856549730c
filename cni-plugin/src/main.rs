// SPDX-License-Identifier: Apache-2.0
//! `weft-cni`: the CNI plugin binary. The runtime gives the verb and its parameters in the environment and the network
//! configuration on stdin; stdout carries the result or the error as JSON and nothing else.

#![forbid(unsafe_code)]

use std::{env, io, process::ExitCode};

fn main() -> ExitCode {
    weft_cni::run(&|name| env::var(name).ok(), &mut io::stdin().lock(), &mut io::stdout().lock())
}
