// SPDX-License-Identifier: Apache-2.0
//! Policy routing rules by source address (ip-rule(8)).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{Netlink, NetlinkError, address::family};

/// "What is sent from this address looks in that table".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SourceRule {
    /// The address.
    pub(crate) source: IpAddr,
    /// The table.
    pub(crate) table: u32,
}

/// Before the main table (32766), after what a workload's owner would number by hand.
const PRIORITY: u32 = 30_000;

impl Netlink {
    /// Adds `rule`.
    pub(crate) fn add_rule(&mut self, rule: SourceRule) -> Result<(), NetlinkError> {
        self.execute(RouteNetlinkMessage::NewRule(message(rule)), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|refusal| refusal.during(format!("add the rule 'from {} lookup {}'", rule.source, rule.table)))
    }

    /// Deletes `rule`; one that is gone is no error.
    pub(crate) fn delete_rule(&mut self, rule: SourceRule) -> Result<(), NetlinkError> {
        match self.execute(RouteNetlinkMessage::DelRule(message(rule)), 0) {
            Err(refusal) if refusal.source.raw_os_error() != Some(libc::ENOENT) => {
                Err(refusal.during(format!("delete the rule 'from {} lookup {}'", rule.source, rule.table)))
            }
            _ => Ok(()),
        }
    }

    /// The rules of both families that [`Netlink::add_rule`] made.
    pub(crate) fn rules(&mut self) -> Result<Vec<SourceRule>, NetlinkError> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let answers = self.dump(RouteNetlinkMessage::GetRule(message));
            let answers = answers.map_err(|refusal| refusal.during("list the rules"))?;
            rules.extend(answers.into_iter().filter_map(observed));
        }
        Ok(rules)
    }
}

fn message(rule: SourceRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.source);
    message.header.src_len = if rule.source.is_ipv4() { 32 } else { 128 };
    message.header.action = RuleAction::ToTable;
    message.attributes =
        vec![RuleAttribute::Source(rule.source), RuleAttribute::Table(rule.table), RuleAttribute::Priority(PRIORITY)];
    message
}

fn observed(message: RouteNetlinkMessage) -> Option<SourceRule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let (mut source, mut table, mut priority) = (None, u32::from(message.header.table), 0);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Source(address) => source = Some(address),
            RuleAttribute::Table(number) => table = number,
            RuleAttribute::Priority(number) => priority = number,
            _ => {}
        }
    }
    source.filter(|_| priority == PRIORITY).map(|source| SourceRule { source, table })
}
