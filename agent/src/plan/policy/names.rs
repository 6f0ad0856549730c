// SPDX-License-Identifier: Apache-2.0
//! Numbers of rules, and the way back from them: flows, drops and explanations name who decided.
//!
//! The rules of a policy one way have numbers that follow each other; where they begin is a hash. Two policies may meet there, once
//! in some hundred thousand, and then both are named.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    sync::OnceLock,
};

use weft_abi::rule;

use crate::{
    model::{HashKey, KeyedHash, Name, ObjectKey},
    plan::policy::{
        isolation::{Forms, Isolation, SetKey},
        rules::Direction,
    },
};

/// Rules of one policy at most that have numbers of their own; those that follow share the last one.
const MOST: u32 = 1 << 16;
/// Policies that are named for a list.
const NAMED: usize = 8;

/// A number that leaves room for so many behind it, and the highest bit alone.
fn first(hash: KeyedHash) -> u32 {
    let numbers = u64::from(u32::MAX / 2 - rule::FIRST - MOST);
    rule::FIRST + u32::try_from(hash.finish() % numbers).unwrap_or_default()
}

fn of_policy(hash: HashKey, policy: &ObjectKey, direction: Direction) -> u32 {
    first(hash.of("rule").text(&policy.namespace).text(&policy.name).number(direction as u64))
}

/// The numbers of a policy's rules, one after the other.
pub(super) fn of_rules(hash: HashKey, policy: &ObjectKey, direction: Direction) -> impl Iterator<Item = u32> {
    let base = of_policy(hash, policy, direction);
    (0..MOST).chain(iter::repeat(MOST)).map(move |place| base + place)
}

/// The number of those who isolate together, for what none of their rules allows.
pub(super) fn of_set(hash: HashKey, key: &SetKey) -> u32 {
    first(hash.of("isolation").text(&key.to_string()))
}

/// What numbers mean, namespace by namespace: an edit of policy takes those of its own namespaces back, and who asks next finds them
/// out again.
#[derive(Debug, Default)]
pub(crate) struct RuleNames(BTreeMap<Name, OnceLock<OfNamespace>>);

#[derive(Debug, Default)]
struct OfNamespace {
    /// By the first number: policy, way and how many rules it has.
    rules: BTreeMap<u32, Vec<(ObjectKey, Direction, u32)>>,
    sets: BTreeMap<u32, Vec<SetKey>>,
}

impl OfNamespace {
    /// Of all policies that isolate somebody there.
    fn new(namespace: &Name, isolation: &Isolation, forms: &Forms, hash: HashKey) -> Self {
        let mut names = Self::default();
        let mut known = BTreeSet::new();
        for (key, set) in isolation.sets_in(namespace) {
            names.sets.entry(of_set(hash, key)).or_default().push(key.clone());
            for policy in &set.policies {
                if known.insert((policy, key.direction)) {
                    let rules = forms.get(policy).and_then(|form| form.rules_of(key.direction));
                    let count = u32::try_from(rules.map_or(0, <[_]>::len)).unwrap_or(u32::MAX);
                    let base = of_policy(hash, policy, key.direction);
                    names.rules.entry(base).or_default().push((policy.clone(), key.direction, count));
                }
            }
        }
        names
    }

    /// All that the number may mean.
    fn meanings(&self, number: u32, isolation: &Isolation) -> impl Iterator<Item = String> {
        let begun = self.rules.range(number.saturating_sub(MOST)..=number);
        let of_rules =
            begun.flat_map(move |(base, policies)| policies.iter().map(move |policy| (number - base, policy)));
        let rules = of_rules.filter(|(place, (.., count))| place < count);
        let rules = rules.map(|(place, (key, direction, _))| format!("NetworkPolicy {key}: {direction}[{place}]"));
        let sets = self.sets.get(&number).into_iter().flatten().map(|key| {
            let policies = isolation.policies_of(key);
            let names: Vec<String> = policies.iter().take(NAMED).map(ToString::to_string).collect();
            let more = if policies.len() > NAMED { ", ..." } else { "" };
            format!("no {} rule of NetworkPolicy {}{more}", key.direction, names.join(", "))
        });
        rules.chain(sets)
    }
}

impl RuleNames {
    /// Of these namespaces they may be others now, or none: those without workloads here have none.
    pub(crate) fn forget<'n>(&mut self, namespaces: impl Iterator<Item = &'n Name>, has_any: impl Fn(&Name) -> bool) {
        for name in namespaces {
            self.0.remove(name);
            if has_any(name) {
                self.0.insert(name.clone(), OnceLock::new());
            }
        }
    }

    /// Who decided, for people; none: nobody did.
    pub(crate) fn name(&self, number: u32, isolation: &Isolation, forms: &Forms, hash: HashKey) -> Option<String> {
        match number {
            rule::NONE => return None,
            rule::CLOSED => return Some("closed: its pod is not known (yet), or its policies do not fit".to_owned()),
            rule::BROKEN => return Some("closed: its policies are not whole".to_owned()),
            number if number & rule::AUDITED != 0 => {
                return Some(format!("audited: {}", self.name(number & !rule::AUDITED, isolation, forms, hash)?));
            }
            _ => {}
        }
        let of = |(namespace, names): (&Name, &'_ OnceLock<OfNamespace>)| -> Vec<String> {
            let names = names.get_or_init(|| OfNamespace::new(namespace, isolation, forms, hash));
            names.meanings(number, isolation).collect()
        };
        let all: Vec<String> = self.0.iter().flat_map(of).collect();
        Some(if all.is_empty() { format!("unknown rule {number}") } else { all.join(" or ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_takes_back_the_names_of_its_own_namespaces_alone() {
        let (x, y) = (Name::shared("x"), Name::shared("y"));
        let mut names = RuleNames::default();
        names.forget([&x, &y].into_iter(), |_| true);
        let ask = |names: &RuleNames| names.name(20, &Isolation::default(), &Forms::new(), HashKey::default());
        assert_eq!(ask(&names), Some("unknown rule 20".into()));
        let audited = names.name(20 | rule::AUDITED, &Isolation::default(), &Forms::new(), HashKey::default());
        assert_eq!(audited, Some("audited: unknown rule 20".into()));
        names.forget([&x].into_iter(), |_| true);
        assert!(names.0[&x].get().is_none() && names.0[&y].get().is_some());
        ask(&names);
        assert!(names.0[&x].get().is_some());
        names.forget([&x].into_iter(), |_| false);
        assert_eq!(names.0.keys().collect::<Vec<_>>(), [&y], "nobody is there any more");
    }
}
