// SPDX-License-Identifier: Apache-2.0
//! The bodies of the fuzz targets. Each turns bytes into a sequence of calls and checks after every call that the
//! device touched nothing but the guest's memory and its own buffers.
//!
//! Build and run without cargo-fuzz, on the stable toolchain:
//! ```sh
//! export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
//!     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
//! cargo build --release --target x86_64-unknown-linux-gnu
//! target/x86_64-unknown-linux-gnu/release/rings -max_total_time=60 -max_len=4096
//! ```

use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use weft_vhost::device::rx::RxQueue;
use weft_vhost::device::tx::TxQueue;
use weft_vhost::device::vring::{Batch, Enable, Queue, Vring};
use weft_vhost::device::{Device, DeviceConfig};
use weft_vhost::dirty_log::DirtyLog;
use weft_vhost::memory::{GuestMemory, Translator};
use weft_vhost::port::{Offload, Port};
use weft_vhost::protocol::features;
use weft_vhost::protocol::message::{self, Header, RegionSpec};
use weft_vhost::ring::split::RingFeatures;
use weft_vhost::ring::{Layout, SplitRing, Violation};

/// Two regions that touch and one apart from them: every kind of border there is.
const REGIONS: [(u64, u64); 3] = [(0, 0x4000), (0x4000, 0x2000), (0x8000, 0x2000)];
const SIZE: u16 = 16;
/// Rings lie in the first pages, one pair of pages each.
const RING_SPACE: u64 = 0x1000;

/// Reads values off the front of the input; at its end there are zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let count = N.min(self.0.len());
        let (front, rest) = self.0.split_at(count);
        bytes[..count].copy_from_slice(front);
        self.0 = rest;
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
}

/// A port that takes and gives frames of the length the input says, and checks where it is sent.
#[derive(Debug)]
struct CheckedPort {
    event: EventFd,
    guest: Vec<Range<usize>>,
    /// Length of the next frame; 0 is none.
    next: AtomicUsize,
    answer: Mutex<Option<Errno>>,
    /// Bytes of the virtio-net header in front of frames.
    header_len: AtomicUsize,
}

impl CheckedPort {
    fn check(&self, piece: &libc::iovec) {
        let start = piece.iov_base as usize;
        let end = start.checked_add(piece.iov_len).expect("a piece wraps around");
        assert!(piece.iov_len > 0, "an empty piece");
        assert!(self.guest.iter().any(|range| range.start <= start && end <= range.end), "a piece outside guest memory");
    }

    /// What a guest asks of the kernel for its frame leaves addresses and ports alone.
    fn check_offloads(&self, front: &[u8]) {
        let (header, frame) = front.split_at(self.header_len.load(Ordering::Relaxed));
        let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (asked, segments, start, offset) = (header[0] & 1 != 0, header[1] != 0, field(6), field(8));
        assert!(asked || !segments, "segments without checksums");
        if !asked {
            return;
        }
        let tags = frame[12..].chunks(4).take_while(|tag| matches!(tag, [0x81, 0, ..] | [0x88, 0xa8, ..]));
        let ip = 14 + 4 * tags.count();
        match frame[ip - 2..ip] {
            [8, 0] => assert_eq!(start, ip + 4 * usize::from(frame[ip] & 0xf), "not behind the IPv4 header"),
            [0x86, 0xdd] => assert!(start >= ip + 40, "within the IPv6 header"),
            _ => panic!("a checksum of what is no IP packet"),
        }
        assert!([6, 8, 16].contains(&offset), "{offset} is no checksum's place");
    }
}

impl Port for CheckedPort {
    unsafe fn read(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        let (overflow, guest) = pieces.split_last().expect("a read without pieces");
        assert!(pieces.len() <= 1024, "{} pieces", pieces.len());
        guest.iter().for_each(|piece| self.check(piece));
        let len = self.next.swap(0, Ordering::Relaxed);
        if len == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut left = len;
        for piece in guest.iter().chain([overflow]) {
            let count = left.min(piece.iov_len);
            // SAFETY: the piece was checked to be guest memory, or is the queue's own buffer.
            unsafe { piece.iov_base.cast::<u8>().write_bytes(0xa5, count) };
            left -= count;
        }
        Ok(len - left)
    }

    unsafe fn write(&self, pieces: &[libc::iovec]) -> Result<usize, Errno> {
        let (front, guest) = pieces.split_first().expect("a write without pieces");
        assert!(pieces.len() <= 1024, "{} pieces", pieces.len());
        guest.iter().for_each(|piece| self.check(piece));
        let start = front.iov_base as usize;
        let shared = self.guest.iter().any(|range| range.contains(&start) && range.end != usize::MAX);
        assert!(!shared, "the guest could still change what was judged");
        // SAFETY: the queue's own buffer.
        self.check_offloads(unsafe { std::slice::from_raw_parts(front.iov_base.cast(), front.iov_len) });
        match *self.answer.lock().expect("lock") {
            Some(error) => Err(error),
            None => Ok(pieces.iter().map(|piece| piece.iov_len).sum()),
        }
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

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
    ftruncate(&fd, len as i64).expect("ftruncate");
    fd
}

/// What is kept from one input to the next, because making it takes longer than an input.
struct World {
    memory: Arc<GuestMemory>,
    port: CheckedPort,
    log: Arc<DirtyLog>,
}

impl World {
    fn new() -> Self {
        let spec = |(guest_addr, size)| RegionSpec { guest_addr, size, user_addr: guest_addr, mmap_offset: 0 };
        let table = REGIONS.map(|region| (spec(region), memfd(region.1))).into();
        let memory = Arc::new(GuestMemory::map(table).expect("map"));
        let range = |(addr, size)| {
            let piece = Translator::default().translate(&memory, addr, size).expect("translate");
            piece.host.as_ptr() as usize..piece.host.as_ptr() as usize + size as usize
        };
        let guest = REGIONS.map(range).into();
        let event = EventFd::new().expect("eventfd");
        let port = CheckedPort {
            event,
            guest,
            next: AtomicUsize::new(0),
            answer: Mutex::new(None),
            header_len: AtomicUsize::new(12),
        };
        let log = Arc::new(DirtyLog::map(1, 0, &memfd(4096)).expect("log"));
        Self { memory, port, log }
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        let mut translator = Translator::default();
        for (at, byte) in (addr..).zip(bytes) {
            if let Some(piece) = translator.translate(&self.memory, at, 1) {
                // SAFETY: one byte of guest memory.
                unsafe { piece.host.as_ptr().write_volatile(*byte) };
            }
        }
    }

    fn clear(&self) {
        for range in &self.port.guest {
            // SAFETY: the range is guest memory, which stays mapped.
            unsafe { (range.start as *mut u8).write_bytes(0, range.len()) };
        }
    }

    fn vring(&self, index: u64, bits: u64) -> Vring {
        let base = index * RING_SPACE;
        let layout = Layout { size: SIZE, desc: base, avail: base + 0x400, used: base + 0x800 };
        let features = RingFeatures {
            event_idx: bits & features::EVENT_IDX != 0,
            indirect: bits & features::INDIRECT_DESC != 0,
            in_order: bits & features::IN_ORDER != 0,
        };
        let ring = SplitRing::new(Arc::clone(&self.memory), layout, 0, features).expect("ring");
        Vring::new(ring, Enable::On, Arc::default(), Arc::default())
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

/// A pair of rings of a guest that writes anything anywhere at any time.
pub fn rings(data: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        world.clear();
        let mut input = Input(data);
        let choice = input.u8();
        let mut bits = features::VERSION_1 | features::CSUM | features::HOST_TSO4;
        for (bit, feature) in [features::MRG_RXBUF, features::EVENT_IDX, features::INDIRECT_DESC].iter().enumerate() {
            bits |= if choice & 1 << bit != 0 { *feature } else { 0 };
        }
        bits |= if choice & 16 != 0 { features::IN_ORDER } else { 0 };
        let header_len = if choice & 8 != 0 { 10 } else { 12 };
        world.port.header_len.store(header_len, Ordering::Relaxed);
        let mut tx = TxQueue::new(world.vring(1, bits), bits, header_len);
        let mut rx = RxQueue::new(world.vring(0, bits), header_len, bits & features::MRG_RXBUF != 0);
        while !input.0.is_empty() {
            if step(world, &mut input, &mut tx, &mut rx).is_err() {
                // The device stops a ring that broke the rules; nothing more happens on it.
                return;
            }
        }
    });
}

fn step(world: &World, input: &mut Input<'_>, tx: &mut TxQueue, rx: &mut RxQueue) -> Result<(), Violation> {
    match input.u8() % 13 {
        0..=2 => descriptor(world, input),
        3 => offer(world, input),
        4 => {
            let (addr, bytes) = (u64::from(input.u16()), input.take::<8>());
            world.write(addr, &bytes);
        }
        5 | 6 => {
            tx.run(&world.port, u32::from(input.u8()))?;
        }
        7 | 8 => {
            world.port.next.store(usize::from(input.u16()) + 13, Ordering::Relaxed);
            rx.run(&world.port, u32::from(input.u8() % 8))?;
        }
        9 => {
            tx.arm()?;
            rx.arm()?;
        }
        10 => rx.give_back(),
        12 => frame(world, input),
        11 if input.u8() & 1 != 0 => {
            // A successor takes up what is there.
            let mut vring = world.vring(1, features::EVENT_IDX | features::IN_ORDER);
            vring.publish(Batch::default());
            tx.vring = vring;
        }
        _ => settings(world, input.u8(), tx, rx),
    }
    Ok(())
}

/// One descriptor of a ring or of an indirect table, mostly sensible so that the walk gets somewhere.
fn descriptor(world: &World, input: &mut Input<'_>) {
    let [place, slot, addr_low, addr_high, len_low, len_high, flags, next] = input.take();
    let table = match place % 4 {
        0 => 0,
        1 => RING_SPACE,
        2 => 0x2000,
        _ => 0x5f80,
    };
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[addr_low, addr_high]);
    bytes[7] = if place & 0x80 != 0 { place } else { 0 };
    bytes[8..10].copy_from_slice(&[len_low, len_high & 0x3f]);
    bytes[11] = if place & 0x40 != 0 { place } else { 0 };
    bytes[12] = flags;
    bytes[14] = next % 20;
    world.write(table + 16 * u64::from(slot % 20), &bytes);
}

/// A frame with offloads that is right but for the bytes the input changes, as one chain that is offered.
fn frame(world: &World, input: &mut Input<'_>) {
    let [kind, header_len, index, changes, len] = input.take();
    let (protocol, offset) = if kind & 1 != 0 { (6, 16) } else { (17, 6) };
    let (ip, start) = match kind & 2 {
        0 => ([&[8, 0, 0x45, 0, 0, 200, 0, 0, 0x40, 0, 64, protocol][..], &[10; 10]].concat(), 34),
        _ => ([&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 160, protocol, 64][..], &[0xfd; 32]].concat(), 54),
    };
    let mut bytes = vec![1, if kind & 4 != 0 { 1 } else { 0 }, 0, 0, 200, 0, start, 0, offset, 0];
    bytes.resize(if header_len & 1 != 0 { 10 } else { 12 }, 0);
    bytes.extend([2; 12].iter().chain(&ip).chain(&[7; 200]));
    for _ in 0..changes % 4 {
        let [at, value] = input.take();
        if let Some(byte) = bytes.get_mut(usize::from(at)) {
            *byte = value;
        }
    }
    let at = 0x8800;
    world.write(at, &bytes);
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&at.to_le_bytes());
    descriptor[8] = len.max(60);
    world.write(RING_SPACE, &descriptor);
    world.write(RING_SPACE + 0x404 + 2 * u64::from(index.wrapping_sub(1) % SIZE as u8), &[0, 0]);
    world.write(RING_SPACE + 0x402, &[index % 32, 0]);
}

/// Makes a head available and moves the index, by one or by anything.
fn offer(world: &World, input: &mut Input<'_>) {
    let [ring, head, slot, low, high] = input.take();
    let avail = u64::from(ring % 2) * RING_SPACE + 0x400;
    world.write(avail + 4 + 2 * u64::from(slot % SIZE as u8), &[head % 20, 0]);
    let index = if ring & 0x80 != 0 { [low, high] } else { [low % 32, 0] };
    world.write(avail + 2, &index);
}

fn settings(world: &World, what: u8, tx: &mut TxQueue, rx: &mut RxQueue) {
    let log = || (what & 1 != 0).then(|| Arc::clone(&world.log));
    rx.vring.ring.set_log(log(), (what & 2 != 0).then_some(u64::MAX - 3));
    tx.vring.ring.set_log(log(), None);
    tx.vring.enable = if what & 4 != 0 { Enable::Off } else { Enable::On };
    *world.port.answer.lock().expect("lock") = match what >> 4 {
        0 => Some(Errno::EAGAIN),
        1 => Some(Errno::EINVAL),
        2 => Some(Errno::EIO),
        3 => Some(Errno::ENOBUFS),
        _ => None,
    };
}

thread_local! {
    static DEVICE: RefCell<Device> = RefCell::new(device());
}

fn device() -> Device {
    let config = DeviceConfig {
        tap: "fuzz".into(),
        max_ring_size: 1024,
        mac: Some([2; 6]),
        mtu: Some(1500),
        poll_for: Duration::ZERO,
        udp_segmentation: true,
    };
    let port = || -> Arc<dyn Port> {
        let event = EventFd::new().expect("eventfd");
        // The messages target never gets far enough to move frames through checked memory: any range is its own.
        let guest = vec![0..usize::MAX];
        let (next, answer, header_len) = (AtomicUsize::new(0), Mutex::new(None), AtomicUsize::new(12));
        Arc::new(CheckedPort { event, guest, next, answer, header_len })
    };
    Device::new(config, vec![port(), port()]).expect("device")
}

/// One connection: messages of any content with the right number of descriptors or a wrong one.
pub fn messages(data: &[u8]) {
    DEVICE.with_borrow_mut(|device| {
        let mut input = Input(data);
        while !input.0.is_empty() {
            let [request, flags, size, fds] = input.take();
            let header = Header { request: request.into(), flags: u32::from(flags & 0x0f) | 1, size: size.into() };
            let count = usize::from(size).min(input.0.len());
            let (payload, rest) = input.0.split_at(count);
            input.0 = rest;
            let fds = (0..fds % 4).map(|_| memfd(0x4000)).collect();
            let Ok(message) = message::decode(&header, payload, fds) else { break };
            if let Ok(reply) = device.handle(message) {
                assert!(reply.payload().is_none_or(|payload| payload.len() <= message::MAX_PAYLOAD));
            }
        }
        device.disconnect();
    });
}
