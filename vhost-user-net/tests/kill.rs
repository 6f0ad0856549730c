// SPDX-License-Identifier: Apache-2.0
//! A device killed after every single instruction.
//!
//! A child process moves frames in a ring that lies in shared memory; the parent steps it one instruction at a time
//! (`ptrace`) and keeps every state the memory goes through. Each state is what a `kill -9` at that point leaves
//! behind. In each, the driver must never have seen an unfinished entry, and a successor that takes the ring up must
//! bring every frame through exactly once, in order and whole, except at most one that was in hand.
//!
//! Without the test harness, whose threads do not survive a fork.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, ftruncate};
use weft_vhost::device::rx::RxQueue;
use weft_vhost::device::tx::TxQueue;
use weft_vhost::device::vring::{Batch, Enable, Queue, Vring};
use weft_vhost::memory::{GuestMemory, Translator};
use weft_vhost::port::{Offload, Port};
use weft_vhost::protocol::features;
use weft_vhost::protocol::message::RegionSpec;
use weft_vhost::ring::split::RingFeatures;
use weft_vhost::ring::{Layout, SplitRing};

const SIZE: u16 = 16;
const BYTES: usize = 0x6000;
const DESC: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
/// The other end of the wire: a count and the sequence numbers of the frames sent, or the count of those taken.
const WIRE: usize = 0x3000;
const BUFFERS: usize = 0x4000;
const BUFFER: usize = 0x80;
/// The indices wrap around in the middle of the test.
const BASE: u16 = u16::MAX - 3;
const HEADER: usize = 12;
const FRAMES: u16 = 7;
/// Frames of the batches; each batch is shown to the driver at its end.
const BATCHES: [u32; 3] = [4, 1, 2];

/// Shared memory and its place in this process.
struct Shared {
    memory: Arc<GuestMemory>,
    start: *mut u8,
}

impl Shared {
    fn new() -> Result<Self> {
        let fd: OwnedFd = memfd_create("kill", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&fd, BYTES as i64)?;
        let spec = RegionSpec { guest_addr: 0, size: BYTES as u64, user_addr: 0, mmap_offset: 0 };
        let memory = Arc::new(GuestMemory::map(vec![(spec, fd)])?);
        let piece = Translator::default().translate(&memory, 0, BYTES as u64).context("translate")?;
        Ok(Self { memory, start: piece.host.as_ptr() })
    }

    fn of(content: &[u8]) -> Result<Self> {
        let shared = Self::new()?;
        shared.write(0, content);
        Ok(shared)
    }

    fn content(&self) -> Vec<u8> {
        // SAFETY: the mapping has BYTES bytes; the child that could change them is stopped.
        unsafe { std::slice::from_raw_parts(self.start, BYTES) }.to_vec()
    }

    fn differs(&self, content: &[u8]) -> bool {
        // SAFETY: as `content`.
        unsafe { std::slice::from_raw_parts(self.start, BYTES) != content }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= BYTES);
        // SAFETY: inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
    }

    fn put(&self, at: usize, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    fn descriptor(&self, slot: u16, len: usize, flags: u16) {
        let at = DESC + 16 * usize::from(slot);
        self.write(at, &((BUFFERS + BUFFER * usize::from(slot)) as u64).to_le_bytes());
        self.write(at + 8, &(len as u32).to_le_bytes());
        self.put(at + 12, flags);
    }

    /// Offers all descriptors in a ring that went round many times with the same heads.
    fn offer(&self, count: u16) {
        self.put(AVAIL + 2, BASE.wrapping_add(count));
        self.put(USED + 2, BASE);
        for slot in 0..SIZE {
            self.put(AVAIL + 4 + 2 * usize::from(slot), slot);
            self.put(USED + 4 + 8 * usize::from(slot), slot);
        }
    }

    fn vring(&self) -> Result<Vring> {
        let layout = Layout { size: SIZE, desc: DESC as u64, avail: AVAIL as u64, used: USED as u64 };
        // As QEMU has it: the front end of a device that died gives the used index.
        let base = number(&self.content(), USED + 2);
        let ring = SplitRing::new(Arc::clone(&self.memory), layout, base, RingFeatures::default())?;
        Ok(Vring::new(ring, Enable::On, Arc::default(), Arc::default()))
    }
}

fn number(content: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([content[at], content[at + 1]])
}

/// The entries the driver can see: head and length.
fn used(content: &[u8]) -> Vec<(u32, u32)> {
    let count = number(content, USED + 2).wrapping_sub(BASE);
    let word = |at: usize| u32::from_le_bytes(content[at..at + 4].try_into().expect("four bytes"));
    let element = |step| USED + 4 + 8 * usize::from(BASE.wrapping_add(step) % SIZE);
    (0..count).map(|step| (word(element(step)), word(element(step) + 4))).collect()
}

/// A port whose other end is part of the shared memory.
#[derive(Debug)]
struct Wire {
    start: *mut u8,
    event: EventFd,
}

// SAFETY: the test uses a port from one thread.
unsafe impl Send for Wire {}
// SAFETY: as above.
unsafe impl Sync for Wire {}

impl Wire {
    fn new(shared: &Shared) -> Result<Self> {
        Ok(Self { start: shared.start, event: EventFd::new()? })
    }

    fn cell(&self, index: u16) -> *mut u16 {
        // SAFETY: few frames fit into the page.
        unsafe { self.start.add(WIRE + 2 * usize::from(index)).cast() }
    }
}

impl Port for Wire {
    unsafe fn read(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        // SAFETY: `cell` is inside the mapping.
        let taken = unsafe { self.cell(0).read_volatile() };
        if taken == FRAMES {
            return Err(Errno::EAGAIN);
        }
        // SAFETY: as above.
        unsafe { self.cell(0).write_volatile(taken + 1) };
        let frame = [vec![0; HEADER], body(taken)].concat();
        let mut rest = &frame[..];
        for piece in pieces {
            let (now, later) = rest.split_at(rest.len().min(piece.iov_len));
            // SAFETY: the piece is a buffer of the ring or of the queue with at least these bytes.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            rest = later;
        }
        Ok(frame.len() - rest.len())
    }

    unsafe fn write(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        let mut frame = Vec::new();
        for piece in pieces {
            // SAFETY: the piece is a buffer of the ring or of the queue.
            frame.extend_from_slice(unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) });
        }
        // SAFETY: `cell` is inside the mapping.
        unsafe {
            let sent = self.cell(0).read_volatile();
            self.cell(1 + sent).write_volatile(u16::from_le_bytes([frame[HEADER], frame[HEADER + 1]]));
            // The frame is out from here on.
            self.cell(0).write_volatile(sent + 1);
        }
        Ok(frame.len())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn set_active(&self, _active: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn set_format(&self, _header_len: usize, _offload: Offload) -> Result<(), Errno> {
        Ok(())
    }
}

/// What frame number `sequence` looks like; received ones are of lengths that take one to three buffers.
fn body(sequence: u16) -> Vec<u8> {
    let len = [60, 200, 300][usize::from(sequence % 3)];
    let mut bytes = sequence.to_le_bytes().to_vec();
    bytes.resize(len, sequence as u8 + 1);
    bytes
}

/// One direction: how the ring is laid out, what serves it, and what must come out.
trait Direction {
    fn lay_out(&self, shared: &Shared);
    fn queue(&self, shared: &Shared) -> Result<Box<dyn Queue>>;
    /// Checks what the driver or the wire has in the end; returns the number of frames lost.
    fn check(&self, content: &[u8]) -> Result<usize>;
}

struct Transmit;

impl Direction for Transmit {
    fn lay_out(&self, shared: &Shared) {
        shared.offer(FRAMES);
        for step in 0..FRAMES {
            let slot = BASE.wrapping_add(step) % SIZE;
            shared.descriptor(slot, HEADER + 60, 0);
            shared.put(BUFFERS + BUFFER * usize::from(slot) + HEADER, step);
        }
    }

    fn queue(&self, shared: &Shared) -> Result<Box<dyn Queue>> {
        Ok(Box::new(TxQueue::new(shared.vring()?, features::VERSION_1, HEADER)))
    }

    fn check(&self, content: &[u8]) -> Result<usize> {
        let heads: Vec<_> = (0..FRAMES).map(|step| (u32::from(BASE.wrapping_add(step) % SIZE), 0)).collect();
        ensure!(used(content) == heads, "the driver got {:?} back", used(content));
        let sent = number(content, WIRE);
        let sequence: Vec<_> = (1..=sent).map(|at| number(content, WIRE + 2 * usize::from(at))).collect();
        ensure!(sequence.is_sorted_by(|one, next| one < next), "sent {sequence:?}");
        Ok(usize::from(FRAMES - sent))
    }
}

struct Receive;

impl Direction for Receive {
    fn lay_out(&self, shared: &Shared) {
        shared.offer(SIZE);
        (0..SIZE).for_each(|slot| shared.descriptor(slot, BUFFER, 2));
    }

    fn queue(&self, shared: &Shared) -> Result<Box<dyn Queue>> {
        Ok(Box::new(RxQueue::new(shared.vring()?, HEADER, true)))
    }

    fn check(&self, content: &[u8]) -> Result<usize> {
        let received = received(content)?;
        ensure!(received.is_sorted_by(|one, next| one < next), "received {received:?}");
        Ok(usize::from(FRAMES) - received.len())
    }
}

/// Sequence numbers of the frames the driver sees, each of them whole.
fn received(content: &[u8]) -> Result<Vec<u16>> {
    let mut elements = used(content).into_iter();
    let mut sequence = Vec::new();
    while let Some((head, len)) = elements.next() {
        let at = |head: u32| BUFFERS + BUFFER * head as usize;
        let mut frame = content[at(head)..at(head) + len as usize].to_vec();
        for _ in 1..number(&frame, HEADER - 2) {
            let (head, len) = elements.next().context("a frame the driver sees has fewer buffers than it says")?;
            frame.extend_from_slice(&content[at(head)..at(head) + len as usize]);
        }
        let number = number(&frame, HEADER);
        ensure!(frame[HEADER..] == body(number), "frame {number} is not whole");
        sequence.push(number);
    }
    Ok(sequence)
}

/// Takes the ring up where it is and moves all frames there are.
fn serve(direction: &dyn Direction, shared: &Shared, batches: &[u32]) -> Result<()> {
    let (mut queue, port) = (direction.queue(shared)?, Wire::new(shared)?);
    queue.vring().publish(Batch::default());
    for batch in batches {
        queue.run(&port, *batch)?;
    }
    Ok(())
}

/// Every state the memory goes through while a child serves the ring.
fn states(direction: &dyn Direction, shared: &Shared) -> Result<Vec<Vec<u8>>> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // SAFETY: PTRACE_TRACEME takes no memory; raise only stops this process.
            let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME) == 0 && libc::raise(libc::SIGSTOP) == 0 };
            let done = traced && serve(direction, shared, &BATCHES).is_ok();
            // SAFETY: ends the child without running what the parent left to be run at exit.
            unsafe { libc::_exit(i32::from(!done)) }
        }
        ForkResult::Parent { child } => follow(child, shared),
    }
}

fn follow(child: Pid, shared: &Shared) -> Result<Vec<Vec<u8>>> {
    let mut states = vec![shared.content()];
    loop {
        match waitpid(child, None)? {
            WaitStatus::Stopped(..) => {}
            WaitStatus::Exited(_, status) => {
                ensure!(status == 0, "the child failed (is ptrace allowed?)");
                return Ok(states);
            }
            other => anyhow::bail!("the child: {other:?}"),
        }
        if states.last().is_none_or(|last| shared.differs(last)) {
            states.push(shared.content());
        }
        // SAFETY: no memory is passed; the child is stopped.
        Errno::result(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child.as_raw(), 0, 0) })
            .context("PTRACE_SINGLESTEP")?;
    }
}

/// Kills the device in every state it goes through; in one in the middle of a publication, also its successor in every
/// state that one goes through. The last in the line finishes the work.
fn kill_everywhere(name: &str, direction: &dyn Direction) -> Result<()> {
    let shared = Shared::new()?;
    direction.lay_out(&shared);
    let first = states(direction, &shared)?;
    // Each frame has to show up as several states, or nothing was followed.
    ensure!(first.len() > 4 * usize::from(FRAMES), "{name}: only {} states", first.len());
    let mut lossy = 0;
    for (at, state) in first.iter().enumerate() {
        let step = || format!("{name}: killed in state {at} of {}", first.len());
        let lost = finish(direction, state).with_context(step)?;
        ensure!(lost <= 1, "{}: {lost} frames lost", step());
        lossy += lost;
    }
    let noted = first.iter().find(|state| number(state, USED) != 0).context("no state in a publication")?;
    for (at, state) in states(direction, &Shared::of(noted)?)?.iter().enumerate() {
        let lost = finish(direction, state).with_context(|| format!("{name}: successor killed in state {at}"))?;
        ensure!(lost <= 1, "{name}: successor killed in state {at}: {lost} frames lost");
    }
    // The last state is the one of a device that was not killed.
    let lost = direction.check(first.last().context("no state")?)?;
    ensure!(lost == 0, "{name}: {lost} frames lost without a kill");
    println!("{name}: {} states, a frame lost in {lossy}, none twice", first.len());
    Ok(())
}

/// Has a successor go on in this state, to the end; returns the number of frames lost.
fn finish(direction: &dyn Direction, state: &[u8]) -> Result<usize> {
    ensure!(used(state).iter().all(|(head, _)| *head < SIZE.into()), "the driver sees a mark");
    let successor = Shared::of(state)?;
    serve(direction, &successor, &[64])?;
    direction.check(&successor.content())
}

fn main() -> Result<()> {
    kill_everywhere("transmit", &Transmit)?;
    kill_everywhere("receive", &Receive)
}
