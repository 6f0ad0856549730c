// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicy (networking.k8s.io/v1) to decision lists.
//!
//! 1. [`rules`]: each policy is read and checked, for itself.
//! 2. [`isolation`]: the policies that select a workload, per direction; equal combinations are one.
//! 3. [`list`]: the decision list of each combination, by peers and by [`block`]s of addresses.
//! 4. [`fit`]: for which lists there is room; [`meaning`]: which of them may mean somebody else.
//! 5. [`crate::plan::classes`]: what each pod's class matches of what lists ask for.
//! 6. [`follow`]: all of it as pods, namespaces and policies change.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    sync::OnceLock,
};

use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use weft_abi::{AddressKey, CLOSED_LIST, Class, NO_LIST};
use weft_api::PolicyReport;

use crate::{
    model::{
        Desired, HashKey, Name, Numbers, ObjectKey, Refusal, RefusedKind, Room, Snapshot, address::address_key,
        objects::Uid, of_namespace,
    },
    plan::{
        Digest,
        classes::{Asked, Classes, Terms, Touched},
        pods::{Owners, PodEntry},
        policy::{
            fit::{Shortage, Taken},
            isolation::{Forms, Isolated, Isolation, SetKey},
            list::KnownList,
            meaning::Meanings,
            names::RuleNames,
            rules::{Direction, PolicyForm},
        },
    },
};

pub(crate) mod block;
pub(crate) mod fit;
pub(crate) mod follow;
pub(crate) mod isolation;
pub(crate) mod list;
mod meaning;
pub(crate) mod names;
pub(crate) mod parts;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod rules;
pub(crate) mod selector;

/// What is said of a policy without room.
const NOT_FITTING: &str = "does not fit: its workloads are closed";
/// Policies named for one workload at most.
const NAMED: usize = 8;

/// Policy as compiled for this node.
#[derive(Debug)]
pub(crate) struct Policies {
    pub(crate) isolation: Isolation,
    /// The lists that stand.
    lists: BTreeMap<SetKey, KnownList>,
    /// Digests of what they say to whom.
    digests: SetDigests,
    taken: Taken,
    /// The others, and why.
    closed: BTreeMap<SetKey, Shortage>,
    /// Namespaces whose pods do not fit, and why.
    unknown: BTreeMap<Name, Shortage>,
    /// Of pods; empty where no list asks.
    classes: Classes,
    /// How many there were at the last compilation.
    classes_then: usize,
    meanings: Meanings,
    /// How many there were at the last compilation.
    meanings_then: usize,
    names: RuleNames,
    /// All parts of lists that are terms.
    asked: OnceLock<BTreeSet<u64>>,
}

/// What is wrong with a policy of this namespace, each `field: why`; nothing: it is valid.
pub(crate) fn check(spec: Option<&NetworkPolicySpec>, namespace: &str) -> Vec<String> {
    PolicyForm::read(spec, namespace).problems
}

/// What judges one workload: number of its list per direction (0: not isolated) and a digest of what it says to whom.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Judges {
    pub(crate) ingress: (u64, u64),
    pub(crate) egress: (u64, u64),
}

/// Digests of what lists say to whom, by address.
type SetDigests = BTreeMap<SetKey, u64>;

/// What judges each workload, by the attachment's id as text.
pub(crate) type JudgesByWorkload = BTreeMap<String, Judges>;

/// What is closed, or not known, for want of room: it stays so while pods are followed, until all is decided anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    closed: BTreeMap<SetKey, Shortage>,
    unknown: BTreeMap<Name, Shortage>,
    /// What classes were made by, where somebody held them: also for lists that turned out not to fit.
    asked: Option<Asked>,
}

/// Compiles all policies that matter to the workloads of this node, as far as there is room, and writes them down. `standing`: the
/// classes of the last plan. `held`: nothing to decide who has room anew.
pub(crate) fn compile(
    snapshot: &Snapshot,
    forms: &Forms,
    isolation: Isolation,
    owners: &Owners<'_>,
    (room, standing, held): (&Room, &BTreeMap<u64, Class>, &Held),
    numbers: &mut Numbers,
    desired: &mut Desired,
) -> Policies {
    let hash = numbers.key;
    // Of each list only what is known of it: those that are admitted are made once more, one after the other.
    let compiled: BTreeMap<SetKey, KnownList> =
        isolation.sets().map(|(key, set)| (key.clone(), list::compile(key, set, forms, hash).known)).collect();
    let mut lists: BTreeMap<&SetKey, &KnownList> = compiled.iter().collect();
    let stood = |key: &SetKey| numbers.had_list(key, compiled[key].number);
    // First what depends on no pod, so that pods are followed all the same.
    let mut closed = held.closed.clone();
    lists.retain(|key, _| !closed.contains_key(*key));
    closed.extend(fit::without_room(&lists, room, stood));
    lists.retain(|key, _| !closed.contains_key(*key));
    let (mut classes, mut peers) = classify(&mut lists, &mut closed, snapshot, owners, (room, held), hash);
    let mut unknown = held.unknown.clone();
    unknown.extend(fit::unknown(&classes, room));
    if !unknown.is_empty() {
        classes.drop_namespaces(&unknown.keys().cloned().collect());
        peers.retain(|_, class| classes.get(*class).is_some());
    }
    let mut meanings = Meanings::default();
    let meeting = meanings.note(lists.values().copied(), classes.by_namespace().map(|(name, ..)| name), hash);
    let meets = |list: &KnownList| meaning::asks(list, &meeting, hash);
    let met = lists.extract_if(.., |_, list| meets(list));
    closed.extend(met.map(|(key, _)| (key.clone(), Shortage::Meeting)));
    closed.extend(fit::beyond_work(&lists, (classes.len(), room), stood));
    lists.retain(|key, _| !closed.contains_key(*key));
    let asking = lists.iter().map(|(key, list)| (&key.namespace, list.terms.as_slice()));
    let had = |class: u64| match standing.get(&class) {
        Some(class) => &class.terms[..],
        None => numbers.standing_terms.get(&class).map_or(&[][..], |terms| terms),
    };
    classes.set_terms(Terms::of(asking, hash), snapshot, had);
    if lists.values().all(|list| list.parts.is_empty()) {
        (classes, peers) = (classes.emptied(), BTreeMap::new());
    }
    desired.peers = peers;
    desired.classes = classes.iter().map(|(class, group)| (class, group.class(hash))).collect();
    let admitted = isolation.sets().filter(|(key, _)| lists.contains_key(key));
    admitted.for_each(|(key, set)| list::compile(key, set, forms, hash).describe(desired));
    numbers.assign_lists(lists.keys().copied());
    let digests = lists.iter().map(|(key, list)| ((*key).clone(), list.digest(&classes))).collect();
    let standing: BTreeSet<SetKey> = lists.into_keys().cloned().collect();
    let lists: BTreeMap<SetKey, KnownList> = compiled.into_iter().filter(|(key, _)| standing.contains(key)).collect();
    let mut taken = Taken::default();
    lists.values().for_each(|list| taken.add(list));
    let (classes_then, meanings_then) = (classes.len(), meanings.len());
    let (mut names, asked) = (RuleNames::default(), OnceLock::new());
    names.forget(isolation.namespaces(), |_| true);
    Policies {
        isolation,
        lists,
        digests,
        taken,
        closed,
        unknown,
        classes,
        classes_then,
        meanings,
        meanings_then,
        names,
        asked,
    }
}

/// All pods by their classes; closes lists for it: where there is no room for all classes, those that make more of them
/// by asking for labels that controllers give each pod. No namespace's pods are left out for what others ask of them.
fn classify(
    lists: &mut BTreeMap<&SetKey, &KnownList>,
    closed: &mut BTreeMap<SetKey, Shortage>,
    snapshot: &Snapshot,
    owners: &Owners<'_>,
    (room, held): (&Room, &Held),
    hash: HashKey,
) -> (Classes, BTreeMap<AddressKey, u64>) {
    let asks = lists.values().any(|list| !list.parts.is_empty());
    let grouped = |asked| {
        let mut classes = Classes::new(hash, asked, room.terms);
        let peers = if asks { group(snapshot, owners, held, &mut classes) } else { BTreeMap::new() };
        (classes, peers)
    };
    let keys = |list: &KnownList| Asked::of(list.terms.iter().map(|term| &**term));
    let asked = held.asked.unwrap_or_else(|| lists.values().fold(Asked::default(), |all, list| all.and(keys(list))));
    let (classes, peers) = grouped(asked);
    if asked == Asked::default() || fit::unknown(&classes, room).is_empty() {
        return (classes, peers);
    }
    let asking = lists.extract_if(.., |_, list| keys(list) != Asked::default());
    closed.extend(asking.map(|(key, _)| (key.clone(), Shortage::Keys)));
    grouped(Asked::default())
}

/// Groups all pods into classes; which of them each address is in.
fn group(snapshot: &Snapshot, owners: &Owners<'_>, held: &Held, classes: &mut Classes) -> BTreeMap<AddressKey, u64> {
    let mut touched = Touched::default();
    let mut peers = BTreeMap::new();
    for (address, pod) in owners {
        let Some(pod) = pod.filter(|pod| !held.unknown.contains_key(&pod.key.namespace)) else { continue };
        let (class, key) = (classes.number(pod), address_key(*address));
        classes.join(class, &key, pod, snapshot, &mut touched);
        peers.insert(key, class);
    }
    peers
}

impl KnownList {
    /// A digest of what it says, and of the addresses to which it says it.
    fn digest(&self, classes: &Classes) -> u64 {
        let mut digest = Digest::default();
        digest.write_u64(self.number.to_le());
        classes.digest_of(&self.parts, &mut digest);
        digest.finish()
    }
}

impl Policies {
    /// Whether something is closed, or not known, that pods which came or went may have ended.
    pub(crate) fn holds(&self) -> bool {
        !self.unknown.is_empty() || self.closed.values().any(Shortage::depends_on_pods)
    }

    /// What is held while pods are followed.
    #[cfg(test)]
    pub(crate) fn held(&self) -> Held {
        let closed = self.closed.iter().filter(|(_, why)| !matches!(why, Shortage::TooLong(_)));
        Held {
            closed: closed.map(|(key, why)| (key.clone(), why.clone())).collect(),
            unknown: self.unknown.clone(),
            asked: Some(self.classes.asked()),
        }
    }

    /// Whether a list that is closed would stand if others took less.
    fn waits_for_room(&self) -> bool {
        self.closed.values().any(|why| !matches!(why, Shortage::TooLong(_)))
    }

    /// Whether some list asks for pods, of which addresses and classes are needed then.
    fn asks_for_pods(&self) -> bool {
        self.lists.values().any(|list| !list.parts.is_empty())
    }

    /// Whether some list asks for pods of this class.
    pub(crate) fn means(&self, class: u64) -> bool {
        let Some(group) = self.classes.get(class) else { return false };
        let whole = group.namespace_term();
        let parts = || self.lists.values().flat_map(|list| &list.parts).copied().collect();
        !group.terms.is_empty() || self.asked.get_or_init(parts).contains(&whole)
    }

    /// Who decided, for people; none: no rule.
    pub(crate) fn rule_name(&self, number: u32, forms: &Forms, hash: HashKey) -> Option<String> {
        self.names.name(number, &self.isolation, forms, hash)
    }

    /// What judges each workload.
    pub(crate) fn judges(&self) -> JudgesByWorkload {
        let of_set = |key: &SetKey| match (self.lists.get(key), self.digests.get(key)) {
            (Some(list), Some(digest)) => (list.number, *digest),
            _ => (CLOSED_LIST, 0),
        };
        let of = |key: &Option<SetKey>| key.as_ref().map_or((NO_LIST, 0), of_set);
        let judges = |isolated: &Isolated| Judges { ingress: of(&isolated.ingress), egress: of(&isolated.egress) };
        self.isolation.workloads().map(|(id, isolated)| (id.clone(), judges(isolated))).collect()
    }

    /// Policies that do not fit, and why.
    fn unfit(&self) -> BTreeMap<&ObjectKey, String> {
        let mut unfit = BTreeMap::new();
        for (key, shortage) in &self.closed {
            for policy in self.isolation.policies_of(key) {
                unfit.entry(policy).or_insert_with(|| shortage.to_string());
            }
        }
        unfit
    }

    /// What does not fit: the policies, and the workloads that are closed for them.
    pub(crate) fn describe_closed(&self, snapshot: &Snapshot, desired: &mut Desired) {
        for (policy, why) in self.unfit() {
            let uid = snapshot.policies.get(policy).and_then(|policy| policy.metadata.uid.as_ref().map(Uid::to_string));
            let (key, why) = (policy.clone(), format!("{NOT_FITTING}: {why}"));
            desired.refusals.insert(Refusal { kind: RefusedKind::Policy, key, uid, why });
        }
        for (id, isolated) in self.isolation.workloads() {
            let closed = [&isolated.ingress, &isolated.egress].into_iter().flatten();
            let closed: Vec<_> = closed.filter_map(|key| Some((key, self.closed.get(key)?))).collect();
            let Some((_, shortage)) = closed.first() else { continue };
            let ways: Vec<String> = closed.iter().map(|(key, _)| key.direction.to_string()).collect();
            let policies: BTreeSet<_> = closed.iter().flat_map(|(key, _)| self.isolation.policies_of(key)).collect();
            let policies: Vec<String> = policies.into_iter().take(NAMED).map(ToString::to_string).collect();
            let why =
                format!("its policies do not fit ({}): {} closed: {shortage}", policies.join(", "), ways.join(" and "));
            desired.closed.insert(id.clone(), why);
        }
    }

    /// Namespaces of whose pods no policy of this node knows any.
    pub(crate) fn unknown_namespaces(&self) -> impl Iterator<Item = Refusal> {
        self.unknown.iter().map(|(namespace, why)| Refusal {
            kind: RefusedKind::Namespace,
            key: ObjectKey::new("", namespace),
            uid: None,
            why: format!("its pods do not fit: no policy of this node knows them: {why}"),
        })
    }

    fn describe_unknown(&self, desired: &mut Desired) {
        for refusal in self.unknown_namespaces() {
            desired.problems.push(format!("Namespace {}: {}", refusal.key.name, refusal.why));
            desired.refusals.insert(refusal);
        }
    }

    /// Namespaces of whose pods policies of this node mean some by more selectors than fit.
    pub(crate) fn crowded_namespaces(&self) -> impl Iterator<Item = Refusal> {
        let why = || {
            "some of its pods are meant by more different selectors than fit, of policies of this node: those beyond let them \
             neither in nor out"
                .to_owned()
        };
        let refusal =
            move |name| Refusal { kind: RefusedKind::Namespace, key: ObjectKey::new("", name), uid: None, why: why() };
        self.classes.crowded_namespaces().into_iter().map(move |name| refusal(name))
    }

    fn describe_crowded(&self, snapshot: &Snapshot, desired: &mut Desired) {
        for refusal in self.crowded_namespaces() {
            let namespace = &refusal.key.name;
            let pods = of_namespace(&snapshot.pods, namespace).map(|(key, pod)| PodEntry { key, pod });
            let pods: Vec<&str> = pods.filter(|pod| self.classes.is_crowded(*pod)).map(|pod| &*pod.key.name).collect();
            let more = if pods.len() > NAMED { ", ..." } else { "" };
            let named = pods[..pods.len().min(NAMED)].join(", ");
            desired.problems.push(format!("Namespace {namespace}: {} ({named}{more})", refusal.why));
            desired.refusals.insert(refusal);
        }
    }

    /// Reports and problems of policies, and what is closed.
    pub(crate) fn describe_reports(&self, snapshot: &Snapshot, forms: &Forms, desired: &mut Desired) {
        self.describe_closed(snapshot, desired);
        self.describe_unknown(desired);
        self.describe_crowded(snapshot, desired);
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
        let unfit = self.unfit();
        forms.into_iter().map(move |(key, form)| {
            let selected = self.isolation.selected(key);
            let mut wrong = form.problems.clone();
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
