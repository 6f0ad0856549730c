// SPDX-License-Identifier: Apache-2.0

//! The path `run`: packets through the very programs that the agent has loaded, by `BPF_PROG_TEST_RUN`. What a packet became is
//! read from the packet itself, the counters of drops, and the flow's entry, which says where it goes.

use std::{fs::File, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use weft_abi::{Addr, Affinity, DROP_REASONS, Deliver, DropReason, Flow, FlowKey4, FlowKey6, GATEWAY_MAC, UPLINK};
use weft_dataplane::Maps;
use weft_probe::frames::index_of;

use super::{
    bpf::{self, Drops, Program},
    check::{Seen, Sent},
    frame::{self, Frame, HOPS},
    model::Target,
    site::Site,
    world::{self, From, Mode, Protocol, World},
};
use crate::{hostile::Place as _, shell::Shell as _};

const SHOT: u32 = 2;
const REDIRECT: u32 = 7;
const NEXT: u32 = u32::MAX;

/// The programs and maps of a site's first node, of which the calling thread has become a part.
pub(super) struct Runner {
    maps: Maps,
    drops: Drops,
    flows: u32,
    programs: Programs,
    host: u32,
    uplink: u32,
    uplink_mac: [u8; 6],
    /// Of whoever is on the wire: another node, or the outside.
    wire_mac: [u8; 6],
    before: Vec<u64>,
}

struct Programs {
    from_workload: Program,
    from_host: Program,
    from_uplink: Program,
}

impl Programs {
    fn find(map: u32) -> Result<Self> {
        let find = |name| Program::find(name, map);
        Ok(Self {
            from_workload: find("from_workload")?,
            from_host: find("from_host")?,
            from_uplink: find("from_uplink")?,
        })
    }
}

impl Runner {
    /// Enters the network namespace of the site's first node with the calling thread.
    pub(super) fn enter(site: &Site) -> Result<Self> {
        let node = site.bed.node(1);
        setns(File::open(node.net())?, CloneFlags::CLONE_NEWNET).context("enter the node's network")?;
        let pins = node.machine().path("sys/fs/bpf/weft");
        let maps = Maps::open(&pins).context("open the agent's maps")?;
        let drops = Drops::open(&pins)?;
        let flows = bpf::map_id(&pins.join(format!("{}/maps/{}", weft_abi::PinFolder, weft_abi::map::FLOWS4)))?;
        let programs = Programs::find(flows)?;
        let uplink_mac = crate::hostile::mac_of(&**node, "eth0")?;
        let wire_mac = crate::hostile::mac_of(site.bed.outside(), "eth0")?;
        stand_in(site)?;
        let (host, uplink) = (index_of("weft0")?, index_of("eth0")?);
        Ok(Self { maps, drops, flows, programs, host, uplink, uplink_mac, wire_mac, before: Vec::new() })
    }

    /// After an agent's start, which may have swapped the programs.
    pub(super) fn renew(&mut self) -> Result<()> {
        self.programs = Programs::find(self.flows)?;
        self.host = index_of("weft0")?;
        Ok(())
    }

    /// Forgets every flow, and which backends clients had.
    pub(super) fn clear(&self) -> Result<()> {
        self.maps.flows4().retain(|_, _| false)?;
        self.maps.flows6().retain(|_, _| false)?;
        self.maps.affinities().retain(|_, _| false)?;
        Ok(())
    }

    /// Has so many ticks gone by since clients had the backends that they keep.
    pub(super) fn let_pass(&self, ticks: u32) -> Result<()> {
        let affinities = self.maps.affinities();
        for entry in affinities.iter().filter(|_| ticks != 0).collect::<Vec<_>>() {
            let (client, last) = entry?;
            affinities.insert(&client, &Affinity { last: last.last.wrapping_sub(ticks), ..last })?;
        }
        Ok(())
    }

    /// Sends one frame of `from` and looks what became of it; its Ethernet addresses are set here.
    ///
    /// # Errors
    /// It became something that no packet should: a wrong checksum, a missing entry, an unknown place.
    pub(super) fn send(
        &mut self,
        site: &Site,
        world: &World,
        from: &From,
        wrong_mac: bool,
        mut frame: Frame,
    ) -> Result<Seen> {
        frame.hops = HOPS;
        let (program, ifindex, key_ifindex) = match from {
            From::Pod(id) => {
                let plugged = site.plugged.get(id).with_context(|| format!("{id} is not plugged in"))?;
                frame.macs = [GATEWAY_MAC, plugged.mac];
                (&self.programs.from_workload, plugged.ifindex, plugged.ifindex)
            }
            From::Host => {
                frame.macs = [GATEWAY_MAC, [2, 0, 0, 0, 0, 1]];
                (&self.programs.from_host, self.host, self.host)
            }
            From::Wire => {
                frame.macs = [self.uplink_mac, self.wire_mac];
                (&self.programs.from_uplink, self.uplink, UPLINK)
            }
        };
        if wrong_mac {
            frame.macs[1][5] ^= 0x40;
        }
        self.before = self.drops.read()?;
        let ran = program.run(&frame::build(&frame), ifindex)?;
        match ran.action {
            SHOT => self.dropped(),
            NEXT => Ok(Seen::Kernel),
            // Some who are dropped are told so: their packet comes back as an answer.
            REDIRECT if self.has_told()? => self.dropped(),
            REDIRECT => {
                let out = frame::parse(&ran.packet).context("the packet that goes on")?;
                self.sent(site, world, from, key_ifindex, &frame, &out)
            }
            other => bail!("the program answers {other}"),
        }
    }

    /// Whether a packet was dropped for a reason that its sender is told.
    fn has_told(&self) -> Result<bool> {
        let after = self.drops.read()?;
        let mut moved = after.iter().zip(&self.before).zip(DropReason::ALL);
        Ok(moved.any(|((after, before), reason)| after > before && reason.is_told()))
    }

    /// Which counter moved. Several may: the node has traffic of its own, which is never for the reasons asked about.
    fn dropped(&self) -> Result<Seen> {
        let after = self.drops.read()?;
        let moved: Vec<&str> = after
            .iter()
            .zip(&self.before)
            .zip(DROP_REASONS)
            .filter(|((after, before), (name, _))| after > before && *name != "multicast")
            .map(|(_, (name, _))| *name)
            .collect();
        match moved[..] {
            [one] => Ok(Seen::Dropped(one.to_owned())),
            [] => Ok(Seen::Dropped("multicast".to_owned())),
            _ => Ok(Seen::Dropped(moved.join("+"))),
        }
    }

    fn sent(&self, site: &Site, world: &World, from: &From, ifindex: u32, frame: &Frame, out: &Frame) -> Result<Seen> {
        let flow = self.flow(ifindex, frame)?.context("the packet goes on, and no flow says where")?;
        let (to, expected_mac, hops) = self.target(site, world, &flow, out.destination)?;
        if let Some(mac) = expected_mac {
            ensure!(out.macs[0] == mac, "{to:?} is sent to with the Ethernet address {:x?}", out.macs[0]);
        }
        // The host's own packets have passed none yet.
        let hops = if *from == From::Host { HOPS } else { hops };
        ensure!(out.hops == hops, "{to:?} gets it with {} hops left of {HOPS}", out.hops);
        ensure!(
            (out.protocol, out.reply, out.tcp_flags) == (frame.protocol, frame.reply, frame.tcp_flags),
            "another packet: {out:?}"
        );
        let Frame { destination: address, source, sport, dport: port, .. } = *out;
        Ok(Seen::Sent(Sent { to, address, port, source, sport }))
    }

    fn flow(&self, ifindex: u32, frame: &Frame) -> Result<Option<Flow>> {
        let protocol = frame.protocol.number(frame.source.is_ipv4()).into();
        let (sport, dport) = match (frame.protocol, frame.reply) {
            (Protocol::Echo, false) => (frame.sport, 0),
            (Protocol::Echo, true) => (0, frame.dport),
            _ => (frame.sport, frame.dport),
        };
        let (src, dst) = (Addr::from(frame.source), Addr::from(frame.destination));
        let (sport, dport) = (sport.to_be(), dport.to_be());
        if frame.source.is_ipv4() {
            let key = FlowKey4 { ifindex, src: src.v4_word(), dst: dst.v4_word(), sport, dport, protocol };
            return Ok(self.maps.flows4().get(&key)?);
        }
        Ok(self.maps.flows6().get(&FlowKey6 { ifindex, src, dst, sport, dport, protocol })?)
    }

    /// Where an entry leads, the Ethernet address that must be written, and the hops that are left there: whatever goes on to
    /// another machine has passed a router.
    fn target(
        &self,
        site: &Site,
        world: &World,
        flow: &Flow,
        address: IpAddr,
    ) -> Result<(Target, Option<[u8; 6]>, u8)> {
        let is = |deliver: Deliver| flow.way.deliver == deliver as u8;
        if is(Deliver::Peer) || is(Deliver::Port) {
            let found = site.plugged.iter().find(|(_, plugged)| plugged.ifindex == flow.way.ifindex);
            let (id, plugged) =
                found.with_context(|| format!("it goes to device {}, which is no pod's", flow.way.ifindex))?;
            return Ok((Target::Pod(id.clone()), Some(plugged.mac), HOPS));
        }
        if is(Deliver::Host) {
            ensure!(flow.way.ifindex == self.host, "it goes to the host by device {}", flow.way.ifindex);
            return Ok((Target::Host, None, HOPS));
        }
        if is(Deliver::Tunnel) || is(Deliver::Neighbour) {
            let remote = IpAddr::from(flow.way.remote);
            let node = world.nodes.iter().find(|node| node.addresses.contains(&remote));
            let node = node.with_context(|| format!("it goes to {remote}, which is no node's"))?;
            return Ok((Target::Node(node.name.clone()), None, HOPS - 1));
        }
        ensure!(is(Deliver::Route), "delivery {}", flow.way.deliver);
        ensure!(flow.way.ifindex == self.uplink, "it goes outside by device {}", flow.way.ifindex);
        // Where pods are routed, the host's own routes lead to their nodes.
        let owns = |node: &&world::Node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address));
        let node = world.nodes.iter().find(owns).filter(|_| world.mode == Mode::Native);
        Ok((node.map_or(Target::Outside, |node| Target::Node(node.name.clone())), None, HOPS - 1))
    }
}

/// The outside answers for the nodes that are only objects: the agent keeps the Ethernet addresses of its neighbours.
fn stand_in(site: &Site) -> Result<()> {
    for number in super::generate::ELSEWHERE {
        for address in world::node_addresses(number) {
            let family = if address.is_ipv4() { "" } else { "nodad" };
            let length = if address.is_ipv4() { 32 } else { 128 };
            site.bed.outside().sh(&format!("ip addr add {address}/{length} dev eth0 {family}"))?.ok()?;
        }
    }
    Ok(())
}
