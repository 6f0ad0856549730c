// SPDX-License-Identifier: Apache-2.0
//! Counters of the rings and the state of the device, as the control socket reports them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use crate::protocol::features;

/// Buckets of batch sizes: 1, up to 2, up to 4, ... up to 256.
pub const BATCH_BUCKETS: usize = 9;

/// Why a frame was not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(usize)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    Short,
    /// Longer than the port or the guest's buffers take.
    TooLong,
    /// The header asks for an offload that was not negotiated.
    NotNegotiated,
    /// The kernel found the header or the frame malformed.
    Malformed,
    /// The interface is down or the queue detached.
    LinkDown,
    /// The kernel had no memory for the frame.
    NoMemory,
    /// The ring is disabled.
    Disabled,
    /// Another error of the port.
    Port,
    /// The header has a checksum written elsewhere than in the frame's own transport header.
    BadChecksumPlace,
    /// The header asks for segments of another protocol or family than the frame's, or for too many.
    BadSegmentation,
}

/// Number of [`DropReason`] reasons.
pub const DROPS: usize = 10;
const DROP_NAMES: [&str; DROPS] = [
    "short",
    "too_long",
    "not_negotiated",
    "malformed",
    "link_down",
    "no_memory",
    "disabled",
    "port",
    "bad_checksum_place",
    "bad_segmentation",
];

/// Counters of one ring. One thread writes them, any thread reads them.
#[derive(Debug, Default)]
pub struct RingCounters {
    /// Frames passed on.
    pub frames: AtomicU64,
    /// Bytes of those frames, headers of the device not counted.
    pub bytes: AtomicU64,
    /// Kicks received.
    pub kicks: AtomicU64,
    /// Interrupts sent.
    pub interrupts: AtomicU64,
    /// Batches published.
    pub batches: AtomicU64,
    /// Times the guest had no buffers while there were frames for it.
    pub starved: AtomicU64,
    /// Times the port was full.
    pub port_full: AtomicU64,
    /// Violations that stopped the ring.
    pub violations: AtomicU64,
    broken: AtomicBool,
    batch_sizes: [AtomicU64; BATCH_BUCKETS],
    drops: [AtomicU64; DROPS],
}

/// Adds to a counter that only this thread writes: no locked instruction is needed.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Counts one event; only this thread writes the counter.
#[inline]
pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

impl RingCounters {
    /// Counts a dropped frame.
    pub fn count_drop(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason as usize) {
            count(counter);
        }
    }

    /// Counts a batch of frames that was published.
    pub fn batch(&self, frames: u64, bytes: u64) {
        add(&self.frames, frames);
        add(&self.bytes, bytes);
        if frames == 0 {
            return;
        }
        count(&self.batches);
        let bucket = (frames.next_power_of_two().trailing_zeros() as usize).min(BATCH_BUCKETS - 1);
        if let Some(counter) = self.batch_sizes.get(bucket) {
            count(counter);
        }
    }

    /// Notes whether the ring was stopped for what its guest did.
    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }

    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// What the session knows of one ring.
#[derive(Debug, Clone, Copy, Default)]
pub struct RingState {
    /// Whether the front end started the ring.
    pub running: bool,
    /// Whether the front end enabled the ring; none while it has not said.
    pub enabled: Option<bool>,
    /// Entries of the ring.
    pub size: u16,
}

/// What the session knows of the device.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DeviceState {
    /// Whether a front end is connected.
    pub connected: bool,
    /// Connections so far.
    pub connections: u64,
    /// Virtio features in force.
    pub features: Vec<&'static str>,
    /// Protocol features in force.
    pub protocol_features: Vec<&'static str>,
    /// Regions of guest memory.
    pub memory_regions: usize,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Whether writes are logged for a migration.
    pub logging: bool,
    /// Pages written that the log was too small for.
    pub log_missed: u64,
    /// MTU the front end told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The last request that failed, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The rings.
    #[serde(skip)]
    pub rings: Vec<RingState>,
}

/// Everything the control socket reports.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    tap: String,
    /// Counters per ring; even indices are receive rings.
    pub rings: Vec<std::sync::Arc<RingCounters>>,
    state: Mutex<DeviceState>,
}

impl Metrics {
    /// Counters for this number of rings.
    pub fn new(tap: &str, rings: usize) -> Self {
        let state = Mutex::default();
        let rings = (0..rings).map(|_| std::sync::Arc::default()).collect();
        Self { started: Instant::now(), tap: tap.to_owned(), rings, state }
    }

    /// Changes the state that is reported.
    pub fn update(&self, change: impl FnOnce(&mut DeviceState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The whole report as JSON.
    pub fn report(&self) -> serde_json::Value {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let rings: Vec<_> = self.rings.iter().enumerate().map(|(index, ring)| self.ring(index, ring, &state)).collect();
        let mut report = serde_json::to_value(&state).unwrap_or_default();
        if let Some(map) = report.as_object_mut() {
            map.insert("tap".into(), self.tap.clone().into());
            map.insert("pid".into(), std::process::id().into());
            map.insert("uptime_seconds".into(), self.started.elapsed().as_secs().into());
            map.insert("rings".into(), rings.into());
        }
        report
    }

    fn ring(&self, index: usize, counters: &RingCounters, state: &DeviceState) -> serde_json::Value {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let drops: serde_json::Map<_, _> = DROP_NAMES
            .iter()
            .zip(&counters.drops)
            .map(|(name, counter)| ((*name).to_owned(), get(counter).into()))
            .collect();
        let mut report = serde_json::json!({
            "index": index,
            "direction": if index.is_multiple_of(2) { "rx" } else { "tx" },
            "frames": get(&counters.frames),
            "bytes": get(&counters.bytes),
            "kicks": get(&counters.kicks),
            "interrupts": get(&counters.interrupts),
            "batches": get(&counters.batches),
            "batch_sizes": counters.batch_sizes.iter().map(get).collect::<Vec<_>>(),
            "starved": get(&counters.starved),
            "port_full": get(&counters.port_full),
            "violations": get(&counters.violations),
            "drops": drops,
        });
        if let (Some(map), Some(known)) = (report.as_object_mut(), state.rings.get(index)) {
            let state = match (known.running, counters.broken.load(Ordering::Relaxed)) {
                (false, _) => "stopped",
                (true, true) => "broken",
                (true, false) => "running",
            };
            map.insert("state".into(), state.into());
            map.insert("size".into(), known.size.into());
            map.insert("enabled".into(), known.enabled.into());
        }
        report
    }
}

/// What `--print-capabilities` says: the form of QEMU's vhost-user back-end conventions, and the feature names.
pub fn capabilities(virtio: u64, protocol: u64) -> serde_json::Value {
    serde_json::json!({
        "type": "net",
        "features": [],
        "virtio-features": features::names(virtio),
        "protocol-features": features::protocol::names(protocol),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fall_into_their_bucket() {
        let counters = RingCounters::default();
        for frames in [1, 2, 3, 4, 256, 300] {
            counters.batch(frames, 10);
        }
        let sizes: Vec<_> = counters.batch_sizes.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        assert_eq!(sizes, [1, 1, 2, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn every_drop_reason_is_reported_by_name() {
        let metrics = Metrics::new("tap0", 2);
        metrics.rings[1].count_drop(DropReason::Port);
        let report = metrics.report();
        assert_eq!(report["rings"][1]["drops"]["port"], 1);
        assert_eq!(report["rings"][1]["direction"], "tx");
        assert_eq!(report["rings"][0]["drops"].as_object().expect("drops").len(), DROPS);
    }
}
