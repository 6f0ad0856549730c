// SPDX-License-Identifier: Apache-2.0
//! The addresses of one pod CIDR.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use weft_api::{ApiError, ErrorCode};

/// A pod CIDR and which of its addresses are given out.
///
/// The network's own address, the first one (the gateway's) and, for IPv4, the last one (broadcast) are never given out.
/// Addresses are given in sequence and around, so that a freed one is the last to be given again.
#[derive(Clone, Debug)]
pub struct Pool {
    cidr: IpNet,
    /// Offsets from the network's address.
    taken: BTreeSet<u128>,
    next: u128,
}

impl Pool {
    /// Offset of the first address that workloads get.
    const FIRST: u128 = 2;

    /// All free.
    #[must_use]
    pub fn new(cidr: IpNet) -> Self {
        Self { cidr: cidr.trunc(), taken: BTreeSet::new(), next: Self::FIRST }
    }

    /// The CIDR.
    #[must_use]
    pub const fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The gateway of workloads: the first address after the network's own.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        crate::device::gateway(&self.cidr)
    }

    /// How many addresses workloads can have in all; saturates.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::try_from(self.last() - Self::FIRST + 1).unwrap_or(u64::MAX)
    }

    /// How many are given out.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.taken.len() as u64
    }

    /// Whether the CIDR contains `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address)
    }

    /// Gives out the next free address.
    ///
    /// # Errors
    /// [`ErrorCode::Exhausted`].
    pub fn allocate(&mut self) -> Result<IpAddr, ApiError> {
        let offset = self.next_free().ok_or_else(|| self.exhausted())?;
        self.next = offset + 1;
        self.taken.insert(offset);
        Ok(self.address(offset))
    }

    /// Gives out `address`.
    ///
    /// # Errors
    /// It is reserved or given out already.
    pub fn reserve(&mut self, address: IpAddr) -> Result<(), ApiError> {
        let refuse = |code, why: &str| Err(ApiError { code, message: format!("address {address} {why}") });
        let Some(offset) = self.offset(address).filter(|offset| (Self::FIRST..=self.last()).contains(offset)) else {
            let (first, last) = (self.address(Self::FIRST), self.address(self.last()));
            return refuse(ErrorCode::Invalid, &format!("is not for workloads; ask for one from {first} to {last}"));
        };
        if !self.taken.insert(offset) {
            return refuse(
                ErrorCode::Exists,
                "is given to another attachment already; ask for another, or delete that one first",
            );
        }
        Ok(())
    }

    /// Whether somebody may have more than one address: only while half of them are free, so that a few workloads do not take the
    /// addresses of all others.
    ///
    /// # Errors
    /// [`ErrorCode::Exhausted`].
    pub fn check_plenty(&self) -> Result<(), ApiError> {
        if self.used().saturating_mul(2) <= self.size() {
            return Ok(());
        }
        let message = format!(
            "{} of {} addresses of the pool {} are in use: more than one of a family is given only while half of them are free; ask \
             for one, or give the node a larger pod CIDR",
            self.used(),
            self.size(),
            self.cidr
        );
        Err(ApiError { code: ErrorCode::Exhausted, message })
    }

    /// Takes note of an address that was given out in an earlier run, whichever it is. Later ones go on behind it.
    pub fn adopt(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.taken.insert(offset);
            self.next = self.next.max(offset + 1);
        }
    }

    /// Takes an address back.
    pub fn free(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.taken.remove(&offset);
        }
    }

    fn exhausted(&self) -> ApiError {
        let message = format!(
            "no address is left in the pool {}: {} of {} are in use; delete workloads, or give the node a larger pod CIDR",
            self.cidr,
            self.used(),
            self.size()
        );
        ApiError { code: ErrorCode::Exhausted, message }
    }

    /// The first free offset from `next` on, around.
    fn next_free(&self) -> Option<u128> {
        let start = if self.next > self.last() { Self::FIRST } else { self.next };
        self.free_within(start, self.last()).or_else(|| self.free_within(Self::FIRST, start.checked_sub(1)?))
    }

    fn free_within(&self, first: u128, last: u128) -> Option<u128> {
        if first > last {
            return None;
        }
        let mut candidate = first;
        for taken in self.taken.range(first..=last) {
            if *taken > candidate {
                break;
            }
            candidate = taken + 1;
        }
        (candidate <= last).then_some(candidate)
    }

    /// Offset of the last address that workloads get.
    fn last(&self) -> u128 {
        let host_bits = u32::from(self.cidr.max_prefix_len() - self.cidr.prefix_len());
        let all_ones = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        if self.cidr.addr().is_ipv4() { all_ones - 1 } else { all_ones }
    }

    fn offset(&self, address: IpAddr) -> Option<u128> {
        match (self.cidr.network(), address) {
            _ if !self.contains(address) => None,
            (IpAddr::V4(network), IpAddr::V4(address)) => Some(u128::from(address.to_bits() - network.to_bits())),
            (IpAddr::V6(network), IpAddr::V6(address)) => Some(address.to_bits() - network.to_bits()),
            _ => None,
        }
    }

    fn address(&self, offset: u128) -> IpAddr {
        match self.cidr.network() {
            IpAddr::V4(network) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(network.to_bits().wrapping_add(offset)).into()
            }
            IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().wrapping_add(offset)).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_api::ErrorCode;

    use super::Pool;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().unwrap())
    }

    #[test]
    fn reserved_addresses_are_never_given_out() {
        let mut pool = pool("10.1.0.0/29");
        let given: Vec<String> = (0..5).map(|_| pool.allocate().unwrap().to_string()).collect();
        assert_eq!(given, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        let error = pool.allocate().unwrap_err();
        assert_eq!(error.code, ErrorCode::Exhausted);
        assert!(error.message.contains("10.1.0.0/29") && error.message.contains("5 of 5"), "{error}");
        for reserved in ["10.1.0.0", "10.1.0.1", "10.1.0.7"] {
            assert_eq!(pool.reserve(reserved.parse().unwrap()).unwrap_err().code, ErrorCode::Invalid);
        }
    }

    #[test]
    fn a_freed_address_is_the_last_to_be_given_again() {
        let mut pool = pool("10.1.0.0/29");
        let first = pool.allocate().unwrap();
        pool.free(first);
        for last in ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"] {
            assert_eq!(pool.allocate().unwrap().to_string(), last);
        }
    }

    #[test]
    fn a_large_ipv6_pool_is_no_burden() {
        let mut pool = pool("fd00:1::/64");
        assert_eq!(pool.size(), u64::MAX - 1);
        assert_eq!(pool.allocate().unwrap().to_string(), "fd00:1::2");
        pool.reserve("fd00:1::ffff".parse().unwrap()).unwrap();
        assert_eq!(pool.reserve("fd00:1::ffff".parse().unwrap()).unwrap_err().code, ErrorCode::Exists);
        assert_eq!(pool.allocate().unwrap().to_string(), "fd00:1::3");
    }

    #[test]
    fn the_smallest_pool_has_one_address() {
        let mut pool = pool("10.0.0.4/30");
        assert_eq!((pool.size(), pool.allocate().unwrap().to_string()), (1, "10.0.0.6".to_owned()));
        pool.allocate().unwrap_err();
    }
}
