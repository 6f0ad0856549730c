// SPDX-License-Identifier: Apache-2.0

//! Who reaches whom, without policies: every kind of client, every kind of server, here and there, directly and by Service.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::json;
use weft_testbed::{Bed, Container, Mode, Options, Protocol, Shell, Vm, service};

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
