// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicy (networking.k8s.io/v1) to policy sets, identities and rules.
//!
//! 1. [`rules`]: each policy is read and checked, for itself.
//! 2. [`isolation`]: the policies that select a workload, per direction, are its policy set; equal sets are one.
//! 3. [`mod@compile`]: what a set allows, by [`peers`] and by [`region`]s of addresses.
//! 4. [`fit`]: for which sets there is room; for them:
//! 5. [`crate::plan::identity`]: which of these peers each address matches.
//! 6. [`mod@compile`] again: the ports that each set allows to each identity.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use weft_api::PolicyReport;

use crate::{
    model::{Desired, Numbers, ObjectKey, Refusal, RefusedKind, Room, Snapshot, address::address_key, objects::Uid},
    plan::{
        address::cidr_key,
        identity::{PodGroups, Terms},
        pods::Owners,
        policy::{
            compile::{Allowed, MAX_RULES, Places},
            fit::{Candidate, Choice, Fitting},
            isolation::{Forms, Isolated, Isolation, SetKey},
            region::Regions,
            rules::{Direction, PolicyForm},
        },
    },
};

pub(crate) mod compile;
pub(crate) mod edit;
pub(crate) mod fit;
pub(crate) mod follow;
pub(crate) mod isolation;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod region;
pub(crate) mod rules;
pub(crate) mod selector;

/// A policy set that no rule can belong to: everything is denied. For a set that had no number left.
const CLOSED: u32 = u32::MAX;
/// What is said of a policy without room.
const NOT_FITTING: &str = "does not fit: its workloads are closed";
/// Policies named for one workload at most.
const NAMED: usize = 8;

/// Policy as compiled for this node.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) isolation: Isolation,
    allowed: BTreeMap<SetKey, Allowed>,
    pub(crate) choice: Choice,
    numbers: BTreeMap<SetKey, u32>,
}

/// What is wrong with a policy of this namespace, each `field: why`; nothing: it is valid.
pub(crate) fn check(spec: Option<&NetworkPolicySpec>, namespace: &str) -> Vec<String> {
    PolicyForm::read(spec, namespace).problems
}

/// What judges one workload: number of its set per direction (0: not isolated) and a digest of what it allows to whom.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Judged {
    pub(crate) ingress: (u32, u64),
    pub(crate) egress: (u32, u64),
}

/// Digests of what policy sets allow to whom; see [`compile::Compiled::digest`].
pub(crate) type SetDigests = BTreeMap<SetKey, u64>;

/// What judges each workload, by the attachment's id as text.
pub(crate) type JudgedWorkloads = BTreeMap<String, Judged>;

/// Compiles all policies that matter to the workloads of this node, as far as there is room.
pub(crate) fn compile(
    snapshot: &Snapshot,
    forms: &Forms,
    isolation: Isolation,
    owners: &Owners<'_>,
    room: &Room<'_>,
    numbers: &mut Numbers,
) -> Policies {
    let mut regions = Regions::default();
    let allowed: BTreeMap<SetKey, Allowed> =
        isolation.sets().map(|(key, set)| (key.clone(), Allowed::by(set, key, forms, &mut regions))).collect();
    let groups = PodGroups::new(owners, &Terms::of(allowed.values()));
    let names = numbers.key;
    let name = |key: &SetKey| names.of_text(&key.to_string());
    let candidate = |key: &SetKey, allowed| Candidate { allowed, stood: numbers.had_policy(name(key)) };
    let candidates = allowed.iter().map(|(key, allowed)| (key, candidate(key, allowed))).collect();
    let mut choice = Fitting::new(snapshot, &groups, room).choose(&candidates);
    let terms = Terms::of(choice.compiled.keys().map(|key| &allowed[key]));
    choice.identities.assign(&terms, numbers);
    numbers.assign_policies(&choice.compiled.keys().map(name).collect());
    let number = |key: &SetKey| numbers.policies.get(&name(key)).copied().unwrap_or(CLOSED);
    let numbers = choice.compiled.keys().map(|key| (key.clone(), number(key))).collect();
    Policies { isolation, allowed, choice, numbers }
}

impl Policies {
    /// Writes identities, rules, reports and problems down, and tells what judges each workload.
    pub(crate) fn describe(&self, snapshot: &Snapshot, forms: &Forms, desired: &mut Desired) -> JudgedWorkloads {
        self.describe_identities(desired);
        let Choice { identities, compiled, .. } = &self.choice;
        for (key, compiled) in compiled {
            let number = self.numbers[key];
            if number != CLOSED {
                compiled.describe(number, identities, &mut desired.rules);
            }
        }
        self.describe_reports(snapshot, forms, desired);
        self.judged(&self.digests(&Places::of(identities)))
    }

    /// The digest of what each set allows, as far as it is not closed.
    pub(crate) fn digests(&self, places: &Places) -> SetDigests {
        self.choice.compiled.iter().map(|(key, compiled)| (key.clone(), compiled.digest(places))).collect()
    }

    /// What judges each workload.
    pub(crate) fn judged(&self, digests: &SetDigests) -> JudgedWorkloads {
        let of_set = |key: &SetKey| match (self.numbers.get(key), digests.get(key)) {
            (Some(number), Some(digest)) => (*number, *digest),
            _ => (CLOSED, 0),
        };
        let of = |key: &Option<SetKey>| key.as_ref().map_or((0, 0), of_set);
        let judged = |isolated: &Isolated| Judged { ingress: of(&isolated.ingress), egress: of(&isolated.egress) };
        self.isolation.workloads().map(|(id, isolated)| (id.clone(), judged(isolated))).collect()
    }

    /// Policies that do not fit, and why.
    fn unfit(&self) -> BTreeMap<&ObjectKey, String> {
        let mut unfit = BTreeMap::new();
        for (key, shortage) in &self.choice.closed {
            for policy in self.isolation.policies_of(key) {
                unfit.entry(policy).or_insert_with(|| shortage.to_string());
            }
        }
        unfit
    }

    /// What does not fit: the policies, and the workloads that are closed for them.
    fn describe_closed(&self, snapshot: &Snapshot, desired: &mut Desired) {
        for (policy, why) in self.unfit() {
            let uid = snapshot.policies.get(policy).and_then(|policy| policy.metadata.uid.as_ref().map(Uid::to_string));
            let (key, why) = (policy.clone(), format!("{NOT_FITTING}: {why}"));
            desired.refusals.insert(Refusal { kind: RefusedKind::Policy, key, uid, why });
        }
        for (id, isolated) in self.isolation.workloads() {
            let closed = [&isolated.ingress, &isolated.egress].into_iter().flatten();
            let closed: Vec<_> = closed.filter_map(|key| Some((key, self.choice.closed.get(key)?))).collect();
            let Some((_, shortage)) = closed.first() else { continue };
            let ways: Vec<String> = closed.iter().map(|(key, _)| key.direction.to_string()).collect();
            let policies: BTreeSet<_> = closed.iter().flat_map(|(key, _)| self.isolation.policies_of(key)).collect();
            let policies: Vec<String> = policies.into_iter().take(NAMED).map(ToString::to_string).collect();
            let why =
                format!("its policies do not fit ({}): {} closed: {shortage}", policies.join(", "), ways.join(" and "));
            desired.closed.insert(id.clone(), why);
        }
    }

    fn describe_identities(&self, desired: &mut Desired) {
        let identities = &self.choice.identities;
        let number = |set| identities.numbers.get(&set).copied().unwrap_or_default();
        for (address, meaning) in &identities.exact {
            desired.identities.insert(address_key(*address), number(meaning.set));
        }
        for (net, meaning) in &identities.prefixes {
            desired.cidrs.insert(cidr_key(*net), number(meaning.set));
        }
    }

    /// Reports and problems of policies, and what is closed.
    pub(crate) fn describe_reports(&self, snapshot: &Snapshot, forms: &Forms, desired: &mut Desired) {
        desired.crowded = self.choice.crowded;
        self.describe_closed(snapshot, desired);
        for (report, wrong) in self.reports(forms) {
            let PolicyReport { namespace, name, .. } = &report;
            desired.problems.extend(wrong.iter().map(|why| format!("NetworkPolicy {namespace}/{name}: {why}")));
            desired.policy_reports.push(report);
        }
    }

    /// What is told of these policies, and what is wrong with each.
    pub(crate) fn reports<'a>(
        &'a self,
        forms: impl IntoIterator<Item = (&'a ObjectKey, &'a PolicyForm)> + 'a,
    ) -> impl Iterator<Item = (PolicyReport, Vec<String>)> + 'a {
        let (unfit, overflows) = (self.unfit(), self.overflows());
        forms.into_iter().map(move |(key, form)| {
            let selected = self.isolation.selected(key);
            let mut wrong = form.problems.clone();
            wrong.extend(overflows.get(key).into_iter().flatten().cloned());
            let mut state = state_of(&wrong, selected.is_some());
            if let Some(why) = unfit.get(key) {
                state = format!("{NOT_FITTING}: {why}");
                wrong.push(state.clone());
            }
            let isolates = |direction| form.rules_of(direction).map(|_| direction.to_string());
            let report = PolicyReport {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                directions: [Direction::Ingress, Direction::Egress].into_iter().filter_map(isolates).collect(),
                selected: selected.into_iter().flatten().map(ToString::to_string).collect(),
                rules: rule_count(form),
                state,
            };
            (report, wrong)
        })
    }

    /// By policy: which of its sets are too large for the programs.
    fn overflows(&self) -> BTreeMap<&ObjectKey, BTreeSet<String>> {
        let mut overflows: BTreeMap<&ObjectKey, BTreeSet<String>> = BTreeMap::new();
        for (key, compiled) in &self.choice.compiled {
            let policies = self.isolation.policies_of(key);
            let mut report = |why: String| {
                for policy in policies {
                    overflows.entry(policy).or_default().insert(why.clone());
                }
            };
            if let Some(ports) = compiled.overflow {
                report(format!(
                    "{ports} port ranges towards one peer, of all policies that select the same pods ({key}): {MAX_RULES} \
                     fit, the rest is denied; merge ports into ranges with endPort"
                ));
            }
            if self.numbers[key] == CLOSED {
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
