// SPDX-License-Identifier: Apache-2.0

//! The paths of the wire: real packets between the pods, hosts and the outside of two nodes. Frames are sent and seen where a
//! container's kernel or a VMM would, and the pods' own kernels know no address, so that nobody answers but the oracle.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use weft_abi::{DROP_REASONS, GATEWAY_MAC};
use weft_dataplane::Maps;
use weft_probe::frames::{FrameReceiver, FrameSender, Offload};
use weft_test_vmm::HeldGuest;

use super::{
    bpf::Drops,
    check::{class, source_fits},
    clients::{Clients, backend_of},
    frame::{self, ACK, Frame, HOPS, SYN, SYN_ACK},
    known::{KNOWN, Known, Lookalikes},
    model::{self, Final, Quirks, Reason, Spot, Verdict},
    session::{Count, Failure, State, may_be_over},
    shrink::Ground,
    site::{HERE, Plugged, Site, is_anew},
    world::{self, From, Mode, Packet, PortKind, Protocol, World},
};
use crate::{
    hostile::{OpenTap, Place as _, mac_of},
    shell::Shell as _,
    wait::until_ok,
};

/// How long a packet that should arrive is waited for, and one that should not.
const PATIENCE: Duration = Duration::from_millis(1500);
const GRACE: Duration = Duration::from_millis(4);
/// How long a tap may take to be up.
const PATIENCE_UP: Duration = Duration::from_secs(10);
/// Connections that go on into the next state.
const KEPT: usize = 12;

/// Where frames are sent from and seen.
enum Tap {
    Socket(FrameSender, FrameReceiver),
    Vmm(OpenTap),
    Guest(HeldGuest),
}

impl Tap {
    fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = match self {
            Self::Socket(sender, _) => sender.send(frame, Offload::default()),
            Self::Vmm(tap) => tap.send(frame, Offload::default()),
            Self::Guest(guest) => return guest.send(frame).context("send a frame"),
        };
        match sent {
            // A program at the device's egress has dropped it.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            sent => sent.context("send a frame"),
        }
    }

    fn next(&self) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Socket(_, receiver) => receiver.receive(Duration::ZERO),
            Self::Vmm(tap) => tap.receive(),
            Self::Guest(guest) => return guest.receive().context("see a frame"),
        }
        .context("see a frame")
    }
}

/// A frame that arrived.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Arrival {
    spot: Spot,
    source: IpAddr,
    sport: u16,
    address: IpAddr,
    port: u16,
}

/// What a packet did.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Seen {
    Arrived(Vec<Arrival>),
    /// Which counters of drops moved.
    Dropped(Vec<&'static str>),
}

#[derive(Clone, Debug)]
struct Standing {
    packet: Packet,
    backend: Option<(IpAddr, u16)>,
    arrival: Arrival,
    last: Instant,
}

/// Two nodes, everybody's ends in hand.
pub(super) struct Wire {
    // Before the site: taps are let go of before they go.
    taps: BTreeMap<String, ((String, u32), Tap)>,
    hosts: Vec<(String, Tap, Tap, [u8; 6])>,
    outside: Tap,
    outside_mac: [u8; 6],
    maps: Vec<Maps>,
    drops: Vec<Drops>,
    standing: Vec<Standing>,
    lookalikes: Lookalikes,
    clients: Clients,
    /// Nothing depends on what was before.
    is_new: bool,
    pub(super) site: Site,
    pub(super) count: Count,
}

impl Wire {
    pub(super) fn new(site: Site) -> Result<Self> {
        let outside = site.bed.outside();
        let tap = Tap::Socket(outside.sender("eth0", false)?, outside.receiver("eth0")?);
        let text = std::fs::read_to_string(outside.machine().path("sys/class/net/eth0/address"))?;
        let outside_mac = text.trim().parse::<weft_api::Mac>()?.0;
        let (mut hosts, mut maps, mut drops) = (Vec::new(), Vec::new(), Vec::new());
        for node in site.bed.nodes() {
            let open = |device| -> Result<Tap> { Ok(Tap::Socket(node.sender(device, false)?, node.receiver(device)?)) };
            hosts.push((node.name().to_owned(), open("weft0")?, open("eth0")?, mac_of(&**node, "eth0")?));
            let pins = node.machine().path("sys/fs/bpf/weft");
            maps.push(Maps::open(&pins)?);
            drops.push(Drops::open(&pins)?);
        }
        Ok(Self {
            taps: BTreeMap::new(),
            hosts,
            outside: tap,
            outside_mac,
            maps,
            drops,
            standing: Vec::new(),
            lookalikes: Lookalikes::default(),
            clients: Clients::default(),
            is_new: true,
            site,
            count: Count::default(),
        })
    }

    /// Opens the ends of pods that are new, and closes those of pods that are gone.
    fn open_taps(&mut self) -> Result<()> {
        let now: BTreeMap<String, (String, u32)> = self
            .site
            .plugged
            .iter()
            .map(|(id, plugged)| (id.clone(), (plugged.node.clone(), plugged.ifindex)))
            .collect();
        self.taps.retain(|id, (device, _)| now.get(id) == Some(device));
        for (id, plugged) in &self.site.plugged {
            if !self.taps.contains_key(id) {
                let tap = self.open_tap(plugged).with_context(|| format!("take the end of {id}"))?;
                self.taps.insert(id.clone(), (now[id].clone(), tap));
            }
        }
        Ok(())
    }

    fn open_tap(&self, plugged: &Plugged) -> Result<Tap> {
        if plugged.kind == PortKind::Veth {
            let attachment = &plugged.attachment;
            let node = attachment.node();
            let quiet = "ip address flush dev eth0; echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
            node.machine().sh(Some(std::path::Path::new(&attachment.netns)), quiet)?.ok()?;
            return Ok(Tap::Socket(attachment.sender("eth0", false)?, attachment.receiver("eth0")?));
        }
        if plugged.kind == PortKind::Vhost {
            let side = plugged.attachment.interface(true)?;
            let socket = side["socketPath"].as_str().context("the guest's side has no socketPath in the result")?;
            let machine = plugged.attachment.node().machine();
            return Ok(Tap::Guest(HeldGuest::connect(&machine.path(socket))?));
        }
        let side = plugged.attachment.interface(false)?;
        let name = side["name"].as_str().context("the tap has no name in the result")?.to_owned();
        let (node, opened) = (plugged.attachment.node(), name.clone());
        let tap = node.inside(move || OpenTap::open(&opened))?;
        // It has a carrier from now on, and the kernel takes a while to give it a queue: until then it loses what it is sent.
        let state = format!("cd /sys/class/net/{name} && [ $(cat operstate) = up ] && cat carrier");
        until_ok("the tap is up", PATIENCE_UP, || node.sh(&state)?.ok())?;
        Ok(Tap::Vmm(tap))
    }

    fn node_of(&self, packet: &Packet, world: &World) -> String {
        match &packet.from {
            From::Pod(id) => world.pod(id).map_or_else(|| HERE.to_owned(), |pod| pod.node.clone()),
            From::Host | From::Wire => HERE.to_owned(),
        }
    }

    fn drops(&self) -> Result<Vec<u64>> {
        Ok(self.drops.iter().map(Drops::read).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Sends a frame and watches everybody, until it has arrived or was dropped.
    fn exchange(&self, from: &From, wrong_mac: bool, mut frame: Frame) -> Result<Seen> {
        let (tap, macs) = match from {
            From::Pod(id) => {
                let plugged = self.site.plugged.get(id).with_context(|| format!("{id} is not plugged in"))?;
                (&self.taps.get(id).context("its end is not open")?.1, [GATEWAY_MAC, plugged.mac])
            }
            From::Host => (&self.hosts[0].1, [GATEWAY_MAC, [2, 0, 0, 0, 0, 1]]),
            From::Wire => (&self.outside, [self.hosts[0].3, self.outside_mac]),
        };
        frame.macs = macs;
        if wrong_mac {
            frame.macs[1][5] ^= 0x40;
        }
        // What is left of earlier packets.
        self.arrivals(false, |_| false)?;
        let before = self.drops()?;
        tap.send(&frame::build(&frame))?;
        // One at a time is under way: protocol and kind tell it from what kernels say of themselves.
        let meant = |seen: &Frame| {
            (seen.protocol, seen.reply, seen.tcp_flags) == (frame.protocol, frame.reply, frame.tcp_flags)
        };
        let until = Instant::now() + PATIENCE;
        loop {
            let mut seen = self.arrivals(*from != From::Wire, meant)?;
            let moved = self.moved(&before)?;
            if !seen.is_empty() || !moved.is_empty() {
                std::thread::sleep(GRACE);
                seen.extend(self.arrivals(*from != From::Wire, meant)?);
                return Ok(if seen.is_empty() { Seen::Dropped(moved) } else { Seen::Arrived(seen) });
            }
            if Instant::now() > until {
                return Ok(Seen::Dropped(Vec::new()));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn moved(&self, before: &[u64]) -> Result<Vec<&'static str>> {
        let names = DROP_REASONS.iter().map(|(name, _)| *name).cycle();
        let after = self.drops()?;
        let moved = after.iter().zip(before).zip(names).filter(|((after, before), _)| after > before);
        Ok(moved.map(|(_, name)| name).filter(|name| class(name).is_some()).collect())
    }

    /// By the uplink a host's packets are seen before a program says what becomes of them: only what left another node counts.
    fn arrivals(&self, of_nodes: bool, meant: impl Fn(&Frame) -> bool) -> Result<Vec<Arrival>> {
        let mut seen = Vec::new();
        for (id, (_, tap)) in &self.taps {
            let mac = self.site.plugged.get(id).map(|plugged| plugged.mac);
            self.look(tap, &meant, &mut seen, |frame| (Some(frame.macs[0]) == mac).then(|| Spot::Pod(id.clone())))?;
        }
        for (name, own, uplink, mac) in &self.hosts {
            self.look(own, &meant, &mut seen, |_| Some(Spot::Host(name.clone())))?;
            let addressed = |frame: &Frame| {
                let node = self.site.bed.nodes().iter().find(|node| node.name() == name);
                let here = node.is_some_and(|node| node.address_for(frame.destination) == frame.destination);
                let masqueraded =
                    self.site.bed.nodes().iter().any(|node| node.address_for(frame.source) == frame.source);
                (frame.macs[0] == *mac && here && masqueraded && of_nodes).then(|| Spot::Host(name.clone()))
            };
            self.look(uplink, &meant, &mut seen, addressed)?;
        }
        let mac = self.outside_mac;
        self.look(&self.outside, &meant, &mut seen, |frame| (frame.macs[0] == mac).then_some(Spot::Outside))?;
        Ok(seen)
    }

    /// Frames that are not the oracle's are not looked at.
    fn look(
        &self,
        tap: &Tap,
        meant: impl Fn(&Frame) -> bool,
        seen: &mut Vec<Arrival>,
        spot: impl Fn(&Frame) -> Option<Spot>,
    ) -> Result<()> {
        while let Some(bytes) = tap.next()? {
            let Some(frame) = frame::parse(&bytes).ok().filter(&meant) else { continue };
            if let Some(spot) = spot(&frame) {
                let Frame { source, sport, destination: address, dport: port, .. } = frame;
                seen.push(Arrival { spot, source, sport, address, port });
            }
        }
        Ok(())
    }

    fn forward(&mut self, packet: &Packet, tcp_flags: u8) -> Result<Seen> {
        let tcp_flags = if packet.protocol == Protocol::Tcp { tcp_flags } else { 0 };
        let Packet { source, destination, protocol, sport, dport, .. } = *packet;
        let frame = Frame {
            macs: [[0; 6]; 2],
            source,
            destination,
            protocol,
            sport,
            dport,
            hops: HOPS,
            tcp_flags,
            reply: false,
        };
        let seen = self.exchange(&packet.from, packet.wrong_mac, frame)?;
        match &seen {
            Seen::Arrived(arrivals) => {
                if let Some(arrival) = arrivals.first() {
                    self.lookalikes.note(packet, (arrival.source, arrival.sport), (arrival.address, arrival.port));
                }
            }
            // What the receiver's node refuses, the sender's node has let go: it has an entry.
            Seen::Dropped(reasons) if reasons.contains(&"policy-ingress") => {
                let [client, meant] = [(packet.source, packet.sport), (packet.destination, packet.dport)];
                self.lookalikes.note(packet, client, meant);
            }
            Seen::Dropped(_) => {}
        }
        Ok(seen)
    }

    /// What would have been seen if no other connection looked the same: the oracle sees one at a time, and one of two leaves under
    /// another port.
    fn under_own_port(&self, packet: &Packet, seen: &Seen) -> Seen {
        let mut seen = seen.clone();
        if let Seen::Arrived(arrivals) = &mut seen {
            let own = (packet.source, packet.sport);
            let moved = |one: &&mut Arrival| {
                one.source == packet.source && self.lookalikes.has(packet, own, (one.address, one.port))
            };
            arrivals.iter_mut().filter(moved).for_each(|one| one.sport = packet.sport);
        }
        seen
    }

    /// What was seen beside what the oracle says; the arrival if there is one.
    fn judge(
        &mut self,
        world: &World,
        packet: &Packet,
        seen: &Seen,
        oracle: impl Fn(Quirks) -> Vec<Final>,
    ) -> Result<Option<Arrival>, String> {
        let expected = oracle(Quirks::default());
        let plain = self.under_own_port(packet, seen);
        let fits = |finals: &[Final]| finals.iter().any(|one| fits(&plain, one, packet, world));
        let known = KNOWN.iter().find(|known| fits(&oracle((known.quirk)())));
        if !fits(&expected) {
            let Some(known) = known else { return Err(format!("seen {seen:?}, expected one of {expected:?}")) };
            self.book_known(known);
        }
        self.count.passed += 1;
        let word = match seen {
            Seen::Arrived(arrivals) => match arrivals.first().map(|arrival| &arrival.spot) {
                Some(Spot::Pod(id)) => kind(world, id),
                Some(Spot::Host(_)) => "Host",
                _ => "Outside",
            },
            Seen::Dropped(moved) => moved.first().copied().unwrap_or("nowhere"),
        };
        let from = match &packet.from {
            From::Pod(id) => kind(world, id),
            From::Host => "Host",
            From::Wire => "Outside",
        };
        *self.count.verdicts.entry(format!("wire: {from} to {word}")).or_default() += 1;
        Ok(match seen {
            Seen::Arrived(arrivals) => arrivals.first().cloned(),
            Seen::Dropped(_) => None,
        })
    }

    fn book_known(&mut self, known: &'static Known) {
        *self.count.known.entry(known.name).or_default() += 1;
    }

    /// The answer of a pod or of the outside; hosts answer by themselves.
    fn answer(&self, packet: &Packet, here: &str, arrival: &Arrival) -> Result<Option<String>> {
        let from = match &arrival.spot {
            Spot::Pod(id) => From::Pod(id.clone()),
            Spot::Outside if here == HERE => From::Wire,
            Spot::Outside | Spot::Host(_) => return Ok(None),
        };
        let frame = Frame {
            macs: [[0; 6]; 2],
            source: arrival.address,
            destination: arrival.source,
            protocol: packet.protocol,
            sport: arrival.port,
            dport: arrival.sport,
            hops: HOPS,
            tcp_flags: if packet.protocol == Protocol::Tcp { SYN_ACK } else { 0 },
            reply: packet.protocol == Protocol::Echo,
        };
        let seen = self.exchange(&from, false, frame)?;
        let spot = match &packet.from {
            From::Pod(id) => Spot::Pod(id.clone()),
            From::Host => Spot::Host(HERE.to_owned()),
            From::Wire => Spot::Outside,
        };
        let back = Arrival {
            spot,
            source: packet.destination,
            sport: packet.dport,
            address: packet.source,
            port: packet.sport,
        };
        // The outside has a kernel of its own, which answers an echo too.
        let right = matches!(&seen, Seen::Arrived(all) if !all.is_empty() && all.iter().all(|one| *one == back));
        Ok((!right).then(|| format!("its answer: {seen:?}, and not {back:?}; it had come as {arrival:?}")))
    }

    fn again(&mut self, world: &World, standing: &mut Standing) -> Result<Option<String>> {
        let packet = standing.packet.clone();
        let here = self.node_of(&packet, world);
        let began = Instant::now();
        let seen = self.forward(&packet, ACK)?;
        let backends = (standing.backend, self.clients.backend(world, &here, &packet));
        let oracle = |quirks| {
            let verdicts = model::answer_standing(world, &here, &packet, backends, quirks);
            finals(world, &here, &packet, verdicts)
        };
        let arrival = match self.judge(world, &packet, &seen, oracle) {
            Ok(arrival) => arrival,
            Err(text) => return Ok(Some(text)),
        };
        let now = arrival.as_ref().and_then(|arrival| backend_of(&packet, arrival.address, arrival.port));
        self.clients.note_standing((world, &here, &packet), standing.backend, now, began);
        let Some(arrival) = arrival else { return Ok(None) };
        let same = (&arrival.spot, arrival.address, arrival.port)
            == (&standing.arrival.spot, standing.arrival.address, standing.arrival.port);
        if same && arrival != standing.arrival {
            return Ok(Some(format!("it comes as {arrival:?} now, as {:?} before", standing.arrival)));
        }
        if same && let Some(text) = self.answer(&packet, &here, &arrival)? {
            return Ok(Some(text));
        }
        standing.backend = now;
        (standing.arrival, standing.last) = (arrival, Instant::now());
        self.standing.push(standing.clone());
        Ok(None)
    }
}

impl Ground for Wire {
    fn begin(&mut self) -> Result<()> {
        self.standing.clear();
        self.lookalikes.clear();
        self.clients.clear();
        self.is_new = true;
        for maps in &self.maps {
            maps.flows4().retain(|_, _| false)?;
            maps.flows6().retain(|_, _| false)?;
            maps.affinities().retain(|_, _| false)?;
        }
        Ok(())
    }

    fn enter(&mut self, state: &State) -> Result<()> {
        let before = self.site.devices();
        // The ends of what goes are let go of first.
        let stays = |id: &String| state.world.pod(id).is_some() && state.event.replug.as_ref() != Some(id);
        self.taps.retain(|id, _| stays(id));
        if std::mem::take(&mut self.is_new) {
            self.site.apply_anew(&state.world)
        } else {
            self.site.apply(&state.world)
        }?;
        if let Some(id) = &state.event.replug {
            self.site.plug_anew(id, &state.world)?;
        }
        if state.event.restart {
            self.site.restart(1, &state.world)?;
        }
        self.open_taps()?;
        self.clients.enter(&state.world);
        let after = self.site.devices();
        let anew = |address| is_anew(&before, &after, address);
        self.standing.retain(|standing| !anew(standing.packet.source) && !anew(standing.arrival.address));
        Ok(())
    }

    fn standing(&self) -> usize {
        self.standing.len()
    }

    fn go_on(&mut self, world: &World) -> Result<Option<Failure>> {
        for mut standing in std::mem::take(&mut self.standing) {
            let packet = standing.packet.clone();
            if !self.can_send(&packet.from) {
                continue;
            }
            if may_be_over(&packet, standing.last) {
                *self.count.verdicts.entry("standing: not asked, too late".to_owned()).or_default() += 1;
                continue;
            }
            if let Some(Failure { packet, text }) = Failure::of(&packet, self.again(world, &mut standing)) {
                return Ok(Some(Failure { packet, text: format!("a standing connection: {text}") }));
            }
        }
        Ok(None)
    }

    fn can_send(&self, from: &From) -> bool {
        match from {
            From::Pod(id) => self.taps.contains_key(id),
            From::Host | From::Wire => true,
        }
    }

    fn open(&mut self, world: &World, packet: &Packet) -> Result<Option<String>> {
        // Of a world that was made smaller: what nobody would see there says nothing.
        if !is_seen(world, packet)? {
            return Ok(None);
        }
        let here = self.node_of(packet, world);
        let began = Instant::now();
        let seen = self.forward(packet, SYN)?;
        let last = self.clients.backend(world, &here, packet);
        let oracle = |quirks| finals(world, &here, packet, model::answer(world, &here, packet, last, quirks));
        let arrival = match self.judge(world, packet, &seen, oracle) {
            Ok(arrival) => arrival,
            Err(text) => return Ok(Some(text)),
        };
        let backend = arrival.as_ref().and_then(|arrival| backend_of(packet, arrival.address, arrival.port));
        if let Some(text) = self.clients.note(world, &here, packet, backend, began) {
            return Ok(Some(text));
        }
        let Some(arrival) = arrival else { return Ok(None) };
        if let Some(text) = self.answer(packet, &here, &arrival)? {
            return Ok(Some(text));
        }
        let next = self.forward(packet, ACK)?;
        if next != Seen::Arrived(vec![arrival.clone()]) {
            return Ok(Some(format!("the next packet: {next:?}, the first: {arrival:?}")));
        }
        if self.standing.len() < KEPT {
            self.standing.push(Standing { packet: packet.clone(), backend, arrival, last: Instant::now() });
        }
        Ok(None)
    }

    fn count(&mut self) -> &mut Count {
        &mut self.count
    }
}

/// What a pod is, for the counts of a run.
fn kind(world: &World, id: &str) -> &'static str {
    match world.pod(id).map(|pod| pod.kind) {
        Some(PortKind::Tap) => "guest (tap)",
        Some(PortKind::Vhost) => "guest (vhost-user)",
        Some(PortKind::Veth) | None => "Pod",
    }
}

fn fits(seen: &Seen, expected: &Final, packet: &Packet, world: &World) -> bool {
    match (seen, expected) {
        (Seen::Dropped(moved), Final::Dropped(reason)) => moved.iter().any(|name| class(name) == Some(*reason)),
        (Seen::Dropped(_), Final::Nowhere) => true,
        (Seen::Arrived(arrivals), Final::At { spot, address, port, source, node }) => {
            let [arrival] = &arrivals[..] else { return false };
            let source_fits = source_fits(*source, (arrival.source, arrival.sport), packet, world, node);
            (&arrival.spot, arrival.address, arrival.port) == (spot, *address, *port) && source_fits
        }
        _ => false,
    }
}

/// As [`model::end_to_end`]. Where pods are routed, the other node is a neighbour with an Ethernet address of its own, and the outside
/// has another one: it speaks for none of that node's pods (`checkNeighbours`).
fn finals(world: &World, here: &str, packet: &Packet, verdicts: Vec<Verdict>) -> Vec<Final> {
    let of_neighbour =
        |node: &world::Node| node.name != here && node.pod_cidrs.iter().any(|cidr| cidr.contains(&packet.source));
    if packet.from == From::Wire && world.mode == Mode::Native && world.nodes.iter().any(of_neighbour) {
        return vec![Final::Dropped(Reason::Source)];
    }
    model::end_to_end(world, here, packet, verdicts)
}

/// Whether a packet's way ends where somebody looks, whatever becomes of it.
pub(super) fn is_seen(world: &World, packet: &Packet) -> Result<bool> {
    let here = match &packet.from {
        From::Pod(id) => world.pod(id).context("no such pod")?.node.clone(),
        From::Host | From::Wire => HERE.to_owned(),
    };
    // Where pods are routed, hosts reach them by themselves.
    if packet.from == From::Host && world.mode == Mode::Native && !model::is_service(packet.destination) {
        return Ok(false);
    }
    let finals = finals(world, &here, packet, model::answer(world, &here, packet, None, Quirks::default()));
    ensure!(!finals.is_empty(), "no answer");
    // Answers to whom the wire pretends to be go to him.
    let pretends = packet.from == From::Wire && !model::is_outside(packet.source);
    let unseen = |found: &Final| match found {
        Final::Nowhere => true,
        Final::At { .. } => pretends,
        Final::Dropped(_) => false,
    };
    Ok(!finals.iter().any(unseen))
}
