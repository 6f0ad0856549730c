// SPDX-License-Identifier: Apache-2.0

//! A5: what guests may say to their router and their DHCP server, whatever policy says, is no way out.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Case,
    attacker::{Attacker, Family, Who},
    encapsulation::STRANGER,
    frame::{self, Frame, ICMPV6},
    net::Place as _,
    site::{self, PORT, Site},
    witness::{Mark, Witness},
};
use crate::{shell::Shell as _, vm::Vm, wait::until_ok};

/// ICMPv6 type of a router solicitation.
const SOLICITATION: u8 = 133;
/// IPv6's destination options as a next header; one unit that holds padding.
const DESTINATION_OPTIONS: u8 = 60;
const PADDING: [u8; 8] = [ICMPV6, 0, 1, 4, 0, 0, 0, 0];
/// How many solicitations one attack on the neighbour table has.
const SOLICITATIONS: u16 = 24;
/// Ports of DHCP's client and server, and of DHCPv6's.
const DHCP: (u16, u16) = (68, 67);
const DHCPV6: (u16, u16) = (546, 547);

/// How a solicitation is made that is none.
#[derive(Clone, Copy)]
enum Shape {
    Unicast,
    Spoofed,
    FewHops,
    InPieces,
    BehindOptions,
}

const SHAPES: [(&str, Shape); 5] = [
    ("unicast", Shape::Unicast),
    ("with-a-foreign-source", Shape::Spoofed),
    ("with-few-hops", Shape::FewHops),
    ("in-pieces", Shape::InPieces),
    ("behind-options", Shape::BehindOptions),
];

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for who in [Who::TapGuest, Who::VhostGuest] {
        for (what, shape) in SHAPES {
            let name = format!("A5/solicitation-{what}/{who}/ipv6");
            cases.push(Case::new(name, move |site: &Site| silenced(site, || to_the_outside(site, who, shape))));
        }
        let mut add = |what: &str, run: fn(&Site, Who) -> Result<()>| {
            let name = format!("A5/{what}/{who}");
            cases.push(Case::new(name, move |site: &Site| silenced(site, || run(site, who))));
        };
        add("neighbour-table/ipv6", neighbour_table);
        add("dhcp-to-a-socket/ipv4", |site, who| dhcp(site, who, site.own().v4().into()));
        add("dhcp-broadcast-to-a-socket/ipv4", |site, who| dhcp(site, who, Ipv4Addr::BROADCAST.into()));
        add("dhcp-to-a-socket/ipv6", |site, who| dhcp(site, who, site.own().v6().into()));
        add("dhcp-multicast-to-a-socket/ipv6", |site, who| dhcp(site, who, DHCPV6_SERVERS.into()));
        add("honest-configuration-goes-on", honest_goes_on);
    }
    cases
}

/// RFC 8415, 7.1.
const DHCPV6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Runs `work` while a policy lets the guests send nothing.
fn silenced(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<()> {
    // Guests are booted with a network.
    for who in [Who::TapGuest, Who::VhostGuest] {
        site.attacker(who)?;
    }
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": "silent"},
        "spec": {"podSelector": {"matchLabels": {"app": "guest"}}, "policyTypes": ["Egress"]},
    });
    site.bed.apply(&policy)?;
    let outcome = site.settled(&["friends-only", "nobody", "silent"]).and_then(|()| work());
    site.bed.delete(&policy)?;
    site.settled(&["friends-only", "nobody"])?;
    outcome
}

/// A solicitation with the mark in an option that nobody knows.
fn solicitation(attacker: &Attacker<'_>, shape: Shape, to: IpAddr, mark: &Mark) -> Result<Vec<Frame>> {
    let own = Family::V6.of(attacker.addresses())?;
    let mut body = vec![200, 3, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(mark);
    let message = |source: IpAddr, hops: u8| frame::icmpv6(attacker.link(), source, to, hops, SOLICITATION, &body);
    let whole = message(own, 255);
    Ok(match shape {
        Shape::Unicast => vec![whole.into()],
        Shape::Spoofed => vec![message(STRANGER.1, 255).into()],
        Shape::FewHops => vec![message(own, 64).into()],
        Shape::InPieces => frame::fragments(&whole, 0x5005, 16).map(Frame::from).to_vec(),
        Shape::BehindOptions => {
            let payload = [&PADDING, &whole[frame::ETHERNET + 40..]].concat();
            vec![frame::raw(attacker.link(), own, to, 255, DESTINATION_OPTIONS, &payload).into()]
        }
    })
}

fn to_the_outside(site: &Site, who: Who, shape: Shape) -> Result<()> {
    let attacker = site.attacker(who)?;
    let outside = site.outside().address_for(Family::V6.any());
    let receiver = site.outside().receiver("eth0")?;
    Witness::new("the outside", &receiver).refuses(
        |mark| attacker.send(&solicitation(&attacker, shape, outside, mark)?),
        |mark| site.honest(&site.hostile, SocketAddr::new(outside, PORT), mark),
    )
}

/// Neighbours that are not there, on the node's own network: each would be looked for.
fn neighbour_table(site: &Site, who: Who) -> Result<()> {
    let attacker = site.attacker(who)?;
    let nobody = |number: u16| Ipv6Addr::new(0xfd00, 0x119, 0, 0, 0, 0xdead, who as u16, number);
    let mut frames = Vec::new();
    for number in 0..SOLICITATIONS {
        frames.extend(solicitation(&attacker, Shape::Unicast, nobody(number).into(), b"<weft neighbour>")?);
    }
    attacker.send(&frames)?;
    let own = site.own();
    let sought = |pattern: &str| -> Result<usize> {
        let table = own.sh("ip -6 neigh show dev eth0")?.ok()?;
        Ok(table.lines().filter(|line| line.contains(pattern)).count())
    };
    // What the node itself looks for is in the table.
    site::datagram(
        own,
        SocketAddr::new(Ipv6Addr::new(0xfd00, 0x119, 0, 0, 0, 0xbeef, who as u16, 1).into(), PORT),
        b"?",
    )?;
    until_ok("the node to look for a neighbour", Duration::from_secs(5), || {
        ensure!(sought(":beef:")? > 0, "it does not");
        Ok(())
    })?;
    let forged = sought(&format!(":dead:{}:", who as u16))?;
    ensure!(forged == 0, "the node looks for {forged} neighbours that a guest made up");
    Ok(())
}

/// A guest's DHCP is for the agent, and no way to a socket of the host.
fn dhcp(site: &Site, who: Who, to: IpAddr) -> Result<()> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let attacker = site.attacker(who)?;
    let own = site.own();
    let (client, server) = family.pick(DHCP, DHCPV6);
    let socket = own.udp(SocketAddr::new(family.any(), server))?;
    let from = attacker.socket(family, client)?;
    let honest = SocketAddr::new(own.address_for(family.any()), server);
    Witness::new("a socket of the node", &socket).refuses(
        |mark| attacker.send(&[frame::udp(attacker.link(), from, SocketAddr::new(to, server), mark).into()]),
        |mark| site.honest(&site.hostile, honest, mark),
    )
}

/// Solicitations and DHCP as they should be are answered also where policy lets nothing out.
fn honest_goes_on(site: &Site, who: Who) -> Result<()> {
    let vm: &Vm = site.vm(who)?;
    let attacker = site.attacker(who)?;
    let advertisements = || -> Result<u64> {
        let text = vm.sh("awk '/Icmp6InRouterAdvertisements/ {print $2}' /proc/net/snmp6")?.ok()?;
        text.trim().parse().with_context(|| format!("not a number: {text}"))
    };
    let before = advertisements()?;
    let routers = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2));
    let mut link = attacker.link();
    link.to = [0x33, 0x33, 0, 0, 0, 2];
    let honest = frame::icmpv6(link, Family::V6.any(), routers, 255, SOLICITATION, &[]);
    until_ok("a router advertisement", Duration::from_secs(20), || {
        attacker.send(&[honest.clone().into()])?;
        ensure!(advertisements()? > before, "none came");
        Ok(())
    })?;
    vm.sh("udhcpc -i eth0 -n -q -f -t 5 -T 1 -s /bin/true")?.ok().map(drop).context("DHCP")?;
    vm.sh("weft-probe dhcp6 eth0 --timeout 10000")?.ok().map(drop).context("DHCPv6")
}
