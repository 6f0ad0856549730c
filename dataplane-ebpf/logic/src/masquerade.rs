// SPDX-License-Identifier: Apache-2.0
//! Masquerading: what is masqueraded how, and which ports a workload may have.
//!
//! No workload may take all ports towards a destination. So the range is cut into pairs of neighbours, and of each pair one
//! port is a workload's own, chosen by a hash of its device: half of the range, another half for everybody. This needs no
//! count that could be wrong or be flooded out of a map, and where `n` workloads take all that they can, `1 / 2^n` of another
//! one's ports are still free. A source port that a workload has chosen itself is kept where it is free, its own or not, as
//! long as few of the ports of others are kept that way.

use weft_abi::{Addr, Config, ConfigFlags, DropReason, FlowKey6};

use crate::{address, protocol, select};

/// [`crate::walk::Decision::masquerade`]: not masqueraded.
pub const NONE: u8 = 0;
/// Under a port or echo identifier that is to be found.
pub const BY_PORT: u8 = 1;
/// By address alone: the protocol has no ports, or Weft does not know where.
pub const BY_ADDRESS: u8 = 2;
/// As decided before.
pub const KEPT: u8 = 3;
/// By address, under the port that it has where that is free.
pub const WITH_PORT: u8 = 4;

/// Ports that are tried for one flow: what a full range costs in softirq is bounded.
pub const ATTEMPTS: u32 = 64;
/// The first of them are chosen at random, so that neighbours that are taken do not matter; the others are neighbours, so that
/// a small range is tried whole.
const RANDOM_ATTEMPTS: u32 = 48;

/// How a packet of `key` to the outside is masqueraded.
///
/// # Errors
/// [`DropReason::NoRoute`] where the node has no address of this family, [`DropReason::Unrewritable`] for echo replies, which
/// answer nothing: towards the node they would be requests.
#[inline(always)]
pub fn kind(config: &Config, key: &FlowKey6, is_v6: bool) -> Result<u8, DropReason> {
    if is_plain(config, is_v6) {
        return Ok(NONE);
    }
    if source(config, is_v6).is_unspecified() {
        return Err(DropReason::NoRoute);
    }
    match key.protocol as u8 {
        protocol::ICMP | protocol::ICMPV6 if key.sport == 0 && key.dport != 0 => Err(DropReason::Unrewritable),
        _ => Ok(kind_of(key.protocol)),
    }
}

/// How a protocol is masqueraded, where it is.
#[inline(always)]
#[must_use]
pub const fn kind_of(protocol_number: u32) -> u8 {
    if has_ports(protocol_number) { BY_PORT } else { BY_ADDRESS }
}

/// Whether a protocol has ports, or an identifier in their place, that can change.
#[inline(always)]
#[must_use]
pub const fn has_ports(protocol_number: u32) -> bool {
    matches!(protocol_number as u8, protocol::SCTP | protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6)
}

/// Whether packets of a family keep their addresses.
#[inline(always)]
#[must_use]
pub const fn is_plain(config: &Config, is_v6: bool) -> bool {
    config.flags & if is_v6 { ConfigFlags::PLAIN_V6 } else { ConfigFlags::PLAIN_V4 } != 0
}

/// An address that is chosen of a pool. Which one follows from the workload's address alone, and where addresses come or go only
/// those workloads move that had one which went, or get one which came: each takes the address with the greatest hash of both
/// (rendezvous hashing).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// The address; unspecified: the pool has none.
    pub address: Addr,
    /// The one that a connection has left with already, or unspecified.
    pub before: Addr,
    /// The hash of both.
    pub weight: u32,
    /// Not 0: the address that a connection leaves with already, which stays.
    pub kept: u32,
}

impl Choice {
    /// Considers an address for `workload`; one of the other family is none.
    #[inline(always)]
    pub fn consider(&mut self, workload: &Addr, address: &Addr) {
        if self.kept != 0 || address.is_unspecified() || address.is_v4() != workload.is_v4() {
            return;
        }
        if *address == self.before {
            (self.address, self.kept) = (*address, 1);
            return;
        }
        let weight = mix(address::word(workload) ^ mix(address::word(address)));
        if self.address.is_unspecified() || weight > self.weight {
            (self.address, self.weight) = (*address, weight);
        }
    }
}

/// The address that a family is masqueraded with.
#[inline(always)]
#[must_use]
pub const fn source(config: &Config, is_v6: bool) -> Addr {
    if is_v6 { config.masquerade_v6 } else { config.masquerade_v4 }
}

/// Whether a port (host byte order) is in the range.
#[inline(always)]
#[must_use]
pub const fn in_range(config: &Config, port: u16) -> bool {
    port.wrapping_sub(config.masquerade_first) < config.masquerade_count
}

/// Whether a port of the range (host byte order) is the own of the workload behind `ifindex`.
#[inline(always)]
#[must_use]
pub const fn is_own(config: &Config, ifindex: u32, port: u16) -> bool {
    let pair = port.wrapping_sub(config.masquerade_first) as u32 / 2;
    port == own_port(config, ifindex, pair)
}

/// Whether a workload that keeps `kept` ports that are not its own may keep a further one.
#[inline(always)]
#[must_use]
pub const fn may_keep(config: &Config, kept: u32) -> bool {
    kept < config.masquerade_count as u32 / 8
}

/// The `attempt`-th port (host byte order) to try for a flow of the workload behind `ifindex`; `seed`: random.
#[inline(always)]
#[must_use]
pub const fn port(config: &Config, ifindex: u32, seed: u32, attempt: u32) -> u16 {
    let pairs = (config.masquerade_count as u32).div_ceil(2);
    let pair = if attempt < RANDOM_ATTEMPTS {
        select::index(mix(seed.wrapping_add(attempt)), pairs)
    } else {
        let place = select::index(mix(seed), pairs) + attempt - RANDOM_ATTEMPTS;
        place % (if pairs == 0 { 1 } else { pairs })
    };
    own_port(config, ifindex, pair)
}

/// The port of a pair that is a workload's own; a last port without a neighbour is everybody's.
#[inline(always)]
const fn own_port(config: &Config, ifindex: u32, pair: u32) -> u16 {
    let second = mix(ifindex ^ (pair << 16)) & 1;
    let offset = pair * 2 + second;
    let offset = if offset < config.masquerade_count as u32 { offset } else { pair * 2 };
    config.masquerade_first.wrapping_add(offset as u16)
}

/// Spreads a word (the finalizer of MurmurHash3, public domain).
#[inline(always)]
#[must_use]
pub const fn mix(word: u32) -> u32 {
    let word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    let word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, count: u16) -> Config {
        Config { masquerade_first: first, masquerade_count: count, ..Config::default() }
    }

    proptest! {
        #[test]
        fn a_workload_tries_its_own_ports_of_the_range_only(
            first in 1024_u16..30_000, count in 1_u16..30_000, ifindex: u32, seed: u32, attempt in 0..ATTEMPTS,
        ) {
            let config = range(first, count);
            let port = port(&config, ifindex, seed, attempt);
            prop_assert!(in_range(&config, port));
            prop_assert!(is_own(&config, ifindex, port));
        }

        #[test]
        fn half_of_the_range_is_a_workloads_own(first in 1024_u16..30_000, count in 1_u16..3000, ifindex: u32) {
            let config = range(first, count);
            let own = (first..first + count).filter(|port| is_own(&config, ifindex, *port)).count();
            prop_assert_eq!(own, usize::from(count).div_ceil(2));
        }
    }

    fn chosen(pool: &[u32], workload: u32, before: Addr) -> Addr {
        let mut choice = Choice { before, ..Choice::default() };
        for address in pool {
            choice.consider(&Addr::v4(workload), &Addr::v4(*address));
        }
        choice.address
    }

    proptest! {
        #[test]
        fn who_does_not_lose_its_address_keeps_it(
            pool in proptest::collection::btree_set(1_u32.., 1..64), workload: u32, gone: proptest::sample::Index,
        ) {
            let pool: Vec<u32> = pool.into_iter().collect();
            let none = Addr::UNSPECIFIED;
            let first = chosen(&pool, workload, none);
            prop_assert!(pool.iter().any(|address| Addr::v4(*address) == first));
            let mut backwards = pool.clone();
            backwards.reverse();
            prop_assert_eq!(chosen(&backwards, workload, none), first, "in any order");
            let gone = pool[gone.index(pool.len())];
            let rest: Vec<u32> = pool.iter().copied().filter(|address| *address != gone).collect();
            let then = chosen(&rest, workload, none);
            if Addr::v4(gone) == first {
                prop_assert!(rest.is_empty() == then.is_unspecified());
                prop_assert_eq!(chosen(&pool, workload, then), if rest.is_empty() { first } else { then }, "a connection stays");
            } else {
                prop_assert_eq!(then, first);
            }
        }
    }

    #[test]
    fn workloads_are_spread_over_a_pool() {
        let pool: Vec<u32> = (0..8).map(|host| u32::from_ne_bytes([192, 0, 2, 32 + host])).collect();
        for subnet in 0..4_u8 {
            let mut had = std::collections::BTreeMap::new();
            for host in 0..=255 {
                let workload = u32::from_ne_bytes([10, 244, subnet, host]);
                *had.entry(chosen(&pool, workload, Addr::UNSPECIFIED).v4_word()).or_insert(0) += 1;
            }
            assert!(had.len() == 8 && had.values().all(|count| (10..60).contains(count)), "{had:?}");
        }
        assert!(chosen(&[], 1, Addr::v4(5)).is_unspecified(), "a pool of nothing");
        let mut nothing = Choice::default();
        nothing.consider(&Addr::v4(1), &Addr::UNSPECIFIED);
        nothing.consider(&Addr::v4(1), &Addr([1, 2, 3, 4]));
        nothing.consider(&Addr([1, 2, 3, 4]), &Addr::v4(1));
        assert!(
            nothing.address.is_unspecified() && nothing.kept == 0,
            "a place that is empty, one of the other family"
        );
    }

    #[test]
    fn two_workloads_share_no_more_than_about_half_of_their_ports() {
        let config = range(1024, 28_976);
        for (one, other) in [(2, 3), (17, 170), (5, 1 << 20)] {
            let both = (1024..30_000).filter(|port| is_own(&config, one, *port) && is_own(&config, other, *port));
            let both = both.count();
            assert!((6500..8000).contains(&both), "{both} of 14488");
        }
    }

    #[test]
    fn a_small_range_is_tried_whole() {
        for count in [1, 2, 3, 16, 31, 32] {
            let config = range(61_000, count);
            for seed in 0..200 {
                let tried: BTreeSet<u16> = (0..ATTEMPTS).map(|attempt| port(&config, 7, seed, attempt)).collect();
                assert_eq!(tried.len(), usize::from(count).div_ceil(2));
            }
        }
    }

    #[test]
    fn one_in_a_hundred_flows_at_most_finds_no_port_when_nine_in_ten_are_taken() {
        let config = range(1024, 28_976);
        let mut full = 0;
        for flow in 0_u32..20_000 {
            // Other ports are taken for each flow: those whose hash says so.
            let taken = |port: u16| !mix(u32::from(port) ^ (flow << 16)).is_multiple_of(10);
            let seed = mix(flow ^ 0x5a5a_0000);
            full += u32::from((0..ATTEMPTS).all(|attempt| taken(port(&config, 9, seed, attempt))));
        }
        assert!(full < 200, "{full} of 20000");
    }

    #[test]
    fn what_has_no_ports_is_masqueraded_by_address() {
        let config = Config { masquerade_v4: Addr::v4(1), ..range(1024, 100) };
        let key =
            |protocol: u8, sport, dport| FlowKey6 { protocol: protocol.into(), sport, dport, ..FlowKey6::default() };
        let kinds: Vec<_> = [
            key(protocol::TCP, 1, 2),
            key(protocol::ICMP, 0, 0),
            key(protocol::SCTP, 1, 2),
            key(47, 0, 0),
            key(50, 0, 0),
            key(protocol::UDP_LITE, 0, 0),
        ]
        .iter()
        .map(|key| kind(&config, key, false))
        .collect();
        let by_address = Ok(BY_ADDRESS);
        assert_eq!(kinds, [Ok(BY_PORT), Ok(BY_PORT), Ok(BY_PORT), by_address, by_address, by_address]);
        assert_eq!(kind(&config, &key(protocol::ICMP, 0, 5), false), Err(DropReason::Unrewritable));
        assert_eq!(kind(&config, &key(protocol::TCP, 1, 2), true), Err(DropReason::NoRoute));
        let plain = Config { flags: ConfigFlags::PLAIN_V6, ..config };
        assert_eq!(kind(&plain, &key(protocol::TCP, 1, 2), true), Ok(NONE));
    }
}
