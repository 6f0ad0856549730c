// SPDX-License-Identifier: Apache-2.0
//! Sequences of what a guest and its VMM can do to a pair of rings.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_vhost_fuzz::rings(data));
