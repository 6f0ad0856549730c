// SPDX-License-Identifier: Apache-2.0
//! The maps as the logic sees them.

use weft_abi::{
    Addr, AddressKey, BackendKey, Balancer, Config, Frontend, FrontendKey, Member, MemberKey, Owner, Port, Remote,
    RuleKey, Rules,
};

use crate::{decide::Step, policy};

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
    /// Whether `BACKENDS` has it serving.
    fn serves(&self, backend: &BackendKey) -> bool;
    /// `IDENTITIES`, else `CIDRS` by longest prefix, of one network; else [`weft_abi::WORLD_IDENTITY`].
    fn identity(&self, net: u32, addr: &Addr) -> u32;
    /// `RULES`.
    fn rules(&self, key: &RuleKey) -> Option<&Rules>;
    /// [`policy::look_up`]; the kernel's implementation is a function of its own.
    #[inline(always)]
    fn allows(&self, policy: u32, peer: &AddressKey, protocol: u8, port: u16) -> bool
    where
        Self: Sized,
    {
        policy::look_up(self, policy, peer, protocol, port)
    }
    /// Whether a policy set's rules for one identity allow; the kernel's implementation loops in another way.
    #[inline(always)]
    fn identity_allows(&self, policy: u32, identity: u32, protocol: u8, port: u16) -> bool
    where
        Self: Sized,
    {
        (0..RuleKey::MAX_CHUNKS)
            .map_while(|chunk| policy::chunk(self, &RuleKey { policy, identity, chunk }, protocol, port))
            .any(|allowed| allowed)
    }
    /// `GENERATIONS`.
    fn generation(&self, slot: u32) -> u32;
    /// `SERVICE_GENERATIONS`; 0 of what is no Service port's number.
    fn service_generation(&self, service: u32) -> u32;
    /// The look-ups that follow are for this part of the decision. For whoever explains one: the kernel's does nothing.
    #[inline(always)]
    fn enter(&self, _step: Step) {}
}
