// SPDX-License-Identifier: Apache-2.0
//! Looks at what is there, and changes nothing.

use std::{collections::BTreeSet, fs, io};

use anyhow::{Context as _, Result};

use super::{
    Event,
    iptables::{Backend, Variant},
    kernel::{self, Chain, Family},
    names::{DEVICE, TABLE, is_chain, is_set},
    rules::{self, Table},
    servers,
};

/// What of kube-proxy's may be here.
#[derive(Clone, Debug, Default)]
pub(super) struct Observation {
    /// Tables of iptables that have chains of kube-proxy's.
    pub(super) rules: Vec<(Variant, Table)>,
    /// Virtual servers of ipvs, whoever made them.
    pub(super) servers: Vec<String>,
    pub(super) has_device: bool,
    pub(super) sets: Vec<String>,
    /// Families of nftables with a table of kube-proxy's.
    pub(super) tables: Vec<Family>,
}

/// Tables of iptables, as nftables has them too.
const IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// What is here, and what could not be looked at though it may be here.
///
/// # Errors
/// The kernel does not answer.
pub(super) fn observe() -> Result<(Observation, Vec<Event>)> {
    let chains = kernel::chains().context("list the chains of nftables, which only root may")?;
    let mut observed = Observation {
        rules: Vec::new(),
        servers: servers::parse(&listed("/proc/net/ip_vs")?),
        has_device: kernel::has_device(DEVICE).with_context(|| format!("look for the device {DEVICE}"))?,
        sets: kernel::sets().context("list ipsets")?.into_iter().filter(|set| is_set(set)).collect(),
        tables: kernel::tables(TABLE).context("list the tables of nftables")?,
    };
    let mut unseen = Vec::new();
    for family in Family::BOTH {
        for (backend, suspects) in [(Backend::Nft, in_nftables(&chains, family)), (Backend::Legacy, legacy(family)?)] {
            let variant = Variant { backend, family };
            if suspects.is_empty() {
                continue;
            }
            match variant.save() {
                Ok(saved) => {
                    let tables = rules::parse(&saved);
                    unseen.extend(hidden(variant, &suspects, &tables));
                    let tables = tables.into_iter().filter(|table| table.kube_proxys().next().is_some());
                    observed.rules.extend(tables.map(|table| (variant, table)));
                }
                Err(error) => unseen.push(Event::failed(told(variant, &suspects), format!("{error:#}"))),
            }
        }
    }
    Ok((observed, unseen))
}

/// Where chains of kube-proxy's are, or may be: a table, and the chain if it is known.
type Suspect<'a> = (String, Option<&'a str>);

/// Chains of kube-proxy's among those of nftables, in tables that iptables makes.
fn in_nftables(chains: &[Chain], family: Family) -> Vec<Suspect<'_>> {
    let is_suspect =
        |chain: &&Chain| chain.family == family && IPTABLES.contains(&chain.table.as_str()) && is_chain(&chain.name);
    chains.iter().filter(is_suspect).map(|chain| (chain.table.clone(), Some(&*chain.name))).collect()
}

/// Tables of the other backend: their chains only the tool can tell. Tables that nobody has used are not listed.
fn legacy(family: Family) -> Result<Vec<Suspect<'static>>> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    Ok(listed(path)?.lines().map(|table| (table.to_owned(), None)).collect())
}

/// What a file of /proc says; without it the kernel has nothing of the kind.
fn listed(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("read {path}, which only root may")),
    }
}

/// Of what the kernel has, what the tool does not show: it leaves out tables that were changed by other means.
fn hidden(variant: Variant, suspects: &[Suspect<'_>], tables: &[Table]) -> Option<Event> {
    let shown: BTreeSet<_> =
        tables.iter().flat_map(|table| table.kube_proxys().map(|chain| (&*table.name, chain))).collect();
    let is_hidden =
        |(table, chain): &&Suspect<'_>| chain.is_some_and(|chain| !shown.contains(&(table.as_str(), chain)));
    let hidden: Vec<Suspect<'_>> = suspects.iter().filter(is_hidden).cloned().collect();
    let why = "the tool does not show them: look at the table with nft";
    (!hidden.is_empty()).then(|| Event::failed(told(variant, &hidden), why))
}

/// Chains are many: their tables say enough.
fn told(variant: Variant, suspects: &[Suspect<'_>]) -> String {
    let tables: BTreeSet<&str> = suspects.iter().map(|(table, _)| &**table).collect();
    let are = if suspects.iter().all(|(_, chain)| chain.is_some()) { "in" } else { "that may be in" };
    format!("chains {are} {} ({variant})", Vec::from_iter(tables).join(", "))
}
