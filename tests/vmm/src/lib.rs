// SPDX-License-Identifier: Apache-2.0
//! A virtual machine monitor for tests and benches of vhost-user-net: KVM, and a guest made by hand.
//!
//! A [`Machine`] has memory in a memfd and one processor, which runs the virtio-net driver of [`guest`]. A [`FrontEnd`]
//! hands its rings to a device with KVM's ioeventfd as the kick and its irqfd as the call, so that neither passes the
//! monitor. README.md says how the guest works. A [`HeldGuest`] has no processor: a test drives its rings.

mod bare;
pub mod events;
mod front_end;
pub mod guest;
mod held;
mod kvm;
mod machine;
mod ram;
mod tables;
mod thread;
mod vcpu;

pub use bare::BareDevice;
pub use front_end::{EVENT_IDX, FrontEnd, LOG_ALL, MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1};
pub use guest::abi::Task;
pub use held::HeldGuest;
pub use machine::{Kind, Machine, Setup, Work};
pub use ram::Ram;
