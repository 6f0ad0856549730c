// SPDX-License-Identifier: Apache-2.0
//! What to remove, in an order that works. Pure.

use super::{
    Event,
    iptables::Variant,
    kernel::Family,
    names::{DEVICE, TABLE},
    observe::Observation,
    rules::Removal,
};

/// What is removed at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Jumps and chains of one table of iptables.
    Rules {
        variant: Variant,
        table: String,
        removal: Removal,
    },
    /// All of ipvs, which does not know whose a virtual server is.
    Servers(Vec<String>),
    /// The device by which a next try knows whose the virtual servers are.
    Device,
    Set(String),
    Table(Family),
}

/// Rules go before the sets that they name; virtual servers before the device that shows that they are kube-proxy's. The
/// events are of what has to stay.
pub(super) fn plan(observed: Observation) -> (Vec<Step>, Vec<Event>) {
    let Observation { rules, servers, has_device, sets, tables } = observed;
    let (mut steps, mut left) = (Vec::new(), Vec::new());
    for (variant, table) in rules {
        let (removal, table) = (table.removal(), table.name);
        for (chain, why) in &removal.pinned {
            left.push(Event::failed(told(chain, &table, variant), why));
        }
        if !removal.is_empty() {
            steps.push(Step::Rules { variant, table, removal });
        }
    }
    if has_device {
        steps.extend((!servers.is_empty()).then_some(Step::Servers(servers)));
        steps.push(Step::Device);
    }
    steps.extend(sets.into_iter().map(Step::Set));
    steps.extend(tables.into_iter().map(Step::Table));
    (steps, left)
}

impl Step {
    /// What it removes, one by one.
    pub(super) fn things(&self) -> Vec<String> {
        match self {
            Self::Rules { variant, table, removal } => {
                let jumps = removal.jumps.iter().map(|jump| format!("rule of {table} ({variant}): {jump}"));
                let chains = removal.chains.iter().map(|chain| told(chain, table, *variant));
                jumps.chain(chains).collect()
            }
            Self::Servers(servers) => servers.iter().map(|server| format!("ipvs virtual server {server}")).collect(),
            Self::Device => vec![format!("device {DEVICE}")],
            Self::Set(set) => vec![format!("ipset {set}")],
            Self::Table(family) => vec![format!("nftables table {} {TABLE}", family.nft())],
        }
    }

    /// The whole of it in a few words.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Rules { variant, table, .. } => format!("chains of {table} ({variant})"),
            Self::Servers(_) => "the ipvs virtual servers".to_owned(),
            Self::Device | Self::Set(_) | Self::Table(_) => self.things().concat(),
        }
    }
}

fn told(chain: &str, table: &str, variant: Variant) -> String {
    format!("chain {chain} of {table} ({variant})")
}

#[cfg(test)]
mod tests;
