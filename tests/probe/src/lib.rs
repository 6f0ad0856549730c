// SPDX-License-Identifier: Apache-2.0
//! What the probe and those who talk to it share.

pub mod clock;
pub mod frames;
pub mod line;
