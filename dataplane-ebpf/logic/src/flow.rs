// SPDX-License-Identifier: Apache-2.0
//! The life of a flow entry.

use weft_abi::{Deliver, Flow, FlowKey6, FlowState, OVERLAY, UPLINK};

use crate::{Tables, header::TcpFlags, protocol};

/// Idle ticks (1.07 s, [`weft_abi::TICK_SHIFT`]) after which an entry is void. TCP values follow RFC 5382 (REQ-5) and RFC 793's 2 MSL; UDP RFC 4787 (REQ-5).
pub mod timeout {
    /// TCP that was established.
    pub const ESTABLISHED: u32 = 8_000;
    /// TCP before and after.
    pub const TRANSITORY: u32 = 120;
    /// UDP, SCTP and everything else.
    pub const DATAGRAM: u32 = 180;
}

/// After how many idle ticks an entry of this state and protocol is void.
#[inline(always)]
#[must_use]
pub const fn idle_timeout(state: u8, protocol_number: u8) -> u32 {
    if protocol_number != protocol::TCP {
        timeout::DATAGRAM
    } else if state == FlowState::Established as u8 {
        timeout::ESTABLISHED
    } else {
        timeout::TRANSITORY
    }
}

/// The state after a packet with these TCP flags.
#[inline(always)]
#[must_use]
pub const fn next_state(state: u8, flags: TcpFlags) -> u8 {
    if flags.fin_or_rst() {
        FlowState::Closing as u8
    } else if state == FlowState::New as u8 && flags.ack() && !flags.syn() {
        FlowState::Established as u8
    } else {
        state
    }
}

/// Whether an entry is void for this packet although no generation moved: idle for too long, or a new connection on a
/// five-tuple that had an established one.
#[inline(always)]
#[must_use]
pub const fn is_void(flow: &Flow, protocol_number: u8, flags: TcpFlags, now: u32) -> bool {
    is_reopened(flow, flags) || is_idle(flow, protocol_number, now)
}

/// Whether a packet with these TCP flags opens a new connection on a five-tuple that had an established one.
#[inline(always)]
#[must_use]
pub const fn is_reopened(flow: &Flow, flags: TcpFlags) -> bool {
    flags.syn() && !flags.ack() && flow.state != FlowState::New as u8
}

/// Whether no packet of this direction came for too long. The connection lives on as long as the other direction does, see
/// [`answer_key`].
#[inline(always)]
#[must_use]
pub const fn is_idle(flow: &Flow, protocol_number: u8, now: u32) -> bool {
    // Signed: another CPU may have seen the next tick already.
    now.wrapping_sub(flow.last_seen) as i32 > idle_timeout(flow.state, protocol_number) as i32
}

/// Key of the packets that answer those of `flow`: from whom it sends them to, to whom they seem to come from. The entries of
/// both directions name each other by it.
#[inline(always)]
#[must_use]
pub fn answer_key(flow: &Flow, protocol_number: u32) -> FlowKey6 {
    let ifindex = match flow.deliver {
        kind if kind == Deliver::Tunnel as u8 => OVERLAY,
        kind if kind == Deliver::Neighbour as u8 || kind == Deliver::Route as u8 => UPLINK,
        _ => flow.ifindex,
    };
    let Flow { src, dst, sport, dport, .. } = *flow;
    FlowKey6 { ifindex, src: dst, dst: src, sport: dport, dport: sport, protocol: protocol_number }
}

/// Counts a packet of `len` bytes with these TCP flags.
#[inline(always)]
pub const fn record(flow: &mut Flow, len: u32, flags: TcpFlags) {
    flow.packets += 1;
    flow.bytes += len as u64;
    let state = next_state(flow.state, flags);
    if flow.state != state {
        flow.state = state;
    }
}

/// Whether every generation that the entry was decided under still stands.
#[inline(always)]
pub fn stands<T: Tables>(tables: &T, flow: &Flow) -> bool {
    [flow.egress, flow.ingress, flow.service]
        .iter()
        .all(|reference| reference.slot == 0 || tables.generation(reference.slot) == reference.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags(0x02);
    const ACK: TcpFlags = TcpFlags(0x10);
    const FIN_ACK: TcpFlags = TcpFlags(0x11);

    #[test]
    fn tcp_goes_from_new_over_established_to_closing() {
        let state = next_state(FlowState::New as u8, SYN);
        assert_eq!(state, FlowState::New as u8);
        let state = next_state(state, ACK);
        assert_eq!(state, FlowState::Established as u8);
        let state = next_state(state, FIN_ACK);
        assert_eq!(state, FlowState::Closing as u8);
        assert_eq!(next_state(state, ACK), FlowState::Closing as u8);
    }

    #[test]
    fn a_retransmitted_syn_keeps_its_entry_and_a_new_one_does_not() {
        let mut flow = Flow::default();
        assert!(!is_void(&flow, protocol::TCP, SYN, 1));
        flow.state = FlowState::Established as u8;
        assert!(is_void(&flow, protocol::TCP, SYN, 1));
        assert!(!is_void(&flow, protocol::TCP, ACK, 1));
    }

    #[test]
    fn an_entry_that_another_cpu_just_touched_is_not_void() {
        let flow = Flow { last_seen: 11, ..Flow::default() };
        assert!(!is_void(&flow, protocol::UDP, TcpFlags(0), 10));
    }

    #[test]
    fn idle_entries_are_void() {
        let flow = Flow { last_seen: 10, ..Flow::default() };
        assert!(!is_void(&flow, protocol::UDP, TcpFlags(0), 10 + timeout::DATAGRAM));
        assert!(is_void(&flow, protocol::UDP, TcpFlags(0), 11 + timeout::DATAGRAM));
    }
}
