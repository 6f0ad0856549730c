// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! What leaves the node goes where the host itself would send it: the host's routes are asked when a flow is decided. It leaves with the
//! address that the host would take, or one of several that the node has there for it.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::DropReason;
use weft_logic::{Tables as _, locate, protocol};

use crate::{
    helpers::{self, Forwarding, Leaving},
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
    let (src, sport, dport) = locate::leaving(&walk.decision, answers);
    let protocol = walk.decision.opener.protocol as u8;
    // An echo's identifier is no port to the host.
    let (sport, dport) = if protocol::names_ports(protocol) { (sport, dport) } else { (0, 0) };
    let packet = Leaving { src, dst: &to, protocol, sport, dport };
    let mut route = match helpers::host_route(skb, config.host_ifindex, &packet) {
        Forwarding::To(route) => route,
        Forwarding::Nowhere if !answers => return Err(DropReason::NoRoute),
        _ => return Ok(()),
    };
    let Some(device) = maps::device(route.ifindex) else {
        // What answers from there would not be heard.
        return if answers { Ok(()) } else { Err(DropReason::NoRoute) };
    };
    if route.source.is_unspecified() {
        route.source = device.address_for(&to);
    }
    locate::follow(&mut walk.decision, answers, &route);
    Ok(())
}
