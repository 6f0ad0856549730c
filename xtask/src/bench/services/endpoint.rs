// SPDX-License-Identifier: Apache-2.0

//! One EndpointSlice among many Services: from the event until a client meets the new backend.
//!
//! All are measured in the same way, by what a client sees: a thread in the client's network namespace replaces the slice, whose one
//! backend becomes the other of two, and opens connections until the other one has answered. It begins when the server is about to
//! write the event to the watch.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use weft_testbed::{
    apiserver::{ApiServer, Kind},
    load::percentile,
};

use super::{
    super::{statistic::Pair, table::Row},
    Found,
    objects::{CHANGE, put},
    peer::Peer,
    site::Site,
    wire::{Named, meets_after},
};

/// How long one change may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A change takes kube-proxy many seconds.
const MOST_ROUNDS: usize = 5;
/// What is to be reached, in milliseconds.
const REACH: [&str; 2] = ["value <= 1", "value <= 5"];
const TO_REACH: [f64; 2] = [1.0, 5.0];

/// Where changes are measured.
struct Place<'a> {
    name: &'static str,
    server: &'a ApiServer,
    node: &'a str,
    client: PathBuf,
    /// Network namespaces of the two backends, and their addresses.
    servers: [PathBuf; 2],
    backends: [Ipv4Addr; 2],
    /// Changes of a round.
    changes: usize,
    /// Between the end of a change and the next one: kube-proxy rests for a second after each.
    pause: Duration,
}

impl<'a> Place<'a> {
    fn of_weft(site: &'a Site) -> Result<Self> {
        Ok(Self {
            name: "weft",
            server: &site.server,
            node: site.bed.node(1).name(),
            client: site.network(&site.client),
            servers: [0, 1].map(|number| site.network(&site.servers[number])),
            backends: [site.address(0)?, site.address(1)?],
            changes: 100,
            pause: Duration::from_millis(15),
        })
    }

    fn of_peer(peer: &'a Peer) -> Self {
        Self {
            name: peer.mode.name(),
            server: &peer.server,
            node: peer.node.name(),
            client: peer.client.network(),
            servers: [0, 1].map(|number| peer.servers[number].network()),
            backends: [0, 1].map(|number| peer.servers[number].v4()),
            changes: 2,
            pause: Duration::from_millis(1_200),
        }
    }
}

/// The Service that changes there.
struct Subject<'a> {
    place: Place<'a>,
    /// Which backend it has.
    now: usize,
    _servers: [Named; 2],
}

impl<'a> Subject<'a> {
    fn new(place: Place<'a>) -> Result<Self> {
        let [one, other] = &place.servers;
        let servers = [Named::new(one, CHANGE.port, 0)?, Named::new(other, CHANGE.port, 1)?];
        put(place.server, &CHANGE, place.node, &place.backends[..1])?;
        let mut subject = Self { place, now: 0, _servers: servers };
        // Not measured: it waits for what the agent, or kube-proxy, was doing.
        subject.change()?;
        thread::sleep(Duration::from_secs(2));
        Ok(subject)
    }

    /// Milliseconds of one change.
    fn change(&mut self) -> Result<f64> {
        let next = 1 - self.now;
        let Place { server, node, ref client, ref backends, .. } = self.place;
        let slice = CHANGE.slice(node, &backends[next..=next]);
        let mut change = None;
        let to = SocketAddr::new(CHANGE.vip.into(), CHANGE.port);
        let end = meets_after(client, to, u8::try_from(next)?, PATIENCE, || {
            change = Some(server.put(Kind::EndpointSlices, slice)?);
            Ok(())
        })?;
        self.now = next;
        let written = change.and_then(|change| change.written()).context("no watch was told of the change")?;
        Ok(end.saturating_duration_since(written).as_secs_f64() * 1000.0)
    }

    /// Median and 99th percentile of a round.
    fn round(&mut self) -> Result<[f64; 2]> {
        let mut delays = Vec::new();
        for _ in 0..self.place.changes {
            delays.push(self.change()?);
            thread::sleep(self.place.pause);
        }
        Ok([percentile(&delays, 50), percentile(&delays, 99)])
    }
}

/// Measures Weft and kube-proxy in turn, if that got ready.
pub(super) fn measure(rounds: usize, size: &str, site: &Site, peer: Option<&Peer>, found: &mut Found) -> Result<()> {
    let mut weft = Subject::new(Place::of_weft(site)?)?;
    let mut proxy = peer.map(|peer| Subject::new(Place::of_peer(peer))).transpose()?;
    if let Some(peer) = peer {
        // What was asked for before there was a rule.
        peer.node.forget_connections()?;
    }
    let mut measured = Vec::new();
    let rounds = rounds.min(MOST_ROUNDS);
    for round in 1..=rounds {
        eprintln!("endpoint_{size}: round {round} of {rounds}");
        let value = weft.round().with_context(|| site.bed.node(1).agent_log())?;
        let baseline = match &mut proxy {
            Some(proxy) => proxy.round()?,
            None => TO_REACH,
        };
        measured.push(Pair { value, baseline });
    }
    for (number, figure) in ["p50", "p99"].into_iter().enumerate() {
        let own = format!("endpoint_{size}_{figure}");
        let peers = proxy.as_ref().map_or_else(|| "reach".to_owned(), |proxy| format!("{own}_{}", proxy.place.name));
        let pairs: Vec<_> = measured
            .iter()
            .map(|Pair { value, baseline }| Pair { value: value[number], baseline: baseline[number] })
            .collect();
        found.add(Row::new(&own, "ms", &peers, &pairs)?.with_reach(REACH[number]));
        if proxy.is_some() {
            let turned: Vec<_> =
                pairs.iter().map(|Pair { value, baseline }| Pair { value: *baseline, baseline: *value }).collect();
            found.add(Row::new(&peers, "ms", &own, &turned)?);
        }
    }
    Ok(())
}
