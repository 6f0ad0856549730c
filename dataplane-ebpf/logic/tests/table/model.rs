// SPDX-License-Identifier: Apache-2.0
//! Every order in which two or three CPUs may do the operations, and in which a weakly ordered machine (arm64) may do the accesses of
//! one of them: loom tries them all. Entries are plain memory, atomics are fully ordered as the kernel's are, and a reader's fence
//! is what `order_reads` is in the programs.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    thread,
};
use weft_logic::set::{Control, Mode, Slot, Word as _, Written};

use crate::memory::{Cell, Memory};

impl Cell for AtomicU64 {
    const ATTEMPTS: u32 = 2;

    fn new(value: u64) -> Self {
        Self::new(value)
    }

    fn read(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }

    fn write(&self, value: u64) {
        self.store(value, Ordering::Relaxed);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn exchange(&self, new: u64) -> u64 {
        Self::fence();
        let before = self.swap(new, Ordering::SeqCst);
        Self::fence();
        before
    }

    fn fetch_or(&self, bits: u64) -> u64 {
        Self::fence();
        let before = self.fetch_or(bits, Ordering::SeqCst);
        Self::fence();
        before
    }

    fn compare_exchange(&self, old: u64, new: u64) -> bool {
        Self::fence();
        let exchanged = self.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        Self::fence();
        exchanged
    }
}

type Table = Memory<AtomicU64>;

/// One way for all.
const SLOT: Slot = Slot { set: 0, tag: 1, home: 0 };

fn table() -> Arc<Table> {
    Arc::new(Memory::new(1, 1))
}

/// Runs both on a CPU of its own.
fn meanwhile<T: 'static>(table: &Arc<Table>, first: fn(&Table) -> T, second: impl FnOnce(&Table)) -> T {
    let other = Arc::clone(table);
    let thread = thread::spawn(move || first(&other));
    second(table);
    thread.join().expect("it does not panic")
}

#[test]
fn a_reader_sees_an_entry_whole_and_always_while_it_is_replaced() {
    loom::model(|| {
        let table = table();
        table.write(1, SLOT, 10, Mode::Add);
        let written = meanwhile(
            &table,
            |table| table.write(1, SLOT, 20, Mode::Put),
            |table| {
                // It may have to wait, but never finds nothing.
                let found = table.try_find(1, SLOT);
                assert!(matches!(found, None | Some(Some(10 | 20))), "{found:?}");
            },
        );
        assert_eq!((written, table.find(1, SLOT)), (Written::Done, Some(20)));
    });
}

#[test]
fn a_reader_never_takes_the_next_tenant_of_a_line_for_the_one_before() {
    loom::model(|| {
        let table = table();
        table.write(1, SLOT, 10, Mode::Add);
        let change = |table: &Table| {
            assert_eq!(table.remove(1, SLOT, None), Written::Done);
            assert_eq!(table.write(2, SLOT, 20, Mode::Add), Written::Done);
        };
        meanwhile(&table, change, |table| {
            let found = table.try_find(1, SLOT);
            assert!(matches!(found, None | Some(None | Some(10))), "{found:?}");
        });
        assert_eq!((table.find(1, SLOT), table.find(2, SLOT)), (None, Some(20)));
    });
}

/// Two CPUs add at once: the first the key 1, the other one `key`. What each came to.
fn add_at_once(table: &Arc<Table>, key: u64) -> (Written, Written) {
    let mut other = Written::Busy;
    let one = meanwhile(
        table,
        |table| table.write(1, SLOT, 10, Mode::Add),
        |table| {
            other = table.write(key, SLOT, 20, Mode::Add);
        },
    );
    (one, other)
}

#[test]
fn of_two_cpus_that_add_the_same_key_one_is_first() {
    loom::model(|| {
        let table = table();
        let expected = match add_at_once(&table, 1) {
            (Written::Done, Written::Other) => 10,
            (Written::Other, Written::Done) => 20,
            // The lock is not waited for for ever.
            (Written::Done, Written::Busy) => 10,
            (Written::Busy, Written::Done) => 20,
            both => panic!("{both:?}"),
        };
        assert_eq!((table.find(1, SLOT), table.count(1)), (Some(expected), 1));
        assert!(table.is_unlocked());
    });
}

#[test]
fn two_cpus_that_add_to_one_set_take_two_ways() {
    loom::model(|| {
        let table = table();
        let (one, other) = add_at_once(&table, 2);
        assert_eq!(table.find(1, SLOT), (one == Written::Done).then_some(10));
        assert_eq!(table.find(2, SLOT), (other == Written::Done).then_some(20));
        assert!(one == Written::Done || other == Written::Done);
        assert!(table.is_unlocked());
    });
}

/// The late writer: a CPU that has read an entry writes down its epoch after another CPU has made another entry of it.
#[test]
fn a_late_epoch_never_meets_another_entry() {
    loom::model(|| {
        let table = table();
        table.write(1, SLOT, 10, Mode::Add);
        let before = table.control(0).load();
        let late = Control(before).with(7, 1).0;
        let thread = {
            let table = Arc::clone(&table);
            thread::spawn(move || table.control(0).compare_exchange(before, late))
        };
        assert_eq!(table.write(1, SLOT, 20, Mode::Put), Written::Done);
        let _either_way = thread.join().expect("it does not panic");
        let control = Control(table.control(0).load());
        assert_eq!((control.epoch(), control.state()), (0, 0), "the new entry's own");
        assert_eq!(table.find(1, SLOT), Some(20));
    });
}
