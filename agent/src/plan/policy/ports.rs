// SPDX-License-Identifier: Apache-2.0
//! Lists of allowed ports, as short as they can be.

use weft_abi::{PROTOCOL_ANY, PortRule};

use crate::plan::policy::rules::ANY_PORT;

/// Sorts and merges: the same ports are allowed by the fewest rules. Any port of any protocol swallows all others.
pub(crate) fn merge(mut rules: Vec<PortRule>) -> Vec<PortRule> {
    if rules.iter().any(|rule| rule.protocol == PROTOCOL_ANY) {
        return vec![ANY_PORT];
    }
    rules.sort_unstable_by_key(|rule| (rule.protocol, rule.first, rule.last));
    let mut merged: Vec<PortRule> = Vec::new();
    for rule in rules {
        match merged.last_mut() {
            Some(last) if last.protocol == rule.protocol && rule.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(rule.last);
            }
            _ => merged.push(rule),
        }
    }
    merged
}

/// Those of the merged `rules` that the merged `general` do not allow anyway.
pub(crate) fn beyond(rules: Vec<PortRule>, general: &[PortRule]) -> Vec<PortRule> {
    rules.into_iter().filter(|rule| !general.iter().any(|wide| covers(wide, rule))).collect()
}

fn covers(wide: &PortRule, rule: &PortRule) -> bool {
    wide.protocol == PROTOCOL_ANY
        || (wide.protocol == rule.protocol && wide.first <= rule.first && rule.last <= wide.last)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn rules(list: &[(u8, u16, u16)]) -> Vec<PortRule> {
        list.iter().map(|&(protocol, first, last)| PortRule { first, last, protocol, pad: 0 }).collect()
    }

    #[rstest]
    #[case::adjacent(&[(6, 81, 90), (6, 80, 80)], &[(6, 80, 90)])]
    #[case::a_gap_of_one(&[(6, 80, 80), (6, 82, 82)], &[(6, 80, 80), (6, 82, 82)])]
    #[case::overlapping(&[(6, 80, 85), (6, 83, 90), (6, 100, 100)], &[(6, 80, 90), (6, 100, 100)])]
    #[case::contained(&[(6, 1, 100), (6, 50, 60), (6, 99, 101)], &[(6, 1, 101)])]
    #[case::other_protocol(&[(17, 80, 80), (6, 80, 80)], &[(6, 80, 80), (17, 80, 80)])]
    #[case::to_the_last(&[(6, 0, 65535), (6, 65535, 65535)], &[(6, 0, 65535)])]
    #[case::any(&[(6, 80, 80), (0, 0, 65535)], &[(0, 0, 65535)])]
    fn merges(#[case] given: &[(u8, u16, u16)], #[case] expected: &[(u8, u16, u16)]) {
        assert_eq!(merge(rules(given)), rules(expected));
    }

    #[test]
    fn what_everybody_may_needs_no_rule_of_its_own() {
        let general = rules(&[(6, 80, 90)]);
        assert_eq!(
            beyond(rules(&[(6, 85, 85), (6, 85, 95), (17, 80, 80)]), &general),
            rules(&[(6, 85, 95), (17, 80, 80)])
        );
        assert!(beyond(rules(&[(6, 85, 85)]), &[ANY_PORT]).is_empty());
    }
}
