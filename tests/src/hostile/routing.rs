// SPDX-License-Identifier: Apache-2.0

//! A9: packets that choose their own way, that live for ever, or that go where nobody is.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_abi::{HAIRPIN_V4, HAIRPIN_V6};

use super::{
    Case,
    attacker::{Family, Who},
    drops::counted,
    frame::{self, Frame},
    net::Place as _,
    site::{PORT, Site},
    witness::{Arrivals, Mark, Witness},
};
use crate::wait::until_ok;

/// RFC 791, 3.1: loose and strict source routes of one address, filled up to words.
const LOOSE: [u8; 8] = [131, 7, 4, 198, 51, 100, 1, 0];
const STRICT: [u8; 8] = [137, 7, 4, 198, 51, 100, 1, 0];
/// Options that say nothing.
const NOTHING: [u8; 8] = [1, 1, 1, 1, 1, 1, 1, 0];

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for who in Who::ALL {
        for (what, options) in [("loose-source-route", LOOSE), ("strict-source-route", STRICT)] {
            cases.push(Case::new(format!("A9/{what}/{who}/ipv4"), move |site: &Site| source_route(site, who, options)));
        }
        for family in Family::ALL {
            for hops in [1, 0] {
                let name = format!("A9/hops-{hops}-to-the-outside/{who}/{family}");
                cases.push(Case::new(name, move |site: &Site| to_the_outside(site, who, family, hops)));
                let name = format!("A9/hops-{hops}-to-another-node/{who}/{family}");
                cases.push(Case::new(name, move |site: &Site| to_another_node(site, who, family, hops)));
            }
            let mut add = |what: &str, run: fn(&Site, Who, Family) -> Result<()>| {
                cases.push(Case::new(format!("A9/{what}/{who}/{family}"), move |site: &Site| run(site, who, family)));
            };
            add("to-the-hairpin-address", to_the_hairpin_address);
            add("to-an-unreachable-node", to_an_unreachable_node);
        }
    }
    for family in Family::ALL {
        let name = format!("A9/end-of-life-is-answered/pod/{family}");
        cases.push(Case::new(name, move |site: &Site| is_answered(site, family)));
    }
    cases
}

fn source_route(site: &Site, who: Who, options: [u8; 8]) -> Result<()> {
    let attacker = site.attacker(who)?;
    let family = Family::V4;
    let to = SocketAddr::new(site.outside().address_for(family.any()), PORT);
    let from = attacker.socket(family, 5_900)?;
    let receiver = site.outside().receiver("eth0")?;
    let send = |mark: &Mark, options: &[u8]| {
        attacker.send(&[frame::with_options(&frame::udp(attacker.link(), from, to, mark), options).into()])
    };
    counted(site.own(), "source-route", || {
        Witness::new("the outside", &receiver).refuses(|mark| send(mark, &options), |mark| send(mark, &NOTHING))
    })
}

/// A datagram of so many hops must not arrive at `receiver`; one of 64 must, with fewer.
fn is_not_forwarded(
    site: &Site,
    who: Who,
    to: SocketAddr,
    hops: u8,
    receiver: &dyn Arrivals,
    family: Family,
) -> Result<()> {
    let attacker = site.attacker(who)?;
    let from = attacker.socket(family, 5_901)?;
    let send = |mark: &Mark, hops: u8| -> Result<()> {
        attacker.send(&[Frame::from(frame::udp_with_hops(attacker.link(), from, to, hops, mark))])
    };
    let witness = Witness::new("the receiver", receiver);
    witness.refuses(|mark| send(mark, hops), |mark| send(mark, 64))?;
    let seen = witness.sees(|mark| send(mark, 64))?;
    let left = *seen.get(family.pick(22, 21)).context("a short frame")?;
    ensure!(left < 64, "64 hops are still {left} behind a router");
    Ok(())
}

fn to_the_outside(site: &Site, who: Who, family: Family, hops: u8) -> Result<()> {
    let to = SocketAddr::new(site.outside().address_for(family.any()), PORT);
    is_not_forwarded(site, who, to, hops, &site.outside().receiver("eth0")?, family)
}

fn to_another_node(site: &Site, who: Who, family: Family, hops: u8) -> Result<()> {
    let to = SocketAddr::new(family.of(site.open[1].addresses())?, PORT);
    is_not_forwarded(site, who, to, hops, &site.open[1].receiver("eth0")?, family)
}

/// Time exceeded (RFC 792) or hop limit exceeded (RFC 4443) comes back: `traceroute` works.
fn is_answered(site: &Site, family: Family) -> Result<()> {
    let attacker = site.attacker(Who::Pod)?;
    let to = SocketAddr::new(site.outside().address_for(family.any()), PORT);
    let from = attacker.socket(family, 5_902)?;
    let receiver = site.hostile.receiver("eth0")?;
    let send = || attacker.send(&[frame::udp_with_hops(attacker.link(), from, to, 1, b"<weft last hop!>").into()]);
    // Protocol and type of the error, and the ports in what it quotes.
    let (protocol, kind, quoted) = family.pick((23, 34, 62), (20, 54, 102));
    let expected = family.pick((1, 11), (58, 3));
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let error = |bytes: &[u8]| {
        bytes.len() >= quoted + 4 && (bytes[protocol], bytes[kind]) == expected && bytes[quoted..quoted + 4] == *ports
    };
    Witness::new("the sender, as an error about its packet", &receiver).sees_what(send, error).map(drop)
}

/// That nothing for `to` is seen on the wire.
fn never_leaves(site: &Site, who: Who, family: Family, to: IpAddr) -> Result<()> {
    let attacker = site.attacker(who)?;
    let from = attacker.socket(family, 5_903)?;
    let receiver = site.outside().receiver("eth0")?;
    let outside = site.outside().address_for(family.any());
    let send = |mark: &Mark, to: IpAddr| {
        attacker.send(&[frame::udp(attacker.link(), from, SocketAddr::new(to, PORT), mark).into()])
    };
    Witness::new("the wire", &receiver).refuses(|mark| send(mark, to), |mark| send(mark, outside))
}

fn to_the_hairpin_address(site: &Site, who: Who, family: Family) -> Result<()> {
    let hairpin = family.pick(HAIRPIN_V4, HAIRPIN_V6);
    never_leaves(site, who, family, IpAddr::from(hairpin).to_canonical())
}

/// A node whose address nobody knows: its pods are nowhere, not outside.
fn to_an_unreachable_node(site: &Site, who: Who, family: Family) -> Result<()> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "lost"},
        "spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24", "fd00:244:0:9::/64"]},
        "status": {"addresses": []},
    });
    site.bed.apply(&node)?;
    let told = until_ok("the node to be known", Duration::from_secs(10), || {
        let status: weft_api::StatusReport = site.own().weft_json("status")?;
        ensure!(status.problems.iter().any(|problem| problem.contains("lost")), "{:?}", status.problems);
        Ok(())
    });
    let outcome =
        told.and_then(|()| never_leaves(site, who, family, family.pick("10.244.9.9", "fd00:244:0:9::9").parse()?));
    site.bed.delete(&node)?;
    outcome
}
