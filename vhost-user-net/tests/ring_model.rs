// SPDX-License-Identifier: Apache-2.0
//! The ring engine against models: rust-vmm's `virtio-queue` for the walk through descriptors, for what ends up in the
//! used ring and for notifications; and every small descriptor table there is, exhaustively.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use weft_vhost::memory::GuestMemory;
use weft_vhost::protocol::message::RegionSpec;
use weft_vhost::ring::split::RingFeatures;
use weft_vhost::ring::{Access, Layout, Segments, SplitRing};

const DESC: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const BYTES: usize = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// One guest memory, seen by both.
struct Both {
    ours: Arc<GuestMemory>,
    oracle: GuestMemoryMmap,
}

impl Both {
    fn new() -> Self {
        let fd = memfd_create("model", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
        nix::unistd::ftruncate(&fd, BYTES as i64).expect("ftruncate");
        let copy: OwnedFd = fd.try_clone().expect("dup");
        let spec = RegionSpec { guest_addr: 0, size: BYTES as u64, user_addr: 0, mmap_offset: 0 };
        let ours = Arc::new(GuestMemory::map(vec![(spec, fd)]).expect("map"));
        let file = FileOffset::new(File::from(copy), 0);
        let oracle = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), BYTES, Some(file))]).expect("mmap");
        Self { ours, oracle }
    }

    fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let write = |offset, bytes: &[u8]| self.oracle.write_slice(bytes, GuestAddress(at + offset)).expect("write");
        write(0, &addr.to_le_bytes());
        write(8, &len.to_le_bytes());
        write(12, &flags.to_le_bytes());
        write(14, &next.to_le_bytes());
    }

    fn put(&self, at: u64, value: u16) {
        self.oracle.write_obj(value.to_le(), GuestAddress(at)).expect("write");
    }

    fn ring(&self, size: u16, base: u16, event_idx: bool) -> SplitRing {
        let layout = Layout { size, desc: DESC, avail: AVAIL, used: USED };
        let features = RingFeatures { event_idx, indirect: true, ..RingFeatures::default() };
        SplitRing::new(Arc::clone(&self.ours), layout, base, features).expect("ring")
    }

    fn queue(&self, size: u16, base: u16, event_idx: bool) -> Queue {
        let mut queue = Queue::new(size).expect("queue");
        queue.try_set_desc_table_address(GuestAddress(DESC)).expect("desc");
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).expect("avail");
        queue.try_set_used_ring_address(GuestAddress(USED)).expect("used");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue.set_next_avail(base);
        queue.set_next_used(base);
        queue
    }

    fn clear(&self) {
        self.oracle.write_slice(&[0; BYTES], GuestAddress(0)).expect("clear");
    }
}

/// What our walk makes of the chain at head 0: its pieces, with touching ones joined, or nothing.
fn our_pieces(ring: &mut SplitRing, memory: &Both, access: Access) -> Option<Vec<(u64, u64)>> {
    let _ = memory;
    let mut segments = Segments::default();
    let total = ring.chain(0, access, &mut segments).ok()?;
    let pieces: Vec<_> =
        segments.guest().iter().zip(segments.iov()).map(|(guest, piece)| (*guest, piece.iov_len as u64)).collect();
    assert_eq!(pieces.iter().map(|piece| piece.1).sum::<u64>(), total);
    Some(pieces)
}

/// The oracle's chain at head 0, if it is one a network device may use: all of one direction, complete, in memory.
fn oracle_pieces(memory: &Both, size: u16, access: Access) -> Option<Vec<(u64, u64)>> {
    memory.put(AVAIL, 0);
    memory.put(AVAIL + 2, 1);
    memory.put(AVAIL + 4, 0);
    let chain = memory.queue(size, 0, false).pop_descriptor_chain(&memory.oracle)?;
    let mut pieces = Vec::new();
    let mut complete = false;
    for descriptor in chain {
        let writable = descriptor.is_write_only();
        let (addr, len) = (descriptor.addr().0, u64::from(descriptor.len()));
        let inside = addr.checked_add(len).is_some_and(|end| end <= BYTES as u64);
        if writable != (access == Access::Write) || len == 0 || !inside {
            return None;
        }
        pieces.push((addr, len));
        complete = !descriptor.has_next();
    }
    complete.then_some(pieces)
}

/// Both views agree on a table that was laid out: what we take, the oracle takes alike, and what is fine by the oracle
/// is fine by us.
fn agree(memory: &Both, ring: &mut SplitRing, size: u16) -> Result<(), TestCaseError> {
    for access in [Access::Read, Access::Write] {
        let ours = our_pieces(ring, memory, access);
        let oracle = oracle_pieces(memory, size, access);
        prop_assert_eq!(ours, oracle, "{:?}", access);
    }
    Ok(())
}

#[test]
fn every_table_of_three_descriptors_is_walked_like_the_oracle() {
    let memory = Both::new();
    let mut ring = memory.ring(4, 0, false);
    // Flags with and without NEXT and WRITE; next inside, outside and back; lengths of nothing, something, too much.
    let flags = [0, NEXT, WRITE, NEXT | WRITE];
    let nexts = [0u16, 1, 2, 4];
    let lens = [0u32, 16, u32::MAX];
    let choices: Vec<_> = flags
        .iter()
        .flat_map(|flags| nexts.iter().map(move |next| (*flags, *next)))
        .flat_map(|(flags, next)| lens.iter().map(move |len| (flags, next, *len)))
        .collect();
    let mut outcomes = BTreeSet::new();
    for first in &choices {
        for second in &choices {
            for third in &choices {
                for (slot, (flags, next, len)) in [first, second, third].into_iter().enumerate() {
                    memory.descriptor(DESC + 16 * slot as u64, 0x8000 + 0x100 * slot as u64, *len, *flags, *next);
                }
                agree(&memory, &mut ring, 4).unwrap_or_else(|error| panic!("{first:?} {second:?} {third:?}: {error}"));
                outcomes.insert(our_pieces(&mut ring, &memory, Access::Read).map(|pieces| pieces.len()));
            }
        }
    }
    // The table was rich enough to see chains of every length and refusals.
    assert_eq!(outcomes, BTreeSet::from([None, Some(1), Some(2), Some(3)]));
}

/// A descriptor, direct or with a table of its own.
#[derive(Debug, Clone)]
struct Entry {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn entry() -> impl Strategy<Value = Entry> {
    let addr = prop_oneof![4 => 0x8000..0xf000u64, 1 => Just(BYTES as u64 - 8), 1 => any::<u64>()];
    let len = prop_oneof![6 => 1..0x400u32, 1 => Just(0), 1 => any::<u32>()];
    let flags =
        prop_oneof![3 => Just(NEXT), 2 => Just(0), 2 => Just(NEXT | WRITE), 1 => Just(WRITE), 1 => any::<u16>()];
    (addr, len, flags, 0..10u16).prop_map(|(addr, len, flags, next)| Entry {
        addr,
        len,
        flags: flags & !INDIRECT,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_tables_and_indirect_tables_are_walked_like_the_oracle(
        direct in prop::collection::vec(entry(), 8),
        indirect in prop::collection::vec(entry(), 1..9),
        which in 0..12usize,
    ) {
        let memory = Both::new();
        for (slot, entry) in direct.iter().enumerate() {
            memory.descriptor(DESC + 16 * slot as u64, entry.addr, entry.len, entry.flags, entry.next);
        }
        for (slot, entry) in indirect.iter().enumerate() {
            memory.descriptor(TABLES + 16 * slot as u64, entry.addr, entry.len, entry.flags, entry.next);
        }
        if which < 8 {
            memory.descriptor(DESC + 16 * which as u64, TABLES, 16 * indirect.len() as u32, INDIRECT, 0);
        }
        let mut ring = memory.ring(8, 0, false);
        agree(&memory, &mut ring, 8)?;
    }

    #[test]
    fn used_elements_and_notifications_are_as_the_oracles(
        base in prop_oneof![Just(0u16), Just(65530), any::<u16>()],
        event_idx in any::<bool>(),
        steps in prop::collection::vec((1..9u16, 0..20u16, any::<bool>()), 1..40),
    ) {
        const SIZE: u16 = 16;
        let (mine, theirs) = (Both::new(), Both::new());
        for both in [&mine, &theirs] {
            both.clear();
            both.put(USED + 2, base);
            both.put(AVAIL + 2, base);
        }
        let mut ring = mine.ring(SIZE, base, event_idx);
        let mut queue = theirs.queue(SIZE, base, event_idx);
        let mut avail = base;
        let mut first = true;
        for (count, event_back, no_interrupt) in steps {
            // The driver offers some heads and states its wish.
            for both in [&mine, &theirs] {
                for step in 0..count {
                    let slot = u64::from(avail.wrapping_add(step) % SIZE);
                    both.put(AVAIL + 4 + 2 * slot, (slot * 7 % u64::from(SIZE)) as u16);
                }
                both.put(AVAIL + 2, avail.wrapping_add(count));
                both.put(AVAIL + 4 + 2 * u64::from(SIZE), avail.wrapping_add(event_back).wrapping_sub(10));
                both.put(AVAIL, u16::from(no_interrupt));
            }
            avail = avail.wrapping_add(count);
            // Both devices take and complete them; ours shows them at once, in one publication.
            prop_assert_eq!(ring.look(0).expect("available"), count);
            for step in 0..count {
                let head = ring.head(0);
                ring.advance(1);
                ring.complete_frame(head, u32::from(step) * 100);
                let chain = queue.pop_descriptor_chain(&theirs.oracle).expect("chain");
                prop_assert_eq!(chain.head_index(), head);
                queue.add_used(&theirs.oracle, head, u32::from(step) * 100).expect("add_used");
            }
            let wanted = ring.publish();
            let oracle = queue.needs_notification(&theirs.oracle).expect("needs_notification");
            // The oracle ignores VRING_AVAIL_F_NO_INTERRUPT; and a ring that just started always signals.
            let expected = if first { true } else if event_idx { oracle } else { !no_interrupt };
            prop_assert_eq!(wanted, expected, "event_idx {} first {}", event_idx, first);
            first = false;
            let used = |both: &Both| {
                let mut bytes = [0; 4 + 8 * SIZE as usize];
                both.oracle.read_slice(&mut bytes, GuestAddress(USED)).expect("read");
                bytes
            };
            prop_assert_eq!(&used(&mine)[2..], &used(&theirs)[2..], "used rings differ");
            prop_assert_eq!(ring.next_avail(), queue.next_avail());
        }
    }

    #[test]
    fn an_index_is_accepted_exactly_when_it_is_within_the_ring(next in any::<u16>(), index in any::<u16>(), shift in 0..9u32) {
        let size = 1u16 << shift;
        let memory = Both::new();
        memory.put(AVAIL + 2, index);
        memory.put(USED + 2, next);
        let mut ring = memory.ring(size, next, false);
        let distance = index.wrapping_sub(next);
        let expected = (distance <= size).then_some(distance);
        prop_assert_eq!(ring.look(0).ok(), expected);
    }
}
