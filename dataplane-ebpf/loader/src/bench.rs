// SPDX-License-Identifier: Apache-2.0
//! What `cargo xtask bench datapath` needs: packets of many flows through one program, and programs to compare with.

use std::time::Duration;

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
    /// `from_workload`.
    FromWorkload,
    /// `from_overlay`.
    FromOverlay,
}

impl Subject {
    const ALL: [Self; 4] = [Self::Empty, Self::LruDnat, Self::FromWorkload, Self::FromOverlay];
}

/// Packets to make: IPv4 and TCP, flows that differ by source port.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// How many flows: a power of two up to 65,536. They come in an order that looks random.
    pub flows: u32,
    /// Number that the order starts at; another one gives other flows where `flows` are fewer than ports.
    pub seed: u32,
    /// Destination, network byte order.
    pub dst: u32,
    /// Destination port, host byte order.
    pub dport: u16,
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
    /// Loads the bench programs.
    ///
    /// # Errors
    /// [`Error::Program`] and whatever is wrong with the object.
    pub fn open(dataplane: &Dataplane) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT).map_err(|error| Error::object(&error))?;
        for name in ["next_packet", "empty", "lru_dnat"] {
            program(&mut ebpf, name)?.load().map_err(failed("load"))?;
        }
        for subject in Subject::ALL {
            let fd = match subject {
                Subject::Empty => descriptor(program(&mut ebpf, "empty")?)?,
                Subject::LruDnat => descriptor(program(&mut ebpf, "lru_dnat")?)?,
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
        let Traffic { flows, seed, dst, dport, macs, tunnel } = *traffic;
        let (tunnel_peer, vni) = tunnel.unwrap_or_default();
        let value = Template {
            program: subject as u32,
            mask: flows - 1,
            flow: seed,
            dst,
            dport: dport.to_be(),
            pad: 0,
            macs: zerocopy::transmute!(macs),
            tunnel_peer,
            vni,
        };
        template.set(0, value, 0).map_err(failed("set"))?;
        self.test_run("next_packet", packet, ifindex, repeat)
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

fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut SchedClassifier> {
    let loaded = ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
    loaded.try_into().map_err(failed("use"))
}

fn descriptor(program: &SchedClassifier) -> Result<ProgramFd> {
    program.fd().and_then(|fd| fd.try_clone().map_err(Into::into)).map_err(failed("duplicate"))
}

/// An error of a bench program, named by the program that it stands in for.
fn failed<E: std::error::Error + Send + Sync + 'static>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Program { program: Program::FromWorkload, operation, source: Box::new(error) }
}
