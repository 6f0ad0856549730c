// SPDX-License-Identifier: Apache-2.0

//! Nodes of the programs' own, and one value of a load on them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use weft_abi::{Counter, DropReason, generation};
use weft_dataplane::{
    Dataplane, MapSizes, Options,
    bench::{Bench, Subject, Traffic},
};

use super::super::statistic::{Pair, Side, in_turn};
use super::{
    KI, Load, Packets, State,
    site::{CLIENT, CLIENT_IP, OVERLAY, PEER, SERVER_IP, VIP, configure, enter_namespaces, packet, traffic},
};

/// Runs that make one value (the kernel tells whole nanoseconds), by the order in which they meet established flows; these were
/// made in order 0.
const ORDERS: [u32; 4] = [0x5a5b, 0xa6d5, 0x6b35, 0xd3a9];
/// Packets of a run of few flows.
const PACKETS: u32 = 32 * KI;
/// Entries of the large flow tables, and of the small one.
const LARGE: u32 = 512 * KI;
const SMALL: u32 = 16 * KI;

/// `TC_ACT_REDIRECT`, `TC_ACT_OK`.
const REDIRECT: u32 = 7;
const OK: u32 = 0;

/// Whose flows share tables: nobody's entries lie in the way of another's.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Tables {
    PodPod,
    ClusterIp,
    V6,
    Overlay,
    Cold,
    Full,
}

impl Tables {
    fn of(load: &Load) -> Self {
        match (load.state, load.packets) {
            (State::Cold, _) => Self::Cold,
            (State::Full, _) => Self::Full,
            (_, Packets::V6) => Self::V6,
            (_, Packets::Far) => Self::Overlay,
            (_, Packets::V4) if load.dst == VIP => Self::ClusterIp,
            (_, Packets::V4) => Self::PodPod,
        }
    }

    fn sizes(self) -> MapSizes {
        let (flows4, flows6) = match self {
            Self::PodPod | Self::ClusterIp | Self::Overlay | Self::Cold => (LARGE, SMALL),
            Self::V6 => (SMALL, LARGE),
            Self::Full => (SMALL, SMALL),
        };
        MapSizes { flows4, flows6, events_bytes: 1 << 22, ..MapSizes::default() }
    }
}

/// A node for each set of tables.
pub(super) struct Machines {
    pins: PathBuf,
    machines: BTreeMap<Tables, Machine>,
}

impl Machines {
    pub(super) fn new() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this benchmark loads eBPF programs: run it as root");
        Ok(Self { pins: enter_namespaces()?, machines: BTreeMap::new() })
    }

    /// Nanoseconds a packet of both loads in one round. They take turns several times, so that what else the machine does, which
    /// comes and goes within a second, falls on both.
    pub(super) fn round(&mut self, round: usize, loads: &Pair<Load>) -> Result<Pair<f64>> {
        let mut run = |side: Side, load| Ok::<_, anyhow::Error>((side, self.machine(load)?.begin(load)?));
        let mut runs = [run(Side::Baseline, &loads.baseline)?, run(Side::Path, &loads.value)?];
        for (number, order) in ORDERS.iter().enumerate() {
            in_turn(round + number, |side| {
                let run = runs.iter_mut().find(|(of, _)| *of == side).map(|(_, run)| run).context("no such side")?;
                self.machine(&run.load)?.pass(run, *order)
            })?;
        }
        let [baseline, value] = runs.map(|(_, run)| self.machine(&run.load)?.end(&run));
        Ok(Pair { value: value?, baseline: baseline? })
    }

    fn machine(&mut self, load: &Load) -> Result<&mut Machine> {
        let tables = Tables::of(load);
        Ok(match self.machines.entry(tables) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(none) => none.insert(Machine::new(&self.pins.join(format!("{tables:?}")), tables.sizes())?),
        })
    }
}

/// A load's part in a round.
struct Run {
    load: Load,
    packet: Vec<u8>,
    traffic: Traffic,
    /// Counted by its own packets alone.
    counted: Counts,
    sum: f64,
}

/// What the programs have counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Counts {
    hits: u64,
    misses: u64,
    redecided: u64,
    dropped: u64,
    lost: u64,
}

impl Counts {
    fn add_difference(&mut self, before: Self, after: Self) {
        self.hits += after.hits - before.hits;
        self.misses += after.misses - before.misses;
        self.redecided += after.redecided - before.redecided;
        self.dropped += after.dropped - before.dropped;
        self.lost += after.lost - before.lost;
    }
}

/// The loaded programs and what they know of.
struct Machine {
    dataplane: Dataplane,
    bench: Bench,
}

impl Machine {
    fn new(pins: &Path, sizes: MapSizes) -> Result<Self> {
        let dataplane = Dataplane::open(&Options { sizes, ..Options::new(pins) })?;
        configure(&dataplane)?;
        let mut bench = Bench::open(&dataplane)?;
        let every = Traffic { flows: 64 * KI, ..traffic() };
        bench.prepare_lru(&every, u32::from_ne_bytes(CLIENT_IP), u32::from_ne_bytes(SERVER_IP), 8080)?;
        Ok(Self { dataplane, bench })
    }

    /// Puts the tables into the load's state: the same packets once before, which are no part of the value.
    fn begin(&mut self, load: &Load) -> Result<Run> {
        let (packet, traffic) = (packet(load), traffic_of(load));
        if load.state == State::Cold {
            self.dataplane.maps().flows4().retain(|_, _| false)?;
            self.bench.forget_inserted()?;
        } else {
            self.run(load.subject, &traffic, &packet, load.flows.max(PACKETS))?;
            self.drain()?;
        }
        Ok(Run { load: *load, packet, traffic, counted: Counts::default(), sum: 0.0 })
    }

    /// One of the runs that make the value.
    fn pass(&mut self, run: &mut Run, order: u32) -> Result<()> {
        let (load, packets) = (run.load, packets_of(&run.load));
        if !load.is_new() {
            run.traffic.seed = order << 16;
        }
        if load.state == State::EpochMoved {
            let generations = self.dataplane.maps().generations();
            generations.set(generation::EPOCH, &generations.get(generation::EPOCH)?.wrapping_add(1))?;
        }
        let before = self.counts()?;
        let (action, alone) = self.bench.run_empty(&run.packet, CLIENT, packets)?;
        ensure!(action == OK, "empty: action {action}");
        let making = self.run(Subject::Empty, &run.traffic, &run.packet, packets)?;
        let all = self.run(load.subject, &run.traffic, &run.packet, packets)?;
        run.sum += all - making + alone.as_nanos() as f64;
        run.traffic.seed = self.bench.last_flow()?;
        run.counted.add_difference(before, self.counts()?);
        self.drain()
    }

    fn counts(&self) -> Result<Counts> {
        let maps = self.dataplane.maps();
        let dropped = DropReason::ALL.iter().map(|reason| Ok(maps.dropped(*reason)?.packets)).sum::<Result<u64>>()?;
        Ok(Counts {
            hits: maps.counted(Counter::FlowHits)?,
            misses: maps.counted(Counter::FlowMisses)?,
            redecided: maps.counted(Counter::FlowsRedecided)?,
            dropped,
            lost: maps.counted(Counter::EventsLost)?,
        })
    }

    /// The value, if every packet went the way that it is measured on.
    fn end(&self, run: &Run) -> Result<f64> {
        let Run { load, counted, .. } = run;
        let packets = u64::from(packets_of(load)) * ORDERS.len() as u64;
        let is_weft = matches!(load.subject, Subject::FromWorkload | Subject::FromOverlay);
        // A full table gives up a connection of the new one's set, whichever was not answered: of four times as many as it holds, one in
        // twelve is still there when it comes again, and its packet is a cheap one.
        let early = if load.state == State::Full { counted.hits.min(packets / 8) } else { 0 };
        let expected = match (is_weft, load.is_new()) {
            (false, _) => Counts::default(),
            (true, false) => Counts { hits: packets, ..Counts::default() },
            (true, true) => Counts { hits: early, misses: packets - early, ..Counts::default() },
        };
        ensure!(*counted == expected, "{load:?}: counted {counted:?} instead of {expected:?}");
        Ok(run.sum / ORDERS.len() as f64)
    }

    fn run(&mut self, subject: Subject, traffic: &Traffic, packet: &[u8], packets: u32) -> Result<f64> {
        let ifindex = if traffic.tunnel.is_some() { OVERLAY } else { CLIENT };
        let (action, time) = self.bench.run(subject, traffic, packet, ifindex, packets)?;
        let expected = if subject == Subject::Empty { OK } else { REDIRECT };
        ensure!(action == expected, "{subject:?}: action {action} instead of {expected}");
        Ok(time.as_nanos() as f64)
    }

    /// Empties the event ring, so that a new flow's event finds room.
    fn drain(&self) -> Result<()> {
        let mut events = self.dataplane.events()?;
        while events.next().is_some() {}
        Ok(())
    }
}

/// Packets of one of the runs: all established flows, else a quarter of the new ones.
fn packets_of(load: &Load) -> u32 {
    if load.is_new() { load.flows / ORDERS.len() as u32 } else { load.flows.max(PACKETS) }
}

fn traffic_of(load: &Load) -> Traffic {
    let tunnel = (load.packets == Packets::Far).then_some(PEER);
    Traffic { flows: load.flows, dst: u32::from_ne_bytes(load.dst), tunnel, ..traffic() }
}
