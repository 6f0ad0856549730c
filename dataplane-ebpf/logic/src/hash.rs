// SPDX-License-Identifier: Apache-2.0
//! The hash of flow keys: NH (Black et al., UMAC, CRYPTO 1999) over the words of a key, with secret words, and a multiplication by a
//! secret number. Who does not know them cannot make keys that meet in one set of the table.

use weft_abi::{Addr, FlowKey4, FlowKey6, FlowSeeds};

use crate::set::Slot;

/// A key of the flow table.
pub trait FlowKey: Copy {
    /// Its slot.
    fn slot(&self, seeds: &FlowSeeds) -> Slot;
    /// Its IP protocol number.
    fn protocol(&self) -> u8;
    /// Whether both are the same; without a branch for each field.
    fn is_same(&self, other: &Self) -> bool;
}

impl FlowKey for FlowKey4 {
    #[inline(always)]
    fn slot(&self, seeds: &FlowSeeds) -> Slot {
        let k = &seeds.words;
        let sum = product(self.ifindex, k[0], self.src, k[1])
            .wrapping_add(product(self.dst, k[2], ports(self.sport, self.dport), k[3]))
            .wrapping_add(product(self.protocol, k[4], 0, k[5]));
        Slot::of(finish(sum, seeds), seeds.sets)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    #[inline(always)]
    fn is_same(&self, other: &Self) -> bool {
        let ports = ports(self.sport, self.dport) ^ ports(other.sport, other.dport);
        (self.src ^ other.src)
            | (self.dst ^ other.dst)
            | ports
            | (self.ifindex ^ other.ifindex)
            | (self.protocol ^ other.protocol)
            == 0
    }
}

impl FlowKey for FlowKey6 {
    #[inline(always)]
    fn slot(&self, seeds: &FlowSeeds) -> Slot {
        let k = &seeds.words;
        let [s0, s1, s2, s3] = self.src.0;
        let [d0, d1, d2, d3] = self.dst.0;
        let sum = product(s0, k[0], s1, k[1])
            .wrapping_add(product(s2, k[2], s3, k[3]))
            .wrapping_add(product(d0, k[4], d1, k[5]))
            .wrapping_add(product(d2, k[6], d3, k[7]))
            .wrapping_add(product(self.ifindex, k[8], ports(self.sport, self.dport), k[9]))
            .wrapping_add(product(self.protocol, k[10], 0, k[11]));
        Slot::of(finish(sum, seeds), seeds.sets)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    #[inline(always)]
    fn is_same(&self, other: &Self) -> bool {
        let ports = ports(self.sport, self.dport) ^ ports(other.sport, other.dport);
        difference(&self.src, &other.src)
            | difference(&self.dst, &other.dst)
            | ports
            | (self.ifindex ^ other.ifindex)
            | (self.protocol ^ other.protocol)
            == 0
    }
}

#[inline(always)]
const fn product(one: u32, secret: u32, other: u32, other_secret: u32) -> u64 {
    (one.wrapping_add(secret) as u64).wrapping_mul(other.wrapping_add(other_secret) as u64)
}

#[inline(always)]
const fn finish(sum: u64, seeds: &FlowSeeds) -> u64 {
    let product = (sum ^ (sum >> 32)).wrapping_mul(seeds.finish);
    product ^ (product >> 32)
}

#[inline(always)]
const fn ports(sport: u16, dport: u16) -> u32 {
    sport as u32 | (dport as u32) << 16
}

#[inline(always)]
const fn difference(one: &Addr, other: &Addr) -> u32 {
    let (Addr([a, b, c, d]), Addr([e, f, g, h])) = (*one, *other);
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
}
