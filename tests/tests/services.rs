// SPDX-License-Identifier: Apache-2.0

//! Services from beyond the cluster: NodePorts, addresses of load balancers, traffic policies, refusals.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_testbed::{
    Bed, Container, LOAD_BALANCER, Mode, NODE_PORT, Node, OUTSIDE_V4, OUTSIDE_V6, Options, Protocol,
    SERVICE_PORT as PORT, Shell, TcpConnection, VIPS, Vm, balanced, exposed, hairpin, is_refused, meets, node_ports,
    pod, until_ok,
};

const SOON: Duration = Duration::from_secs(20);
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A guest on the first node and a container on the second one serve the same Service.
struct Site {
    guest: Vm,
    far: Container,
    bed: Bed,
}

impl Site {
    fn new(mode: Mode) -> Result<Self> {
        let bed = Bed::with(&Options { mode, ..Options::default() })?;
        let labels = [("app", "web")];
        let (guest, far) = (bed.vm(1, "default/guest", &labels)?, bed.container(2, "default/far", &labels)?);
        guest.serve("guest", PORT)?;
        far.serve("far", PORT)?;
        Ok(Self { guest, far, bed })
    }

    /// Leads the outside to the load balancer's addresses by a node.
    fn route_to_load_balancer(&self, node: &Node) -> Result<()> {
        let routes = format!(
            "ip route add {}/32 via {} src {OUTSIDE_V4} && ip -6 route add {}/128 via {} src {OUTSIDE_V6}",
            LOAD_BALANCER[0],
            node.v4(),
            LOAD_BALANCER[1],
            node.v6()
        );
        self.bed.outside().sh(&routes)?.ok().map(drop)
    }
}

/// Whoever asks whichever node: outside, pods and guests of both nodes, the other node's host. A backend here sees who asks; one of
/// another node sees the node.
#[test]
fn a_node_port_leads_to_all_backends_from_everywhere() -> Result<()> {
    for mode in [Mode::Vxlan, Mode::Native] {
        let site = Site::new(mode)?;
        site.bed.apply(&exposed("default/web", VIPS, NODE_PORT, "Cluster"))?;
        let (first, second) = (site.bed.node(1), site.bed.node(2));
        let pod = site.bed.container(1, "default/pod", &[])?;
        for (index, (here, there)) in [(first, second), (second, first)].into_iter().enumerate() {
            for to in node_ports(here, NODE_PORT) {
                let outside = site.bed.outside().address_for(to.ip());
                let of_node = here.address_for(to.ip());
                let of_family = |machine: &[IpAddr]| -> Vec<IpAddr> {
                    machine.iter().filter(|own| own.is_ipv4() == to.is_ipv4()).copied().collect()
                };
                let (near, far) = (("guest", "far"), ("far", "guest"));
                let (local, remote) = if index == 0 { near } else { far };
                meets(site.bed.outside(), to, &[(local, &[outside]), (remote, &[of_node])])
                    .with_context(|| here.agent_log())?;
                let host = there.address_for(to.ip());
                meets(&**there, to, &[(local, &[host]), (remote, &[of_node])])?;
                let own = of_family(pod.addresses());
                if index == 0 {
                    // Of the node that it asks.
                    meets(&pod, to, &[(local, &own), (remote, &own)])?;
                    let guests = of_family(site.guest.addresses());
                    meets(&site.guest, to, &[(remote, &guests), (local, &[guests[0], hairpin(to.ip())])])?;
                } else {
                    let masqueraded = there.address_for(to.ip());
                    meets(&pod, to, &[(local, &[masqueraded, own[0]]), (remote, &[of_node])])?;
                }
            }
        }
        ensure!(site.far.addresses().len() == 2, "both families were asked");
    }
    Ok(())
}

/// `externalTrafficPolicy: Local`: from elsewhere only what is on the node is met, which sees who asks; a node without it is silent.
/// Who is on the node meets all.
#[test]
fn a_local_policy_is_for_those_from_elsewhere() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    site.bed.apply(&exposed("default/web", VIPS, NODE_PORT, "Local"))?;
    let third = site.bed.container(2, "default/other", &[("app", "other")])?;
    third.serve("other", PORT)?;
    let vips = ["10.96.0.11", "fd00:96::11"];
    site.bed.apply(&exposed("default/other", vips, NODE_PORT + 1, "Local"))?;
    let pod = site.bed.container(1, "default/pod", &[])?;
    let (first, second) = (site.bed.node(1), site.bed.node(2));
    for family in 0..2 {
        let (here, there) = (node_ports(first, NODE_PORT)[family], node_ports(second, NODE_PORT)[family]);
        let outside = site.bed.outside().address_for(here.ip());
        meets(site.bed.outside(), here, &[("guest", &[outside])])?;
        meets(site.bed.outside(), there, &[("far", &[outside])])?;
        let own: Vec<IpAddr> = pod.addresses().iter().filter(|own| own.is_ipv4() == here.is_ipv4()).copied().collect();
        meets(&pod, here, &[("guest", &own), ("far", &own)])?;
        let (silent, heard) = (node_ports(first, NODE_PORT + 1)[family], node_ports(second, NODE_PORT + 1)[family]);
        meets(site.bed.outside(), heard, &[("other", &[outside])])?;
        for protocol in BOTH {
            site.bed.outside().is_kept_out(protocol, silent)?;
        }
        meets(&pod, silent, &[("other", &own)])?;
    }
    ensure!(first.drops("no-local-backend")? > 0, "it is counted");
    Ok(())
}

/// An address that a load balancer gave the Service: from outside, routed to a node, from pods, and from the node itself. Its other ports
/// are whose they were.
#[test]
fn an_address_of_a_load_balancer_leads_to_the_service() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    site.bed.apply(&balanced("default/web"))?;
    let node = site.bed.node(1);
    site.route_to_load_balancer(node)?;
    let pod = site.bed.container(1, "default/pod", &[])?;
    for address in LOAD_BALANCER {
        let to = SocketAddr::new(address.parse()?, 80);
        let of_node = node.address_for(to.ip());
        let outside = site.bed.outside().address_for(to.ip());
        meets(site.bed.outside(), to, &[("guest", &[outside]), ("far", &[of_node])])
            .with_context(|| node.agent_log())?;
        let own: Vec<IpAddr> = pod.addresses().iter().filter(|own| own.is_ipv4() == to.is_ipv4()).copied().collect();
        meets(&pod, to, &[("guest", &own), ("far", &own)])?;
    }
    for address in LOAD_BALANCER {
        let to = SocketAddr::new(address.parse()?, 80);
        let known = node_ports(node, 0)[usize::from(to.is_ipv6())].ip();
        meets(&**node, to, &[("guest", &[known]), ("far", &[known])]).with_context(|| node.agent_log())?;
        node.sh(&format!("weft-probe connect udp-unconnected {to}"))?.ok().context("a socket that is not connected")?;
        let length = if to.is_ipv4() { 32 } else { 128 };
        let outside = site.bed.outside();
        outside
            .sh(&format!(
                "ip addr add {address}/{length} dev lo nodad 2>/dev/null || ip addr add {address}/{length} dev lo"
            ))?
            .ok()?;
        let other = SocketAddr::new(to.ip(), 81);
        outside.serve_at("real", other)?;
        for client in [&**node as &dyn Shell, &pod] {
            let what = format!("{} meets the real load balancer", client.label());
            let answer = until_ok(&what, SOON, || client.ask(Protocol::Tcp, other))?;
            ensure!(answer.server == "real", "{what}: answered by {}", answer.server);
        }
    }
    let told = node.sh("weft services")?.ok()?;
    ensure!(told.contains("198.18.7.7 external") && told.contains("nodePort 30080"), "{told}");
    ensure!(!told.contains("198.18.7.8"), "what the load balancer does itself is its own: {told}");
    Ok(())
}

/// A client that is in none of them hears nothing, by the load balancer's address alone.
#[test]
fn a_load_balancer_serves_those_in_its_source_ranges_alone() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    let node = site.bed.node(1);
    site.route_to_load_balancer(node)?;
    let pod = site.bed.container(1, "default/pod", &[])?;
    let mut object = balanced("default/web");
    let mut limit = |ranges: [String; 2]| {
        object["spec"]["loadBalancerSourceRanges"] = json!(ranges);
        site.bed.apply(&object)
    };
    let outside = [format!("{OUTSIDE_V4}/32"), format!("{OUTSIDE_V6}/64")];
    let pods = pod.addresses().iter().map(|own| format!("{own}/{}", if own.is_ipv4() { 32 } else { 128 }));
    let pods = [pods.clone().find(|own| own.contains('.')), pods.clone().find(|own| own.contains(':'))];
    let pods = pods.map(|own| own.expect("an address of each family"));
    let clients: [(&dyn Shell, [String; 2]); 2] = [(site.bed.outside(), outside), (&pod, pods)];
    for (served, refused) in [(0, 1), (1, 0)] {
        limit(clients[served].1.clone())?;
        for address in LOAD_BALANCER {
            let to = SocketAddr::new(address.parse()?, 80);
            for protocol in BOTH {
                let client = clients[served].0;
                until_ok("it is served", SOON, || client.ask(protocol, to)).with_context(|| node.agent_log())?;
                until_ok("it is not", SOON, || clients[refused].0.is_kept_out(protocol, to))?;
            }
        }
        let node_port = node_ports(node, NODE_PORT)[0];
        clients[refused].0.ask(Protocol::Tcp, node_port).context("other frontends are for all")?;
    }
    ensure!(node.drops("source-range")? > 0, "it is counted");
    Ok(())
}

/// Whom nobody serves is told so, wherever it asks from, and once there is somebody it is served.
#[test]
fn a_node_port_that_nobody_serves_is_refused_aloud() -> Result<()> {
    let bed = Bed::with(&Options::default())?;
    bed.apply(&exposed("default/web", VIPS, NODE_PORT, "Cluster"))?;
    let pod = bed.container(1, "default/pod", &[])?;
    let ends: [&dyn Shell; 3] = [bed.outside(), &pod, &**bed.node(2)];
    for to in node_ports(bed.node(1), NODE_PORT) {
        for client in ends {
            is_refused(client, to).with_context(|| bed.node(1).agent_log())?;
        }
    }
    let web = bed.container(2, "default/web", &[("app", "web")])?;
    web.serve("web", PORT)?;
    for to in node_ports(bed.node(1), NODE_PORT) {
        for protocol in BOTH {
            until_ok("it is served", SOON, || bed.outside().reaches(protocol, to, "web").map(drop))?;
        }
    }
    Ok(())
}

/// Endpoints that are the node itself: its own routes would lead its answers past Weft.
#[test]
fn a_node_port_leads_to_the_node_itself() -> Result<()> {
    let bed = Bed::with(&Options::default())?;
    let node = bed.node(1);
    node.serve("host", PORT)?;
    let mut object = exposed("default/web", VIPS, NODE_PORT, "Cluster");
    object["spec"]["selector"] = Value::Null;
    bed.apply(&object)?;
    let ports =
        json!([{"name": "tcp", "protocol": "TCP", "port": PORT}, {"name": "udp", "protocol": "UDP", "port": PORT}]);
    for (kind, address) in [("IPv4", IpAddr::from(node.v4())), ("IPv6", node.v6().into())] {
        bed.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {"namespace": "default", "name": format!("web-{}", kind.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "web"}},
            "ports": ports, "endpoints": [{"addresses": [address], "nodeName": node.name()}],
        }))?;
    }
    for number in 1..=2 {
        for to in node_ports(bed.node(number), NODE_PORT) {
            for protocol in BOTH {
                until_ok(&format!("{protocol} {to} leads to the host"), SOON, || {
                    bed.outside().reaches(protocol, to, "host").map(drop)
                })
                .with_context(|| bed.node(number).agent_log())?;
            }
        }
    }
    Ok(())
}

/// Which backend each of so many client ports outside has at this address.
fn choices(site: &Site, to: SocketAddr) -> Result<Vec<String>> {
    (40_000..40_040)
        .map(|port| Ok(TcpConnection::from_port(site.bed.outside(), port, to)?.greeting().server.clone()))
        .collect()
}

/// With `consistent`, a client has one backend, whichever node it comes to and by whichever frontend.
#[test]
fn a_consistent_choice_is_the_same_on_every_node_and_frontend() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    let mut object = balanced("default/web");
    object["metadata"]["annotations"] = json!({"weft.dev/algorithm": "consistent"});
    object["metadata"]["uid"] = json!("0a1b2c3d-0000-4000-8000-000000000001");
    site.bed.apply(&object)?;
    site.route_to_load_balancer(site.bed.node(1))?;
    for (family, address) in LOAD_BALANCER.into_iter().enumerate() {
        let all = [1, 2].map(|number| node_ports(site.bed.node(number), NODE_PORT)[family]);
        let to_load_balancer = SocketAddr::new(address.parse()?, 80);
        for to in all.into_iter().chain([to_load_balancer]) {
            until_ok(&format!("{to} is served"), SOON, || site.bed.outside().ask(Protocol::Tcp, to).map(drop))?;
        }
        let first = choices(&site, all[0])?;
        ensure!(first.iter().collect::<BTreeSet<_>>().len() == 2, "both backends have clients: {first:?}");
        ensure!(choices(&site, all[1])? == first, "another node chooses otherwise");
        ensure!(choices(&site, to_load_balancer)? == first, "another frontend leads elsewhere");
    }
    let told = site.bed.node(1).weft("services")?;
    ensure!(told.contains("consistent"), "{told}");
    Ok(())
}

/// A backend of weight 0 keeps its connections, and gets no new ones.
#[test]
fn a_drained_backend_keeps_its_connections() -> Result<()> {
    let site = Site::new(Mode::Vxlan)?;
    site.bed.apply(&exposed("default/web", VIPS, NODE_PORT, "Cluster"))?;
    let to = node_ports(site.bed.node(1), NODE_PORT)[0];
    let all = until_ok("both serve", SOON, || {
        let met: BTreeSet<String> = choices(&site, to)?.into_iter().collect();
        ensure!(met.len() == 2, "{met:?}");
        Ok(met)
    })?;
    let mut kept = until_ok("one of the container's", SOON, || {
        let connection = TcpConnection::open(site.bed.outside(), to)?;
        ensure!(connection.greeting().server == "far");
        Ok(connection)
    })?;
    let mut pod = pod("default/far", site.bed.node(2).name(), &[("app", "web")]);
    pod["metadata"]["labels"]["weft.dev/weight"] = json!("0");
    site.bed.apply(&pod)?;
    until_ok("it gets no more", SOON, || {
        let met = choices(&site, to)?;
        ensure!(met.iter().all(|server| server == "guest"), "{met:?}");
        Ok(())
    })
    .with_context(|| site.bed.node(1).agent_log())?;
    kept.goes_on()?;
    pod["metadata"]["labels"] = json!({"app": "web"});
    site.bed.apply(&pod)?;
    until_ok("it is back", SOON, || {
        let met: BTreeSet<String> = choices(&site, to)?.into_iter().collect();
        ensure!(met == all, "{met:?}");
        Ok(())
    })?;
    kept.goes_on()
}
