// SPDX-License-Identifier: Apache-2.0

//! A failure made small: fewer states, packets and objects, as long as something is wrong still.

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    OraclePath,
    session::{Count, Failure, State},
    world::{Exposure, From, Hints, Packet, Service, World},
};

/// Attempts for one failure at most; each puts worlds into practice.
const ATTEMPTS: usize = 60;
/// Packets of the same kind that a small state has, and the first one's source port.
const COPIES: u16 = 24;
const FIRST_COPY: u16 = 30_000;

/// Where states are entered and packets sent.
pub(super) trait Ground {
    /// Forgets what stands: what follows depends on nothing before.
    fn begin(&mut self) -> Result<()>;

    /// Puts a state's world into practice.
    ///
    /// # Errors
    /// That did not work: no verdict on any packet.
    fn enter(&mut self, state: &State) -> Result<()>;

    /// How many connections stand.
    fn standing(&self) -> usize;

    /// Sends a packet of every standing connection, until one is wrong.
    fn go_on(&mut self, world: &World) -> Result<Option<Failure>>;

    /// Whether somebody is there to send a packet.
    fn can_send(&self, from: &From) -> bool;

    /// The first packet of a connection, the answer, the next one; what is wrong with them.
    fn open(&mut self, world: &World, packet: &Packet) -> Result<Option<String>>;

    /// One case: as [`Ground::open`] where there is a sender.
    fn case(&mut self, world: &World, packet: &Packet) -> Option<Failure> {
        if self.can_send(&packet.from) { Failure::of(packet, self.open(world, packet)) } else { None }
    }

    /// What was counted.
    fn count(&mut self) -> &mut Count;
}

/// A failure as it was found.
pub(super) struct Failing {
    pub(super) states: Vec<State>,
    pub(super) failure: Failure,
}

/// The file of a failure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Replay {
    /// How packets went.
    pub(super) path: OraclePath,
    /// What was wrong.
    pub(super) failure: String,
    /// The states in their order; the last packet of the last one fails, or a connection of an earlier one.
    pub(super) states: Vec<State>,
}

impl Failure {
    /// What is wrong with a packet; an error is wrong, too.
    pub(super) fn of(packet: &Packet, outcome: Result<Option<String>>) -> Option<Self> {
        let text = outcome.unwrap_or_else(|error| Some(format!("{error:#}")))?;
        Some(Self { packet: packet.clone(), text })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.packet, self.text)
    }
}

/// Goes through `states` from nothing; what is wrong, if anything.
pub(super) fn replay(session: &mut dyn Ground, states: &[State]) -> Result<Option<Failure>> {
    session.begin()?;
    for state in states {
        session.enter(state)?;
        if let Some(failure) = session.go_on(&state.world)? {
            return Ok(Some(failure));
        }
        for packet in &state.packets {
            if let Some(failure) = session.case(&state.world, packet) {
                return Ok(Some(failure));
            }
        }
    }
    Ok(None)
}

/// Tries what is smaller than what fails so far.
struct Shrinking<'s> {
    session: &'s mut dyn Ground,
    best: Vec<State>,
    failure: Failure,
    attempts: usize,
    path: OraclePath,
}

/// See the module. What does not fail a second time is kept as it was.
pub(super) fn shrink(
    session: &mut dyn Ground,
    Failing { states, failure }: Failing,
    path: OraclePath,
) -> Result<Replay> {
    let packet = failure.packet.clone();
    let mut shrinking = Shrinking { session, best: states, failure, attempts: 0, path };
    let copies = copies(&packet);
    let only = |state: &State| State { packets: copies.clone(), ..state.clone() };
    let last: Vec<State> = shrinking.best.last().map(only).into_iter().collect();
    if !shrinking.take(last) {
        // Where the connection was opened, and everything from there on.
        let opened = shrinking.best.iter().position(|state| state.packets.contains(&packet)).unwrap_or(0);
        let mut fewer = shrinking.best[opened..].to_vec();
        fewer.iter_mut().for_each(|state| state.packets.clear());
        if let Some(first) = fewer.first_mut() {
            first.packets = copies;
        }
        if shrinking.take(fewer.clone()) && fewer.len() > 2 {
            shrinking.take([fewer[0].clone(), fewer[fewer.len() - 1].clone()].to_vec());
        }
    }
    let mut before = usize::MAX;
    while shrinking.size() < before && shrinking.attempts < ATTEMPTS {
        before = shrinking.size();
        shrinking.drop_objects();
    }
    let Shrinking { best, failure, .. } = shrinking;
    Ok(Replay { path, failure: failure.to_string(), states: best })
}

/// The packet, and others of its kind: the choice of a backend is random.
fn copies(packet: &Packet) -> Vec<Packet> {
    let more = (0..COPIES).map(|more| Packet { sport: FIRST_COPY + more, ..packet.clone() });
    std::iter::once(packet.clone()).chain(more).collect()
}

impl Shrinking<'_> {
    /// Keeps `states` where something is wrong in them; a world that cannot be put into practice is none.
    fn take(&mut self, states: Vec<State>) -> bool {
        self.attempts += 1;
        match replay(self.session, &states) {
            Ok(Some(failure)) => {
                (self.best, self.failure) = (states, failure);
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    fn size(&self) -> usize {
        self.best.iter().map(|state| names(&state.world, self.path).len()).sum()
    }

    /// Without each object, in all states; then without each rule and endpoint.
    fn drop_objects(&mut self) {
        let mut all: Vec<String> = self.best.iter().flat_map(|state| names(&state.world, self.path)).collect();
        all.sort_unstable();
        all.dedup();
        let mut step = all.len().div_ceil(2);
        while step > 0 && self.attempts < ATTEMPTS {
            for group in all.chunks(step) {
                let mut fewer = self.best.clone();
                fewer.iter_mut().for_each(|state| remove(&mut state.world, group));
                if fewer != self.best && self.attempts < ATTEMPTS {
                    self.take(fewer);
                }
            }
            step /= 2;
        }
    }
}

/// Every part of a world that may be left out, by a name that is the same in all states.
fn names(world: &World, path: OraclePath) -> Vec<String> {
    let mut names = Vec::new();
    names.extend(
        world.namespaces.iter().filter(|other| !other.labels.is_empty()).map(|other| format!("labels {}", other.name)),
    );
    names.extend(world.pods.iter().map(|pod| format!("pod {}", pod.id())));
    // On a wire every node has an agent.
    let nodes = world.nodes.iter().filter(|node| path == OraclePath::Run && node.name != super::site::HERE);
    names.extend(nodes.map(|node| format!("node {}", node.name)));
    for service in &world.services {
        names.push(format!("service {}", service.name));
        names.extend(parts(service).into_iter().map(|part| format!("{part} {}", service.name)));
    }
    let zones = world.nodes.iter().filter(|node| node.zone.is_some());
    names.extend(zones.map(|node| format!("zone {}", node.name)));
    let with_ports = world.pods.iter().filter(|pod| !pod.host_ports.is_empty());
    names.extend(with_ports.map(|pod| format!("host ports {}", pod.id())));
    for slice in &world.slices {
        names.push(format!("slice {}", slice.name));
        names.extend((0..slice.endpoints.len()).map(|at| format!("endpoint {} {at}", slice.name)));
        let hinted = slice.endpoints.iter().any(|endpoint| endpoint.hints != Hints::default());
        names.extend(hinted.then(|| format!("hints {}", slice.service)));
    }
    for policy in &world.policies {
        let name = format!("{}/{}", policy.namespace, policy.name);
        names.push(format!("policy {name}"));
        names.extend((0..policy.ingress.iter().flatten().count()).map(|at| format!("ingress {name} {at}")));
        names.extend((0..policy.egress.iter().flatten().count()).map(|at| format!("egress {name} {at}")));
    }
    names
}

const EXTERNAL_IPS: &str = "external IPs";
const INGRESS: &str = "ingress";
const RANGES: &str = "ranges";
const DISTRIBUTION: &str = "distribution";
const LOCAL: &str = "external local";
const NODE_PORTS: &str = "node ports";

/// What a Service may do without.
fn parts(service: &Service) -> Vec<&'static str> {
    let Exposure { external_ips, ingress, ranges, distribution, local, .. } = &service.exposure;
    let parts = [
        (EXTERNAL_IPS, !external_ips.is_empty()),
        (INGRESS, !ingress.is_empty()),
        (RANGES, !ranges.is_empty()),
        (DISTRIBUTION, distribution.is_some()),
        (LOCAL, *local),
        (NODE_PORTS, service.ports.iter().any(|port| port.node_port.is_some())),
    ];
    parts.into_iter().filter(|(_, is_there)| *is_there).map(|(part, _)| part).collect()
}

fn remove(world: &mut World, group: &[String]) {
    let goes = |name: String| group.contains(&name);
    world
        .namespaces
        .iter_mut()
        .filter(|other| goes(format!("labels {}", other.name)))
        .for_each(|other| other.labels.clear());
    world.pods.retain(|pod| !goes(format!("pod {}", pod.id())));
    world.nodes.retain(|node| !goes(format!("node {}", node.name)));
    world.services.retain(|service| !goes(format!("service {}", service.name)));
    for Service { name, exposure, ports, .. } in &mut world.services {
        let Exposure { external_ips, ingress, ranges, distribution, local, .. } = exposure;
        external_ips.retain(|_| !goes(format!("{EXTERNAL_IPS} {name}")));
        ingress.retain(|_| !goes(format!("{INGRESS} {name}")));
        ranges.retain(|_| !goes(format!("{RANGES} {name}")));
        distribution.take_if(|_| goes(format!("{DISTRIBUTION} {name}")));
        *local &= !goes(format!("{LOCAL} {name}"));
        let ports = ports.iter_mut().filter(|_| goes(format!("{NODE_PORTS} {name}")));
        ports.for_each(|port| port.node_port = None);
    }
    for node in &mut world.nodes {
        node.zone.take_if(|_| goes(format!("zone {}", node.name)));
    }
    for pod in world.pods.iter_mut().filter(|pod| goes(format!("host ports {}", pod.id()))) {
        pod.host_ports.clear();
    }
    world.slices.retain(|slice| !goes(format!("slice {}", slice.name)));
    for slice in world.slices.iter_mut().filter(|slice| goes(format!("hints {}", slice.service))) {
        slice.endpoints.iter_mut().for_each(|endpoint| endpoint.hints = Hints::default());
    }
    for slice in &mut world.slices {
        retain_at(&mut slice.endpoints, |at| !goes(format!("endpoint {} {at}", slice.name)));
    }
    world.policies.retain(|policy| !goes(format!("policy {}/{}", policy.namespace, policy.name)));
    for policy in &mut world.policies {
        let name = format!("{}/{}", policy.namespace, policy.name);
        for (list, kind) in [(&mut policy.ingress, "ingress"), (&mut policy.egress, "egress")] {
            if let Some(rules) = list {
                retain_at(rules, |at| !goes(format!("{kind} {name} {at}")));
            }
        }
    }
}

fn retain_at<T>(list: &mut Vec<T>, keep: impl Fn(usize) -> bool) {
    let mut at = 0;
    list.retain(|_| {
        at += 1;
        keep(at - 1)
    });
}
