// SPDX-License-Identifier: Apache-2.0
//! Metrics in the OpenMetrics text format, read from where the numbers live when they are asked for.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode},
    metrics::histogram::{Histogram, exponential_buckets},
    registry::{Registry, Unit},
};
use weft_abi::{COUNTERS, Counter, DROP_REASONS, DropReason};
use weft_api::VmReport;

use crate::model::RefusedKind;

use super::{
    Shared,
    encode::{Encoded, Labels, counter, counters, gauge, gauges},
    vms,
};
use crate::guest;

/// Numbers of the engine's work.
#[derive(Debug)]
pub struct Work {
    plan: Histogram,
    apply: Histogram,
    lag: Histogram,
    pass: Histogram,
    /// When a change was last heard of, in milliseconds since 1970; 0: none was.
    heard: AtomicU64,
    failures: AtomicU64,
    writes: AtomicU64,
    mended: [AtomicU64; Mended::ALL.len()],
    /// Answers to each of [`Probe::ALL`]: 200, and 503.
    probes: [[AtomicU64; 2]; Probe::ALL.len()],
    /// What the services of guests count.
    pub guests: Arc<guest::Counters>,
}

/// What others changed on the node and the agent put back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mended {
    /// The node's own devices and their addresses.
    Devices,
    /// The host's routes.
    Routes,
    /// Programs on devices.
    Programs,
    /// Settings of workloads' ports.
    Ports,
}

impl Mended {
    const ALL: [Self; 4] = [Self::Devices, Self::Routes, Self::Programs, Self::Ports];

    /// Name in the metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Routes => "routes",
            Self::Programs => "programs",
            Self::Ports => "ports",
        }
    }
}

/// What load balancers ask of the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

impl Probe {
    const ALL: [Self; 2] = [Self::Healthz, Self::Livez];
}

impl Default for Work {
    fn default() -> Self {
        let buckets = || exponential_buckets(0.000_1, 4.0, 9);
        let [plan, apply, lag] = [(); 3].map(|()| Histogram::new(buckets()));
        Self {
            plan,
            apply,
            lag,
            // kube-proxy's: a millisecond to half a minute.
            pass: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            heard: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            mended: Default::default(),
            probes: Default::default(),
            guests: Arc::default(),
        }
    }
}

impl Work {
    /// A plan took this long.
    pub fn planned(&self, took: Duration) {
        self.plan.observe(took.as_secs_f64());
    }

    /// An apply that made so many changes took this long.
    pub fn applied(&self, took: Duration, writes: usize) {
        self.apply.observe(took.as_secs_f64());
        self.writes.fetch_add(writes as u64, Ordering::Relaxed);
    }

    /// So long after the source's first word of it a change stood in the maps.
    pub fn lagged(&self, lag: Duration) {
        self.lag.observe(lag.as_secs_f64());
    }

    /// A whole pass took this long, whatever became of it.
    pub fn passed(&self, took: Duration) {
        self.pass.observe(took.as_secs_f64());
    }

    /// How long passes take.
    pub(super) const fn passes(&self) -> &Histogram {
        &self.pass
    }

    /// The source has told of a change.
    pub fn heard(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.heard.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When it last did, since 1970; none: it never has.
    pub(super) fn last_heard(&self) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Relaxed);
        (heard != 0).then(|| Duration::from_millis(heard))
    }

    /// How often somebody was answered 200, and 503.
    pub(super) fn answers(&self, probe: Probe) -> [u64; 2] {
        let counts = self.probes.get(probe as usize);
        counts.map(|counts| counts.each_ref().map(|count| count.load(Ordering::Relaxed))).unwrap_or_default()
    }

    /// So many changes put something back that others had changed.
    pub fn mended(&self, what: Mended, changes: usize) {
        if let Some(counter) = self.mended.get(what as usize) {
            counter.fetch_add(changes as u64, Ordering::Relaxed);
        }
    }

    /// Somebody asked, and was answered 200 or 503.
    pub fn probed(&self, probe: Probe, good: bool) {
        if let Some([ok, unavailable]) = self.probes.get(probe as usize) {
            (if good { ok } else { unavailable }).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An apply failed.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// All metrics as text. Devices of vhost-user ports are asked for theirs, which takes two seconds at most.
///
/// # Errors
/// Never for a string; the library's signature says so.
pub async fn text(shared: std::sync::Arc<Shared>) -> Result<String, fmt::Error> {
    let vms = shared.devices.reports().await;
    let mut registry = Registry::with_prefix("weft");
    registry.register("plan", "Time to plan the dataplane", shared.work.plan.clone());
    registry.register("apply", "Time to apply a plan to the maps", shared.work.apply.clone());
    let lag = "Time from the first change of a turn being read to its last map write";
    registry.register_with_unit("lag", lag, Unit::Seconds, shared.work.lag.clone());
    registry.register_collector(Box::new(Live { shared, vms }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Numbers that are read when they are asked for.
#[derive(Debug)]
struct Live {
    shared: std::sync::Arc<Shared>,
    vms: Vec<VmReport>,
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        self.encode_state(&mut encoder)?;
        self.encode_dataplane(&mut encoder)?;
        vms::encode(&mut encoder, &self.vms)
    }
}

impl Live {
    fn encode_state(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let (view, problems) = (self.shared.view(), self.shared.problems().len());
        let planner = self.shared.planner();
        let synced = view.source.as_ref().is_some_and(|source| source.synced);
        let answers = view.source.as_ref().is_some_and(|source| source.error.is_none());
        gauge(encoder, "ready", "Whether CNI requests are served", i64::from(view.not_ready.is_none()))?;
        gauge(encoder, "source_synced", "Whether every kind of object was listed once", i64::from(synced))?;
        gauge(encoder, "source_answers", "Whether the object source answers now", i64::from(answers))?;
        let remembered = view.source.as_ref().is_some_and(|source| source.remembered_since.is_some());
        let help = "Whether the agent runs on the state that an earlier run has left";
        gauge(encoder, "source_remembered", help, i64::from(remembered))?;
        gauge(encoder, "endpoints", "Attachments of this node", count(view.attachments.len()))?;
        gauge(encoder, "services", "Service frontends programmed", count(planner.frontends()))?;
        gauge(encoder, "policies", "NetworkPolicies compiled", count(planner.policy_count()))?;
        gauge(encoder, "problems", "Problems that `weft status` shows", count(problems))?;
        let refused = |kind| {
            count(
                planner
                    .desired()
                    .refusals
                    .iter()
                    .filter(|refusal| refusal.kind == kind)
                    .map(|r| &r.key)
                    .collect::<BTreeSet<_>>()
                    .len(),
            )
        };
        let unfit = "NetworkPolicies that do not fit: the workloads that they select are closed";
        gauge(encoder, "policies_not_fitting", unfit, refused(RefusedKind::Policy))?;
        let unknown = "Namespaces whose pods do not fit: no policy of this node knows them";
        gauge(encoder, "namespaces_not_fitting", unknown, refused(RefusedKind::Namespace))?;
        gauge(
            encoder,
            "workloads_closed",
            "Workloads closed because their policies do not fit",
            count(planner.desired().closed.len()),
        )?;
        gauge(
            encoder,
            "services_refused",
            "Services that do not fit: new flows are refused",
            refused(RefusedKind::Service),
        )?;
        gauge(
            encoder,
            "broken_passes",
            "Passes in a row that broke off; 0: the last one worked",
            view.broken_passes.into(),
        )?;
        let pools = view.pod_cidrs.iter().zip(&view.addresses_used);
        let pools = pools.map(|(cidr, (used, all))| (label("pool", cidr), *used, *all));
        let (used, all): (Vec<_>, Vec<_>) = pools.map(|(pool, used, all)| ((pool.clone(), used), (pool, all))).unzip();
        gauges(encoder, "addresses_used", "Addresses given out", None, used)?;
        gauges(encoder, "addresses", "Addresses in all", None, all)?;
        let mended = Mended::ALL.iter().zip(&self.shared.work.mended);
        let mended = mended.map(|(what, count)| (label("what", what.name()), count.load(Ordering::Relaxed)));
        counters(encoder, "repairs", "Changes that put back what others had changed on the node", mended)?;
        let guests = &self.shared.work.guests;
        let (failures, limited) = (guests.failures.load(Ordering::Relaxed), guests.limited.load(Ordering::Relaxed));
        counter(
            encoder,
            "guest_failures",
            "Services of guests (DHCP, RA) that failed and were started again",
            failures,
        )?;
        counter(encoder, "guest_limited", "Frames of guests to the agent that waited: too many", limited)?;
        counter(encoder, "apply_failures", "Passes that broke off", self.shared.work.failures.load(Ordering::Relaxed))?;
        counter(
            encoder,
            "map_writes",
            "Map entries written and removed",
            self.shared.work.writes.load(Ordering::Relaxed),
        )
    }

    /// Maps that cannot be read are left out: the rest is still worth something.
    fn encode_dataplane(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let Some(maps) = self.shared.maps() else { return Ok(()) };
        let memory = maps.memory().unwrap_or_default();
        let bytes = memory.iter().map(|map| (label("map", map.map), map.bytes));
        let sizes = memory.iter().map(|map| (label("map", map.map), u64::from(map.max_entries)));
        gauges(encoder, "map_memory", "Kernel memory of a map", Some(Unit::Bytes), bytes)?;
        gauges(encoder, "map_max_entries", "Entries a map can hold", None, sizes)?;
        let tallies = DropReason::ALL.iter().zip(DROP_REASONS);
        let tallies =
            tallies.filter_map(|(reason, (name, _))| Some((label("reason", name), maps.dropped(*reason).ok()?)));
        let (packets, bytes): (Vec<_>, Vec<_>) =
            tallies.map(|(reason, tally)| ((reason.clone(), tally.packets), (reason, tally.bytes))).unzip();
        counters(encoder, "drops", "Packets dropped", packets)?;
        counters(encoder, "drop_bytes", "Bytes dropped", bytes)?;
        let counts = Counter::ALL.iter().zip(COUNTERS);
        let counts =
            counts.filter_map(|(counter, (name, _))| Some((label("name", name), maps.counted(*counter).ok()?)));
        counters(encoder, "datapath_events", "What the programs counted", counts)
    }
}

pub(super) fn label(name: &'static str, value: impl fmt::Display) -> Labels {
    vec![(name, value.to_string())]
}

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
