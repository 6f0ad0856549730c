// SPDX-License-Identifier: Apache-2.0

//! `net`: what a TCP connection between two pods costs, beside a bare veth pair between two namespaces.
//!
//! Round trips and short connections have client and server on processor 1, so that they take turns and no wake-up of
//! another processor is in the figure; a stream has its sender on processor 0 and its receiver on 1.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use weft_testbed::{
    Bed, Binaries, Container, Mode, Options, Protocol, Shell,
    load::{self, BarePair, Kind},
    service,
};

use super::table::{Figure, Path, Row, compare};

const FIGURES: [Figure; 4] = [
    Figure { name: "rr_p50", unit: "us" },
    Figure { name: "rr_p99", unit: "us" },
    Figure { name: "crr", unit: "us" },
    Figure { name: "stream", unit: "Gbit/s" },
];
const ROUNDS: usize = 9;
const ROUND_TRIPS: Duration = Duration::from_millis(400);
const CONNECTIONS: Duration = Duration::from_millis(400);
const STREAM: Duration = Duration::from_millis(700);
/// Port of the load's server, and of the Service in front of it.
const PORT: u16 = 5201;
/// Port of the server that shows that the path works before it is measured.
const CHECK: u16 = 8080;
const SERVICE: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
/// Where client and server of round trips run, and the receiver of a stream.
const TURNS: Option<usize> = Some(1);
const SENDER: Option<usize> = Some(0);

/// A way from a client to a server.
struct Way<'a> {
    name: &'static str,
    client: &'a dyn Shell,
    to: SocketAddr,
}

impl Way<'_> {
    fn measure(&self) -> Result<[f64; 4]> {
        let trips = load::latency(self.client, Kind::RoundTrips, self.to, ROUND_TRIPS, TURNS)?;
        let short = load::latency(self.client, Kind::Connections, self.to, CONNECTIONS, TURNS)?;
        let stream = load::throughput(self.client, self.to, STREAM, SENDER)?;
        Ok([trips.p50, trips.p99, short.p50, stream])
    }
}

/// Pods of one way to join nodes.
struct Site {
    // Before the bed: a pod is unplugged while its agent is there.
    client: Container,
    here: Container,
    there: Container,
    bed: Bed,
}

impl Site {
    fn new(mode: Mode, binaries: &Binaries) -> Result<Self> {
        let bed = Bed::of(&Options { nodes: 2, mode, ..Options::default() }, binaries)?;
        bed.apply(&service("default/load", SERVICE, PORT, PORT, &[("app", "load")]))?;
        bed.apply(&service("default/check", ["10.96.0.21", "fd00:96::21"], CHECK, CHECK, &[("app", "load")]))?;
        let client = bed.container(1, "default/client", &[])?;
        let here = bed.container(1, "default/here", &[("app", "load")])?;
        let there = bed.container(2, "default/there", &[])?;
        for server in [&here, &there] {
            load::serve(server, PORT, TURNS)?;
            server.serve(&server.label(), CHECK)?;
            client.ask(Protocol::Tcp, SocketAddr::new(server.v4()?, CHECK))?;
        }
        client.ask(Protocol::Tcp, SocketAddr::new("10.96.0.21".parse()?, CHECK)).context("the Service")?;
        Ok(Self { client, here, there, bed })
    }
}

/// Measures all paths in turn.
///
/// # Errors
/// A path does not work.
pub(super) fn rows() -> Result<Vec<Row>> {
    let binaries = Binaries::released()?;
    let vxlan = Site::new(Mode::Vxlan, &binaries)?;
    let native = Site::new(Mode::Native, &binaries)?;
    let pair = BarePair::new(&vxlan.bed)?;
    load::serve(&pair.right, PORT, TURNS)?;
    let service = SocketAddr::new(SERVICE[0].parse()?, PORT);
    let way = |name, client, to| Way { name, client, to };
    let ways = [
        way("veth", &pair.left, pair.right_socket(PORT)),
        way("pod_pod", &vxlan.client, SocketAddr::new(vxlan.here.v4()?, PORT)),
        way("cross_native", &native.client, SocketAddr::new(native.there.v4()?, PORT)),
        way("cross_vxlan", &vxlan.client, SocketAddr::new(vxlan.there.v4()?, PORT)),
        way("pod_clusterip", &vxlan.client, service),
    ];
    let mut paths = ways.each_ref().map(|way| Path { name: way.name, runs: Vec::new() });
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for (way, path) in ways.iter().zip(&mut paths) {
            path.runs.push(way.measure().with_context(|| format!("path {}", way.name))?);
        }
    }
    compare(&FIGURES, &paths)
}
