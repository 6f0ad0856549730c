// SPDX-License-Identifier: Apache-2.0

//! Another version takes a node's connections over, and gives them back: flow tables of another layout, and of another size.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use weft_testbed::{Bed, Binaries, Container, Job, Node, Protocol, Shell, Vm, service, until_ok};

const PORT: u16 = 8080;

/// Records a second of a stream that lives through everything, and how long it does.
const RATE: usize = 200;
const SECONDS: usize = 75;

/// Longer than two retransmissions of a SYN take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream from `client`.
struct Stream<'w> {
    client: &'w dyn Shell,
    name: String,
    job: Job,
}

impl<'w> Stream<'w> {
    fn start(client: &'w dyn Shell, protocol: &str, to: SocketAddr) -> Result<Self> {
        let name = format!("{protocol}-{to}").replace(['[', ']', ':', '.'], "-");
        let script = format!("weft-probe stream {protocol} {to} --rate {RATE} --seconds {SECONDS} --timeout 20000");
        let job = client.start(&name, &script)?;
        job.prints(client, "STREAMING", PATIENCE)?;
        Ok(Self { client, name, job })
    }

    fn loses_nothing(self, bed: &Bed) -> Result<()> {
        let outcome = self.job.finish(self.client, Duration::from_secs(150))?;
        let all = format!("sent {0} received {0} lost 0", RATE * SECONDS);
        let is_whole = outcome.status == 0 && outcome.output.contains(&all);
        ensure!(is_whole, "{}: {}\n{}", self.name, outcome.output, told(bed));
        Ok(())
    }
}

/// What the nodes dropped, and the logs of their agents.
fn told(bed: &Bed) -> String {
    let of = |node: &std::rc::Rc<Node>| {
        let drops = node.sh("weft drops").map_or_else(|error| error.to_string(), |outcome| outcome.output);
        let refused = node
            .sh("weft flows --last 4000 | grep takeover | tail -60")
            .map_or_else(|error| error.to_string(), |outcome| outcome.output);
        format!("{}:\n{drops}\n{refused}\n{}", node.name(), node.agent_log())
    };
    bed.nodes().iter().map(of).collect()
}

/// Opens streams of three seconds one after the other, ten a second, for eight seconds: some of them while programs are exchanged.
fn opens_meanwhile(client: &Container, to: SocketAddr) -> Result<Job> {
    let script = format!(
        "for number in $(seq 80); do
             (weft-probe stream tcp {to} --rate 50 --seconds 3 --timeout 20000 || echo BROKEN) & sleep 0.1
         done
         wait; echo ENDED"
    );
    let job = client.start("meanwhile", &script)?;
    job.prints(client, "STREAMING", PATIENCE)?;
    Ok(job)
}

/// A node of two with what is connected across it.
struct Site {
    bed: Bed,
    servers: Vec<Container>,
    client: Container,
    guest: Vm,
}

impl Site {
    fn new() -> Result<Self> {
        let bed = Bed::new()?;
        bed.outside().serve("outside", PORT)?;
        let mut servers = Vec::new();
        for number in 0..2 {
            let server = bed.container(2, &format!("default/server-{number}"), &[("app", "server")])?;
            server.serve("server", PORT)?;
            servers.push(server);
        }
        bed.apply(&service("default/server", ["10.96.0.10", "fd00:96::10"], 80, PORT, &[("app", "server")]))?;
        let client = bed.container(1, "default/client", &[])?;
        let guest = bed.vm(1, "default/guest", &[])?;
        for vip in VIPS {
            until_ok("the Service", PATIENCE, || client.ask(Protocol::Tcp, vip.parse()?))?;
        }
        Ok(Self { bed, servers, client, guest })
    }

    /// Of a pod and of a guest: to a pod, to a Service, and masqueraded to the outside, by both families and protocols.
    fn streams(&self) -> Result<Vec<Stream<'_>>> {
        let node = self.bed.node(1);
        let outside = [node.v4().into(), node.v6().into()].map(|own| self.bed.outside().address_for(own));
        let mut streams = Vec::new();
        for protocol in ["tcp", "udp"] {
            let vips = VIPS.iter().map(|vip| vip.parse::<SocketAddr>());
            let ends = vips.chain(outside.iter().map(|address| Ok(SocketAddr::new(*address, PORT))));
            for to in ends.chain(self.servers[0].sockets(PORT).into_iter().map(Ok)) {
                streams.push(Stream::start(&self.client, protocol, to?)?);
            }
            for vip in VIPS {
                streams.push(Stream::start(&self.guest, protocol, vip.parse()?)?);
            }
        }
        Ok(streams)
    }

    /// Exchanges the agent of a node by `start`, while connections are opened.
    fn exchange(&self, node: &Node, start: impl Fn(&Node) -> Result<()>) -> Result<()> {
        let job = opens_meanwhile(&self.client, VIPS[0].parse()?)?;
        let before = node.logged(TAKEN_OVER)?;
        node.stop_agent(Signal::SIGKILL)?;
        start(node)?;
        node.agent_ready()?;
        ensure!(
            node.logged(TAKEN_OVER)? == before + 1,
            "{}: nothing was taken over\n{}",
            node.name(),
            node.agent_log()
        );
        let outcome = job.finish(&self.client, Duration::from_secs(60))?;
        let is_whole = outcome.output.contains("ENDED") && !outcome.output.contains("BROKEN");
        ensure!(is_whole, "{}: {}\n{}", node.name(), outcome.output, told(&self.bed));
        Ok(())
    }
}

/// What an agent logs once it has taken connections over.
const TAKEN_OVER: &str = "took connections of other versions over";

const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

/// One node after the other, so that versions are mixed meanwhile.
#[test]
fn another_layout_of_flows_and_the_way_back_lose_and_move_nothing() -> Result<()> {
    let other = Binaries::other_agent()?;
    let site = Site::new()?;
    let streams = site.streams()?;
    for node in site.bed.nodes() {
        site.exchange(node, |node| node.start_agent_of(&other))?;
    }
    for node in site.bed.nodes() {
        site.exchange(node, Node::start_agent)?;
    }
    streams.into_iter().try_for_each(|stream| stream.loses_nothing(&site.bed))
}

#[test]
fn tables_that_grow_and_shrink_lose_and_move_nothing() -> Result<()> {
    let site = Site::new()?;
    let streams = site.streams()?;
    for entries in [1_u64 << 18, 1 << 14] {
        for node in site.bed.nodes() {
            node.configure("mapSizes", &json!({"flows4": entries, "flows6": entries / 2}))?;
            site.exchange(node, Node::start_agent)?;
            let maps = node.weft_json::<weft_api::StatusReport>("status")?.maps;
            // Eight lines for six entries.
            let lines = entries.div_ceil(6) * 8;
            ensure!(maps.iter().any(|map| map.name == "FLOWS4" && map.max_entries == lines), "{maps:?}");
        }
    }
    streams.into_iter().try_for_each(|stream| stream.loses_nothing(&site.bed))
}
