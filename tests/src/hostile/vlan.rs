// SPDX-License-Identifier: Apache-2.0

//! A7: tags of VLANs (802.1Q, 802.1ad) neither leave a port nor arrive at one. A frame with a tag in it is what a workload can
//! send; where it comes into the node, the kernel takes the tag out and keeps it beside the packet.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use weft_probe::frames::FrameReceiver;

use super::{
    Case,
    attacker::{Attacker, Family, Who},
    drops::counted,
    frame,
    net::Place as _,
    site::{PORT, Site},
    uplink::Wire,
    witness::{Mark, Witness},
};

/// The reason that counts these attacks.
const REASON: &str = "vlan";
/// Names of tags, and the tags.
const TAGS: [(&str, &[(u16, u16)]); 3] =
    [("802.1q", &[(0x8100, 5)]), ("802.1ad", &[(0x88a8, 5)]), ("double", &[(0x88a8, 5), (0x8100, 6)])];

/// Where a tagged frame might go to.
#[derive(Clone, Copy)]
enum To {
    Outside,
    PodHere,
    PodThere,
}

const PLACES: [(&str, To); 3] =
    [("to-the-outside", To::Outside), ("to-a-pod", To::PodHere), ("to-a-pod-of-another-node", To::PodThere)];

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for (tag, tags) in TAGS {
            for who in Who::ALL {
                for (place, to) in PLACES {
                    let name = format!("A7/{tag}-{place}/{who}/{family}");
                    cases.push(Case::new(name, move |site: &Site| sent(site, who, family, tags, to)));
                }
            }
            let name = format!("A7/{tag}-to-a-pod/neighbour/{family}");
            cases.push(Case::new(name, move |site: &Site| from_the_wire(site, family, tags)));
        }
    }
    cases
}

impl To {
    fn of(self, site: &Site, family: Family) -> Result<(IpAddr, FrameReceiver)> {
        Ok(match self {
            Self::Outside => (site.outside().address_for(family.any()), site.outside().receiver("eth0")?),
            Self::PodHere => (family.of(site.open[0].addresses())?, site.open[0].receiver("eth0")?),
            Self::PodThere => (family.of(site.open[1].addresses())?, site.open[1].receiver("eth0")?),
        })
    }
}

fn datagram(attacker: &Attacker<'_>, family: Family, to: IpAddr, mark: &Mark) -> Result<Vec<u8>> {
    Ok(frame::udp(attacker.link(), attacker.socket(family, 5_800)?, SocketAddr::new(to, PORT), mark))
}

fn sent(site: &Site, who: Who, family: Family, tags: &[(u16, u16)], to: To) -> Result<()> {
    let attacker = site.attacker(who)?;
    let (address, receiver) = to.of(site, family)?;
    let plain = |mark: &Mark| datagram(&attacker, family, address, mark);
    counted(site.own(), REASON, || {
        Witness::new("the receiver", &receiver).refuses(
            |mark| attacker.send(&[frame::tagged(&plain(mark)?, tags).into()]),
            |mark| attacker.send(&[plain(mark)?.into()]),
        )
    })
}

fn from_the_wire(site: &Site, family: Family, tags: &[(u16, u16)]) -> Result<()> {
    let wire = Wire::to(site, site.own())?;
    let from = SocketAddr::new(site.outside().address_for(family.any()), 5_801);
    let to = SocketAddr::new(family.of(site.open[0].addresses())?, PORT);
    let receiver = site.open[0].receiver("eth0")?;
    Witness::new("a pod", &receiver).refuses(
        |mark| wire.send(&frame::tagged(&frame::udp(wire.link(), from, to, mark), tags)),
        |mark| wire.datagram(from, to, mark),
    )
}
