// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The maps, and small safe accessors. Those that are pinned stand in the table of `weft-abi`, the rest here.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    macros::btf_map,
};
use weft_abi::{
    Addr, AddressKey, Affinity, AffinityKey, BackendKey, Balancer, BlockKey, CidrKey, Class, Config, Device, FlowKey6,
    Frontend, FrontendKey, KnownVerdict, Line4, Line6, List, MAX_STEPS, Member, MemberKey, MemberSet, Owner, Port,
    Remote, RingNode, RuleKey, Run, Share, Tally, VerdictKey, rule,
};
use weft_logic::{
    Tables,
    policy::{self, Judged, Judging},
    walk::Walk,
};

use crate::{
    balance, helpers,
    table::{BUFFERS, Copied},
};

/// Declares the statics of the maps that are pinned. Sizes are placeholders where the loader sets them from demand.
macro_rules! declare {
    ($(
        $(#[$doc:meta])*
        $name:ident $accessor:ident: $kind:ident<$key:ty, $value:ty>, $role:ident, $size:ident($($sizing:tt)*);
    )+) => {
        $(
            $(#[$doc])*
            #[btf_map]
            pub static $name: map!($kind, $key, $value, entries!($kind, $size, $($sizing)*)) =
                <map!($kind, $key, $value, entries!($kind, $size, $($sizing)*))>::new();
        )+
    };
}

/// The type of a map.
macro_rules! map {
    (Array, $key:ty, $value:ty, $entries:expr) => { Array<$value, { $entries }> };
    (MappedArray, $key:ty, $value:ty, $entries:expr) => { Array<$value, { $entries }, { BPF_F_MMAPABLE as usize }> };
    (PerCpuArray, $key:ty, $value:ty, $entries:expr) => { PerCpuArray<$value, { $entries }> };
    (HashMap, $key:ty, $value:ty, $entries:expr) => { HashMap<$key, $value, { $entries }> };
    (OnDemandHashMap, $key:ty, $value:ty, $entries:expr) => {
        HashMap<$key, $value, { $entries }, { BPF_F_NO_PREALLOC as usize }>
    };
    (LruHashMap, $key:ty, $value:ty, $entries:expr) => { LruHashMap<$key, $value, { $entries }> };
    // The library puts the prefix length in front by itself: `CidrKey`.
    (LpmTrie, $key:ty, $value:ty, $entries:expr) => { LpmTrie<AddressKey, $value, { $entries }> };
    (RingBuf, $key:ty, $value:ty, $entries:expr) => { RingBuf<$value, { $entries }> };
}

/// How many entries a static asks for.
macro_rules! entries {
    ($kind:ident, fixed, $entries:expr) => {
        $entries as usize
    };
    // A page at least.
    (RingBuf, $size:ident, $($sizing:tt)*) => {
        1 << 20
    };
    ($kind:ident, $size:ident, $($sizing:tt)*) => {
        1024
    };
}

weft_abi::for_each_map!(declare);

/// Copies of entries of the flow table, see [`Buffer`](crate::table::Buffer). Not pinned.
#[btf_map]
static BUFFER: PerCpuArray<Copied, { BUFFERS }> = PerCpuArray::new();

/// This CPU's buffer of that number.
#[inline(always)]
pub fn buffer(number: u32) -> Option<&'static mut Copied> {
    // SAFETY: as for `walk`.
    BUFFER.get_ptr_mut(number).map(|buffer| unsafe { &mut *buffer })
}

/// Lines that go to the hash beside the flow table: the programs have no stack for one. Not pinned.
#[btf_map]
pub static LINE4: PerCpuArray<Line4, 1> = PerCpuArray::new();
/// The same of IPv6.
#[btf_map]
pub static LINE6: PerCpuArray<Line6, 1> = PerCpuArray::new();

/// A connection of the flow table that is asked to make room for one of its set: both keys. Not pinned.
#[btf_map]
static LEAVING: PerCpuArray<[FlowKey6; 2], 1> = PerCpuArray::new();

/// This CPU's room for the keys of a connection that is asked to make room for one of its set.
#[inline(always)]
pub fn leaving() -> Option<&'static mut [FlowKey6; 2]> {
    // SAFETY: as for `walk`.
    LEAVING.get_ptr_mut(0).map(|keys| unsafe { &mut *keys })
}

/// A word of each CPU's own; see [`helpers::order_reads`]. Not pinned.
#[btf_map]
static ORDER: PerCpuArray<u32, 1> = PerCpuArray::new();

/// This CPU's own word.
#[inline(always)]
pub fn own_word() -> Option<*mut u32> {
    ORDER.get_ptr_mut(0)
}

/// The packet under way, too large for the 512 byte stack. Not pinned.
#[btf_map]
static WALK: PerCpuArray<Walk, 1> = PerCpuArray::new();

/// The verdict under way: its loop has no room on the stack. Not pinned.
#[btf_map]
static JUDGING: PerCpuArray<Judging, 1> = PerCpuArray::new();

/// This CPU's room for a verdict.
#[inline(always)]
fn judging() -> Option<&'static mut Judging> {
    // SAFETY: as for `walk`.
    JUDGING.get_ptr_mut(0).map(|judging| unsafe { &mut *judging })
}

/// The address that is looked up: the programs have no stack for a key. Not pinned.
#[btf_map]
static WANTED: PerCpuArray<CidrKey, 1> = PerCpuArray::new();

/// An address of a network as a key that counts whole. Hash tables take what stands behind its prefix length.
#[inline(always)]
fn wanted(net: u32, addr: &Addr) -> Option<&'static Key<AddressKey>> {
    let key = WANTED.get_ptr_mut(0)?;
    // SAFETY: this CPU's own, see `walk`; a `Key` is packed and has the fields of a `CidrKey` in their order.
    unsafe {
        *key = CidrKey { prefix_len: CidrKey::ALL_BITS, net, addr: *addr };
        Some(&*key.cast())
    }
}

/// [`wanted`] as the key of a hash table.
#[inline(always)]
fn wanted_single(net: u32, addr: &Addr) -> Option<&'static AddressKey> {
    wanted(net, addr).map(|key| {
        let single = &raw const key.data;
        // SAFETY: a `CidrKey` is aligned, and its prefix length a word: what follows is aligned, too.
        unsafe { &*single }
    })
}

/// A connection of an account, in the order they came in.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OpenedKey {
    /// The port.
    pub ifindex: u32,
    /// Index in [`Share::flows`].
    pub account: u32,
    /// Its number, modulo [`REMEMBERED`].
    pub slot: u32,
}

/// Connections of one account that are remembered at most.
pub const REMEMBERED: u32 = 8192;

/// Openers' keys of the connections of accounts that run out of room. Not pinned.
#[btf_map]
pub static OPENERS: LruHashMap<OpenedKey, FlowKey6, 32768> = LruHashMap::new();

/// A connection that is asked to make room: its opener's key and that of its answers. Not pinned.
#[btf_map]
static ASKED: PerCpuArray<[FlowKey6; 2], 1> = PerCpuArray::new();

/// This CPU's room for the keys of a connection that is asked to make room.
#[inline(always)]
pub fn asked() -> Option<&'static mut [FlowKey6; 2]> {
    // SAFETY: as for `walk`.
    ASKED.get_ptr_mut(0).map(|keys| unsafe { &mut *keys })
}

/// A share of nothing: the programs have no stack for one. Not pinned, never written.
#[btf_map]
pub static NO_SHARE: Array<Share, 1> = Array::new();

/// Destinations towards which a workload found no masquerade port free, and when, in nanoseconds. Not pinned.
#[btf_map]
pub static FULL: LruHashMap<FlowKey6, u64, 1024> = LruHashMap::new();

/// By device and reason: when all tokens for events of drops are there again, in nanoseconds. Not pinned.
#[btf_map]
pub static TOLD: LruHashMap<[u32; 2], u64, 8192> = LruHashMap::new();

/// Destinations, by hash, that share a counter of identifiers of masqueraded datagrams in pieces. A power of two.
pub const IDENTIFIERS: u32 = 1024;

/// The next identifier of each; see `far`. Not pinned.
#[btf_map]
pub static NEXT_IDENTIFIERS: Array<u32, { IDENTIFIERS as usize }> = Array::new();

/// The counter at `index`.
#[inline(always)]
pub fn drop_tally(index: u32) -> Option<*mut Tally> {
    DROPS.get_ptr_mut(index)
}

/// The counter at `index`.
#[inline(always)]
pub fn count(index: u32) -> Option<*mut u64> {
    COUNTS.get_ptr_mut(index)
}

/// This CPU's scratch space. Programs run with migration and, on these hooks, softirqs off: nobody else uses it meanwhile.
#[inline(always)]
pub fn walk() -> Option<&'static mut Walk> {
    // SAFETY: the value lives as long as the program runs, and only one program runs on this CPU at a time.
    WALK.get_ptr_mut(0).map(|walk| unsafe { &mut *walk })
}

/// Whether connections of another version are being taken over.
#[inline(always)]
pub fn is_taking_over() -> bool {
    // SAFETY: an aligned word that user space writes whole.
    TAKEOVER.get_ptr(0).is_some_and(|until| helpers::coarse_ns() < unsafe { until.read_volatile() })
}

/// A device that leads out of the node, if what comes in by it is heard.
#[inline(always)]
pub fn device(ifindex: u32) -> Option<&'static Device> {
    // SAFETY: as for `Kernel::port`.
    unsafe { DEVICES.get(ifindex) }
}

/// The kernel's maps.
pub struct Kernel;

impl Tables for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn port(&self, ifindex: u32) -> Option<&Port> {
        // SAFETY: user space replaces whole values; a reader under RCU sees one or the other element.
        unsafe { PORTS.get(ifindex) }
    }

    #[inline(always)]
    fn owner(&self, net: u32, addr: &Addr) -> Option<&Owner> {
        // SAFETY: as for `port`.
        unsafe { ADDRESSES.get(wanted_single(net, addr)?) }
    }

    #[inline(always)]
    fn remote(&self, net: u32, addr: &Addr) -> Option<&Remote> {
        REMOTES.get(wanted(net, addr)?)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        // SAFETY: as for `port`.
        unsafe { FRONTENDS.get(key) }
    }

    #[inline(always)]
    fn balancer(&self, service: &u32) -> Option<&Balancer> {
        // SAFETY: as for `port`.
        unsafe { BALANCERS.get(service) }
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<&Member> {
        // SAFETY: as for `port`.
        unsafe { MEMBERS.get(key) }
    }

    #[inline(always)]
    fn ring(&self, key: &MemberKey) -> Option<&RingNode> {
        // SAFETY: as for `port`.
        unsafe { RINGS.get(key) }
    }

    #[inline(always)]
    fn on_ring(&self, service: u32, set: &MemberSet, position: u32) -> Option<u32> {
        let found = balance::weft_find_on_ring(service, set.set, set.levels, position);
        (found != balance::NOBODY).then_some(found)
    }

    #[inline(always)]
    fn load(&self, backend: &BackendKey) -> u32 {
        // SAFETY: as for `port`.
        let load = unsafe { LOADS.get(backend) }.copied().unwrap_or(0);
        // Where more close than were counted since the last sweep, it is below none.
        if load as i32 > 0 { load } else { 0 }
    }

    #[inline(always)]
    fn backend(&self, backend: &BackendKey) -> u32 {
        // SAFETY: as for `port`.
        unsafe { BACKENDS.get(backend) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn admits(&self, service: u32, client: &Addr) -> bool {
        wanted(service, client).is_some_and(|key| SOURCES.get(key).is_some())
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: plain words of an entry that may become another one's meanwhile: they are copied, and whoever asks judges the copy.
        AFFINITIES.get_ptr(key).map(|found| unsafe { found.read_volatile() })
    }

    #[inline(always)]
    fn class_of(&self, net: u32, addr: &Addr) -> Option<u64> {
        // SAFETY: as for `port`.
        unsafe { PEERS.get(wanted_single(net, addr)?) }.copied()
    }

    #[inline(always)]
    fn class(&self, class: &u64) -> Option<&Class> {
        // SAFETY: as for `port`.
        unsafe { CLASSES.get(class) }
    }

    #[inline(always)]
    fn list(&self, list: &u64) -> Option<&List> {
        // SAFETY: as for `port`.
        unsafe { LISTS.get(list) }
    }

    #[inline(always)]
    fn copy_list(&self, list: &u64, into: &mut List) -> bool {
        self.list(list).map(|found| copy(found, into)).is_some()
    }

    #[inline(always)]
    fn copy_class(&self, class: &u64, into: &mut Class) -> bool {
        self.class(class).map(|found| copy(found, into)).is_some()
    }

    #[inline(always)]
    fn run(&self, key: &RuleKey) -> Option<&Run> {
        // SAFETY: as for `port`.
        unsafe { RULES.get(key) }
    }

    #[inline(always)]
    fn block(&self, key: &BlockKey) -> Option<u64> {
        // SAFETY: as for `port`.
        unsafe { BLOCKS.get(key) }.copied()
    }

    #[inline(always)]
    fn verdict(&self, key: &VerdictKey) -> Option<KnownVerdict> {
        let known = VERDICTS.get_ptr(key)?.cast::<u64>();
        // SAFETY: two aligned words of an entry that may become another one's: each is read once.
        let (word, second) = unsafe { (known.read_volatile(), known.add(1).read_volatile()) };
        // Its first half in memory is the rule.
        Some(KnownVerdict { word, rule: second as u32, pad: 0 })
    }

    #[inline(always)]
    fn remember(&self, key: &VerdictKey, verdict: &KnownVerdict) {
        let _asked_anew_at_worst = VERDICTS.insert(key, verdict, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn judge(&self, list: u64, peer: &AddressKey, protocol: u8, port: u16) -> Judged {
        let Some(judging) = judging() else { return Judged::BROKEN };
        judging.peer = *peer;
        let answer = weft_judge_list(list, u32::from(protocol), u32::from(port));
        Judged { rule: answer as u32, allowed: (answer >> 32) as u32 }
    }

    #[inline(always)]
    fn generation(&self, slot: u32) -> u32 {
        // SAFETY: an aligned word that user space writes whole; volatile, since a decision reads it twice to see a change.
        GENERATIONS.get_ptr(slot).map_or(0, |value| unsafe { value.read_volatile() })
    }

    #[inline(always)]
    fn service_generation(&self, service: u32) -> u32 {
        // SAFETY: as for `generation`.
        SERVICE_GENERATIONS.get_ptr(service).map_or(0, |value| unsafe { value.read_volatile() })
    }
}

/// Copies a value of a map word by word, each when it is read: the compiler would read all of them first, and has no room for them
/// but the stack.
#[inline(always)]
pub fn copy<T: Copy>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let (from, to) = (ptr::from_ref(from).cast::<u64>(), ptr::from_mut(to).cast::<u64>());
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: both are as large as that, and aligned; the values are plain words.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// [`policy::judge`] of the peer in `JUDGING`: whether it is allowed, and in the lower half the rule. Exported, and thereby global to the
/// verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_judge_list(list: u64, protocol: u32, port: u32) -> u64 {
    let Some(state) = judging() else { return u64::from(rule::BROKEN) };
    policy::begin(&Kernel, state, list, protocol as u8, port as u16);
    helpers::repeat(MAX_STEPS, next_step, &mut 0_u32);
    let Judged { rule, allowed } = policy::answer(state);
    u64::from(allowed) << 32 | u64::from(rule)
}

/// `bpf_loop` body, which the verifier walks once: 0 goes on, 1 ends.
unsafe extern "C" fn next_step(_: u32, _: *mut u32) -> i64 {
    judging().map_or(1, |state| i64::from(!policy::step(&Kernel, state)))
}
