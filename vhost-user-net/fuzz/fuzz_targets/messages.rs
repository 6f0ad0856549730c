// SPDX-License-Identifier: Apache-2.0
//! Sequences of vhost-user messages to a device.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_vhost_fuzz::messages(data));
