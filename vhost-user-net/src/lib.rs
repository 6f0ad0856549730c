// SPDX-License-Identifier: Apache-2.0
//! `weft-vhost`: a vhost-user-net device in front of a tap.
//!
//! A VMM that speaks vhost-user hands its guest's rings over; this process moves the frames between the rings and the
//! queues of the VM's tap, with the virtio-net headers passed through, so that checksum and segmentation offloads work
//! end to end. It stands alone: it needs neither the agent nor anything else of Weft.
//!
//! | Module | Job |
//! |---|---|
//! | [`args`] | the command line |
//! | [`protocol`] | messages, feature bits, the connection they come by |
//! | [`memory`], [`dirty_log`] | the guest's memory, what was written in it |
//! | [`ring`] | split virtqueues |
//! | [`device`] | requests carried out; one thread per queue pair; transmit and receive |
//! | [`port`], [`tap`] | where the frames go |
//! | [`service`], [`session`], [`socket`] | connections one after the other, as server or client; the loop of one |
//! | [`pace`] | how often something may happen |
//! | [`control`], [`metrics`], [`footprint`], [`trace`], [`log`] | what an operator sees |
//! | [`sandbox`] | what the process may do once it is set up |
//!
//! The guest is hostile. Code that touches its memory is in [`memory`], [`dirty_log`], [`ring`] and the two queue
//! modules of [`device`]; every value read from there is copied once and checked.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod args;
pub mod control;
pub mod device;
pub mod dirty_log;
pub mod footprint;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod pace;
pub mod port;
pub mod protocol;
pub mod ring;
pub mod sandbox;
pub mod service;
pub mod session;
pub mod socket;
pub mod tap;
pub mod trace;

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
