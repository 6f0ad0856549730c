// SPDX-License-Identifier: Apache-2.0

//! A6: somebody takes the programs of a port away while the agent cannot put them back. Nothing may pass meanwhile, and
//! everything again when it can.

use std::{fmt, net::SocketAddr, rc::Rc};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Case,
    attacker::{Attacker, Family},
    frame,
    net::Place as _,
    tap::TapWorkload,
    witness::{Arrivals, Mark, Witness},
};
use crate::{
    bed::{Bed, OUTSIDE_V4, OUTSIDE_V6},
    binaries::Binaries,
    cni::Attachment,
    container::Container,
    node::{Mode, Node, detach_programs},
    shell::Shell as _,
};

/// Where the datagrams go to.
const PORT: u16 = 7_016;
/// How many of them are sent while nobody watches.
const MANY: usize = 20;

/// A node that forwards for others, as nodes of Kubernetes do.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    pod: Container,
    tap: TapWorkload,
    neighbour: Container,
    bed: Bed,
}

impl Site {
    /// The site.
    pub(super) fn new(binaries: &Binaries) -> Result<Self> {
        let bed = super::bed(1, Mode::Vxlan, Value::Null, binaries)?;
        bed.node(1).sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?.ok()?;
        let pod = bed.container(1, "default/unwatched", &[])?;
        let neighbour = bed.container(1, "default/neighbour", &[])?;
        let tap = TapWorkload::new(&Rc::clone(bed.node(1)), "default/unwatched-guest")?;
        Ok(Self { pod, tap, neighbour, bed })
    }
}

pub(super) fn cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for target in [Target::Host, Target::Pod, Target::Outside] {
            let name = |who: &str| format!("A6/filter-taken-away-to-the-{target}/{who}/{family}");
            cases.push(Case::new(name("pod"), move |site: &Site| {
                is_closed(site, &Attacker::pod(&site.pod)?, site.pod.attachment(), target, family)
            }));
            cases.push(Case::new(name("tap"), move |site: &Site| {
                is_closed(site, &Attacker::tap(&site.tap)?, &site.tap.attachment, target, family)
            }));
        }
    }
    cases
}

/// Who must not hear anything.
#[derive(Clone, Copy)]
enum Target {
    Host,
    Pod,
    Outside,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Pod => "pod",
            Self::Outside => "outside",
        })
    }
}

impl Target {
    /// Its address, and where what arrives is seen.
    fn of(self, site: &Site, family: Family) -> Result<(SocketAddr, Box<dyn Arrivals>)> {
        let node = site.bed.node(1);
        let at = |address| SocketAddr::new(address, PORT);
        Ok(match self {
            Self::Host => {
                let address = at(node.address_for(family.any()));
                (address, Box::new(node.udp(address)?))
            }
            Self::Pod => (at(family.of(site.neighbour.addresses())?), Box::new(site.neighbour.receiver("eth0")?)),
            Self::Outside => {
                let address = family.pick(OUTSIDE_V4.into(), OUTSIDE_V6.into());
                (at(address), Box::new(site.bed.outside().receiver("eth0")?))
            }
        })
    }
}

fn is_closed(
    site: &Site,
    attacker: &Attacker<'_>,
    attachment: &Attachment,
    target: Target,
    family: Family,
) -> Result<()> {
    let node = site.bed.node(1);
    let port = attachment.interface(false)?["name"].as_str().context("the port has no name in the result")?.to_owned();
    let (to, arrivals) = target.of(site, family)?;
    let from = attacker.socket(family, 5_016)?;
    let send = |mark: &Mark| attacker.send(&[frame::udp(attacker.link(), from, to, mark).into()]);
    let witness = Witness::new(format!("the {target}"), arrivals.as_ref());
    // What the first packet has to look for (neighbours) is found.
    witness.sees(send).context("before")?;
    let attack = |mark: &Mark| {
        let _stopped = Stopped::new(node)?;
        node.sh(&detach_programs(&port))?.ok()?;
        let left = node.sh(&format!("tc filter show dev {port} ingress; tc filter show dev {port} egress"))?.ok()?;
        ensure!(left.is_empty(), "the programs are there: {left}");
        (0..MANY).try_for_each(|_| send(mark))
    };
    witness.refuses(attack, send).with_context(|| node.agent_log())
}

/// An agent that can do nothing for as long as this lives.
struct Stopped<'a>(&'a Node);

impl<'a> Stopped<'a> {
    fn new(node: &'a Node) -> Result<Self> {
        node.signal_agent(Signal::SIGSTOP)?;
        Ok(Self(node))
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal_agent(Signal::SIGCONT) {
            eprintln!("the agent stays stopped: {error:#}");
        }
    }
}
