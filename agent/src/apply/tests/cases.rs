// SPDX-License-Identifier: Apache-2.0
//! Small plans, made so that two of them meet often.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use proptest::{
    collection::{btree_map, btree_set, vec},
    prelude::*,
    sample::{select, subsequence},
};
use weft_abi::{
    Addr, AddressKey, Algorithm, BlockKey, CLUSTER_NET, CidrKey, Class, Device, Frontend, FrontendFlags, FrontendKey,
    Interval, List, ListFlags, Member, NO_LIST, Owner, Pool, Port, Remote, RemoteKind, RuleKey, Run, part,
};

use crate::model::{Desired, DesiredAffinity, DesiredBalancer, DesiredChoice};

/// Addresses of the test's world.
const ADDRESSES: std::ops::Range<u8> = 0..16;
/// Destination ports that a flow may have: one bit each.
const PORTS: std::ops::Range<u16> = 0..16;

/// Lists of a plan.
const LISTS: usize = 3;
/// The first is that of a namespace.
const TERMS: [u64; 4] = [part::TERM | 1 << 16, part::TERM | 2 << 16, part::TERM | 3 << 16, part::TERM | 4 << 16];
const CLASSES: std::ops::Range<u64> = 40..44;

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

/// What a list allows: ports to everybody, to some terms, and in some blocks.
#[derive(Clone, Debug)]
struct Said {
    any: Vec<u16>,
    any_pod: Vec<u16>,
    terms: BTreeMap<u64, Vec<u16>>,
    blocks: BTreeMap<(u8, u8), Vec<u16>>,
}

fn said() -> impl Strategy<Value = Said> {
    let ports = || prop_oneof![4 => vec(PORTS, 1..4), 1 => vec(PORTS, 5..13)];
    let block = (ADDRESSES, select(&[124_u8, 126, 128][..]))
        .prop_map(|(last, bits)| (last >> (128 - bits) << (128 - bits), bits));
    let any = || prop_oneof![3 => Just(vec![]), 1 => vec(PORTS, 1..3)];
    (any(), any(), btree_map(select(&TERMS[..]), ports(), 0..4), btree_map(block, ports(), 0..3))
        .prop_map(|(any, any_pod, terms, blocks)| Said { any, any_pod, terms, blocks })
}

/// The list, under a number that is of its content alone.
fn write_list(said: &Said, desired: &mut Desired) -> u64 {
    let number = |text: String| {
        let hash = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, hash)
    };
    let (list, blocks) = (number(format!("{said:?}")), number(format!("{:?}", said.blocks)));
    let mut head = List { flags: ListFlags::ISOLATES, isolated_by: 99, blocks, ..List::EMPTY };
    let mut put = |list: u64, part: u64, ports: &[u16]| {
        let said: Vec<Interval> = ports.iter().map(|port| Interval::accept(6, *port, *port, 16)).collect();
        let key = |place| RuleKey { list, part: part + place };
        desired.rules.extend(Run::of_part(&said).map(|(place, run)| (key(place), run)));
        head.add_part(part);
    };
    if !said.any.is_empty() {
        put(list, part::ANY, &said.any);
    }
    if !said.any_pod.is_empty() {
        put(list, part::ANY_POD, &said.any_pod);
    }
    for (term, ports) in &said.terms {
        put(list, *term, ports);
    }
    let mut lengths = BTreeSet::new();
    for (number, ((last, bits), ports)) in (0..).zip(&said.blocks) {
        let part = part::BLOCKS + number * part::STEP;
        put(blocks, part, ports);
        lengths.insert(*bits);
        desired.blocks.insert(BlockKey { blocks, addr: address(*last), prefix_len: (*bits).into(), pad: 0 }, part);
    }
    head.lengths[0].iter_mut().zip(lengths.iter().rev()).for_each(|(slot, length)| *slot = *length);
    desired.lists.insert(list, head);
    list
}

/// Classes of fixed numbers that match now these terms, now others, and addresses that are in them.
fn classes() -> impl Strategy<Value = (BTreeMap<u64, Class>, BTreeMap<AddressKey, u64>)> {
    let class = btree_set(select(&TERMS[1..]), 0..3).prop_map(|terms| {
        let mut class = Class { namespace: TERMS[0], ..Class::default() };
        class.terms.iter_mut().zip(&terms).for_each(|(slot, term)| *slot = *term);
        class.version = terms.iter().fold(1, |all, term| all * 31 + (term >> 16) % 1000);
        class
    });
    (btree_map(CLASSES, class, 0..4), btree_map(address_key(), CLASSES, 0..10)).prop_map(|(classes, mut peers)| {
        peers.retain(|_, class| classes.contains_key(class));
        (classes, peers)
    })
}

/// Ports, each with an address that leads to it, and which of the lists it has.
type Ports = BTreeMap<u32, (Port, AddressKey, [Option<usize>; 2])>;

fn ports() -> impl Strategy<Value = Ports> {
    let list = || prop::option::weighted(0.8, 0..LISTS);
    btree_map(10_u32..14, (list(), list(), address_key()), 0..4).prop_map(|ports| {
        let port = |(ifindex, (ingress, egress, address)): (u32, (Option<usize>, Option<usize>, AddressKey))| {
            let port = Port { net: address.net, workload: 100 + ifindex, ..Port::default() };
            (ifindex, (port, address, [ingress, egress]))
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
    (ends, any::<bool>()).prop_map(|(ends, unequal)| {
        let mut ends: Vec<_> = ends.into_iter().map(|(end, order)| (order, end)).collect();
        ends.sort_unstable();
        let weight = |last: u8| if unequal && last % 2 == 1 { 33 } else { 100 };
        ends.into_iter().map(|(_, (last, port))| Member { addr: address(last), port, weight: weight(last) }).collect()
    })
}

/// What limited frontends may serve.
pub(super) fn source_ranges() -> [IpNet; 3] {
    ["10.0.0.0/8", "10.0.0.0/16", "192.0.2.0/24"].map(|range| range.parse().unwrap())
}

/// Whose sets are one more often than not.
fn balancer() -> impl Strategy<Value = DesiredBalancer> {
    let set = || members(5);
    let others = prop_oneof![3 => Just(None), 1 => (set(), set()).prop_map(Some)];
    let affinity = select(vec![(0, 0), (1, 1), (2, 1), (2, 2)]);
    let sources = subsequence(source_ranges().to_vec(), 0..=3);
    let choices =
        [(Algorithm::Random, 0), (Algorithm::LeastLoaded, 0), (Algorithm::Consistent, 1), (Algorithm::Consistent, 2)];
    let how = (affinity, select(choices.to_vec()));
    (set(), others, members(3), how, sources).prop_map(|(internal, others, keeping, how, sources)| {
        let ((ticks, name), (algorithm, seed)) = how;
        let (affinity, choice) = (DesiredAffinity { ticks, name }, DesiredChoice { algorithm, seed });
        let of_one =
            DesiredBalancer { affinity, choice, sources: sources.into(), ..DesiredBalancer::of(internal, keeping) };
        match others {
            Some((external, cluster)) => DesiredBalancer { external, cluster, ..of_one },
            None => of_one,
        }
    })
}

/// Frontends that share numbers, and numbers that change hands.
fn services() -> impl Strategy<Value = (BTreeMap<FrontendKey, Frontend>, BTreeMap<u32, DesiredBalancer>)> {
    // Of one number, an address is a ClusterIP or not for as long as it has it.
    let flags = |last: u8, limited: bool| match (last, limited) {
        (0..4, _) => 0,
        (_, false) => FrontendFlags::EXTERNAL,
        (_, true) => FrontendFlags::EXTERNAL | FrontendFlags::LIMITED,
    };
    let frontends = btree_map(0_u8..6, (SERVICES, any::<bool>()), 0..6);
    (frontends, vec(balancer(), SERVICES.len())).prop_map(move |(frontends, balancers)| {
        let numbers: BTreeSet<u32> = frontends.values().map(|(service, _)| *service).collect();
        let balancers = SERVICES.zip(balancers).filter(|(service, _)| numbers.contains(service)).collect();
        let cluster_ips = frontends.keys().filter(|last| flags(**last, false) == 0).map(|last| {
            (
                FrontendKey::of_address(CLUSTER_NET, frontend(*last).addr),
                Frontend { service: 0, flags: FrontendFlags::ADDRESS },
            )
        });
        let entries = frontends.iter().map(|(last, (service, limited))| {
            (frontend(*last), Frontend { service: *service, flags: flags(*last, *limited) })
        });
        (entries.chain(cluster_ips).collect(), balancers)
    })
}

fn sources_of(balancers: &BTreeMap<u32, DesiredBalancer>) -> BTreeMap<CidrKey, u32> {
    balancers.iter().flat_map(|(service, balancer)| balancer.source_entries(*service)).collect()
}

pub(super) fn desired() -> impl Strategy<Value = Desired> {
    let remotes = btree_map(prefix(), 0..=RemoteKind::Plain as u32, 0..4);
    let digests = (btree_map(110_u32..114, 1_u64..4, 0..4), 1_u64..4);
    // Few lists, so that two plans often have one in common.
    let lists = vec(prop_oneof![1 => said(), 2 => select(standing_lists())], LISTS);
    (host(), ports(), services(), classes(), lists, remotes, digests).prop_map(
        |((devices, hosts), ports, (frontends, balancers), (classes, peers), lists, remotes, digests)| {
            let owner = |(ifindex, (_, address, _)): (&u32, &(Port, AddressKey, [Option<usize>; 2]))| {
                (*address, Owner::workload(*ifindex))
            };
            let remote = |(key, kind): (CidrKey, u32)| {
                let prefix_len = u8::try_from(key.address_bits()).unwrap();
                (key, Remote { via: address(250), kind, mac: [0; 6], flags: 0, prefix_len })
            };
            let (workload_digests, routes_digest) = digests;
            let mut desired = Desired {
                devices,
                addresses: ports.iter().map(owner).chain(hosts).collect(),
                frontends,
                sources: sources_of(&balancers),
                balancers,
                classes,
                peers,
                remotes: remotes.into_iter().map(remote).collect(),
                workload_digests,
                routes_digest,
                ..Desired::default()
            };
            let numbers: Vec<u64> = lists.iter().map(|said| write_list(said, &mut desired)).collect();
            let of = |list: Option<usize>| list.map_or(NO_LIST, |list| numbers[list]);
            let with_lists =
                |(ifindex, (port, _, [ingress, egress])): (u32, (Port, AddressKey, [Option<usize>; 2]))| {
                    (ifindex, Port { ingress_list: of(ingress), egress_list: of(egress), ..port })
                };
            desired.ports = ports.into_iter().map(with_lists).collect();
            desired
        },
    )
}

fn standing_lists() -> Vec<Said> {
    let said = |terms: &[(u64, u16)]| Said {
        any: vec![],
        any_pod: vec![],
        terms: terms.iter().map(|(term, port)| (*term, vec![*port])).collect(),
        blocks: BTreeMap::new(),
    };
    vec![said(&[(TERMS[1], 1)]), said(&[(TERMS[1], 2), (TERMS[2], 3)]), said(&[(TERMS[0], 1), (TERMS[3], 2)])]
}
