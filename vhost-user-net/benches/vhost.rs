// SPDX-License-Identifier: Apache-2.0
//! Speed of the device beside the bare system calls on the same tap, in the same run.
//!
//! `cargo bench -p weft-vhost --bench vhost -- [--json PATH] [--seconds S] [--rounds N] [--only ROW] [--real-time]`; needs
//! root, makes its own network namespace. The front end runs on processor 0, the device and the bare loop on processor 1;
//! `--real-time` keeps everybody else off them.
//!
//! | Row | What is measured |
//! |---|---|
//! | `tx_64`, `tx_1500`, `tx_gso` | guest to tap, frames of 64 and 1500 bytes and 64 KiB; bare: `writev` in a loop |
//! | `rx_64`, `rx_1500`, `rx_gso` | tap to guest: a full tap queue is drained; bare: `readv` in a loop |
//! | `rr_p50`, `rr_p99` | one frame to a packet socket that sends it back; bare: the same on the tap's descriptor |
//! | `rr_poll_p50`, `rr_poll_p99` | the same with `--poll-us 100` |
//! | `rx_log` | 1500 bytes to the guest while every write is logged for a migration; bare: the device without the log |
//! | `restart` | from `kill -9` of the device to the first frame through its successor |
//! | `rss` | resident memory of the device beside the guest's |
//!
//! The bare loops go through as many buffers, as far apart, as the ring has, so that the difference is the ring's work and
//! not the processor's caches. `per_cpu` is the rate per second of processor time of the device (or of the bare loop): unlike the wall-clock rate it
//! does not fall when others use the machine. Ratios are of those for frames and of the times for round trips.

#[path = "../tests/peer/mod.rs"]
mod peer;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use peer::host::{Backend, Host, Wire, run};
use peer::{HEADER, MERGEABLE, Options, Peer, RX, TX};
use serde_json::json;
use weft_vhost::port::Port;
use weft_vhost::protocol::features;
use weft_vhost::tap::{Offload, Tap};

const FRONT_CPU: usize = 0;
const DEVICE_CPU: usize = 1;
const RING: u16 = 1024;
const QUEUE: usize = 20_000;
const QUEUE_GSO: usize = 1_000;
const GSO: u64 = features::CSUM
    | features::HOST_TSO4
    | features::GUEST_CSUM
    | features::GUEST_TSO4
    | features::EVENT_IDX
    | MERGEABLE;
const OFFLOAD: Offload = Offload { checksum: true, tso4: true, tso6: false, ecn: false, uso: false };

/// Frames moved, in what time, and the processor time that took.
#[derive(Debug, Clone, Copy)]
struct Rate {
    frames: u64,
    wall: f64,
    cpu: f64,
}

impl Rate {
    fn per_second(self) -> f64 {
        self.frames as f64 / self.wall
    }

    fn per_cpu(self) -> f64 {
        self.frames as f64 / self.cpu.max(1e-9)
    }
}

/// A kind of frame.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    len: usize,
    gso: bool,
    queue: usize,
}

const KINDS: [Kind; 3] = [
    Kind { name: "64", len: 64, gso: false, queue: QUEUE },
    Kind { name: "1500", len: 1514, gso: false, queue: QUEUE },
    Kind { name: "gso", len: 65_226, gso: true, queue: QUEUE_GSO },
];

struct Settings {
    json: Option<String>,
    only: Option<String>,
    real_time: bool,
    time: Duration,
    rounds: usize,
}

fn main() -> Result<()> {
    let settings = settings()?;
    pin(Pid::from_raw(0), FRONT_CPU)?;
    if settings.real_time {
        real_time()?;
    }
    let host = Host::new(1)?;
    let mut rows = BTreeMap::new();
    for kind in KINDS.into_iter().filter(|kind| settings.wants(&format!("tx_{}", kind.name))) {
        let pairs = repeat(settings.rounds, || {
            Ok((bare_tx(&host, kind, settings.time)?, vhost_tx(&host, kind, settings.time)?))
        })?;
        row(&mut rows, &format!("tx_{}", kind.name), kind, &pairs);
    }
    for kind in KINDS.into_iter().filter(|kind| settings.wants(&format!("rx_{}", kind.name))) {
        run(&format!("ip link set dev {} txqueuelen {}", host.tap, kind.queue))?;
        let pairs = repeat(settings.rounds, || Ok((bare_rx(&host, kind)?, vhost_rx(&host, kind, false)?)))?;
        row(&mut rows, &format!("rx_{}", kind.name), kind, &pairs);
    }
    if settings.wants("rx_log") {
        let kind = KINDS[1];
        run(&format!("ip link set dev {} txqueuelen {}", host.tap, kind.queue))?;
        let pairs = repeat(settings.rounds, || Ok((vhost_rx(&host, kind, false)?, vhost_rx(&host, kind, true)?)))?;
        row(&mut rows, "rx_log", kind, &pairs);
    }
    if settings.wants("restart") {
        restart(&host, &settings, &mut rows)?;
    }
    if settings.wants("rr") {
        round_trips(&host, &settings, &mut rows)?;
    }
    if settings.wants("rss") {
        memory(&host, &mut rows)?;
    }
    let report = json!({ "name": "vhost", "commit": commit(), "rows": named(rows) });
    if let Some(path) = settings.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)?).with_context(|| path)?;
    }
    Ok(())
}

impl Settings {
    fn wants(&self, row: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == row)
    }
}

fn settings() -> Result<Settings> {
    let mut settings =
        Settings { json: None, only: None, real_time: false, time: Duration::from_millis(1500), rounds: 3 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => settings.json = Some(value()?),
            "--only" => settings.only = Some(value()?),
            "--seconds" => settings.time = Duration::from_secs_f64(value()?.parse()?),
            "--rounds" => settings.rounds = value()?.parse()?,
            "--real-time" => settings.real_time = true,
            // cargo's own.
            "--bench" => {}
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    ensure!(settings.rounds > 0, "--rounds is 0");
    Ok(settings)
}

/// The rows with their names in them.
fn named(rows: BTreeMap<String, serde_json::Value>) -> Vec<serde_json::Value> {
    let put = |(name, mut row): (String, serde_json::Value)| {
        row["name"] = name.into();
        row
    };
    rows.into_iter().map(put).collect()
}

/// The commit that was measured; empty outside a checkout.
fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn repeat<T>(rounds: usize, mut once: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..rounds).map(|_| once()).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Distance of the least from the greatest, as a part of the median.
fn spread(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (most - least) / median(values)
}

fn row(rows: &mut BTreeMap<String, serde_json::Value>, name: &str, kind: Kind, pairs: &[(Rate, Rate)]) {
    let of = |pick: &dyn Fn(&(Rate, Rate)) -> f64| median(pairs.iter().map(pick).collect());
    let (bare, device) = (of(&|pair| pair.0.per_second()), of(&|pair| pair.1.per_second()));
    let (bare_cpu, device_cpu) = (of(&|pair| pair.0.per_cpu()), of(&|pair| pair.1.per_cpu()));
    let ratio = of(&|pair| pair.1.per_cpu() / pair.0.per_cpu());
    let gbit = |rate: f64| rate * kind.len as f64 * 8.0 / 1e9;
    println!(
        "{name:8} device {:7.3} Mpps {:6.1} Gbit/s ({:7.3} Mpps {:6.1} Gbit/s per cpu)  bare {:7.3} Mpps {:6.1} Gbit/s ({:7.3} per cpu)  ratio {ratio:.2}",
        device / 1e6,
        gbit(device),
        device_cpu / 1e6,
        gbit(device_cpu),
        bare / 1e6,
        gbit(bare),
        bare_cpu / 1e6,
    );
    rows.insert(
        name.to_owned(),
        json!({
            "unit": "frames per cpu-second", "value": device_cpu, "baseline": "bare", "baseline_value": bare_cpu, "ratio": ratio,
            "runs": pairs.len(), "spread": spread(pairs.iter().map(|pair| pair.1.per_cpu())),
            "gbit_per_cpu": gbit(device_cpu), "wall": device, "wall_gbit": gbit(device), "baseline_wall": bare,
        }),
    );
}

fn pin(pid: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(pid, &set).context("sched_setaffinity; the bench needs two processors")
}

/// Gives this thread, and the device that inherits it, the processor before everybody else, so that others on the
/// machine are not part of the figures. The kernel leaves them a part of every second.
fn real_time() -> Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is read only.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) };
    ensure!(done == 0, "sched_setscheduler: {}; the bench needs root", std::io::Error::last_os_error());
    Ok(())
}

/// The device on its processor, with its front end.
fn device(host: &Host, features: u64) -> Result<(Backend, Peer)> {
    device_with(host, features, &[])
}

fn device_with(host: &Host, features: u64, more: &[&str]) -> Result<(Backend, Peer)> {
    let backend = host.backend(more)?;
    for task in std::fs::read_dir(format!("/proc/{}/task", backend.child.id()))? {
        let tid: i32 = task?.file_name().to_string_lossy().parse()?;
        pin(Pid::from_raw(tid), DEVICE_CPU)?;
    }
    let peer = Peer::start(&host.socket(), Options { features, ring_size: RING, ..Options::default() })?;
    Ok((backend, peer))
}

/// Processor time of a process, all threads, from the scheduler's own clock.
fn cpu_of(pid: u32) -> Result<f64> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(total as f64 / 1e9)
}

fn own_cpu() -> Result<f64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}

/// A frame to nobody here: the host's stack drops it as soon as it sees the address.
fn bytes_of(kind: Kind) -> (Vec<u8>, Vec<u8>) {
    let mut frame = vec![0; kind.len];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0]);
    let total = ((kind.len - 14) as u16).to_be_bytes();
    frame[14..34].copy_from_slice(&[0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[46] = 0x50;
    let mut header = vec![0; HEADER];
    if kind.gso {
        // NEEDS_CSUM, TCPV4, 54 bytes of headers, segments of 1448, checksum of TCP.
        header[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 0x05, 34, 0, 16, 0]);
    }
    (header, frame)
}

fn vector(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// The buffers a bare loop goes through.
struct Slots {
    bytes: Vec<u8>,
    each: usize,
    at: usize,
}

impl Slots {
    /// As much memory as the device goes through: a page for each entry of the ring.
    fn new(kind: Kind) -> Self {
        let each = (kind.len + HEADER).next_multiple_of(4096);
        let count = (usize::from(RING) * 4096 / each).max(1);
        Self { bytes: vec![0; each * count], each, at: 0 }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_mut(self.each)
    }

    fn next(&mut self) -> &mut [u8] {
        self.at = if self.at + 2 * self.each > self.bytes.len() { 0 } else { self.at + self.each };
        &mut self.bytes[self.at..self.at + self.each]
    }
}

fn bare_tap(host: &Host) -> Result<weft_vhost::tap::TapQueue> {
    let queue = Tap::open(&host.tap, 1)?.queues.pop().context("no queue")?;
    queue.set_format(HEADER, OFFLOAD)?;
    Ok(queue)
}

fn bare_tx(host: &Host, kind: Kind, time: Duration) -> Result<Rate> {
    let tap = bare_tap(host)?;
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let (mut header, frame) = bytes_of(kind);
    let mut slots = Slots::new(kind);
    slots.all().for_each(|slot| slot[..frame.len()].copy_from_slice(&frame));
    let (start, cpu, mut frames) = (Instant::now(), own_cpu()?, 0);
    while start.elapsed() < time {
        for _ in 0..256 {
            let pieces = [vector(&mut header), vector(&mut slots.next()[..frame.len()])];
            // SAFETY: the pieces are local buffers.
            unsafe { tap.write(&pieces) }.context("write")?;
        }
        frames += 256;
    }
    let rate = Rate { frames, wall: start.elapsed().as_secs_f64(), cpu: own_cpu()? - cpu };
    pin(Pid::from_raw(0), FRONT_CPU)?;
    Ok(rate)
}

fn vhost_tx(host: &Host, kind: Kind, time: Duration) -> Result<Rate> {
    let (backend, mut peer) = device(host, GSO)?;
    let (header, frame) = bytes_of(kind);
    // Small frames lie each in a buffer of its own; large ones are chains of pages, all with the same content.
    let pieces = pieces_of(&mut peer, &header, &frame);
    let per_frame = pieces.len() as u16;
    let slots = RING / per_frame;
    for slot in 0..slots {
        lay_out(&mut peer, slot, &pieces);
    }
    let ring = &mut peer.rings[TX];
    ring.set_used_event(u16::MAX / 2);
    let (mut offered, mut done) = (0u64, 0u64);
    let (start, cpu) = (Instant::now(), cpu_of(backend.child.id())?);
    while start.elapsed() < time {
        while offered - done < slots.into() {
            ring.offer((offered % u64::from(slots)) as u16 * per_frame);
            offered += 1;
        }
        ring.publish()?;
        let before = done;
        let used = ring.used_index();
        done += u64::from(used.wrapping_sub(ring.last_used));
        ring.last_used = used;
        if done == before {
            std::hint::spin_loop();
        }
        // Never asks for an interrupt: the event index stays half the space away.
        ring.set_used_event(ring.last_used.wrapping_add(u16::MAX / 2));
    }
    let wall = start.elapsed().as_secs_f64();
    Ok(Rate { frames: done, wall, cpu: cpu_of(backend.child.id())? - cpu })
}

/// Address and length of the pieces of one frame.
fn pieces_of(peer: &mut Peer, header: &[u8], frame: &[u8]) -> Vec<(u64, u32)> {
    let base = peer.ram.buffers(TX);
    let bytes = [header, frame].concat();
    peer.ram.write(base, &bytes);
    if bytes.len() <= 4096 {
        return vec![(base, bytes.len() as u32)];
    }
    // As a Linux guest lays a large frame out: headers, then fragments of up to 32 KiB.
    let mut pieces = vec![(base, 66 + 12)];
    let mut at = 78;
    while at < bytes.len() {
        let len = (bytes.len() - at).min(32768);
        pieces.push((base + at as u64, len as u32));
        at += len;
    }
    pieces
}

fn lay_out(peer: &mut Peer, slot: u16, pieces: &[(u64, u32)]) {
    let count = pieces.len() as u16;
    // Small frames get a buffer each, as in a guest; the copies are made once, here.
    let shift = if count == 1 { u64::from(slot) * 4096 } else { 0 };
    if shift > 0 {
        let bytes = peer.ram.read(pieces[0].0, pieces[0].1 as usize);
        peer.ram.write(pieces[0].0 + shift, &bytes);
    }
    for (index, (addr, len)) in pieces.iter().enumerate() {
        let index = index as u16;
        let (flags, next) = if index + 1 == count { (0, 0) } else { (peer::ring::NEXT, slot * count + index + 1) };
        peer.rings[TX].descriptor(slot * count + index, addr + shift, *len, flags, next);
    }
}

/// Fills the tap's queue with frames for the guest.
fn fill(wire: &Wire, kind: Kind) -> Result<()> {
    let (header, frame) = bytes_of(kind);
    let bytes = [&header[..10], &frame].concat();
    for _ in 0..kind.queue {
        wire.send(&bytes)?;
    }
    Ok(())
}

/// A packet socket that neither waits in the qdisc nor takes frames in.
fn sender(host: &Host) -> Result<Wire> {
    Wire::open(&host.tap, true)
}

fn bare_rx(host: &Host, kind: Kind) -> Result<Rate> {
    let tap = bare_tap(host)?;
    fill(&sender(host)?, kind)?;
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let mut memory = vec![1; usize::from(RING) * 4096];
    // Buffers as the guest's are: of 1536 bytes, each on a page of its own.
    let buffers: Vec<_> = memory.chunks_mut(4096).map(|page| vector(&mut page[..1536])).collect();
    let per_frame = (kind.len + HEADER).div_ceil(1536);
    let mut frames_of_buffers = buffers.chunks_exact(per_frame).cycle();
    let (start, cpu, mut frames) = (Instant::now(), own_cpu()?, 0);
    // SAFETY: the pieces are parts of a local buffer.
    while let Some(pieces) = frames_of_buffers.next().filter(|pieces| unsafe { tap.read(pieces) }.is_ok()) {
        ensure!(!pieces.is_empty(), "no buffers");
        frames += 1;
    }
    let rate = Rate { frames, wall: start.elapsed().as_secs_f64(), cpu: own_cpu()? - cpu };
    pin(Pid::from_raw(0), FRONT_CPU)?;
    ensure!(frames > kind.queue as u64 * 9 / 10, "only {frames} of {} frames were queued", kind.queue);
    Ok(rate)
}

fn vhost_rx(host: &Host, kind: Kind, logging: bool) -> Result<Rate> {
    let (backend, mut peer) = device(host, GSO)?;
    let _log = if logging { Some(peer.start_log()?) } else { None };
    touch_buffers(&sender(host)?, kind, &mut peer)?;
    fill(&sender(host)?, kind)?;
    let cpu = cpu_of(backend.child.id())?;
    let start = Instant::now();
    let (mut buffers, mut idle_since) = (0u64, Instant::now());
    let mut last = start;
    offer_all(&mut peer, RING)?;
    while idle_since.elapsed() < Duration::from_millis(100) {
        let ring = &mut peer.rings[RX];
        let count = ring.used_index().wrapping_sub(ring.last_used);
        if count == 0 {
            std::hint::spin_loop();
            continue;
        }
        (last, idle_since) = (Instant::now(), Instant::now());
        ring.last_used = ring.last_used.wrapping_add(count);
        ring.set_used_event(ring.last_used.wrapping_add(u16::MAX / 2));
        buffers += u64::from(count);
        offer_all(&mut peer, count)?;
    }
    let per_frame = (kind.len + HEADER).div_ceil(1536) as u64;
    let frames = buffers / per_frame;
    ensure!(frames > kind.queue as u64 * 9 / 10, "only {frames} of {} frames came: {}", kind.queue, backend.metrics()?);
    Ok(Rate { frames, wall: (last - start).as_secs_f64(), cpu: cpu_of(backend.child.id())? - cpu })
}

/// Receives into every buffer once, so that no page is new to the device when the clock runs, and leaves the ring empty.
fn touch_buffers(wire: &Wire, kind: Kind, peer: &mut Peer) -> Result<()> {
    let (header, frame) = bytes_of(kind);
    let bytes = [&header[..10], &frame].concat();
    let per_frame = (kind.len + HEADER).div_ceil(1536) as u16;
    peer.rings[RX].set_used_event(u16::MAX / 2);
    peer.fill_rx(RX, RING / per_frame * per_frame, 1536)?;
    for _ in 0..RING / per_frame {
        wire.send(&bytes)?;
        for _ in 0..per_frame {
            peer.rings[RX].wait_used()?;
        }
    }
    // The entries that were left out for the last frame's sake still have no descriptor.
    peer.fill_rx(RX, RING % per_frame, 1536)?;
    Ok(())
}

/// Offers buffers again whose descriptors are still there.
fn offer_all(peer: &mut Peer, count: u16) -> Result<()> {
    let ring = &mut peer.rings[RX];
    let free = RING - ring.next_avail.wrapping_sub(ring.last_used);
    for _ in 0..count.min(free) {
        let slot = ring.next_slot();
        ring.offer(slot);
    }
    ring.publish()
}

/// A thread that sends every frame back.
fn reflect(host: &Host, stop: std::sync::Arc<std::sync::atomic::AtomicBool>) -> Result<std::thread::JoinHandle<()>> {
    let wire = Wire::open(&host.tap, false)?;
    Ok(std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let Ok(frame) = wire.receive() else { return };
            if wire.send(&frame).is_err() {
                return;
            }
        }
    }))
}

fn round_trips(host: &Host, settings: &Settings, rows: &mut BTreeMap<String, serde_json::Value>) -> Result<()> {
    let mut samples: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for _ in 0..settings.rounds {
        let bare = with_reflector(host, |count| bare_rr(host, count))?;
        let asleep = with_reflector(host, |count| vhost_rr(host, count, &[]))?;
        let polling = with_reflector(host, |count| vhost_rr(host, count, &["--poll-us", "100"]))?;
        let at = |times: &[f64], part: usize| times[times.len() * part / 100];
        for (name, times, part) in [
            ("rr_p50", &asleep, 50),
            ("rr_p99", &asleep, 99),
            ("rr_poll_p50", &polling, 50),
            ("rr_poll_p99", &polling, 99),
        ] {
            samples.entry(name).or_default().push((at(&bare, part), at(times, part)));
        }
    }
    for (name, pairs) in samples {
        let bare = median(pairs.iter().map(|pair| pair.0).collect());
        let device = median(pairs.iter().map(|pair| pair.1).collect());
        let ratio = device / bare;
        println!("{name:12} device {device:7.1} us  bare {bare:7.1} us  ratio {ratio:.2}");
        let row = json!({
            "unit": "us", "value": device, "baseline": "bare", "baseline_value": bare, "ratio": ratio,
            "runs": pairs.len(), "spread": spread(pairs.iter().map(|pair| pair.1)),
        });
        rows.insert(name.to_owned(), row);
    }
    Ok(())
}

fn with_reflector(host: &Host, measure: impl FnOnce(usize) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let thread = reflect(host, std::sync::Arc::clone(&stop))?;
    let mut times = measure(5_000)?;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    // One more frame wakes the reflector so that it sees the flag.
    let tap = bare_tap(host)?;
    let mut bytes = [vec![0; HEADER], peer::host::frame(64, 0)].concat();
    // SAFETY: the piece is a local buffer.
    unsafe { tap.write(&[vector(&mut bytes)]) }.context("write")?;
    thread.join().map_err(|_| anyhow::anyhow!("the reflector panicked"))?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn bare_rr(host: &Host, count: usize) -> Result<Vec<f64>> {
    let tap = bare_tap(host)?;
    pin(Pid::from_raw(0), DEVICE_CPU)?;
    let mut bytes = [vec![0; HEADER], peer::host::frame(64, 0)].concat();
    let mut buffer = vec![0; 2048];
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        // SAFETY: the piece is a local buffer.
        unsafe { tap.write(&[vector(&mut bytes)]) }.context("write")?;
        // SAFETY: as above.
        while unsafe { tap.read(&[vector(&mut buffer)]) }.is_err() {
            let ready = poll(&mut [PollFd::new(tap.poll_fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16))?;
            ensure!(ready == 1, "no frame came back");
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    pin(Pid::from_raw(0), FRONT_CPU)?;
    Ok(times)
}

fn vhost_rr(host: &Host, count: usize, more: &[&str]) -> Result<Vec<f64>> {
    let (_backend, mut peer) = device_with(host, GSO, more)?;
    peer.fill_rx(RX, 512, 1536)?;
    let frame = peer::host::frame(64, 0);
    let mut times = Vec::new();
    for _ in 0..count {
        peer.rings[RX].set_used_event(peer.rings[RX].last_used);
        let start = Instant::now();
        peer.send(&frame)?;
        while peer.rings[RX].used().is_none() {
            // SAFETY: the descriptor is the peer's and open.
            let call =
                unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&peer.rings[RX].call)) };
            let ready = poll(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000u16))?;
            ensure!(ready == 1, "no frame came back");
            peer.rings[RX].interrupts();
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
        while peer.rings[TX].used().is_some() {}
        peer.fill_rx(RX, 1, 1536)?;
    }
    Ok(times)
}

/// How long a guest is without network when its device dies and is started again.
fn restart(host: &Host, settings: &Settings, rows: &mut BTreeMap<String, serde_json::Value>) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..settings.rounds {
        let wire = Wire::open(&host.tap, false)?;
        let mut backend = host.backend(&[])?;
        let ram = std::sync::Arc::new(peer::ram::Ram::new(&[(0, peer::ram::Ram::SIZE)])?);
        let options = Options { features: GSO, ..Options::default() };
        let mut first = Peer::negotiate(&host.socket(), std::sync::Arc::clone(&ram), options)?;
        first.start_rings(&[0, 0])?;
        first.send(&peer::host::frame(64, 1))?;
        wire.receive()?;
        let start = Instant::now();
        backend.kill()?;
        let _successor = host.backend(&[])?;
        let mut second = Peer::negotiate(&host.socket(), ram, options)?;
        second.rings[TX].resume(1, 1);
        second.start_rings(&[0, 1])?;
        second.send(&peer::host::frame(64, 2))?;
        wire.receive()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let (runs, spread) = (times.len(), spread(times.iter().copied()));
    let value = median(times);
    println!("restart  {value:.1} ms from the kill to the first frame");
    rows.insert("restart".into(), alone("ms", value, runs, spread));
    Ok(())
}

/// A figure that has nothing to be compared with.
fn alone(unit: &str, value: f64, runs: usize, spread: f64) -> serde_json::Value {
    json!({
        "unit": unit, "value": value, "baseline": null, "baseline_value": null, "ratio": null,
        "runs": runs, "spread": spread,
    })
}

/// Resident memory of the device beside the guest's.
fn memory(host: &Host, rows: &mut BTreeMap<String, serde_json::Value>) -> Result<()> {
    let (backend, mut peer) = device(host, GSO)?;
    peer.fill_rx(RX, 64, 1536)?;
    peer.send(&peer::host::frame(64, 0))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", backend.child.id()))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find(|line| line.starts_with(name)).with_context(|| name.to_owned())?;
        Ok(line.split_whitespace().nth(1).context("value")?.parse()?)
    };
    let (own, files) = (field("RssAnon:")?, field("RssFile:")?);
    println!("rss      {own} kB own, {files} kB of the program's file");
    #[expect(clippy::cast_precision_loss, reason = "kilobytes")]
    let row = alone("kB", (own + files) as f64, 1, 0.0);
    rows.insert("rss".into(), row);
    Ok(())
}
