// SPDX-License-Identifier: Apache-2.0

//! `net`: what a TCP connection between two pods costs, beside a bare veth pair between two namespaces.
//!
//! Pods have a policy with a rule each way, and each node's agent a reader: `weft flows --follow`. Every path stands beside a veth
//! pair of its own, with the MTU of its pods; every figure of a round is taken of both right after one another, twice, and who
//! goes first alternates. Round trips (`rr`) and short connections (`crr`) have client and server on processor 1, so that they take
//! turns and no wake-up of another processor is in the figure; a stream has its sender on processor 0 and its receiver on 1, and
//! its congestion control is cubic.
//!
//! `veth` is the baseline beside itself: how far rounds of equals are apart. `peer_alone` is what no path of pods can beat: two
//! namespaces joined by a third, with a program that does nothing but `bpf_redirect_peer`. Some 5 minutes.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};
use weft_dataplane::bench::join_by_peer_alone;
use weft_testbed::{
    Bed, Binaries, Container, Job, Mode, Options, Protocol, Shell, in_network,
    load::{self, BareNode, BarePair, Kind},
    service, until_ok,
};

use super::{
    statistic::{Pair, Side, in_turn},
    table::{Figure, Path, Row, compare},
};

const FIGURES: [Figure; 4] = [
    Figure { name: "rr_p50", unit: "us" },
    Figure { name: "rr_p99", unit: "us" },
    Figure { name: "crr", unit: "us" },
    Figure { name: "stream", unit: "Gbit/s" },
];
/// Measurements of a figure in one round.
const SLICES: usize = 2;
const ROUND_TRIPS: Duration = Duration::from_millis(120);
const CONNECTIONS: Duration = Duration::from_millis(120);
const STREAM: Duration = Duration::from_millis(200);
/// Port of the load's server, and of the Service in front of it.
const PORT: u16 = 5201;
/// Port of the server that shows that the path works before it is measured.
const CHECK: u16 = 8080;
const SERVICE: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
/// Where client and server of round trips run, and the receiver of a stream.
const TURNS: Option<usize> = Some(1);
const SENDER: Option<usize> = Some(0);
/// How long a policy may take to be on.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client and the server that it asks.
#[derive(Clone, Copy)]
struct End<'a> {
    client: &'a dyn Shell,
    to: SocketAddr,
}

impl End<'_> {
    fn latency(self, kind: Kind, duration: Duration) -> Result<[f64; 2]> {
        let latency = load::latency(self.client, kind, self.to, duration, TURNS)?;
        Ok([latency.p50, latency.p99])
    }
}

/// A way from a client to a server, and the bare pair that it is compared with.
struct Way<'a> {
    name: &'static str,
    path: End<'a>,
    pair: BarePair,
}

impl<'a> Way<'a> {
    fn new(bed: &Bed, name: &'static str, client: &'a dyn Shell, to: SocketAddr) -> Result<Self> {
        let pair = BarePair::new(bed, load::mtu(client)?)?;
        load::serve(&pair.right, PORT, TURNS)?;
        Ok(Self { name, path: End { client, to }, pair })
    }

    /// The figures of one round, each of both sides right after one another, several times.
    fn measure(&self, round: usize) -> Result<Pair<[f64; 4]>> {
        let bare = End { client: &self.pair.left, to: self.pair.right_socket(PORT) };
        let end = |side| if side == Side::Baseline { bare } else { self.path };
        let [p50, p99] = slices(round, |side| end(side).latency(Kind::RoundTrips, ROUND_TRIPS))?;
        let [short, _] = slices(round, |side| end(side).latency(Kind::Connections, CONNECTIONS))?;
        let [stream] = slices(round, |side| Ok([load::throughput(end(side).client, end(side).to, STREAM, SENDER)?]))?;
        let figures = [p50, p99, short, stream];
        Ok(Pair { value: figures.map(|pair| pair.value), baseline: figures.map(|pair| pair.baseline) })
    }
}

/// Means of several measurements of both sides, which take turns.
fn slices<const FIGURES: usize>(
    round: usize,
    mut measure: impl FnMut(Side) -> Result<[f64; FIGURES]>,
) -> Result<[Pair<f64>; FIGURES]> {
    let mut means = [Pair { value: 0.0, baseline: 0.0 }; FIGURES];
    for slice in 0..SLICES {
        let pair = in_turn(round + slice, &mut measure)?;
        for ((mean, value), baseline) in means.iter_mut().zip(pair.value).zip(pair.baseline) {
            mean.value += value / SLICES as f64;
            mean.baseline += baseline / SLICES as f64;
        }
    }
    Ok(means)
}

/// Pods of one way to join nodes.
struct Site {
    // Before the bed: a pod is unplugged while its agent is there.
    client: Container,
    here: Container,
    there: Container,
    stranger: Container,
    readers: Vec<Job>,
    bed: Bed,
}

impl Site {
    fn new(mode: Mode, binaries: &Binaries) -> Result<Self> {
        let bed = Bed::of(&Options { nodes: 2, mode, ..Options::default() }, binaries)?;
        bed.apply(&service("default/load", SERVICE, PORT, PORT, &[("app", "load")]))?;
        bed.apply(&service("default/check", ["10.96.0.21", "fd00:96::21"], CHECK, CHECK, &[("app", "load")]))?;
        bed.apply(&a_rule_each_way(&pods(), &pods()))?;
        let client = bed.container(1, "default/client", &[])?;
        let here = bed.container(1, "default/here", &[("app", "load")])?;
        let there = bed.container(2, "default/there", &[])?;
        let stranger = bed.container(1, "elsewhere/stranger", &[])?;
        let reader = |node: &std::rc::Rc<weft_testbed::Node>| node.start("reader", "weft flows --follow");
        let readers = bed.nodes().iter().map(reader).collect::<Result<_>>()?;
        let site = Self { client, here, there, stranger, readers, bed };
        site.serve()?;
        Ok(site)
    }

    /// Starts the servers, and sees that paths work and policy is on.
    fn serve(&self) -> Result<()> {
        for server in [&self.here, &self.there] {
            load::serve(server, PORT, TURNS)?;
            server.serve(&server.label(), CHECK)?;
            let to = SocketAddr::new(server.v4()?, CHECK);
            until_ok("the policy to be on", PATIENCE, || self.stranger.is_kept_out(Protocol::Tcp, to))?;
            self.client.ask(Protocol::Tcp, to)?;
        }
        let to = SocketAddr::new("10.96.0.21".parse()?, CHECK);
        self.client.ask(Protocol::Tcp, to).map(drop).context("the Service")
    }

    /// That readers have read to the end.
    fn was_read(&self) -> Result<()> {
        for (node, reader) in self.bed.nodes().iter().zip(&self.readers) {
            let (output, runs) = (reader.output(&**node)?, node.sh("pgrep -x weft")?.status == 0);
            ensure!(runs && output.contains(&self.client.v4()?.to_string()), "{}: nobody has read flows", node.name());
        }
        Ok(())
    }
}

/// Pods hear these peers and speak to those, by a rule each way.
pub(super) fn a_rule_each_way(from: &Value, to: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": "a-rule-each-way"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [from]}],
            "egress": [{"to": [to]}],
        },
    })
}

/// All pods of the namespace, as a peer.
pub(super) fn pods() -> Value {
    json!({"podSelector": {}})
}

/// The addresses of a prefix, as a peer.
pub(super) fn block(cidr: &str) -> Value {
    json!({"ipBlock": {"cidr": cidr}})
}

/// Two machines that `bpf_redirect_peer` alone joins.
fn peer_alone(bed: &Bed, mtu: u32) -> Result<BareNode> {
    let bare = BareNode::new(bed, mtu)?;
    in_network(&bare.node.namespace().proc("ns/net"), || {
        let [left, right] = BareNode::PORTS.map(if_nametoindex);
        Ok(join_by_peer_alone([left?, right?])?)
    })?;
    load::serve(&bare.right, PORT, TURNS)?;
    Ok(bare)
}

/// Measures all paths, round by round.
///
/// # Errors
/// A path does not work.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let binaries = Binaries::released()?;
    let vxlan = Site::new(Mode::Vxlan, &binaries)?;
    let native = Site::new(Mode::Native, &binaries)?;
    let mtu = load::mtu(&vxlan.client)?;
    let (same, peer) = (BarePair::new(&vxlan.bed, mtu)?, peer_alone(&vxlan.bed, mtu)?);
    load::serve(&same.right, PORT, TURNS)?;
    let way = |name, client, to| Way::new(&vxlan.bed, name, client, to);
    let service = SocketAddr::new(SERVICE[0].parse()?, PORT);
    let ways = [
        way("veth", &same.left, same.right_socket(PORT))?,
        way("peer_alone", &peer.left, peer.right_socket(PORT))?,
        way("pod_pod", &vxlan.client, SocketAddr::new(vxlan.here.v4()?, PORT))?,
        way("pod_clusterip", &vxlan.client, service)?,
        way("cross_native", &native.client, SocketAddr::new(native.there.v4()?, PORT))?,
        way("cross_vxlan", &vxlan.client, SocketAddr::new(vxlan.there.v4()?, PORT))?,
    ];
    let mut paths = ways.each_ref().map(|way| Path::new(way.name, "veth"));
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (way, path) in ways.iter().zip(&mut paths) {
            path.rounds.push(way.measure(round).with_context(|| format!("path {}", way.name))?);
        }
    }
    vxlan.was_read()?;
    native.was_read()?;
    compare(&FIGURES, &paths)
}
