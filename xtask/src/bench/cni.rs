// SPDX-License-Identifier: Apache-2.0

//! `cni`: how long ADD and DEL take at 1 and 20 per second, beside the bridge plugin with host-local, both dual stack.
//!
//! The two plugins run in turn on one machine: at 1 per second a call of the one is followed by a call of the other half a
//! second later; at 20 per second they take turns of one second. A round has 4 calls of each, or 20, so that its p99 is the
//! slowest of them.

use std::{rc::Rc, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weft_testbed::{
    Attachment, Bed, Binaries, Node, Options, Plug, Shell as _,
    cluster::Binaries as Cluster,
    load::{Call, Caller, Machine, Pace, percentile},
    pod,
};

use super::{
    statistic::{Pair, Side, in_turn},
    table::{Figure, Path, Row, compare},
};

/// How a rate is measured.
struct Rate {
    interval: Duration,
    /// Calls of a round.
    calls: usize,
    /// How the two plugins' calls of one round lie in time.
    turns: Turns,
    figures: [Figure; 4],
}

#[derive(Clone, Copy)]
enum Turns {
    /// A call of the one, then a call of the other, half an interval apart.
    Calls,
    /// All calls of the one, then all of the other.
    Runs,
}

const RATES: [Rate; 2] = [
    Rate {
        interval: Duration::from_secs(1),
        calls: 4,
        turns: Turns::Calls,
        figures: [
            Figure { name: "add_p50_1", unit: "ms" },
            Figure { name: "add_p99_1", unit: "ms" },
            Figure { name: "del_p50_1", unit: "ms" },
            Figure { name: "del_p99_1", unit: "ms" },
        ],
    },
    Rate {
        interval: Duration::from_millis(50),
        calls: 20,
        turns: Turns::Runs,
        figures: [
            Figure { name: "add_p50_20", unit: "ms" },
            Figure { name: "add_p99_20", unit: "ms" },
            Figure { name: "del_p50_20", unit: "ms" },
            Figure { name: "del_p99_20", unit: "ms" },
        ],
    },
];

/// The bridge plugin would wait for duplicate address detection: it is off in everybody's sandboxes.
const NO_DAD: &str = "for place in all default; do echo 0 >/proc/sys/net/ipv6/conf/$place/accept_dad; done";

/// What a call took, in milliseconds, and what it answered.
type Answer = (f64, Value);

/// The bridge plugin on a machine of its own.
struct Bridge {
    machine: Machine,
    caller: Caller,
    made: usize,
}

impl Bridge {
    fn new(bed: &Bed) -> Result<Self> {
        let plugin = Cluster::cached()?.path("bridge")?;
        let machine = Machine::new(bed, "bridge")?;
        let caller = Caller::new(machine.namespace(), &plugin)?;
        Ok(Self { machine, caller, made: 0 })
    }

    /// Calls of ADD for `count` new sandboxes.
    fn adds(&mut self, count: usize) -> Result<Vec<Call>> {
        let names: Vec<String> = (0..count).map(|number| format!("b{}", self.made + number)).collect();
        self.made += count;
        names.into_iter().map(|name| self.add(name)).collect()
    }

    fn add(&self, container_id: String) -> Result<Call> {
        let script = format!("ip netns add {container_id} && ip netns exec {container_id} sh -c '{NO_DAD}'");
        self.machine.sh(&script)?.ok().context("make a sandbox")?;
        let config = json!({
            "cniVersion": "1.1.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": "/run/host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        });
        let netns = format!("/run/netns/{container_id}");
        Ok(Call { verb: "ADD", container_id, netns, args: String::new(), config })
    }
}

/// Weft's plugin and agent on a node.
struct Weft {
    bed: Bed,
    caller: Caller,
}

impl Weft {
    fn new() -> Result<Self> {
        let bed = Bed::of(&Options { nodes: 1, ..Options::default() }, &Binaries::released()?)?;
        for number in 0..RATES.iter().map(|rate| rate.calls).max().unwrap_or(0) {
            bed.apply(&pod(&name_of(number), bed.node(1).name(), &[]))?;
        }
        let caller = Caller::weft(bed.node(1))?;
        Ok(Self { bed, caller })
    }

    fn node(&self) -> &Rc<Node> {
        self.bed.node(1)
    }

    /// `count` new sandboxes, which are unplugged when they are dropped.
    fn sandboxes(&self, count: usize) -> Result<Vec<Attachment>> {
        (0..count)
            .map(|number| {
                let sandbox = Attachment::new(self.node(), &name_of(number), Plug::Veth)?;
                let script = format!("ip netns exec {} sh -c '{NO_DAD}'", sandbox.container_id);
                self.node().sh(&script)?.ok().context("prepare a sandbox")?;
                Ok(sandbox)
            })
            .collect()
    }
}

fn name_of(number: usize) -> String {
    format!("default/w{number}")
}

fn add_of(sandbox: &Attachment) -> Call {
    Call {
        verb: "ADD",
        container_id: sandbox.container_id.clone(),
        netns: sandbox.netns.clone(),
        args: sandbox.args.clone(),
        config: sandbox.config.clone(),
    }
}

fn del_of(add: &Call, result: &Value) -> Call {
    let mut del = Call { verb: "DEL", ..add.clone() };
    del.config["prevResult"] = result.clone();
    del
}

/// Measures both plugins in turn.
///
/// # Errors
/// The bridge plugin is not in the cache, or a call failed.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let weft = Weft::new()?;
    let mut bridge = Bridge::new(&weft.bed)?;
    let mut rows = Vec::new();
    for rate in &RATES {
        let mut path = Path::new("weft", "bridge");
        for round in 1..=rounds {
            eprintln!("every {} ms: round {round} of {rounds}", rate.interval.as_millis());
            path.rounds.push(run(&mut bridge, &weft, rate, round)?);
        }
        rows.extend(compare(&rate.figures, &[path])?);
    }
    Ok(rows)
}

/// One round of both plugins: new sandboxes, ADD for all, DEL for all.
fn run(bridge: &mut Bridge, weft: &Weft, rate: &Rate, round: usize) -> Result<Pair<[f64; 4]>> {
    let mut sandboxes = weft.sandboxes(rate.calls)?;
    let adds = Pair { baseline: bridge.adds(rate.calls)?, value: sandboxes.iter().map(add_of).collect() };
    let callers = Pair { baseline: &bridge.caller, value: &weft.caller };
    let added = call_both(callers, &adds, rate, round)?;
    for (sandbox, (_, result)) in sandboxes.iter_mut().zip(&added.value) {
        sandbox.result = Some(result.clone());
    }
    let dels = Pair { baseline: dels_of(&adds.baseline, &added.baseline), value: dels_of(&adds.value, &added.value) };
    let deleted = call_both(callers, &dels, rate, round).with_context(|| weft.node().agent_log())?;
    for sandbox in &mut sandboxes {
        sandbox.result = None;
    }
    Ok(Pair { baseline: figures(&added.baseline, &deleted.baseline), value: figures(&added.value, &deleted.value) })
}

fn dels_of(adds: &[Call], added: &[Answer]) -> Vec<Call> {
    adds.iter().zip(added).map(|(add, (_, result))| del_of(add, result)).collect()
}

fn figures(added: &[Answer], deleted: &[Answer]) -> [f64; 4] {
    let [add, del] = [added, deleted].map(|calls| calls.iter().map(|(time, _)| *time).collect::<Vec<f64>>());
    [percentile(&add, 50), percentile(&add, 99), percentile(&del, 50), percentile(&del, 99)]
}

/// The calls of both sides as the rate's turns say.
fn call_both(callers: Pair<&Caller>, calls: &Pair<Vec<Call>>, rate: &Rate, round: usize) -> Result<Pair<Vec<Answer>>> {
    let now = Pace { interval: rate.interval, delay: Duration::ZERO };
    if let Turns::Runs = rate.turns {
        return in_turn(round, |side| match side {
            Side::Baseline => callers.baseline.all(&calls.baseline, now),
            Side::Path => callers.value.all(&calls.value, now),
        });
    }
    let later = Pace { delay: rate.interval / 2, ..now };
    let (of_baseline, of_path) = if round.is_multiple_of(2) { (later, now) } else { (now, later) };
    thread::scope(|scope| {
        let baseline = scope.spawn(move || callers.baseline.all(&calls.baseline, of_baseline));
        let value = callers.value.all(&calls.value, of_path);
        let baseline = baseline.join().map_err(|_| anyhow::anyhow!("a calling thread panicked"))?;
        Ok(Pair { value: value?, baseline: baseline? })
    })
}
