// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What leaves the node goes where the host itself would send it: the host's routes are asked when a flow is decided.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::DropReason;
use weft_logic::{Tables as _, locate};

use crate::{
    helpers::{self, Forwarding},
    maps::{self, Kernel},
    stop,
};

/// Asks the host's routes where the end beyond the uplink is, if one of the walk's ends is: 0, or the number of the reason + 1.
/// Where the host cannot tell, the uplink stays the way. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weft_route(skb: *mut __sk_buff) -> u32 {
    stop::code(route(skb))
}

#[inline(always)]
fn route(skb: *mut __sk_buff) -> Result<(), DropReason> {
    let (Some(walk), Some(config)) = (maps::walk(), Kernel.config()) else { return Err(DropReason::Kernel) };
    let answers = walk.question.answers();
    let Some(to) = locate::beyond(&walk.decision, answers).copied() else { return Ok(()) };
    match helpers::host_route(skb, config.host_ifindex, &to) {
        Forwarding::To(route) if maps::is_heard(route.ifindex) => {
            locate::follow(&mut walk.decision, answers, &route);
            Ok(())
        }
        // What answers from there would not be heard.
        Forwarding::To(_) | Forwarding::Nowhere if !answers => Err(DropReason::NoRoute),
        _ => Ok(()),
    }
}
