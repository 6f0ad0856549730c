// SPDX-License-Identifier: Apache-2.0
//! One table of iptables as `iptables-save` prints it, and what of it is kube-proxy's. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::names::is_chain;

/// The chain that marks what is to be masqueraded, and the one that masquerades it.
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";

/// A table with its chains and rules, in their order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Table {
    pub(super) name: String,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Chain {
    name: String,
    /// Has a policy, and cannot be removed.
    built_in: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Rule {
    chain: String,
    /// As printed, without the `-A`.
    text: String,
    /// The chain to which it leads, if it ends in a `-j` or `-g` and one word: no target but a chain, or one without options.
    target: Option<String>,
}

/// What to take out of one table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Removal {
    /// Rules of built-in chains, without the `-A`.
    pub(super) jumps: Vec<String>,
    pub(super) chains: Vec<String>,
    /// Chains that have to stay, and why.
    pub(super) pinned: BTreeMap<String, String>,
}

/// Reads what `iptables-save` of any family and backend prints; lines that are unknown are nobody's.
pub(super) fn parse(saved: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table { name: name.trim_end().to_owned(), ..Table::default() });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some((name, rest)) = line.strip_prefix(':').and_then(|chain| chain.split_once(' ')) {
            table.chains.push(Chain { name: name.to_owned(), built_in: !rest.starts_with('-') });
        } else if let Some(text) = line.strip_prefix("-A ") {
            table.rules.push(rule(text));
        }
    }
    tables
}

fn rule(text: &str) -> Rule {
    let words = words(text);
    let target = match &words[..] {
        [.., option, target] if option == "-j" || option == "-g" => Some(target.clone()),
        _ => None,
    };
    Rule { chain: words.into_iter().next().unwrap_or_default(), text: text.to_owned(), target }
}

/// The words of a rule: blanks within quotes are no ends, and a backslash takes its meaning from what follows.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' if !quoted => words.extend(word.take()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(letters.next()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

impl Table {
    /// kube-proxy's chains, in the order in which they stand.
    pub(super) fn kube_proxys(&self) -> impl Iterator<Item = &str> {
        self.chains.iter().filter(|chain| !chain.built_in && is_chain(&chain.name)).map(|chain| &*chain.name)
    }

    /// What of this table is kube-proxy's, and the jumps to it.
    pub(super) fn removal(&self) -> Removal {
        let ours: BTreeSet<&str> = self.kube_proxys().collect();
        let mut pinned = self.pinned(&ours);
        // Whoever leads to the one has its packets masqueraded by the other.
        let masquerades = pinned.contains_key(MARK) && ours.contains(MASQUERADE);
        if masquerades {
            pinned.insert(MASQUERADE.to_owned(), format!("it masquerades what {MARK} marks, which stays"));
        }
        let built_in = self.built_in();
        let goes =
            |(rule, target): &(&Rule, &str)| built_in.contains(&*rule.chain) && !(masquerades && *target == MASQUERADE);
        let jumps = self.leading_to(&ours).filter(goes);
        Removal {
            jumps: jumps.map(|(rule, _)| rule.text.clone()).collect(),
            chains: self.kube_proxys().filter(|chain| !pinned.contains_key(*chain)).map(str::to_owned).collect(),
            pinned,
        }
    }

    /// Chains of `ours` to which a chain of somebody else leads, and those to which these lead.
    fn pinned(&self, ours: &BTreeSet<&str>) -> BTreeMap<String, String> {
        let built_in = self.built_in();
        let mut leads: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
        for (rule, target) in self.leading_to(ours) {
            leads.entry(&*rule.chain).or_default().push((target, &*rule.text));
        }
        let somebodys = |chain: &&str| !built_in.contains(chain) && !ours.contains(chain);
        let mut from: Vec<&str> = leads.keys().copied().filter(somebodys).collect();
        let mut pinned = BTreeMap::new();
        while let Some(chain) = from.pop() {
            for (target, rule) in leads.get(chain).into_iter().flatten() {
                if !pinned.contains_key(*target) {
                    pinned.insert((*target).to_owned(), format!("a rule leads to it that stays: {rule}"));
                    from.push(target);
                }
            }
        }
        pinned
    }

    fn built_in(&self) -> BTreeSet<&str> {
        self.chains.iter().filter(|chain| chain.built_in).map(|chain| &*chain.name).collect()
    }

    fn leading_to<'a>(&'a self, ours: &BTreeSet<&str>) -> impl Iterator<Item = (&'a Rule, &'a str)> {
        let target = |rule: &'a Rule| rule.target.as_deref().map(|target| (rule, target));
        self.rules.iter().filter_map(target).filter(|(_, target)| ours.contains(target))
    }
}

impl Removal {
    /// What `iptables-restore --noflush` is to do at once: jumps, so that no packet comes, then what leads from chain to
    /// chain, then the chains.
    pub(super) fn script(&self, table: &str) -> String {
        let jumps = self.jumps.iter().map(|jump| format!("-D {jump}\n"));
        let flush = self.chains.iter().map(|chain| format!("-F {chain}\n"));
        let delete = self.chains.iter().map(|chain| format!("-X {chain}\n"));
        let lines: String = jumps.chain(flush).chain(delete).collect();
        format!("*{table}\n{lines}COMMIT\n")
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.chains.is_empty()
    }
}

#[cfg(test)]
mod tests;
