// SPDX-License-Identifier: Apache-2.0

//! `datapath`: nanoseconds per packet in the programs, by `BPF_PROG_TEST_RUN` with real maps.
//!
//! A small program makes the packet of the next flow and tail-calls what is measured; what that costs by itself, beside the
//! same program calling an empty one, is subtracted. The node is one with a policy of a rule each way on every port, and what a
//! port takes of what all share is booked.
//!
//! | Row | Packets | Beside, in the same round |
//! |---|---|---|
//! | `PATH_1`, `_1ki`, `_64ki` | of so many established flows | the same packets, each a hit in a bare LRU hash and a DNAT |
//! | `PATH_epoch` | the first of each of 64 Ki established flows after the epoch has moved | `PATH_64ki` |
//! | `PATH_new_cold` | the first of 64 Ki flows, tables empty | two inserts each into a bare LRU hash, empty |
//! | `PATH_new_16ki` | the same, flow table of 16 Ki entries, full | the same, as large and as full |
//! | `lru_*` | the baselines | themselves: how far rounds of equals are apart |
//!
//! IPv6 stands beside the bare hash of IPv4 too. Paths have tables of their own. Some 2 minutes; 4 at most on a machine that others
//! use.

mod machine;
pub(super) mod policy;
mod site;

use std::fmt;

use anyhow::Result;
use weft_dataplane::bench::Subject;

use super::{statistic::Pair, table::Row};
use machine::Machines;
use site::{SERVER_IP, VIP, VM_IP};

/// Whose packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Packets {
    V4,
    V6,
    /// Of a pod of another node, out of the tunnel.
    Far,
}

/// What the tables have on the flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Every flow has its entry.
    Established,
    /// The same, but the epoch has moved since the flow's last packet.
    EpochMoved,
    /// Nothing, and nothing of others either.
    Cold,
    /// Nothing, and the table is small and full of others.
    Full,
}

/// Packets through one program, in one state of the tables.
#[derive(Clone, Copy, Debug)]
struct Load {
    subject: Subject,
    packets: Packets,
    /// Destination of IPv4 packets.
    dst: [u8; 4],
    flows: u32,
    state: State,
}

impl Load {
    const fn new(subject: Subject, dst: [u8; 4], flows: u32) -> Self {
        Self { subject, packets: Packets::V4, dst, flows, state: State::Established }
    }

    const fn is(self, state: State) -> Self {
        Self { state, ..self }
    }

    const fn of(self, packets: Packets) -> Self {
        Self { packets, ..self }
    }

    /// Whether each of its packets is the first of its flow.
    const fn is_new(&self) -> bool {
        matches!(self.state, State::Cold | State::Full)
    }
}

/// A row: what is measured, and what beside it.
struct Case {
    name: String,
    baseline: String,
    loads: Pair<Load>,
}

impl Case {
    fn new(name: impl fmt::Display, value: Load, baseline_name: impl fmt::Display, baseline: Load) -> Self {
        Self { name: name.to_string(), baseline: baseline_name.to_string(), loads: Pair { value, baseline } }
    }
}

const KI: u32 = 1 << 10;
const FLOWS: [(&str, u32); 3] = [("1", 1), ("1ki", KI), ("64ki", 64 * KI)];
const NEW: [(&str, State); 2] = [("cold", State::Cold), ("16ki", State::Full)];
const PATHS: [(&str, [u8; 4]); 2] = [("pod_pod", SERVER_IP), ("pod_clusterip", VIP)];

const fn hit(flows: u32) -> Load {
    Load::new(Subject::LruDnat, VIP, flows)
}

const fn inserts(state: State) -> Load {
    Load::new(Subject::LruInsert, VIP, 64 * KI).is(state)
}

/// [`inserts`] of other flows: those would be there already.
const fn other_inserts(state: State) -> Load {
    Load::new(Subject::LruInsert, SERVER_IP, 64 * KI).is(state)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (suffix, flows) in FLOWS {
        let name = format!("lru_dnat_{suffix}");
        cases.push(Case::new(&name, hit(flows), &name, hit(flows)));
    }
    for (suffix, state) in NEW {
        let name = format!("lru_insert2_{suffix}");
        cases.push(Case::new(&name, other_inserts(state), &name, inserts(state)));
    }
    for (path, dst) in PATHS {
        let weft = |flows| Load::new(Subject::FromWorkload, dst, flows);
        for (suffix, flows) in FLOWS {
            cases.push(Case::new(format!("{path}_{suffix}"), weft(flows), format!("lru_dnat_{suffix}"), hit(flows)));
        }
        let moved = weft(64 * KI).is(State::EpochMoved);
        cases.push(Case::new(format!("{path}_epoch"), moved, format!("{path}_64ki"), weft(64 * KI)));
        for (suffix, state) in NEW {
            let (name, baseline) = (format!("{path}_new_{suffix}"), format!("lru_insert2_{suffix}"));
            cases.push(Case::new(name, weft(64 * KI).is(state), baseline, inserts(state)));
        }
    }
    let v6 = Load::new(Subject::FromWorkload, SERVER_IP, 64 * KI).of(Packets::V6);
    cases.push(Case::new("pod_pod_v6_64ki", v6, "lru_dnat_64ki", hit(64 * KI)));
    cases.push(Case::new("to_tap_1", Load::new(Subject::FromWorkload, VM_IP, 1), "lru_dnat_1", hit(1)));
    for (suffix, flows) in FLOWS {
        let far = Load::new(Subject::FromOverlay, SERVER_IP, flows).of(Packets::Far);
        cases.push(Case::new(format!("overlay_pod_{suffix}"), far, format!("lru_dnat_{suffix}"), hit(flows)));
    }
    cases
}

/// Measures all rows, round by round.
///
/// # Errors
/// Not root, or a program did something else than it is measured for.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let cases = cases();
    let mut machines = Machines::new()?;
    let mut measured: Vec<Vec<Pair<f64>>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (case, measured) in cases.iter().zip(&mut measured) {
            measured.push(machines.round(round, &case.loads)?);
        }
    }
    let row = |(case, measured): (&Case, &Vec<_>)| Row::new(&case.name, "ns", &case.baseline, measured);
    cases.iter().zip(&measured).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::cases;

    #[test]
    fn the_promised_rows_are_there_and_each_is_beside_what_it_should_be() {
        let cases = cases();
        let beside = |name: &str| cases.iter().find(|case| case.name == name).map(|case| case.baseline.as_str());
        for path in ["pod_pod", "pod_clusterip"] {
            for flows in ["1", "1ki", "64ki"] {
                assert_eq!(beside(&format!("{path}_{flows}")), Some(format!("lru_dnat_{flows}").as_str()));
            }
            assert_eq!(beside(&format!("{path}_epoch")), Some(format!("{path}_64ki").as_str()));
            for table in ["cold", "16ki"] {
                assert_eq!(beside(&format!("{path}_new_{table}")), Some(format!("lru_insert2_{table}").as_str()));
            }
        }
        assert_eq!(beside("pod_pod_v6_64ki"), Some("lru_dnat_64ki"));
        // What a row is beside is a row too.
        assert!(cases.iter().all(|case| cases.iter().any(|other| other.name == case.baseline)));
    }
}
