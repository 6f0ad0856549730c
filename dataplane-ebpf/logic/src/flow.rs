// SPDX-License-Identifier: Apache-2.0
//! The life of a flow entry.

use weft_abi::{
    Connection, ConnectionFlags, Deliver, DropReason, Flow, FlowKey6, FlowState, OVERLAY, Timeouts, UPLINK, Way,
    WayFlags, class_in, net_of_class, ticks,
};

use crate::{Tables, header::TcpFlags, protocol, walk::Decision};

/// Packets of each direction that a question and its answer have at most: a resolver asks for two records by one socket.
const BRIEF_PACKETS: u64 = 2;

/// Ticks after which established TCP that nobody heard of makes room for others of its own workload, though its timeout is longer: peers
/// that are gone would keep a workload from connecting for as long (RFC 5382, REQ-5: 2 h 4 min).
const SILENT: u32 = ticks(124 * 60);

/// First port that is not well-known (RFC 6335).
const FIRST_USER_PORT: u16 = 1024;

/// When a connection is over, as its entries tell: the one that was looked up, and that of the other direction, if there is one. The
/// programs and the agent's sweep both ask this, so that none takes for over what the other goes by.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime<'f> {
    /// IP protocol number.
    pub protocol: u8,
    /// Port that its opener sent to, network byte order.
    pub port: u16,
    /// An entry.
    pub flow: &'f Flow,
    /// The entry of the packets that answer those of `flow`, see [`answer_key`].
    pub other: Option<&'f Flow>,
    /// When it is over.
    pub timeouts: &'f Timeouts,
}

impl<'f> Lifetime<'f> {
    /// That of the entry `flow` of packets to `dport` (network byte order).
    #[inline(always)]
    #[must_use]
    pub const fn of(
        dport: u16,
        protocol_number: u32,
        flow: &'f Flow,
        other: Option<&'f Flow>,
        timeouts: &'f Timeouts,
    ) -> Self {
        // An answer leaves under the port that was asked.
        let port = if flow.connection.flags & ConnectionFlags::REPLY != 0 { flow.connection.sport } else { dport };
        Self { protocol: protocol_number as u8, port, flow, other, timeouts }
    }

    /// Ticks since its last packet of either direction.
    #[inline(always)]
    #[must_use]
    pub const fn idle(&self, now: u32) -> u32 {
        let idle = idle(self.flow, now);
        match self.other {
            Some(other) if self::idle(other, now) < idle => self::idle(other, now),
            _ => idle,
        }
    }

    /// Idle ticks after which it is over.
    #[inline(always)]
    #[must_use]
    pub const fn timeout(&self) -> u32 {
        let Timeouts { established, transitory, datagram, unanswered, brief } = *self.timeouts;
        if self.is_left() {
            transitory
        } else if !self.is_answered() {
            unanswered
        } else if self.protocol == protocol::TCP {
            let lasts = self.has_state(FlowState::Established) && !self.has_state(FlowState::Closing);
            if lasts { established } else { transitory }
        } else if self.is_brief() {
            brief
        } else {
            datagram
        }
    }

    /// Whether neither direction had a packet for too long.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(&self, now: u32) -> bool {
        self.idle(now) > self.timeout()
    }

    /// Whether it may make room for another connection of the workload that opened it: over, closed, or nothing that somebody
    /// waits for. Established TCP does after [`SILENT`] alone.
    #[inline(always)]
    #[must_use]
    pub const fn makes_room(&self, now: u32) -> bool {
        let idle = self.idle(now);
        if idle > self.timeout() || idle > SILENT {
            return true;
        }
        if self.protocol == protocol::TCP && self.is_answered() && !self.has_state(FlowState::Closing) {
            return false;
        }
        let done = match self.other {
            Some(other) if self.protocol == protocol::TCP => is_closing(self.flow) && is_closing(other),
            // Each question has its answer.
            Some(other) => {
                self.is_answered() && self.is_brief() && self.flow.connection.packets == other.connection.packets
            }
            None => false,
        };
        // Two to three seconds: longer than an answer, or what follows a FIN or RST, is under way.
        done || idle > 2 && (self.protocol == protocol::TCP || !self.is_answered() || self.is_brief())
    }

    /// Whether a packet with these TCP flags opens a new connection on the five-tuple of this one: it was established, closed, or
    /// refused.
    #[inline(always)]
    #[must_use]
    pub const fn begins_anew(&self, flags: TcpFlags) -> bool {
        is_reopened(self.flow, flags) || flags.opens() && self.has_state(FlowState::Closing)
    }

    /// Whether TCP was answered, and the entry of its opener is gone: what it left under rests.
    const fn is_left(&self) -> bool {
        let answered = self.flow.connection.flags & ConnectionFlags::REPLY != 0 && self.flow.connection.packets != 0;
        self.protocol == protocol::TCP && self.other.is_none() && answered
    }

    /// Whether both sides were heard.
    #[inline(always)]
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        match self.other {
            Some(other) => self.flow.connection.packets != 0 && other.connection.packets != 0,
            None => false,
        }
    }

    const fn has_state(&self, state: FlowState) -> bool {
        let state = state as u8;
        self.flow.connection.state == state || matches!(self.other, Some(other) if other.connection.state == state)
    }

    const fn is_brief(&self) -> bool {
        let few = matches!(self.other, Some(other) if other.connection.packets <= BRIEF_PACKETS)
            && self.flow.connection.packets <= BRIEF_PACKETS;
        few && match self.protocol {
            protocol::ICMP | protocol::ICMPV6 => true,
            protocol::UDP => u16::from_be(self.port) < FIRST_USER_PORT,
            _ => false,
        }
    }
}

const fn is_closing(flow: &Flow) -> bool {
    flow.connection.state == FlowState::Closing as u8
}

/// Ticks since the last packet of an entry's direction; another CPU may have seen the next tick already.
const fn idle(flow: &Flow, now: u32) -> u32 {
    let idle = now.wrapping_sub(flow.way.last_seen) as i32;
    if idle < 0 { 0 } else { idle as u32 }
}

/// After how many idle ticks an entry of this state and protocol is looked at together with that of the other direction
/// ([`Lifetime`]): the established path sees one of them only.
#[inline(always)]
#[must_use]
pub const fn idle_timeout(state: u8, protocol_number: u8, timeouts: &Timeouts) -> u32 {
    if protocol_number != protocol::TCP {
        timeouts.datagram
    } else if state == FlowState::Established as u8 {
        timeouts.established
    } else {
        timeouts.transitory
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

/// Whether a packet with these TCP flags opens a new connection on a five-tuple that had an established one.
#[inline(always)]
#[must_use]
pub const fn is_reopened(flow: &Flow, flags: TcpFlags) -> bool {
    flags.opens() && flow.connection.state != FlowState::New as u8
}

/// Whether no packet of this direction came for too long. The connection lives on as long as the other direction does, see
/// [`answer_key`].
#[inline(always)]
#[must_use]
pub const fn is_idle(flow: &Flow, protocol_number: u8, now: u32, timeouts: &Timeouts) -> bool {
    idle(flow, now) > idle_timeout(flow.connection.state, protocol_number, timeouts)
}

/// Whether a flow key's `ifindex` is a class of devices that lead out of the node, and no port.
#[inline(always)]
#[must_use]
pub const fn is_from_outside(ifindex: u32) -> bool {
    net_of_class(ifindex).is_some()
}

/// Key of the packets that answer those of `flow`: from whom it sends them to, to whom they seem to come from. The entries of
/// both directions name each other by it.
#[inline(always)]
#[must_use]
pub fn answer_key(flow: &Flow, protocol_number: u32) -> FlowKey6 {
    let Connection { src, dst, sport, dport, .. } = flow.connection;
    FlowKey6 { ifindex: class(&flow.way), src: dst, dst: src, sport: dport, dport: sport, protocol: protocol_number }
}

/// Whether packets of `key` are answered by those of the entry `answers`: [`answer_key`] of it is `key`. An entry under the key of
/// the answers may be another connection's by now.
#[inline(always)]
#[must_use]
pub fn leads_back(answers: &Flow, key: &FlowKey6) -> bool {
    answers.connection.src == key.dst
        && answers.connection.dst == key.src
        && answers.connection.sport == key.dport
        && answers.connection.dport == key.sport
        && class(&answers.way) == key.ifindex
}

/// The `ifindex` in the key of the packets that answer those of `flow`.
#[inline(always)]
const fn class(way: &Way) -> u32 {
    match way.deliver {
        kind if kind == Deliver::Tunnel as u8 => class_in(OVERLAY, way.net),
        kind if kind == Deliver::Neighbour as u8 || kind == Deliver::Route as u8 => class_in(UPLINK, way.net),
        _ => way.ifindex,
    }
}

/// Whether two keys are of packets with the same addresses, ports and protocol: those of one connection, though its device may have
/// been made anew between them.
#[inline(always)]
#[must_use]
pub fn is_same_tuple(one: &FlowKey6, other: &FlowKey6) -> bool {
    one.src == other.src
        && one.dst == other.dst
        && one.sport == other.sport
        && one.dport == other.dport
        && one.protocol == other.protocol
}

/// The flag of a reason that an entry remembers until the epoch moves; 0: of any other reason the next packet asks again, since what it
/// depends on may change without moving an epoch.
#[inline(always)]
#[must_use]
pub const fn refusal(reason: DropReason) -> u8 {
    match reason {
        DropReason::PolicyEgress => WayFlags::REFUSED_EGRESS,
        DropReason::PolicyIngress => WayFlags::REFUSED_INGRESS,
        _ => 0,
    }
}

/// The place in [`weft_abi::Connection::rules`] of the rule that refuses, by a way's flags.
#[inline(always)]
#[must_use]
pub const fn refused_by(flags: u8) -> usize {
    if flags & WayFlags::REFUSED_EGRESS != 0 { Decision::EGRESS } else { Decision::INGRESS }
}

/// Why the packets of an entry with [`WayFlags::REFUSED`] are dropped.
#[inline(always)]
#[must_use]
pub const fn refused_for(flags: u8) -> DropReason {
    if flags & WayFlags::REFUSED_EGRESS != 0 { DropReason::PolicyEgress } else { DropReason::PolicyIngress }
}

/// Counts a packet of `len` bytes with these TCP flags.
#[inline(always)]
pub const fn record(connection: &mut Connection, len: u32, flags: TcpFlags) {
    connection.packets += 1;
    connection.bytes += len as u64;
    let state = next_state(connection.state, flags);
    if connection.state != state {
        connection.state = state;
    }
}

/// Whether every generation that the way was decided under still stands.
#[inline(always)]
pub fn stands<T: Tables>(tables: &T, way: &Way) -> bool {
    let of = |slot: u16| if slot == 0 { 0 } else { tables.generation(u32::from(slot)) };
    let service = if way.service == 0 { 0 } else { tables.service_generation(way.service) };
    of(way.egress).wrapping_add(of(way.ingress)).wrapping_add(service) == way.generations
}

/// Lets a way be void from the next packet on: a sum of generations that is past does not come back.
#[inline(always)]
pub const fn void(way: &mut Way) {
    way.generations = way.generations.wrapping_sub(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: TcpFlags = TcpFlags(0x02);
    const ACK: TcpFlags = TcpFlags(0x10);
    const FIN_ACK: TcpFlags = TcpFlags(0x11);
    const TIMEOUTS: Timeouts = Timeouts::DEFAULT;

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
        assert!(!is_reopened(&flow, SYN));
        flow.connection.state = FlowState::Established as u8;
        assert!(is_reopened(&flow, SYN) && !is_reopened(&flow, ACK));
    }

    #[test]
    fn an_entry_that_another_cpu_just_touched_is_not_idle() {
        let flow = seen(Flow::default(), 11);
        assert!(!is_idle(&flow, protocol::UDP, 10, &TIMEOUTS));
    }

    /// An entry whose last packet passed then.
    fn seen(flow: Flow, last_seen: u32) -> Flow {
        Flow { way: Way { last_seen, ..flow.way }, ..flow }
    }

    /// Both entries of a connection, `packets` of each direction, `states` of each.
    fn both(packets: [u64; 2], states: [FlowState; 2]) -> [Flow; 2] {
        let flow = |index: usize, flags, sport| {
            let (packets, state) = (packets[index], states[index] as u8);
            let connection = Connection { packets, state, flags, sport, ..Connection::default() };
            seen(Flow { connection, way: Way::default() }, 100)
        };
        [flow(0, 0, 0), flow(1, ConnectionFlags::REPLY, 53_u16.to_be())]
    }

    /// The idle time after which it is over, asked from either entry.
    fn timeout_of(protocol_number: u8, dport: u16, [there, back]: &[Flow; 2]) -> u32 {
        let protocol_number = u32::from(protocol_number);
        let asked = Lifetime::of(dport.to_be(), protocol_number, there, Some(back), &TIMEOUTS);
        let mut back = *back;
        back.connection.sport = dport.to_be();
        let answered = Lifetime::of(4000_u16.to_be(), protocol_number, &back, Some(there), &TIMEOUTS);
        assert_eq!(asked.timeout(), answered.timeout(), "both entries tell the same");
        let idle = |ticks| asked.is_over(100 + ticks);
        assert!(!idle(asked.timeout()) && idle(asked.timeout() + 1));
        asked.timeout()
    }

    #[test]
    fn a_connection_lives_by_both_of_its_directions() {
        use FlowState::{Closing, Established, New};
        let tcp = |packets, states| timeout_of(protocol::TCP, 443, &both(packets, states));
        assert_eq!(tcp([1, 0], [New, New]), TIMEOUTS.unanswered);
        assert_eq!(tcp([500, 0], [Established, New]), TIMEOUTS.unanswered, "nobody answers: no hours");
        assert_eq!(tcp([1, 1], [New, New]), TIMEOUTS.transitory);
        assert_eq!(tcp([2, 1], [Established, New]), TIMEOUTS.established);
        assert_eq!(tcp([9, 9], [Established, Established]), TIMEOUTS.established);
        for states in [[Closing, Established], [Established, Closing], [Closing, Closing]] {
            assert_eq!(tcp([9, 9], states), TIMEOUTS.transitory, "closed by one is closed");
        }
        let of = |protocol_number, dport, packets| timeout_of(protocol_number, dport, &both(packets, [New, New]));
        assert_eq!(of(protocol::UDP, 53, [1, 0]), TIMEOUTS.unanswered);
        assert_eq!(of(protocol::UDP, 53, [2, 2]), TIMEOUTS.brief);
        assert_eq!(of(protocol::UDP, 53, [3, 2]), TIMEOUTS.datagram);
        assert_eq!(of(protocol::UDP, 5060, [1, 1]), TIMEOUTS.datagram);
        assert_eq!(of(protocol::ICMP, 0, [1, 1]), TIMEOUTS.brief);
        assert_eq!(of(47, 0, [1, 1]), TIMEOUTS.datagram);
    }

    #[test]
    fn what_answered_tcp_left_under_rests() {
        let [there, back] = both([9, 9], [FlowState::Established, FlowState::Closing]);
        assert_eq!(Lifetime::of(9, 6, &back, None, &TIMEOUTS).timeout(), TIMEOUTS.transitory);
        let mut unanswered = back;
        unanswered.connection.packets = 0;
        for (entry, number) in [(&there, 6), (&back, 17), (&unanswered, 6)] {
            assert_eq!(Lifetime::of(9, number, entry, None, &TIMEOUTS).timeout(), TIMEOUTS.unanswered);
        }
    }

    #[test]
    fn a_direction_that_is_silent_ends_nothing() {
        let [there, back] = both([50, 50], [FlowState::New, FlowState::New]);
        let there = seen(there, 1000);
        for (flow, other) in [(&there, &back), (&back, &there)] {
            let connection = Lifetime::of(9, 17, flow, Some(other), &TIMEOUTS);
            assert_eq!(connection.idle(1005), 5);
            assert_eq!(connection.idle(999), 0, "another CPU has seen the next tick");
            assert!(!connection.is_over(1000 + TIMEOUTS.datagram) && connection.is_over(1001 + TIMEOUTS.datagram));
        }
        assert!(Lifetime::of(9, 17, &there, None, &TIMEOUTS).is_over(1001 + TIMEOUTS.unanswered));
    }

    #[test]
    fn what_somebody_waits_for_makes_no_room() {
        use FlowState::{Closing, Established, New};
        let room = |protocol_number: u8, packets, states, idle| {
            let [there, back] = both(packets, states);
            Lifetime::of(53_u16.to_be(), protocol_number.into(), &there, Some(&back), &TIMEOUTS).makes_room(100 + idle)
        };
        let (tcp, udp) = (protocol::TCP, protocol::UDP);
        assert!(room(tcp, [9, 9], [Closing, Closing], 0));
        assert!(!room(tcp, [9, 9], [Closing, Established], 2) && room(tcp, [9, 9], [Closing, Established], 3));
        assert!(!room(tcp, [9, 9], [Established, Established], SILENT));
        assert!(room(tcp, [9, 9], [Established, Established], SILENT + 1) && SILENT < TIMEOUTS.established);
        assert!(!room(tcp, [1, 1], [New, New], 60), "a handshake under way");
        assert!(!room(tcp, [1, 0], [New, New], 2) && room(tcp, [1, 0], [New, New], 3));
        assert!(room(udp, [1, 1], [New, New], 0) && room(udp, [2, 2], [New, New], 0));
        assert!(!room(udp, [2, 1], [New, New], 2) && room(udp, [2, 1], [New, New], 3), "one of two answers is missing");
        assert!(
            !room(udp, [9, 9], [New, New], TIMEOUTS.datagram) && room(udp, [9, 9], [New, New], TIMEOUTS.datagram + 1)
        );
    }

    #[test]
    fn an_entry_is_idle_by_protocol_and_state_as_configured() {
        let timeouts = Timeouts { established: 50, transitory: 40, datagram: 30, unanswered: 20, brief: 10 };
        let tcp = |state: FlowState| (state as u8, protocol::TCP);
        let of = [
            (tcp(FlowState::Established), 50),
            (tcp(FlowState::Closing), 40),
            ((FlowState::New as u8, protocol::UDP), 30),
        ];
        for ((state, protocol_number), ticks) in of {
            let mut flow = seen(Flow::default(), 10);
            flow.connection.state = state;
            assert!(!is_idle(&flow, protocol_number, 10 + ticks, &timeouts));
            assert!(is_idle(&flow, protocol_number, 11 + ticks, &timeouts));
        }
    }
}
