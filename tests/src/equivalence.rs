// SPDX-License-Identifier: Apache-2.0

//! A guest's tap and a container's veth are the same kind of port: for generated Services, policies and packets both get the
//! same answer.

mod generate;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{bed::Bed, container::Container, manifest, random::Random, shell::Shell, vm::Vm, wait::until_ok};
use generate::{Case, Direction, Packet, Round};

/// Cases that share one set of Services and policies.
const CASES_PER_ROUND: usize = 10;
/// Ports on which everybody serves.
const PORTS: [u16; 2] = [8080, 8081];
/// What peers are: node, name, labels.
const PEERS: [(usize, &str, &str); 4] =
    [(1, "default/p0", "red"), (1, "other/p1", "blue"), (2, "default/p2", "red"), (2, "other/p3", "blue")];
/// How long a packet that may be dropped is waited for, and one that seemed to be dropped for one of the two only.
const WAITS: [Duration; 3] = [Duration::from_millis(700), Duration::from_secs(3), Duration::from_secs(6)];

/// Compares `cases` generated cases of the sequence that `seed` decides; how often each answer came.
///
/// # Errors
/// Guest and container were answered differently; the message has the case and the objects.
pub fn equivalence(cases: usize, seed: u64) -> Result<BTreeMap<String, usize>> {
    let site = Site::new()?;
    let mut random = Random::new(seed);
    let mut answers = BTreeMap::new();
    let mut previous = None;
    for number in 0..cases.div_ceil(CASES_PER_ROUND) {
        eprintln!("equivalence: case {} of {cases}", number * CASES_PER_ROUND);
        let round = Round::generate(number, &mut random);
        site.apply(&round, previous.as_ref())?;
        let count = CASES_PER_ROUND.min(cases - number * CASES_PER_ROUND);
        let batch: Vec<Case> = (0..count).map(|_| Case::generate(&mut random)).collect();
        for answer in site.compare(&batch).with_context(|| format!("round {number} of seed {seed}: {round}"))? {
            *answers.entry(answer).or_default() += 1;
        }
        previous = Some(round);
    }
    // A sequence where everything or nothing passes compares nothing.
    let silent = answers.get("timeout").copied().unwrap_or(0);
    ensure!(cases < 50 || (silent > 0 && silent < cases), "the cases are all alike: {answers:?}");
    Ok(answers)
}

/// The two that are compared, and the others.
struct Site {
    guest: Vm,
    container: Container,
    peers: Vec<Container>,
    bed: Bed,
}

/// One of the two.
#[derive(Clone, Copy)]
enum Subject {
    Guest,
    Container,
}

impl Site {
    fn new() -> Result<Self> {
        let bed = Bed::new()?;
        bed.apply(&manifest::namespace("other", &[("kind", "other")]))?;
        let labels = |name| [("kind", "subject"), ("name", name)];
        let guest = bed.vm(1, "default/guest", &labels("guest"))?;
        let container = bed.container(1, "default/container", &labels("container"))?;
        let peers = PEERS
            .iter()
            .map(|(node, pod, color)| bed.container(*node, pod, &[("color", color), ("name", &pod[pod.len() - 2..])]))
            .collect::<Result<Vec<_>>>()?;
        for port in PORTS {
            guest.serve("subject", port)?;
            container.serve("subject", port)?;
            for peer in &peers {
                peer.serve(&peer.label(), port)?;
            }
        }
        Ok(Self { guest, container, peers, bed })
    }

    /// Puts the objects of `round` in the place of those of the round before, and waits until both nodes have them.
    fn apply(&self, round: &Round, previous: Option<&Round>) -> Result<()> {
        for policy in previous.iter().flat_map(|round| &round.policies) {
            self.bed.delete(policy)?;
        }
        for object in round.services.iter().chain(&round.policies) {
            self.bed.apply(object)?;
        }
        let mut expected: Vec<&str> =
            round.policies.iter().filter_map(|policy| policy["metadata"]["name"].as_str()).collect();
        expected.sort_unstable();
        for node in self.bed.nodes() {
            until_ok("the policies of the round", Duration::from_secs(20), || {
                let reports: Vec<weft_api::PolicyReport> = node.weft_json("policies")?;
                let mut names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
                names.sort_unstable();
                ensure!(names == expected, "{} has {names:?} instead of {expected:?}", node.name());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Runs every case for both; the answers, which are the same.
    fn compare(&self, cases: &[Case]) -> Result<Vec<String>> {
        let guest = self.answers(cases, Subject::Guest, WAITS[0])?;
        let container = self.answers(cases, Subject::Container, WAITS[0])?;
        let mut agreed = Vec::new();
        for ((case, mut guest), mut container) in cases.iter().zip(guest).zip(container) {
            // An emulated guest on a busy machine may just have been slow.
            for wait in &WAITS[1..] {
                if guest == container {
                    break;
                }
                let again = std::slice::from_ref(case);
                guest = self.answers(again, Subject::Guest, *wait)?.remove(0);
                container = self.answers(again, Subject::Container, *wait)?.remove(0);
            }
            ensure!(guest == container, "{case:?}: the guest is answered '{guest}', the container '{container}'");
            agreed.push(guest);
        }
        Ok(agreed)
    }

    fn answers(&self, cases: &[Case], subject: Subject, wait: Duration) -> Result<Vec<String>> {
        let places: Vec<&dyn Shell> = match subject {
            Subject::Guest => vec![&self.guest],
            Subject::Container => vec![&self.container],
        };
        let places: Vec<&dyn Shell> =
            places.into_iter().chain(self.peers.iter().map(|peer| peer as &dyn Shell)).collect();
        let mut scripts = vec![String::new(); places.len()];
        for (number, case) in cases.iter().enumerate() {
            let command = self.command(case, subject, wait);
            let from = match case.direction {
                Direction::Out => 0,
                Direction::In => 1 + case.peer,
            };
            scripts[from] += &format!("( said=$({command} 2>&1 | tail -n 1); echo \"{number} $said\" ) &\n");
        }
        let mut answers = vec![String::new(); cases.len()];
        for (place, script) in places.iter().zip(scripts).filter(|(_, script)| !script.is_empty()) {
            let output = place.sh(&format!("{script}wait"))?.ok()?;
            for line in output.lines() {
                let (number, said) =
                    line.split_once(' ').with_context(|| format!("{} said: {output}", place.label()))?;
                answers[number.parse::<usize>()?] = self.normalized(said);
            }
        }
        Ok(answers)
    }

    fn command(&self, case: &Case, subject: Subject, wait: Duration) -> String {
        let (own, vip) = match subject {
            Subject::Guest => (self.guest.addresses(), Round::GUEST),
            Subject::Container => (self.container.addresses(), Round::CONTAINER),
        };
        let (addresses, vip) = match case.direction {
            Direction::Out => (self.peers[case.peer].addresses(), case.peer),
            Direction::In => (own, vip),
        };
        let direct = addresses.iter().copied().find(|address| address.is_ipv6() == case.v6);
        let address = match case.packet {
            Packet::Service { .. } => Round::vip(vip, case.v6),
            _ => direct.map_or_else(String::new, |address| address.to_string()),
        };
        let host = if case.v6 { format!("[{address}]") } else { address.clone() };
        let connect =
            |protocol, port| format!("weft-probe connect {protocol} {host}:{port} --timeout {}", wait.as_millis());
        match case.packet {
            Packet::Direct { protocol, port } => connect(protocol, port),
            Packet::Service { protocol, port } => connect(protocol, port),
            Packet::Ping { bytes } => {
                format!("ping -c 1 -W {} -s {bytes} {address} >/dev/null && echo pong", wait.as_secs().max(1))
            }
        }
    }

    /// What was said, without that which must differ: the subject's own addresses, and the address that was asked.
    fn normalized(&self, said: &str) -> String {
        let own = self.guest.addresses().iter().chain(self.container.addresses()).map(ToString::to_string);
        let own: Vec<String> = own.collect();
        match said.rsplit_once(": ") {
            Some((_, error)) => error.to_owned(),
            None if said.is_empty() => "no pong".to_owned(),
            None => said
                .split(' ')
                .map(|word| if own.iter().any(|a| a == word) { "SUBJECT" } else { word })
                .collect::<Vec<_>>()
                .join(" "),
        }
    }
}
