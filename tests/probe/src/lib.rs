// SPDX-License-Identifier: Apache-2.0
//! What the probe and those who talk to it share.

#![forbid(unsafe_code)]

pub mod line;
