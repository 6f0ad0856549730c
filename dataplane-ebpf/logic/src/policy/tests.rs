// SPDX-License-Identifier: Apache-2.0

extern crate std;

use std::{cell::RefCell, collections::BTreeMap, vec, vec::Vec};

use weft_abi::{
    BackendKey, Balancer, Config, Frontend, FrontendKey, INTERVALS_PER_RUN, MAX_MORE_RUNS, MAX_RUNS, Member, MemberKey,
    Owner, Port, Remote, RemoteKind, RingNode,
};

use super::*;
use crate::protocol::{ICMP, TCP, UDP};

const LIST: u64 = 7;
const BLOCKS: u64 = 0xb10c;
const TEAM: u64 = part::TERM | 5 << 16;
const NAMESPACE: u64 = part::TERM | 9 << 16;

/// A list, and who the peers are.
#[derive(Default)]
struct World {
    lists: BTreeMap<u64, List>,
    runs: BTreeMap<RuleKey, Run>,
    blocks: BTreeMap<BlockKey, u64>,
    classes: BTreeMap<u64, Class>,
    peers: BTreeMap<Addr, u64>,
    remotes: BTreeMap<Addr, Remote>,
    known: RefCell<BTreeMap<VerdictKey, KnownVerdict>>,
    looks: RefCell<usize>,
}

fn addr(last: u8) -> Addr {
    Addr::v4(u32::from_ne_bytes([10, 0, 0, last]))
}

fn any(bits: u8, order: u16, rule: u32) -> Interval {
    Interval { first: 0, last: u16::MAX, protocol: PROTOCOL_ANY, rule, order, bits }
}

impl World {
    fn isolated() -> Self {
        let mut world = Self::default();
        let head = List { flags: ListFlags::ISOLATES, isolated_by: 99, blocks: BLOCKS, ..List::EMPTY };
        world.lists.insert(LIST, head);
        world
    }

    fn head(&mut self) -> &mut List {
        self.lists.get_mut(&LIST).unwrap()
    }

    fn add(&mut self, part: u64, intervals: &[Interval]) {
        self.head().add_part(part);
        let list = if part & part::TERM == 0 && part >= part::BLOCKS { BLOCKS } else { LIST };
        for (place, run) in Run::of_part(intervals) {
            self.runs.insert(RuleKey { list, part: part + place }, run);
        }
    }

    fn put_block(&mut self, last: u8, length: u8, number: u64) {
        let prefix_len = u32::from(length);
        self.blocks
            .insert(BlockKey { blocks: BLOCKS, addr: truncated(&addr(last), prefix_len), prefix_len, pad: 0 }, number);
        let lengths = &mut self.head().lengths[0];
        if !lengths.contains(&length) {
            let place = lengths.iter().position(|known| *known == List::NO_LENGTH).unwrap();
            lengths[place] = length;
            lengths[..=place].sort_unstable_by(|a, b| b.cmp(a));
        }
    }

    fn put_class(&mut self, last: u8, terms: &[u64]) {
        self.put_class_of(last, 1000 + u64::from(last), terms);
    }

    fn put_class_of(&mut self, last: u8, version: u64, terms: &[u64]) {
        let mut class = Class { version, namespace: NAMESPACE, ..Class::default() };
        class.terms[..terms.len()].copy_from_slice(terms);
        self.classes.insert(last.into(), class);
        self.peers.insert(addr(last), last.into());
    }

    fn ask(&self, last: u8, protocol: u8, port: u16) -> (bool, u32) {
        let mut rule = 0;
        let peer = AddressKey::of_cluster(addr(last));
        let allowed = allows(self, LIST, &peer, protocol, port, &mut rule);
        (allowed, rule)
    }
}

impl Tables for World {
    fn config(&self) -> Option<&Config> {
        None
    }
    fn port(&self, _: u32) -> Option<&Port> {
        None
    }
    fn owner(&self, _: u32, _: &Addr) -> Option<&Owner> {
        None
    }
    fn remote(&self, _: u32, addr: &Addr) -> Option<&Remote> {
        self.remotes.get(addr)
    }
    fn frontend(&self, _: &FrontendKey) -> Option<&Frontend> {
        None
    }
    fn balancer(&self, _: &u32) -> Option<&Balancer> {
        None
    }
    fn member(&self, _: &MemberKey) -> Option<&Member> {
        None
    }
    fn ring(&self, _: &MemberKey) -> Option<&RingNode> {
        None
    }
    fn load(&self, _: &BackendKey) -> u32 {
        0
    }
    fn backend(&self, _: &BackendKey) -> u32 {
        0
    }
    fn admits(&self, _: u32, _: &Addr) -> bool {
        true
    }
    fn class_of(&self, _: u32, addr: &Addr) -> Option<u64> {
        self.peers.get(addr).copied()
    }
    fn class(&self, class: &u64) -> Option<&Class> {
        self.classes.get(class)
    }
    fn list(&self, list: &u64) -> Option<&List> {
        self.lists.get(list)
    }
    fn run(&self, key: &RuleKey) -> Option<&Run> {
        *self.looks.borrow_mut() += 1;
        self.runs.get(key)
    }
    fn block(&self, key: &BlockKey) -> Option<u64> {
        self.blocks.get(key).copied()
    }
    fn verdict(&self, key: &VerdictKey) -> Option<KnownVerdict> {
        self.known.borrow().get(key).copied()
    }
    fn remember(&self, key: &VerdictKey, verdict: &KnownVerdict) {
        self.known.borrow_mut().insert(*key, *verdict);
    }
    fn generation(&self, _: u32) -> u32 {
        0
    }
    fn service_generation(&self, _: u32) -> u32 {
        0
    }
}

#[test]
fn what_no_rule_allows_is_refused_by_those_who_isolate() {
    let mut world = World::isolated();
    assert_eq!(world.ask(1, TCP, 80), (false, 99));
    world.add(part::ANY, &[Interval::accept(TCP, 80, 81, 20), Interval::accept(UDP, 53, 53, 21)]);
    world.known.borrow_mut().clear();
    assert_eq!([79, 80, 81, 82, 53].map(|port| world.ask(1, TCP, port).0), [false, true, true, false, false]);
    assert_eq!((world.ask(1, UDP, 53), world.ask(1, ICMP, 53)), ((true, 21), (false, 99)));
}

#[test]
fn a_list_that_is_not_there_or_lacks_a_part_refuses() {
    let mut world = World::default();
    assert_eq!(world.ask(1, TCP, 80), (false, rule::BROKEN));
    world = World::isolated();
    world.add(part::ANY, &[any(Interval::bits(Verdict::Accept, Tier::Network), 0, 20)]);
    world.runs.clear();
    assert_eq!(world.ask(1, TCP, 80), (false, rule::BROKEN));
    world.add(part::ANY, &[Interval::accept(UDP, 1, 1, 20); 2 * INTERVALS_PER_RUN + 1]);
    world.runs.remove(&RuleKey { list: LIST, part: part::ANY + 2 });
    assert_eq!(world.ask(1, TCP, 80), (false, rule::BROKEN), "it goes on, and does not");
    let peer = AddressKey::of_cluster(addr(1));
    let mut rule = 5;
    assert!(!allows(&world, CLOSED_LIST, &peer, TCP, 80, &mut rule) && rule == rule::CLOSED);
    assert!(allows(&world, NO_LIST, &peer, TCP, 80, &mut rule) && rule == rule::NONE);
}

#[test]
fn terms_hold_for_their_classes_and_named_ports_for_their_numbers() {
    let mut world = World::isolated();
    let named = part::TERM | 6 << 16;
    world.add(TEAM, &[Interval::accept(TCP, 80, 80, 20)]);
    world.add(named, &[Interval::accept(TCP, 0, u16::MAX, 21)]);
    world.add(NAMESPACE, &[Interval::accept(UDP, 53, 53, 22)]);
    world.put_class(1, &[TEAM]);
    world.put_class(2, &[named | 8080]);
    world.put_class(3, &[]);
    world.peers.insert(addr(4), 77);
    assert_eq!([1, 2, 3, 9].map(|peer| world.ask(peer, TCP, 80).0), [true, false, false, false]);
    assert_eq!([8080, 8081].map(|port| world.ask(2, TCP, port)), [(true, 21), (false, 99)]);
    assert_eq!([1, 2, 3, 9].map(|peer| world.ask(peer, UDP, 53).0), [true, true, true, false]);
    assert_eq!(world.ask(4, UDP, 53), (false, rule::BROKEN), "its class is not there");
}

#[test]
fn the_narrowest_block_of_the_list_counts_alone() {
    let mut world = World::isolated();
    world.add(part::BLOCKS, &[Interval::accept(TCP, 80, 80, 20)]);
    world.add(part::BLOCKS + part::STEP, &[Interval::default()]);
    world.add(part::BLOCKS + 2 * part::STEP, &[Interval::accept(TCP, 81, 81, 21)]);
    world.put_block(0, 120, part::BLOCKS);
    world.put_block(16, 124, part::BLOCKS + part::STEP);
    world.put_block(17, 128, part::BLOCKS + 2 * part::STEP);
    assert_eq!([1, 16, 17].map(|peer| world.ask(peer, TCP, 80).0), [true, false, false]);
    assert_eq!([1, 16, 17].map(|peer| world.ask(peer, TCP, 81).0), [false, false, true]);
    let v6 = AddressKey::of_cluster(Addr([1, 2, 3, 4]));
    assert!(!allows(&world, LIST, &v6, TCP, 80, &mut 0));
}

#[test]
fn any_pod_is_told_from_where_the_address_lies() {
    let mut world = World::isolated();
    world.add(part::ANY_POD, &[any(Interval::bits(Verdict::Accept, Tier::Network), 0, 20)]);
    let kinds = [
        (RemoteKind::Tunnel, true),
        (RemoteKind::Native, true),
        (RemoteKind::Routed, true),
        (RemoteKind::Unreachable, true),
        (RemoteKind::Node, false),
        (RemoteKind::Plain, false),
        (RemoteKind::Services, false),
        (RemoteKind::OwnPods, false),
    ];
    for (last, (kind, _)) in (34..).zip(kinds) {
        world.remotes.insert(addr(last), Remote { prefix_len: 123, ..Remote::new(Addr::UNSPECIFIED, kind) });
    }
    for (last, (kind, expected)) in (34..).zip(kinds) {
        assert_eq!(world.ask(last, ICMP, 9).0, expected, "{kind:?}");
    }
    assert!(!world.ask(99, ICMP, 9).0, "outside");
}

/// The host of another node speaks to pods by the first address of its pod CIDR, and is no pod.
#[test]
fn what_another_node_has_in_its_pod_cidr_is_no_pod() {
    let mut world = World::isolated();
    world.add(part::ANY_POD, &[any(Interval::bits(Verdict::Accept, Tier::Network), 0, 20)]);
    let ask = |world: &mut World, address: Addr, prefix_len: u8| {
        let remote = Remote { prefix_len, ..Remote::new(Addr::UNSPECIFIED, RemoteKind::Tunnel) };
        world.remotes.insert(address, remote);
        world.known.borrow_mut().clear();
        allows(world, LIST, &AddressKey::of_cluster(address), TCP, 80, &mut 0)
    };
    let v6 = |words: [u32; 4]| Addr(words.map(u32::to_be));
    let found = [64, 65, 66, 95].map(|last| ask(&mut world, addr(last), 123));
    assert_eq!(found, [false, false, true, true]);
    assert_eq!([97, 98].map(|last| ask(&mut world, addr(last), 128 - 8)), [true, true], "of a wider prefix");
    assert_eq!([0, 1, 2].map(|last| ask(&mut world, v6([7, 8, 0, last]), 64)), [false, false, true]);
    assert_eq!([0, 1, 2].map(|last| ask(&mut world, v6([7, 8, 9, last]), 64)), [true, true, true]);
    assert!(!ask(&mut world, addr(3), 0), "of a prefix that is not known");
}

#[test]
fn tiers_speak_in_turn_and_the_least_order_counts() {
    let ask = |intervals: &[Interval], flags: u32| {
        let mut world = World::default();
        world.lists.insert(LIST, List { flags, isolated_by: 99, ..List::EMPTY });
        world.add(part::ANY, intervals);
        world.ask(1, TCP, 80)
    };
    let of = |verdict, tier, order, rule| any(Interval::bits(verdict, tier), order, rule);
    let (accept, deny, pass) = (Verdict::Accept, Verdict::Deny, Verdict::Pass);
    let isolates = ListFlags::ISOLATES;
    assert_eq!(ask(&[of(deny, Tier::Admin, 2, 20), of(accept, Tier::Admin, 1, 21)], isolates), (true, 21));
    assert_eq!(ask(&[of(deny, Tier::Admin, 2, 20), of(pass, Tier::Admin, 1, 21)], isolates), (false, 99));
    assert_eq!(ask(&[of(accept, Tier::Admin, 1, 20), of(deny, Tier::Admin, 1, 21)], isolates), (false, 21), "equals");
    assert_eq!(ask(&[of(accept, Tier::Admin, 1, 20), of(pass, Tier::Admin, 1, 21)], isolates), (false, 99), "equals");
    let network = of(accept, Tier::Network, 0, 22);
    assert_eq!(ask(&[of(pass, Tier::Admin, 1, 21), network], isolates), (true, 22));
    assert_eq!(ask(&[of(deny, Tier::Admin, 9, 20), network], isolates), (false, 20));
    assert_eq!(ask(&[of(deny, Tier::Baseline, 0, 23), network], isolates), (true, 22));
    assert_eq!(ask(&[of(accept, Tier::Baseline, 0, 23)], isolates), (false, 99), "isolated is final");
    assert_eq!(ask(&[of(deny, Tier::Baseline, 0, 23)], ListFlags::OPEN), (false, 23));
    assert_eq!(ask(&[of(pass, Tier::Baseline, 0, 23)], ListFlags::OPEN), (true, 0));
    assert_eq!(ask(&[of(pass, Tier::Baseline, 0, 23)], 0), (false, 0), "nobody says that it is open");
}

#[test]
fn what_is_audited_is_told_and_let_through() {
    let mut deny = any(Interval::bits(Verdict::Deny, Tier::Admin), 0, 20);
    deny.bits |= Interval::AUDIT;
    let ask = |flags, intervals: &[Interval]| {
        let mut world = World::default();
        world.lists.insert(LIST, List { flags, isolated_by: 99, ..List::EMPTY });
        if !intervals.is_empty() {
            world.add(part::ANY, intervals);
        }
        world.ask(1, TCP, 80)
    };
    assert_eq!(ask(ListFlags::OPEN, &[deny]), (true, 20 | rule::AUDITED));
    assert_eq!(ask(ListFlags::ISOLATES, &[deny]), (false, 99), "others refuse it all the same");
    assert_eq!(ask(ListFlags::ISOLATES | ListFlags::AUDITS | ListFlags::OPEN, &[]), (true, 99 | rule::AUDITED));
}

#[test]
fn a_question_that_was_asked_before_costs_no_look_at_rules() {
    let mut world = World::isolated();
    world.add(TEAM, &[Interval::accept(TCP, 80, 80, 20)]);
    world.put_class(1, &[TEAM]);
    assert_eq!(world.ask(1, TCP, 80), (true, 20));
    let looks = *world.looks.borrow();
    assert_eq!(world.ask(1, TCP, 80), (true, 20));
    assert_eq!(*world.looks.borrow(), looks);
    assert_eq!(world.ask(1, ICMP, 1), (false, 99));
    assert_eq!(world.ask(1, ICMP, 2), (false, 99));
    assert_eq!(world.known.borrow().len(), 2, "identifiers of echoes are no ports");
}

/// Memory of an entry that goes may become another one's while it is read.
#[test]
fn what_was_read_of_something_that_goes_meanwhile_is_no_answer_and_is_not_remembered() {
    let accept = any(Interval::bits(Verdict::Accept, Tier::Network), 0, 20);
    let of_one = |known: bool, goes: fn(&mut World)| {
        let mut world = World::isolated();
        world.add(TEAM, &[accept]);
        world.put_class(1, &[TEAM]);
        if known {
            assert_eq!(world.ask(1, TCP, 80), (true, 20));
        }
        let mut judging = Judging { peer: AddressKey::of_cluster(addr(1)), ..Judging::default() };
        begin(&world, &mut judging, LIST, TCP, 80);
        goes(&mut world);
        while step(&world, &mut judging) {}
        assert!(known || world.known.borrow().is_empty() || answer(&judging).allowed != 0);
        answer(&judging)
    };
    let of = |goes| {
        let found = of_one(false, goes);
        assert_eq!(found, of_one(true, goes), "known before");
        found
    };
    assert_eq!(of(|_| {}), Judged { rule: 20, allowed: 1 });
    assert_eq!(of(|world| world.lists.clear()), Judged::BROKEN);
    assert_eq!(of(|world| world.classes.clear()), Judged::BROKEN);
    assert_eq!(of(|world| world.put_class_of(1, 77, &[])), Judged::BROKEN, "another version");
    assert_eq!(of(|world| world.peers.clear()), Judged::BROKEN, "its address is in no class");
}

#[test]
fn the_answer_to_another_question_is_none() {
    let key = VerdictKey { list: 7, class: 8, block: 9, port: 80, protocol: TCP, is_pod: 0, pad: 0 };
    let known = KnownVerdict::new(&key, true, 20);
    assert_eq!((known.allows(&key), KnownVerdict::new(&key, false, 20).allows(&key)), (Some(true), Some(false)));
    let others = [
        VerdictKey { list: 8, ..key },
        VerdictKey { class: 9, ..key },
        VerdictKey { block: 0, ..key },
        VerdictKey { port: 81, ..key },
        VerdictKey { protocol: UDP, ..key },
        VerdictKey { is_pod: 1, ..key },
    ];
    assert_eq!(others.map(|other| known.allows(&other)), [None; 6]);
    assert_eq!(KnownVerdict::default().allows(&key), None);
}

/// Whatever the planner lets into a list is looked at whole, wherever the peer lies.
#[test]
fn the_longest_way_through_a_list_is_within_the_bound() {
    let mut world = World::isolated();
    let long = |runs: usize| vec![Interval::accept(UDP, 1, 1, 30); runs * INTERVALS_PER_RUN];
    world.add(part::ANY, &long(MAX_RUNS as usize));
    world.add(part::ANY_POD, &long(2 + MAX_MORE_RUNS - MAX_RUNS as usize));
    world.add(NAMESPACE, &long(1));
    let terms: Vec<u64> = (0..22).map(|n| part::TERM | (100 + n) << 16).collect();
    terms.iter().for_each(|term| world.add(*term, &long(1)));
    world.put_class(1, &terms);
    world.remotes.insert(addr(1), Remote { prefix_len: 8, ..Remote::new(Addr::UNSPECIFIED, RemoteKind::Tunnel) });
    for length in 96..=128 {
        world.put_block(200, length, part::BLOCKS);
    }
    world.blocks.retain(|key, _| key.prefix_len == 96);
    world.add(part::BLOCKS, &[Interval::accept(TCP, 80, 80, 40)]);
    assert_eq!(world.ask(1, TCP, 80), (true, 40));
}
