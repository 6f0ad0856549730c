// SPDX-License-Identifier: Apache-2.0
//! Small plans, made so that two of them meet often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{
    collection::{btree_map, btree_set, vec},
    prelude::*,
};
use weft_abi::{
    ANY_IDENTITY, Addr, AddressKey, CLUSTER_NET, CidrKey, Device, Frontend, FrontendFlags, FrontendKey, Member, Owner,
    Pool, Port, PortRule, RULES_PER_CHUNK, Remote, RuleKey, Rules,
};

use crate::model::{Desired, DesiredBalancer};

/// Addresses of the test's world.
const ADDRESSES: std::ops::Range<u8> = 0..16;
/// Destination ports that a flow may have: one bit each.
const PORTS: std::ops::Range<u16> = 0..16;

const POLICIES: std::ops::Range<u32> = 0..4;
const IDENTITIES: std::ops::Range<u32> = 1..5;

pub(super) fn address(last: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([10, 0, 0, last]))
}

/// Networks of the world: the same addresses in each.
pub(super) const NETS: std::ops::Range<u32> = 0..2;

/// Every address of the world.
pub(super) fn addresses() -> impl Iterator<Item = AddressKey> {
    NETS.flat_map(|net| ADDRESSES.map(move |last| AddressKey { net, addr: address(last) }))
}

fn address_key() -> impl Strategy<Value = AddressKey> {
    (NETS, ADDRESSES).prop_map(|(net, last)| AddressKey { net, addr: address(last) })
}

/// A prefix within the world; some bits of the last byte are free, or all of the address.
fn prefix() -> impl Strategy<Value = CidrKey> {
    (prop_oneof![Just(0_u32), Just(1), Just(2), Just(4), Just(128)], NETS, ADDRESSES).prop_map(|(free, net, last)| {
        if free == 128 {
            return CidrKey::new(net, Addr::UNSPECIFIED, 0);
        }
        CidrKey::new(net, address(last >> free << free), 128 - free)
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

/// Ports, each with an address that leads to it.
fn ports() -> impl Strategy<Value = BTreeMap<u32, (Port, AddressKey)>> {
    btree_map(10_u32..14, (POLICIES, POLICIES, address_key()), 0..4).prop_map(|ports| {
        let port = |(ifindex, (ingress_policy, egress_policy, address)): (u32, (u32, u32, AddressKey))| {
            let port =
                Port { net: address.net, workload: 100 + ifindex, ingress_policy, egress_policy, ..Port::default() };
            (ifindex, (port, address))
        };
        ports.into_iter().map(port).collect()
    })
}

/// Addresses that the host may have.
const HOSTS: std::ops::Range<u8> = 100..106;

/// Devices, and the host's addresses: those of their pools are among them.
fn host() -> impl Strategy<Value = (BTreeMap<u32, Device>, BTreeMap<AddressKey, Owner>)> {
    let pool = || prop_oneof![1 => Just(None), 3 => btree_set(HOSTS, 0..4).prop_map(Some)];
    (btree_map(3_u32..6, (pool(), pool()), 0..3), btree_set(HOSTS, 0..3)).prop_map(|(pools, others)| {
        let of = |last: &u8| address(*last);
        let pool = |hosts: &Option<BTreeSet<u8>>| match hosts {
            Some(hosts) => Pool::of(&hosts.iter().map(of).collect::<Vec<_>>()),
            None => Pool::UNSET,
        };
        let in_pools = pools.values().flat_map(|(one, other)| one.iter().chain(other)).flatten();
        let owner = Owner::host(2);
        let hosts = in_pools.chain(&others).map(|last| (AddressKey::of_cluster(of(last)), owner)).collect();
        let device = |(index, (one, other)): (&u32, &(_, _))| {
            (*index, Device { pool_v4: pool(one), pool_v6: pool(other), ..Device::default() })
        };
        (pools.iter().map(device).collect(), hosts)
    })
}

/// Numbers of Service ports.
pub(super) const SERVICES: std::ops::Range<u32> = 20..24;

/// A frontend of the test's world.
pub(super) fn frontend(last: u8) -> FrontendKey {
    FrontendKey::of_cluster(address(200 + last), 80, 6)
}

/// Nobody twice.
fn members(most: usize) -> impl Strategy<Value = Arc<[Member]>> {
    let ends = btree_map((0_u8..5, 1_u16..3), any::<u8>(), 0..most);
    ends.prop_map(|ends| {
        let mut ends: Vec<_> = ends.into_iter().map(|(end, order)| (order, end)).collect();
        ends.sort_unstable();
        ends.into_iter().map(|(_, (last, port))| Member { addr: address(last), port, flags: 0 }).collect()
    })
}

/// Whose sets are one more often than not.
fn balancer() -> impl Strategy<Value = DesiredBalancer> {
    let set = || members(5);
    let others = prop_oneof![3 => Just(None), 1 => (set(), set()).prop_map(Some)];
    (set(), others, members(3)).prop_map(|(internal, others, keeping)| {
        let of_one = DesiredBalancer::of(internal, keeping);
        match others {
            Some((external, cluster)) => DesiredBalancer { external, cluster, ..of_one },
            None => of_one,
        }
    })
}

/// Frontends that share numbers, and numbers that change hands.
fn services() -> impl Strategy<Value = (BTreeMap<FrontendKey, Frontend>, BTreeMap<u32, DesiredBalancer>)> {
    // Of one number, an address is a ClusterIP or not for as long as it has it.
    let flags = |last: u8| if last < 4 { 0 } else { FrontendFlags::EXTERNAL };
    let frontends = btree_map(0_u8..6, SERVICES, 0..6);
    (frontends, vec(balancer(), SERVICES.len())).prop_map(move |(frontends, balancers)| {
        let numbers: BTreeSet<u32> = frontends.values().copied().collect();
        let balancers = SERVICES.zip(balancers).filter(|(service, _)| numbers.contains(service)).collect();
        let cluster_ips = frontends.keys().filter(|last| flags(**last) == 0).map(|last| {
            (
                FrontendKey::of_address(CLUSTER_NET, frontend(*last).addr),
                Frontend { service: 0, flags: FrontendFlags::ADDRESS },
            )
        });
        let entries = frontends
            .iter()
            .map(|(last, service)| (frontend(*last), Frontend { service: *service, flags: flags(*last) }));
        (entries.chain(cluster_ips).collect(), balancers)
    })
}

pub(super) fn desired() -> impl Strategy<Value = Desired> {
    let identities = btree_map(address_key(), IDENTITIES, 0..6);
    let cidrs = btree_map(prefix(), 0..IDENTITIES.end, 0..6);
    let remotes = btree_map(prefix(), 0_u32..3, 0..4);
    let digests = (btree_map(110_u32..114, 1_u64..4, 0..4), 1_u64..4);
    (host(), ports(), services(), identities, cidrs, rules(), remotes, digests).prop_map(
        |((devices, hosts), ports, (frontends, balancers), identities, cidrs, rules, remotes, digests)| {
            let owner = |(ifindex, (_, address)): (&u32, &(Port, AddressKey))| (*address, Owner::workload(*ifindex));
            let remote = |(key, kind)| (key, Remote { via: address(250), kind, mac: [0; 6], flags: 0 });
            let (workload_digests, routes_digest) = digests;
            Desired {
                devices,
                addresses: ports.iter().map(owner).chain(hosts).collect(),
                ports: ports.into_iter().map(|(ifindex, (port, _))| (ifindex, port)).collect(),
                frontends,
                balancers,
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
