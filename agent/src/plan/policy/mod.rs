// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicy (networking.k8s.io/v1) to policy sets, identities and rules.
//!
//! 1. [`rules`]: each policy is read and checked, for itself.
//! 2. [`isolation`]: the policies that select a workload, per direction, are its policy set; equal sets are one.
//! 3. [`mod@compile`]: what a set allows, by [`peers`].
//! 4. [`crate::plan::identity`]: which of these peers each address matches.
//! 5. [`mod@compile`] again: the ports that each set allows to each identity.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use weft_abi::Addr;
use weft_api::PolicyReport;

use crate::{
    model::{Attachment, Desired, Numbers, ObjectKey, Snapshot},
    plan::{
        address::cidr_key,
        identity::{self, Identities},
        pods::Owners,
        policy::{
            compile::{Allowed, Compiled, MAX_RULES, Places},
            isolation::{Forms, Isolated, Isolation, SetKey},
            peers::PeerTerm,
            rules::{Direction, PolicyForm},
        },
    },
};

pub(crate) mod compile;
pub(crate) mod isolation;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod rules;
pub(crate) mod selector;

/// A policy set that no rule can belong to: everything is denied. For a set that had no number left.
const CLOSED: u32 = u32::MAX;

/// Policy as compiled for this node.
#[derive(Debug)]
pub(crate) struct Policies<'a> {
    forms: Forms<'a>,
    isolation: Isolation<'a>,
    identities: Identities,
    compiled: BTreeMap<SetKey, (u32, Compiled)>,
}

/// What is wrong with a policy of this namespace, each `field: why`; nothing: it is valid.
pub(crate) fn check(policy: &NetworkPolicy, namespace: &str) -> Vec<String> {
    PolicyForm::read(policy, namespace).problems
}

/// What judges one workload: number of its set per direction (0: not isolated) and a digest of what it allows to whom.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Judged {
    pub(crate) ingress: (u32, u64),
    pub(crate) egress: (u32, u64),
}

/// What judges each workload, by the attachment's id as text.
pub(crate) type JudgedWorkloads = BTreeMap<String, Judged>;

/// Compiles all policies that matter to the workloads of this node.
pub(crate) fn compile<'a>(
    snapshot: &'a Snapshot,
    attachments: &[Attachment],
    owners: &Owners<'_>,
    numbers: &mut Numbers,
) -> Policies<'a> {
    let read = |(key, policy): (&'a ObjectKey, &'a std::sync::Arc<_>)| (key, PolicyForm::read(policy, &key.namespace));
    let forms: Forms<'a> = snapshot.policies.iter().map(read).collect();
    let isolation = isolation::isolate(snapshot, attachments, &forms);
    let allowed: BTreeMap<&SetKey, Allowed> =
        isolation.sets.iter().map(|(key, set)| (key, Allowed::by(set, key.0, &forms))).collect();
    let terms = number_terms(&allowed, numbers);
    let identities = identity::identify(snapshot, owners, &terms, numbers);
    numbers.assign_policies(&isolation.sets.keys().map(set_text).collect());
    let containing = compile::containing(&identities);
    let compiled = allowed
        .iter()
        .map(|(key, allowed)| {
            let number = numbers.policies.get(&set_text(key)).copied().unwrap_or(CLOSED);
            ((*key).clone(), (number, compile::compile(allowed, &terms, &containing)))
        })
        .collect();
    Policies { forms, isolation, identities, compiled }
}

fn set_text((direction, policies): &SetKey) -> String {
    format!("{direction} {policies}")
}

/// Peers without a number left are in no identity, so that nothing is allowed for their sake.
fn number_terms(allowed: &BTreeMap<&SetKey, Allowed>, numbers: &mut Numbers) -> BTreeMap<PeerTerm, u32> {
    let terms: BTreeMap<&PeerTerm, String> =
        compile::terms_of(allowed.values()).into_iter().map(|term| (term, term.to_string())).collect();
    numbers.assign_peers(&terms.values().cloned().collect());
    let numbered = terms.iter().filter_map(|(term, text)| Some(((*term).clone(), *numbers.peers.get(text)?)));
    numbered.collect()
}

impl Policies<'_> {
    /// Writes identities, rules, reports and problems down, and tells what judges each workload.
    pub(crate) fn describe(&self, desired: &mut Desired) -> JudgedWorkloads {
        self.describe_identities(desired);
        let places = Places::of(&self.identities);
        let mut sets: BTreeMap<&SetKey, (u32, u64)> = BTreeMap::new();
        for (key, (number, compiled)) in &self.compiled {
            if *number != CLOSED {
                compiled.describe(*number, &self.identities, &mut desired.rules);
            }
            sets.insert(key, (*number, compiled.digest(&places)));
        }
        self.describe_reports(desired);
        let judged = |isolated: &Isolated| {
            let of =
                |key: &Option<SetKey>| key.as_ref().map_or((0, 0), |key| sets.get(key).copied().unwrap_or((CLOSED, 0)));
            Judged { ingress: of(&isolated.ingress), egress: of(&isolated.egress) }
        };
        for (id, isolated) in &self.isolation.workloads {
            let names = |key: &Option<SetKey>| self.isolation.policy_names(key.as_ref());
            desired.isolation.insert(id.clone(), (names(&isolated.ingress), names(&isolated.egress)));
        }
        self.isolation.workloads.iter().map(|(id, isolated)| (id.clone(), judged(isolated))).collect()
    }

    fn describe_identities(&self, desired: &mut Desired) {
        let number = |set| self.identities.numbers.get(&set).copied().unwrap_or_default();
        for (address, meaning) in &self.identities.exact {
            desired.identities.insert(Addr::from(*address), number(meaning.set));
        }
        for (net, meaning) in &self.identities.prefixes {
            desired.cidrs.insert(cidr_key(*net), number(meaning.set));
        }
    }

    fn describe_reports(&self, desired: &mut Desired) {
        let overflows = self.overflows();
        for (key, form) in &self.forms {
            let selected = self.isolation.selected.get(key);
            let mut wrong = form.problems.clone();
            wrong.extend(overflows.get(key).into_iter().flatten().cloned());
            desired.problems.extend(wrong.iter().map(|why| format!("NetworkPolicy {key}: {why}")));
            let isolates = |direction| form.rules_of(direction).map(|_| direction.to_string());
            desired.policy_reports.push(PolicyReport {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                directions: [Direction::Ingress, Direction::Egress].into_iter().filter_map(isolates).collect(),
                selected: selected.into_iter().flatten().cloned().collect(),
                rules: rule_count(form),
                state: state_of(&wrong, selected.is_some()),
            });
        }
    }

    /// By policy: which of its sets are too large for the programs.
    fn overflows(&self) -> BTreeMap<&ObjectKey, BTreeSet<String>> {
        let mut overflows: BTreeMap<&ObjectKey, BTreeSet<String>> = BTreeMap::new();
        for (key, (number, compiled)) in &self.compiled {
            let policies = self.isolation.sets.get(key).map_or(&[][..], |set| set.policies.as_slice());
            let mut report = |why: String| {
                for policy in policies {
                    overflows.entry(policy).or_default().insert(why.clone());
                }
            };
            if let Some(ports) = compiled.overflow {
                report(format!(
                    "{ports} port ranges towards one peer, of all policies that select the same pods ({} {}): {MAX_RULES} \
                     fit, the rest is denied; merge ports into ranges with endPort",
                    key.0, key.1
                ));
            }
            if *number == CLOSED {
                report("no number left for its policy set: everything is denied; remove policies".to_owned());
            }
        }
        overflows
    }
}

/// Peers times ports, over all rules of both directions.
fn rule_count(form: &PolicyForm) -> usize {
    let rules = [&form.ingress, &form.egress].into_iter().flatten().flatten();
    rules.map(|rule| rule.peers.as_ref().map_or(1, Vec::len) * (rule.numeric.len() + rule.named.len())).sum()
}

fn state_of(wrong: &[String], selects: bool) -> String {
    match (wrong.first(), selects) {
        (None, true) => "enforced".to_owned(),
        (None, false) => "selects no workload of this node".to_owned(),
        (Some(first), _) => match wrong.len() - 1 {
            0 => format!("enforced closed: {first}"),
            more => format!("enforced closed: {first} (and {more} more)"),
        },
    }
}
