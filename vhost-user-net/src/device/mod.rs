// SPDX-License-Identifier: Apache-2.0
//! The device: what the front end set up, and the threads that carry it out.

mod error;
pub mod offload;
pub mod pair;
pub mod polling;
mod requests;
pub mod rx;
mod slot;
pub mod tx;
pub mod vring;
pub mod worker;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::dirty_log::DirtyLog;
use crate::memory::GuestMemory;
use crate::metrics::{Metrics, RingState};
use crate::port::Port;
use crate::protocol::features::{self, Abilities};
use crate::protocol::message::VringAddr;
use crate::ring::split::RingFeatures;
use crate::ring::{Layout, SplitRing};
use crate::trace::Tracer;
pub use error::RequestError;
use pair::{NewRing, Side};
use rx::RxQueue;
use tx::TxQueue;
use vring::{Enable, Vring};
use worker::{Worker, WorkerError};

/// What the operator chose for this device.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// Name of the tap, for reports.
    pub tap: String,
    /// Greatest ring size; a power of two.
    pub max_ring_size: u16,
    /// MAC address in the configuration space.
    pub mac: Option<[u8; 6]>,
    /// MTU in the configuration space.
    pub mtu: Option<u16>,
    /// How long a thread looks for work before it sleeps, at most; zero is never.
    pub poll_for: Duration,
    /// Whether the port has UDP segmentation offload.
    pub udp_segmentation: bool,
}

impl DeviceConfig {
    /// What is offered with this many queue pairs.
    pub fn abilities(&self, pairs: usize) -> Abilities {
        Abilities {
            multiqueue: pairs > 1,
            udp_segmentation: self.udp_segmentation,
            mac: self.mac.is_some(),
            mtu: self.mtu.is_some(),
        }
    }
}

/// What the front end told about one ring.
#[derive(Debug, Default)]
struct RingSetup {
    size: u16,
    addr: Option<VringAddr>,
    /// Where the ring begins; none while nobody has said. Dragonball says nothing when its device comes back.
    base: Option<u16>,
    /// Outer: a kick was set. Inner: its descriptor, or none for polling.
    kick: Option<Option<Arc<OwnedFd>>>,
    call: Option<Arc<OwnedFd>>,
    err: Option<Arc<OwnedFd>>,
    enabled: Option<bool>,
    running: bool,
}

impl RingSetup {
    fn layout(&self) -> Option<Layout> {
        let addr = self.addr.filter(|_| self.size > 0)?;
        Some(Layout { size: self.size, desc: addr.desc, avail: addr.avail, used: addr.used })
    }

    /// Guest address to log the used ring at (`VHOST_VRING_F_LOG`).
    fn log_addr(&self) -> Option<u64> {
        self.addr.filter(|addr| addr.flags & 1 != 0).map(|addr| addr.log)
    }
}

/// A vhost-user-net device with its queue pairs.
#[derive(Debug)]
pub struct Device {
    config: DeviceConfig,
    offered: u64,
    offered_protocol: u64,
    features: u64,
    protocol: u64,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    rings: Vec<RingSetup>,
    mtu_told: Option<u16>,
    ports: Vec<Arc<dyn Port>>,
    workers: Vec<Worker>,
    metrics: Arc<Metrics>,
    tracer: Arc<Tracer>,
}

impl Device {
    /// Starts a thread for every queue of the port.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn new(config: DeviceConfig, ports: Vec<Arc<dyn Port>>) -> Result<Self, WorkerError> {
        let abilities = config.abilities(ports.len());
        let spawn = |(index, port): (usize, &Arc<dyn Port>)| Worker::spawn(index, Arc::clone(port), config.poll_for);
        let workers = ports.iter().enumerate().map(spawn).collect::<Result<_, _>>()?;
        let rings = ports.len() * 2;
        let device = Self {
            offered: features::offered(abilities),
            offered_protocol: features::offered_protocol(abilities),
            features: 0,
            protocol: 0,
            memory: Arc::default(),
            log: None,
            rings: (0..rings).map(|_| RingSetup::default()).collect(),
            mtu_told: None,
            metrics: Arc::new(Metrics::new(&config.tap, rings)),
            tracer: Arc::default(),
            config,
            ports,
            workers,
        };
        device.report();
        Ok(device)
    }

    /// The counters and the state that are reported.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The switch for following frames.
    pub fn tracer(&self) -> &Arc<Tracer> {
        &self.tracer
    }

    /// Forgets the front end: stops the rings and lets go of its memory.
    pub fn disconnect(&mut self) {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| *ring = RingSetup::default());
        (self.features, self.protocol, self.mtu_told) = (0, 0, None);
        self.memory = Arc::default();
        self.log = None;
        self.report();
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn logging(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.has(features::LOG_ALL))
    }

    fn worker(&self, index: usize) -> Result<&Worker, WorkerError> {
        self.workers.get(index / 2).ok_or(WorkerError::Gone(index / 2))
    }

    fn enable_of(&self, ring: &RingSetup) -> Enable {
        match ring.enabled {
            Some(true) => Enable::On,
            Some(false) => Enable::Off,
            // Without protocol features there is no SET_VRING_ENABLE and rings start enabled.
            None if self.has(features::PROTOCOL_FEATURES) => Enable::Unknown,
            None => Enable::On,
        }
    }

    /// Starts every ring that has all it needs and does not run yet.
    fn start_ready(&mut self) -> Result<(), RequestError> {
        for index in 0..self.rings.len() {
            let ready = self.rings.get(index).is_some_and(|ring| {
                !ring.running && ring.kick.is_some() && ring.layout().is_some() && !self.memory.is_empty()
            });
            if ready && let Err(error) = self.start(index) {
                // The next try needs a new kick descriptor.
                if let Some(ring) = self.rings.get_mut(index) {
                    ring.kick = None;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<(), RequestError> {
        let Some(setup) = self.rings.get(index) else { return Ok(()) };
        let Some(layout) = setup.layout() else { return Ok(()) };
        let features = RingFeatures {
            event_idx: self.has(features::EVENT_IDX),
            indirect: self.has(features::INDIRECT_DESC),
            in_order: self.has(features::IN_ORDER),
        };
        let ring = SplitRing::new(Arc::clone(&self.memory), layout, setup.base, features)
            .map_err(|source| RequestError::Ring { index, source })?;
        let (next, done) = (ring.next_avail(), ring.unpublished());
        let base = setup.base.unwrap_or(next);
        if done > 0 {
            tracing::info!(index, done, "the ring goes on behind what a device that was killed had done");
        } else if next != base || next != ring.next_used() {
            tracing::info!(index, base, next, used = ring.next_used(), "the ring has buffers in flight");
        }
        let kick = setup.kick.clone().flatten();
        let ring = self.queue(index, ring, setup);
        self.worker(index)?
            .run(move |pair| pair.start(ring, kick))?
            .map_err(|source| RequestError::Kick { index, source })?;
        if let Some(setup) = self.rings.get_mut(index) {
            setup.running = true;
        }
        self.attach(index)?;
        tracing::info!(index, size = layout.size, "ring started");
        Ok(())
    }

    fn queue(&self, index: usize, ring: SplitRing, setup: &RingSetup) -> NewRing {
        let counters = self.metrics.rings.get(index).map(Arc::clone).unwrap_or_default();
        let mut vring = Vring::new(ring, self.enable_of(setup), counters, Arc::clone(&self.tracer));
        vring.ring.set_log(self.logging(), setup.log_addr());
        vring.call.clone_from(&setup.call);
        vring.err.clone_from(&setup.err);
        let header_len = features::net_header_len(self.features);
        match Side::of(index) {
            Side::Rx => NewRing::Rx(RxQueue::new(vring, header_len, self.has(features::MRG_RXBUF))),
            Side::Tx => NewRing::Tx(TxQueue::new(vring, self.features, header_len)),
        }
    }

    /// Stops a ring and remembers where it has to go on.
    fn stop(&mut self, index: usize) -> Result<u16, RequestError> {
        let side = Side::of(index);
        let running = self.rings.get(index).is_some_and(|ring| ring.running);
        if running {
            let base = self.worker(index)?.run(move |pair| pair.stop(side))?;
            if let Some(ring) = self.rings.get_mut(index) {
                ring.base = Some(base);
                ring.running = false;
            }
            self.attach(index)?;
            tracing::info!(index, base, "ring stopped");
        }
        let Some(ring) = self.rings.get_mut(index) else { return Ok(0) };
        (ring.kick, ring.call, ring.err) = (None, None, None);
        Ok(ring.base.unwrap_or(0))
    }

    fn stop_all(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.stop(index) {
                tracing::error!(index, error = %crate::chain(&error), "cannot stop a ring");
            }
        }
    }

    /// Joins a queue to the port while its receive ring works, so that flows are steered to queues that are read.
    fn attach(&self, index: usize) -> Result<(), RequestError> {
        if Side::of(index) == Side::Tx {
            return Ok(());
        }
        let active = self.rings.get(index).is_some_and(|ring| ring.running && self.enable_of(ring) != Enable::Off);
        let Some(port) = self.ports.get(index / 2) else { return Ok(()) };
        // The port needs one queue in any case: it keeps its format and its frames across a reconnect.
        port.set_active(active || index == 0).map_err(|source| RequestError::Port { what: "TUNSETQUEUE", source })
    }

    /// Hands a change to the ring, if it runs.
    fn change(&self, index: usize, change: impl FnOnce(&mut Vring) + Send + 'static) -> Result<(), RequestError> {
        if !self.rings.get(index).is_some_and(|ring| ring.running) {
            return Ok(());
        }
        let side = Side::of(index);
        self.worker(index)?.run(move |pair| pair.vring(side).map(change))?;
        Ok(())
    }

    /// Puts a new memory table in force. A running ring that is not in it any more is stopped.
    fn use_memory(&mut self, memory: GuestMemory) -> Result<(), RequestError> {
        let memory = Arc::new(memory);
        self.memory = Arc::clone(&memory);
        for index in 0..self.rings.len() {
            if self.rings.get(index).is_some_and(|ring| ring.running)
                && let Err(error) = self.relocate(index)
            {
                tracing::warn!(index, error = %crate::chain(&error), "the ring is not in the new memory table and is stopped");
                self.stop(index)?;
            }
        }
        Ok(())
    }

    /// Tells a running ring its memory table and addresses anew.
    fn relocate(&self, index: usize) -> Result<(), RequestError> {
        let Some(layout) = self.rings.get(index).and_then(RingSetup::layout) else { return Ok(()) };
        let (side, memory) = (Side::of(index), Arc::clone(&self.memory));
        self.worker(index)?
            .run(move |pair| pair.vring(side).map_or(Ok(()), |vring| vring.ring.relocate(memory, layout)))?
            .map_err(|source| RequestError::Ring { index, source })
    }

    /// Tells every running ring whether and where to log its writes.
    fn use_log(&self) -> Result<(), RequestError> {
        for (index, ring) in self.rings.iter().enumerate() {
            let (log, addr) = (self.logging(), ring.log_addr());
            self.change(index, move |vring| vring.ring.set_log(log, addr))?;
        }
        Ok(())
    }

    /// Brings the reported state up to date.
    fn report(&self) {
        let state = |ring: &RingSetup| RingState { running: ring.running, enabled: ring.enabled, size: ring.size };
        let rings = self.rings.iter().map(state).collect();
        self.metrics.update(|state| {
            state.features = features::names(self.features);
            state.protocol_features = features::protocol::names(self.protocol);
            state.memory_regions = self.memory.len();
            state.memory_bytes = self.memory.bytes();
            state.logging = self.logging().is_some();
            state.log_missed = self.log.as_ref().map_or(0, |log| log.missed());
            state.mtu = self.mtu_told;
            state.rings = rings;
        });
    }
}
