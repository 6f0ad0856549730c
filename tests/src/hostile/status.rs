// SPDX-License-Identifier: Apache-2.0

//! A12: a pod's status says which address it has; it is believed only where the pod can have that address.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Case,
    attacker::Family,
    net::Place as _,
    site::{PORT, Site},
    uplink::Wire,
    witness::{Mark, Witness},
};
use crate::{container::Container, manifest};

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        let mut add = |what: &str, run: fn(&Site, Family) -> Result<()>| {
            cases.push(Case::new(format!("A12/{what}/api/{family}"), move |site: &Site| run(site, family)));
        };
        add("status-claims-the-outside", claims_the_outside);
        add("status-claims-another-nodes-pod", claims_another_nodes_pod);
        add("status-claims-a-node", claims_a_node);
    }
    cases
}

/// A friend on `node` that says it has these addresses.
fn liar(node: &str, addresses: &[IpAddr]) -> Value {
    let mut pod = manifest::pod("default/zz-liar", node, &[("role", "friend")]);
    let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    pod["status"] = json!({"podIP": addresses[0], "podIPs": all});
    pod
}

/// Runs `work` once both nodes have seen the liar.
fn believed(site: &Site, pod: &Value, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let told = manifest::ingress_policy("default/told", &[("nobody", "has-this")], &[("nobody", "has-this")]);
    site.bed.apply(pod)?;
    site.bed.apply(&told)?;
    let outcome = site.settled(&["friends-only", "nobody", "told"]).and_then(|()| work());
    site.bed.delete(pod)?;
    site.bed.delete(&told)?;
    site.settled(&["friends-only", "nobody"])?;
    outcome
}

/// That `victim` does not hear what `attack` sends to it.
fn is_not_heard(
    site: &Site,
    victim: &Container,
    family: Family,
    attack: impl FnOnce(SocketAddr, &Mark) -> Result<()>,
) -> Result<()> {
    let to = SocketAddr::new(family.of(victim.addresses())?, PORT);
    let receiver = victim.receiver("eth0")?;
    Witness::new("the protected pod", &receiver)
        .refuses(|mark| attack(to, mark), |mark| site.honest(&site.friends[1], to, mark))
}

fn claims_the_outside(site: &Site, family: Family) -> Result<()> {
    let outside = site.outside().address_for(family.any());
    believed(site, &liar(site.peer().name(), &[outside]), || {
        let wire = Wire::to(site, site.own())?;
        is_not_heard(site, &site.victims[0], family, |to, mark| {
            wire.datagram(SocketAddr::new(outside, 5_120), to, mark)
        })
    })
}

fn claims_another_nodes_pod(site: &Site, family: Family) -> Result<()> {
    let hostile = family.of(site.hostile.addresses())?;
    believed(site, &liar(site.peer().name(), &[hostile]), || {
        is_not_heard(site, &site.victims[1], family, |to, mark| site.honest(&site.hostile, to, mark))
    })
}

/// The node's own packets are the node's, and no friend's.
fn claims_a_node(site: &Site, family: Family) -> Result<()> {
    let node = site.own().address_for(family.any());
    believed(site, &liar(site.peer().name(), &[node]), || {
        is_not_heard(site, &site.victims[1], family, |to, mark| super::site::datagram(site.own(), to, mark))
    })
}
