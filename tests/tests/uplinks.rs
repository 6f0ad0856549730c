// SPDX-License-Identifier: Apache-2.0

//! A node of two uplinks, one of them without Ethernet header: what leaves by which, as whom, and what answers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use weft_testbed::{
    Answer, Bed, Binaries, Container, Node, OUTSIDE_V4, OUTSIDE_V6, Options, Outside, PointToPoint, Protocol, Shell,
    TcpConnection, UdpFlow, ingress_policy, service, until_ok,
};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Flows to one server: all by one of two ways is no chance.
const FLOWS: usize = 24;

/// A way of the node to the outside.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Way {
    Ethernet,
    PointToPoint,
}

impl Way {
    const ALL: [Self; 2] = [Self::Ethernet, Self::PointToPoint];

    fn device(self) -> &'static str {
        if self == Self::Ethernet { "eth0" } else { PointToPoint::DEVICE }
    }

    /// The node's address there.
    fn address(self, node: &Node, peer: IpAddr) -> IpAddr {
        if self == Self::Ethernet { node.address_for(peer) } else { PointToPoint::node_address_for(peer) }
    }

    fn next_hop(self, ipv4: bool) -> IpAddr {
        match (self, ipv4) {
            (Self::Ethernet, true) => Outside::GATEWAY_V4.into(),
            (Self::Ethernet, false) => Outside::GATEWAY_V6.into(),
            (Self::PointToPoint, true) => PointToPoint::PEER_V4.into(),
            (Self::PointToPoint, false) => PointToPoint::PEER_V6.into(),
        }
    }
}

/// Each way, and the other one.
const CROSSED: [(Way, Way); 2] = [(Way::Ethernet, Way::PointToPoint), (Way::PointToPoint, Way::Ethernet)];

/// Node 1 has both ways to the outside, and its default route is both. The outside counts what comes by which.
struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    near: Container,
    bound: Container,
    far: Container,
    _link: PointToPoint,
    bed: Bed,
}

impl Site {
    fn new() -> Result<Self> {
        let bed = Bed::idle(&Options::default(), &Binaries::locate()?)?;
        let node = bed.node(1);
        let link = PointToPoint::to_outside(&bed, node)?;
        // Connections are told apart by ports.
        let by_ports =
            ["ipv4", "ipv6"].map(|family| format!("echo 1 >/proc/sys/net/{family}/fib_multipath_hash_policy"));
        let ways = |ipv4: bool| {
            let hop = |way: Way| format!("nexthop via {} dev {}", way.next_hop(ipv4), way.device());
            Way::ALL.map(hop).join(" ")
        };
        let (v4, v6) = (ways(true), ways(false));
        node.sh(&format!(
            "set -e
             {}
             ip route replace default {v4}
             ip -6 route del default; ip -6 route add default {v6}",
            by_ports.join("\n")
        ))?
        .ok()?;
        bed.nodes().iter().try_for_each(|node| node.start_agent())?;
        bed.nodes().iter().try_for_each(|node| node.agent_ready())?;
        bed.nodes().iter().try_for_each(|node| node.agent_knows(1))?;
        let near = bed.container(1, "default/near", &[("app", "web")])?;
        let bound = bed.container(1, "default/bound", &[])?;
        let far = bed.container(2, "default/far", &[("app", "web")])?;
        for (server, name) in [(&near, "near"), (&bound, "bound"), (&far, "far")] {
            server.serve(name, PORT)?;
        }
        bed.outside().serve("outside", PORT)?;
        bed.apply(&service("default/web", VIPS, 80, PORT, &[("app", "web")]))?;
        let site = Self { near, bound, far, _link: link, bed };
        site.count()?;
        Ok(site)
    }

    fn node(&self) -> &Node {
        self.bed.node(1)
    }

    /// Counts at the outside what the node's addresses send and are sent, by device.
    fn count(&self) -> Result<()> {
        let mut script = "set -e
             nft add table inet ways
             nft 'add chain inet ways in { type filter hook prerouting priority -310; }'
             nft 'add chain inet ways out { type filter hook postrouting priority 310; }'"
            .to_owned();
        for way in Way::ALL {
            for to in outsides() {
                let family = if to.is_ipv4() { "ip" } else { "ip6" };
                let address = way.address(self.node(), to.ip());
                for device in Way::ALL.map(Way::device) {
                    script += &format!(
                        "\nnft add rule inet ways in iifname {device} {family} saddr {address} meta l4proto udp counter
                         nft add rule inet ways out oifname {device} {family} daddr {address} meta l4proto udp counter"
                    );
                }
            }
        }
        self.bed.outside().sh(&script)?.ok().map(drop)
    }

    /// UDP that the outside has got from the node's address of `way` by the device of `by`, or sent to it.
    fn counted(&self, chain: &str, way: Way, by: Way, peer: IpAddr) -> Result<u64> {
        let text = self.bed.outside().sh(&format!("nft list chain inet ways {chain}"))?.ok()?;
        let (device, address) = (by.device(), way.address(self.node(), peer));
        let wanted =
            |line: &&str| line.contains(&format!("\"{device}\"")) && line.contains(&format!("addr {address} "));
        let line = text.lines().find(wanted).with_context(|| format!("no {device} and {address} in {text}"))?;
        let number = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        Ok(number.context("a number")?.parse()?)
    }

    /// The outside answers what it gets by each way by the other one. First by Ethernet: its next hop must not be behind the link yet.
    fn cross_answers(&self) -> Result<()> {
        let mut script = "set -e".to_owned();
        for to in outsides() {
            let [ethernet, link] = Way::ALL.map(|way| way.address(self.node(), to.ip()));
            let (family, length) = if to.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
            script += &format!(
                "\nip {family} route add {link}/{length} via {ethernet} dev eth0 src {src}
                 ip {family} route add {ethernet}/{length} dev ppp0 src {src}",
                src = to.ip()
            );
        }
        self.bed.outside().sh(&script)?.ok().map(drop)
    }

    /// What the machines say where a packet was lost.
    fn describe(&self) -> String {
        let asked =
            |machine: &dyn Shell, command: &str| machine.sh(command).map(|done| done.output).unwrap_or_default();
        let drops = self.node().weft("drops").unwrap_or_default();
        let neighbours = [self.node() as &dyn Shell, self.bed.outside()].map(|machine| asked(machine, "ip neigh"));
        let counted = asked(self.bed.outside(), "nft list table inet ways");
        format!("{drops}\n{neighbours:#?}\n{counted}\n{}", self.node().agent_log())
    }

    /// By which way the outside has met `flow`.
    fn way_of(&self, flow: &UdpFlow) -> Result<Way> {
        let Answer { server, client } = flow.ask().with_context(|| self.describe())?;
        ensure!(server == "outside", "answered by {server}");
        let found = Way::ALL.into_iter().find(|way| way.address(self.node(), flow.to().ip()) == client);
        found.with_context(|| format!("{} meets {client}", flow.to()))
    }

    /// New flows to both of the outside's addresses take both ways; with their ways.
    fn spread(&self) -> Result<Vec<(UdpFlow, Way)>> {
        let mut found = Vec::new();
        for to in outsides() {
            let mut ways = BTreeSet::new();
            for _ in 0..FLOWS {
                let flow = UdpFlow::open(&self.near, to)?;
                let way = self.way_of(&flow)?;
                ways.insert(way);
                found.push((flow, way));
            }
            ensure!(ways.len() == Way::ALL.len(), "to {to} all go by {ways:?}");
        }
        Ok(found)
    }

    /// New flows of `client` go by `way` alone, of TCP too.
    fn all_by(&self, client: &Container, way: Way, to: SocketAddr) -> Result<()> {
        until_ok(&format!("all to {to} by {way:?}"), SOON, || {
            for _ in 0..FLOWS / 2 {
                let found = self.way_of(&UdpFlow::open(client, to)?)?;
                ensure!(found == way, "one by {found:?}");
            }
            let mut connection = TcpConnection::open(client, to)?;
            let seen = connection.greeting().client;
            ensure!(seen == way.address(self.node(), to.ip()), "TCP is seen as {seen}");
            connection.goes_on()
        })
        .with_context(|| self.node().agent_log())
    }
}

fn outsides() -> [SocketAddr; 2] {
    [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|address| SocketAddr::new(address, PORT))
}

/// Each connection takes one of two ways as the address there, and keeps it; answers may come by the other one.
#[test]
fn two_uplinks_share_what_leaves_and_answers_come_by_either() -> Result<()> {
    let site = Site::new()?;
    let standing = site.spread().with_context(|| site.node().agent_log())?;
    for (flow, way) in &standing {
        ensure!(site.way_of(flow)? == *way, "a flow to {} has left its way", flow.to());
    }
    for to in outsides() {
        for (way, by) in CROSSED {
            ensure!(site.counted("in", way, way, to.ip())? > 0, "nothing as the address of {way:?}");
            ensure!(site.counted("in", way, by, to.ip())? == 0, "by {by:?} as the address of {way:?}");
            ensure!(site.counted("out", way, by, to.ip())? == 0, "answers are crossed already");
        }
    }
    site.cross_answers()?;
    for (flow, way) in standing.iter().chain(&site.spread()?) {
        ensure!(site.way_of(flow)? == *way, "a flow to {} has left its way", flow.to());
    }
    for to in outsides() {
        for (way, by) in CROSSED {
            ensure!(site.counted("out", way, by, to.ip())? > 0, "no answer to {way:?} by {by:?}");
        }
    }
    Ok(())
}

/// Beyond the default set of rules: by who sends, by port. What no rule speaks of goes on by both ways.
#[test]
fn rules_choose_the_uplink() -> Result<()> {
    let site = Site::new()?;
    let node = site.node();
    let (v4, v6) = (site.bound.v4()?, site.bound.v6()?);
    let other_port = PORT + 1;
    site.bed.outside().serve("outside", other_port)?;
    node.sh(&format!(
        "set -e
         ip route add default via {} dev ppp0 table 77
         ip -6 route add default via {} dev ppp0 table 77",
        PointToPoint::PEER_V4,
        PointToPoint::PEER_V6
    ))?
    .ok()?;
    let rules = |verb: &str, of: [String; 2]| {
        let [v4, v6] = of;
        node.sh(&format!("set -e; ip rule {verb} {v4} table 77; ip -6 rule {verb} {v6} table 77"))?.ok().map(drop)
    };
    let from = || [v4, v6].map(|own| format!("from {own}"));
    rules("add", from())?;
    for to in outsides() {
        site.all_by(&site.bound, Way::PointToPoint, to)?;
        let told = site.bound.sh(&format!("ping -c 1 -W 2 -M do -s 1390 {}", to.ip()))?.output;
        ensure!(told.contains("mtu") && told.contains("1400"), "told of the link: {told}");
        site.bound.pings(to.ip(), 4000)?;
    }
    site.spread().context("beside the rule")?;
    rules("del", from())?;
    let ports = || ["tcp", "udp"].map(|protocol| format!("ipproto {protocol} dport {other_port}"));
    for protocol in ports() {
        rules("add", [protocol.clone(), protocol])?;
    }
    for to in outsides() {
        site.all_by(&site.near, Way::PointToPoint, SocketAddr::new(to.ip(), other_port))?;
    }
    site.spread().context("beside the rule of ports")?;
    Ok(())
}

/// Pods, Services and policy of such a node are as on others; where one way goes, the other one has all.
#[test]
fn a_node_of_two_uplinks_is_a_node() -> Result<()> {
    let site = Site::new()?;
    let Site { near, bound, far, .. } = &site;
    for (from, to, name) in [(near, far, "far"), (far, near, "near"), (far, bound, "bound")] {
        for socket in to.sockets(PORT) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answer = from.reaches(protocol, socket, name)?;
                ensure!(from.addresses().contains(&answer.client), "{name} sees {}", answer.client);
            }
            from.pings(socket.ip(), 4000)?;
        }
    }
    for vip in VIPS {
        let to = SocketAddr::new(vip.parse()?, 80);
        for client in [bound as &dyn Shell, far, site.node()] {
            let mut met = BTreeSet::new();
            until_ok("both backends", SOON, || {
                met.insert(client.ask(Protocol::Tcp, to)?.server);
                ensure!(met.len() == 2, "only {met:?}");
                Ok(())
            })?;
        }
    }
    site.bed.apply(&ingress_policy("default/closed", &[("app", "web")], &[("role", "client")]))?;
    for (client, to) in [(bound as &dyn Shell, near), (far, near), (bound, far)] {
        for socket in to.sockets(PORT) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                until_ok("to be kept out", SOON, || client.is_kept_out(protocol, socket))?;
            }
        }
    }
    one_way_goes(&site)
}

fn one_way_goes(site: &Site) -> Result<()> {
    let standing = site.spread()?;
    // The kernel leaves next hops of such a device out by itself.
    site.node().sh(&format!("ip link set {} down", PointToPoint::DEVICE))?.ok()?;
    for (flow, _) in &standing {
        until_ok(&format!("the flow to {} goes on", flow.to()), SOON, || {
            ensure!(site.way_of(flow)? == Way::Ethernet, "by the way that is gone");
            Ok(())
        })
        .with_context(|| site.node().agent_log())?;
    }
    outsides().into_iter().try_for_each(|to| site.all_by(&site.bound, Way::Ethernet, to))
}
