// SPDX-License-Identifier: Apache-2.0
//! Cloud Hypervisor's front end, step by step: its order of messages, the features it asks for, pause and resume, a
//! guest that resets its device, a backend that dies, live migration with a log that is exchanged every round.
//!
//! The steps are those of its `virtio-devices` crate, which uses the `vhost` crate as this test does; there is no
//! package of the VMM itself.

mod peer;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use peer::exchange::both_ways;
use peer::host::{Host, Wire, eventually, frame, run};
use peer::ram::Ram;
use peer::ring::DriverRing;
use peer::{Options, Peer, RX, TX};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use weft_vhost::protocol::features as f;

const PAGE: u64 = 4096;
/// What Cloud Hypervisor asks a network backend for; bits 10, 14 are UFO, 36 ORDER_PLATFORM, 38 NOTIFICATION_DATA.
const ASKED: u64 = f::CSUM
    | f::GUEST_CSUM
    | f::GUEST_TSO4
    | f::GUEST_TSO6
    | f::GUEST_ECN
    | f::HOST_TSO4
    | f::HOST_TSO6
    | f::HOST_ECN
    | 1 << 10
    | 1 << 14
    | f::MRG_RXBUF
    | f::CTRL_VQ
    | f::GUEST_ANNOUNCE
    | f::MAC
    | f::MTU
    | f::MQ
    | f::INDIRECT_DESC
    | f::EVENT_IDX
    | f::VERSION_1
    | f::IN_ORDER
    | 1 << 36
    | 1 << 38
    | f::LOG_ALL
    | f::PROTOCOL_FEATURES;

fn asked_protocol() -> Protocol {
    Protocol::MQ
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::REPLY_ACK
        | Protocol::INFLIGHT_SHMFD
        | Protocol::LOG_SHMFD
        | Protocol::DEVICE_STATE
        | Protocol::CONFIG
}

/// The VMM's device, made before the guest runs: what the backend can do, how many queues it has.
fn create(socket: &Path, ram: &Arc<Ram>, pairs: usize) -> Result<Peer> {
    let mut front = peer::connect(socket, 2 * pairs as u64)?;
    front.set_owner()?;
    let offered = front.get_features()? & ASKED;
    let protocol = front.get_protocol_features()? & asked_protocol();
    front.set_protocol_features(protocol)?;
    ensure!(protocol.contains(Protocol::REPLY_ACK | Protocol::MQ), "{protocol:?}");
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    ensure!(front.get_queue_num()? >= 2 * pairs as u64, "GET_QUEUE_NUM counts rings for Cloud Hypervisor");
    // The guest takes what its VMM has; the MAC is the VMM's own, LOG_ALL is not a driver's.
    let features = offered & !(f::MAC | f::LOG_ALL);
    let options = Options { features, protocol: protocol.bits(), ring_size: 256, pairs };
    Ok(Peer { front, ram: Arc::clone(ram), rings: options.rings(ram)?, options })
}

/// The driver is up: features, memory, all sizes, then ring after ring the addresses before the base, all enabled last.
fn activate(peer: &mut Peer, bases: &[u16]) -> Result<()> {
    peer.front.set_features(peer.options.features)?;
    peer.front.set_mem_table(&peer.ram.regions())?;
    for (index, ring) in peer.rings.iter().enumerate() {
        peer.front.set_vring_num(index, ring.size())?;
    }
    for (index, (ring, base)) in peer.rings.iter().zip(bases).enumerate() {
        peer.front.set_vring_addr(index, &ring.config(None))?;
        peer.front.set_vring_base(index, *base)?;
        peer.front.set_vring_call(index, &ring.call)?;
        peer.front.set_vring_kick(index, &ring.kick)?;
    }
    enable(peer, true)
}

fn enable(peer: &mut Peer, on: bool) -> Result<()> {
    (0..peer.rings.len()).try_for_each(|index| Ok(peer.front.set_vring_enable(index, on)?))
}

/// The guest resets its device.
fn reset(peer: &mut Peer) -> Result<()> {
    for index in 0..peer.rings.len() {
        peer.front.set_vring_enable(index, false)?;
        peer.front.get_vring_base(index)?;
    }
    Ok(())
}

/// Another backend, with what was agreed with the one before: under IN_ORDER the rings go on at their used indices, and
/// are kicked.
fn resume(socket: &Path, old: &Peer, ram: &Arc<Ram>) -> Result<Peer> {
    let mut front = peer::connect(socket, old.rings.len() as u64)?;
    front.set_owner()?;
    front.get_features()?;
    front.set_protocol_features(Protocol::from_bits_retain(old.options.protocol))?;
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let mut peer = Peer { front, ram: Arc::clone(ram), rings: old.options.rings(ram)?, options: old.options };
    for (ring, before) in peer.rings.iter_mut().zip(&old.rings) {
        ring.resume(before.next_avail, before.last_used);
    }
    let bases: Vec<_> = peer.rings.iter().map(DriverRing::used_index).collect();
    activate(&mut peer, &bases)?;
    for ring in &peer.rings {
        ring.kick.write(1)?;
    }
    Ok(peer)
}

fn guest_memory() -> Result<Arc<Ram>> {
    Ok(Arc::new(Ram::new(&[(0, Ram::SIZE)])?))
}

#[test]
fn the_vmm_gets_the_features_its_control_queue_and_its_migration_need() -> Result<()> {
    let host = Host::new(2)?;
    let backend = host.backend(&["--queues", "2", "--mac", "52:54:00:00:00:07", "--mtu", "1400"])?;
    let wire = Wire::open(&host.tap, false)?;
    let ram = guest_memory()?;
    let mut peer = create(&host.socket(), &ram, 2)?;
    // The VMM serves the control queue itself, but only if the backend has the bit.
    let needed = f::CTRL_VQ | f::GUEST_ANNOUNCE | f::MQ | f::IN_ORDER | f::EVENT_IDX | f::MRG_RXBUF | f::MTU;
    ensure!(peer.options.features & needed == needed, "agreed only {:#x}", peer.options.features);
    let protocol = Protocol::from_bits_retain(peer.options.protocol);
    let needed = Protocol::LOG_SHMFD | Protocol::CONFIG | Protocol::CONFIGURE_MEM_SLOTS;
    ensure!(protocol.contains(needed), "agreed only {protocol:?}");
    let (_, space) = peer.front.get_config(0, 12, VhostUserConfigFlags::WRITABLE, &[0; 12])?;
    ensure!(space[..6] == [0x52, 0x54, 0, 0, 0, 7] && space[8..10] == [2, 0], "configuration space {space:x?}");
    ensure!(space[10..12] == 1400u16.to_le_bytes(), "configuration space {space:x?}");
    activate(&mut peer, &[0; 4])?;
    peer.fill_rx(RX, 64, 2048)?;
    peer.fill_rx(RX + 2, 64, 2048)?;
    let sent = frame(300, 1);
    peer.send(&sent)?;
    ensure!(wire.receive()? == sent, "another frame on the wire");
    wire.send(&sent)?;
    eventually("the frame on either pair", || Ok(peer.rings[RX].used().or_else(|| peer.rings[RX + 2].used())))?;
    ensure!(backend.metrics()?["last_error"].is_null(), "{}", backend.metrics()?);
    Ok(())
}

#[test]
fn a_paused_guest_resumes_and_one_that_resets_its_device_starts_over() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let ram = guest_memory()?;
    let mut peer = create(&host.socket(), &ram, 1)?;
    for turn in 0..3 {
        activate(&mut peer, &[0, 0])?;
        peer.fill_rx(RX, 64, 2048)?;
        both_ways(&mut peer, &wire, turn)?;
        enable(&mut peer, false)?;
        enable(&mut peer, true)?;
        both_ways(&mut peer, &wire, turn + 10)?;
        reset(&mut peer)?;
        // A driver that starts over zeroes its rings; another guest may want less.
        peer.options.features &= !(f::EVENT_IDX | f::MRG_RXBUF << turn);
        peer.rings = peer.options.rings(&ram)?;
        for ring in &peer.rings {
            ring.set_avail_index(0);
            ring.set_used_index(0);
        }
    }
    ensure!(backend.metrics()?["last_error"].is_null(), "{}", backend.metrics()?);
    Ok(())
}

#[test]
fn a_backend_that_dies_costs_no_frame_that_the_guest_sent() -> Result<()> {
    let host = Host::new(1)?;
    let mut backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let ram = guest_memory()?;
    let mut peer = create(&host.socket(), &ram, 1)?;
    activate(&mut peer, &[0, 0])?;
    peer.fill_rx(RX, 128, 2048)?;
    for turn in 0..4u8 {
        both_ways(&mut peer, &wire, turn)?;
        backend.kill()?;
        // The guest knows nothing and goes on sending.
        let sent: Vec<_> = (0..20).map(|seed| frame(100 + usize::from(seed), seed ^ turn << 5)).collect();
        sent.iter().try_for_each(|frame| peer.send(frame))?;
        backend = host.backend(&[])?;
        peer = resume(&host.socket(), &peer, &ram)?;
        for (number, frame) in sent.iter().enumerate() {
            ensure!(wire.receive()? == *frame, "frame {number} of turn {turn}");
            peer.rings[TX].wait_used()?;
        }
        both_ways(&mut peer, &wire, turn + 100)?;
    }
    Ok(())
}

/// A log as Cloud Hypervisor makes it: as many bytes as there are bits for, sealed.
fn new_log() -> Result<OwnedFd> {
    let log = memfd_create("dirty-log", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&log, log_bytes() as i64)?;
    fcntl(&log, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL))?;
    Ok(log)
}

fn log_bytes() -> u64 {
    (Ram::SIZE as u64 - 1) / (PAGE * 8) + 1
}

fn set_log(peer: &Peer, log: &OwnedFd) -> Result<()> {
    let region = VhostUserDirtyLogRegion { mmap_size: log_bytes(), mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    Ok(peer.front.set_log_base(0, Some(region))?)
}

/// The used rings are logged, or no longer.
fn log_rings(peer: &Peer, on: bool) -> Result<()> {
    for (index, ring) in peer.rings.iter().enumerate() {
        peer.front.set_vring_addr(index, &ring.config(on.then(|| ring.used_addr())))?;
    }
    Ok(())
}

fn pages(log: &OwnedFd) -> Result<Vec<u64>> {
    let mut bytes = vec![0; log_bytes() as usize];
    nix::sys::uio::pread(log, &mut bytes, 0)?;
    let marked = |page: &u64| bytes[(page / 8) as usize] & 1 << (page % 8) != 0;
    Ok((0..Ram::SIZE as u64 / PAGE).filter(marked).collect())
}

/// Copies pages to the target, as the VMM does with those it finds marked.
fn copy(from: &Ram, to: &Ram, pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        to.write(page * PAGE, &from.read(page * PAGE, PAGE as usize));
    }
}

/// Pages the driver writes; of these the VMM learns from KVM.
fn driver_pages(peer: &Peer) -> Vec<u64> {
    let span = |from: u64, len: u64| from / PAGE..(from + len).div_ceil(PAGE);
    let tables = peer.rings.iter().flat_map(|ring| span(ring.desc_addr(), ring.used_addr() - ring.desc_addr()));
    tables.chain(span(peer.ram.buffers(TX), 256 * PAGE)).collect()
}

#[test]
fn guest_memory_is_the_same_after_a_migration_under_traffic() -> Result<()> {
    let host = Host::new(1)?;
    let source_backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let (source, target) = (guest_memory()?, guest_memory()?);
    let mut peer = create(&host.socket(), &source, 1)?;
    activate(&mut peer, &[0, 0])?;
    peer.fill_rx(RX, 200, 2048)?;
    both_ways(&mut peer, &wire, 0)?;

    let mut log = new_log()?;
    set_log(&peer, &log)?;
    peer.front.set_features(peer.options.features | f::LOG_ALL)?;
    log_rings(&peer, true)?;
    copy(&source, &target, 0..Ram::SIZE as u64 / PAGE);
    let mut found = 0;
    for round in 1..12u8 {
        for _ in 0..10 {
            both_ways(&mut peer, &wire, round)?;
        }
        // The last round is with the guest stopped.
        if round == 11 {
            enable(&mut peer, false)?;
        }
        let next = new_log()?;
        set_log(&peer, &next)?;
        let marked = pages(&std::mem::replace(&mut log, next))?;
        ensure!(!marked.is_empty(), "nothing marked in round {round}");
        found += marked.len();
        copy(&source, &target, marked);
    }
    ensure!(found > 100, "only {found} pages in all rounds");
    copy(&source, &target, driver_pages(&peer));
    let differs = |page: &u64| source.read(page * PAGE, 4096) != target.read(page * PAGE, 4096);
    let different: Vec<_> = (0..Ram::SIZE as u64 / PAGE).filter(differs).collect();
    ensure!(different.is_empty(), "pages that differ: {different:?}");

    run("ip tuntap add dev vm1 mode tap vnet_hdr")?;
    run("ip link set dev vm1 mtu 1500 up")?;
    let socket = host.path("target.sock");
    let text = socket.to_string_lossy().into_owned();
    let target_backend = host.spawn_as("target", &["--socket", &text, "--tap", "vm1"], &[])?;
    let target_wire = Wire::open("vm1", false)?;
    let mut moved = resume(&socket, &peer, &target)?;
    for seed in 0..50 {
        both_ways(&mut moved, &target_wire, seed)?;
    }
    for backend in [&source_backend, &target_backend] {
        let metrics = backend.metrics()?;
        ensure!(metrics["last_error"].is_null() && metrics["log_missed"] == 0, "{metrics}");
    }
    Ok(())
}

#[test]
fn a_migration_that_is_given_up_leaves_the_guest_where_it_was() -> Result<()> {
    let host = Host::new(1)?;
    let backend = host.backend(&[])?;
    let wire = Wire::open(&host.tap, false)?;
    let ram = guest_memory()?;
    let mut peer = create(&host.socket(), &ram, 1)?;
    activate(&mut peer, &[0, 0])?;
    peer.fill_rx(RX, 100, 2048)?;
    for turn in 0..3 {
        let log = new_log()?;
        set_log(&peer, &log)?;
        peer.front.set_features(peer.options.features | f::LOG_ALL)?;
        log_rings(&peer, true)?;
        both_ways(&mut peer, &wire, turn)?;
        ensure!(!pages(&log)?.is_empty(), "nothing marked");
        // The rings first, then the feature: for a moment one is on without the other.
        log_rings(&peer, false)?;
        both_ways(&mut peer, &wire, turn)?;
        peer.front.set_features(peer.options.features)?;
        let marked = pages(&log)?;
        for seed in 0..20 {
            both_ways(&mut peer, &wire, seed)?;
        }
        ensure!(pages(&log)? == marked, "pages were marked after the log had ended");
        ensure!(backend.metrics()?["logging"] == false, "logging");
    }
    Ok(())
}
