// SPDX-License-Identifier: Apache-2.0

//! B2, B3, B4, and fragments of B7: one workload's flows, ports and pieces do not take the others'.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};
use serde_json::{Value, json};
use weft_probe::frames::Offload;

use super::{
    Case,
    attacker::{Attacker, Family},
    drops::counted,
    frame,
    net::Place,
    tap::TapWorkload,
    witness::{Mark, Witness},
};
use crate::{
    bed::Bed,
    binaries::Binaries,
    container::Container,
    manifest,
    node::{Mode, Node},
    process::Outcome,
    shell::Shell,
    wait::until_ok,
};

/// Where servers outside are.
const PORT: u16 = 7_200;
/// Flow entries of each family: what the attack has many times.
const FLOWS: u32 = 4_096;
/// Datagrams in pieces that are remembered, and those of one attack.
const FRAGMENTS: u32 = 1_024;
const PIECES: u32 = 16_384;
/// Flows of one attack on the table, and on the ports towards one destination.
const FRAMES: u16 = 60_000;
/// Flows of one workload that all must be answered, and how many are under way at once.
const HONEST_FLOWS: u16 = 6_000;
const AT_ONCE: u16 = 50;
/// Connections of one workload that are reset.
const RESETS: u16 = 5_000;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A Service with two backends.
const SERVICE: [&str; 2] = ["10.96.0.50", "fd00:96::50"];
/// What a server that asks back begins with.
const QUESTION: &[u8] = b"<who asks?>";

/// One node.
pub(super) struct Site {
    // Before the bed: workloads are unplugged while their agent is there.
    hostile: Container,
    tap: TapWorkload,
    calm: Container,
    backends: [Container; 2],
    busy: [Container; 4],
    bed: Bed,
}

impl Site {
    /// With tables that one attack fills.
    pub(super) fn small(binaries: &Binaries) -> Result<Self> {
        Self::with(json!({"mapSizes": {"flows4": FLOWS, "flows6": FLOWS, "fragments": FRAGMENTS}}), binaries)
    }

    /// With tables as they are by default.
    pub(super) fn usual(binaries: &Binaries) -> Result<Self> {
        Self::with(Value::Null, binaries)
    }

    fn with(config: Value, binaries: &Binaries) -> Result<Self> {
        let bed = super::bed(1, Mode::Vxlan, config, binaries)?;
        let hostile = bed.container(1, "default/hostile", &[])?;
        let tap = TapWorkload::new(&Rc::clone(bed.node(1)), "default/hostile-guest")?;
        let calm = bed.container(1, "default/calm", &[])?;
        let backend = |name: &str| bed.container(1, &format!("default/{name}"), &[("app", "backend")]);
        let backends = [backend("first")?, backend("second")?];
        bed.apply(&manifest::service("default/backend", SERVICE, PORT, PORT, &[("app", "backend")]))?;
        let busy = |number: usize| bed.container(1, &format!("default/busy{number}"), &[]);
        let busy = [busy(0)?, busy(1)?, busy(2)?, busy(3)?];
        Ok(Self { hostile, tap, calm, backends, busy, bed })
    }

    fn node(&self) -> &Node {
        self.bed.node(1)
    }

    /// What may have kept an answer back.
    fn clues(&self) -> String {
        let neighbours = |place: &dyn Shell| {
            place.sh("ip -s neigh").and_then(Outcome::ok).unwrap_or_else(|error| format!("{error:#}\n"))
        };
        let drops = self.node().weft("drops").unwrap_or_default();
        let (of_node, of_server) = (neighbours(self.node()), neighbours(self.bed.outside()));
        format!("neighbours of the node:\n{of_node}of the server:\n{of_server}drops:\n{drops}")
    }

    fn attacker(&self, who: &str) -> Result<Attacker<'_>> {
        if who == "tap" { Attacker::tap(&self.tap) } else { Attacker::pod(&self.hostile) }
    }

    fn outside(&self, family: Family) -> IpAddr {
        self.bed.outside().address_for(family.any())
    }

    /// Where a flood goes to that is of flows, and takes no port of masquerade.
    fn sink(&self, family: Family) -> Result<SocketAddr> {
        Ok(SocketAddr::new(family.of(self.backends[0].addresses())?, PORT + 1))
    }
}

/// A port that no other case has used: what one attack leaves, the next is not blamed for.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(PORT + 100);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Cases of small tables.
pub(super) fn small_cases() -> Vec<Case<Site>> {
    by_each(&[
        ("B2/flows-leave-a-masqueraded-connection", flows_leave_a_masqueraded_connection),
        ("B2/flows-leave-a-connection-to-a-service", flows_leave_a_connection_to_a_service),
        ("B7/pieces-leave-a-datagram-under-way", pieces_leave_a_datagram),
    ])
}

/// Cases of tables as they are by default. Honest workloads with many connections come first: for half a minute after the
/// floods of several workloads everybody else has a floor.
pub(super) fn usual_cases() -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        let mut add = |what: &str, run: fn(&Site, Family) -> Result<()>| {
            cases.push(Case::new(format!("B4/{what}/pod/{family}"), move |site: &Site| run(site, family)));
        };
        add("6000-flows-to-one-server", many_flows);
        add("5000-connections-that-are-reset", many_resets);
    }
    cases.extend(by_each(&[
        ("B2/flows-leave-new-flows-of-others", flows_leave_new_flows_of_others),
        ("B2/neighbour-requests-are-bounded", neighbour_requests_are_bounded),
        ("B3/ports-of-a-destination-by-udp", ports_by_udp),
        ("B3/ports-of-a-destination-by-syn", ports_by_syn),
    ]));
    cases
}

/// One attack, by a workload of a kind.
type Attack = fn(&Site, &'static str, Family) -> Result<()>;

fn by_each(attacks: &[(&str, Attack)]) -> Vec<Case<Site>> {
    let mut cases = Vec::new();
    for (what, attack) in attacks {
        for who in ["pod", "tap"] {
            for family in Family::ALL {
                let attack = *attack;
                cases.push(Case::new(format!("{what}/{who}/{family}"), move |site: &Site| attack(site, who, family)));
            }
        }
    }
    cases
}

/// A server of this process somewhere in the bed, for both families.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A server that says its name on every line that comes.
    fn tcp(place: &impl Place, port: u16, name: &'static str) -> Result<Self> {
        let listener = place.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(Self::run(move || {
            if let Some(stream) = next_of(&listener) {
                drop(thread::spawn(move || say(&stream, name)));
            }
        }))
    }

    /// A server that ends every connection.
    fn closing(place: &impl Place, port: u16) -> Result<Self> {
        let listener = place.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(Self::run(move || drop(next_of(&listener))))
    }

    /// A server that tells who asks it the port of the question; what asks nothing it does not answer.
    fn udp(place: &impl Place, port: u16) -> Result<Self> {
        let socket = place.udp((Ipv6Addr::UNSPECIFIED, port).into())?;
        setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut buffer = [0; 2_048];
        Ok(Self::run(move || {
            let Ok((read, client)) = socket.recv_from(&mut buffer) else { return };
            if buffer[..read].starts_with(QUESTION) {
                drop(socket.send_to(client.port().to_string().as_bytes(), client));
            }
        }))
    }

    fn run(mut work: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                work();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The next connection, if one comes soon.
fn next_of(listener: &TcpListener) -> Option<TcpStream> {
    let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let some = poll(&mut ready, PollTimeout::from(100_u8)).is_ok_and(|count| count > 0);
    some.then(|| listener.accept().ok()).flatten().map(|(stream, _)| stream)
}

/// A client that goes away is its own business.
fn say(stream: &TcpStream, name: &str) {
    for line in BufReader::new(stream).lines() {
        let mut out = stream;
        if line.is_err() || writeln!(out, "{name}").is_err() {
            return;
        }
    }
}

/// A connection that asks its server's name now and then.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(from: &Container, to: SocketAddr) -> Result<Self> {
        let stream =
            from.inside(|| TcpStream::connect_timeout(&to, PATIENCE)).with_context(|| format!("connect {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn asks(&mut self) -> Result<String> {
        self.0.get_mut().write_all(b"who?\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line).context("no answer on the connection")?;
        ensure!(!line.is_empty(), "the connection was ended");
        Ok(line.trim_end().to_owned())
    }
}

/// What an honest client's datagram is answered: the port that the server saw.
fn question(from: &impl Place, to: SocketAddr) -> Result<u16> {
    let any = if to.is_ipv4() { Family::V4.any() } else { Family::V6.any() };
    let socket = from.udp(SocketAddr::new(any, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(QUESTION, to)?;
    answer_of(&socket)
}

fn answer_of(socket: &UdpSocket) -> Result<u16> {
    let mut buffer = [0; 64];
    let (read, _) = socket.recv_from(&mut buffer).context("no answer")?;
    std::str::from_utf8(&buffer[..read])?.parse().context("not a port")
}

/// `times` datagrams from each of many ports of the attacker's to `to`.
fn flood(attacker: &Attacker<'_>, to: SocketAddr, times: usize) -> Result<()> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let mut frames: Vec<frame::Frame> = Vec::new();
    for number in 0..FRAMES {
        let frame = frame::udp(attacker.link(), attacker.socket(family, 2_000 + number)?, to, b"flood");
        frames.extend(vec![frame.into(); times]);
    }
    send_on_every_cpu(attacker, &frames)
}

/// The kernel's tables forget what was used once before what was used again.
const USED: usize = 2;

/// Sends a part of the frames on each CPU in turn: the kernel's tables that forget keep a list of the latest for each.
fn send_on_every_cpu(attacker: &Attacker<'_>, frames: &[frame::Frame]) -> Result<()> {
    const ROUNDS: usize = 2;
    let this = Pid::from_raw(0);
    let usual = sched_getaffinity(this).context("read the affinity")?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| usual.is_set(*cpu).unwrap_or(false)).collect();
    let mut outcome = Ok(());
    for (part, cpu) in frames.chunks(frames.len().div_ceil(cpus.len() * ROUNDS)).zip(cpus.iter().cycle()) {
        let mut one = CpuSet::new();
        one.set(*cpu)?;
        sched_setaffinity(this, &one).context("change the CPU")?;
        outcome = outcome.and_then(|()| attacker.send(part));
    }
    sched_setaffinity(this, &usual).context("restore the affinity")?;
    outcome
}

fn flows_leave_a_masqueraded_connection(site: &Site, who: &str, family: Family) -> Result<()> {
    let port = fresh_port();
    let _server = Server::tcp(site.bed.outside(), port, "outside")?;
    let mut connection = Connection::open(&site.calm, SocketAddr::new(site.outside(family), port))?;
    ensure!(connection.asks()? == "outside");
    flood(&site.attacker(who)?, site.sink(family)?, USED)?;
    let answer = connection.asks().context("behind the flood")?;
    ensure!(answer == "outside", "answered by {answer}");
    Ok(())
}

fn flows_leave_a_connection_to_a_service(site: &Site, who: &str, family: Family) -> Result<()> {
    let _servers = [Server::tcp(&site.backends[0], PORT, "first")?, Server::tcp(&site.backends[1], PORT, "second")?];
    let service = SocketAddr::new(family.pick(SERVICE[0], SERVICE[1]).parse()?, PORT);
    // With some connections a backend that is chosen anew is another one for at least one of them.
    let mut connections = (0..8).map(|_| Connection::open(&site.calm, service)).collect::<Result<Vec<_>>>()?;
    let before = connections.iter_mut().map(Connection::asks).collect::<Result<Vec<_>>>()?;
    flood(&site.attacker(who)?, site.sink(family)?, USED)?;
    let after = connections.iter_mut().map(Connection::asks).collect::<Result<Vec<_>>>().context("behind the flood")?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

fn flows_leave_new_flows_of_others(site: &Site, who: &str, family: Family) -> Result<()> {
    let port = fresh_port();
    let _server = Server::udp(site.bed.outside(), port)?;
    counted(site.node(), "flow-rate", || {
        flood(&site.attacker(who)?, site.sink(family)?, 1)?;
        let server = SocketAddr::new(site.outside(family), port);
        until_ok("another pod's new flow", PATIENCE, || question(&site.calm, server).map(drop))
    })
}

fn ports_by_udp(site: &Site, who: &str, family: Family) -> Result<()> {
    let port = fresh_port();
    let _server = Server::udp(site.bed.outside(), port)?;
    let server = SocketAddr::new(site.outside(family), port);
    question(&site.calm, server).context("before the attack")?;
    flood(&site.attacker(who)?, server, 1)?;
    for number in 0..20 {
        question(&site.calm, server).with_context(|| format!("question {number} of another pod; {}", site.clues()))?;
    }
    Ok(())
}

fn ports_by_syn(site: &Site, who: &str, family: Family) -> Result<()> {
    let port = fresh_port();
    let _server = Server::tcp(site.bed.outside(), port, "outside")?;
    let attacker = site.attacker(who)?;
    let server = SocketAddr::new(site.outside(family), port);
    let frames: Result<Vec<frame::Frame>> = (0..FRAMES)
        .map(|number| {
            let from = attacker.socket(family, 2_000 + number)?;
            Ok(frame::tcp(attacker.link(), from, server, "S", b"").into())
        })
        .collect();
    attacker.send(&frames?)?;
    for number in 0..20 {
        let mut connection = Connection::open(&site.calm, server)
            .with_context(|| format!("connection {number} of another pod; {}", site.clues()))?;
        ensure!(connection.asks()? == "outside");
    }
    Ok(())
}

/// The first piece of a datagram, then many pieces of the attacker's, then the datagram's last.
fn pieces_leave_a_datagram(site: &Site, who: &str, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    let calm = Attacker::pod(&site.calm)?;
    let to = SocketAddr::new(site.outside(family), fresh_port());
    let socket = site.bed.outside().udp(SocketAddr::new(family.any(), to.port()))?;
    let datagram = |sender: &Attacker<'_>, to: SocketAddr, payload: &[u8], id: u32| -> Result<[Vec<u8>; 2]> {
        let whole = frame::udp(sender.link(), sender.socket(family, 5_200)?, to, payload);
        Ok(frame::fragments(&whole, id, 24))
    };
    // To another place: the receiver's kernel remembers pieces as well.
    let sink = site.sink(family)?;
    let mut many = Vec::new();
    for id in 0..PIECES {
        let [first, _] = datagram(&attacker, sink, &[b'f'; 40], 1 + id)?;
        many.push(first.into());
    }
    let send = |mark: &Mark| -> Result<()> {
        let [first, later] = datagram(&calm, to, &[mark.as_slice(), &[b't'; 24]].concat(), 0x9001)?;
        calm.send(&[first.into()])?;
        send_on_every_cpu(&attacker, &many)?;
        calm.send(&[later.into()])
    };
    Witness::new("the server outside", &socket).sees(send).map(drop)
}

/// Requests for neighbours cost an answer each: more than so many in a second are not answered.
fn neighbour_requests_are_bounded(site: &Site, who: &str, family: Family) -> Result<()> {
    let attacker = site.attacker(who)?;
    let own = family.of(attacker.addresses())?;
    let request = match (own, site.outside(family)) {
        (IpAddr::V4(own), IpAddr::V4(target)) => frame::arp(attacker.link(), own.octets(), target.octets()),
        (own, IpAddr::V6(target)) => {
            let body = [target.octets().as_slice(), &[1, 1], &attacker.link().from].concat();
            frame::icmpv6(attacker.link(), own, target.into(), 255, 135, &body)
        }
        _ => bail!("addresses of two families"),
    };
    let requests = vec![frame::Frame { bytes: request, offload: Some(Offload::default()) }; usize::from(FRAMES / 2)];
    counted(site.node(), "answer-rate", || attacker.send(&requests))?;
    // Another pod's share of answers is its own.
    site.calm.sh("ip neigh flush all")?.ok()?;
    let port = fresh_port();
    let _server = Server::udp(site.bed.outside(), port)?;
    let server = SocketAddr::new(site.outside(family), port);
    until_ok("another pod's neighbours", PATIENCE, || question(&site.calm, server).map(drop))
}

/// Who has many flows: not the same pod in both families, since its share is one.
fn busy(site: &Site, family: Family) -> &Container {
    family.pick(&site.busy[0], &site.busy[1])
}

/// Who has many connections that are reset.
fn resetting(site: &Site, family: Family) -> &Container {
    family.pick(&site.busy[2], &site.busy[3])
}

/// As a forwarding DNS server asks: every question from a port of its own, which is kept.
fn many_flows(site: &Site, family: Family) -> Result<()> {
    let port = fresh_port();
    let _server = Server::udp(site.bed.outside(), port)?;
    let server = SocketAddr::new(site.outside(family), port);
    let (mut lost, mut changed) = (BTreeSet::new(), BTreeSet::new());
    for first in (2_000..2_000 + HONEST_FLOWS).step_by(usize::from(AT_ONCE)) {
        let ports = first..first + AT_ONCE;
        let any = family.any();
        let sockets = busy(site, family).inside(|| {
            let bound = ports.map(|port| Ok((port, UdpSocket::bind(SocketAddr::new(any, port))?)));
            bound.collect::<io::Result<Vec<_>>>()
        })?;
        for (_, socket) in &sockets {
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(QUESTION, server)?;
        }
        for (port, socket) in &sockets {
            match answer_of(socket) {
                Ok(seen) if seen == *port => {}
                Ok(_) => drop(changed.insert(*port)),
                Err(_) => drop(lost.insert(*port)),
            }
        }
        ensure!(lost.is_empty(), "no answer at port {:?}, flow {}", lost.first(), first - 2_000);
    }
    ensure!(changed.is_empty(), "{} of {HONEST_FLOWS} flows had another port at the server", changed.len());
    Ok(())
}

/// A connection that its client resets does not hold its port.
fn many_resets(site: &Site, family: Family) -> Result<()> {
    let port = fresh_port();
    let _server = Server::closing(site.bed.outside(), port)?;
    let server = SocketAddr::new(site.outside(family), port);
    let opened = resetting(site, family).inside(|| {
        for number in 0..RESETS {
            let Ok(stream) = TcpStream::connect_timeout(&server, PATIENCE) else { return Ok(number) };
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &now)?;
        }
        Ok(RESETS)
    })?;
    ensure!(opened == RESETS, "connection {opened} of {RESETS} was not opened; drops: {}", site.node().weft("drops")?);
    Ok(())
}
