// SPDX-License-Identifier: Apache-2.0

//! A11: a datagram in pieces is completed by its own sender only, also behind the one address of masquerade.

use std::net::SocketAddr;

use anyhow::Result;

use super::{
    Case,
    attacker::{Attacker, Family, Who},
    frame,
    net::Place as _,
    site::Site,
    witness::{Mark, Witness},
};

/// Where the datagrams go to.
const PORT: u16 = 7_011;
/// The first piece: a UDP header and the mark.
const FIRST: usize = 24;
/// What is behind the mark; the same of both, so that the checksum is right however the pieces come together.
const TAIL: [u8; 24] = [b'T'; 24];

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for who in Who::ALL {
        for family in Family::ALL {
            let name = format!("A11/tail-for-another-pods-datagram/{who}/{family}");
            cases.push(Case::new(name, move |site: &Site| tail(site, who, family)));
        }
    }
    cases
}

/// The pieces of a datagram to the outside.
fn pieces(sender: &Attacker<'_>, to: SocketAddr, id: u32, mark: &[u8]) -> Result<[Vec<u8>; 2]> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut whole = frame::udp(sender.link(), sender.socket(family, 5_110)?, to, &[mark, &TAIL].concat());
    if to.is_ipv4() {
        // No checksum (RFC 768): the piece that has it does not have the rest.
        whole[frame::ETHERNET + 26..frame::ETHERNET + 28].fill(0);
    }
    Ok(frame::fragments(&whole, id, FIRST))
}

/// A pod begins a datagram; the attacker sends pieces of the same identification to the same place.
fn tail(site: &Site, who: Who, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    let pod = Attacker::pod(&site.open[0])?;
    let to = SocketAddr::new(site.outside().address_for(family.any()), PORT);
    let socket = site.outside().udp(SocketAddr::new(family.any(), PORT))?;
    let (forged, honest) = (0x6001 + who as u32, 0x7001 + who as u32);
    let attack = |mark: &Mark| {
        let [first, _] = pieces(&pod, to, forged, mark)?;
        pod.send(&[first.into()])?;
        let [first, later] = pieces(&attacker, to, forged, b"<weft: a forger>")?;
        attacker.send(&[first.into(), later.into()])
    };
    let twin = |mark: &Mark| {
        let [first, later] = pieces(&pod, to, honest, mark)?;
        pod.send(&[first.into(), later.into()])
    };
    Witness::new("the server outside, as a datagram that another pod had begun", &socket).refuses(attack, twin)
}
