// SPDX-License-Identifier: Apache-2.0

//! Connections live as Kubernetes and Linux promise, whatever changes around them.

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4::DestUnreachableHeader};
use serde_json::{Value, json};
use weft_probe::frames::{FrameReceiver, Offload};
use weft_testbed::{
    Answer, Bed, Binaries, Container, OUTSIDE_V4, OUTSIDE_V6, Options, Outside, Place, Protocol, Shell, Tables,
    TcpConnection, UdpFlow, ingress_policy, pod, service, until_ok,
};

const SOON: Duration = Duration::from_secs(20);
/// Where servers of `weft-probe` are.
const PORT: u16 = 8080;
/// Where Services are: a user's port, so that one question and its answer are not the whole life of a flow.
const FRONT: u16 = 7080;
const WEB: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
/// Flows that choose alike by chance are too many to be that.
const FLOWS: usize = 12;

fn at(addresses: [&str; 2], port: u16) -> [SocketAddr; 2] {
    addresses.map(|address| SocketAddr::new(address.parse().expect("an address"), port))
}

fn server(bed: &Bed, number: usize, name: &str, labels: &[(&str, &str)]) -> Result<Container> {
    let container = bed.container(number, &format!("default/{name}"), labels)?;
    container.serve(name, PORT)?;
    Ok(container)
}

/// A policy by which what has the label `role: client` reaches the pods given and the outside, and nothing else.
fn egress_policy(pods: &Value) -> Value {
    let blocks = [format!("{OUTSIDE_V4}/32"), format!("{OUTSIDE_V6}/128")];
    let to = [
        json!({"podSelector": pods}),
        json!({"ipBlock": {"cidr": blocks[0]}}),
        json!({"ipBlock": {"cidr": blocks[1]}}),
    ];
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": "out"},
        "spec": {
            "podSelector": {"matchLabels": {"role": "client"}},
            "policyTypes": ["Egress"], "egress": [{"to": to}],
        },
    })
}

/// Waits until a policy keeps `client` from `server`.
fn is_kept_out(client: &Container, server: &Container) -> Result<()> {
    until_ok("the policy", SOON, || client.is_kept_out(Protocol::Udp, server.sockets(PORT)[0]))
}

/// A UDP flow and the server that it met first.
struct Met {
    flow: UdpFlow,
    server: String,
}

impl Met {
    fn by(client: &Container, to: SocketAddr) -> Result<Self> {
        let flow = UdpFlow::open(client, to)?;
        let server = until_ok("the first answer", SOON, || flow.ask())?.server;
        Ok(Self { flow, server })
    }

    /// Who answers now; what is lost is asked again.
    fn answer(&self) -> Result<Answer> {
        until_ok("an answer", SOON, || self.flow.ask())
    }

    fn stays(&self) -> Result<()> {
        let now = self.answer()?.server;
        ensure!(now == self.server, "{} moved from {} to {now}", self.flow.to(), self.server);
        Ok(())
    }
}

/// Waits until new flows meet `name` in both families.
fn is_met(client: &Container, name: &str) -> Result<()> {
    for to in at(WEB, FRONT) {
        until_ok(&format!("{to} leads to {name}"), SOON, || {
            let server = UdpFlow::open(client, to)?.ask()?.server;
            ensure!(server == name, "to {server}");
            Ok(())
        })?;
    }
    Ok(())
}

/// C1.
#[test]
fn a_udp_flow_keeps_its_backend_as_long_as_that_serves() -> Result<()> {
    let bed = Bed::idle(&Options { nodes: 3, ..Options::default() }, &Binaries::locate()?)?;
    let early = &bed.nodes()[..2];
    early.iter().try_for_each(|node| node.start_agent())?;
    early.iter().try_for_each(|node| node.agent_ready())?;
    early.iter().try_for_each(|node| node.agent_knows(1))?;
    let (web, gold) = ([("app", "web")], ["10.96.0.21", "fd00:96::21"]);
    let client = bed.container(1, "default/client", &[("role", "client")])?;
    let stranger = bed.container(1, "default/stranger", &[])?;
    let backends = [server(&bed, 1, "first", &web)?, server(&bed, 2, "second", &web)?];
    bed.apply(&service("default/web", WEB, FRONT, PORT, &web))?;
    bed.apply(&service("default/gold", gold, FRONT, PORT, &[("tier", "gold")]))?;
    is_met(&client, "first")?;
    is_met(&client, "second")?;
    let flows: Vec<Met> = at(WEB, FRONT)
        .into_iter()
        .flat_map(|to| std::iter::repeat_n(to, FLOWS))
        .map(|to| Met::by(&client, to))
        .collect::<Result<_>>()?;
    let met: BTreeSet<&str> = flows.iter().map(|flow| flow.server.as_str()).collect();
    ensure!(met == ["first", "second"].into(), "{met:?}");
    let stay = |what: &str| flows.iter().try_for_each(Met::stays).with_context(|| what.to_owned());

    let _third = server(&bed, 2, "third", &web)?;
    is_met(&client, "third")?;
    stay("another endpoint")?;
    bed.apply(&ingress_policy("default/web", &web, &[("role", "client")]))?;
    backends.iter().try_for_each(|backend| is_kept_out(&stranger, backend))?;
    stay("another policy")?;
    bed.apply(&pod("default/client", "node1", &[("role", "client"), ("tier", "gold")]))?;
    bed.apply(&pod("default/second", "node2", &[("app", "web"), ("tier", "gold")]))?;
    let tables = [Tables::of(bed.node(1))?, Tables::of(bed.node(2))?];
    for (tables, to) in tables.iter().flat_map(|tables| at(gold, FRONT).map(|to| (tables, to))) {
        until_ok("the labels", SOON, || {
            let found = tables.backends(to)?;
            ensure!(found.as_ref().is_some_and(|found| found.len() == 2), "{to} leads to {found:?}");
            Ok(())
        })?;
    }
    stay("other labels")?;
    bed.node(3).start_agent()?;
    bed.node(3).agent_ready()?;
    bed.nodes().iter().try_for_each(|node| node.agent_knows(2))?;
    stay("another node")?;

    let [first, _second] = backends;
    bed.delete(&pod("default/first", "node1", &web))?;
    drop(first);
    for flow in &flows {
        if flow.server != "first" {
            flow.stays().context("a backend goes")?;
            continue;
        }
        until_ok("the flow leaves the backend that is gone", SOON, || flow.flow.ask())?;
    }
    Ok(())
}

/// C3: one source port towards two Services of one backend, and towards the backend itself.
#[test]
fn connections_of_one_source_port_that_end_at_one_server_all_live() -> Result<()> {
    let bed = Bed::new()?;
    let client = bed.container(1, "default/client", &[])?;
    let mut source = 42_000;
    for (number, name, vips) in [
        (1, "near", [["10.96.0.61", "fd00:96::61"], ["10.96.0.62", "fd00:96::62"]]),
        (2, "far", [["10.96.0.63", "fd00:96::63"], ["10.96.0.64", "fd00:96::64"]]),
    ] {
        let labels = [("app", name)];
        let server = server(&bed, number, name, &labels)?;
        for (index, vips) in vips.into_iter().enumerate() {
            bed.apply(&service(&format!("default/{name}-{index}"), vips, FRONT, PORT, &labels))?;
            for to in at(vips, FRONT) {
                until_ok("the Service", SOON, || client.reaches(Protocol::Tcp, to, name))?;
            }
        }
        for (family, direct) in server.sockets(PORT).into_iter().enumerate() {
            let [one, two] = vips.map(|vips| at(vips, FRONT).into_iter().nth(family).expect("two families"));
            for order in [[one, two, direct], [direct, two, one]] {
                source += 1;
                all_live(&client, source, name, order).with_context(|| format!("{order:?} from port {source}"))?;
            }
        }
    }
    Ok(())
}

/// Opens connections from `port` to each of `order`, all of which lead to the server `name`, and uses them in turn.
fn all_live(client: &Container, port: u16, name: &str, order: [SocketAddr; 3]) -> Result<()> {
    let flows: Vec<UdpFlow> = order.iter().map(|to| UdpFlow::from_port(client, port, *to)).collect::<Result<_>>()?;
    for flow in flows.iter().chain(&flows) {
        let answer = flow.ask().context("UDP")?;
        ensure!(answer.server == name && client.addresses().contains(&answer.client), "{answer:?}");
    }
    let mut connections = Vec::new();
    for to in order {
        let connection = TcpConnection::from_port(client, port, to)?;
        let greeting = connection.greeting();
        ensure!(greeting.server == name && client.addresses().contains(&greeting.client), "{greeting:?}");
        connections.push(connection);
    }
    for _ in 0..2 {
        connections.iter_mut().try_for_each(TcpConnection::goes_on)?;
    }
    Ok(())
}

/// C4.
#[test]
fn a_refused_connection_is_tried_elsewhere_from_the_same_port() -> Result<()> {
    let bed = Bed::new()?;
    let labels = [("app", "web")];
    let client = bed.container(1, "default/client", &[])?;
    let _refuses = bed.container(2, "default/refuses", &labels)?;
    let _serves = server(&bed, 1, "serves", &labels)?;
    bed.apply(&service("default/web", WEB, FRONT, PORT, &labels))?;
    for to in at(WEB, FRONT) {
        until_ok("the Service", SOON, || client.reaches(Protocol::Tcp, to, "serves"))?;
        let mut refused = 0;
        for port in (43_000..).take(FLOWS) {
            until_ok(&format!("{to} from port {port}"), SOON, || {
                let connection = TcpConnection::from_port(&client, port, to);
                refused += usize::from(connection.is_err());
                connection
            })?;
        }
        ensure!(refused > 0, "nothing is shown: the backend that refuses was never met");
    }
    Ok(())
}

/// As kube-proxy refuses it: whoever asks a ClusterIP for a port that its Service has not is told, and need not wait; what no Service
/// has stays silent.
#[test]
fn a_port_that_a_cluster_ip_has_not_is_refused_aloud() -> Result<()> {
    let bed = Bed::new()?;
    let labels = [("app", "web")];
    let client = bed.container(1, "default/client", &[])?;
    let _web = server(&bed, 1, "web", &labels)?;
    bed.apply(&service("default/web", WEB, FRONT, PORT, &labels))?;
    for to in at(WEB, FRONT) {
        until_ok("the Service", SOON, || client.reaches(Protocol::Tcp, to, "web"))?;
    }
    let refused = || bed.node(1).drops("no-service-port");
    for to in at(WEB, FRONT + 1) {
        let before = refused()?;
        is_told_at_once(&client, to).context("a pod")?;
        is_told_at_once(&**bed.node(1), to).context("the host")?;
        ensure!(refused()? >= before + 4, "{to}: refused, and not by the dataplane");
    }
    let nobodys = at(["10.96.0.99", "fd00:96::99"], FRONT);
    for to in nobodys {
        let error = TcpConnection::open(&client, to).map(drop).expect_err("nobody has this address");
        ensure!(!is_refusal(&error), "{to}: told although no Service has it: {error:#}");
    }
    Ok(())
}

fn is_refusal(error: &anyhow::Error) -> bool {
    let of_socket = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    of_socket.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn is_told_at_once(place: &impl Place, to: SocketAddr) -> Result<()> {
    is_refused(TcpConnection::open(place, to).map(drop)).with_context(|| format!("TCP to {to}"))?;
    is_refused(UdpFlow::open(place, to)?.ask().map(drop)).with_context(|| format!("UDP to {to}"))
}

fn is_refused(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if is_refusal(&error) => Ok(()),
        Err(error) => Err(error.context("not told")),
        Ok(()) => anyhow::bail!("answered"),
    }
}

/// C5: as kube-proxy leaves them, those of the host too.
#[test]
fn established_connections_go_on_when_their_service_goes() -> Result<()> {
    let bed = Bed::new()?;
    let labels = [("app", "web")];
    let client = bed.container(1, "default/client", &[("role", "client")])?;
    let _near = server(&bed, 1, "near", &labels)?;
    let _far = server(&bed, 2, "far", &labels)?;
    let other = server(&bed, 2, "other", &[])?;
    let deleted = service("default/web", WEB, FRONT, PORT, &labels);
    let moved = ["10.96.0.22", "fd00:96::22"];
    bed.apply(&deleted)?;
    bed.apply(&service("default/moved", moved, FRONT, PORT, &labels))?;
    let fronts = [at(WEB, FRONT), at(moved, FRONT)].concat();
    let node = &**bed.node(1);
    let mut connections = Vec::new();
    for to in &fronts {
        for _ in 0..FLOWS / 2 {
            connections.push(until_ok("the Service", SOON, || TcpConnection::open(&client, *to))?);
            connections.push(until_ok("the Service", SOON, || TcpConnection::open(node, *to))?);
        }
    }
    let mut go_on = |what: &str| -> Result<()> {
        connections.iter_mut().try_for_each(|connection| {
            let server = connection.greeting().server.clone();
            connection.goes_on().with_context(|| format!("{what}: a connection to {server}"))
        })
    };
    go_on("before")?;
    bed.delete(&deleted)?;
    bed.apply(&service("default/moved", moved, FRONT + 1, PORT, &labels))?;
    let tables = Tables::of(node)?;
    for to in &fronts {
        until_ok("the Service goes", SOON, || {
            let front = tables.frontend(*to)?;
            ensure!(front.is_none(), "{to}: {front:?}");
            Ok(())
        })?;
        ensure!(client.ask_within(Protocol::Tcp, *to, Duration::from_millis(500)).is_err(), "{to} answers still");
    }
    go_on("their Services are gone")?;
    // What decides them again finds no Service that leads there.
    bed.apply(&egress_policy(&json!({"matchLabels": {"app": "web"}})))?;
    is_kept_out(&client, &other)?;
    go_on("a policy changed after their Services")
}

/// A frame of the outside's wire that has `text` in it.
fn frame_with(wire: &FrameReceiver, text: &[u8]) -> Result<Vec<u8>> {
    loop {
        let frame = wire.receive(SOON)?.context("nothing came")?;
        if frame.windows(text.len()).any(|window| window == text) {
            return Ok(frame);
        }
    }
}

/// What the router answers whose next wire takes `mtu` bytes.
fn too_big(frame: &[u8], mtu: u16) -> Result<Vec<u8>> {
    let (macs, packet) = (frame.split_at(12).0, frame.split_at(14).1);
    let ethernet = PacketBuilder::ethernet2(macs[..6].try_into()?, macs[6..].try_into()?);
    let mut bytes = Vec::new();
    if frame[12..14] == [0x08, 0x00] {
        let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
        ethernet
            .ipv4(Outside::GATEWAY_V4.octets(), packet[12..16].try_into()?, 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(header))
            .write(&mut bytes, &packet[..28])?;
    } else {
        // As much as fits into 1280 bytes (RFC 4443, 3.2).
        ethernet
            .ipv6(Outside::GATEWAY_V6.octets(), packet[8..24].try_into()?, 64)
            .icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu.into() })
            .write(&mut bytes, &packet[..packet.len().min(1232)])?;
    }
    Ok(bytes)
}

/// Sends `bytes` bytes to `to`, has `meanwhile` happen, and then the router say that its next wire takes 1280 bytes: the client's
/// kernel must learn that.
fn learns_the_path(
    bed: &Bed,
    client: &Container,
    to: IpAddr,
    bytes: usize,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let route = || client.sh(&format!("ip route get {to}"))?.ok();
    ensure!(!route()?.contains("mtu 1280"), "nothing is shown: it is known");
    let wire = bed.outside().receiver("eth0")?;
    let flow = UdpFlow::open(client, SocketAddr::new(to, PORT))?;
    flow.send(bytes)?;
    let frame = frame_with(&wire, &[b'd'; 100])?;
    meanwhile()?;
    bed.outside().sender("eth0", false)?.send(&too_big(&frame, 1280)?, Offload::default())?;
    until_ok(&format!("the way to {to} takes 1280 bytes"), SOON, || {
        let route = route()?;
        ensure!(route.contains("mtu 1280"), "{route}drops:\n{}", bed.node(1).weft("drops")?);
        Ok(())
    })
}

/// C9: the error is about a packet from just before the change.
#[test]
fn a_path_mtu_error_arrives_although_a_policy_changed_meanwhile() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let client = bed.container(1, "default/client", &[("role", "client")])?;
    let others = [server(&bed, 1, "one", &[("app", "one")])?, server(&bed, 1, "two", &[("app", "two")])?];
    for (other, to) in others.iter().zip([IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()]) {
        // The policy lets the flow out before and after.
        let allowed = if to.is_ipv4() { "two" } else { "one" };
        learns_the_path(&bed, &client, to, 1300, || {
            bed.apply(&egress_policy(&json!({"matchLabels": {"app": allowed}})))?;
            is_kept_out(&client, other)
        })?;
    }
    Ok(())
}

/// C9: inside of the error is the first fragment of a datagram, with an extension header.
#[test]
fn a_path_mtu_error_about_a_fragment_arrives() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let client = bed.container(1, "default/client", &[])?;
    learns_the_path(&bed, &client, OUTSIDE_V6.into(), 2400, || Ok(()))
}

/// The source port of a connection's first segment to port [`PORT`].
fn source_of_syn(frame: &[u8]) -> Option<u16> {
    let (protocol, segment) = match frame.get(12..14)? {
        [0x08, 0x00] => (frame[23], frame.get(34..)?),
        [0x86, 0xdd] => (frame[20], frame.get(54..)?),
        _ => return None,
    };
    let word = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let is_syn = protocol == 6 && word(2)? == PORT && segment.get(13)? & 0x12 == 2;
    is_syn.then(|| word(0)).flatten()
}

/// C10: the server remembers the connection that it has closed for a minute, and takes another one from there for the old one.
#[test]
fn the_port_of_a_deleted_pods_connection_rests() -> Result<()> {
    let config = json!({"masqueradePorts": "61000-61003"});
    let bed = Bed::with(&Options { nodes: 1, config, ..Options::default() })?;
    let next = bed.container(1, "default/next", &[])?;
    for to in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()].map(|to| SocketAddr::new(to, PORT)) {
        // Of this family alone: what the other one left waits at its own.
        let listener = bed.outside().inside(|| TcpListener::bind(to))?;
        let wire = bed.outside().receiver("eth0")?;
        let connect = |from: &Container| from.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)));
        let first = bed.container(1, "default/first", &[])?;
        let mut connection = until_ok("the first pod's connection", SOON, || connect(&first))?;
        let (accepted, peer) = listener.accept()?;
        drop(accepted);
        connection.set_read_timeout(Some(SOON))?;
        ensure!(connection.read(&mut [0; 8])? == 0, "the server ended it");
        drop(connection);
        drop(first);
        while wire.receive(Duration::from_millis(200))?.is_some() {}
        // Some may find no port: what is held is few.
        let held: Vec<TcpStream> = (0..4).filter_map(|_| connect(&next).ok()).collect();
        ensure!(!held.is_empty(), "nothing is shown: no port is free; {}", bed.node(1).weft("drops")?);
        let mut ports = BTreeSet::new();
        while let Some(frame) = wire.receive(Duration::from_millis(200))? {
            ports.extend(source_of_syn(&frame));
        }
        ensure!(!ports.is_empty(), "nothing is shown: no SYN was seen");
        ensure!(!ports.contains(&peer.port()), "{} is given out again: {ports:?}", peer.port());
    }
    Ok(())
}
