// SPDX-License-Identifier: Apache-2.0
//! Flow entries that are of no use any more. The programs void them by themselves; this gives their room back.

use std::collections::BTreeSet;

use nix::time::{ClockId, clock_gettime};
use weft_abi::{Flow, TICK_SHIFT};
use weft_dataplane::{Error, Maps};
use weft_logic::flow::idle_timeout;

/// Removes the entries that were idle for too long; returns how many.
///
/// # Errors
/// The kernel refuses.
pub fn sweep(maps: &Maps) -> Result<usize, Error> {
    let now = now_ticks();
    let four = maps.flows4().retain(|key, flow| !is_idle(flow, key.protocol, now))?;
    let six = maps.flows6().retain(|key, flow| !is_idle(flow, key.protocol, now))?;
    Ok(four + six)
}

/// Removes the entries of packets from or to these ports; returns how many.
///
/// # Errors
/// The kernel refuses.
pub fn forget_ports(maps: &Maps, ports: &BTreeSet<u32>) -> Result<usize, Error> {
    if ports.is_empty() {
        return Ok(0);
    }
    let stays = |from: u32, flow: &Flow| !ports.contains(&from) && !ports.contains(&flow.ifindex);
    let four = maps.flows4().retain(|key, flow| stays(key.ifindex, flow))?;
    let six = maps.flows6().retain(|key, flow| stays(key.ifindex, flow))?;
    Ok(four + six)
}

fn is_idle(flow: &Flow, protocol: u32, now: u32) -> bool {
    let protocol = u8::try_from(protocol).unwrap_or(u8::MAX);
    // An entry may be newer than `now` by a tick.
    let idle = now.saturating_sub(flow.last_seen);
    idle > idle_timeout(flow.state, protocol)
}

/// The programs' clock: `CLOCK_MONOTONIC` in units of 2^[`TICK_SHIFT`] ns.
fn now_ticks() -> u32 {
    let nanoseconds = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    });
    // Cut to 32 bits as the programs do; that is 146 years.
    u32::try_from(nanoseconds >> TICK_SHIFT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use weft_abi::Flow;

    use super::is_idle;

    const UDP: u32 = 17;

    #[test]
    fn an_entry_is_idle_after_its_time_only() {
        let limit = weft_logic::flow::idle_timeout(0, 17);
        let flow = Flow { last_seen: 100, ..Flow::default() };
        assert!(!is_idle(&flow, UDP, 99));
        assert!(!is_idle(&flow, UDP, 100 + limit));
        assert!(is_idle(&flow, UDP, 101 + limit));
    }
}
