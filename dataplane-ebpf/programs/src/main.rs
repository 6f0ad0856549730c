// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Weft's eBPF programs, one per hook. Each is a thin list of steps over `weft-logic`.
//!
//! Kernel minimum 6.6 (tcx links, kernel commit e420bed02507). `TC_ACT_*` of `clsact` and `TCX_*` are the same numbers.

#![no_std]
#![no_main]
// Atomic operations: the target's `core` has them as intrinsics only.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "the only atomic operations of this target"))]
#![expect(unreachable_pub, reason = "a binary: pub means for the other modules")]
#![expect(missing_docs, reason = "the entry points that the macro makes have none")]

mod arp;
mod balance;
mod decide;
mod deliver;
mod edit;
mod export;
mod family;
mod far;
mod helpers;
mod hook;
mod hop_limit;
mod icmp_answer;
mod icmp_error;
mod insert;
mod l3;
mod maps;
mod mss;
mod neighbour;
mod offload;
mod pool;
mod refuse;
mod report;
mod rewrite;
mod route;
mod sctp;
mod share;
mod skb;
mod socket;
mod stop;
mod table;
mod to_workload;
mod too_big;
mod tunnel;
mod tuple;
mod walk;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use weft_abi::Hook;

use crate::skb::Skb;

/// Ingress of a workload's veth or tap, by `clsact`: everything a workload sends.
#[classifier]
pub fn from_workload(ctx: TcContext) -> i32 {
    walk::run::<{ Hook::FromWorkload as u8 }>(Skb::new(&ctx))
}

/// tcx egress of `weft0`: everything the host sends to workloads and Services.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    walk::run::<{ Hook::FromHost as u8 }>(Skb::new(&ctx))
}

/// tcx ingress of the uplink: other nodes in native mode, replies from the outside, and the host's own traffic.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    walk::run::<{ Hook::FromUplink as u8 }>(Skb::new(&ctx))
}

/// tcx ingress of devices that lead out of the node and whose packets have no Ethernet header: as of the uplink.
#[classifier]
pub fn from_l3(ctx: TcContext) -> i32 {
    l3::run(Skb::new(&ctx))
}

/// tcx ingress of the VXLAN device: workloads and hosts of other nodes.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    walk::run::<{ Hook::FromOverlay as u8 }>(Skb::new(&ctx))
}

/// Egress of a workload's veth or tap, by `clsact`: lets through what the programs decided, and the agent's DHCP and RA.
#[classifier]
pub fn to_workload(ctx: TcContext) -> i32 {
    to_workload::run(Skb::new(&ctx))
}

/// On no device: entries of the flow table as records.
#[classifier]
pub fn export_connections(ctx: TcContext) -> i32 {
    export::run(Skb::new(&ctx))
}

/// On no device: writes to the flow table for user space.
#[classifier]
pub fn edit_flows(ctx: TcContext) -> i32 {
    edit::run(Skb::new(&ctx))
}

/// A socket of IPv4 connects.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::lead::<socket::V4>(&ctx)
}

/// A socket of IPv6 connects.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::lead::<socket::V6>(&ctx)
}

/// A socket of IPv4 sends a datagram to whom it names with it.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::lead::<socket::V4>(&ctx)
}

/// A socket of IPv6 sends a datagram to whom it names with it.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::lead::<socket::V6>(&ctx)
}

/// A socket of IPv4 gets a datagram.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::name::<socket::V4>(&ctx)
}

/// A socket of IPv6 gets a datagram.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::name::<socket::V6>(&ctx)
}

/// A socket of IPv4 asks who is at the other end.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::name::<socket::V4>(&ctx)
}

/// A socket of IPv6 asks who is at the other end.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::name::<socket::V6>(&ctx)
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
