// SPDX-License-Identifier: Apache-2.0
//! The words of the flow table (`weft_logic::set`): against a hash map, by two CPUs, by how full it gets; and, under `table::model`, in
//! every order that a weakly ordered machine may do them in.

#[path = "table/memory.rs"]
mod memory;
#[path = "table/model.rs"]
mod model;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use proptest::prelude::*;
use weft_abi::{Addr, FlowKey4, FlowKey6, FlowSeeds};
use weft_logic::{
    hash::FlowKey,
    set::{Mode, Slot, WAYS, Written},
};

use crate::memory::{Memory, PROTOCOL};

type Table = Memory<AtomicU64>;

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(u64, u64),
    Put(u64, u64),
    Remove(u64),
    Find(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..40_u64;
    prop_oneof![
        (key.clone(), any::<u64>()).prop_map(|(key, value)| Step::Add(key, value)),
        (key.clone(), any::<u64>()).prop_map(|(key, value)| Step::Put(key, value)),
        key.clone().prop_map(Step::Remove),
        key.prop_map(Step::Find),
    ]
}

/// Keys of two sets, many with one tag and one home.
fn crowded(key: u64) -> Slot {
    Slot { set: (key % 2) as u32, tag: 1 + (key % 3) as u32, home: (key % 4) as u32 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_holds_what_a_hash_map_holds(steps in prop::collection::vec(step(), 1..300)) {
        let (table, mut expected) = (Table::new(2, 6), HashMap::<u64, u64>::new());
        for step in steps {
            match step {
                Step::Add(key, value) => match table.write(key, crowded(key), value, Mode::Add) {
                    Written::Done => prop_assert_eq!(expected.insert(key, value), None),
                    Written::Other => prop_assert!(expected.contains_key(&key)),
                    Written::Full => prop_assert!(expected.len() >= WAYS as usize + 6, "{} entries", expected.len()),
                    Written::Busy => prop_assert!(false, "nobody else is there"),
                },
                Step::Put(key, value) => match table.write(key, crowded(key), value, Mode::Put) {
                    Written::Done => { expected.insert(key, value); }
                    written => prop_assert!(written == Written::Full && !expected.contains_key(&key)),
                },
                Step::Remove(key) => {
                    let was_there = table.remove(key, crowded(key), None) == Written::Done;
                    prop_assert_eq!(was_there, expected.remove(&key).is_some());
                }
                Step::Find(key) => prop_assert_eq!(table.find(key, crowded(key)), expected.get(&key).copied()),
            }
            prop_assert!(table.is_unlocked());
        }
        for key in 0..40 {
            prop_assert_eq!(table.find(key, crowded(key)), expected.get(&key).copied());
        }
    }
}

#[test]
fn an_entry_is_replaced_only_where_it_is_the_one_that_was_read() {
    let table = Table::new(1, 4);
    let slot = |key: u64| Slot { set: 0, tag: 1, home: (key % 8) as u32 };
    // The last four are in the hash.
    for key in 0..12 {
        assert_eq!(table.write(key, slot(key), key, Mode::Add), Written::Done);
    }
    for key in [3, 11] {
        let sequence = table.sequence(key, slot(key)).unwrap();
        assert_eq!(table.write(key, slot(key), 100, Mode::Over(sequence)), Written::Done);
        assert_eq!(table.write(key, slot(key), 200, Mode::Over(sequence)), Written::Other, "another one by now");
        assert_eq!(table.remove(key, slot(key), Some(sequence)), Written::Other);
        assert_eq!(table.find(key, slot(key)), Some(100));
        let sequence = table.sequence(key, slot(key)).unwrap();
        assert_eq!(table.remove(key, slot(key), Some(sequence)), Written::Done);
        assert_eq!(table.write(key, slot(key), 300, Mode::Over(sequence)), Written::Other, "gone");
    }
    assert_eq!(table.write(99, slot(99), 1, Mode::Add), Written::Done, "its way is free again");
}

/// Two CPUs add, replace and remove the same connections at once, as both sides of each do, while a third one reads.
#[test]
fn cpus_that_write_at_once_leave_no_duplicate_and_no_lock() {
    const KEYS: u64 = 64;
    let table = Arc::new(Table::new(4, 8));
    let slot = |key: u64| Slot { set: (key % 4) as u32, tag: 1 + (key % 5) as u32, home: (key / 4 % 8) as u32 };
    let writers: Vec<_> = (0..2_u64)
        .map(|cpu| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let mut added = [0_i64; KEYS as usize];
                for round in 0..40_000_u64 {
                    let key = (round * (7 + cpu * 4) + cpu) % KEYS;
                    let written = match round % 3 {
                        0 => table.write(key, slot(key), key << 32 | round, Mode::Add),
                        1 => table.remove(key, slot(key), None),
                        _ => continue,
                    };
                    let change = if round % 3 == 0 { 1 } else { -1 };
                    added[key as usize] += if written == Written::Done { change } else { 0 };
                }
                added
            })
        })
        .collect();
    for round in 0..40_000_u64 {
        let key = round % KEYS;
        if let Some(value) = table.find(key, slot(key)) {
            assert_eq!(value >> 32, key, "another key's entry");
        }
    }
    let added = writers.into_iter().map(|writer| writer.join().unwrap());
    let there = added.reduce(|one, other| std::array::from_fn(|key| one[key] + other[key])).unwrap();
    assert!(table.is_unlocked());
    for key in 0..KEYS {
        assert_eq!(table.count(key), usize::from(there[key as usize] == 1), "key {key}, {}", there[key as usize]);
        assert_eq!(table.find(key, slot(key)).is_some(), there[key as usize] == 1);
    }
}

/// Seeds that are the same in every run.
fn seeds(sets: u32) -> FlowSeeds {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    FlowSeeds { words: std::array::from_fn(|_| next()), finish: u64::from(next()) << 32 | 0x1d, sets, pad: 0 }
}

/// As full as it is made for, which is three of four lines: keys as workloads make them, one server and ports one after the other,
/// must be as even as keys by chance, of which one in twenty finds its set full. The hash has room for one in twelve.
fn fill<K: FlowKey>(keys: impl Iterator<Item = K>, slot: impl Fn(&K) -> Slot, sets: u32) -> usize {
    let table = Table::new(sets as usize, sets as usize / 2);
    for (number, key) in keys.enumerate() {
        let number = number as u64;
        assert_eq!(table.write(number, slot(&key), number, Mode::Add), Written::Done, "connection {number}");
    }
    table.spilled()
}

#[test]
fn a_table_as_full_as_it_is_made_for_refuses_nobody() {
    const SETS: u32 = 4096;
    let (seeds, entries) = (seeds(SETS), SETS * 6);
    let key4 = |number: u32| {
        // Openers' packets and their answers, by turns.
        let (port, pod) = (((number / 2) % 28_000 + 32_768) as u16, number / 2 / 28_000);
        let (client, server) = (u32::from_be_bytes([10, 0, 0, pod as u8]), u32::from_be_bytes([10, 0, 1, 1]));
        if number.is_multiple_of(2) {
            let (src, dst) = (client.to_be(), server.to_be());
            FlowKey4 { ifindex: 7, src, dst, sport: port.to_be(), dport: 80_u16.to_be(), protocol: 6 }
        } else {
            let (src, dst) = (server.to_be(), client.to_be());
            FlowKey4 { ifindex: 8, src, dst, sport: 80_u16.to_be(), dport: port.to_be(), protocol: 6 }
        }
    };
    let spilled = fill((0..entries).map(key4), |key| key.slot(&seeds), SETS);
    assert!(spilled < entries as usize * 7 / 100, "{spilled} of {entries}");
    let key6 = |number: u32| {
        let four = key4(number);
        let addr = |word| Addr([0xfd_u32.to_be(), 0, 0, word]);
        let FlowKey4 { ifindex, src, dst, sport, dport, protocol } = four;
        FlowKey6 { ifindex, src: addr(src), dst: addr(dst), sport, dport, protocol }
    };
    let spilled = fill((0..entries).map(key6), |key| key.slot(&seeds), SETS);
    assert!(spilled < entries as usize * 7 / 100, "{spilled} of {entries} of IPv6");
}

#[test]
fn every_part_of_a_key_counts_in_its_slot_and_in_what_is_the_same() {
    let seeds = seeds(1 << 20);
    let key = FlowKey4 { ifindex: 1, src: 2, dst: 3, sport: 4, dport: 5, protocol: 6 };
    let others = [
        FlowKey4 { ifindex: 9, ..key },
        FlowKey4 { src: 9, ..key },
        FlowKey4 { dst: 9, ..key },
        FlowKey4 { sport: 9, ..key },
        FlowKey4 { dport: 9, ..key },
        FlowKey4 { protocol: 9, ..key },
        FlowKey4 { sport: 5, dport: 4, ..key },
        FlowKey4 { src: 3, dst: 2, ..key },
    ];
    for other in others {
        assert!(other.slot(&seeds) != key.slot(&seeds) && !other.is_same(&key), "{other:?}");
    }
    assert!(key.is_same(&key.clone()) && key.protocol() == PROTOCOL);
    for word in 0..8 {
        let six = FlowKey6 { ifindex: 1, protocol: 6, ..FlowKey6::default() };
        let mut other = six;
        let part = if word < 4 { &mut other.src } else { &mut other.dst };
        part.0[word % 4] = 1;
        assert!(other.slot(&seeds) != six.slot(&seeds) && !other.is_same(&six), "word {word}");
    }
}
