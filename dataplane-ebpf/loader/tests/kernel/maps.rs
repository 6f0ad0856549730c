// SPDX-License-Identifier: Apache-2.0
//! The typed handles.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use weft_abi::{
    Addr, CidrKey, Config, Connection, Counter, DropReason, Flow, FlowKey4, Line4, Member, MemberKey, Port, Remote,
    Tally, map,
};
use weft_dataplane::{Dataplane, Error, MapSizes, Options};

use crate::support::Sandbox;

fn member(index: u32) -> (MemberKey, Member) {
    let key = MemberKey { service: 1, set: 1, index };
    (key, Member::new(Addr::v4(index), 80))
}

#[test]
fn a_hash_holds_what_was_put_in() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let members = dataplane.maps().members();
    assert!(members.is_empty().unwrap());
    // More than one batch of a listing.
    let wanted: BTreeMap<_, _> = (0..5000).map(member).collect();
    for (key, value) in &wanted {
        members.insert(key, value).unwrap();
    }
    let found: Vec<_> = members.iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(found.len(), 5000, "each once");
    assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), wanted);
    let (key, value) = member(17);
    assert_eq!(members.get(&key).unwrap(), Some(value));
    assert!(members.remove(&key).unwrap());
    assert!(!members.remove(&key).unwrap(), "there is none to remove any more");
    assert_eq!(members.get(&key).unwrap(), None);
    assert_eq!(members.retain(|key, _| key.index < 10).unwrap(), 4989);
    assert_eq!(members.len().unwrap(), 10);
}

#[test]
fn a_listing_ends_while_entries_come_and_go() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let maps = dataplane.maps().clone();
    let stays: Vec<_> = (0..1000).map(member).collect();
    for (key, value) in &stays {
        maps.members().insert(key, value).unwrap();
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for (key, value) in (1000..4000).map(member).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                maps.members().insert(&key, &value).unwrap();
                maps.members().remove(&key).unwrap();
            }
        });
        for _ in 0..20 {
            let found: Vec<_> =
                maps.members().iter().map(|entry| entry.unwrap().0).filter(|key| key.index < 1000).collect();
            assert_eq!(found.len(), 1000, "what stays is seen once");
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), 1000);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_full_map_says_which_and_how_large() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let ports = dataplane.maps().ports();
    for ifindex in 0..256 {
        ports.insert(&ifindex, &Port::default()).unwrap();
    }
    let error = ports.insert(&256, &Port::default()).unwrap_err();
    assert!(matches!(error, Error::Full { map: map::PORTS, max_entries: 256 }), "{error}");
    ports.insert(&255, &Port { workload: 3, ..Port::default() }).expect("replacing needs no room");
}

#[test]
fn a_trie_answers_with_the_longest_prefix() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let remotes = dataplane.maps().remotes();
    let prefix = |octets: [u8; 4], bits: u32| CidrKey::of_cluster(Addr::v4(u32::from_ne_bytes(octets)), 96 + bits);
    let remote = |kind| Remote { via: Addr::UNSPECIFIED, kind, mac: [0; 6], flags: 0, prefix_len: 0 };
    let (wide, narrow) = (prefix([10, 0, 0, 0], 8), prefix([10, 1, 0, 0], 16));
    remotes.insert(&wide, &remote(8)).unwrap();
    remotes.insert(&narrow, &remote(16)).unwrap();
    assert_eq!(remotes.get(&prefix([10, 1, 2, 3], 32)).unwrap(), Some(remote(16)));
    assert_eq!(remotes.get(&prefix([10, 2, 2, 3], 32)).unwrap(), Some(remote(8)));
    assert_eq!(remotes.get(&prefix([11, 0, 0, 0], 32)).unwrap(), None);
    let all: BTreeMap<_, _> = remotes
        .iter()
        .collect::<Result<Vec<_>, _>>()
        .unwrap()
        .into_iter()
        .map(|(key, value)| (key, value.kind))
        .collect();
    assert_eq!(all, BTreeMap::from([(wide, 8), (narrow, 16)]));
    assert!(!remotes.remove(&prefix([10, 1, 2, 3], 32)).unwrap(), "only that very prefix");
    assert!(remotes.remove(&narrow).unwrap());
    assert_eq!(remotes.get(&prefix([10, 1, 2, 3], 32)).unwrap(), Some(remote(8)));
}

#[test]
fn a_trie_of_many_prefixes_is_listed_and_emptied_whole() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let remotes = dataplane.maps().remotes();
    for number in 0..1500_u32 {
        let key = CidrKey::of_cluster(Addr::v4(number.to_be()), 128);
        remotes
            .insert(&key, &Remote { via: Addr::UNSPECIFIED, kind: number, mac: [0; 6], flags: 0, prefix_len: 0 })
            .unwrap();
    }
    let mut found: Vec<_> = remotes.iter().map(|entry| entry.unwrap().1.kind).collect();
    found.sort_unstable();
    assert_eq!(found, (0..1500).collect::<Vec<_>>());
    assert_eq!(remotes.retain(|_, _| false).unwrap(), 1500);
    assert!(remotes.is_empty().unwrap());
}

#[test]
fn flows_are_listed_and_removed() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let flows = dataplane.maps().flows4();
    for ifindex in [3, 4] {
        let key = FlowKey4 { ifindex, src: 1, dst: 2, sport: 3, dport: 4, protocol: 6 };
        let connection = Connection { packets: u64::from(ifindex), ..Connection::default() };
        flows.insert(&key, &Flow { connection, ..Flow::default() }).unwrap();
    }
    assert_eq!(flows.retain(|key, _| key.ifindex != 3).unwrap(), 1);
    let left: Vec<_> = flows.iter().map(|entry| entry.unwrap().1.connection.packets).collect();
    assert_eq!(left, [4]);
    assert!(dataplane.maps().flows6().is_empty().unwrap());
}

#[test]
fn arrays_have_every_index_and_no_other() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let maps = dataplane.maps();
    let config = Config { vni: 7, masquerade_count: 100, ..Config::default() };
    maps.config().set(0, &config).unwrap();
    assert_eq!(maps.config().get(0).unwrap(), config);
    assert!(matches!(maps.config().get(1), Err(Error::Index { map: map::CONFIG, index: 1, max_entries: 1 })));
    maps.generations().set(65_535, &9).unwrap();
    assert_eq!(maps.generations().get(65_535).unwrap(), 9);
    assert_eq!(maps.generations().get(65_534).unwrap(), 0);
    assert!(matches!(maps.generations().set(65_536, &9), Err(Error::Index { index: 65_536, .. })));
}

#[test]
fn counters_start_at_zero_for_every_reason() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.open();
    for reason in DropReason::ALL {
        assert_eq!(dataplane.maps().dropped(*reason).unwrap(), Tally::default());
    }
    for counter in Counter::ALL {
        assert_eq!(dataplane.maps().counted(*counter).unwrap(), 0);
    }
}

#[test]
fn memory_is_told_for_every_map() {
    let sandbox = Sandbox::enter();
    let dataplane = sandbox.pooled();
    let memory = dataplane.maps().memory().unwrap();
    assert_eq!(memory.iter().map(|entry| entry.map).collect::<Vec<_>>(), map::ALL);
    let lines = memory.iter().find(|entry| entry.map == map::FLOWS4).unwrap();
    // Three of four lines are for entries.
    assert_eq!(lines.max_entries, 4096_u32.div_ceil(6) * 8);
    let size = size_of::<Line4>() as u64;
    assert!(lines.bytes >= u64::from(lines.max_entries) * size, "lines are allocated whole: {lines:?}");
}

#[test]
fn the_default_sizes_take_what_their_documentation_says() {
    let sandbox = Sandbox::enter();
    let options = Options { sizes: MapSizes::default(), ..sandbox.options() };
    let memory = Dataplane::open(&options).unwrap().maps().memory().unwrap();
    let total: u64 = memory.iter().map(|entry| entry.bytes).sum();
    assert!((82 << 20..92 << 20).contains(&total), "{total} bytes: {memory:#?}");
}
