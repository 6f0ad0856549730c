// SPDX-License-Identifier: Apache-2.0

//! Short connections from beyond the cluster, by a NodePort of one node to a pod of another: there and back through the first one.
//!
//! Both clusters are routed (Weft's mode `native`), stand on the same switch, and are asked by the same machine.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use weft_testbed::{
    Bed, Binaries, Container, Mode, Options,
    apiserver::{ApiServer, Kind},
    load::{self, ProxyMode, ProxyNode, ProxyPod},
    until,
};

use super::{
    super::{
        net::{a_rule_each_way, block},
        statistic::Pair,
        table::Row,
    },
    Found,
    objects::LOAD,
    wire::{End, TURNS, await_served, short_connections},
};

const NODE_PORT: u16 = 30_080;
const PATIENCE: Duration = Duration::from_secs(30);
const REACH: &str = "ratio <= 0.6";

/// Two nodes of kube-proxy.
struct Proxies {
    _pod: ProxyPod,
    nodes: [ProxyNode; 2],
    _server: ApiServer,
}

impl Proxies {
    fn new(bed: &Bed, mtu: u32) -> Result<Self> {
        let server = ApiServer::new();
        let node = |number| ProxyNode::new(bed, number, ProxyMode::Nftables, &server);
        let nodes = [node(1)?, node(2)?];
        let [near, far] = &nodes;
        near.route_to(far)?;
        far.route_to(near)?;
        let pod = far.pod(bed, mtu)?;
        load::serve(&pod, LOAD.port, TURNS)?;
        server.put(Kind::Nodes, near.object())?;
        server.put(Kind::Nodes, far.object())?;
        server.put(Kind::Services, LOAD.exposed(NODE_PORT))?;
        server.put(Kind::EndpointSlices, LOAD.slice(far.name(), &[pod.v4()]))?;
        near.start_proxy()?;
        far.start_proxy()?;
        Ok(Self { _pod: pod, nodes, _server: server })
    }
}

/// Measures both, round by round.
pub(super) fn measure(rounds: usize, found: &mut Found) -> Result<()> {
    let bed = Bed::of(&Options { nodes: 2, mode: Mode::Native, ..Options::default() }, &Binaries::released()?)?;
    // Weft's pod hears and speaks to everybody.
    let all = block("0.0.0.0/0");
    bed.apply(&a_rule_each_way(&all, &all))?;
    let pod: Container = bed.container(2, "default/far", &[])?;
    let IpAddr::V4(address) = pod.v4()? else { bail!("no IPv4 address") };
    load::serve(&pod, LOAD.port, TURNS)?;
    bed.apply(&LOAD.exposed(NODE_PORT))?;
    bed.apply(&LOAD.slice(bed.node(2).name(), &[address]))?;
    until("the policy to be on", PATIENCE, || {
        bed.node(2).weft("policies").is_ok_and(|text| text.contains("default/far"))
    })?;
    let proxies = Proxies::new(&bed, load::mtu(&pod)?)?;
    let at = |node: IpAddr| End { client: bed.outside(), to: SocketAddr::new(node, NODE_PORT) };
    let ends = Pair { value: at(bed.node(1).v4().into()), baseline: at(proxies.nodes[0].v4().into()) };
    let outside = bed.outside().machine().proc("ns/net");
    ensure!(await_served(&outside, ends.value.to, PATIENCE)?.is_some(), "not served:\n{}", bed.node(1).agent_log());
    ensure!(await_served(&outside, ends.baseline.to, PATIENCE)?.is_some(), "not served:\n{}", proxies.nodes[0].log());
    let mut measured = Vec::new();
    for round in 1..=rounds {
        eprintln!("nodeport_crr: round {round} of {rounds}");
        measured.push(short_connections(round, ends).context("nodeport_crr")?);
    }
    found.add(Row::new("nodeport_crr", "us", "nodeport_crr_nftables", &measured)?.with_reach(REACH));
    Ok(())
}
