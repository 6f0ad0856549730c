// SPDX-License-Identifier: Apache-2.0

//! A node that has workloads gets another mode, MTU, pod CIDR or addresses to masquerade with: its agent is started anew with another configuration.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use weft_testbed::{
    Answer, Bed, Container, Node, OUTSIDE_V4, OUTSIDE_V6, Options, Protocol, Shell, TcpConnection, UdpFlow, until_ok,
};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;

/// Starts a node's agent with another configuration; `edit`: a command of sed.
fn reconfigure(node: &Node, edit: &str) -> Result<()> {
    node.stop_agent(Signal::SIGTERM)?;
    node.sh(&format!("sed -i '{edit}' /mnt/{}/agent.yaml", node.name()))?.ok()?;
    node.start_agent()?;
    node.agent_ready()
}

/// A container's flow that goes on, and whom its server knows it as.
struct Standing<'a> {
    flow: UdpFlow,
    connection: TcpConnection,
    from: &'a Container,
    wanted: Answer,
}

impl<'a> Standing<'a> {
    fn open(from: &'a Container, to: SocketAddr, server: &str, client: IpAddr) -> Result<Self> {
        let wanted = Answer { server: server.to_owned(), client };
        let (flow, connection) = (UdpFlow::open(from, to)?, TcpConnection::open(from, to)?);
        let standing = Self { flow, connection, from, wanted };
        ensure!(*standing.connection.greeting() == standing.wanted, "{:?}", standing.connection.greeting());
        Ok(standing)
    }

    /// Both go on, and new ones are as they are.
    fn goes_on(&mut self) -> Result<()> {
        let to = self.flow.to();
        until_ok(&format!("the flow from {} to {to}", self.from.label()), SOON, || {
            let answer = self.flow.ask()?;
            ensure!(answer == self.wanted, "{answer:?}, not {:?}", self.wanted);
            let greeting = TcpConnection::open(self.from, to)?.greeting().clone();
            ensure!(greeting == self.wanted, "a new connection: {greeting:?}, not {:?}", self.wanted);
            Ok(())
        })?;
        self.connection.goes_on().with_context(|| format!("TCP from {} to {to}", self.from.label()))
    }
}

/// Flows of `near` and `far`, on nodes 1 and 2, to each other and, of `near`, to the outside.
fn standing<'a>(bed: &Bed, near: &'a Container, far: &'a Container) -> Result<Vec<Standing<'a>>> {
    near.serve("near", PORT)?;
    far.serve("far", PORT)?;
    bed.outside().serve("outside", PORT)?;
    let own = |pod: &Container, to: SocketAddr| if to.is_ipv4() { pod.v4() } else { pod.v6() };
    let mut all = Vec::new();
    for (from, to, name) in [(near, far, "far"), (far, near, "near")] {
        for socket in to.sockets(PORT) {
            all.push(Standing::open(from, socket, name, own(from, socket)?)?);
        }
    }
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        all.push(Standing::open(near, SocketAddr::new(to, PORT), "outside", bed.node(1).address_for(to))?);
    }
    Ok(all)
}

/// All of them, and the nodes' hosts.
fn all_go_on(bed: &Bed, standing: &mut [Standing<'_>], pods: &[&Container]) -> Result<()> {
    let logs = || bed.nodes().iter().map(|node| node.agent_log()).collect::<Vec<_>>().join("\n");
    standing.iter_mut().try_for_each(Standing::goes_on).with_context(logs)?;
    for to in pods.iter().flat_map(|pod| pod.addresses()) {
        for node in bed.nodes() {
            node.ask(Protocol::Tcp, SocketAddr::new(*to, PORT)).with_context(logs)?;
        }
    }
    Ok(())
}

fn mtu(place: &dyn Shell, device: &str) -> Result<String> {
    let link = place.sh(&format!("ip -o link show dev {device}"))?.ok()?;
    let words = link.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    Ok(words.with_context(|| format!("no MTU in {link}"))?.to_owned())
}

/// Whoever sends more than `most` is told, once and for all; what fits arrives.
fn is_told(from: &Container, to: IpAddr, most: usize) -> Result<()> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let sent = |size: usize| from.sh(&format!("ping -c 1 -W 2 -M do -s {} {to}", size - headers));
    let told = sent(most + 1)?.output;
    ensure!(told.contains("mtu") && told.contains(&most.to_string()), "{most} to {to}: {told}");
    let fits = sent(most)?.output;
    ensure!(fits.contains(" 0% packet loss"), "{most} to {to}: {fits}");
    Ok(())
}

/// Encapsulated, then routed, then encapsulated again: standing workloads keep their flows, and nothing of the other mode is left.
#[test]
fn a_cluster_with_workloads_gets_another_mode() -> Result<()> {
    let bed = Bed::new()?;
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    let mut flows = standing(&bed, &near, &far)?;
    let node: &Node = bed.node(1);
    bed.nodes().iter().try_for_each(|node| reconfigure(node, "s/^mode:.*/mode: native/"))?;
    all_go_on(&bed, &mut flows, &[&near, &far])?;
    let late = bed.container(1, "default/late", &[])?;
    ensure!((mtu(&late, "eth0")?, mtu(node, "weft0")?) == ("1500".to_owned(), "1500".to_owned()), "MTU of native");
    ensure!(mtu(&near, "eth0")? == "1450", "who stands keeps what it has");
    let devices = node.sh("ip -o link show type vxlan; ip route show proto 119; ip neigh show proto 119")?.ok()?;
    ensure!(!devices.contains("weft_vxlan") && devices.contains("10.244.2.0/24 via 192.168.119.2"), "{devices}");
    // Now one that sends more than the tunnel takes.
    late.serve("late", PORT)?;
    flows.push(Standing::open(&late, SocketAddr::new(far.v4()?, PORT), "far", late.v4()?)?);
    late.pings(far.v4()?, 1472)?;
    bed.nodes().iter().try_for_each(|node| reconfigure(node, "s/^mode:.*/mode: vxlan/"))?;
    all_go_on(&bed, &mut flows, &[&near, &far, &late])?;
    for to in far.addresses() {
        is_told(&late, *to, 1450)?;
    }
    ensure!(mtu(node, "weft0")? == "1450" && mtu(node, "weft_vxlan")? == "1450", "MTU of vxlan");
    let devices = node.sh("ip route show proto 119; ip neigh show proto 119")?.ok()?;
    ensure!(!devices.contains("eth0") && devices.contains("10.244.2.0/24 dev weft0"), "{devices}");
    Ok(())
}

/// A node with a lower MTU for workloads, then without: who stands hears of it from the node, who is new has it.
#[test]
fn a_node_with_workloads_gets_another_mtu() -> Result<()> {
    let bed = Bed::new()?;
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    let mut flows = standing(&bed, &near, &far)?;
    let node: &Node = bed.node(1);
    reconfigure(node, "$ a mtu: 1300")?;
    all_go_on(&bed, &mut flows, &[&near, &far])?;
    for to in far.addresses().iter().copied().chain([OUTSIDE_V4.into(), OUTSIDE_V6.into()]) {
        is_told(&near, to, 1300)?;
    }
    for device in ["weft0", "weft1", "weft_vxlan"] {
        ensure!(mtu(node, device)? == "1300", "{device}: {}", mtu(node, device)?);
    }
    let late = bed.container(1, "default/late", &[])?;
    ensure!(
        (mtu(&late, "eth0")?, mtu(&near, "eth0")?) == ("1300".to_owned(), "1450".to_owned()),
        "devices of workloads"
    );
    reconfigure(node, "/^mtu:/ d")?;
    all_go_on(&bed, &mut flows, &[&near, &far])?;
    // What was heard holds for ten minutes in a workload; it may forget.
    near.sh("ip route flush cache; ip -6 route flush cache")?.ok()?;
    near.pings(far.v4()?, 1422)?;
    ensure!(mtu(node, "weft_vxlan")? == "1450", "as it was");
    Ok(())
}

/// Workloads keep addresses of the pod CIDR before until they go; whoever is new has one of the new pod CIDR, and both are reached.
#[test]
fn a_node_with_workloads_gets_another_pod_cidr() -> Result<()> {
    let bed = Bed::new()?;
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    let mut flows = standing(&bed, &near, &far)?;
    let node: &Node = bed.node(1);
    reconfigure(node, "s,10.244.1.0/24,10.245.1.0/24,; s,fd00:244:0:1::/64,fd00:245:0:1::/64,")?;
    all_go_on(&bed, &mut flows, &[&near, &far])?;
    let late = bed.container(1, "default/late", &[])?;
    ensure!(late.addresses().iter().all(|address| address.to_string().contains("245")), "{:?}", late.addresses());
    late.serve("late", PORT)?;
    for (from, to) in [(&near, &late), (&far, &late), (&late, &far), (&late, &near)] {
        for to in to.sockets(PORT) {
            let asked = || from.ask(Protocol::Tcp, to);
            until_ok(&format!("{} reaches {to}", from.label()), SOON, asked).with_context(|| node.agent_log())?;
        }
    }
    let named = node.weft("status")?;
    ensure!(named.contains("is this node's no more") && named.contains("default/near"), "{named}");
    drop(flows);
    drop(near);
    until_ok("nothing of the old pod CIDRs is left", SOON, || {
        let status = node.weft("status")?;
        ensure!(!status.contains("no more"), "{status}");
        let here = node.sh("ip address show dev weft0; ip route show proto 119; ip -6 route show proto 119")?.ok()?;
        let there = bed.node(2).sh("ip route show proto 119; ip -6 route show proto 119")?.ok()?;
        ensure!(
            ![&here, &there].iter().any(|text| text.contains("244.1.") || text.contains("244:0:1:")),
            "{here}{there}"
        );
        Ok(())
    })?;
    for to in late.sockets(PORT) {
        far.ask(Protocol::Tcp, to)?;
    }
    Ok(())
}

/// `masqueradeAddresses` of a node that has workloads: what stands keeps its address while the node has it, what is new has one of the
/// list, and where the node has none of them nothing new leaves.
#[test]
fn a_node_gets_addresses_to_masquerade_with() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let (node, pod) = (bed.node(1), bed.container(1, "default/near", &[])?);
    bed.outside().serve("outside", PORT)?;
    let ends = [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|to| SocketAddr::new(to, PORT));
    let add = |last: u32| {
        let v6 = format!("ip address add fd00:119::{last}/64 dev eth0 nodad");
        node.sh(&format!("ip address add 192.168.119.{last}/24 dev eth0 && {v6}"))?.ok()
    };
    let pool = |to: SocketAddr, last: u32| -> Result<IpAddr> {
        Ok(if to.is_ipv4() { format!("192.168.119.{last}").parse()? } else { format!("fd00:119::{last}").parse()? })
    };
    let mut standing = Vec::new();
    for to in ends {
        standing.push((UdpFlow::open(&pod, to)?, TcpConnection::open(&pod, to)?, node.address_for(to.ip())));
    }
    let go_on = |standing: &mut Vec<(UdpFlow, TcpConnection, IpAddr)>| -> Result<()> {
        for (flow, connection, client) in standing {
            let seen = flow.ask()?.client;
            ensure!(seen == *client, "{seen} instead of {client}");
            connection.goes_on().with_context(|| format!("TCP that {client} has opened"))?;
        }
        Ok(())
    };
    go_on(&mut standing)?;
    // None of them is there.
    reconfigure(node, "$ a masqueradeAddresses: [192.168.119.96/27, \"fd00:119::100/120\"]")?;
    let status = node.weft("status")?;
    for family in ["IPv4", "IPv6"] {
        ensure!(status.contains(&format!("none of the {family} addresses for eth0 is there")), "{status}");
    }
    let refused = node.drops("no-masquerade-address")?;
    for to in ends {
        ensure!(UdpFlow::open(&pod, to)?.ask().is_err(), "{to} is reached with another address");
    }
    ensure!(node.drops("no-masquerade-address")? > refused, "not counted");
    go_on(&mut standing)?;
    // The first ones come, then more.
    for last in [101, 102, 103] {
        add(last)?;
        for to in ends {
            until_ok(&format!("an address towards {to}"), SOON, || {
                let connection = TcpConnection::open(&pod, to)?;
                let seen = connection.greeting().client;
                ensure!((101..=last).any(|last| pool(to, last).is_ok_and(|own| own == seen)), "{seen}");
                let flow = UdpFlow::open(&pod, to)?;
                ensure!(flow.ask()?.client == seen, "not one address");
                standing.push((flow, connection, seen));
                Ok(())
            })
            .with_context(|| node.agent_log())?;
        }
        go_on(&mut standing)?;
    }
    let told = |text: &str| -> Result<bool> { Ok(node.weft("status")?.contains(text)) };
    ensure!(!told("masqueradeAddresses")?, "{}", node.weft("status")?);
    // The list is taken back, the addresses stay.
    reconfigure(node, "/^masqueradeAddresses:/ d")?;
    go_on(&mut standing)?;
    for to in ends {
        // Whichever of them the host itself takes by now.
        let way = node.sh(&format!("ip route get {}", to.ip()))?.ok()?;
        let own = way.split_whitespace().skip_while(|word| *word != "src").nth(1).context("no source")?;
        let seen = TcpConnection::open(&pod, to)?.greeting().client;
        ensure!(seen == own.parse::<IpAddr>()?, "{seen} instead of {own}");
    }
    Ok(())
}
