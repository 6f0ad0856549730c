// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Programs of `cargo xtask bench datapath` and `net`; no part of the dataplane.
//!
//! `next_packet` makes the packet of the next flow and tail-calls a program on it: a test run hands each repetition what the
//! one before it left. `empty`, `lru_dnat`, `lru_insert` and, on real devices, `peer_alone` are what the dataplane is compared with.

#![no_std]
#![no_main]
#![expect(unreachable_pub, reason = "the entry points that the macro makes must be public")]
#![expect(missing_docs, reason = "the entry points that the macro makes have none")]

use core::mem;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_tunnel_key},
    btf_maps::{Array, LruHashMap, ProgramArray},
    helpers::generated::{bpf_redirect, bpf_redirect_peer, bpf_skb_set_tunnel_key, bpf_tail_call},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use weft_abi::bench::{DnatKey, DnatValue, Template};
use weft_logic::checksum;

/// Ethernet, IPv4 without options and the ports and checksum of TCP.
#[repr(C, packed(2))]
struct Headers {
    macs: [u16; 6],
    ethertype: u16,
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: u32,
    dst: u32,
    sport: u16,
    dport: u16,
    sequence: [u16; 4],
    offset_flags: u16,
    window: u16,
    tcp_checksum: u16,
}

/// Ethernet, IPv6 without extension headers and the ports of TCP.
#[repr(C, packed(2))]
struct Headers6 {
    macs: [u16; 6],
    ethertype: u16,
    ip: [u16; 20],
    sport: u16,
    dport: u16,
}

#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();
#[btf_map]
static PROGRAMS: ProgramArray<8> = ProgramArray::new();
#[btf_map]
static BENCH_FLOWS: LruHashMap<DnatKey, DnatValue, 262144> = LruHashMap::new();
/// What `lru_insert` fills; the loader makes it as large as the flow table beside it.
#[btf_map]
static BENCH_NEW: LruHashMap<DnatKey, DnatValue, 524288> = LruHashMap::new();

/// By the device that a packet comes through: the one whose peer gets it.
#[btf_map]
static PEERS: Array<u32, 64> = Array::new();

const DROP: i32 = 2;

#[inline(always)]
fn headers(ctx: &TcContext) -> Option<*mut Headers> {
    let (start, end) = (ctx.data(), ctx.data_end());
    (start + size_of::<Headers>() <= end).then_some(start as *mut Headers)
}

#[inline(always)]
fn headers6(ctx: &TcContext) -> Option<*mut Headers6> {
    let (start, end) = (ctx.data(), ctx.data_end());
    (start + size_of::<Headers6>() <= end).then_some(start as *mut Headers6)
}

#[classifier]
pub fn next_packet(ctx: TcContext) -> i32 {
    let (Some(template), Some(headers)) = (TEMPLATE.get_ptr_mut(0), headers(&ctx)) else { return DROP };
    // SAFETY: the bounds were checked; nobody else writes to the template during a run.
    let program = unsafe {
        let state = (*template).flow;
        // Each flow once in as many packets as there are flows: a full period over any power of two (Knuth 3.2.1). The upper half
        // is one of many orders: entries that are met in the order that they were made in lie side by side, and are there before
        // they are asked for.
        let next = (state & 0xffff).wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & 0xffff;
        (*template).flow = state & 0xffff_0000 | next;
        let flow = (next ^ state >> 16) & (*template).mask;
        (*headers).macs = (*template).macs;
        if (*headers).ethertype == 0x86dd_u16.to_be() {
            // Nobody translates it, so that its destination is still there.
            let Some(headers) = headers6(&ctx) else { return DROP };
            (*headers).sport = flow as u16;
            (*headers).dport = (*template).dport;
        } else {
            let spread = u32::from((*template).spread);
            let beyond = if spread == 0 { 0 } else { flow >> 13 };
            (*headers).dst = u32::from_be((*template).dst).wrapping_add(flow & spread).to_be();
            (*headers).sport = flow as u16;
            (*headers).dport = u16::from_be((*template).dport).wrapping_add(beyond as u16).to_be();
        }
        (*template).program
    };
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: as above.
    let (peer, vni) = unsafe { ((*template).tunnel_peer, (*template).vni) };
    if peer != 0 {
        come_by_tunnel(skb, peer, vni);
    }
    // SAFETY: on success it does not return.
    unsafe {
        bpf_tail_call(skb.cast(), (&raw const PROGRAMS).cast_mut().cast(), program);
    }
    DROP
}

/// This node's address, host byte order, see [`come_by_tunnel`]: 192.0.2.1.
const NODE: u32 = 0xc000_0201;

/// Gives the packet the metadata of one that `peer` has encapsulated: what is asked as the remote address of a packet that came
/// is the local one of a packet that goes, and the other way round.
#[inline(always)]
fn come_by_tunnel(skb: *mut __sk_buff, peer: u32, vni: u32) {
    // SAFETY: all zero is a valid value of this C struct; it lives over the call, and its size is told.
    unsafe {
        let mut key: bpf_tunnel_key = mem::zeroed();
        key.tunnel_id = vni;
        key.__bindgen_anon_1.remote_ipv4 = NODE;
        key.__bindgen_anon_3.local_ipv4 = peer;
        bpf_skb_set_tunnel_key(skb, &mut key, mem::size_of::<bpf_tunnel_key>() as u32, 0);
    }
}

#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    0
}

#[classifier]
pub fn lru_dnat(ctx: TcContext) -> i32 {
    let Some(headers) = headers(&ctx) else { return DROP };
    // SAFETY: the bounds were checked; the entry lives under RCU for as long as the program runs.
    unsafe {
        if (*headers).ethertype != 0x0800_u16.to_be() || (*headers).version_ihl != 0x45 || (*headers).protocol != 6 {
            return DROP;
        }
        let ports = DnatKey::ports((*headers).sport, (*headers).dport);
        let key = DnatKey { src: (*headers).src, dst: (*headers).dst, ports, protocol: 6 };
        let Some(value) = BENCH_FLOWS.get_ptr_mut(key) else { return DROP };
        (*value).packets += 1;
        (*value).bytes += u64::from(ctx.len());
        let (dst, dport) = ((*value).dst, (*value).dport);
        let address = checksum::word_diff(key.dst, dst);
        let port = checksum::half_diff((*headers).dport, dport);
        (*headers).checksum = checksum::update((*headers).checksum, address);
        (*headers).dst = dst;
        (*headers).dport = dport;
        (*headers).tcp_checksum = checksum::update((*headers).tcp_checksum, address + port);
        bpf_redirect((*value).ifindex, 0) as i32
    }
}

/// A new connection: an entry for each direction, and nothing that decides what is in them.
#[classifier]
pub fn lru_insert(ctx: TcContext) -> i32 {
    let Some(headers) = headers(&ctx) else { return DROP };
    // SAFETY: the bounds were checked.
    let (src, dst, sport, dport) = unsafe {
        if (*headers).ethertype != 0x0800_u16.to_be() || (*headers).version_ihl != 0x45 || (*headers).protocol != 6 {
            return DROP;
        }
        ((*headers).src, (*headers).dst, (*headers).sport, (*headers).dport)
    };
    let there = DnatKey { src, dst, ports: DnatKey::ports(sport, dport), protocol: 6 };
    let back = DnatKey { src: dst, dst: src, ports: DnatKey::ports(dport, sport), protocol: 6 };
    let value = DnatValue { dst, dport, pad: 0, ifindex: 1, pad2: 0, packets: 1, bytes: u64::from(ctx.len()) };
    if BENCH_NEW.insert(there, value, 0).is_err() || BENCH_NEW.insert(back, value, 0).is_err() {
        return DROP;
    }
    // SAFETY: a plain number.
    unsafe { bpf_redirect(value.ifindex, 0) as i32 }
}

/// Into the peer of the device at the other end, and nothing else.
#[classifier]
pub fn peer_alone(ctx: TcContext) -> i32 {
    // SAFETY: the packet's context; values of the map are replaced whole.
    unsafe {
        let Some(to) = PEERS.get((*ctx.skb.skb).ifindex) else { return DROP };
        bpf_redirect_peer(*to, 0) as i32
    }
}

/// Nothing panics; the verifier would refuse a program that could.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";
