// SPDX-License-Identifier: Apache-2.0

//! `policy`: what decision lists cost a first packet, and what they take of the kernel's memory.
//!
//! | Row | What | Beside, in the same round |
//! |---|---|---|
//! | `first_1` | the first packet of each of 16 Ki flows to a pod that a selector of the only policy means | itself, once more |
//! | `first_10k` | the same with 10,000 policies of 10 rules, 15,000 classes and 300,000 addresses on the node | `first_1` |
//! | `classes_cold` | 64 lists, each asked about 8,192 pods of 5,000 classes for the first time | `first_1` |
//! | `classes_warm` | the same once more, flows forgotten | `classes_cold` |
//! | `flood` | 64 Ki pairs of a class and a port that nobody has asked about, more than are remembered | `first_1` |
//! | `memory` | MB of all maps of policy, as `first_10k` has them | 60 |

use std::path::Path;

use anyhow::{Result, ensure};
use weft_abi::{Addr, AddressKey, Class, Interval, List, ListFlags, Owner, RuleKey, Run, map, part};
use weft_dataplane::{
    Dataplane, MapSizes, Options,
    bench::{Bench, Subject, Traffic},
};

use super::{
    KI, Load,
    site::{CLIENT, EGRESS, INGRESS, SERVER, SERVER_IP, addr, configure, enter_namespaces, packet, traffic},
};
use crate::bench::{
    statistic::{Pair, in_turn},
    table::Row,
};

const REDIRECT: u32 = 7;
const OK: u32 = 0;
/// The pods that are asked about lie from here on.
const MANY: [u8; 4] = [10, 3, 0, 0];
const SPREAD: u16 = 0x1fff;
const LISTS: u64 = 64;
/// Numbers of lists for [`LISTS`], and of those that only take memory.
const ASKED: u64 = 1000;
const OTHERS: u64 = 1 << 40;
const ASKED_CLASSES: u32 = 5000;

const POLICIES: u64 = 10_000;
const RULES: u64 = 10;
const CLASSES: u32 = 15_000;
const ADDRESSES: u32 = 300_000;
const MOST: f64 = 60.0;

const fn term(number: u64) -> u64 {
    part::TERM | number << 16
}

fn accept(rule: u32) -> Run {
    Run::of(&[Interval::accept(6, 0, u16::MAX, rule)])
}

/// A node, with what its policies ask for.
struct Machine {
    dataplane: Dataplane,
    bench: Bench,
}

impl Machine {
    fn new(pins: &Path) -> Result<Self> {
        let sizes = MapSizes { addresses: 16 * KI, flows4: 512 * KI, flows6: 16 * KI, ..MapSizes::default() };
        let dataplane = Dataplane::open(&Options { sizes, ..Options::new(pins) })?;
        configure(&dataplane)?;
        let bench = Bench::open(&dataplane)?;
        let machine = Self { dataplane, bench };
        let maps = machine.dataplane.maps();
        // Both ends are told by a selector that they match among others.
        for list in [EGRESS, INGRESS] {
            machine.put_list(list, &[1])?;
        }
        machine.put_class(1, 1, 8)?;
        for address in [super::site::CLIENT_IP, SERVER_IP] {
            maps.peers().insert(&AddressKey::of_cluster(addr(address)), &1)?;
        }
        for number in 0..ASKED_CLASSES {
            machine.put_class(u64::from(number) + 10, 1 + u64::from(number) % LISTS, 8)?;
        }
        for number in 0..=u32::from(SPREAD) {
            let address = AddressKey::of_cluster(Addr::v4((u32::from_be_bytes(MANY) + number).to_be()));
            maps.peers().insert(&address, &(u64::from(number % ASKED_CLASSES) + 10))?;
            // All of them behind the server's port: what lies beyond it is no part of this.
            maps.addresses().insert(&address, &Owner::workload(SERVER))?;
        }
        // Each of these knows all pods, by other rules.
        for list in 0..LISTS {
            machine.put_list(ASKED + list, &(1..=LISTS).collect::<Vec<_>>())?;
        }
        Ok(machine)
    }

    fn put_list(&self, list: u64, terms: &[u64]) -> Result<()> {
        let mut head = List { flags: ListFlags::ISOLATES, ..List::EMPTY };
        for number in terms {
            head.add_part(term(*number));
            let key = RuleKey { list, part: term(*number) };
            self.dataplane.maps().rules().insert(&key, &accept(16))?;
        }
        Ok(self.dataplane.maps().lists().insert(&list, &head)?)
    }

    /// A class that matches this term and some that no list asks for.
    fn put_class(&self, class: u64, own: u64, terms: u64) -> Result<()> {
        let mut value = Class { version: class, namespace: term(1 << 30), ..Class::default() };
        let others = (1..terms).map(|number| term((class << 5 | number) + (1 << 31)));
        value.terms.iter_mut().zip([term(own)].into_iter().chain(others)).for_each(|(slot, term)| *slot = term);
        Ok(self.dataplane.maps().classes().insert(&class, &value)?)
    }

    /// What other policies there are on the node.
    fn fill(&self) -> Result<()> {
        let maps = self.dataplane.maps();
        for policy in 0..POLICIES {
            // As many as there are lists: two for each of 256 ports.
            let list = OTHERS + policy % 512;
            maps.lists().insert(&list, &List { flags: ListFlags::TERMS | ListFlags::ISOLATES, ..List::EMPTY })?;
            for rule in 0..RULES {
                let key = RuleKey { list, part: term(1 << 40 | policy << 8 | rule) };
                maps.rules().insert(&key, &accept(16))?;
            }
        }
        for class in 0..CLASSES - ASKED_CLASSES {
            self.put_class(1 << 20 | u64::from(class), 1 << 33, 8)?;
        }
        for number in 0..ADDRESSES - u32::from(SPREAD) - 3 {
            let address = Addr::v4((0x0b00_0000_u32 + number).to_be());
            maps.peers().insert(&AddressKey::of_cluster(address), &(1 << 20 | u64::from(number % 10_000)))?;
        }
        Ok(())
    }

    /// Megabytes of all maps of policy.
    fn memory(&self) -> Result<f64> {
        let of_policy = [map::PEERS, map::CLASSES, map::LISTS, map::RULES, map::BLOCKS, map::VERDICTS];
        let all = self.dataplane.maps().memory()?;
        let bytes: u64 = all.iter().filter(|memory| of_policy.contains(&memory.map)).map(|memory| memory.bytes).sum();
        Ok(bytes as f64 / 1e6)
    }

    fn forget_verdicts(&self) -> Result<()> {
        self.dataplane.maps().verdicts().retain(|_, _| false)?;
        Ok(())
    }

    /// Nanoseconds of the first packet of so many flows.
    fn first(&mut self, flows: u32, dst: [u8; 4], spread: u16) -> Result<f64> {
        self.dataplane.maps().flows4().retain(|_, _| false)?;
        let load = Load::new(Subject::FromWorkload, dst, flows).is(super::State::Cold);
        let packet = packet(&load);
        let traffic = Traffic { flows, spread, dst: u32::from_ne_bytes(dst), ..traffic() };
        let (_, alone) = self.bench.run_empty(&packet, CLIENT, flows)?;
        let mut run = |subject, expected| {
            let (action, time) = self.bench.run(subject, &traffic, &packet, CLIENT, flows)?;
            ensure!(action == expected, "{subject:?}: action {action} instead of {expected}");
            Ok(time.as_nanos() as f64)
        };
        let making = run(Subject::Empty, OK)?;
        let all = run(Subject::FromWorkload, REDIRECT)?;
        Ok(all - making + alone.as_nanos() as f64)
    }

    /// [`Machine::first`] to the pods that all lists know, one list after the other; cold, then warm.
    fn classes(&mut self) -> Result<[f64; 2]> {
        let mut sums = [0.0; 2];
        for list in 0..LISTS {
            self.give(ASKED + list)?;
            self.forget_verdicts()?;
            for sum in &mut sums {
                *sum += self.first(u32::from(SPREAD) + 1, MANY, SPREAD)? / LISTS as f64;
            }
        }
        self.give(EGRESS)?;
        Ok(sums)
    }

    fn flood(&mut self) -> Result<f64> {
        self.give(ASKED)?;
        self.forget_verdicts()?;
        let time = self.first(64 * KI, MANY, SPREAD);
        self.give(EGRESS)?;
        time
    }

    /// Gives the client another list.
    fn give(&self, egress_list: u64) -> Result<()> {
        let ports = self.dataplane.maps().ports();
        let port = ports.get(&CLIENT)?.unwrap_or_default();
        Ok(ports.insert(&CLIENT, &weft_abi::Port { egress_list, ..port })?)
    }
}

/// Measures all rows, round by round.
///
/// # Errors
/// Not root, or a program did something else than it is measured for.
pub(in crate::bench) fn rows(rounds: usize) -> Result<Vec<Row>> {
    ensure!(nix::unistd::geteuid().is_root(), "this benchmark loads eBPF programs: run it as root");
    let pins = enter_namespaces()?;
    let (mut one, mut many) = (Machine::new(&pins.join("one"))?, Machine::new(&pins.join("many"))?);
    many.fill()?;
    let [mut first, mut first_10k, mut cold, mut warm, mut flood] = [const { Vec::new() }; 5];
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let ask = |machine: &mut Machine| machine.first(16 * KI, SERVER_IP, 0);
        let again = ask(&mut one)?;
        let pair = in_turn(round, |side| match side {
            crate::bench::statistic::Side::Baseline => ask(&mut one),
            crate::bench::statistic::Side::Path => ask(&mut many),
        })?;
        first.push(Pair { value: again, baseline: pair.baseline });
        first_10k.push(pair);
        let [value, then] = many.classes()?;
        cold.push(Pair { value, baseline: pair.baseline });
        warm.push(Pair { value: then, baseline: value });
        flood.push(Pair { value: many.flood()?, baseline: pair.baseline });
    }
    let memory = vec![Pair { value: many.memory()?, baseline: MOST }];
    Ok(vec![
        Row::new("first_1", "ns", "first_1", &first)?,
        Row::new("first_10k", "ns", "first_1", &first_10k)?,
        Row::new("classes_cold", "ns", "first_1", &cold)?,
        Row::new("classes_warm", "ns", "classes_cold", &warm)?,
        Row::new("flood", "ns", "first_1", &flood)?,
        Row::new("memory", "MB", "60 MB", &memory)?,
    ])
}
