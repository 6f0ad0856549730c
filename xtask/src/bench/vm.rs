// SPDX-License-Identifier: Apache-2.0

//! `vm`: what a TCP connection between a pod and a guest costs, beside the same guest on a bare tap with an address.
//!
//! QEMU emulates the guest's processor in software, which is most of every figure; the ratios say what Weft adds.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use weft_testbed::{
    Bed, Binaries, Container, Options, Protocol, Shell, Vm,
    load::{self, BareTap, Kind},
};

use super::{
    statistic::{Side, in_turn},
    table::{Figure, Path, Row, compare},
};

const FIGURES: [Figure; 5] = [
    Figure { name: "rr_p50", unit: "us" },
    Figure { name: "rr_p99", unit: "us" },
    Figure { name: "crr", unit: "us" },
    Figure { name: "stream_in", unit: "Gbit/s" },
    Figure { name: "stream_out", unit: "Gbit/s" },
];
const ROUND_TRIPS: Duration = Duration::from_millis(700);
const CONNECTIONS: Duration = Duration::from_millis(700);
const STREAM: Duration = Duration::from_millis(700);
const PORT: u16 = 5201;
const CHECK: u16 = 8080;

/// A guest and what it talks to, each with a server.
struct Way<'a> {
    name: &'static str,
    peer: &'a dyn Shell,
    peer_socket: SocketAddr,
    guest: &'a dyn Shell,
    guest_socket: SocketAddr,
}

impl Way<'_> {
    fn serve(&self) -> Result<()> {
        load::serve(self.peer, PORT, None)?;
        load::serve(self.guest, PORT, None)
    }

    fn measure(&self) -> Result<[f64; 5]> {
        let trips = load::latency(self.peer, Kind::RoundTrips, self.guest_socket, ROUND_TRIPS, None)?;
        let short = load::latency(self.peer, Kind::Connections, self.guest_socket, CONNECTIONS, None)?;
        let into_guest = load::throughput(self.peer, self.guest_socket, STREAM, None)?;
        let out_of_guest = load::throughput(self.guest, self.peer_socket, STREAM, None)?;
        Ok([trips.p50, trips.p99, short.p50, into_guest, out_of_guest])
    }
}

/// A pod and a guest on one node.
struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    guest: Vm,
    pod: Container,
    bed: Bed,
}

impl Site {
    fn new() -> Result<Self> {
        let bed = Bed::of(&Options { nodes: 1, ..Options::default() }, &Binaries::released()?)?;
        let pod = bed.container(1, "default/pod", &[])?;
        let guest = bed.vm(1, "default/guest", &[])?;
        guest.serve("guest", CHECK)?;
        let site = Self { guest, pod, bed };
        site.pod.ask(Protocol::Tcp, site.guest_socket(CHECK)?)?;
        Ok(site)
    }

    fn guest_socket(&self, port: u16) -> Result<SocketAddr> {
        self.guest.sockets(port).into_iter().find(SocketAddr::is_ipv4).context("the guest has no IPv4 address")
    }
}

/// Measures both guests in turn.
///
/// # Errors
/// A guest does not boot, or a path does not work.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let site = Site::new()?;
    let bare = BareTap::new(&site.bed)?;
    let node = site.bed.node(1);
    let [tap, pod] = [
        Way {
            name: "tap",
            peer: &bare.host,
            peer_socket: bare.host_socket(PORT),
            guest: &bare,
            guest_socket: bare.guest_socket(PORT),
        },
        Way {
            name: "pod_vm",
            peer: &site.pod,
            peer_socket: SocketAddr::new(site.pod.v4()?, PORT),
            guest: &site.guest,
            guest_socket: site.guest_socket(PORT)?,
        },
    ];
    for way in [&tap, &pod] {
        way.serve().with_context(|| format!("path {}", way.name))?;
    }
    let mut path = Path::new(pod.name, tap.name);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        path.rounds.push(in_turn(round, |side| {
            let way = if side == Side::Baseline { &tap } else { &pod };
            way.measure().with_context(|| format!("path {}; agent log:\n{}", way.name, node.agent_log()))
        })?);
    }
    compare(&FIGURES, &[path])
}
