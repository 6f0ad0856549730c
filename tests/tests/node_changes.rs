// SPDX-License-Identifier: Apache-2.0

//! Workloads reach what their node reaches, and standing flows follow it: devices, addresses, routes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use weft_testbed::{
    Answer, Bed, Binaries, Container, Network, Node, OUTSIDE_V4, OUTSIDE_V6, Options, Outside, PointToPoint, Protocol,
    Shell, TcpConnection, UdpFlow, until_ok,
};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;

/// One UDP flow from `client` to each of `servers`.
fn flows(client: &Container, servers: impl IntoIterator<Item = SocketAddr>) -> Result<Vec<UdpFlow>> {
    servers.into_iter().map(|to| UdpFlow::open(client, to)).collect()
}

fn outsides() -> [SocketAddr; 2] {
    [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|address| SocketAddr::new(address, PORT))
}

/// Waits until the standing flow is answered by `server`, which sees `client`.
fn meets(flow: &UdpFlow, server: &str, client: IpAddr) -> Result<()> {
    let wanted = Answer { server: server.to_owned(), client };
    until_ok(&format!("the flow to {} meets {server}, as {client}", flow.to()), SOON, || {
        let answer = flow.ask()?;
        ensure!(answer == wanted, "answered by {} as {}", answer.server, answer.client);
        Ok(())
    })
}

/// As [`meets`], with a flow that is new each time.
fn new_flow_meets(from: &Container, to: SocketAddr, server: &str, client: IpAddr) -> Result<()> {
    until_ok(&format!("a new flow to {to}"), SOON, || {
        let answer = UdpFlow::open(from, to)?.ask()?;
        ensure!(answer == Answer { server: server.to_owned(), client }, "{answer:?}");
        Ok(())
    })
}

/// The container's own address of the family of `to`.
fn own(client: &Container, to: SocketAddr) -> Result<IpAddr> {
    if to.is_ipv4() { client.v4() } else { client.v6() }
}

/// C7: flows both ways over the overlay, and answers of what the other node opened.
#[test]
fn flows_go_on_over_an_overlay_that_is_made_anew() -> Result<()> {
    let bed = Bed::new()?;
    let pods = [bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?];
    let [near, far] = &pods;
    near.serve("near", PORT)?;
    far.serve("far", PORT)?;
    let mut connections = Vec::new();
    let mut standing = Vec::new();
    for (from, to, name) in [(near, far, "far"), (far, near, "near")] {
        for flow in flows(from, to.sockets(PORT))? {
            meets(&flow, name, own(from, flow.to())?)?;
            connections.push(TcpConnection::open(from, flow.to())?);
            standing.push((flow, from, name));
        }
    }
    let ifindex = || bed.node(1).sh("cat /sys/class/net/weft_vxlan/ifindex")?.ok();
    let before = ifindex()?;
    bed.node(1).sh("ip link del weft_vxlan")?.ok()?;
    until_ok("another overlay", SOON, || {
        ensure!(ifindex()? != before, "it is {before}");
        Ok(())
    })?;
    for (flow, from, name) in &standing {
        meets(flow, name, own(from, flow.to())?).with_context(|| bed.node(1).agent_log())?;
    }
    connections.iter_mut().try_for_each(TcpConnection::goes_on)
}

/// C7: as DHCP does it.
#[test]
fn flows_follow_the_address_of_their_node() -> Result<()> {
    let bed = Bed::new()?;
    bed.outside().serve("outside", PORT)?;
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    far.serve("far", PORT)?;
    let node = bed.node(2);
    let (out, over) = (flows(&far, outsides())?, flows(&near, far.sockets(PORT))?);
    for (flow, over) in out.iter().zip(&over) {
        meets(flow, "outside", node.address_for(flow.to().ip()))?;
        meets(over, "far", own(&near, over.to())?)?;
    }
    node.sh("set -e
         ip address del 192.168.119.2/24 dev eth0
         ip address add 192.168.119.22/24 dev eth0
         ip route replace default via 192.168.119.254
         ip address del fd00:119::2/64 dev eth0
         ip address add fd00:119::22/64 dev eth0 nodad
         ip -6 route replace default via fd00:119::fe")?
        .ok()?;
    let addresses: [IpAddr; 2] = ["192.168.119.22".parse()?, "fd00:119::22".parse()?];
    for (flow, address) in out.iter().zip(addresses) {
        meets(flow, "outside", address).with_context(|| node.agent_log())?;
    }
    for flow in &over {
        meets(flow, "far", own(&near, flow.to())?).with_context(|| bed.node(1).agent_log())?;
    }
    Ok(())
}

/// C7: what was outside becomes the host's own, and is outside again.
#[test]
fn flows_follow_an_address_that_comes_to_the_host_and_goes() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    bed.outside().serve("outside", PORT)?;
    let client = bed.container(1, "default/client", &[])?;
    // Of node-local DNS: nobody has it before.
    let local = SocketAddr::new(Ipv4Addr::new(169, 254, 20, 10).into(), PORT);
    let standing = flows(&client, outsides())?;
    for flow in &standing {
        meets(flow, "outside", node.address_for(flow.to().ip()))?;
    }
    let early = UdpFlow::open(&client, local)?;
    ensure!(early.ask().is_err(), "nobody has {local}");
    node.sh(&format!(
        "set -e
         ip link add own0 type veth peer name own1
         ip link set own0 up; ip link set own1 up
         ip address add {OUTSIDE_V4}/32 dev own0
         ip address add {OUTSIDE_V6}/128 dev own0 nodad
         ip address add 169.254.20.10/32 dev own0"
    ))?
    .ok()?;
    for flow in standing.iter().chain([&early]) {
        node.serve_at("node1", flow.to())?;
        let seen = own(&client, flow.to())?;
        meets(flow, "node1", seen).with_context(|| node.agent_log())?;
        new_flow_meets(&client, flow.to(), "node1", seen)?;
    }
    node.sh("ip link del own0")?.ok()?;
    for flow in &standing {
        let seen = node.address_for(flow.to().ip());
        meets(flow, "outside", seen).with_context(|| node.agent_log())?;
        new_flow_meets(&client, flow.to(), "outside", seen)?;
    }
    ensure!(early.ask().is_err(), "nobody has {local} any more");
    Ok(())
}

/// A node with a second device, and what is behind it; that machine also has the addresses of the outside.
struct Site {
    // Before the bed: the workload is unplugged while its agent is there.
    client: Container,
    storage: Network,
    bed: Bed,
}

impl Site {
    fn new() -> Result<Self> {
        let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
        bed.outside().serve("outside", PORT)?;
        let client = bed.container(1, "default/client", &[])?;
        let storage = Network::new(&bed, bed.node(1), "eth1", "storage")?;
        storage
            .sh(&format!(
                "set -e
                 ip address add {OUTSIDE_V4}/32 dev lo
                 ip address add {OUTSIDE_V6}/128 dev lo nodad
                 ip route replace 198.51.100.0/24 dev eth0 src {OUTSIDE_V4}
                 ip route replace 2001:db8:51::/64 dev eth0 metric 256 src {OUTSIDE_V6}"
            ))?
            .ok()?;
        Ok(Self { client, storage, bed })
    }

    fn node(&self) -> &Node {
        self.bed.node(1)
    }

    /// Runs `scripts` of a node, one a family; the standing flows must be answered by `server` from then on, new ones too.
    fn moves(&self, standing: &[UdpFlow], scripts: &str, server: &str) -> Result<()> {
        self.node().sh(&format!("set -e\n{scripts}"))?.ok()?;
        for flow in standing {
            let to = flow.to();
            let seen = self.seen_by(server, to.ip());
            meets(flow, server, seen).with_context(|| format!("{scripts}\n{}", self.node().agent_log()))?;
            new_flow_meets(&self.client, to, server, seen)?;
            let connection = TcpConnection::open(&self.client, to)?;
            let greeting = connection.greeting();
            ensure!(greeting.server == server && greeting.client == seen, "TCP to {to}: {greeting:?}");
        }
        Ok(())
    }

    /// Which address of the node `server` sees.
    fn seen_by(&self, server: &str, to: IpAddr) -> IpAddr {
        if server == "storage" { Network::node_address_for(to) } else { self.node().address_for(to) }
    }
}

/// D2.
#[test]
fn a_workload_reaches_the_network_of_a_second_device_by_the_address_there() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let client = bed.container(1, "default/client", &[])?;
    let machine = [IpAddr::from(Network::V4), Network::V6.into()].map(|address| SocketAddr::new(address, PORT));
    // What is asked before there is such a network goes there as well, once there is.
    let early = flows(&client, machine)?;
    early.iter().for_each(|flow| drop(flow.ask()));
    let storage = Network::new(&bed, bed.node(1), "eth1", "storage")?;
    storage.serve("storage", PORT)?;
    for flow in &early {
        let (to, seen) = (flow.to(), Network::node_address_for(flow.to().ip()));
        meets(flow, "storage", seen).with_context(|| bed.node(1).agent_log())?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = client.reaches(protocol, to, "storage")?;
            ensure!(answer.client == seen, "{protocol} to {to}: seen as {}", answer.client);
        }
        client.pings(to.ip(), 56)?;
        client.pings(to.ip(), 4000)?;
        bed.node(1).reaches(Protocol::Tcp, to, "storage")?;
    }
    Ok(())
}

/// A link without Ethernet header between a node and the outside, and the node's default route by it alone.
fn by_ppp(bed: &Bed) -> Result<PointToPoint> {
    let node = bed.node(1);
    let link = PointToPoint::to_outside(bed, node)?;
    let (v4, v6) = (PointToPoint::PEER_V4, PointToPoint::PEER_V6);
    node.sh(&format!(
        "set -e
         ip route replace default via {v4} dev ppp0
         ip -6 route del default; ip -6 route add default via {v6} dev ppp0"
    ))?
    .ok()?;
    Ok(link)
}

/// A pod reaches the outside over the link, with the node's address there.
fn is_reached_by_ppp(bed: &Bed, client: &Container, standing: &[UdpFlow]) -> Result<()> {
    for to in outsides() {
        let seen = PointToPoint::node_address_for(to.ip());
        new_flow_meets(client, to, "outside", seen).with_context(|| bed.node(1).agent_log())?;
        let mut connection = TcpConnection::open(client, to)?;
        ensure!(connection.greeting().client == seen, "TCP to {to}: {:?}", connection.greeting());
        connection.goes_on()?;
        client.pings(to.ip(), 56)?;
        client.pings(to.ip(), 1300)?;
        bed.node(1).reaches(Protocol::Tcp, to, "outside")?;
    }
    for flow in standing {
        meets(flow, "outside", PointToPoint::node_address_for(flow.to().ip()))?;
    }
    Ok(())
}

/// D2: PPP, WireGuard or TUN beside the uplink; the device comes while flows stand, and goes.
#[test]
fn the_outside_is_reached_by_a_second_device_without_ethernet_header() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    bed.outside().serve("outside", PORT)?;
    let client = bed.container(1, "default/client", &[])?;
    client.serve("client", PORT)?;
    let standing = flows(&client, outsides())?;
    for flow in &standing {
        meets(flow, "outside", bed.node(1).address_for(flow.to().ip()))?;
    }
    let link = by_ppp(&bed)?;
    is_reached_by_ppp(&bed, &client, &standing)?;
    for to in outsides() {
        let told = client.sh(&format!("ping -c 1 -W 2 -M do -s 1390 {}", to.ip()))?.output;
        ensure!(told.contains("mtu") && told.contains("1400"), "told of the link: {told}");
    }
    // What comes in by it for a pod is no answer, and policy is asked as by an uplink.
    bed.outside().sh(&format!("ip route add {} via {} dev ppp0", client.v4()?, PointToPoint::NODE_V4))?.ok()?;
    bed.outside().reaches(Protocol::Tcp, SocketAddr::new(client.v4()?, PORT), "client")?;
    // Nobody there speaks for a pod, a Service or the node.
    let refused = bed.node(1).drops("source-address")?;
    for source in [client.v4()?, IpAddr::from(bed.node(1).v4()), "10.96.0.77".parse()?, "10.244.1.99".parse()?] {
        let outside = bed.outside();
        outside
            .sh(&format!("ip address add {source}/32 dev lo; ping -c 1 -W 1 -I {source} {}", PointToPoint::NODE_V4))?;
        outside.sh(&format!("ip address del {source}/32 dev lo"))?.ok()?;
    }
    ensure!(
        bed.node(1).drops("source-address")? >= refused + 4,
        "{} of 4",
        bed.node(1).drops("source-address")? - refused
    );
    drop(link);
    bed.node(1)
        .sh(&format!(
            "ip route replace default via {}; ip -6 route replace default via {} dev eth0",
            Outside::GATEWAY_V4,
            Outside::GATEWAY_V6
        ))?
        .ok()?;
    for flow in &standing {
        meets(flow, "outside", bed.node(1).address_for(flow.to().ip())).with_context(|| bed.node(1).agent_log())?;
    }
    Ok(())
}

/// D2: an uplink without Ethernet header, found by the default route.
#[test]
fn the_uplink_may_be_without_ethernet_header() -> Result<()> {
    let bed = Bed::idle(&Options { nodes: 1, ..Options::default() }, &Binaries::locate()?)?;
    bed.outside().serve("outside", PORT)?;
    let _link = by_ppp(&bed)?;
    bed.node(1).sh("ip address flush dev eth0; ip link set eth0 down")?.ok()?;
    bed.node(1).start_agent()?;
    bed.node(1).agent_ready()?;
    let status: weft_api::StatusReport = bed.node(1).weft_json("status")?;
    ensure!(status.uplink == "ppp0" && status.devices == ["ppp0"], "{status:?}");
    let client = bed.container(1, "default/client", &[])?;
    let standing = flows(&client, outsides())?;
    is_reached_by_ppp(&bed, &client, &standing)
}

/// D2, C7: a route to one destination that comes, and goes.
#[test]
fn a_standing_flow_moves_with_a_route_to_another_device() -> Result<()> {
    let site = Site::new()?;
    site.storage.serve("storage", PORT)?;
    let standing = flows(&site.client, outsides())?;
    let (v4, v6) = (Network::V4, Network::V6);
    site.moves(&standing, "", "outside")?;
    for _ in 0..2 {
        let there = format!("ip route add {OUTSIDE_V4} via {v4}; ip -6 route add {OUTSIDE_V6} via {v6}");
        site.moves(&standing, &there, "storage")?;
        let back = format!("ip route del {OUTSIDE_V4} via {v4}; ip -6 route del {OUTSIDE_V6} via {v6}");
        site.moves(&standing, &back, "outside")?;
    }
    Ok(())
}

/// D2, C7: by a rule one network is looked for in another table.
#[test]
fn a_standing_flow_moves_with_a_rule_to_another_table() -> Result<()> {
    let site = Site::new()?;
    site.storage.serve("storage", PORT)?;
    let standing = flows(&site.client, outsides())?;
    site.moves(&standing, "", "outside")?;
    let (v4, v6) = (Network::V4, Network::V6);
    let there = format!(
        "ip route add default via {v4} table 77; ip -6 route add default via {v6} table 77
         ip rule add to 203.0.113.0/24 table 77; ip -6 rule add to 2001:db8:77::/64 table 77"
    );
    site.moves(&standing, &there, "storage")?;
    let back = "ip rule del to 203.0.113.0/24 table 77; ip -6 rule del to 2001:db8:77::/64 table 77";
    site.moves(&standing, back, "outside")
}

/// Destinations beyond a default route of two ways: all by one of them is no chance.
const BEYOND: u8 = 24;

/// D2: each connection takes one of the ways, with the address of its device, and keeps it. Of IPv4.
#[test]
fn a_default_route_of_two_ways_is_used_as_it_is() -> Result<()> {
    let site = Site::new()?;
    site.storage.serve("storage", PORT)?;
    let beyond = "ip route add local 203.0.113.0/24 dev lo";
    site.storage.sh(beyond)?.ok()?;
    site.bed.outside().sh(beyond)?.ok()?;
    let ways = format!("nexthop via {} dev eth0 nexthop via {} dev eth1", Outside::GATEWAY_V4, Network::V4);
    site.node().sh(&format!("ip route replace default {ways}"))?.ok()?;
    let servers = (100..100 + BEYOND).map(|host| SocketAddr::new(Ipv4Addr::new(203, 0, 113, host).into(), PORT));
    until_ok("the new route", SOON, || {
        let (mut met, mut connections) = (BTreeSet::new(), Vec::new());
        for to in servers.clone() {
            let connection = TcpConnection::open(&site.client, to)?;
            let Answer { server, client } = connection.greeting().clone();
            ensure!(client == site.seen_by(&server, to.ip()), "{server} sees {client}");
            met.insert(server);
            connections.push(connection);
        }
        ensure!(met == ["outside", "storage"].map(str::to_owned).into(), "met only {met:?}");
        connections.iter_mut().try_for_each(TcpConnection::goes_on)
    })
    .with_context(|| site.node().agent_log())
}
