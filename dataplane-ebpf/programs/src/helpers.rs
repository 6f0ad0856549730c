// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Every raw helper call of the programs.

use core::{ffi::c_void, mem, ptr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
        bpf_redir_neigh, bpf_tunnel_key,
    },
    helpers::generated as raw,
};
use weft_abi::Addr;

/// Address families as `bpf_redir_neigh` takes them.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// `PACKET_HOST`: for this host.
pub const PACKET_HOST: u32 = 0;
/// `PACKET_OTHERHOST`: IP ignores it, packet sockets do not.
pub const PACKET_OTHERHOST: u32 = 3;

/// The coarse monotonic clock in units of 2^30 ns (1.07 s): 7 ns a call, and no division.
#[inline(always)]
pub fn coarse_ticks() -> u32 {
    // SAFETY: no arguments.
    (unsafe { raw::bpf_ktime_get_coarse_ns() } >> weft_abi::TICK_SHIFT) as u32
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn monotonic_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { raw::bpf_ktime_get_ns() }
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

/// Copies kernel memory at `address` to `value` (`CAP_PERFMON`); about 10 ns.
#[inline(always)]
pub fn read_kernel<T>(value: &mut mem::MaybeUninit<T>, address: usize) -> bool {
    // SAFETY: the helper writes `size_of::<T>()` bytes to `value`, and takes any address.
    unsafe {
        raw::bpf_probe_read_kernel(value.as_mut_ptr().cast(), mem::size_of::<T>() as u32, address as *const c_void) == 0
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

/// Sets the tunnel metadata that the VXLAN device in external mode encapsulates by.
#[inline(always)]
pub fn set_tunnel(skb: *mut __sk_buff, vni: u32, remote: &Addr) -> bool {
    // SAFETY: all zero is a valid value of this C struct.
    let mut key: bpf_tunnel_key = unsafe { mem::zeroed() };
    key.tunnel_id = vni;
    key.tunnel_ttl = 64;
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

/// The node that encapsulated the packet, and the network identifier.
#[inline(always)]
pub fn tunnel_peer(skb: *mut __sk_buff) -> Option<(Addr, u32)> {
    tunnel_peer_v4(skb).or_else(|| tunnel_peer_v6(skb))
}

/// [`tunnel_peer`] where it was by IPv4.
#[inline(always)]
pub fn tunnel_peer_v4(skb: *mut __sk_buff) -> Option<(Addr, u32)> {
    let key = tunnel_key(skb, 0)?;
    // SAFETY: without BPF_F_TUNINFO_IPV6 the kernel filled the IPv4 member.
    let word = unsafe { key.__bindgen_anon_1.remote_ipv4 };
    Some((Addr::v4(word.to_be()), key.tunnel_id))
}

/// [`tunnel_peer`] where it was by IPv6.
#[inline(always)]
pub fn tunnel_peer_v6(skb: *mut __sk_buff) -> Option<(Addr, u32)> {
    let key = tunnel_key(skb, BPF_F_TUNINFO_IPV6)?;
    // SAFETY: with the flag the kernel filled the IPv6 member.
    Some((Addr(unsafe { key.__bindgen_anon_1.remote_ipv6 }), key.tunnel_id))
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

/// Calls `body` up to `times` times with `state`, until it returns 1 (`bpf_loop`, kernel 5.17).
#[inline(always)]
pub fn repeat<T>(times: u32, body: unsafe extern "C" fn(u32, *mut T) -> i64, state: &mut T) {
    // SAFETY: `body` takes exactly what the helper passes on: an index and `state`.
    let _rounds = unsafe { raw::bpf_loop(times, body as *mut c_void, ptr::from_mut(state).cast(), 0) };
}
