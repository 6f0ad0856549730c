// SPDX-License-Identifier: Apache-2.0

//! A node that has IPv6 alone, and its pods, beside a node of both families.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_testbed::{
    Bed, Binaries, Container, Node, OUTSIDE_V6, Options, Protocol, Shell, TcpConnection, UdpFlow, ingress_policy,
    until_ok,
};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;
const VIP: &str = "fd00:96::10";

/// Node 1 has no IPv4 at all: neither itself, nor its pods, nor Services.
struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    near: Container,
    other: Container,
    far: Container,
    bed: Bed,
}

impl Site {
    fn new() -> Result<Self> {
        // The other node counts with tunnels over IPv4, whose headers are smaller than those towards this one.
        let bed = Bed::idle(&Options { config: json!({"mtu": 1430}), ..Options::default() }, &Binaries::locate()?)?;
        let node = bed.node(1);
        node.sh(&format!(
            "set -e
             ip -4 address flush dev eth0
             sed -i '/10\\.244\\./d; /10\\.96\\./d' /mnt/{}/agent.yaml",
            node.name()
        ))?
        .ok()?;
        bed.nodes().iter().try_for_each(|node| node.start_agent().with_context(|| node.agent_log()))?;
        bed.nodes().iter().try_for_each(|node| node.agent_ready())?;
        bed.nodes().iter().try_for_each(|node| node.agent_knows(1))?;
        let near = bed.container(1, "default/near", &[("app", "web")])?;
        let other = bed.container(1, "default/other", &[("role", "client")])?;
        let far = bed.container(2, "default/far", &[("app", "web")])?;
        for (server, name) in [(&near, "near"), (&other, "other"), (&far, "far")] {
            server.serve(name, PORT)?;
        }
        bed.outside().serve("outside", PORT)?;
        bed.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
            "spec": {
                "type": "ClusterIP", "clusterIP": VIP, "clusterIPs": [VIP],
                "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack", "selector": {"app": "web"},
                "ports": [
                    {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": PORT},
                    {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": PORT},
                ],
            },
        }))?;
        Ok(Self { near, other, far, bed })
    }

    fn node(&self) -> &Node {
        self.bed.node(1)
    }
}

fn socket(container: &Container) -> Result<SocketAddr> {
    Ok(SocketAddr::new(container.v6()?, PORT))
}

#[test]
fn a_node_with_ipv6_alone_does_all_of_it() -> Result<()> {
    let site = Site::new()?;
    let Site { near, other, far, .. } = &site;
    let node = site.node();
    let status: weft_api::StatusReport = node.weft_json("status")?;
    ensure!(status.problems.is_empty(), "{:?}", status.problems);
    ensure!(near.addresses().iter().all(|address| address.is_ipv6()), "{:?}", near.addresses());
    let v4 = node.sh("ip -4 -o address show scope global")?.ok()?;
    ensure!(v4.is_empty(), "the agent has brought IPv4 addresses to the node: {v4}");
    for (from, to, name) in [(near, far, "far"), (far, near, "near"), (near, other, "other")] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = from.reaches(protocol, socket(to)?, name)?;
            ensure!(answer.client == from.v6()?, "{name} sees {}", answer.client);
        }
        from.pings(to.v6()?, 56)?;
        from.pings(to.v6()?, 4000)?;
    }
    node.reaches(Protocol::Tcp, socket(far)?, "far")?;
    node.reaches(Protocol::Tcp, socket(near)?, "near")?;
    service_is_reached(&site)?;
    outside_is_reached(&site)?;
    policy_is_kept(&site)
}

/// From pods and hosts of either node, by both backends.
fn service_is_reached(site: &Site) -> Result<()> {
    let to = SocketAddr::new(VIP.parse()?, 80);
    for client in [&site.other as &dyn Shell, &site.far, site.node(), &**site.bed.node(2)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let (mut near, mut far) = (false, false);
            until_ok(&format!("both backends from {}", client.label()), SOON, || {
                let server = client.ask(protocol, to)?.server;
                near |= server == "near";
                far |= server == "far";
                ensure!(near && far, "{server} alone");
                Ok(())
            })
            .with_context(|| site.node().agent_log())?;
        }
    }
    Ok(())
}

/// As the node, by a flow and a connection that stand.
fn outside_is_reached(site: &Site) -> Result<()> {
    let to = SocketAddr::new(OUTSIDE_V6.into(), PORT);
    let seen = std::net::IpAddr::from(site.node().v6());
    let answer = UdpFlow::open(&site.near, to)?.ask()?;
    ensure!(answer.client == seen && answer.server == "outside", "{answer:?}");
    let mut connection = TcpConnection::open(&site.near, to)?;
    ensure!(connection.greeting().client == seen, "{:?}", connection.greeting());
    connection.goes_on()?;
    site.near.pings(to.ip(), 4000)
}

/// Only who is named gets in: from the same node, not from the other one, nor by the Service.
fn policy_is_kept(site: &Site) -> Result<()> {
    let Site { near, other, far, .. } = site;
    site.bed.apply(&ingress_policy("default/named", &[("app", "web")], &[("role", "client")]))?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        until_ok("far is kept out", SOON, || far.is_kept_out(protocol, socket(near)?))?;
        until_ok("near is kept out", SOON, || near.is_kept_out(protocol, socket(far)?))?;
        other.reaches(protocol, socket(near)?, "near")?;
        other.reaches(protocol, socket(far)?, "far")?;
    }
    ensure!(site.node().drops("policy-ingress")? > 0, "nothing is counted as refused");
    Ok(())
}
