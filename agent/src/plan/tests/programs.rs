// SPDX-License-Identifier: Apache-2.0
//! The programs' own logic on a plan.

use std::net::IpAddr;

use weft_abi::{
    Addr, AddressKey, BackendKey, Balancer, BlockKey, CidrKey, Class, Config, Frontend, FrontendKey, List, Member,
    MemberKey, Owner, Port, Remote, RingNode, RuleKey, Run,
};
use weft_logic::{Tables, policy::truncated};

use crate::model::Desired;

/// As far as policy needs it.
pub(crate) struct Programs<'d>(pub(crate) &'d Desired);

impl Tables for Programs<'_> {
    fn config(&self) -> Option<&Config> {
        Some(&self.0.config)
    }

    fn port(&self, ifindex: u32) -> Option<&Port> {
        self.0.ports.get(&ifindex)
    }

    fn owner(&self, net: u32, addr: &Addr) -> Option<&Owner> {
        self.0.addresses.get(&AddressKey { net, addr: *addr })
    }

    fn remote(&self, net: u32, addr: &Addr) -> Option<&Remote> {
        let v4 = IpAddr::from(*addr).is_ipv4();
        let covers = |key: &CidrKey| {
            let of_family = v4 == IpAddr::from(key.addr).is_ipv4();
            of_family && key.net == net && truncated(addr, key.address_bits()) == key.addr
        };
        let covering = self.0.remotes.iter().filter(|(key, _)| covers(key));
        covering.max_by_key(|(key, _)| key.prefix_len).map(|(_, remote)| remote)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.0.frontends.get(key)
    }

    fn balancer(&self, _: &u32) -> Option<&Balancer> {
        None
    }

    fn member(&self, _: &MemberKey) -> Option<&Member> {
        None
    }

    fn ring(&self, _: &MemberKey) -> Option<&RingNode> {
        None
    }

    fn load(&self, _: &BackendKey) -> u32 {
        0
    }

    fn backend(&self, _: &BackendKey) -> u32 {
        0
    }

    fn admits(&self, service: u32, client: &Addr) -> bool {
        self.0.sources.keys().any(|key| key.net == service && truncated(client, key.address_bits()) == key.addr)
    }

    fn class_of(&self, net: u32, addr: &Addr) -> Option<u64> {
        self.0.peers.get(&AddressKey { net, addr: *addr }).copied()
    }

    fn class(&self, class: &u64) -> Option<&Class> {
        self.0.classes.get(class)
    }

    fn list(&self, list: &u64) -> Option<&List> {
        self.0.lists.get(list)
    }

    fn run(&self, key: &RuleKey) -> Option<&Run> {
        self.0.rules.get(key)
    }

    fn block(&self, key: &BlockKey) -> Option<u64> {
        self.0.blocks.get(key).copied()
    }

    fn generation(&self, _: u32) -> u32 {
        0
    }

    fn service_generation(&self, _: u32) -> u32 {
        0
    }
}
