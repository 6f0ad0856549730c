// SPDX-License-Identifier: Apache-2.0
//! A guest in KVM: its kicks are ioeventfds, its interrupts are irqfds, nothing in between. Needs root and /dev/kvm.

mod peer;

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use peer::host::{Backend, Host, Wire};
use peer::{RX, TX};
use weft_test_vmm::guest::frame::{self, Numbered, Stream};
use weft_test_vmm::{EVENT_IDX, FrontEnd, Kind, MRG_RXBUF, Machine, Setup, Task, Work};

/// Numbered frames on their way in each direction. Twice as many fit into the rings, the tap's queue and the socket.
const WINDOW: u64 = 32;
/// After this much silence both sides go on where devices are killed: what was on its way is lost.
const SILENCE: Duration = Duration::from_millis(50);
/// How long a conversation may take to get somewhere.
const PATIENCE: Duration = Duration::from_secs(60);
/// Buffers smaller than most frames, so that these are merged.
const SMALL_BUFFER: u32 = 512;

fn machine(kind: Kind, features: u64) -> Result<Machine> {
    Machine::new(Setup { kind, pairs: 1, ring_size: 256, features, cpu: None })
}

fn exchange(interrupts: bool, buffer_len: u32) -> Work {
    Work { interrupts, buffer_len, count: WINDOW as u32, ..Work::new(Task::Exchange) }
}

/// The host's end of an exchange of numbered frames.
struct Conversation {
    wire: Wire,
    from_guest: Stream,
    /// Numbers the guest sent that came more than once.
    twice: HashSet<u64>,
    next: u64,
    /// Numbers below this may be sent.
    limit: u64,
    /// What the guest may send beyond what it was seen to.
    allowance: u64,
    heard: Instant,
    /// Whether frames may be lost.
    lossy: bool,
}

impl Conversation {
    fn new(host: &Host, lossy: bool) -> Result<Self> {
        Ok(Self {
            wire: Wire::open(&host.tap, false)?,
            from_guest: Stream::default(),
            twice: HashSet::new(),
            next: 0,
            limit: WINDOW,
            allowance: WINDOW,
            heard: Instant::now(),
            lossy,
        })
    }

    /// Sends what may be sent and takes in what comes until `count` more frames came from the guest and as many reached
    /// it.
    fn go_on(&mut self, machine: &Machine, count: u64) -> Result<()> {
        let received = &machine.counters().received;
        let goal = (self.from_guest.good + count, received.load(std::sync::atomic::Ordering::Relaxed) + count);
        let deadline = Instant::now() + PATIENCE;
        while self.from_guest.good < goal.0 || received.load(std::sync::atomic::Ordering::Relaxed) < goal.1 {
            let state = (&self.from_guest, self.next, machine.counters());
            ensure!(Instant::now() < deadline, "nothing goes on: {state:?}");
            self.turn(machine)?;
        }
        Ok(())
    }

    /// Sends what may be sent, and takes in what there is.
    fn turn(&mut self, machine: &Machine) -> Result<()> {
        // What reached the guest is known from its memory: if both sides told each other by frames only, both could
        // have sent all they may, and wait.
        let arrived = machine.counters().next_expected.load(std::sync::atomic::Ordering::Relaxed);
        self.limit = self.limit.max(arrived + WINDOW);
        if self.lossy && self.heard.elapsed() > SILENCE {
            self.heard = Instant::now();
            self.limit = self.next + WINDOW;
            self.allowance += WINDOW;
        }
        let mut buffer = [0; 2048];
        while self.next < self.limit {
            let frame = Numbered { number: self.next, limit: self.from_guest.next + self.allowance };
            let len = frame::write(&mut buffer, frame);
            if !self.send(&buffer[..len])? {
                break;
            }
            self.next += 1;
        }
        self.take_in(&mut buffer)
    }

    /// Sends one frame. Returns false without a device, when the tap has no carrier.
    fn send(&self, frame: &[u8]) -> Result<bool> {
        // SAFETY: the socket is open as long as `wire` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.wire.fd()) };
        match nix::unistd::write(fd, frame) {
            Ok(_) => Ok(true),
            Err(Errno::ENOBUFS) => Ok(false),
            Err(error) => Err(error).context("write to the packet socket"),
        }
    }

    fn take_in(&mut self, buffer: &mut [u8]) -> Result<()> {
        // SAFETY: the socket is open as long as `wire` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.wire.fd()) };
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(5u8)).context("poll")?;
        loop {
            let len = match recv(self.wire.fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error).context("read of the packet socket"),
            };
            ensure!(frame::is_numbered(&buffer[..len]), "a foreign frame: {:x?}", &buffer[..len.min(64)]);
            let (before, said) = (self.from_guest.next, self.from_guest.see(&buffer[..len]));
            let Some(said) = said else { continue };
            if said.number < before {
                self.twice.insert(said.number);
            }
            (self.heard, self.allowance) = (Instant::now(), WINDOW);
        }
    }
}

/// Waits until the kernel has noticed the device on the tap. Before that it throws frames for the tap away, and says
/// that they are sent.
fn wait_for_carrier(host: &Host) -> Result<()> {
    peer::host::eventually("carrier on the tap", || {
        let output = std::process::Command::new("ip").args(["-o", "link", "show", "dev", &host.tap]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("state UP").then_some(()))
    })
}

/// What may never happen, whoever was killed.
fn check_machine(machine: &Machine) -> Result<()> {
    let counters = machine.counters();
    let zero = |value: &std::sync::atomic::AtomicU64| value.load(std::sync::atomic::Ordering::Relaxed) == 0;
    ensure!(zero(&counters.corrupt), "corrupt frames reached the guest: {counters:?}");
    ensure!(zero(&counters.repeated), "frames reached the guest twice: {counters:?}");
    ensure!(zero(&counters.misordered), "chains were completed out of order: {counters:?}");
    Ok(())
}

/// What the device counted of both rings.
fn of_both_rings(backend: &Backend, counter: &str) -> Result<(u64, u64)> {
    let metrics = backend.metrics()?;
    let of = |ring: usize| metrics["rings"][ring][counter].as_u64().with_context(|| format!("no {counter}: {metrics}"));
    Ok((of(RX)?, of(TX)?))
}

/// Numbered frames both ways under these features.
fn converse(kind: Kind, features: u64, work: Work) -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let mut machine = machine(kind, features)?;
    let _front = FrontEnd::connect(&host.socket(), &machine)?;
    wait_for_carrier(&host)?;
    let mut conversation = Conversation::new(&host, false)?;
    machine.start(work)?;
    conversation.go_on(&machine, 3000).with_context(|| format!("device: {}", backend.metrics().unwrap_or_default()))?;
    machine.stop()?;
    check_machine(&machine)?;
    let stream = conversation.from_guest;
    ensure!((stream.corrupt, stream.repeated, stream.lost) == (0, 0, 0), "from the guest: {stream:?}");
    let lost = machine.counters().lost.load(std::sync::atomic::Ordering::Relaxed);
    ensure!(lost == 0, "{lost} frames did not reach the guest");
    if work.interrupts {
        let (given, taken) =
            (machine.counters().kicks.load(std::sync::atomic::Ordering::Relaxed), machine.interrupts());
        let (kicks, interrupts) = (of_both_rings(&backend, "kicks")?, of_both_rings(&backend, "interrupts")?);
        eprintln!("kicks given {given}, seen {kicks:?}; interrupts given {interrupts:?}, taken {taken:?}");
        ensure!(given > 0 && kicks.1 > 0, "no kick came by ioeventfd: {given} given, {kicks:?} seen");
        // The device waits for edges and does not read the descriptors, so what KVM counted in them is all there.
        let counted = machine.kicks(RX) + machine.kicks(TX);
        ensure!(counted == given, "{counted} of {given} kicks came by ioeventfd");
        ensure!(taken.0 > 0 && interrupts.0 > 0, "no interrupt came by irqfd: {taken:?} of {interrupts:?}");
        // Two that come before the guest looks are one.
        ensure!(taken.0 <= interrupts.0 + 1, "{taken:?} interrupts were taken, {interrupts:?} given");
    }
    Ok(())
}

#[test]
fn an_interrupt_driven_guest_exchanges_frames() -> Result<()> {
    converse(Kind::Kvm, MRG_RXBUF | EVENT_IDX, exchange(true, 1536))
}

#[test]
fn a_polling_guest_exchanges_frames() -> Result<()> {
    converse(Kind::Kvm, MRG_RXBUF | EVENT_IDX, exchange(false, 1536))
}

#[test]
fn a_guest_without_event_index_exchanges_frames() -> Result<()> {
    converse(Kind::Kvm, MRG_RXBUF, exchange(true, 1536))
}

#[test]
fn frames_larger_than_a_buffer_are_merged() -> Result<()> {
    converse(Kind::Kvm, MRG_RXBUF | EVENT_IDX, exchange(true, SMALL_BUFFER))
}

#[test]
fn a_thread_can_play_the_guest() -> Result<()> {
    converse(Kind::Thread, MRG_RXBUF | EVENT_IDX, exchange(true, 1536))
}

#[test]
fn a_device_killed_under_load_is_replaced() -> Result<()> {
    const KILLS: u64 = 10;
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let mut machine = machine(Kind::Kvm, MRG_RXBUF | EVENT_IDX)?;
    let mut front = FrontEnd::connect(&host.socket(), &machine)?;
    let mut conversation = Conversation::new(&host, true)?;
    machine.start(exchange(true, SMALL_BUFFER))?;
    for kill in 0..KILLS {
        conversation.go_on(&machine, 500)?;
        // The frames flow while the device is killed, and while the next one is started.
        (backend, front) = std::thread::scope(|scope| {
            let (host, machine) = (&host, &machine);
            let replace = scope.spawn(move || replace(host, machine, backend, front, kill));
            while !replace.is_finished() {
                conversation.turn(machine)?;
            }
            replace.join().map_err(|_| anyhow::anyhow!("the thread that kills panicked"))?
        })?;
    }
    conversation.go_on(&machine, 500)?;
    machine.stop()?;
    let stream = conversation.from_guest;
    eprintln!("{KILLS} kills: from the guest {stream:?}; to it {:?}", machine.counters());
    check_machine(&machine)?;
    ensure!(stream.corrupt == 0, "corrupt frames came from the guest: {stream:?}");
    ensure!(stream.repeated == 0, "frames came twice from the guest: {stream:?}: {:?}", conversation.twice);
    Ok(())
}

/// Kills the device and starts another. Each time somewhere else in the stream.
fn replace(
    host: &Host,
    machine: &Machine,
    mut old: Backend,
    front: FrontEnd,
    kill: u64,
) -> Result<(Backend, FrontEnd)> {
    std::thread::sleep(Duration::from_micros(137 * kill));
    old.kill()?;
    drop(front);
    let backend = host.backend(&[])?;
    let front = FrontEnd::connect(&host.socket(), machine)?;
    Ok((backend, front))
}

#[test]
fn a_guest_that_breaks_its_ring_does_not_disturb_its_neighbour() -> Result<()> {
    let (host, mut neighbour) = (Host::new(1)?, machine(Kind::Kvm, MRG_RXBUF | EVENT_IDX)?);
    let backend = host.backend(&[])?;
    let _front = FrontEnd::connect(&host.socket(), &neighbour)?;
    wait_for_carrier(&host)?;
    let mut conversation = Conversation::new(&host, false)?;
    neighbour.start(exchange(true, 1536))?;
    conversation.go_on(&neighbour, 500)?;
    // A namespace of its own on a thread of its own, as `Host::new` moves the thread it runs on.
    let hostile = std::thread::spawn(break_a_ring);
    conversation.go_on(&neighbour, 2000)?;
    hostile.join().map_err(|_| anyhow::anyhow!("the hostile machine's thread panicked"))??;
    conversation.go_on(&neighbour, 500)?;
    neighbour.stop()?;
    check_machine(&neighbour)?;
    let stream = conversation.from_guest;
    ensure!((stream.corrupt, stream.repeated, stream.lost) == (0, 0, 0), "from the neighbour: {stream:?}");
    ensure!(of_both_rings(&backend, "violations")? == (0, 0), "the neighbour's device: {}", backend.metrics()?);
    Ok(())
}

/// A guest that breaks its transmit ring: the ring is reported broken, and stopped.
fn break_a_ring() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let mut machine = machine(Kind::Kvm, MRG_RXBUF | EVENT_IDX)?;
    let _front = FrontEnd::connect(&host.socket(), &machine)?;
    machine.start(Work::new(Task::Break))?;
    machine.finish(PATIENCE)?;
    peer::host::eventually("the ring to be reported broken", || {
        Ok(machine.events().rings[TX].err.read().ok().map(|_| ()))
    })?;
    backend.wait_counter(TX, "/violations", 1)?;
    ensure!(backend.metrics()?["rings"][TX]["state"] == "broken", "{}", backend.metrics()?);
    Ok(())
}
