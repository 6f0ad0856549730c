// SPDX-License-Identifier: Apache-2.0
//! The maps as the logic sees them.

use weft_abi::{
    Addr, AddressKey, Affinity, AffinityKey, BackendKey, Balancer, BlockKey, Class, Config, Frontend, FrontendKey,
    KnownVerdict, List, Member, MemberKey, MemberSet, Owner, Port, Remote, RingNode, RuleKey, Run, VerdictKey,
};

use crate::{
    decide::Step,
    policy::{self, Judged},
    ring,
};

/// Look-ups that a decision needs; see `weft_abi::map` for what each table holds.
pub trait Tables {
    /// `CONFIG`.
    fn config(&self) -> Option<&Config>;
    /// `PORTS`.
    fn port(&self, ifindex: u32) -> Option<&Port>;
    /// `ADDRESSES`, of one network.
    fn owner(&self, net: u32, addr: &Addr) -> Option<&Owner>;
    /// `REMOTES`, longest prefix of one network.
    fn remote(&self, net: u32, addr: &Addr) -> Option<&Remote>;
    /// `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend>;
    /// `BALANCERS`.
    fn balancer(&self, service: &u32) -> Option<&Balancer>;
    /// `MEMBERS`.
    fn member(&self, key: &MemberKey) -> Option<&Member>;
    /// `RINGS`.
    fn ring(&self, key: &MemberKey) -> Option<&RingNode>;
    /// [`ring::find`]; the kernel's implementation is a function of its own.
    #[inline(always)]
    fn on_ring(&self, service: u32, set: &MemberSet, position: u32) -> Option<u32>
    where
        Self: Sized,
    {
        ring::find(self, service, set, position)
    }
    /// `LOADS`: connections of this node to a backend.
    fn load(&self, backend: &BackendKey) -> u32;
    /// `BACKENDS`: [`weft_abi::BackendFlags`], none of one that is not there.
    fn backend(&self, backend: &BackendKey) -> u32;
    /// `SOURCES`: whether a client is one of those whom the Service port serves at its limited frontends.
    fn admits(&self, service: u32, client: &Addr) -> bool;
    /// `AFFINITIES`, which may have another client's backend there; who does not remember any chooses anew.
    #[inline(always)]
    fn affinity(&self, _key: &AffinityKey) -> Option<Affinity> {
        None
    }
    /// `PEERS`, of one network.
    fn class_of(&self, net: u32, addr: &Addr) -> Option<u64>;
    /// `CLASSES`.
    fn class(&self, class: &u64) -> Option<&Class>;
    /// `LISTS`.
    fn list(&self, list: &u64) -> Option<&List>;
    /// [`Tables::list`] into `into`, if there is one; the kernel's copies in another way.
    #[inline(always)]
    fn copy_list(&self, list: &u64, into: &mut List) -> bool {
        self.list(list).map(|found| *into = *found).is_some()
    }
    /// [`Tables::class`], as [`Tables::copy_list`].
    #[inline(always)]
    fn copy_class(&self, class: &u64, into: &mut Class) -> bool {
        self.class(class).map(|found| *into = *found).is_some()
    }
    /// `RULES`.
    fn run(&self, key: &RuleKey) -> Option<&Run>;
    /// `BLOCKS`.
    fn block(&self, key: &BlockKey) -> Option<u64>;
    /// `VERDICTS`, which may have another question's answer there; who does not remember any asks anew.
    #[inline(always)]
    fn verdict(&self, _key: &VerdictKey) -> Option<KnownVerdict> {
        None
    }
    /// Remembers a verdict for [`Tables::verdict`].
    #[inline(always)]
    fn remember(&self, _key: &VerdictKey, _verdict: &KnownVerdict) {}
    /// [`policy::judge`]; the kernel's implementation is a function of its own, and loops in another way.
    #[inline(always)]
    fn judge(&self, list: u64, peer: &AddressKey, protocol: u8, port: u16) -> Judged
    where
        Self: Sized,
    {
        policy::judge(self, list, peer, protocol, port)
    }
    /// `GENERATIONS`.
    fn generation(&self, slot: u32) -> u32;
    /// `SERVICE_GENERATIONS`; 0 of what is no Service port's number.
    fn service_generation(&self, service: u32) -> u32;
    /// The look-ups that follow are for this part of the decision. For whoever explains one: the kernel's does nothing.
    #[inline(always)]
    fn enter(&self, _step: Step) {}
}
