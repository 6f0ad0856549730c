// SPDX-License-Identifier: Apache-2.0
//! The vhost-user protocol: messages, feature bits, the connection they come by.
//!
//! The stock Rust crates are not used here: they refuse `SET_VRING_ENABLE` before `SET_FEATURES`, which is the order in
//! which QEMU sends them, and know neither RARP, MTU nor the dirty log of memory added while it is in force.

pub mod channel;
pub mod features;
pub mod message;
