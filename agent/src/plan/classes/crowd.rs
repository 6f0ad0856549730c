// SPDX-License-Identifier: Apache-2.0
//! Classes that more terms mean than they hold: some are left out. Whoever asks by such a term does not let these pods in: as long as
//! rules only accept, that closes something for the pods' owner, and for nobody else.

use std::collections::BTreeMap;

use weft_abi::part;

use super::matcher::Terms;
use crate::{model::Name, plan::share};

/// The terms that a class of the namespace `own` keeps, in order, out of `matched`, and how many are left out.
///
/// Those that policies of its own namespace ask for come first: nobody else can have its pods left out for each other. Of the places
/// that are left each namespace whose policies ask has its fair share. A term belongs to whoever asks for the fewest, so that nobody
/// takes a place from others by asking for what they ask for. What `stood` in the class stays as far as shares allow, so that a
/// second choice is the first one.
pub(super) fn choose(matched: Vec<u64>, most: usize, terms: &Terms, own: &Name, stood: &[u64]) -> (Vec<u64>, usize) {
    if matched.len() <= most {
        return (matched, 0);
    }
    let all = matched.len();
    let askers = |term: &u64| terms.askers(*term & !part::LOW);
    let is_new = |term: &u64| !stood.contains(term);
    let (mut kept, others): (Vec<u64>, Vec<u64>) =
        matched.into_iter().partition(|term| askers(term).any(|name| name == own));
    kept.sort_unstable_by_key(|term| (is_new(term), *term));
    kept.truncate(most);
    let left = most - kept.len();
    let mut asked: BTreeMap<&Name, usize> = BTreeMap::new();
    for name in others.iter().flat_map(askers) {
        *asked.entry(name).or_default() += 1;
    }
    let mut shares: BTreeMap<&Name, Vec<(bool, u64)>> = BTreeMap::new();
    for term in &others {
        let owner = askers(term).min_by_key(|name| (asked[name], *name));
        if let Some(owner) = owner {
            shares.entry(owner).or_default().push((is_new(term), *term));
        }
    }
    let wanted = shares.values().map(|terms| terms.len() as u64).collect();
    // Where there are more namespaces than places, nobody has two before others have one.
    let fair = usize::try_from(share::fair_share(left as u64, wanted)).unwrap_or(usize::MAX).max(1);
    let mut order: Vec<(bool, bool, u64)> = Vec::with_capacity(others.len());
    for mut terms in shares.into_values() {
        terms.sort_unstable();
        order.extend(terms.into_iter().enumerate().map(|(place, (is_new, term))| (place >= fair, is_new, term)));
    }
    order.sort_unstable();
    kept.extend(order.into_iter().take(left).map(|(.., term)| term));
    kept.sort_unstable();
    let left_out = all - kept.len();
    (kept, left_out)
}
