// SPDX-License-Identifier: Apache-2.0
//! Decision lists and classes of a node's maps.

use weft_abi::{BlockKey, CLUSTER_NET, CidrKey, Class, Interval, List, ListFlags, RuleKey, Run, part};

use crate::node::{Node, address_key, cidr};

impl Node {
    /// Isolates a workload by decision lists (0: not), without publishing it. A list that nobody has written allows nothing.
    pub(crate) fn isolate(&self, ifindex: u32, ingress: u64, egress: u64) {
        let mut port = self.maps().ports().get(&ifindex).unwrap().expect("a port");
        (port.ingress_list, port.egress_list) = (ingress, egress);
        for list in
            [ingress, egress].into_iter().filter(|list| ![weft_abi::NO_LIST, weft_abi::CLOSED_LIST].contains(list))
        {
            self.change_list(list, |_| {});
        }
        self.maps().ports().insert(&ifindex, &port).unwrap();
    }

    /// Changes the head of a list. No agent does: what was decided by it must be forgotten.
    fn change_list(&self, list: u64, change: impl FnOnce(&mut List)) {
        let isolating = || List {
            flags: ListFlags::ISOLATES,
            isolated_by: Self::isolated_by(list),
            blocks: Self::blocks_of(list),
            ..List::EMPTY
        };
        let mut head = self.maps().lists().get(&list).unwrap().unwrap_or_else(isolating);
        change(&mut head);
        self.maps().lists().insert(&list, &head).unwrap();
        self.maps().verdicts().retain(|_, _| false).unwrap();
    }

    /// The number of a list's set of blocks.
    const fn blocks_of(list: u64) -> u64 {
        list + 0x1_0000
    }

    /// The number that stands for whatever no rule of a list allows.
    pub(crate) fn isolated_by(list: u64) -> u32 {
        500 + u32::try_from(list).expect("small")
    }

    /// The number of the first of the rules of a part; the others follow.
    pub(crate) fn first_rule(part: u64) -> u32 {
        1000 + u32::try_from(part >> 16 & 0xff).expect("small")
    }

    /// Lets a list allow this to whoever a part means: (protocol, first port, last port).
    pub(crate) fn set_rules(&self, list: u64, part: u64, rules: &[(u8, u16, u16)]) {
        let interval =
            |(rule, (protocol, first, last)): (u32, &(u8, u16, u16))| Interval::accept(*protocol, *first, *last, rule);
        let said: Vec<Interval> = (Self::first_rule(part)..).zip(rules).map(interval).collect();
        let of_block = part & part::TERM == 0 && part >= part::BLOCKS;
        let owner = if of_block { Self::blocks_of(list) } else { list };
        for (place, run) in Run::of_part(&said) {
            self.maps().rules().insert(&RuleKey { list: owner, part: part + place }, &run).unwrap();
        }
        self.change_list(list, |head| head.add_part(part));
    }

    /// Lets a part of a list hold for a prefix.
    pub(crate) fn set_block(&self, list: u64, prefix: &str, part: u64) {
        let CidrKey { addr, .. } = cidr(prefix);
        let prefix_len = cidr(prefix).address_bits();
        self.maps()
            .blocks()
            .insert(&BlockKey { blocks: Self::blocks_of(list), addr, prefix_len, pad: 0 }, &part)
            .unwrap();
        self.change_list(list, |head| {
            let lengths = &mut head.lengths[usize::from(!addr.is_v4())];
            let length = u8::try_from(prefix_len).unwrap();
            let place = lengths.iter().position(|known| [length, List::NO_LENGTH].contains(known)).unwrap();
            lengths[place] = length;
            lengths[..=place].sort_unstable_by(|a, b| b.cmp(a));
        });
    }

    /// Lets an address of a network be one that these terms mean.
    pub(crate) fn classify(&self, net: u32, address: &str, terms: &[u64]) {
        let mut class =
            Class { version: terms.iter().fold(1, |all, term| all * 31 + term % 1_000_003), ..Class::default() };
        class.terms[..terms.len()].copy_from_slice(terms);
        self.maps().classes().insert(&class.version, &class).unwrap();
        self.maps().peers().insert(&address_key(net, address), &class.version).unwrap();
    }

    /// [`Node::classify`] of one term in the cluster's network.
    pub(crate) fn identify(&self, address: &str, term: u64) {
        self.classify(CLUSTER_NET, address, &[term]);
    }
}
