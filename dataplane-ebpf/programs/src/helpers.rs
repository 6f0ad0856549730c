// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Every raw helper call of the programs.

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering;
use core::{ffi::c_void, mem, ptr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
        BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup, bpf_redir_neigh, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2, bpf_tunnel_key,
    },
    helpers::generated as raw,
};
use weft_abi::{Addr, FlowKey6, Jiffies, SkbLayout};
use weft_logic::locate::Route;

/// Address families as `bpf_redir_neigh` takes them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// `PACKET_HOST`: for this host.
pub const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`: IP ignores it, packet sockets do not.
pub const PACKET_OTHERHOST: u32 = 3;

/// Set by the loader.
#[unsafe(no_mangle)]
static JIFFIES: Jiffies = Jiffies { nanos: 0, first: 0 };

/// The coarse monotonic clock in units of 2^30 ns (1.07 s), without a division; of jiffies also without a call, which takes 7 ns.
/// `bpf_jiffies64` is there from kernel 5.5 on.
#[inline(always)]
pub fn coarse_ticks() -> u32 {
    // SAFETY: a valid static; volatile, as the loader sets another value than the compiler sees. The map behind it is frozen, so that
    // the verifier knows the value.
    let jiffies = unsafe { ptr::read_volatile(&raw const JIFFIES) };
    let nanos = if jiffies.nanos == 0 {
        coarse_ns()
    } else {
        // SAFETY: no arguments.
        let now = unsafe { raw::bpf_jiffies64() };
        now.wrapping_sub(u64::from(jiffies.first)) * u64::from(jiffies.nanos)
    };
    (nanos >> weft_abi::TICK_SHIFT) as u32
}

/// The coarse monotonic clock in nanoseconds; it moves with the timer interrupt, every 1 to 10 ms.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { raw::bpf_ktime_get_coarse_ns() }
}

/// The number of the network namespace of the socket that a hook on control groups is called for.
#[inline(always)]
pub fn netns_cookie(ctx: *mut c_void) -> u64 {
    // SAFETY: `ctx` is the program's context.
    unsafe { raw::bpf_get_netns_cookie(ctx) }
}

/// The number of that socket.
#[inline(always)]
pub fn socket_cookie(ctx: *mut c_void) -> u64 {
    // SAFETY: `ctx` is the program's context.
    unsafe { raw::bpf_get_socket_cookie(ctx) }
}

/// A random word.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { raw::bpf_get_prandom_u32() as u32 }
}

/// Makes at least `len` bytes linear. Packet pointers are void afterwards.
#[inline(always)]
pub fn pull(skb: *mut __sk_buff, len: u32) -> bool {
    // SAFETY: `skb` is the program's context.
    unsafe { raw::bpf_skb_pull_data(skb, len) == 0 }
}

/// Copies bytes of the packet at `offset` to a `T`; `T` is valid for every bit pattern.
#[inline(always)]
pub fn load<T: Copy>(skb: *mut __sk_buff, offset: usize) -> Option<T> {
    let mut value = mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes to `value` or fails.
    unsafe {
        let into = value.as_mut_ptr().cast();
        if raw::bpf_skb_load_bytes(skb.cast(), offset as u32, into, mem::size_of::<T>() as u32) != 0 {
            return None;
        }
        Some(value.assume_init())
    }
}

/// Copies what is at `offset` of the packet into a map value.
#[inline(always)]
pub fn load_into<T>(skb: *mut __sk_buff, offset: usize, into: *mut T) -> bool {
    // SAFETY: the helper writes `size_of::<T>()` bytes to `into`, a map value that the verifier knows the size of.
    unsafe { raw::bpf_skb_load_bytes(skb.cast(), offset as u32, into.cast(), mem::size_of::<T>() as u32) == 0 }
}

/// Copies kernel memory at `address` to `value` (`CAP_PERFMON`); about 10 ns.
#[inline(always)]
pub fn read_kernel<T>(value: &mut mem::MaybeUninit<T>, address: usize) -> bool {
    // SAFETY: the helper writes `size_of::<T>()` bytes to `value`, and takes any address.
    unsafe {
        raw::bpf_probe_read_kernel(value.as_mut_ptr().cast(), mem::size_of::<T>() as u32, address as *const c_void) == 0
    }
}

/// The kernel's own `struct sk_buff` of a context, to be read (`CAP_PERFMON`); only where [`SkbLayout::casts`] says so. The verifier puts
/// a move in its place (`bpf_cast_to_kern_ctx`, kernel 6.2).
#[inline(always)]
pub fn kernel_skb(skb: *mut __sk_buff) -> *const u8 {
    // SAFETY: a call of the helper with this number, as all of `raw` are; the loader writes a function of the kernel there, which takes
    // the context and gives a pointer.
    unsafe {
        let cast = mem::transmute::<usize, unsafe extern "C" fn(*mut c_void) -> *const u8>(SkbLayout::CAST as usize);
        cast(skb.cast())
    }
}

/// Writes `value` at `offset`. The value is on the stack: from an LRU map value this helper costs 90 ns more.
#[inline(always)]
pub fn store<T: Copy>(skb: *mut __sk_buff, offset: usize, value: &T) -> bool {
    // SAFETY: the helper reads `size_of::<T>()` bytes of `value`.
    unsafe {
        let from = ptr::from_ref(value).cast_mut().cast();
        raw::bpf_skb_store_bytes(skb.cast(), offset as u32, from, mem::size_of::<T>() as u32, 0) == 0
    }
}

/// Applies a difference to the transport checksum at `offset`; knows partial checksums of offloaded packets.
///
/// `pseudo`: the difference is of addresses, which are in the pseudo header. `optional`: UDP over IPv4, where 0 means that
/// there is no checksum.
#[inline(always)]
pub fn replace_l4_checksum(skb: *mut __sk_buff, offset: usize, diff: u32, pseudo: bool, optional: bool) -> bool {
    let mut flags = if pseudo { u64::from(BPF_F_PSEUDO_HDR) } else { 0 };
    if optional {
        flags |= u64::from(BPF_F_MARK_MANGLED_0);
    }
    // SAFETY: plain values; with size 0 in `flags` the helper takes the whole difference from `to`.
    unsafe { raw::bpf_l4_csum_replace(skb, offset as u32, 0, u64::from(diff), flags) == 0 }
}

/// Says for whom the packet is, whatever its Ethernet destination was.
#[inline(always)]
pub fn set_packet_type(skb: *mut __sk_buff, packet_type: u32) -> bool {
    // SAFETY: plain values.
    unsafe { raw::bpf_skb_change_type(skb, packet_type) == 0 }
}

/// Cuts the packet or adds zeros, to `len` bytes. Packet pointers are void afterwards.
#[inline(always)]
pub fn resize(skb: *mut __sk_buff, len: u32) -> bool {
    // SAFETY: plain values.
    unsafe { raw::bpf_skb_change_tail(skb, len, 0) == 0 }
}

/// To the other end of a veth pair, in its namespace, without passing the host's queue. Ingress hooks only.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: plain values.
    unsafe { raw::bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Out of a device.
#[inline(always)]
pub fn redirect_out(ifindex: u32) -> i32 {
    // SAFETY: plain values.
    unsafe { raw::bpf_redirect(ifindex, 0) as i32 }
}

/// In through a device, up the host's stack.
#[inline(always)]
pub fn redirect_in(ifindex: u32) -> i32 {
    // SAFETY: plain values.
    unsafe { raw::bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Out of a device to the neighbour that the host's routes say for the packet's destination.
#[inline(always)]
pub fn redirect_route(ifindex: u32) -> i32 {
    // SAFETY: no parameters: the kernel looks the route up.
    unsafe { raw::bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) as i32 }
}

/// Out of a device to the neighbour `next_hop`.
#[inline(always)]
pub fn redirect_neighbour(ifindex: u32, next_hop: &Addr) -> i32 {
    // SAFETY: all zero is a valid value of this C struct.
    let mut params: bpf_redir_neigh = unsafe { mem::zeroed() };
    if next_hop.is_v4() {
        params.nh_family = AF_INET;
        params.__bindgen_anon_1.ipv4_nh = next_hop.v4_word();
    } else {
        params.nh_family = AF_INET6;
        params.__bindgen_anon_1.ipv6_nh = next_hop.0;
    }
    // SAFETY: `params` lives over the call, its size is told.
    unsafe { raw::bpf_redirect_neigh(ifindex, &mut params, mem::size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// What the host's routes say.
pub enum Forwarding {
    /// It goes there.
    To(Route),
    /// The host has no route to it, or one that lets nothing pass.
    Nowhere,
    /// The host does not tell: it does not forward from that device.
    Unknown,
}

/// How routes are asked for: also for the source that the host would take (kernel 6.7); tests put what no kernel knows here, so
/// that it is as it is before.
#[unsafe(no_mangle)]
static FIB_SOURCE: u32 = BPF_FIB_LOOKUP_SRC;
/// What a kernel answers that does not know one of the flags.
const EINVAL: i64 = -22;
/// `BPF_FIB_LKUP_RET_*` of `linux/bpf.h`.
const FIB_SUCCESS: i64 = 0;
const FIB_LAST_REFUSAL: i64 = 4;
/// A route that encapsulates: no packet leaves without that.
const FIB_ENCAPSULATES: i64 = 6;
const FIB_FRAG_NEEDED: i64 = 8;

/// What the host's routes are asked about: a packet as the host's stack would see it, before it is masqueraded.
#[derive(Clone, Copy)]
pub struct Leaving<'p> {
    pub src: &'p Addr,
    pub dst: &'p Addr,
    pub protocol: u8,
    /// Network byte order.
    pub sport: u16,
    /// Network byte order.
    pub dport: u16,
}

/// The host's route for what goes by `packet`'s addresses, protocol and ports, and comes in by the device `from`: by all of its
/// rules but those of marks, and of several ways the one that the host's own hash chooses. Its source is unspecified where the
/// kernel does not tell.
#[inline(always)]
pub fn host_route(skb: *mut __sk_buff, from: u32, packet: &Leaving<'_>) -> Forwarding {
    let (src, dst) = (packet.src, packet.dst);
    // SAFETY: all zero is a valid value of this C struct.
    let mut params: bpf_fib_lookup = unsafe { mem::zeroed() };
    params.ifindex = from;
    if dst.is_v4() {
        params.family = AF_INET as u8;
        params.__bindgen_anon_3.ipv4_src = src.v4_word();
        params.__bindgen_anon_4.ipv4_dst = dst.v4_word();
    } else {
        params.family = AF_INET6 as u8;
        params.__bindgen_anon_3.ipv6_src = src.0;
        params.__bindgen_anon_4.ipv6_dst = dst.0;
    }
    (params.l4_protocol, params.sport, params.dport) = (packet.protocol, packet.sport, packet.dport);
    let size = mem::size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: a constant of the object, which the loader may have set; volatile, so that its value here is not taken for granted.
    let with_source = BPF_FIB_LOOKUP_SKIP_NEIGH | unsafe { ptr::read_volatile(&raw const FIB_SOURCE) };
    // SAFETY: `params` lives over the call, its size is told.
    let mut found = unsafe { raw::bpf_fib_lookup(skb.cast(), &mut params, size, with_source) } as i64;
    if found == EINVAL {
        // SAFETY: as above; a kernel that refuses flags has not touched it.
        found = unsafe { raw::bpf_fib_lookup(skb.cast(), &mut params, size, BPF_FIB_LOOKUP_SKIP_NEIGH) } as i64;
    }
    match found {
        // Whether the packet fits is another question.
        FIB_SUCCESS | FIB_FRAG_NEEDED => {
            let (ifindex, source) = (params.ifindex, source(&params, dst.is_v4()));
            // A kernel that does not tell a source has left the packet's own there.
            let source = if source == *src { Addr::UNSPECIFIED } else { source };
            Forwarding::To(Route { ifindex, next_hop: next_hop(&params), source })
        }
        1..=FIB_LAST_REFUSAL | FIB_ENCAPSULATES => Forwarding::Nowhere,
        _ => Forwarding::Unknown,
    }
}

/// What the kernel left in the place of the destination.
#[inline(always)]
fn next_hop(params: &bpf_fib_lookup) -> Addr {
    // SAFETY: the family is that of the member which the kernel filled.
    unsafe {
        if u32::from(params.family) == AF_INET {
            Addr::v4(params.__bindgen_anon_4.ipv4_dst)
        } else {
            Addr(params.__bindgen_anon_4.ipv6_dst)
        }
    }
}

#[inline(always)]
fn source(params: &bpf_fib_lookup, is_v4: bool) -> Addr {
    // SAFETY: with BPF_FIB_LOOKUP_SRC the kernel filled the member of the family.
    unsafe {
        // The family that the kernel leaves there is the next hop's, which may be another one (RFC 5549).
        if is_v4 {
            match params.__bindgen_anon_3.ipv4_src {
                0 => Addr::UNSPECIFIED,
                word => Addr::v4(word),
            }
        } else {
            Addr(params.__bindgen_anon_3.ipv6_src)
        }
    }
}

/// How many bytes of an IP packet a device takes (kernel 5.12); none: there is no such device. Asked with a length that every device
/// takes: of packets that are to be cut into segments the helper says of any that it fits.
#[inline(always)]
pub fn mtu(skb: *mut __sk_buff, ifindex: u32) -> Option<u32> {
    // The helper leaves the MTU in its place.
    let mut mtu = 1;
    // SAFETY: `mtu` lives over the call.
    let found = unsafe { raw::bpf_check_mtu(skb.cast(), ifindex, &mut mtu, 0, 0) };
    (found == 0).then_some(mtu)
}

/// Sets the tunnel metadata that the VXLAN device in external mode encapsulates by; `tos`: of the outer header.
#[inline(always)]
pub fn set_tunnel(skb: *mut __sk_buff, vni: u32, tos: u8, remote: &Addr) -> bool {
    // SAFETY: all zero is a valid value of this C struct.
    let mut key: bpf_tunnel_key = unsafe { mem::zeroed() };
    key.tunnel_id = vni;
    key.tunnel_ttl = 64;
    key.tunnel_tos = tos;
    let flags = if remote.is_v4() {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote.v4_word());
        BPF_F_ZERO_CSUM_TX
    } else {
        key.__bindgen_anon_1.remote_ipv6 = remote.0;
        BPF_F_TUNINFO_IPV6
    };
    // SAFETY: `key` lives over the call, its size is told.
    unsafe {
        raw::bpf_skb_set_tunnel_key(skb, &mut key, mem::size_of::<bpf_tunnel_key>() as u32, u64::from(flags)) == 0
    }
}

/// How a packet was encapsulated.
#[derive(Clone, Copy)]
pub struct Tunnel {
    /// Who did it.
    pub peer: Addr,
    /// The address of this node that it was sent to (kernel 6.0).
    pub local: Addr,
    /// The network identifier.
    pub vni: u32,
}

/// How the packet was encapsulated, where that was by IPv4.
#[inline(always)]
pub fn tunnel_v4(skb: *mut __sk_buff) -> Option<Tunnel> {
    let key = tunnel_key(skb, 0)?;
    // SAFETY: without BPF_F_TUNINFO_IPV6 the kernel filled the IPv4 members.
    let (peer, local) = unsafe { (key.__bindgen_anon_1.remote_ipv4, key.__bindgen_anon_3.local_ipv4) };
    Some(Tunnel { peer: Addr::v4(peer.to_be()), local: Addr::v4(local.to_be()), vni: key.tunnel_id })
}

/// [`tunnel_v4`] by IPv6.
#[inline(always)]
pub fn tunnel_v6(skb: *mut __sk_buff) -> Option<Tunnel> {
    let key = tunnel_key(skb, BPF_F_TUNINFO_IPV6)?;
    // SAFETY: with the flag the kernel filled the IPv6 members.
    let (peer, local) = unsafe { (key.__bindgen_anon_1.remote_ipv6, key.__bindgen_anon_3.local_ipv6) };
    Some(Tunnel { peer: Addr(peer), local: Addr(local), vni: key.tunnel_id })
}

/// The tunnel metadata of a packet of the family that `flags` ask for.
#[inline(always)]
fn tunnel_key(skb: *mut __sk_buff, flags: u32) -> Option<bpf_tunnel_key> {
    let mut key = mem::MaybeUninit::<bpf_tunnel_key>::uninit();
    let size = mem::size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` lives over the call and its size is told; the helper writes all of it, zeros where it fails.
    unsafe {
        let got = raw::bpf_skb_get_tunnel_key(skb, key.as_mut_ptr(), size, u64::from(flags));
        (got == 0).then(|| key.assume_init())
    }
}

/// Makes room for `len` bytes before the packet's first one. Packet pointers are void afterwards.
#[inline(always)]
pub fn grow_head(skb: *mut __sk_buff, len: u32) -> bool {
    // SAFETY: plain values.
    unsafe { raw::bpf_skb_change_head(skb, len, 0) == 0 }
}

/// What a `bpf_loop` body returns to go on (0) or to end (1), from a word of its state that is 0 or 1. Read anew, so that the
/// verifier sees that it is nothing else.
#[inline(always)]
pub fn ends(done: &u32) -> i64 {
    // SAFETY: a reference.
    i64::from(unsafe { ptr::from_ref(done).read_volatile() } & 1)
}

/// Calls `body` up to `times` times with `state`, until it returns 1 (`bpf_loop`, kernel 5.17).
#[inline(always)]
pub fn repeat<T>(times: u32, body: unsafe extern "C" fn(u32, *mut T) -> i64, state: &mut T) {
    // SAFETY: `body` takes exactly what the helper passes on: an index and `state`.
    let _rounds = unsafe { raw::bpf_loop(times, body as *mut c_void, ptr::from_mut(state).cast(), 0) };
}

/// Whether this network namespace has a socket for packets of this key, one that listens included.
#[inline(always)]
pub fn has_socket(skb: *mut __sk_buff, key: &FlowKey6, tcp: bool) -> bool {
    // SAFETY: all zero is a valid value of this C union.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let size = if key.src.is_v4() {
        tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: key.src.v4_word(),
            daddr: key.dst.v4_word(),
            sport: key.sport,
            dport: key.dport,
        };
        mem::size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
    } else {
        tuple.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: key.src.0,
            daddr: key.dst.0,
            sport: key.sport,
            dport: key.dport,
        };
        mem::size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
    };
    // SAFETY: `skb` is the program's context, `tuple` lives over the call, its size is told; u64::MAX: the device's namespace.
    let socket = unsafe {
        if tcp {
            raw::bpf_skc_lookup_tcp(skb.cast(), &mut tuple, size as u32, u64::MAX, 0)
        } else {
            raw::bpf_sk_lookup_udp(skb.cast(), &mut tuple, size as u32, u64::MAX, 0)
        }
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference that the look-up took.
    let _released = unsafe { raw::bpf_sk_release(socket.cast()) };
    true
}

/// Adds to a word that other CPUs add to as well; what it was before. Relaxed, the backend would use the instruction that does
/// not tell.
#[inline(always)]
pub fn fetch_add(word: *mut u32, value: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: callers give an aligned word of a map value.
    let before = unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        atomic_xadd::<u32, u32, { AtomicOrdering::SeqCst }>(word, value)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    let before = unsafe { core::sync::atomic::AtomicU32::from_ptr(word) }.fetch_add(value, Ordering::SeqCst);
    before
}

/// Writes `new` to a word if it is still `old`; whether it was. Fully ordered, as all of these.
#[inline(always)]
pub fn compare_exchange(word: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    // SAFETY: callers give an aligned word of a map value.
    let (_, exchanged) = unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    let exchanged = unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }
        .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
        .is_ok();
    exchanged
}

/// Writes a word; what it was.
#[inline(always)]
pub fn exchange(word: *mut u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: callers give an aligned word of a map value.
    let before = unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xchg};
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(word, new)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    let before = unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }.swap(new, Ordering::SeqCst);
    before
}

/// Sets bits of a word; what it was.
#[inline(always)]
pub fn fetch_or(word: *mut u64, bits: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: callers give an aligned word of a map value.
    let before = unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_or};
        atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bits)
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    let before = unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }.fetch_or(bits, Ordering::SeqCst);
    before
}

/// Not 0: the CPU may read later words first. Set by the loader; the verifier knows the value.
#[unsafe(no_mangle)]
static REORDERS_READS: u32 = 1;

/// Keeps reads before it from being done after it, on CPUs that do that (not x86): the set of instructions has no barrier, but an atomic
/// operation that returns a value is one.
#[inline(always)]
pub fn order_reads() {
    // SAFETY: a valid static; volatile, as for `JIFFIES`.
    if unsafe { ptr::read_volatile(&raw const REORDERS_READS) } != 0
        && let Some(word) = crate::maps::own_word()
    {
        fetch_add(word, 0);
    }
}
