// SPDX-License-Identifier: Apache-2.0
//! A machine with a guest that does jobs.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use vhost::VringConfigData;

use crate::events::Events;
use crate::front_end::EVENT_IDX;
use crate::guest::abi::{
    self, Counters, Job, MAX_RINGS, MAX_SAMPLES, RX_LINE, SAMPLES, TEMPLATE, TX_LINE, Task, WAKE_LINE,
};
use crate::guest::platform::cycles;
use crate::guest::ring::Parts;
use crate::kvm::Vm;
use crate::ram::Ram;
use crate::thread::Thread;

/// How long a job that was asked to end may take for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a guest runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A processor in KVM: kicks are ioeventfds, interrupts are irqfds.
    Kvm,
    /// A thread of this process: both are event descriptors that it writes and polls.
    Thread,
}

/// How to make a machine.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// What the guest runs on.
    pub kind: Kind,
    /// Queue pairs.
    pub pairs: usize,
    /// Entries of each ring, a power of two up to 1024.
    pub ring_size: u16,
    /// Virtio features the driver has.
    pub features: u64,
    /// Processor of the host to stay on.
    pub cpu: Option<usize>,
}

/// What the guest is to do. See [`Task`] for what the fields mean to each.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// What to do.
    pub task: Task,
    /// Sleep and be interrupted instead of polling.
    pub interrupts: bool,
    /// Queue pair.
    pub pair: u32,
    /// Bytes of the template with its header.
    pub frame_len: u32,
    /// Bytes of a receive buffer.
    pub buffer_len: u32,
    /// Round trips; numbered frames on their way; buffers to receive, or 0 for no end.
    pub count: u32,
    /// Frames ahead of each request of a round trip.
    pub ahead: u32,
}

impl Work {
    /// This task on the first pair, with interrupts.
    pub fn new(task: Task) -> Self {
        Self { task, interrupts: true, pair: 0, frame_len: 64, buffer_len: 1536, count: 64, ahead: 0 }
    }
}

/// A machine. The guest ends with it.
#[derive(Debug)]
pub struct Machine {
    setup: Setup,
    ram: Arc<Ram>,
    events: Arc<Events>,
    /// Dropped to end the processor's thread.
    jobs: Option<Sender<()>>,
    /// Behind a lock for the sake of `Sync` only.
    results: Mutex<Receiver<Result<()>>>,
    working: bool,
    /// When the machine was made, by both clocks.
    epoch: (Instant, u64),
    /// Keeps the descriptors registered.
    _vm: Option<Vm>,
}

impl Machine {
    /// Makes a machine; its guest does nothing yet.
    ///
    /// # Errors
    /// When the setup is not possible, or KVM is not there.
    pub fn new(setup: Setup) -> Result<Self> {
        ensure!((1..=MAX_RINGS / 2).contains(&setup.pairs), "{} queue pairs", setup.pairs);
        ensure!(setup.ring_size.is_power_of_two() && setup.ring_size <= 1024, "rings of {}", setup.ring_size);
        let (ram, events) = (Arc::new(Ram::new()?), Arc::new(Events::new(2 * setup.pairs)?));
        let (vm, run) = processor(setup.kind, &ram, &events)?;
        let (jobs, results) = spawn(setup.cpu, run)?;
        let epoch = (Instant::now(), cycles());
        Ok(Self { setup, ram, events, jobs: Some(jobs), results: Mutex::new(results), working: false, epoch, _vm: vm })
    }

    /// What it was made with.
    pub fn setup(&self) -> Setup {
        self.setup
    }

    /// Its memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Its event descriptors.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// What its driver counted so far.
    pub fn counters(&self) -> &Counters {
        &self.ram.control().counters
    }

    /// Interrupts the guest took: of receive rings, of transmit rings.
    pub fn interrupts(&self) -> (u64, u64) {
        let line = |line: u32| u64::from(self.ram.control().interrupts[line as usize].load(Ordering::SeqCst));
        (line(RX_LINE), line(TX_LINE))
    }

    /// Kicks that arrived in a ring's descriptor since the last look. A device that reads its descriptor takes them.
    pub fn kicks(&self, ring: usize) -> u64 {
        self.events.rings[ring].kick.read().unwrap_or(0)
    }

    /// The layout of a ring, in addresses of this process.
    pub fn ring(&self, index: usize) -> VringConfigData {
        let parts = Parts::of(index, self.setup.ring_size);
        let here = |guest| self.ram.address() + guest;
        VringConfigData {
            queue_max_size: parts.size,
            queue_size: parts.size,
            flags: 0,
            desc_table_addr: here(parts.descriptors),
            used_ring_addr: here(parts.used),
            avail_ring_addr: here(parts.available),
            log_addr: None,
        }
    }

    /// The used index of a ring: where a device has to go on.
    pub fn used_index(&self, index: usize) -> u16 {
        let parts = Parts::of(index, self.setup.ring_size);
        self.ram.memory().cell(parts.used_index()).load(Ordering::Acquire)
    }

    /// Puts the frame there that [`Task::Transmit`] sends: a header and a frame.
    ///
    /// # Errors
    /// When it is too long.
    pub fn set_template(&self, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() as u64 <= SAMPLES - TEMPLATE, "a frame of {} bytes", bytes.len());
        self.ram.write(TEMPLATE, bytes)
    }

    /// Has the guest begin a job.
    ///
    /// # Errors
    /// When it has one, or is gone.
    pub fn start(&mut self, work: Work) -> Result<()> {
        ensure!(!self.working, "the guest has a job already");
        let flag = |on: bool, flag| if on { flag } else { 0 };
        let job = Job {
            task: work.task,
            flags: flag(work.interrupts, abi::INTERRUPTS) | flag(self.setup.features & EVENT_IDX != 0, abi::EVENT_IDX),
            pair: work.pair,
            ring_size: self.setup.ring_size.into(),
            frame_len: work.frame_len,
            buffer_len: work.buffer_len,
            count: work.count,
            ahead: work.ahead,
        };
        let control = self.ram.control();
        job.store(control);
        control.stop.store(0, Ordering::SeqCst);
        self.jobs.as_ref().and_then(|jobs| jobs.send(()).ok()).context("the guest is gone")?;
        self.working = true;
        Ok(())
    }

    /// Waits for a job that ends by itself.
    ///
    /// # Errors
    /// When it does not within `patience`, or the guest broke down.
    pub fn finish(&mut self, patience: Duration) -> Result<()> {
        ensure!(self.working, "the guest has no job");
        let results = self.results.get_mut().map_err(|_| anyhow::anyhow!("poisoned"))?;
        match results.recv_timeout(patience) {
            Ok(result) => {
                self.working = false;
                result
            }
            Err(RecvTimeoutError::Timeout) => bail!("the guest's job did not end: {:?}", self.counters()),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest's processor is gone"),
        }
    }

    /// Ends the job.
    ///
    /// # Errors
    /// As [`Machine::finish`].
    pub fn stop(&mut self) -> Result<()> {
        self.ram.control().stop.store(1, Ordering::SeqCst);
        self.events.wake.write(1).context("write to the guest's wake descriptor")?;
        self.finish(PATIENCE)
    }

    /// Cycles of the guest's clock in a second, measured over the life of the machine.
    pub fn frequency(&self) -> f64 {
        if self.epoch.0.elapsed() < Duration::from_millis(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        (cycles() - self.epoch.1) as f64 / self.epoch.0.elapsed().as_secs_f64()
    }

    /// Microseconds of the first `count` round trips of the last job.
    pub fn samples(&self, count: u64) -> Vec<f64> {
        let per_microsecond = self.frequency() / 1e6;
        let sample = |at| f64::from(self.ram.memory().read::<u32>(SAMPLES + 4 * at)) / per_microsecond;
        (0..count.min(MAX_SAMPLES)).map(sample).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.jobs = None;
        if self.working
            && let Err(error) = self.stop()
        {
            eprintln!("ending a guest: {error:#}");
        }
    }
}

type Run = Box<dyn FnMut() -> Result<()> + Send>;

/// What does a job on a machine of this kind.
fn processor(kind: Kind, ram: &Arc<Ram>, events: &Arc<Events>) -> Result<(Option<Vm>, Run)> {
    match kind {
        Kind::Thread => {
            let mut thread = Thread { ram: Arc::clone(ram), events: Arc::clone(events) };
            let run = move || {
                thread.run();
                Ok(())
            };
            Ok((None, Box::new(run)))
        }
        Kind::Kvm => {
            let vm = Vm::new(Arc::clone(ram))?;
            for (index, ring) in events.rings.iter().enumerate() {
                vm.kick(index, &ring.kick)?;
                vm.interrupt(if index.is_multiple_of(2) { RX_LINE } else { TX_LINE }, &ring.call)?;
            }
            vm.interrupt(WAKE_LINE, &events.wake)?;
            let mut vcpu = vm.processor()?;
            Ok((Some(vm), Box::new(move || vcpu.run())))
        }
    }
}

/// A thread that runs a job for every message.
fn spawn(cpu: Option<usize>, mut run: Run) -> Result<(Sender<()>, Receiver<Result<()>>)> {
    let (jobs, inbox) = channel();
    let (outbox, results) = channel();
    let serve = move || {
        let pinned = cpu.map_or(Ok(()), pin);
        for () in inbox {
            let result = pinned.as_ref().map_err(|error| anyhow::anyhow!("{error:#}")).and_then(|()| run());
            if outbox.send(result).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("guest".to_owned()).spawn(serve).context("starting the guest's thread")?;
    Ok((jobs, results))
}

/// Keeps this thread on a processor.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("sched_setaffinity to processor {cpu}"))
}
