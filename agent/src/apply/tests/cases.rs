// SPDX-License-Identifier: Apache-2.0
//! Small plans, made so that two of them meet often.

use std::collections::BTreeMap;

use proptest::{collection::btree_map, collection::vec, prelude::*};
use weft_abi::{
    ANY_IDENTITY, Addr, Backend, CidrKey, Local, LocalKind, Port, PortRule, RULES_PER_CHUNK, Remote, RuleKey, Rules,
    ServiceKey,
};

use crate::model::{Desired, DesiredService};

/// Addresses of the test's world.
pub(super) const ADDRESSES: std::ops::Range<u8> = 0..16;
/// Destination ports that a flow may have: one bit each.
const PORTS: std::ops::Range<u16> = 0..16;

const POLICIES: std::ops::Range<u32> = 0..4;
const IDENTITIES: std::ops::Range<u32> = 1..5;

pub(super) fn address(last: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([10, 0, 0, last]))
}

/// A prefix within the world; `bits` of the last byte are free.
fn prefix() -> impl Strategy<Value = CidrKey> {
    (prop_oneof![Just(0_u32), Just(1), Just(2), Just(4), Just(128)], ADDRESSES).prop_map(|(free, last)| {
        if free == 128 {
            return CidrKey { prefix_len: 0, addr: Addr::UNSPECIFIED };
        }
        CidrKey { prefix_len: 128 - free, addr: address(last >> free << free) }
    })
}

fn chunks(rules: Vec<u16>) -> Vec<Rules> {
    let pieces: Vec<&[u16]> = rules.chunks(RULES_PER_CHUNK).collect();
    let chunk = |(position, piece): (usize, &&[u16])| {
        let mut chunk = Rules { more: u16::from(position + 1 < pieces.len()), ..Rules::default() };
        for (slot, port) in chunk.rules.iter_mut().zip(*piece) {
            *slot = PortRule { first: *port, last: *port, protocol: 6, pad: 0 };
            chunk.count += 1;
        }
        chunk
    };
    pieces.iter().enumerate().map(chunk).collect()
}

fn rules() -> impl Strategy<Value = BTreeMap<RuleKey, Rules>> {
    let identity = prop_oneof![4 => IDENTITIES, 1 => Just(ANY_IDENTITY)];
    let allowed = prop_oneof![4 => vec(PORTS, 1..4), 1 => vec(PORTS, 11..24)];
    btree_map((POLICIES.start + 1..POLICIES.end, identity), allowed, 0..8).prop_map(|pairs| {
        let mut rules = BTreeMap::new();
        for ((policy, identity), allowed) in pairs {
            for (chunk, value) in (0..).zip(chunks(allowed)) {
                rules.insert(RuleKey { policy, identity, chunk }, value);
            }
        }
        rules
    })
}

fn ports() -> impl Strategy<Value = BTreeMap<u32, Port>> {
    btree_map(10_u32..14, (POLICIES, POLICIES, ADDRESSES), 0..4).prop_map(|ports| {
        let port = |(ifindex, (ingress_policy, egress_policy, last))| {
            let port =
                Port { v4: address(last), workload: 100 + ifindex, ingress_policy, egress_policy, ..Port::default() };
            (ifindex, port)
        };
        ports.into_iter().map(port).collect()
    })
}

/// Addresses and ports.
type Ends = Vec<(u8, u16)>;

fn services() -> impl Strategy<Value = BTreeMap<ServiceKey, DesiredService>> {
    let backends = vec((ADDRESSES, 1_u16..3), 0..5);
    let keeping = vec((ADDRESSES, 1_u16..3), 0..3);
    // A frontend has one of two numbers, so that numbers change hands.
    btree_map(0_u8..4, (any::<bool>(), backends, keeping), 0..4).prop_map(|services| {
        let service = |(last, (other, chosen, keeping)): (u8, (bool, Ends, Ends))| {
            let key = ServiceKey { addr: address(200 + last), port: 80, protocol: 6, pad: 0 };
            let backend = |(last, port)| Backend { addr: address(last), port, flags: 0 };
            let id = 20 + u32::from(last) + if other { 4 } else { 0 };
            let backends = |ends: Ends| ends.into_iter().map(backend).collect();
            (key, DesiredService { id, backends: backends(chosen), keeping: backends(keeping) })
        };
        services.into_iter().map(service).collect()
    })
}

pub(super) fn desired() -> impl Strategy<Value = Desired> {
    let identities = btree_map(ADDRESSES.prop_map(address), IDENTITIES, 0..6);
    let cidrs = btree_map(prefix(), 0..IDENTITIES.end, 0..6);
    let remotes = btree_map(prefix(), 0_u32..3, 0..4);
    let digests = btree_map(110_u32..114, 1_u64..4, 0..4);
    (ports(), services(), identities, cidrs, rules(), remotes, digests, 1_u64..4).prop_map(
        |(ports, services, identities, cidrs, rules, remotes, workload_digests, routes_digest)| {
            let local = |(ifindex, port): (&u32, &Port)| {
                (port.v4, Local { ifindex: *ifindex, kind: LocalKind::Workload as u32 })
            };
            let remote = |(key, kind)| (key, Remote { via: address(250), kind, mac: [0; 6], flags: 0 });
            Desired {
                locals: ports.iter().map(local).collect(),
                ports,
                services,
                identities,
                cidrs,
                rules,
                remotes: remotes.into_iter().map(remote).collect(),
                workload_digests,
                routes_digest,
                ..Desired::default()
            }
        },
    )
}
