// SPDX-License-Identifier: Apache-2.0
//! The user-space half of Weft's dataplane: loads the programs, pins and adopts their maps and links, attaches them to
//! devices, and gives typed access to the maps. No type of the eBPF library shows in this crate's API.
//!
//! ```no_run
//! use weft_dataplane::{Dataplane, Options, Program};
//!
//! let mut dataplane = Dataplane::open(&Options::default())?;
//! dataplane.attach(Program::FromUplink, "eth0", 2)?;
//! println!("{:?}", dataplane.maps().ports().get(&7)?);
//! # Ok::<(), weft_dataplane::Error>(())
//! ```
//!
//! Maps and tcx links are pinned, filters on ports stay by themselves: after the process ends, packets go on being handled, and
//! the next [`Dataplane::open`] adopts what it finds. Requires Linux 6.6 (tcx) and `CAP_BPF`, `CAP_NET_ADMIN`, `CAP_PERFMON`.

#![deny(unsafe_code)]

#[cfg(feature = "bench")]
pub mod bench;
mod carried;
mod convert;
mod error;
mod events;
mod filter;
mod flows;
mod kernel_types;
mod layout;
mod link;
mod maps;
mod memory;
mod options;
mod pin;
mod program;
mod socket;
#[expect(unsafe_code, reason = "bpf(2) takes addresses as numbers")]
mod sys;
mod table;
mod tc;
mod test_run;
mod upgrade;

use std::{collections::BTreeMap, io, panic::resume_unwind, path::PathBuf, sync::Arc, thread, time::Duration};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{ProgramError, SchedClassifier},
};
use nix::time::{ClockId, clock_getres};
use weft_abi::{FlowSeeds, Jiffies, SkbLayout, map};
use zerocopy::IntoBytes as _;

use crate::{
    error::chain,
    kernel_types::KernelSkb,
    pin::{PinDir, UndoPins, remove_map, unless_gone},
};
pub use crate::{
    error::{Error, Result, Source},
    events::Events,
    flows::{Entries, FlowTable, TableKey},
    link::{Attachment, LinkReport},
    maps::Maps,
    memory::MapMemory,
    options::{MapSizes, Options},
    pin::{MapReport, Origin},
    program::{Direction, Program},
    table::{Array, Iter, PerCpuArray, Record, Ring, Table},
    test_run::{Arrival, TestRunReport},
    upgrade::remove_everything,
};

/// The object that the build script made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-dataplane.o"));

/// The loaded programs of one node. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Dataplane {
    ebpf: Ebpf,
    maps: Arc<Maps>,
    pins: PinDir,
    report: OpenReport,
}

/// What [`Dataplane::open`] found and made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OpenReport {
    /// Each map, in the order of [`weft_abi::map::ALL`].
    pub maps: Vec<MapReport>,
    /// The links.
    pub links: LinkReport,
    /// How checksums that workloads leave to the kernel are checked.
    pub offload: OffloadCheck,
    /// Why sockets of the host do not reach its own ports; none: they do, or nobody asked for it.
    pub sockets: Option<String>,
}

/// How the programs see what a workload asks the kernel to do to its packet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum OffloadCheck {
    /// They read the kernel's structure (6.2).
    #[default]
    Read,
    /// They copy what they need of it, which takes 10 ns.
    Copied,
    /// They do not, for this reason: checksums are not checked.
    Unseen(String),
}

impl Dataplane {
    /// Loads the programs, on the maps that are pinned or on new ones, and swaps the pinned links to them.
    ///
    /// # Errors
    /// Whatever is wrong with the options, the pin folder, a pinned map's layout or a program. Until the links are swapped
    /// nothing of what was there is changed, and what was made is removed again.
    pub fn open(options: &Options) -> Result<Self> {
        options.sizes.validate()?;
        let pins = PinDir::prepare(&options.pin_dir)?;
        let aside = pins.set_aside_other_sizes(&options.sizes)?;
        let opened = Self::open_in(pins.clone(), options);
        if let (Err(_), Some(aside)) = (&opened, aside)
            && let Err(error) = pins.put_back(&aside)
        {
            tracing::warn!(%error, "maps of other sizes stay set aside");
        }
        opened
    }

    fn open_in(pins: PinDir, options: &Options) -> Result<Self> {
        pins.tell_of_others(&carried::adopt(&pins, &options.sizes)?)?;
        pins.forget_parts_of_tables()?;
        let plan = pins.plan_maps(&options.sizes)?;
        let undo = UndoPins::new(&pins, &plan);
        let (mut ebpf, offload) = load(&pins, &plan, options)?;
        let sockets = options.cgroup.as_deref().map(|cgroup| (cgroup, socket::load(&mut ebpf)));
        // Not before: the programs name the maps by the descriptors that this gives back.
        let maps = Arc::new(Maps::take(&mut ebpf, &pins.maps)?);
        undo.disarm();
        carried::pin_by_layout(&pins)?;
        seed_flows(&maps)?;
        pin_programs(&mut ebpf, &pins)?;
        carried::raise_generations(&pins, &maps)?;
        let mut dataplane =
            Self { ebpf, maps, pins, report: OpenReport { maps: plan, offload, ..OpenReport::default() } };
        dataplane.report.links = dataplane.adopt_links()?;
        let attached = sockets.map(|(cgroup, loaded)| loaded.and_then(|()| dataplane.attach_sockets(cgroup)));
        if let Some(Err(error)) = attached {
            tracing::warn!(error = chain(&error), "sockets of the host do not reach its own ports");
            dataplane.report.sockets = Some(error.to_string());
        }
        // What other programs found may not be what these find.
        dataplane.maps.verdicts().retain(|_, _| false)?;
        Ok(dataplane)
    }

    /// What [`Dataplane::open`] found and made.
    #[must_use]
    pub const fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The maps. A clone of the `Arc` may outlive the dataplane.
    #[must_use]
    pub const fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// A reader of the event ring; there should be one at a time, since the ring has one read position.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn events(&self) -> Result<Events> {
        Events::open(self.maps.events().raw())
    }

    fn classifier(&self, program: Program) -> Result<&SchedClassifier> {
        let program = program.name();
        let loaded = self.ebpf.program(program).ok_or_else(|| missing(program))?;
        loaded.try_into().map_err(wrong_type(program))
    }

    fn classifier_mut(&mut self, program: Program) -> Result<&mut SchedClassifier> {
        classifier_mut(&mut self.ebpf, program)
    }
}

/// Loads everything. Where kernel memory may not be read (no `CAP_PERFMON`, lockdown, no BTF), without the check of checksums,
/// and with the reason.
fn load(pins: &PinDir, plan: &[MapReport], options: &Options) -> Result<(Ebpf, OffloadCheck)> {
    let (ways, mut unseen) = match kernel_types::skb() {
        Ok(skb) if options.as_kernel_6_1 => (vec![skb.copied()], String::new()),
        Ok(skb) => (vec![skb, skb.copied()], String::new()),
        Err(reason) => (Vec::new(), reason),
    };
    for skb in ways {
        let mut ebpf = create_maps(pins, plan, &skb, options)?;
        match load_programs(&mut ebpf) {
            Ok(()) => return Ok((ebpf, skb.check())),
            Err(Error::Verifier { program, source, log }) => {
                let way = skb.check();
                tracing::warn!(program, error = %source, ?way, log, "the kernel refused programs that look at struct sk_buff");
                unseen = format!("the kernel refused programs that read its memory: {source}");
            }
            Err(error) => return Err(error),
        }
    }
    let mut ebpf = create_maps(pins, plan, &KernelSkb::default(), options)?;
    load_programs(&mut ebpf)?;
    Ok((ebpf, OffloadCheck::Unseen(unseen)))
}

/// Makes or opens every map at its pin, and points the programs at them.
fn create_maps(pins: &PinDir, plan: &[MapReport], skb: &KernelSkb, options: &Options) -> Result<Ebpf> {
    let paths: Vec<PathBuf> = plan.iter().map(|report| pins.maps.join(report.map)).collect();
    let mut loader = EbpfLoader::new();
    // The programs relocate nothing by kernel types: no need to parse the kernel's BTF.
    loader.btf(None);
    // The log ends with why a program was refused. All its steps, which aya asks for again and again until they fit, take a minute.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for (report, path) in plan.iter().zip(&paths) {
        loader.map_max_entries(report.map, report.max_entries).map_pin_path(report.map, path.as_path());
    }
    loader.override_global(SkbLayout::GLOBAL, &skb.layout, true);
    let jiffies = jiffies();
    loader.override_global(Jiffies::GLOBAL, &jiffies, true);
    // Without one no socket is the host's.
    let netns = sys::netns_cookie().unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel does not tell the network namespace's cookie: sockets of the host do not reach its ports");
        0
    });
    loader.override_global("NETNS_COOKIE", &netns, true);
    // x86 reads in the order of the program.
    let reorders_reads = u32::from(!cfg!(target_arch = "x86_64"));
    loader.override_global("REORDERS_READS", &reorders_reads, true);
    if options.as_kernel_6_1 {
        // A flag that no kernel knows.
        loader.override_global("FIB_SOURCE", &(1_u32 << 31), true);
    }
    loader.load(&skb.link(OBJECT)).map_err(|error| Error::object(&error))
}

/// The step of the kernel's coarse clocks is that of its jiffies (`TICK_NSEC`).
fn jiffies() -> Jiffies {
    let step = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |step| Duration::from(step).as_nanos());
    u32::try_from(step).map_or_else(|_| Jiffies::default(), Jiffies::every)
}

/// All programs at the same time: the kernel takes 0.4 seconds or more to verify one, on one CPU, and an agent that starts waits for the
/// last of them.
fn load_programs(ebpf: &mut Ebpf) -> Result<()> {
    let mut waiting: BTreeMap<&str, &mut aya::programs::Program> = ebpf.programs_mut().collect();
    thread::scope(|scope| {
        let names = weft_abi::program::ALL.into_iter().chain(PINNED);
        let loads: Vec<_> = names
            .map(|name| {
                let classifier = as_classifier(name, waiting.remove(name));
                scope.spawn(move || load_program(name, classifier?))
            })
            .collect();
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn load_program(program: &'static str, classifier: &mut SchedClassifier) -> Result<()> {
    verify(classifier).map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            Error::Verifier { program, source: io_error, log: tail(&verifier_log.to_string()).to_owned() }
        }
        error => Error::Program { program, operation: "load", source: Box::new(error) },
    })
}

/// The verifier gives up with `EAGAIN` when a signal is pending for the thread (libbpf tries as often).
fn verify(program: &mut SchedClassifier) -> std::result::Result<(), ProgramError> {
    const ATTEMPTS: u32 = 5;
    let interrupted = |error: &ProgramError| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN));
    for _ in 1..ATTEMPTS {
        match program.load() {
            Err(error) if interrupted(&error) => {}
            done => return done,
        }
    }
    program.load()
}

/// The end of a verifier log, where it says what is wrong: the whole can be megabytes.
fn tail(log: &str) -> &str {
    const LIMIT: usize = 16 << 10;
    let start = log.len().saturating_sub(LIMIT);
    let lines = log.as_bytes().get(start..).unwrap_or_default();
    match lines.iter().position(|byte| *byte == b'\n') {
        Some(newline) if start > 0 => log.get(start + newline + 1..).unwrap_or(log),
        _ => log,
    }
}

/// Programs that are pinned beside the maps: who learns of this version's connections has the one, whoever writes to the flow table the
/// other.
const PINNED: [&str; 2] = [convert::EXPORTER, weft_abi::program::EDIT_FLOWS];

/// Pins them, in the place of what an earlier run has pinned.
fn pin_programs(ebpf: &mut Ebpf, pins: &PinDir) -> Result<()> {
    for program in PINNED {
        let pin = pins.maps.join(program);
        unless_gone(remove_map(&pin))?;
        let loaded = as_classifier(program, ebpf.program_mut(program))?;
        loaded.pin(&pin).map_err(|error| Error::Program { program, operation: "pin", source: Box::new(error) })?;
    }
    Ok(())
}

/// Where a flow table is new: what its keys are hashed with. Before a program runs on it.
fn seed_flows(maps: &Maps) -> Result<()> {
    for (seeds, sets) in [(maps.seeds4(), maps.directory4().capacity()), (maps.seeds6(), maps.directory6().capacity())]
    {
        if seeds.get(0)?.finish != 0 {
            continue;
        }
        let mut random = FlowSeeds::default();
        getrandom::fill(random.as_mut_bytes())
            .map_err(|error| Error::map(map::SEEDS4, "make random numbers for")(io::Error::other(error)))?;
        seeds.set(0, &FlowSeeds { finish: random.finish | 1, sets, pad: 0, ..random })?;
    }
    Ok(())
}

fn classifier_mut(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier> {
    as_classifier(program.name(), ebpf.program_mut(program.name()))
}

fn as_classifier<'e>(
    program: &'static str,
    loaded: Option<&'e mut aya::programs::Program>,
) -> Result<&'e mut SchedClassifier> {
    loaded.ok_or_else(|| missing(program))?.try_into().map_err(wrong_type(program))
}

const fn missing(program: &'static str) -> Error {
    Error::Missing { kind: "program", name: program }
}

fn wrong_type(program: &'static str) -> impl FnOnce(ProgramError) -> Error {
    move |error| Error::Program { program, operation: "use", source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn a_verifier_log_is_cut_at_a_line() {
        assert_eq!(tail("short\nlog"), "short\nlog");
        let long: String = (0..10_000).map(|line| format!("{line}: r1 = 0\n")).collect();
        let end = tail(&long);
        assert!(end.len() <= 16 << 10 && long.ends_with(end));
        assert!(long.contains(&format!("\n{end}")), "whole lines");
    }
}
