// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Sockets of the host that name a port of the host: see `weft_logic::socket`.
//!
//! The hooks are on the root of the control groups and see every socket of the machine: those of other network namespaces pass.
//! Kernel minimum 5.8 (`BPF_CGROUP_INET4_GETPEERNAME`, kernel commit 1b66d253610c).

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock_addr},
    btf_maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use weft_abi::{
    Addr, AddressKey, Balancer, CLUSTER_NET, CidrKey, Config, Frontend, FrontendKey, Member, MemberKey, Owner, Remote,
    SocketEnd, SocketKey,
};
use weft_logic::socket::{self, Sockets};

use crate::{
    helpers,
    maps::{ADDRESSES, BALANCERS, CONFIG, FRONTENDS, MEMBERS, REMOTES, SOCKETS, SOURCES},
};

/// Of the node's network namespace; 0, which none has: not known. Set by the loader.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

/// The kernel goes on; the other answer would be `EPERM`.
const GO_ON: i32 = 1;

/// Before a socket connects or sends: leads it to who serves what it asks for.
#[inline(always)]
pub fn lead<A: Name>(ctx: &SockAddrContext) -> i32 {
    if is_of_host(ctx) && !is_bound_to_device(ctx) {
        let (asked, cookie) = (A::read(ctx.sock_addr), helpers::socket_cookie(ctx.as_ptr()));
        if let Some(end) = socket::lead(&Maps, asked, protocol(ctx)) {
            // Without an entry it is told where it was led, and nothing worse.
            SOCKETS.insert(SocketKey::new(cookie, end), asked, BPF_ANY.into()).ok();
            A::write(ctx.sock_addr, end);
        } else {
            let key = SocketKey::new(cookie, asked);
            // SAFETY: it is asked only whether there is one.
            if unsafe { SOCKETS.get(key) }.is_some() {
                // It asks for whom it was led to before: that one answers by its own name.
                SOCKETS.remove(key).ok();
            }
        }
    }
    GO_ON
}

/// Before a socket is told who is at the other end, or sent a datagram: names whom it asked for.
#[inline(always)]
pub fn name<A: Name>(ctx: &SockAddrContext) -> i32 {
    if is_of_host(ctx) {
        let key = SocketKey::new(helpers::socket_cookie(ctx.as_ptr()), A::read(ctx.sock_addr));
        // SAFETY: an entry may become another socket's meanwhile, which has another key: a socket is then told of a port that it did
        // not ask for. Nothing is done by it.
        if let Some(asked) = unsafe { SOCKETS.get(key) } {
            A::write(ctx.sock_addr, *asked);
        }
    }
    GO_ON
}

#[inline(always)]
fn is_of_host(ctx: &SockAddrContext) -> bool {
    // SAFETY: a valid static; volatile, as the loader sets another value than the compiler sees.
    let host = unsafe { ptr::read_volatile(&raw const NETNS_COOKIE) };
    helpers::netns_cookie(ctx.as_ptr()) == host
}

/// What a device leads elsewhere than `weft0` would not come by there.
#[inline(always)]
fn is_bound_to_device(ctx: &SockAddrContext) -> bool {
    // SAFETY: fields of the context and of its socket, each read whole.
    unsafe {
        let socket = ptr::read_volatile(&raw const (*ctx.sock_addr).__bindgen_anon_1.sk);
        !socket.is_null() && ptr::read_volatile(&raw const (*socket).bound_dev_if) != 0
    }
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: a field of the context, read whole.
    unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).protocol) as u8 }
}

/// How a family has addresses in the context.
pub trait Name {
    /// The other end.
    fn read(context: *mut bpf_sock_addr) -> SocketEnd;
    /// Sets it.
    fn write(context: *mut bpf_sock_addr, end: SocketEnd);
}

/// Sockets of IPv4.
pub struct V4;

/// Sockets of IPv6, whose other end may have an IPv4 address (RFC 4291, 2.5.5.2).
pub struct V6;

impl Name for V4 {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> SocketEnd {
        // SAFETY: fields of the context, read whole.
        let word = unsafe { ptr::read_volatile(&raw const (*context).user_ip4) };
        SocketEnd::new(Addr::v4(word), port(context))
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, end: SocketEnd) {
        // SAFETY: a field of the context that these hooks may write.
        unsafe { ptr::write_volatile(&raw mut (*context).user_ip4, end.addr.v4_word()) };
        set_port(context, end.port);
    }
}

impl Name for V6 {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> SocketEnd {
        let mut addr = Addr::UNSPECIFIED;
        for (index, word) in addr.0.iter_mut().enumerate() {
            // SAFETY: fields of the context, each read whole.
            *word = unsafe { ptr::read_volatile(&raw const (*context).user_ip6[index]) };
        }
        SocketEnd::new(addr, port(context))
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, end: SocketEnd) {
        for (index, word) in end.addr.0.into_iter().enumerate() {
            // SAFETY: fields of the context that these hooks may write.
            unsafe { ptr::write_volatile(&raw mut (*context).user_ip6[index], word) };
        }
        set_port(context, end.port);
    }
}

#[inline(always)]
fn port(context: *mut bpf_sock_addr) -> u16 {
    // SAFETY: a field of the context, read whole.
    unsafe { ptr::read_volatile(&raw const (*context).user_port) as u16 }
}

#[inline(always)]
fn set_port(context: *mut bpf_sock_addr, port: u16) {
    // SAFETY: a field of the context that these hooks may write.
    unsafe { ptr::write_volatile(&raw mut (*context).user_port, port.into()) };
}

/// The maps, without the rooms that packets share.
struct Maps;

impl Sockets for Maps {
    #[inline(always)]
    fn owner(&self, key: &AddressKey) -> Option<&Owner> {
        // SAFETY: user space replaces whole values; a reader under RCU sees one or the other element.
        unsafe { ADDRESSES.get(key) }
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        // SAFETY: as for `owner`.
        unsafe { FRONTENDS.get(key) }
    }

    #[inline(always)]
    fn balancer(&self, service: u32) -> Option<&Balancer> {
        // SAFETY: as for `owner`.
        unsafe { BALANCERS.get(service) }
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<&Member> {
        // SAFETY: as for `owner`.
        unsafe { MEMBERS.get(key) }
    }

    #[inline(always)]
    fn remote(&self, addr: &Addr) -> Option<&Remote> {
        REMOTES.get(&whole(CLUSTER_NET, addr))
    }

    #[inline(always)]
    fn admits(&self, service: u32, client: &Addr) -> bool {
        SOURCES.get(&whole(service, client)).is_some()
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }
}

/// An address of a network as a key that counts whole.
#[inline(always)]
const fn whole(net: u32, addr: &Addr) -> Key<AddressKey> {
    Key { prefix_len: CidrKey::ALL_BITS, data: AddressKey { net, addr: *addr } }
}
