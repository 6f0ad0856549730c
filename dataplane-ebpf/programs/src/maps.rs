// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! The maps, and small safe accessors. Those that are pinned stand in the table of `weft-abi`, the rest here.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    macros::btf_map,
};
use weft_abi::{
    Addr, AddressKey, BackendKey, BackendState, Balancer, CidrKey, Config, Device, FlowKey6, Frontend, FrontendKey,
    Member, MemberKey, Owner, Port, Remote, RuleKey, Rules, Share, Tally, WORLD_IDENTITY,
};
use weft_logic::{Tables, policy, walk::Walk};

use crate::helpers;

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

/// The packet under way, too large for the 512 byte stack. Not pinned.
#[btf_map]
static WALK: PerCpuArray<Walk, 1> = PerCpuArray::new();

/// The peer that is looked up in a policy. Not pinned.
#[btf_map]
static PEER: PerCpuArray<AddressKey, 1> = PerCpuArray::new();

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
    fn serves(&self, backend: &BackendKey) -> bool {
        // SAFETY: as for `port`.
        unsafe { BACKENDS.get(backend) }.is_some_and(|state| *state == BackendState::Serving as u32)
    }

    #[inline(always)]
    fn identity(&self, net: u32, addr: &Addr) -> u32 {
        let (Some(prefix), Some(single)) = (wanted(net, addr), wanted_single(net, addr)) else { return WORLD_IDENTITY };
        // SAFETY: as for `port`.
        if let Some(identity) = unsafe { IDENTITIES.get(single) } {
            return *identity;
        }
        CIDRS.get(prefix).copied().unwrap_or(WORLD_IDENTITY)
    }

    #[inline(always)]
    fn rules(&self, key: &RuleKey) -> Option<&Rules> {
        // SAFETY: as for `port`.
        unsafe { RULES.get(key) }
    }

    #[inline(always)]
    fn allows(&self, policy: u32, peer: &AddressKey, protocol: u8, port: u16) -> bool {
        let Some(slot) = PEER.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own, see `walk`.
        unsafe { *slot = *peer };
        weft_allows(policy, u32::from(protocol), u32::from(port)) != 0
    }

    /// The first chunk at once; the few sets that have more of them loop by `bpf_loop`, whose body the verifier walks once.
    #[inline(always)]
    fn identity_allows(&self, policy: u32, identity: u32, protocol: u8, port: u16) -> bool {
        match policy::chunk(self, &RuleKey { policy, identity, chunk: 0 }, protocol, port) {
            Some(false) => {}
            decided => return decided == Some(true),
        }
        let mut search = Search { key: RuleKey { policy, identity, chunk: 1 }, protocol, allowed: 0, port };
        helpers::repeat(RuleKey::MAX_CHUNKS - 1, next_chunk, &mut search);
        search.allowed != 0
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

/// [`policy::look_up`] of the address in `PEER`. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_allows(policy: u32, protocol: u32, port: u32) -> u32 {
    let Some(peer) = PEER.get_ptr(0) else { return 0 };
    // SAFETY: this CPU's own, see `walk`.
    let peer = unsafe { *peer };
    u32::from(policy::look_up(&Kernel, policy, &peer, protocol as u8, port as u16))
}

/// State of the loop over chunks.
struct Search {
    key: RuleKey,
    protocol: u8,
    allowed: u8,
    port: u16,
}

/// `bpf_loop` body: 0 goes on, 1 ends.
unsafe extern "C" fn next_chunk(_: u32, search: *mut Search) -> i64 {
    // SAFETY: `repeat` hands over the state it was given.
    let search = unsafe { &mut *search };
    let found = policy::chunk(&Kernel, &search.key, search.protocol, search.port);
    search.allowed = u8::from(found == Some(true));
    search.key.chunk += 1;
    i64::from(found != Some(false))
}
