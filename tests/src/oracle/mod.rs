// SPDX-License-Identifier: Apache-2.0

//! The oracle: for random worlds of Kubernetes objects it says what must become of a packet, and compares that with what the real
//! programs and devices do.
//!
//! | File | What it does |
//! |---|---|
//! | `world` | objects and packets, as types of its own |
//! | `model` | what the API's text promises for a packet; pure |
//! | `generate`, `aim` | random worlds, changes, packets |
//! | `manifest`, `site` | a world put into practice on simulated nodes |
//! | `run`, `bpf`, `frame` | packets through the loaded programs |
//! | `wire` | real packets between two nodes |
//! | `session`, `check`, `known` | cases, what was seen beside what may be, and what is known to be wrong |
//! | `clients` | which backends clients had that keep them |
//! | `shrink` | a failure made small, in a file that replays |
//!
//! What the oracle does not tell apart: a packet of which nothing more is seen, and one that is refused with an answer of the
//! dataplane's own (RST, ICMP unreachable, as kube-proxy's REJECT). Both are a drop with its reason: whether the sender is told is
//! not its question.

mod aim;
mod bpf;
mod check;
mod clients;
mod frame;
mod generate;
mod known;
mod manifest;
mod model;
mod run;
mod session;
mod shrink;
mod site;
mod wire;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

use self::{
    aim::FreshPorts,
    generate::Size,
    session::{Count, Event, Session, State},
    shrink::{Failing, Ground, Replay},
    site::{HERE, Site},
    wire::Wire,
    world::{Mode, Packet, PortKind, World},
};
use crate::{binaries::Binaries, random::Random};

/// Packets in one state at most, those of standing connections among them.
const PER_STATE: usize = 100;
/// States that follow from each other; then everything is new.
const CHAIN: usize = 15;
/// Of a hundred states, those that begin with a new agent. A start costs seconds, nearly all of them the kernel's verifier's: the
/// first chains have many, those of a long run fewer, which are more than the first ones' all the same.
const RESTARTS: usize = 4;
const RESTARTS_LATER: usize = 1;
const FIRST_CHAINS: usize = 20;
/// The same on a wire.
const PER_WIRE_STATE: usize = 40;
const WIRE_CHAIN: usize = 6;
/// Failures after which a run ends.
const ENOUGH: u64 = 10;

/// How packets go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum OraclePath {
    /// Through the programs that an agent has loaded, by `BPF_PROG_TEST_RUN`.
    Run,
    /// Between containers.
    Veth,
    /// Between guests on taps, and containers.
    Tap,
    /// Between guests on vhost-user sockets, and containers.
    Vhost,
}

impl OraclePath {
    fn kinds(self) -> Vec<PortKind> {
        match self {
            Self::Run | Self::Veth => vec![PortKind::Veth],
            Self::Tap => vec![PortKind::Tap, PortKind::Veth],
            Self::Vhost => vec![PortKind::Vhost, PortKind::Veth],
        }
    }
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct OracleOptions {
    /// How many packets.
    pub cases: u64,
    /// Which sequence.
    pub seed: u64,
    /// Nodes that work at the same time; an even number.
    pub jobs: usize,
    /// Agent, plugin and CLI of another build, which are in this folder.
    pub programs: Option<PathBuf>,
    /// The folder for files of failures; none: failures are neither shrunk nor kept, and the first one ends the run.
    pub failures: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OracleReport {
    /// Packets that did as the oracle says.
    pub passed: u64,
    /// Packets that did not.
    pub failed: u64,
    /// Of those that passed: known not to be as they should, by name.
    pub known: Vec<(String, u64)>,
    /// How often each answer was right.
    pub verdicts: Vec<(String, u64)>,
    /// What failed, in words.
    pub failures: Vec<String>,
}

/// What the workers share.
struct Board {
    cases: AtomicU64,
    stop: AtomicBool,
    report: Mutex<(Count, Vec<String>)>,
}

/// Compares on the path `run`: packets through the loaded programs.
///
/// # Errors
/// A world could not be put into practice; failures of packets are in the report.
pub fn oracle(options: &OracleOptions) -> Result<OracleReport> {
    let binaries = binaries(options.programs.as_deref())?;
    let board = Board { cases: AtomicU64::new(0), stop: AtomicBool::new(false), report: Mutex::default() };
    let jobs = options.jobs.max(2).next_multiple_of(2);
    let (all, shared) = (&binaries, &board);
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..jobs).map(|worker| scope.spawn(move || work(worker, jobs, options, all, shared))).collect();
        let results = workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?);
        // Every one is waited for before an error of one is told.
        results.collect::<Vec<Result<()>>>().into_iter().collect::<Result<()>>()
    })?;
    let (count, failures) = board.report.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(report(count, failures))
}

fn binaries(programs: Option<&Path>) -> Result<Binaries> {
    programs.map_or_else(Binaries::locate, Binaries::beside)
}

fn report(count: Count, failures: Vec<String>) -> OracleReport {
    OracleReport {
        passed: count.passed,
        failed: failures.len() as u64,
        known: count.known.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        verdicts: count.verdicts.into_iter().collect(),
        failures,
    }
}

/// Compares on a path of the wire: real packets between two nodes, one after the other.
///
/// # Errors
/// As [`oracle`].
pub fn oracle_wire(options: &OracleOptions, path: OraclePath) -> Result<OracleReport> {
    let binaries = binaries(options.programs.as_deref())?;
    let board = Board { cases: AtomicU64::new(0), stop: AtomicBool::new(false), report: Mutex::default() };
    let kinds = path.kinds();
    for mode in [Mode::Vxlan, Mode::Native] {
        let half = if mode == Mode::Vxlan { options.cases / 2 } else { options.cases };
        if board.stop.load(Ordering::Relaxed) || half == 0 {
            continue;
        }
        let size = Size { mode, real: vec![1, 2], pods: 3, kinds: kinds.clone(), others: vec![] };
        let mut ground = Wire::new(Site::new(mode, 2, &binaries)?)?;
        let options = OracleOptions { cases: half, ..options.clone() };
        let chains = usize::from(mode == Mode::Native)..;
        work_on(&mut ground, chains.step_by(2), &size, path, &options, &board)?;
    }
    let (count, failures) = board.report.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(report(count, failures))
}

/// Chains `worker`, `worker + jobs` and so on, which are all of one mode, until there are cases enough.
fn work(worker: usize, jobs: usize, options: &OracleOptions, binaries: &Binaries, board: &Board) -> Result<()> {
    let mode = if worker.is_multiple_of(2) { Mode::Vxlan } else { Mode::Native };
    let done = work_at(worker, jobs, mode, options, binaries, board);
    if done.is_err() {
        board.stop.store(true, Ordering::Relaxed);
    }
    done
}

fn work_at(
    worker: usize,
    jobs: usize,
    mode: Mode,
    options: &OracleOptions,
    binaries: &Binaries,
    board: &Board,
) -> Result<()> {
    let mut session = Session::new(Site::new(mode, 1, binaries)?)?;
    let kinds = vec![PortKind::Veth, PortKind::Tap, PortKind::Veth];
    let size = Size { mode, real: vec![1], pods: 4, kinds, others: generate::ELSEWHERE.into() };
    work_on(&mut session, (worker..).step_by(jobs), &size, OraclePath::Run, options, board)
}

/// The chains of these numbers, until there are cases enough.
fn work_on(
    ground: &mut dyn Ground,
    chains: impl Iterator<Item = usize>,
    size: &Size,
    path: OraclePath,
    options: &OracleOptions,
    board: &Board,
) -> Result<()> {
    for chain in chains {
        if board.stop.load(Ordering::Relaxed) || board.cases.load(Ordering::Relaxed) >= options.cases {
            break;
        }
        let mut random = Random::new(options.seed.wrapping_mul(1_000_003).wrapping_add(chain as u64));
        let restarts = if chain < FIRST_CHAINS { RESTARTS } else { RESTARTS_LATER };
        let states = chain_of(&mut random, size, path, restarts);
        let name = format!("seed {}, chain {chain}", options.seed);
        let failing = follow(ground, &states, options, board).with_context(|| name.clone())?;
        if let Some(failing) = failing {
            let text = keep(ground, failing, &format!("{path:?}-{}-{chain}", options.seed), options, path)?;
            eprintln!("oracle: {name}: {text}");
            let mut report = board.report.lock().unwrap_or_else(PoisonError::into_inner);
            report.1.push(text);
            if options.failures.is_none() || report.1.len() as u64 >= ENOUGH {
                board.stop.store(true, Ordering::Relaxed);
            }
        }
    }
    let mut report = board.report.lock().unwrap_or_else(PoisonError::into_inner);
    report.0.add(ground.count());
    Ok(())
}

/// Worlds that follow from each other, and packets for each.
fn chain_of(random: &mut Random, size: &Size, path: OraclePath, restarts: usize) -> Vec<State> {
    let (length, packets) = if path == OraclePath::Run { (CHAIN, PER_STATE) } else { (WIRE_CHAIN, PER_WIRE_STATE) };
    let mut ports = FreshPorts::default();
    let mut world = generate::world(random, size);
    let mut states = Vec::new();
    for number in 0..length {
        let mut event = Event::default();
        if number > 0 {
            world = generate::change(random, &world, size);
            event.restart = random.chance(restarts);
            let local: Vec<String> = world.pods.iter().filter(|pod| pod.node == HERE).map(world::Pod::id).collect();
            // Within the shortest and the longest time that Services have, and beyond.
            event.ticks = if random.chance(60) { *random.pick(&[1, 3, 8, 9_000, 11_000, 11_000]) } else { 0 };
            event.replug = (!local.is_empty() && random.chance(6)).then(|| random.pick(&local).clone());
        }
        let packets = packets_for(random, &world, size, packets, &mut ports);
        states.push(State { event, world: world.clone(), packets });
    }
    states
}

/// On a wire, what nobody would see is not sent: it would only be waited for.
fn packets_for(random: &mut Random, world: &World, size: &Size, count: usize, ports: &mut FreshPorts) -> Vec<Packet> {
    let mut packets = Vec::new();
    for number in 0.. {
        if packets.len() == count || number == 10 * count {
            break;
        }
        let here = generate::node_name(size.real[number % size.real.len()]);
        let packet = aim::packet(random, world, &here, ports);
        if size.real.len() == 1 || (wire::is_seen(world, &packet).unwrap_or(false) && here_or_pod(&packet, &here)) {
            packets.push(packet);
        }
    }
    packets
}

/// Hosts and the wire send to the first node only.
fn here_or_pod(packet: &Packet, here: &str) -> bool {
    here == HERE || matches!(packet.from, world::From::Pod(_))
}

/// Goes through `states` until a packet is wrong.
fn follow(
    session: &mut dyn Ground,
    states: &[State],
    options: &OracleOptions,
    board: &Board,
) -> Result<Option<Failing>> {
    session.begin()?;
    for (number, state) in states.iter().enumerate() {
        session.enter(state).with_context(|| format!("state {number}"))?;
        let before = session.count().passed;
        let standing = session.standing();
        let mut failure = session.go_on(&state.world)?.map(|failure| (0, failure));
        for (at, packet) in state.packets.iter().enumerate().take(PER_STATE.saturating_sub(standing)) {
            if failure.is_some() {
                break;
            }
            failure = session.case(&state.world, packet).map(|failure| (at + 1, failure));
        }
        let cases = board.cases.fetch_add(session.count().passed - before, Ordering::Relaxed);
        if cases / 10_000 != (cases + session.count().passed - before) / 10_000 {
            eprintln!("oracle: {cases} cases");
        }
        if let Some((sent, failure)) = failure {
            let mut states = states[..=number].to_vec();
            states[number].packets.truncate(sent);
            return Ok(Some(Failing { states, failure }));
        }
        if board.stop.load(Ordering::Relaxed) || cases >= options.cases {
            break;
        }
    }
    Ok(None)
}

/// Makes a failure small and writes it down; what to tell of it.
fn keep(
    session: &mut dyn Ground,
    failing: Failing,
    name: &str,
    options: &OracleOptions,
    path: OraclePath,
) -> Result<String> {
    let Some(folder) = &options.failures else { return Ok(failing.failure.to_string()) };
    // Its cases are no cases of the run.
    let count = session.count().clone();
    let replay = shrink::shrink(session, failing, path)?;
    *session.count() = count;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(&replay)?).with_context(|| format!("write {}", path.display()))?;
    Ok(format!("{}; replay with --replay {}", replay.failure, path.display()))
}

/// Does again what a file of a failure says.
///
/// # Errors
/// The file is none, or the world in it could not be put into practice.
pub fn oracle_replay(path: &Path, programs: Option<&Path>) -> Result<OracleReport> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let replay: Replay = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
    let mode = replay.states.first().context("the file has no state")?.world.mode;
    // A thread of its own: it goes into the node's network.
    let replayed = thread::scope(|scope| {
        let work = || -> Result<(Count, Vec<String>)> {
            let nodes = if replay.path == OraclePath::Run { 1 } else { 2 };
            let site = Site::new(mode, nodes, &binaries(programs)?)?;
            let mut ground: Box<dyn Ground> = match replay.path {
                OraclePath::Run => Box::new(Session::new(site)?),
                OraclePath::Veth | OraclePath::Tap | OraclePath::Vhost => Box::new(Wire::new(site)?),
            };
            let failure = shrink::replay(&mut *ground, &replay.states)?;
            Ok((ground.count().clone(), failure.iter().map(ToString::to_string).collect()))
        };
        scope.spawn(work).join().map_err(|_| anyhow!("the replay panicked"))?
    });
    let (count, failures) = replayed?;
    Ok(report(count, failures))
}
