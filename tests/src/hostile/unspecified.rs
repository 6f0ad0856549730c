// SPDX-License-Identifier: Apache-2.0

//! A8: a workload without an address of a family says nothing in it, not even as the unspecified address.

use std::{net::SocketAddr, rc::Rc};

use anyhow::Result;
use serde_json::json;

use super::{
    Case,
    attacker::{Attacker, Family},
    drops::counted,
    frame,
    net::Place as _,
    tap::TapWorkload,
    witness::{Mark, Witness},
};
use crate::{bed::Bed, binaries::Binaries, container::Container, node::Mode};

/// Where the datagrams go to.
const PORT: u16 = 7_008;

/// A node whose workloads have addresses of one family.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    pod: Container,
    tap: TapWorkload,
    bed: Bed,
    family: Family,
}

impl Site {
    /// With IPv4 addresses only.
    pub(super) fn ipv4(binaries: &Binaries) -> Result<Self> {
        Self::of(Family::V4, binaries)
    }

    /// With IPv6 addresses only.
    pub(super) fn ipv6(binaries: &Binaries) -> Result<Self> {
        Self::of(Family::V6, binaries)
    }

    fn of(family: Family, binaries: &Binaries) -> Result<Self> {
        let config = json!({"podCIDRs": [family.pick("10.244.1.0/24", "fd00:244:0:1::/64")]});
        let bed = super::bed(1, Mode::Vxlan, config, binaries)?;
        let pod = bed.container(1, "default/single", &[])?;
        let tap = TapWorkload::new(&Rc::clone(bed.node(1)), "default/single-guest")?;
        Ok(Self { pod, tap, bed, family })
    }
}

/// The cases of workloads that have no IPv6 address.
pub(super) fn ipv4_cases() -> Vec<Case<Site>> {
    cases(Family::V6)
}

/// The cases of workloads that have no IPv4 address.
pub(super) fn ipv6_cases() -> Vec<Case<Site>> {
    cases(Family::V4)
}

fn cases(missing: Family) -> Vec<Case<Site>> {
    vec![
        Case::new(format!("A8/unspecified-source/pod/{missing}"), |site: &Site| {
            says_nothing(site, &Attacker::pod(&site.pod)?)
        }),
        Case::new(format!("A8/unspecified-source/tap/{missing}"), |site: &Site| {
            says_nothing(site, &Attacker::tap(&site.tap)?)
        }),
    ]
}

fn says_nothing(site: &Site, attacker: &Attacker<'_>) -> Result<()> {
    let outside = site.bed.outside();
    let receiver = outside.receiver("eth0")?;
    let missing = site.family.pick(Family::V6, Family::V4);
    let send = |from: SocketAddr, mark: &Mark| {
        let family = if from.is_ipv4() { Family::V4 } else { Family::V6 };
        let to = SocketAddr::new(outside.address_for(family.any()), PORT);
        attacker.send(&[frame::udp(attacker.link(), from, to, mark).into()])
    };
    let own = attacker.socket(site.family, 5_080)?;
    counted(site.bed.node(1), "source-address", || {
        Witness::new("the outside", &receiver)
            .refuses(|mark| send(SocketAddr::new(missing.any(), 5_080), mark), |mark| send(own, mark))
    })
}
