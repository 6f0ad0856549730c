// SPDX-License-Identifier: Apache-2.0
//! What `cargo xtask bench datapath` and `net` need: packets of many flows through one program, and programs to compare with.

use std::{os::fd::AsFd as _, time::Duration};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, ProgramArray},
    programs::{ProgramFd, SchedClassifier},
};
use weft_abi::bench::{DnatKey, DnatValue, Template};
use zerocopy::IntoBytes as _;

use crate::{
    Dataplane, Error, Program,
    error::Result,
    program::Direction,
    tc::{Place, Tc},
    test_run::{Arrival, context},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-bench.o"));

/// What runs on every packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// Nothing: what making the next packet costs.
    Empty,
    /// One hit of an LRU hash, destination address and port, both checksums, a redirect.
    LruDnat,
    /// Two inserts into an LRU hash, a redirect.
    LruInsert,
    /// `from_workload`.
    FromWorkload,
    /// `from_overlay`.
    FromOverlay,
}

impl Subject {
    const ALL: [Self; 5] = [Self::Empty, Self::LruDnat, Self::LruInsert, Self::FromWorkload, Self::FromOverlay];
}

/// Packets to make: TCP, flows that differ by source port.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// How many flows: a power of two up to 65,536. They come in an order that looks random, each once in so many packets.
    pub flows: u32,
    /// Where in the order the first is, and above the lower 16 bits, which order: [`Bench::last_flow`] goes on where a run ended.
    pub seed: u32,
    /// Destination of IPv4 packets, network byte order; that of IPv6 packets stays.
    pub dst: u32,
    /// Destination port, host byte order.
    pub dport: u16,
    /// Bits of a flow's number that are added to the destination of IPv4 packets, 13 at most; what lies beyond them is added to the port.
    /// 0: all flows have one destination.
    pub spread: u16,
    /// Ethernet destination and source.
    pub macs: [[u8; 6]; 2],
    /// IPv4 address of the node that has encapsulated the packets and the network that it did that for, host byte order.
    pub tunnel: Option<(u32, u32)>,
}

/// The loaded bench programs, with the dataplane's beside them.
#[derive(Debug)]
pub struct Bench {
    ebpf: Ebpf,
}

impl Bench {
    /// Loads the bench programs; what `lru_insert` fills has as many entries as the IPv4 flow table.
    ///
    /// # Errors
    /// [`Error::Program`] and whatever is wrong with the object.
    pub fn open(dataplane: &Dataplane) -> Result<Self> {
        let flows = dataplane.maps().flows4().capacity();
        let mut loader = EbpfLoader::new();
        let mut ebpf =
            loader.btf(None).map_max_entries("BENCH_NEW", flows).load(OBJECT).map_err(|error| Error::object(&error))?;
        for name in ["next_packet", "empty", "lru_dnat", "lru_insert"] {
            program(&mut ebpf, name)?.load().map_err(failed("load"))?;
        }
        for subject in Subject::ALL {
            let fd = match subject {
                Subject::Empty => descriptor(program(&mut ebpf, "empty")?)?,
                Subject::LruDnat => descriptor(program(&mut ebpf, "lru_dnat")?)?,
                Subject::LruInsert => descriptor(program(&mut ebpf, "lru_insert")?)?,
                Subject::FromWorkload => descriptor(dataplane.classifier(Program::FromWorkload)?)?,
                Subject::FromOverlay => descriptor(dataplane.classifier(Program::FromOverlay)?)?,
            };
            let map = ebpf.map_mut("PROGRAMS").ok_or(Error::Missing { kind: "map", name: "PROGRAMS" })?;
            let mut programs = ProgramArray::try_from(map).map_err(failed("use"))?;
            programs.set(subject as u32, &fd, 0).map_err(failed("call"))?;
        }
        Ok(Self { ebpf })
    }

    /// Lets `lru_dnat` translate these flows from `src` (network byte order) to (`dst`, `dport`).
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn prepare_lru(&mut self, traffic: &Traffic, src: u32, dst: u32, dport: u16) -> Result<()> {
        let map = self.ebpf.map_mut("BENCH_FLOWS").ok_or(Error::Missing { kind: "map", name: "BENCH_FLOWS" })?;
        let mut flows: HashMap<_, DnatKey, DnatValue> = HashMap::try_from(map).map_err(failed("use"))?;
        let value = DnatValue { dst, dport: dport.to_be(), pad: 0, ifindex: 1, pad2: 0, packets: 0, bytes: 0 };
        for port in 0..=u16::MAX {
            let ports = DnatKey::ports(port, traffic.dport.to_be());
            let key = DnatKey { src, dst: traffic.dst, ports, protocol: 6 };
            if u32::from(port) < traffic.flows {
                flows.insert(key, value, 0).map_err(failed("fill"))?;
            }
        }
        Ok(())
    }

    /// Removes what `lru_insert` has filled in.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn forget_inserted(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("BENCH_NEW").ok_or(Error::Missing { kind: "map", name: "BENCH_NEW" })?;
        let mut flows: HashMap<_, DnatKey, DnatValue> = HashMap::try_from(map).map_err(failed("use"))?;
        let keys: Vec<DnatKey> = flows.keys().collect::<Result<_, _>>().map_err(failed("read"))?;
        keys.iter().try_for_each(|key| flows.remove(key)).map_err(failed("empty"))
    }

    /// Runs `subject` on `repeat` packets made from `packet` as if they came through the device `ifindex`: the last return
    /// value and the mean time in whole nanoseconds, that of making the packets included.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn run(
        &mut self,
        subject: Subject,
        traffic: &Traffic,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<(u32, Duration)> {
        let map = self.ebpf.map_mut("TEMPLATE").ok_or(Error::Missing { kind: "map", name: "TEMPLATE" })?;
        let mut template: Array<_, Template> = Array::try_from(map).map_err(failed("use"))?;
        let Traffic { flows, seed, dst, dport, spread, macs, tunnel } = *traffic;
        let (tunnel_peer, vni) = tunnel.unwrap_or_default();
        let value = Template {
            program: subject as u32,
            mask: flows - 1,
            flow: seed,
            dst,
            dport: dport.to_be(),
            spread,
            macs: zerocopy::transmute!(macs),
            tunnel_peer,
            vni,
        };
        template.set(0, value, 0).map_err(failed("set"))?;
        self.test_run("next_packet", packet, ifindex, repeat)
    }

    /// Order and place in it of the last run's last flow.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn last_flow(&self) -> Result<u32> {
        let map = self.ebpf.map("TEMPLATE").ok_or(Error::Missing { kind: "map", name: "TEMPLATE" })?;
        let template: Array<_, Template> = Array::try_from(map).map_err(failed("use"))?;
        Ok(template.get(&0, 0).map_err(failed("read"))?.flow)
    }

    /// Runs `empty` alone.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn run_empty(&mut self, packet: &[u8], ifindex: u32, repeat: u32) -> Result<(u32, Duration)> {
        self.test_run("empty", packet, ifindex, repeat)
    }

    fn test_run(&mut self, name: &'static str, packet: &[u8], ifindex: u32, repeat: u32) -> Result<(u32, Duration)> {
        let context = context(Arrival { ifindex, received_by: ifindex, ..Arrival::default() });
        let options =
            TestRunOptions { data_in: Some(packet), ctx_in: Some(context.as_bytes()), repeat, ..TestRunOptions::new() };
        let result = program(&mut self.ebpf, name)?.test_run(options).map_err(failed("test-run"))?;
        Ok((result.return_value, result.duration))
    }
}

/// Joins two devices of the calling thread's network namespace, indices below 64: what comes through the one goes into the other's
/// peer by `bpf_redirect_peer`, and nothing else is done to it. By filters of `clsact`, which live as long as the devices.
///
/// # Errors
/// [`Error::Program`] and whatever is wrong with the object.
pub fn join_by_peer_alone(devices: [u32; 2]) -> Result<()> {
    let mut loader = EbpfLoader::new();
    let mut ebpf =
        loader.btf(None).map_max_entries("BENCH_NEW", 64).load(OBJECT).map_err(|error| Error::object(&error))?;
    let [one, other] = devices;
    let map = ebpf.map_mut("PEERS").ok_or(Error::Missing { kind: "map", name: "PEERS" })?;
    let mut peers: Array<_, u32> = Array::try_from(map).map_err(failed("use"))?;
    for (from, to) in [(one, other), (other, one)] {
        peers.set(from, to, 0).map_err(failed("set"))?;
    }
    let classifier = program(&mut ebpf, "peer_alone")?;
    classifier.load().map_err(failed("load"))?;
    let fd = classifier.fd().map_err(failed("use"))?.as_fd();
    let mut tc = Tc::open().map_err(failed("attach"))?;
    for ifindex in devices {
        tc.add_qdisc(ifindex).map_err(failed("attach"))?;
        let place = Place { priority: 1, handle: 1 };
        tc.add_filter(ifindex, Direction::Ingress, place, fd, "peer_alone").map_err(failed("attach"))?;
    }
    Ok(())
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut SchedClassifier> {
    let loaded = ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
    loaded.try_into().map_err(failed("use"))
}

fn descriptor(program: &SchedClassifier) -> Result<ProgramFd> {
    program.fd().and_then(|fd| fd.try_clone().map_err(Into::into)).map_err(failed("duplicate"))
}

/// An error of a bench program, named by the program that it stands in for.
fn failed<E: std::error::Error + Send + Sync + 'static>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Program { program: Program::FromWorkload.name(), operation, source: Box::new(error) }
}
