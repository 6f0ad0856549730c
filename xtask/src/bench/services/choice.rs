// SPDX-License-Identifier: Apache-2.0

//! Which backends new flows are given, by the real programs on the maps that a real agent has planned.
//!
//! The programs are loaded once more on the agent's maps, and `BPF_PROG_TEST_RUN` sends the first packet of each flow as two pods:
//! where it leads is read from the packet. Every round has flows of its own, and the tables of flows empty.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use weft_api::Mac;
use weft_dataplane::{Arrival, Dataplane, MapSizes, Options as Loading, Program};
use weft_testbed::{Bed, Binaries, Container, Options, Shell as _, Tables, in_network, pod, until};

use super::{
    super::{
        net::{a_rule_each_way, block, pods},
        statistic::Pair,
        table::Row,
    },
    Found,
    objects::Front,
};

/// Flows of a round, half of each pod.
const FLOWS: u16 = 50_000;
const FIRST_PORT: u16 = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);
/// Rounds of the balance rows: each throws 100,000 flows.
const MOST_ROUNDS: usize = 5;
/// `TC_ACT_REDIRECT`.
const REDIRECT: u32 = 7;
const SYN: u8 = 0x02;
/// No share or rate stands in the way of so many flows of one pod.
const ENOUGH: u32 = 1 << 30;

/// A Service and how it chooses.
struct Chosen {
    front: Front,
    algorithm: &'static str,
    /// Weights of its backends, by their Pods' labels.
    weights: &'static [u16],
}

const fn front(name: &'static str, last: u8) -> Front {
    Front { name, vip: Ipv4Addr::new(10, 96, 0, last), port: 80 }
}

const CONSISTENT: Chosen = Chosen { front: front("consistent", 31), algorithm: "consistent", weights: &[100; 100] };
const RANDOM: Chosen = Chosen { front: front("random", 32), algorithm: "random", weights: &[100; 101] };
const WEIGHTED: Chosen = Chosen {
    front: front("weighted", 33),
    algorithm: "random",
    weights: &[10, 25, 50, 75, 100, 100, 150, 200, 250, 400, 1000],
};
const LEAST: Chosen = Chosen { front: front("least", 34), algorithm: "least-loaded", weights: &[100; 100] };

impl Chosen {
    fn service(&self) -> Value {
        let mut service = self.front.service();
        service["metadata"]["annotations"] = json!({"weft.dev/algorithm": self.algorithm});
        service
    }

    /// Of a pod of the other node; several Services have it.
    fn address(backend: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 2, u8::try_from(64 + backend).unwrap_or(u8::MAX))
    }

    fn pod_name(&self, backend: usize) -> String {
        format!("{}-{backend}", self.front.name)
    }

    /// Its slice, without one of its backends if one has gone.
    fn slice(&self, gone: Option<usize>) -> Value {
        let mut slice = self.front.slice("node2", &[]);
        let endpoint = |number: usize| {
            json!({
                "addresses": [Self::address(number).to_string()], "nodeName": "node2",
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": self.pod_name(number)},
            })
        };
        let there = (0..self.weights.len()).filter(|number| Some(*number) != gone);
        slice["endpoints"] = there.map(endpoint).collect();
        slice
    }

    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.front.vip.into(), self.front.port)
    }
}

/// Agent, pods, and the programs on the agent's maps.
struct Site {
    dataplane: Dataplane,
    clients: [Container; 2],
    tables: Tables,
    bed: Bed,
}

impl Site {
    fn new() -> Result<Self> {
        let sizes = MapSizes { flows4: 1 << 19, ..MapSizes::default() };
        let config = json!({"mapSizes": sizes});
        let bed = Bed::of(&Options { nodes: 2, config, ..Options::default() }, &Binaries::released()?)?;
        // Pods speak to the range that the backends are of, and hear each other.
        bed.apply(&a_rule_each_way(&pods(), &block("10.244.0.0/16")))?;
        for chosen in [&CONSISTENT, &RANDOM, &WEIGHTED, &LEAST] {
            for (number, weight) in chosen.weights.iter().enumerate().filter(|(_, weight)| **weight != 100) {
                let name = format!("default/{}", chosen.pod_name(number));
                bed.apply(&pod(&name, "node2", &[("weft.dev/weight", &weight.to_string())]))?;
            }
            bed.apply(&chosen.service())?;
            bed.apply(&chosen.slice(None))?;
        }
        let clients = [bed.container(1, "default/one", &[])?, bed.container(1, "default/two", &[])?];
        let tables = Tables::of(bed.node(1))?;
        let pins = bed.node(1).machine().path(Loading::PIN_DIR);
        let network = bed.node(1).machine().proc("ns/net");
        let dataplane = in_network(&network, || Ok(Dataplane::open(&Loading { sizes, ..Loading::new(pins) })?))?;
        let site = Self { dataplane, clients, tables, bed };
        for chosen in [&CONSISTENT, &RANDOM, &WEIGHTED, &LEAST] {
            site.wait_backends(chosen, chosen.weights.len())?;
        }
        site.lift_bounds()?;
        Ok(site)
    }

    fn wait_backends(&self, chosen: &Chosen, count: usize) -> Result<()> {
        until(&format!("{count} backends of {}", chosen.front.name), PATIENCE, || {
            self.tables.backends(chosen.to()).is_ok_and(|found| found.is_some_and(|found| found.len() == count))
        })
        .with_context(|| self.bed.node(1).agent_log())
    }

    /// What was dropped, for messages.
    fn drops(&self) -> String {
        self.bed.node(1).weft("drops").unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Two pods send the flows of a node.
    fn lift_bounds(&self) -> Result<()> {
        let maps = self.dataplane.maps();
        let mut config = maps.config().get(0)?;
        (config.flow_share, config.flow_most, config.flow_rate) = ([ENOUGH; 2], [ENOUGH; 2], ENOUGH);
        Ok(maps.config().set(0, &config)?)
    }

    /// Which backend each flow of both pods gets.
    fn choose(&self, chosen: &Chosen) -> Result<Vec<Ipv4Addr>> {
        self.dataplane.maps().flows4().retain(|_, _| false)?;
        let ports = self.clients.each_ref().map(|client| Client::of(&self.bed, client));
        let network = self.bed.node(1).machine().proc("ns/net");
        let [one, other] = ports;
        let (ports, dataplane) = ([one?, other?], &self.dataplane);
        in_network(&network, || {
            let mut found = Vec::with_capacity(2 * usize::from(FLOWS));
            for client in &ports {
                for sport in FIRST_PORT..FIRST_PORT + FLOWS {
                    found.push(client.send(dataplane, chosen, sport)?);
                }
            }
            Ok(found)
        })
        .with_context(|| self.drops())
    }
}

/// A pod as its packets show it.
struct Client {
    ifindex: u32,
    address: Ipv4Addr,
    mac: [u8; 6],
}

impl Client {
    fn of(bed: &Bed, pod: &Container) -> Result<Self> {
        let IpAddr::V4(address) = pod.v4()? else { bail!("no IPv4 address") };
        let side = pod.attachment().interface(false)?;
        let name = side["name"].as_str().context("the interface has no name")?;
        let index = bed.node(1).sh(&format!("cat /sys/class/net/{name}/ifindex"))?.ok()?;
        let own = pod.attachment().interface(true)?;
        let text = own["mac"].as_str().context("the interface has no Ethernet address")?;
        let Mac(mac) = text.parse()?;
        Ok(Self { ifindex: index.trim().parse()?, address, mac })
    }

    /// The first packet of a flow: where it leads.
    fn send(&self, dataplane: &Dataplane, chosen: &Chosen, sport: u16) -> Result<Ipv4Addr> {
        let mut packet = [weft_abi::GATEWAY_MAC, self.mac].concat();
        packet.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend([self.address.octets(), chosen.front.vip.octets()].concat());
        packet.extend([sport.to_be_bytes(), chosen.front.port.to_be_bytes()].concat());
        packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 4, 0, 0, 0, 0, 0]);
        let arrival = Arrival { ifindex: self.ifindex, received_by: self.ifindex, ..Arrival::default() };
        let report = dataplane.test_run(Program::FromWorkload, &packet, arrival, 1)?;
        ensure!(report.action == REDIRECT, "{}: action {} of port {sport}", chosen.front.name, report.action);
        let at = report.packet.get(30..34).context("a short packet")?;
        Ok(Ipv4Addr::from(<[u8; 4]>::try_from(at)?))
    }
}

/// The part of the flows that get another backend once one of the hundred is gone, another one in each round.
fn moved(site: &Site, round: usize) -> Result<f64> {
    let count = CONSISTENT.weights.len();
    site.wait_backends(&CONSISTENT, count)?;
    let before = site.choose(&CONSISTENT)?;
    site.bed.apply(&CONSISTENT.slice(Some(round * 7 % count)))?;
    site.wait_backends(&CONSISTENT, count - 1)?;
    let after = site.choose(&CONSISTENT)?;
    site.bed.apply(&CONSISTENT.slice(None))?;
    let differ = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    Ok(differ as f64 / before.len() as f64)
}

/// How likely flows are spread as unevenly as these by chance.
fn likelihood(site: &Site, chosen: &Chosen) -> Result<f64> {
    let mut counts = BTreeMap::new();
    for backend in site.choose(chosen)? {
        *counts.entry(backend).or_insert(0_u32) += 1;
    }
    let total: f64 = chosen.weights.iter().copied().map(f64::from).sum();
    let flows = 2.0 * f64::from(FLOWS);
    let squares = chosen.weights.iter().enumerate().map(|(number, weight)| {
        let expected = flows * f64::from(*weight) / total;
        let found = counts.get(&Chosen::address(number)).copied().unwrap_or_default();
        (f64::from(found) - expected).powi(2) / expected
    });
    Ok(chi_square(squares.sum(), chosen.weights.len() - 1))
}

/// How likely chance alone makes a sum of squares as large as `sum`; `freedom`, which is even, degrees of it.
fn chi_square(sum: f64, freedom: usize) -> f64 {
    let half = sum / 2.0;
    // A Poisson distribution's first terms, each by its logarithm: `exp(-half)` alone may be nothing.
    let mut logarithm = -half;
    let mut total = logarithm.exp();
    for number in 1..freedom / 2 {
        logarithm += half.ln() - (number as f64).ln();
        total += logarithm.exp();
    }
    total.min(1.0)
}

/// The most connections of a backend beside the mean, none of them closed.
fn unevenness(site: &Site) -> Result<f64> {
    let loads = site.dataplane.maps().loads();
    for entry in loads.iter() {
        loads.remove(&entry?.0)?;
    }
    let flows = site.choose(&LEAST)?.len();
    let mut most = 0;
    let mut sum = 0;
    for entry in loads.iter() {
        let (_, connections) = entry?;
        (most, sum) = (most.max(connections), sum + connections as usize);
    }
    ensure!(sum == flows, "{sum} connections are counted of {flows}");
    Ok(f64::from(most) * LEAST.weights.len() as f64 / flows as f64)
}

/// Measures all rows.
pub(super) fn measure(rounds: usize, found: &mut Found) -> Result<()> {
    let site = Site::new()?;
    let rounds = rounds.min(MOST_ROUNDS);
    let mut measured = [const { Vec::new() }; 4];
    for round in 1..=rounds {
        eprintln!("choice: round {round} of {rounds}");
        let values =
            [moved(&site, round)?, likelihood(&site, &RANDOM)?, likelihood(&site, &WEIGHTED)?, unevenness(&site)?];
        for (measured, value) in measured.iter_mut().zip(values) {
            measured.push(value);
        }
    }
    let promises = [
        ("consistent_moved", "part", 0.011, "value <= 0.011"),
        ("balance_random", "p", 0.001, "value > 0.001"),
        ("balance_weighted", "p", 0.001, "value > 0.001"),
        ("balance_least", "x mean", 1.05, "value <= 1.05"),
    ];
    for ((name, unit, bound, reach), values) in promises.into_iter().zip(&measured) {
        let pairs: Vec<_> = values.iter().map(|value| Pair { value: *value, baseline: bound }).collect();
        found.add(Row::new(name, unit, "reach", &pairs)?.with_reach(reach));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::chi_square;

    /// Quantiles from tables of the distribution.
    #[test]
    fn tables_of_chi_square_agree() {
        for (sum, freedom, likelihood) in
            [(18.307, 10, 0.05), (29.588, 10, 0.001), (124.342, 100, 0.05), (149.449, 100, 0.001), (9.342, 10, 0.5)]
        {
            assert!((chi_square(sum, freedom) / likelihood - 1.0).abs() < 2e-3, "{sum} of {freedom}");
        }
        assert_eq!(chi_square(0.0, 10), 1.0);
    }
}
