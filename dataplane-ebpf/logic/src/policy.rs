// SPDX-License-Identifier: Apache-2.0
//! Judging a flow by compiled policy.

use weft_abi::{ANY_IDENTITY, AddressKey, PROTOCOL_ANY, PortRule, RuleKey, Rules};

use crate::Tables;

/// Whether policy set `policy` allows `protocol` and `port` (host byte order) with the peer at `peer`; set 0 isolates nothing.
#[inline(always)]
pub fn allows<T: Tables>(tables: &T, policy: u32, peer: &AddressKey, protocol: u8, port: u16) -> bool {
    policy == 0 || tables.allows(policy, peer, protocol, port)
}

/// Looks `peer` up in policy set `policy`: two look-ups of rules at most, unless a set has more than
/// [`weft_abi::RULES_PER_CHUNK`] rules for one identity.
#[inline(always)]
pub fn look_up<T: Tables>(tables: &T, policy: u32, peer: &AddressKey, protocol: u8, port: u16) -> bool {
    tables.identity_allows(policy, ANY_IDENTITY, protocol, port)
        || tables.identity_allows(policy, tables.identity(peer.net, &peer.addr), protocol, port)
}

/// Whether the chunk of rules at `key` allows; `None`: it does not, and there is none after it.
#[inline(always)]
pub fn chunk<T: Tables>(tables: &T, key: &RuleKey, protocol: u8, port: u16) -> Option<bool> {
    let rules = tables.rules(key)?;
    if chunk_allows(rules, protocol, port) {
        return Some(true);
    }
    (rules.more != 0).then_some(false)
}

/// Whether one of a chunk's rules matches.
///
/// It leaves at the first match rather than gather a verdict: the verifier would follow every combination of what was
/// gathered.
#[inline(always)]
#[must_use]
pub fn chunk_allows(rules: &Rules, protocol: u8, port: u16) -> bool {
    for (index, rule) in rules.rules.iter().enumerate() {
        if index >= rules.count as usize {
            return false;
        }
        if rule_allows(rule, protocol, port) {
            return true;
        }
    }
    false
}

#[inline(always)]
const fn rule_allows(rule: &PortRule, protocol: u8, port: u16) -> bool {
    rule.protocol == PROTOCOL_ANY || (rule.protocol == protocol && rule.first <= port && port <= rule.last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ICMP, TCP, UDP};

    fn chunk(rules: &[PortRule]) -> Rules {
        let mut chunk = Rules { count: u16::try_from(rules.len()).unwrap(), ..Rules::default() };
        chunk.rules[..rules.len()].copy_from_slice(rules);
        chunk
    }

    fn rule(protocol: u8, first: u16, last: u16) -> PortRule {
        PortRule { first, last, protocol, pad: 0 }
    }

    #[test]
    fn ranges_are_inclusive_and_protocols_apart() {
        let rules = chunk(&[rule(TCP, 80, 81), rule(UDP, 53, 53)]);
        assert!(chunk_allows(&rules, TCP, 80));
        assert!(chunk_allows(&rules, TCP, 81));
        assert!(!chunk_allows(&rules, TCP, 82));
        assert!(!chunk_allows(&rules, TCP, 53));
        assert!(chunk_allows(&rules, UDP, 53));
    }

    #[test]
    fn any_protocol_allows_icmp() {
        assert!(chunk_allows(&chunk(&[rule(PROTOCOL_ANY, 0, u16::MAX)]), ICMP, 0));
        assert!(!chunk_allows(&chunk(&[rule(TCP, 0, u16::MAX)]), ICMP, 0));
    }

    #[test]
    fn rules_past_the_count_do_not_count() {
        let mut rules = chunk(&[rule(TCP, 80, 80)]);
        rules.count = 0;
        assert!(!chunk_allows(&rules, TCP, 80));
    }
}
