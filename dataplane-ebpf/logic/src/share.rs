// SPDX-License-Identifier: Apache-2.0
//! What a port may take of what all share: tokens by time, room by count.

use weft_abi::{Config, Deliver, FlowAccount, LED_ON, OPENED, RECEIVED, Way};

use crate::flow;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Takes a token of a bucket that `rate` tokens a second fill up to twice as many (0: it is never empty); whether there was
/// one. `full_at` is all that the bucket is: the time at which it is full again, in nanoseconds of the clock of `now`.
#[inline(always)]
pub const fn take_token(full_at: &mut u64, rate: u32, now: u64) -> bool {
    if rate == 0 {
        return true;
    }
    let cost = SECOND / rate as u64;
    let from = if *full_at > now { *full_at } else { now };
    if from - now + cost > 2 * SECOND {
        return false;
    }
    *full_at = from + cost;
    true
}

/// What a further connection of an account finds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// There is room for it.
    Free,
    /// One of the account's own must make room for it.
    Own,
}

/// Whether a further connection of one family has room, its account and those of all ports having these; `ports`: how many ports
/// have connections.
///
/// A port takes its share. Beyond `flow_most`, three quarters of the table, it takes what it would have if all had the same, and
/// the last eighth is for those that have less than their floor. So one port's flows never push out another's, and neither do
/// those of all others together.
#[inline(always)]
#[must_use]
pub const fn room(config: &Config, v6: bool, account: u32, all: u32, ports: u32) -> Room {
    let [share, most, floor] = limits(config, v6);
    let is_fair = account < most / if ports == 0 { 1 } else { ports } && all < most + most / 6;
    if share == 0 || (account < share && (all < most || account < floor || is_fair)) { Room::Free } else { Room::Own }
}

/// A family's share, most and floor.
#[inline(always)]
const fn limits(config: &Config, v6: bool) -> [u32; 3] {
    let Config { flow_share: [share4, share6], flow_most: [most4, most6], flow_floor: [floor4, floor6], .. } = *config;
    if v6 { [share6, most6, floor6] } else { [share4, most4, floor4] }
}

/// Whether the programs should remember a connection in the order it came in: where room gets scarce, for the account or for
/// all. Those that came before are never asked to make room, and who stays below pays nothing.
#[inline(always)]
#[must_use]
pub const fn is_remembered(config: &Config, v6: bool, account: u32, all: u32) -> bool {
    let [share, most, _] = limits(config, v6);
    share != 0 && (account >= share / 2 || all >= most / 2)
}

/// The account of a connection: whose, and its index in [`weft_abi::Share::flows`]. `from`: the `ifindex` of its opener's key; `way`: its
/// opener's; `forwarded`: see [`weft_abi::ConnectionFlags::FORWARDED`]. None: the host opened it, which is not held to a share.
///
/// What comes from other nodes and the outside, also by way of the host's stack, is booked on its receiver: nobody here opened
/// it, and a flood closes for the one that it is aimed at. What does not stay here a Service leads on, and it is booked on that.
#[inline(always)]
#[must_use]
pub const fn account(from: u32, way: &Way, v6: bool, host: u32, forwarded: bool) -> Option<(u32, usize)> {
    let received = flow::is_from_outside(from) || (from == host && forwarded);
    if from == host && !received {
        return None;
    }
    let (ifindex, first) = if !received {
        (from, OPENED)
    } else if way.deliver >= Deliver::Tunnel as u8 {
        (LED_ON | way.service, RECEIVED)
    } else {
        (way.ifindex, RECEIVED)
    };
    Some((ifindex, first + v6 as usize))
}

/// Forgets the oldest ones that have been written over: a ring of `size` holds no more.
#[inline(always)]
pub const fn bound(account: &mut FlowAccount, size: u32) {
    if account.next.wrapping_sub(account.oldest) > size {
        account.oldest = account.next.wrapping_sub(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let (mut full_at, start) = (0, 77 * SECOND);
        let taken = |full_at: &mut u64, now| (0..1000).filter(|_| take_token(full_at, 100, now)).count();
        assert_eq!(taken(&mut full_at, start), 200, "twice the rate at once");
        assert_eq!(taken(&mut full_at, start), 0);
        assert_eq!(taken(&mut full_at, start + SECOND / 2), 50);
        assert_eq!(taken(&mut full_at, start + 100 * SECOND), 200, "never more than the burst");
        assert_eq!((0..1000).filter(|_| take_token(&mut full_at, 0, start)).count(), 1000, "0 is no limit");
    }

    #[test]
    fn a_port_has_its_share_and_when_the_table_fills_its_floor() {
        let config = Config { flow_share: [100, 50], flow_most: [300, 150], flow_floor: [10, 5], ..Config::default() };
        assert_eq!(room(&config, false, 99, 299, 40), Room::Free);
        assert_eq!(room(&config, false, 100, 100, 40), Room::Own);
        assert_eq!(room(&config, false, 10, 300, 40), Room::Own);
        assert_eq!(room(&config, false, 9, 400, 40), Room::Free);
        // Few ports: what all would have is more than the floor, up to the last eighth.
        assert_eq!(room(&config, false, 74, 349, 4), Room::Free);
        assert_eq!(room(&config, false, 75, 300, 4), Room::Own);
        assert_eq!(room(&config, false, 74, 350, 4), Room::Own);
        assert_eq!(room(&config, true, 49, 149, 40), Room::Free);
        assert_eq!(room(&config, true, 50, 50, 40), Room::Own);
        assert_eq!(room(&Config::default(), false, u32::MAX, u32::MAX, 0), Room::Free);
    }

    #[test]
    fn connections_are_booked_on_who_opened_them_or_who_receives_them() {
        let to = |ifindex, deliver: Deliver| Way { ifindex, deliver: deliver as u8, service: 5, ..Way::default() };
        let (pod, host) = (to(9, Deliver::Peer), to(1, Deliver::Host));
        assert_eq!(account(7, &pod, false, 1, false), Some((7, OPENED)));
        assert_eq!(account(7, &pod, true, 1, false), Some((7, OPENED + 1)));
        assert_eq!(account(weft_abi::OVERLAY, &pod, true, 1, false), Some((9, RECEIVED + 1)));
        assert_eq!(account(1, &pod, false, 1, true), Some((9, RECEIVED)), "what the host forwards");
        assert_eq!(account(1, &pod, false, 1, false), None, "what it sends");
        assert_eq!(account(weft_abi::OVERLAY, &host, false, 1, false), Some((1, RECEIVED)), "what it gets");
        for on in [Deliver::Tunnel, Deliver::Neighbour, Deliver::Route] {
            assert_eq!(account(weft_abi::UPLINK, &to(3, on), true, 1, false), Some((LED_ON | 5, RECEIVED + 1)));
        }
        assert_eq!(account(7, &to(3, Deliver::Route), false, 1, false), Some((7, OPENED)));
    }

    #[test]
    fn a_ring_forgets_what_it_wrote_over() {
        let mut account = FlowAccount { count: 0, oldest: u32::MAX - 1, next: 9 };
        bound(&mut account, 100);
        assert_eq!(account.oldest, u32::MAX - 1);
        bound(&mut account, 8);
        assert_eq!(account.oldest, 1);
    }
}
