// SPDX-License-Identifier: Apache-2.0

//! Who reaches whom, without policies: every kind of client, every kind of server, here and there, directly and by Service.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use weft_testbed::{Bed, Container, Mode, Options, Place as _, Protocol, Shell, Vm, service, until_ok};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const PORT: u16 = 8080;
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// More than any MTU here: three fragments.
const LARGE: usize = 4000;

fn vips(port: u16) -> Vec<SocketAddr> {
    VIPS.iter().map(|vip| SocketAddr::new(vip.parse().expect("an address"), port)).collect()
}

/// A container on each node and a guest on the first, each a server and a backend of one Service.
struct Site {
    guest: Vm,
    containers: Vec<Container>,
    bed: Bed,
}

impl Site {
    fn new(mode: Mode) -> Result<Self> {
        let bed = Bed::with(&Options { mode, ..Options::default() })?;
        bed.apply(&service("default/web", VIPS, 80, PORT, &[("app", "web")]))?;
        let labels = [("app", "web")];
        let containers = (1..=2)
            .map(|number| bed.container(number, &format!("default/web-{number}"), &labels))
            .collect::<Result<Vec<_>>>()?;
        let guest = bed.vm(1, "default/guest", &labels)?;
        for container in &containers {
            container.serve(&container.label(), PORT)?;
        }
        guest.serve("default/guest", PORT)?;
        Ok(Self { guest, containers, bed })
    }

    fn servers(&self) -> Vec<(String, Vec<SocketAddr>)> {
        let mut servers: Vec<_> =
            self.containers.iter().map(|container| (container.label(), container.sockets(PORT))).collect();
        servers.push(("default/guest".to_owned(), self.guest.sockets(PORT)));
        servers
    }

    /// `client`, whose packets have one of `addresses` as source, reaches every server, which sees that address.
    fn reaches_all(&self, client: &dyn Shell, addresses: &[IpAddr]) -> Result<()> {
        for (name, sockets) in self.servers() {
            for to in sockets {
                for protocol in BOTH {
                    let answer = client.reaches(protocol, to, &name)?;
                    let seen = answer.client;
                    ensure!(addresses.contains(&seen), "{} is seen by {name} as {seen}", client.label());
                }
                client.pings(to.ip(), 56)?;
                client.pings(to.ip(), LARGE)?;
            }
        }
        Ok(())
    }

    /// `client` meets all servers behind the Service.
    fn meets_all(&self, client: &dyn Shell) -> Result<()> {
        let all: BTreeSet<String> = self.servers().into_iter().map(|(name, _)| name).collect();
        for to in vips(80) {
            for protocol in BOTH {
                let mut met = BTreeSet::new();
                for _ in 0..100 {
                    met.insert(client.ask(protocol, to)?.server);
                    if met == all {
                        break;
                    }
                }
                ensure!(met == all, "{} -> {protocol} {to}: met only {met:?}", client.label());
            }
        }
        Ok(())
    }
}

fn everybody_reaches_everybody(mode: Mode) -> Result<()> {
    let site = Site::new(mode)?;
    for container in &site.containers {
        site.reaches_all(container, container.addresses())?;
        site.meets_all(container)?;
    }
    site.reaches_all(&site.guest, site.guest.addresses())?;
    site.meets_all(&site.guest)
}

#[test]
fn containers_and_guests_over_vxlan() -> Result<()> {
    everybody_reaches_everybody(Mode::Vxlan)
}

#[test]
fn containers_and_guests_over_native_routes() -> Result<()> {
    everybody_reaches_everybody(Mode::Native)
}

#[test]
fn hosts_reach_workloads_and_services() -> Result<()> {
    for mode in [Mode::Vxlan, Mode::Native] {
        let site = Site::new(mode)?;
        for node in site.bed.nodes() {
            for (name, sockets) in site.servers() {
                for to in sockets {
                    for protocol in BOTH {
                        node.reaches(protocol, to, &name)?;
                    }
                    node.pings(to.ip(), 56)?;
                }
            }
            site.meets_all(node.as_ref())?;
        }
    }
    Ok(())
}

#[test]
fn workloads_reach_hosts() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    for node in site.bed.nodes() {
        node.serve(node.name(), PORT)?;
        for client in [&site.containers[0] as &dyn Shell, &site.containers[1], &site.guest] {
            for address in [IpAddr::from(node.v4()), node.v6().into()] {
                for protocol in BOTH {
                    client.reaches(protocol, SocketAddr::new(address, PORT), node.name())?;
                }
                client.pings(address, 56)?;
            }
        }
    }
    Ok(())
}

#[test]
fn host_network_pods_are_backends_and_clients() -> Result<()> {
    let bed = Bed::new()?;
    let clients = [bed.container(1, "default/one", &[])?, bed.container(2, "default/two", &[])?];
    let node = bed.node(2);
    let (v4, v6) = (node.v4(), node.v6());
    bed.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": "on-the-host", "labels": {"app": "host"}},
        "spec": {"nodeName": node.name(), "hostNetwork": true, "containers": [{"name": "main", "image": "main"}]},
        "status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]},
    }))?;
    bed.apply(&service("default/host", VIPS, 80, PORT, &[("app", "host")]))?;
    node.serve("on-the-host", PORT)?;
    for client in &clients {
        for to in vips(80) {
            weft_testbed::until_ok("the host's backend", Duration::from_secs(10), || {
                client.reaches(Protocol::Tcp, to, "on-the-host")
            })?;
            client.reaches(Protocol::Udp, to, "on-the-host")?;
        }
    }
    for to in vips(80) {
        bed.node(1).reaches(Protocol::Tcp, to, "on-the-host")?;
        node.reaches(Protocol::Tcp, to, "on-the-host")?;
    }
    Ok(())
}

#[test]
fn a_workload_reaches_itself_through_its_service() -> Result<()> {
    let bed = Bed::new()?;
    let labels = [("app", "alone")];
    let alone = bed.container(1, "default/alone", &labels)?;
    bed.apply(&service("default/alone", VIPS, 80, PORT, &labels))?;
    alone.serve("alone", PORT)?;
    for to in vips(80) {
        for protocol in BOTH {
            weft_testbed::until_ok("the Service", Duration::from_secs(10), || alone.reaches(protocol, to, "alone"))?;
        }
    }
    Ok(())
}

#[test]
fn the_outside_sees_the_nodes_address() -> Result<()> {
    for mode in [Mode::Vxlan, Mode::Native] {
        let bed = Bed::with(&Options { mode, ..Options::default() })?;
        bed.outside().serve("outside", PORT)?;
        for number in 1..=2 {
            let node = bed.node(number);
            let client = bed.container(number, &format!("default/client-{number}"), &[])?;
            for own in [IpAddr::from(node.v4()), node.v6().into()] {
                let outside = bed.outside().address_for(own);
                for protocol in BOTH {
                    let answer = client.reaches(protocol, SocketAddr::new(outside, PORT), "outside")?;
                    assert_eq!(answer.client, own);
                }
                client.pings(outside, 56)?;
                client.pings(outside, LARGE)?;
            }
        }
    }
    Ok(())
}

#[test]
fn bulk_data_passes_between_nodes_and_through_a_service() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    let client = &site.containers[0];
    // Segments of 64 KiB, which the dataplane must pass on whole.
    site.containers[1].start("bulk", "weft-probe serve --name bulk --tcp 5201")?;
    bed_service(&site.bed)?;
    for to in site.containers[1].addresses().iter().copied().chain(["10.96.0.20".parse()?, "fd00:96::20".parse()?]) {
        let to = SocketAddr::new(to, 5201);
        weft_testbed::until_ok("the server", Duration::from_secs(20), || client.ask(Protocol::Tcp, to))?;
        let report = client.sh(&format!("weft-probe bulk {to} --mib 50"))?.ok()?;
        ensure!(report.starts_with("52428800 bytes"), "{to}: {report}");
    }
    Ok(())
}

fn bed_service(bed: &Bed) -> Result<()> {
    bed.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "bulk"},
        "spec": {
            "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:96::20"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": "bulk"},
            "ports": [{"name": "tcp", "port": 5201, "targetPort": 5201}],
        },
    }))?;
    // The pod of the second container gets the label that the Service wants.
    bed.apply(&weft_testbed::pod("default/web-2", "node2", &[("app", "bulk")]))
}

#[test]
fn a_guest_learns_its_network_from_the_agent() -> Result<()> {
    let bed = Bed::new()?;
    let container = bed.container(1, "default/container", &[])?;
    let guest = bed.vm(1, "default/guest", &[])?;
    let mtu = "cat /proc/sys/net/ipv6/conf/eth0/mtu";
    let mtu_of = |place: &dyn Shell| -> Result<String> { Ok(place.sh(mtu)?.ok()?.trim().to_owned()) };
    // VXLAN takes 50 of the wire's 1500.
    assert_eq!(mtu_of(&container)?, "1450");
    assert_eq!(mtu_of(&guest)?, "1450");
    let addresses = guest.sh("ip -o address show dev eth0 scope global")?.ok()?;
    for address in guest.addresses() {
        assert!(addresses.contains(&address.to_string()), "{address} is not in {addresses}");
    }
    // One gateway address of Ethernet, on every node and for every kind of port.
    guest.pings(container.v4()?, 56)?;
    guest.pings(container.v6()?, 56)?;
    let gateway = weft_abi::GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for family in ["-4", "-6"] {
        let neighbours = guest.sh(&format!("ip {family} neigh show dev eth0"))?.ok()?;
        assert!(neighbours.contains(&gateway), "{neighbours}");
    }
    Ok(())
}

/// Ones' complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let total: u32 = bytes.chunks(2).map(word).sum();
    // No frame here has more than 65,535 words: two carries at most.
    let once = (total & 0xffff) + (total >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// How a frame of TCP or UDP has its checksum.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Checksum {
    /// That of the pseudo header: the rest is left to whoever sends the packet on.
    Left,
    Whole,
    Wrong,
}

/// Protocol, family and checksum of a frame of TCP or UDP.
fn checksum(frame: &[u8]) -> Result<(u8, bool, Checksum)> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame)?;
    let (is_v6, mut pseudo, bytes) = match sliced.net.context("no IP")? {
        etherparse::NetSlice::Ipv4(ip) => (false, frame[26..34].to_vec(), ip.payload().payload),
        etherparse::NetSlice::Ipv6(ip) => (true, frame[22..54].to_vec(), ip.payload().payload),
        etherparse::NetSlice::Arp(_) => bail!("ARP"),
    };
    let (protocol, field) = match sliced.transport.context("no transport")? {
        etherparse::TransportSlice::Udp(udp) => (17, udp.checksum()),
        etherparse::TransportSlice::Tcp(tcp) => (6, tcp.checksum()),
        _ => bail!("another protocol"),
    };
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(bytes.len())?.to_be_bytes());
    let left = sum(&pseudo);
    let checksum = match sum(&[&pseudo, bytes].concat()) {
        _ if field == left => Checksum::Left,
        0xffff => Checksum::Whole,
        _ => Checksum::Wrong,
    };
    Ok((protocol, is_v6, checksum))
}

/// A pod's kernel leaves checksums to whoever sends a packet on: they have the pseudo header's sum, which must be that of the
/// backend's address. Nobody between two pods looks at it, but a device that finishes the sum builds on it.
#[test]
fn a_checksum_that_is_left_to_the_sender_follows_the_backends_address() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    bed.apply(&service("default/web", VIPS, 80, PORT, &[("app", "web")]))?;
    let client = bed.container(1, "default/client", &[])?;
    let web = bed.container(1, "default/web", &[("app", "web")])?;
    web.serve("web", PORT)?;
    let wire = web.receiver("eth0")?;
    for to in vips(80) {
        for protocol in BOTH {
            until_ok("the Service has its backend", Duration::from_secs(10), || client.reaches(protocol, to, "web"))?;
        }
    }
    let mut left = BTreeSet::new();
    while let Some(frame) = wire.receive(Duration::from_secs(1))? {
        let Ok((protocol, is_v6, checksum)) = checksum(&frame) else { continue };
        ensure!(checksum != Checksum::Wrong, "{frame:02x?}");
        if checksum == Checksum::Left {
            left.insert((protocol, is_v6));
        }
    }
    ensure!(left == BTreeSet::from([(6, false), (6, true), (17, false), (17, true)]), "left: {left:?}");
    Ok(())
}

/// Nobody is told of flows that are let through but whoever follows them; drops always are.
#[test]
fn flows_that_are_let_through_are_told_to_followers() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let client = bed.container(1, "default/client", &[])?;
    let web = bed.container(1, "default/web", &[])?;
    web.serve("web", PORT)?;
    let (node, to) = (bed.node(1), web.sockets(PORT)[0]);
    client.reaches(Protocol::Udp, to, "web")?;
    client.is_kept_out(Protocol::Udp, SocketAddr::new("10.244.1.250".parse()?, PORT))?;
    until_ok("the drop is told", Duration::from_secs(10), || {
        let told = node.weft("flows")?;
        ensure!(told.contains("no-endpoint"), "told: {told}");
        Ok(())
    })?;
    let told = node.weft("flows")?;
    ensure!(!told.contains("forwarded"), "nobody has followed: {told}");
    let follower = node.start("follower", "weft flows --follow")?;
    until_ok("a follower is told", Duration::from_secs(10), || {
        client.reaches(Protocol::Udp, to, "web")?;
        let told = follower.output(&**node)?;
        ensure!(told.contains("forwarded") && told.contains(&to.to_string()), "told: {told}");
        Ok(())
    })?;
    // Followers that come and go, and flows after the last of them: the agent still hears of the next drop.
    node.sh("kill $(pgrep -x weft)")?.ok()?;
    for _ in 0..40 {
        node.sh("timeout 0.02 weft flows --follow >/dev/null || true")?.ok()?;
        client.reaches(Protocol::Udp, to, "web")?;
    }
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        client.reaches(Protocol::Udp, to, "web")?;
    }
    client.is_kept_out(Protocol::Udp, SocketAddr::new("10.244.1.251".parse()?, PORT))?;
    until_ok("the next drop is told", Duration::from_secs(10), || {
        let told = node.weft("flows")?;
        ensure!(told.contains("10.244.1.251"), "told: {told}");
        Ok(())
    })
}
