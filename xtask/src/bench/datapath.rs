// SPDX-License-Identifier: Apache-2.0

//! Nanoseconds per packet in the programs, by `BPF_PROG_TEST_RUN` with real maps.
//!
//! A small program makes the packet of the next flow and tail-calls what is measured; what that costs by itself, beside the
//! same program calling an empty one, is subtracted.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use weft_abi::{
    ANY_IDENTITY, Addr, Backend, CidrKey, Config, Counter, GATEWAY_MAC, Local, LocalKind, Port, PortKind, PortRule,
    Remote, RemoteKind, RuleKey, Rules, Service, ServiceKey, SlotKey,
};
use weft_dataplane::{
    Dataplane, MapSizes, Options,
    bench::{Bench, Subject, Traffic},
};

use super::table::Row;

/// Where the bench's own bpf filesystem is mounted, in its own mount namespace.
const BPFFS: &str = "/sys/fs/bpf";
/// Runs of every row.
const RUNS: usize = 9;
/// Packets of a run.
const PACKETS: u32 = 1 << 18;
/// Packets of a run whose flows are all new, and how many such runs make a value.
const NEW_PACKETS: u32 = 1 << 10;
const NEW_BATCHES: u32 = 16;

/// `TC_ACT_REDIRECT`, `TC_ACT_OK`.
const REDIRECT: u32 = 7;
const OK: u32 = 0;

const CLIENT: u32 = 101;
const SERVER: u32 = 102;
const VM: u32 = 103;
const CLIENT_IP: [u8; 4] = [10, 1, 0, 10];
const SERVER_IP: [u8; 4] = [10, 1, 0, 20];
const VM_IP: [u8; 4] = [10, 1, 0, 30];
const VIP: [u8; 4] = [10, 96, 0, 10];
/// A pod of another node, and that node.
const FAR_IP: [u8; 4] = [10, 2, 0, 10];
const PEER_IP: [u8; 4] = [192, 0, 2, 2];
const NODE_IP: [u8; 4] = [192, 0, 2, 1];
const OVERLAY: u32 = 104;
const VNI: u32 = 7;
/// Policy sets of both directions: a rule each.
const EGRESS: u32 = 1;
const INGRESS: u32 = 2;
/// Slot and number of the Service.
const SERVICE: u32 = 50;

/// One row: where its packets go, and what it is compared with.
struct Case {
    name: &'static str,
    baseline: &'static str,
    subject: Subject,
    dst: [u8; 4],
    flows: u32,
    new: bool,
}

const fn case(name: &'static str, baseline: &'static str, subject: Subject, dst: [u8; 4], flows: u32) -> Case {
    Case { name, baseline, subject, dst, flows, new: false }
}

impl Case {
    fn traffic(&self, seed: u32) -> Traffic {
        let tunnel = (self.subject == Subject::FromOverlay).then_some((u32::from_be_bytes(PEER_IP), VNI));
        Traffic { tunnel, ..traffic(self.dst, self.flows, seed) }
    }

    /// Whether it measures the dataplane's own programs.
    fn is_weft(&self) -> bool {
        matches!(self.subject, Subject::FromWorkload | Subject::FromOverlay)
    }
}

const KI: u32 = 1 << 10;
const LRU_1: &str = "lru_dnat_1";
const LRU_1KI: &str = "lru_dnat_1ki";
const LRU_64KI: &str = "lru_dnat_64ki";

const CASES: [Case; 15] = [
    case("empty", "empty", Subject::Empty, VIP, 1),
    case(LRU_1, "empty", Subject::LruDnat, VIP, 1),
    case(LRU_1KI, "empty", Subject::LruDnat, VIP, KI),
    case(LRU_64KI, "empty", Subject::LruDnat, VIP, 64 * KI),
    case("pod_pod_1", LRU_1, Subject::FromWorkload, SERVER_IP, 1),
    case("pod_pod_1ki", LRU_1KI, Subject::FromWorkload, SERVER_IP, KI),
    case("pod_pod_64ki", LRU_64KI, Subject::FromWorkload, SERVER_IP, 64 * KI),
    case("pod_clusterip_1", LRU_1, Subject::FromWorkload, VIP, 1),
    case("pod_clusterip_1ki", LRU_1KI, Subject::FromWorkload, VIP, KI),
    case("pod_clusterip_64ki", LRU_64KI, Subject::FromWorkload, VIP, 64 * KI),
    Case { new: true, ..case("pod_clusterip_new", LRU_64KI, Subject::FromWorkload, VIP, 64 * KI) },
    case("to_tap_1", LRU_1, Subject::FromWorkload, VM_IP, 1),
    case("overlay_pod_1", LRU_1, Subject::FromOverlay, SERVER_IP, 1),
    case("overlay_pod_1ki", LRU_1KI, Subject::FromOverlay, SERVER_IP, KI),
    case("overlay_pod_64ki", LRU_64KI, Subject::FromOverlay, SERVER_IP, 64 * KI),
];

/// Measures all rows, run by run in turn.
///
/// # Errors
/// Not root, or a program did something else than it is measured for.
pub(super) fn rows() -> Result<Vec<Row>> {
    let mut machine = Machine::new()?;
    let mut runs: Vec<Vec<f64>> = CASES.iter().map(|_| Vec::new()).collect();
    eprintln!("filling the flow table");
    for case in &CASES {
        machine.warm(case)?;
    }
    for round in 1..=RUNS {
        eprintln!("round {round} of {RUNS}");
        for (case, runs) in CASES.iter().zip(&mut runs) {
            runs.push(machine.run(case)?);
        }
    }
    let of = |name: &str| CASES.iter().zip(&runs).find(|(case, _)| case.name == name).map(|(_, runs)| runs.as_slice());
    CASES
        .iter()
        .zip(&runs)
        .map(|(case, runs)| Row::new(case.name, "ns", runs, (case.baseline, of(case.baseline).unwrap_or(&[]))))
        .collect()
}

/// The loaded programs and what they know of.
struct Machine {
    dataplane: Dataplane,
    bench: Bench,
    packet: Vec<u8>,
    /// Of a pod of another node.
    far_packet: Vec<u8>,
}

impl Machine {
    fn new() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this benchmark loads eBPF programs: run it as root");
        let pins = enter_namespaces()?;
        let sizes = MapSizes { flows4: 1 << 19, events_bytes: 1 << 22, ..MapSizes::default() };
        let dataplane = Dataplane::open(&Options { pin_dir: pins, sizes })?;
        configure(&dataplane)?;
        let mut bench = Bench::open(&dataplane)?;
        let every = traffic(VIP, 64 * KI, 0);
        bench.prepare_lru(&every, u32::from_ne_bytes(CLIENT_IP), u32::from_ne_bytes(SERVER_IP), 8080)?;
        Ok(Self { dataplane, bench, packet: packet(CLIENT_IP), far_packet: packet(FAR_IP) })
    }

    /// Makes the flows of a row, so that its runs meet established ones.
    fn warm(&mut self, case: &Case) -> Result<()> {
        let traffic = case.traffic(1);
        // Every flow once at least: the order has a full period, of which the upper bits are used.
        self.measure(case.subject, &traffic, case.flows.max(256) * 8)?;
        self.drain()
    }

    /// One value of a row, in nanoseconds.
    fn run(&mut self, case: &Case) -> Result<f64> {
        if case.name == "empty" {
            let (action, time) = self.bench.run_empty(&self.packet, CLIENT, PACKETS)?;
            ensure!(action == OK, "empty: action {action}");
            return Ok(time.as_nanos() as f64);
        }
        if case.new {
            return self.run_new(case);
        }
        let traffic = case.traffic(1);
        let hits = self.hits()?;
        let value = self.beside_empty(case, &traffic, PACKETS)?;
        let hits = self.hits()? - hits;
        let expected = if case.is_weft() { u64::from(PACKETS) } else { 0 };
        ensure!(hits == expected, "{}: {hits} of {expected} packets found their flow", case.name);
        Ok(value)
    }

    /// Runs of few packets of new flows each; nothing of the flows before is left. Then all other rows are made warm again.
    fn run_new(&mut self, case: &Case) -> Result<f64> {
        let mut sum = 0.0;
        for batch in 0..NEW_BATCHES {
            self.dataplane.maps().flows4().retain(|_, _| false)?;
            self.drain()?;
            sum += self.beside_empty(case, &case.traffic(batch), NEW_PACKETS)?;
        }
        for other in CASES.iter().filter(|other| other.is_weft() && !other.new) {
            self.warm(other)?;
        }
        Ok(sum / f64::from(NEW_BATCHES))
    }

    /// Mean time of a packet without that of making it.
    fn beside_empty(&mut self, case: &Case, traffic: &Traffic, packets: u32) -> Result<f64> {
        let (_, alone) = self.bench.run_empty(&self.packet, CLIENT, packets)?;
        let making = self.measure(Subject::Empty, traffic, packets)?;
        let all = self.measure(case.subject, traffic, packets)?;
        Ok(all - making + alone.as_nanos() as f64)
    }

    fn hits(&self) -> Result<u64> {
        Ok(self.dataplane.maps().counted(Counter::FlowHits)?)
    }

    fn measure(&mut self, subject: Subject, traffic: &Traffic, packets: u32) -> Result<f64> {
        let (packet, ifindex) =
            if traffic.tunnel.is_some() { (&self.far_packet, OVERLAY) } else { (&self.packet, CLIENT) };
        let (action, time) = self.bench.run(subject, traffic, packet, ifindex, packets)?;
        let expected = if subject == Subject::Empty { OK } else { REDIRECT };
        ensure!(action == expected, "{subject:?}: action {action} instead of {expected}");
        Ok(time.as_nanos() as f64)
    }

    /// Empties the event ring, so that a new flow's event finds room.
    fn drain(&self) -> Result<()> {
        let mut events = self.dataplane.events()?;
        while events.next().is_some() {}
        Ok(())
    }
}

/// A network namespace with the devices, and a bpf filesystem; they end with the process. Returns the folder to pin in.
fn enter_namespaces() -> Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare mount and network namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mount bpffs on {BPFFS}"))?;
    for ifindex in [CLIENT, SERVER, VM, OVERLAY] {
        let mut ip = Command::new("ip");
        ip.args(["link", "add", "name", &format!("port{ifindex}"), "index", &ifindex.to_string(), "type", "bridge"]);
        ensure!(ip.status().context("start ip (iproute2)")?.success(), "{ip:?} failed");
    }
    Ok(Path::new(BPFFS).join("weft"))
}

fn mac(ifindex: u32) -> [u8; 6] {
    let [low, ..] = ifindex.to_le_bytes();
    [2, 0, 0, 0, 0, low]
}

fn traffic(dst: [u8; 4], flows: u32, seed: u32) -> Traffic {
    let macs = [GATEWAY_MAC, mac(CLIENT)];
    Traffic { flows, seed, dst: u32::from_ne_bytes(dst), dport: 80, macs, tunnel: None }
}

fn addr(octets: [u8; 4]) -> Addr {
    Addr::v4(u32::from_ne_bytes(octets))
}

/// Two pods, a VM and a Service of one backend.
fn configure(dataplane: &Dataplane) -> Result<()> {
    let maps = dataplane.maps();
    let host = Config {
        uplink_ifindex: 1,
        host_ifindex: 1,
        overlay_ifindex: OVERLAY,
        vni: VNI,
        node_v4: addr(NODE_IP),
        ..Config::default()
    };
    maps.config().set(0, &host)?;
    for (ifindex, kind, address) in
        [(CLIENT, PortKind::Veth, CLIENT_IP), (SERVER, PortKind::Veth, SERVER_IP), (VM, PortKind::Tap, VM_IP)]
    {
        let port = Port {
            v4: addr(address),
            workload: ifindex,
            ingress_policy: INGRESS,
            egress_policy: EGRESS,
            mac: mac(ifindex),
            kind: kind as u8,
            ..Port::default()
        };
        maps.ports().insert(&ifindex, &port)?;
        maps.locals().insert(&addr(address), &Local { ifindex, kind: LocalKind::Workload as u32 })?;
    }
    for (policy, port) in [(EGRESS, 0), (INGRESS, 0)] {
        let mut rules = Rules { count: 1, ..Rules::default() };
        rules.rules[0] = PortRule { first: port, last: u16::MAX, protocol: 6, pad: 0 };
        maps.rules().insert(&RuleKey { policy, identity: ANY_IDENTITY, chunk: 0 }, &rules)?;
    }
    let far = Remote::new(addr(PEER_IP), RemoteKind::Tunnel);
    maps.remotes().insert(&CidrKey { prefix_len: 96 + 24, addr: addr([10, 2, 0, 0]) }, &far)?;
    let key = ServiceKey { addr: addr(VIP), port: 80_u16.to_be(), protocol: 6, pad: 0 };
    let backend = Backend { addr: addr(SERVER_IP), port: 8080_u16.to_be(), flags: 0 };
    maps.slots().insert(&SlotKey { service: SERVICE, generation: 0, index: 0 }, &backend)?;
    Ok(maps.services().insert(&key, &Service { id: SERVICE, generation: 0, count: 1, flags: 0 })?)
}

/// 86 bytes: Ethernet, IPv4, TCP with ACK, 32 bytes of data.
fn packet(src: [u8; 4]) -> Vec<u8> {
    let mut packet = [GATEWAY_MAC, mac(CLIENT)].concat();
    packet.extend([8, 0, 0x45, 0, 0, 72, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend([src, VIP].concat());
    packet.extend([0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 4, 0, 0, 0, 0, 0]);
    packet.resize(86, 0);
    packet
}
