// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//! Devices whose packets begin with the IP header (PPP, WireGuard, TUN, IP in IP): what belongs to the dataplane gets an Ethernet
//! header and walks as if it had come by an uplink.
//!
//! What is the host's own traffic goes on as it came: other programs of the device read the packet too. To tell them apart costs a
//! second look-up of the flow, here alone. Packets in pieces, with options, and ICMP errors are left to the walk whole; where it lets
//! them pass the header stays before them, which the host's IP stack does not look at.

use aya_ebpf::bindings::__sk_buff;
use weft_abi::{DropReason, Hook, UPLINK};
use weft_logic::{
    Frame,
    header::{ETHERNET, Ethernet, Kind, ethertype},
};

use crate::{
    decide,
    family::{Family, V4, V6},
    helpers, hook, maps, report,
    skb::Skb,
    stop,
    table::{self, Buffer},
    walk,
};

/// The hook that these devices stand in for.
const HOOK: u8 = Hook::FromUplink as u8;
/// [`weft_is_ours_v4`]: the packet is the dataplane's, or only the walk can tell.
const OURS: u32 = 0;
/// It is the host's, and may pass. Other values are reasons to drop it + 1.
const PASS: u32 = 0x100;

/// A packet read as if there were an Ethernet header before it.
struct Bare(Skb);

impl Frame for Bare {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.0.len() + ETHERNET as u32
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        self.0.read(offset - ETHERNET)
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        self.0.load(offset - ETHERNET)
    }
}

/// The whole of the hook's program.
#[inline(always)]
pub fn run(skb: Skb) -> i32 {
    const IPV4: u16 = ethertype::IPV4.to_be();
    const IPV6: u16 = ethertype::IPV6.to_be();
    let verdict = match skb.protocol() {
        IPV4 => weft_is_ours_v4(skb.raw()),
        IPV6 => weft_is_ours_v6(skb.raw()),
        _ => PASS,
    };
    match verdict {
        OURS if add_ethernet(&skb) => walk::run::<HOOK>(skb),
        OURS => report::dropped(&skb, HOOK, DropReason::Kernel),
        PASS => hook::NEXT,
        refused => report::dropped(&skb, HOOK, stop::check(refused).err().unwrap_or(DropReason::Kernel)),
    }
}

/// [`is_ours`] of IPv4. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_is_ours_v4(skb: *mut __sk_buff) -> u32 {
    is_ours::<V4>(Skb::of(skb))
}

/// [`is_ours`] of IPv6. Exported, and thereby global to the verifier, as in `far`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weft_is_ours_v6(skb: *mut __sk_buff) -> u32 {
    is_ours::<V6>(Skb::of(skb))
}

/// [`OURS`], [`PASS`], or the number of the reason + 1.
#[inline(always)]
fn is_ours<F: Family>(skb: Skb) -> u32 {
    if F::IS_V6 {
        skb.pull_headers::<{ V6::HEADERS - ETHERNET }>();
    } else {
        skb.pull_headers::<{ V4::HEADERS - ETHERNET }>();
    }
    let (ip, transport) = match F::parse(&Bare(skb)) {
        Ok((ip, Some(transport))) => (ip, transport),
        Ok((_, None)) => return OURS,
        Err(_) => return PASS,
    };
    match transport.kind {
        Kind::FLOW => {}
        Kind::ICMP_ERROR => return OURS,
        _ => return PASS,
    }
    let Some(walk) = maps::walk() else { return stop::code(Err(DropReason::Kernel)) };
    walk.question.key = F::widen(&F::key(UPLINK, &ip, &transport));
    table::begin();
    if F::find(&walk.question.key, Buffer::One).is_some()
        || decide::is_workload_of_cluster(&walk.question.key.dst)
        || decide::weft_addresses_service() != 0
    {
        return OURS;
    }
    if let Some(reason) = table::refusal() {
        return stop::code(Err(reason));
    }
    if maps::is_taking_over() && decide::weft_may_be_an_answer(skb.raw()) != 0 {
        return stop::code(Err(DropReason::Takeover));
    }
    walk.question.is_v6 = u8::from(F::IS_V6);
    walk.question.related = 0;
    walk.question.sender_mac = [0; 6];
    (walk.decision.translated, walk.decision.rules) = (0, [0; 2]);
    match decide::weft_admit_for_host() {
        0 => PASS,
        refused => refused,
    }
}

/// An Ethernet header without addresses: nobody's whose address is looked at.
#[inline(always)]
fn add_ethernet(skb: &Skb) -> bool {
    let ethertype = skb.protocol();
    if !helpers::grow_head(skb.raw(), ETHERNET as u32) {
        return false;
    }
    let Some(header) = skb.at::<Ethernet>(0) else { return false };
    // SAFETY: `at` checked the bounds.
    unsafe { *header = Ethernet { dst: [0; 6], src: [0; 6], ethertype } };
    true
}
