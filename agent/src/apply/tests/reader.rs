// SPDX-License-Identifier: Apache-2.0
//! What a reader of the maps could find, and what it must never find.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use weft_abi::{
    Addr, AddressKey, Algorithm, BackendKey, Balancer, CidrKey, Device, Frontend, FrontendFlags, FrontendKey, Member,
    MemberKey, MemberSet, Pool, Remote,
};
use weft_logic::{Tables as _, policy, ring, select};

use super::{
    cases::{addresses, source_ranges},
    fake::Fake,
};
use crate::{
    model::{Desired, DesiredAffinity, DesiredBalancer, DesiredChoice, address::cidr_key},
    plan::tests::programs::Programs,
};

/// What a reader could find: maps at one moment, or a plan.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// The pools of each device, of both families; none: the host's own address.
    pub(super) pools: BTreeMap<u32, [Option<Vec<Addr>>; 2]>,
    /// The sets of each Service port: internal, external, cluster; of each its members, then who has each of [`POSITIONS`].
    pub(super) balancers: BTreeMap<u32, [Vec<Option<Member>>; 3]>,
    /// Backends, and which sets each is of.
    pub(super) serving: BTreeMap<BackendKey, u32>,
    /// Who keeps clients, and by which algorithm and seed new ones get a backend.
    pub(super) affinities: BTreeMap<u32, (DesiredAffinity, u32, u64)>,
    /// The maps that are the plan's as they are.
    pub(super) maps: Desired,
}

fn pools(devices: &BTreeMap<u32, Device>) -> BTreeMap<u32, [Option<Vec<Addr>>; 2]> {
    let of_pool = |pool: &Pool| (pool.is_set != 0).then(|| pool.addresses().to_vec());
    devices.iter().map(|(index, device)| (*index, [of_pool(&device.pool_v4), of_pool(&device.pool_v6)])).collect()
}

const fn affinity_of(balancer: &Balancer) -> (DesiredAffinity, u32, u64) {
    (DesiredAffinity { ticks: balancer.affinity, name: balancer.name }, balancer.algorithm, balancer.seed)
}

const fn kept_of(DesiredBalancer { affinity, choice, .. }: &DesiredBalancer) -> (DesiredAffinity, u32, u64) {
    (*affinity, choice.algorithm as u32, choice.seed)
}

/// Positions between none and all of a set, at which somebody has to be found.
const POSITIONS: [u32; 8] = [0, 0x1000_0001, 0x3333_3333, 0x5555_5555, 0x7fff_ffff, 0x9999_9999, 0xd555_5555, u32::MAX];

/// Who has a position, found slowly.
fn planned_at(members: &[Member], choice: DesiredChoice, position: u32) -> Member {
    let ends = members.iter().flat_map(|member| (0..member.weight.into()).map(move |arc| (member, arc)));
    let ends = ends.map(|(member, arc)| (ring::end(choice.seed, &member.addr, member.port, arc), member));
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let mut left = (u64::from(position) * total) >> 32;
    let is_it = |member: &&Member| {
        let is_it = left < u64::from(member.weight);
        left = left.wrapping_sub(member.weight.into());
        is_it
    };
    let (next, first) = (ends.clone().filter(|(end, _)| *end >= position), ends);
    let first_of =
        |ends: &mut dyn Iterator<Item = (u32, &Member)>| ends.min_by_key(|(end, _)| *end).map(|(_, member)| *member);
    match choice.algorithm {
        Algorithm::Consistent => first_of(&mut next.into_iter()).or_else(|| first_of(&mut first.into_iter())),
        Algorithm::Random | Algorithm::LeastLoaded => members.iter().find(is_it).copied(),
    }
    .unwrap()
}

impl From<&Fake> for State {
    fn from(fake: &Fake) -> Self {
        let members = |service: u32, set: MemberSet| {
            let member = |index| fake.members.find(&MemberKey { service, set: set.set, index });
            let chosen = POSITIONS.into_iter().filter(|_| set.count != 0).map(|position| {
                let index = match set.levels {
                    0 => select::index(position, set.count),
                    _ => fake.find_on_ring(service, &set, position)?,
                };
                member(index)
            });
            (0..set.count).map(member).chain(chosen).collect()
        };
        let balancers = fake.balancers.all().into_iter();
        Self {
            pools: pools(&fake.devices.all()),
            balancers: balancers.map(|(id, balancer)| (id, balancer.sets().map(|set| members(id, set)))).collect(),
            serving: fake.backends.all(),
            affinities: fake.balancers.all().into_iter().map(|(id, balancer)| (id, affinity_of(&balancer))).collect(),
            maps: Desired {
                ports: fake.ports.all(),
                addresses: fake.addresses.all(),
                remotes: fake.remotes.all(),
                frontends: fake.frontends.all(),
                sources: fake.sources.all(),
                peers: fake.peers.all(),
                classes: fake.classes.all(),
                lists: fake.lists.all(),
                rules: fake.rules.all(),
                blocks: fake.blocks.all(),
                ..Desired::default()
            },
        }
    }
}

impl From<&Desired> for State {
    fn from(desired: &Desired) -> Self {
        let sets = |balancer: &DesiredBalancer| {
            balancer.sets().map(|set| {
                let chosen = POSITIONS.into_iter().filter(|_| !set.is_empty());
                let chosen = chosen.map(|position| planned_at(set, balancer.choice, position));
                set.iter().copied().chain(chosen).map(Some).collect()
            })
        };
        let Desired { ports, addresses, remotes, frontends, sources, peers, classes, lists, rules, blocks, .. } =
            desired.clone();
        Self {
            pools: pools(&desired.devices),
            balancers: desired.balancers.iter().map(|(id, balancer)| (*id, sets(balancer))).collect(),
            serving: desired.balancers.iter().flat_map(|(id, balancer)| balancer.names(*id)).collect(),
            affinities: desired.balancers.iter().map(|(id, balancer)| (*id, kept_of(balancer))).collect(),
            maps: Desired {
                ports,
                addresses,
                remotes,
                frontends,
                sources,
                peers,
                classes,
                lists,
                rules,
                blocks,
                ..Desired::default()
            },
        }
    }
}

impl State {
    /// The members that clients of a frontend are sent to; none: nothing leads to it.
    pub(super) fn served(&self, key: &FrontendKey) -> Option<&[Option<Member>]> {
        let Frontend { service, flags } = self.maps.frontends.get(key).filter(|frontend| frontend.service != 0)?;
        let sets = self.balancers.get(service)?;
        Some(&sets[usize::from(flags & FrontendFlags::EXTERNAL != 0)])
    }

    /// Frontends that lead to a number.
    pub(super) fn leading_to(&self, service: u32) -> BTreeSet<FrontendKey> {
        self.maps.frontends.iter().filter(|(_, frontend)| frontend.service == service).map(|(key, _)| *key).collect()
    }

    pub(super) fn names(&self, service: u32) -> BTreeSet<BackendKey> {
        self.serving.keys().filter(|name| name.service == service).copied().collect()
    }

    fn remote(&self, AddressKey { net, addr }: AddressKey) -> Option<Remote> {
        Programs(&self.maps).remote(net, &addr).copied()
    }

    /// The ports that a list allows with a peer, as bits: as the programs would say, by their own logic.
    fn allows(&self, list: u64, peer: AddressKey) -> u32 {
        let allowed = |port: &u16| policy::allows(&Programs(&self.maps), list, &peer, 6, *port, &mut 0);
        (0..16).filter(allowed).fold(0, |bits, port| bits | 1 << port)
    }

    /// Addresses of the host.
    pub(super) fn hosts(&self) -> BTreeSet<AddressKey> {
        let hosts = self.maps.addresses.iter().filter(|(_, owner)| owner.is_host());
        hosts.map(|(address, _)| *address).collect()
    }

    /// Whether a frontend serves clients of this prefix.
    fn serves(&self, key: &FrontendKey, source: IpNet) -> bool {
        self.maps.frontends.get(key).is_some_and(|frontend| {
            let key = CidrKey { net: frontend.service, ..cidr_key(source) };
            !frontend.is_limited() || self.maps.sources.contains_key(&key)
        })
    }

    /// (port, direction) to what it lets in or out.
    fn policies(&self, ifindex: u32) -> Option<[u64; 2]> {
        self.maps.ports.get(&ifindex).map(|port| [port.ingress_list, port.egress_list])
    }
}

pub(super) fn check(now: &State, old: &State, new: &State) {
    for peer in addresses() {
        assert!([old.remote(peer), new.remote(peer)].contains(&now.remote(peer)), "{peer:?} leads astray for a moment");
    }
    for (key, frontend) in &old.maps.frontends {
        let stays = new.maps.frontends.get(key).is_some_and(|new| new.service == frontend.service);
        assert!(!stays || now.maps.frontends.contains_key(key), "{key:?} is not there for a moment");
    }
    for key in old.maps.frontends.keys() {
        let of_one = |state: &State| state.maps.frontends.get(key).map(|frontend| frontend.service);
        if of_one(old) != of_one(new) || of_one(old) != of_one(now) {
            continue;
        }
        for source in source_ranges() {
            let is_served = |state: &State| state.serves(key, source);
            let asked = [is_served(old), is_served(new)];
            assert!(asked.contains(&is_served(now)), "{key:?}, {source}: {asked:?} has another answer for a moment");
        }
    }
    let hosts = now.hosts();
    for address in now.pools.values().flatten().flatten().flatten() {
        assert!(hosts.contains(&AddressKey::of_cluster(*address)), "{address:?} is not the host's for a moment");
    }
    check_what_is_open(now, old, new);
}

/// What must hold also where the kernel refuses something.
pub(super) fn check_what_is_open(now: &State, old: &State, new: &State) {
    for (key, Frontend { service, .. }) in now.maps.frontends.iter().filter(|(_, frontend)| frontend.service != 0) {
        let Some(served) = now.served(key) else { panic!("{key:?} has no balancer") };
        assert!(served.iter().all(Option::is_some), "a set without its members: {served:?}");
        assert!([old, new].iter().any(|state| state.served(key) == Some(served)), "nobody asked for {served:?}");
        let serves = |member: &Member| now.serving.contains_key(&BackendKey::new(*service, member.addr, member.port));
        assert!(served.iter().flatten().all(serves), "a backend without a name: {served:?}");
    }
    for (service, affinity) in &now.affinities {
        let asked = [old, new].iter().any(|state| state.affinities.get(service) == Some(affinity));
        // One that is closed keeps nobody.
        assert!(asked || *affinity == (DesiredAffinity::default(), 0, 0), "{service}: nobody asked for {affinity:?}");
    }
    for (index, pools) in &now.pools {
        let asked = [old, new].map(|state| state.pools.get(index));
        assert!(asked.contains(&Some(pools)), "device {index}: nobody asked for {pools:?}");
    }
    for owner in now.maps.addresses.values().filter(|owner| owner.is_workload()) {
        assert!(now.maps.ports.contains_key(&owner.ifindex), "{owner:?} leads to a port that is not there");
    }
    for ifindex in now.maps.ports.keys() {
        check_policy(*ifindex, now, old, new);
    }
}

fn check_policy(ifindex: u32, now: &State, old: &State, new: &State) {
    let (Some(is), Some(was), Some(will)) = (now.policies(ifindex), old.policies(ifindex), new.policies(ifindex))
    else {
        return;
    };
    for direction in [0, 1] {
        for peer in addresses() {
            let meant = old.allows(was[direction], peer) | new.allows(will[direction], peer);
            let opened = now.allows(is[direction], peer) & !meant;
            assert_eq!(opened, 0, "port {ifindex}: {peer:?} is let through for a moment");
        }
    }
}

/// After a pass every port is as planned, closed, or not there; where nothing was refused all are as planned.
pub(super) fn is_applied_or_closed(fake: &Fake, new: &Desired, refused: bool) {
    let (now, planned) = (State::from(fake), State::from(new));
    for ifindex in now.maps.ports.keys() {
        let (Some(is), Some(will)) = (now.policies(*ifindex), planned.policies(*ifindex)) else { continue };
        for direction in [0, 1] {
            for peer in addresses() {
                let (opens, may) = (now.allows(is[direction], peer), planned.allows(will[direction], peer));
                assert_eq!(opens & !may, 0, "port {ifindex}: {peer:?} is let through");
                assert!(refused || opens == may, "port {ifindex}: {peer:?} is kept out");
            }
        }
    }
    for (index, pools) in &now.pools {
        let wanted = planned.pools.get(index);
        assert!(wanted.is_none_or(|wanted| wanted == pools), "device {index} has stale pools: {pools:?}");
    }
    for key in now.maps.frontends.keys() {
        let (served, wanted) = (now.served(key), planned.served(key));
        assert!(served.is_none_or(<[_]>::is_empty) || served == wanted, "a stale backend of {key:?}");
    }
}

/// A flow that decides again, because the generation of its Service has moved, finds none of those who serve no more: neither new flows nor
/// those that they have.
pub(super) fn check_published(fake: &Fake, now: &State, old: &State, new: &State) {
    let generations = fake.service_generations.all();
    let serving = |state: &State, number: u32| -> BTreeSet<BackendKey> {
        let frontends = state.leading_to(number);
        let members = frontends.iter().filter_map(|key| state.served(key)).flatten().flatten();
        members.map(|member| BackendKey::new(number, member.addr, member.port)).collect()
    };
    for (number, value) in fake.balancers.all() {
        if generations.get(&number).copied().unwrap_or_default() == value.generation {
            let (is, was) = (serving(now, number), serving(old, number));
            let gone = was.difference(&is).filter(|name| !new.serving.contains_key(*name));
            let gone: Vec<_> = gone.filter(|name| now.serving.contains_key(*name)).collect();
            assert!(gone.is_empty(), "{gone:?} serve no more");
        }
    }
}
