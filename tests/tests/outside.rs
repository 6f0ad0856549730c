// SPDX-License-Identifier: Apache-2.0

//! How packets leave the node: in pieces, with which address, in which class of service.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use weft_testbed::{
    Answer, Bed, Binaries, Container, Mode, OUTSIDE_V4, OUTSIDE_V6, Options, Protocol, Shell, UdpFlow, until_ok,
};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;

/// Every one of a few echoes comes back; `how`: options of `ping`.
fn echoes(from: &Container, to: IpAddr, how: &str) -> Result<()> {
    let ping = from.sh(&format!("ping -c 4 -i 0.2 -W 2 {how} {to}"))?;
    ensure!(ping.output.contains(" 0% packet loss"), "ping {how} {to}: {}", ping.output);
    Ok(())
}

/// D10: who does not mind the MTU and lets routers cut (IPv4 without DF) is heard.
#[test]
fn what_is_larger_than_the_way_out_goes_in_pieces() -> Result<()> {
    for mode in [Mode::Vxlan, Mode::Native] {
        let bed = Bed::with(&Options { mode, ..Options::default() })?;
        let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
        let node = bed.node(1);
        // Both ends: a veth hands over no more than the other one's MTU.
        let ports = "for port in $(ls /sys/class/net | grep '^weft[0-9a-f]*$' | grep -v '^weft[01]$'); do ip link set $port mtu 65535; done";
        node.sh(ports)?.ok()?;
        near.sh("ip link set eth0 mtu 9000")?.ok()?;
        let reach = |ends: &[IpAddr]| -> Result<()> {
            for to in ends.iter().copied() {
                for size in [1473, 3000, 8900] {
                    echoes(&near, to, &format!("-M dont -s {size}"))?;
                }
                echoes(&near, to, "-s 20000")?;
                // Two pieces that are too big, and a small one.
                echoes(&near, to, "-s 18200")?;
            }
            Ok(())
        };
        reach(&[OUTSIDE_V4.into(), far.v4()?]).with_context(|| node.agent_log())?;
        if mode == Mode::Vxlan {
            // What encapsulates it is one datagram, for the underlay to cut.
            near.sh("ip link set eth0 mtu 65535")?.ok()?;
            echoes(&near, far.v4()?, "-M dont -s 65000")?;
            let dropped = node.drops("too-big")?;
            near.sh(&format!("ping -c 1 -W 1 -M dont -s 65500 {}", far.v4()?))?;
            ensure!(node.drops("too-big")? > dropped, "no datagram between nodes is as large");
            near.sh("ip link set eth0 mtu 9000")?.ok()?;
        }
        let told = near.sh(&format!("ping -c 1 -W 2 -M do -s 3000 {OUTSIDE_V4}"))?.output;
        ensure!(told.contains("mtu = 1500"), "{told}");
        // The host's own rules see what its stack cuts, and tracks its connections.
        node.sh("nft add table ip own
             nft 'add chain ip own post { type nat hook postrouting priority srcnat; }'
             nft add rule ip own post oifname eth0 masquerade
             nft 'add chain ip own forward { type filter hook forward priority filter; }'
             nft add rule ip own forward ct state established counter accept")?
            .ok()?;
        reach(&[OUTSIDE_V4.into()]).context("beside the host's own NAT")?;
    }
    Ok(())
}

/// D8: `nonMasqueradeCIDRs`; other nodes among them are reached by the tunnel. Flows follow the configuration.
#[test]
fn workloads_keep_their_addresses_where_the_configuration_says() -> Result<()> {
    let plain = json!(["203.0.113.0/24", "2001:db8:77::/64", "192.168.119.0/24", "fd00:119::/64"]);
    let bed = Bed::with(&Options { config: json!({"nonMasqueradeCIDRs": plain}), ..Options::default() })?;
    let (node, other) = (bed.node(1), bed.node(2));
    let client = bed.container(1, "default/client", &[])?;
    bed.outside().serve("outside", PORT)?;
    other.serve("node2", PORT)?;
    let back = format!(
        "set -e
         ip route add 10.244.1.0/24 via {} src {OUTSIDE_V4}
         ip -6 route add fd00:244:0:1::/64 via {} src {OUTSIDE_V6}",
        node.v4(),
        node.v6()
    );
    bed.outside().sh(&back)?.ok()?;
    let ends = [
        (IpAddr::from(OUTSIDE_V4), "outside"),
        (OUTSIDE_V6.into(), "outside"),
        (other.v4().into(), "node2"),
        (other.v6().into(), "node2"),
    ];
    let flows: Vec<_> = ends
        .iter()
        .map(|(to, server)| Ok((UdpFlow::open(&client, SocketAddr::new(*to, PORT))?, *server)))
        .collect::<Result<_>>()?;
    let seen_as = |address: &dyn Fn(IpAddr) -> Result<IpAddr>| -> Result<()> {
        for (flow, server) in &flows {
            let wanted = Answer { server: (*server).to_owned(), client: address(flow.to().ip())? };
            until_ok(&format!("{} sees {}", flow.to(), wanted.client), SOON, || {
                let answer = flow.ask()?;
                ensure!(answer == wanted, "{answer:?}");
                Ok(())
            })
            .with_context(|| node.agent_log())?;
        }
        Ok(())
    };
    let own = |to: IpAddr| if to.is_ipv4() { client.v4() } else { client.v6() };
    let nodes = |to: IpAddr| Ok(node.address_for(to));
    seen_as(&own)?;
    node.stop_agent(Signal::SIGTERM)?;
    node.sh(&format!(
        "sed -i 's,203.0.113.0/24,198.51.100.0/24,; s,2001:db8:77::/64,2001:db8:78::/64,
             s,192.168.119.0/24,192.0.2.0/24,; s,fd00:119::/64,fd00:120::/64,' /mnt/{}/agent.yaml",
        node.name()
    ))?
    .ok()?;
    node.start_agent()?;
    node.agent_ready()?;
    seen_as(&nodes)
}

/// RFC 2983, RFC 6040: the network between nodes sees the class of service of what is inside, and what is marked as congested stays so.
#[test]
fn the_tunnel_has_the_class_of_what_is_inside() -> Result<()> {
    for underlay in [4, 6] {
        let bed = Bed::idle(&Options::default(), &Binaries::locate()?)?;
        if underlay == 6 {
            bed.nodes().iter().try_for_each(|node| node.sh("ip -4 address flush dev eth0")?.ok().map(drop))?;
        }
        bed.nodes().iter().try_for_each(|node| node.start_agent())?;
        bed.nodes().iter().try_for_each(|node| node.agent_ready())?;
        bed.nodes().iter().try_for_each(|node| node.agent_knows(1))?;
        let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
        let family = if underlay == 4 { "ip" } else { "ip6" };
        bed.node(2)
            .sh(&format!(
                "set -e
                 nft add table inet seen
                 nft 'add chain inet seen pre {{ type filter hook prerouting priority -310; }}'
                 for class in cs0 af41 ef; do nft add rule inet seen pre udp dport 8472 {family} dscp $class counter; done"
            ))?
            .ok()?;
        far.sh("set -e
             nft add table inet seen
             nft 'add chain inet seen pre { type filter hook prerouting priority -310; }'
             nft add rule inet seen pre ip dscp ef ip ecn ce counter
             nft add rule inet seen pre ip6 dscp ef ip6 ecn ce counter")?
            .ok()?;
        for to in far.addresses() {
            // EF and CE, AF41.
            for (class, wide) in [("0xbb", 10), ("0x88", 20)] {
                let ping = near.sh(&format!("ping -c {wide} -i 0.05 -W 2 -Q {class} {to}"))?;
                ensure!(ping.output.contains(" 0% packet loss"), "{}", ping.output);
            }
        }
        let counted = |text: &str, what: &str| -> Result<u64> {
            let line = text.lines().find(|line| line.contains(what)).with_context(|| format!("no {what} in {text}"))?;
            let number = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
            Ok(number.context("a number")?.parse()?)
        };
        let outer = bed.node(2).sh("nft list table inet seen")?.ok()?;
        ensure!(
            counted(&outer, "dscp ef")? == 20 && counted(&outer, "dscp af41")? == 40,
            "over IPv{underlay}: {outer}"
        );
        let inner = far.sh("nft list table inet seen")?.ok()?;
        ensure!(counted(&inner, "ip dscp ef")? == 10 && counted(&inner, "ip6 dscp ef")? == 10, "inside: {inner}");
    }
    Ok(())
}

/// `mssClamp`: both ends hear of no more than the way takes, whatever the other one says.
#[test]
fn a_connection_beyond_the_node_is_told_what_the_way_takes() -> Result<()> {
    let bed = Bed::with(&Options { config: json!({"mssClamp": 1200}), ..Options::default() })?;
    let (near, far) = (bed.container(1, "default/near", &[])?, bed.container(2, "default/far", &[])?);
    let seen = "set -e
         nft add table inet seen
         nft 'add chain inet seen pre { type filter hook prerouting priority -310; }'
         for size in '<= 1200' '> 1200'; do nft add rule inet seen pre tcp flags syn tcp option maxseg size $size counter; done";
    bed.outside().serve("outside", PORT)?;
    far.serve("far", PORT)?;
    bed.outside().sh(seen)?.ok()?;
    let (near_too, far_too) = (near.sh(seen)?, far.sh(seen)?);
    near_too.ok().and(far_too.ok())?;
    let outside = [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()];
    for (server, to) in
        outside.into_iter().map(|to| ("outside", to)).chain(far.addresses().iter().map(|to| ("far", *to)))
    {
        near.reaches(Protocol::Tcp, SocketAddr::new(to, PORT), server)?;
    }
    let counted = |place: &dyn Shell, said: u64| -> Result<()> {
        let table = place.sh("nft list table inet seen")?.ok()?;
        let counters = table.lines().filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok());
        let counters: Vec<u64> = counters.collect();
        ensure!(matches!(counters[..], [low, 0] if low >= said), "{}: {table}", place.label());
        Ok(())
    };
    // Of each connection one side's.
    counted(bed.outside(), 2)?;
    counted(&far, 2)?;
    counted(&near, 4)
}

/// `masqueradeAddresses`: every workload has one of them, and is answered there; what the node has not is named; the host's own sockets
/// work on them as before.
#[test]
fn workloads_leave_with_addresses_of_a_pool() -> Result<()> {
    const POOL: [[&str; 4]; 2] = [
        ["192.168.119.101", "192.168.119.102", "192.168.119.103", "192.168.119.104"],
        ["fd00:119::101", "fd00:119::102", "fd00:119::103", "fd00:119::104"],
    ];
    let bed = Bed::idle(
        &Options {
            nodes: 1,
            config: json!({"masqueradeAddresses": ["192.168.119.96/28", "fd00:119::100/120", "192.168.119.99"]}),
            ..Options::default()
        },
        &Binaries::locate()?,
    )?;
    let node = bed.node(1);
    for (v4, v6) in POOL[0].into_iter().zip(POOL[1]) {
        node.sh(&format!("ip address add {v4}/24 dev eth0; ip address add {v6}/64 dev eth0 nodad"))?.ok()?;
    }
    bed.outside().serve("outside", PORT)?;
    node.start_agent()?;
    node.agent_ready()?;
    let status = node.weft("status")?;
    ensure!(status.contains("masqueradeAddresses: no device") && status.contains("192.168.119.99"), "{status}");
    let names: Vec<String> = (0..8).map(|number| format!("default/pod{number}")).collect();
    let pods: Vec<Container> = names.iter().map(|name| bed.container(1, name, &[])).collect::<Result<_>>()?;
    for (family, to) in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].into_iter().enumerate() {
        let to = SocketAddr::new(to, PORT);
        let mut had = std::collections::BTreeSet::new();
        for pod in &pods {
            let seen = pod.reaches(Protocol::Tcp, to, "outside")?.client;
            ensure!(POOL[family].contains(&seen.to_string().as_str()), "{} leaves as {seen}", pod.label());
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let again = pod.reaches(protocol, to, "outside")?.client;
                ensure!(again == seen, "{} leaves as {again}, too, by {protocol}", pod.label());
            }
            echoes(pod, to.ip(), "-s 3000")?;
            had.insert(seen);
        }
        ensure!(had.len() > 1, "all of them leave as {had:?}");
        node.reaches(Protocol::Tcp, to, "outside")?;
    }
    // What the host serves there.
    for address in POOL.into_iter().flatten() {
        let to = SocketAddr::new(address.parse()?, PORT);
        node.serve_at("node1", to)?;
        bed.outside().reaches(Protocol::Tcp, to, "node1")?;
        bed.outside().reaches(Protocol::Udp, to, "node1")?;
    }
    // One that goes: whoever had it leaves with another one.
    let to = SocketAddr::new(OUTSIDE_V4.into(), PORT);
    let gone = pods[0].reaches(Protocol::Tcp, to, "outside")?.client;
    node.sh(&format!("ip address del {gone}/24 dev eth0"))?.ok()?;
    until_ok("another address", SOON, || {
        let seen = pods[0].ask(Protocol::Tcp, to)?.client;
        ensure!(seen != gone && POOL[0].contains(&seen.to_string().as_str()), "still {seen}");
        Ok(())
    })
    .with_context(|| node.agent_log())
}
