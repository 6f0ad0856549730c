// SPDX-License-Identifier: Apache-2.0
//! Flow events: from the ring buffer, named, to a bounded memory and to followers.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, broadcast},
};
use weft_abi::{Addr, DROP_REASONS, Deliver, Event, EventKind, EventsWanted, FrontendKey};
use weft_api::{FlowEvent, FlowVerdict};
use weft_dataplane::{Events, Maps};

use super::Shared;
use crate::{apply::flows::now_ticks, plan::Planner};

/// Events that are remembered.
pub const REMEMBERED: usize = 4096;
/// Rest between two batches. The kernel wakes a reader that has read everything, from within the packet's path, for a drop; while
/// the reader rests, packets pay for no wake-up (30 us of a short connection across nodes).
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// After so many events in a row the reader rests, so that a flood costs a few percent of a CPU at most.
const FLOOD_PAUSE: Duration = Duration::from_millis(100);

/// Ticks (`weft_abi::TICK_SHIFT`) from now in which flows that are let through are told, unless that is put off again.
const TOLD_AHEAD: u32 = 3;

/// The latest events, and who follows them.
#[derive(Debug)]
pub struct Flows {
    latest: Mutex<VecDeque<FlowEvent>>,
    followers: broadcast::Sender<FlowEvent>,
    /// Somebody has begun to follow.
    begun: Notify,
}

impl Default for Flows {
    fn default() -> Self {
        Self { latest: Mutex::default(), followers: broadcast::Sender::new(REMEMBERED), begun: Notify::new() }
    }
}

impl Flows {
    /// Remembers an event and tells followers; the oldest makes room.
    pub fn push(&self, event: FlowEvent) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() == REMEMBERED {
            latest.pop_front();
        }
        latest.push_back(event.clone());
        // Without followers there is nobody to tell. Within the lock, so that a new follower misses and repeats nothing.
        drop(self.followers.send(event));
    }

    /// The `last` latest events, oldest first.
    #[must_use]
    pub fn latest(&self, last: usize) -> Vec<FlowEvent> {
        self.subscribe(last).0
    }

    /// The `last` latest events, oldest first, and those that come after them: from now on the programs tell of every flow; without
    /// `maps`, which are not open yet, from when the ring is read.
    ///
    /// # Errors
    /// The map that asks for it cannot be written.
    pub fn follow(
        &self,
        last: usize,
        maps: Option<&Maps>,
    ) -> Result<(Vec<FlowEvent>, broadcast::Receiver<FlowEvent>), weft_dataplane::Error> {
        let following = self.subscribe(last);
        maps.map(want_all).transpose()?;
        self.begun.notify_one();
        Ok(following)
    }

    fn is_followed(&self) -> bool {
        self.followers.receiver_count() > 0
    }

    fn subscribe(&self, last: usize) -> (Vec<FlowEvent>, broadcast::Receiver<FlowEvent>) {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = latest.len().saturating_sub(last);
        (latest.iter().skip(skip).cloned().collect(), self.followers.subscribe())
    }
}

/// Reads the ring buffer for ever. While somebody follows, and until the programs tell nobody any more, the ring is looked at
/// again and again, since nothing wakes the reader for a flow that is let through; else it is waited for.
///
/// # Errors
/// The descriptor cannot be waited for; a map cannot be written.
pub async fn read(events: Events, shared: Arc<Shared>, maps: Arc<Maps>) -> anyhow::Result<()> {
    // SAFETY: the descriptor is the ring's own, `Events` gives the same one at each call, and closes it only when dropped.
    let mut events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }?;
    let mut is_settled = false;
    loop {
        let woken = is_woken(&shared.flows, &maps)?;
        if is_settled && woken {
            tokio::select! {
                ready = events.readable_mut() => ready?.clear_ready(),
                () = shared.flows.begun.notified() => continue,
            }
        }
        // Behind a record that woke nobody none wakes the reader: once all do again, the ring is read to its end.
        is_settled = woken;
        drain(events.get_mut(), &shared).await;
        tokio::time::sleep(BATCH_PAUSE).await;
    }
}

/// Whether the programs wake the reader for whatever they tell; while somebody follows that is put off. Of a follower that has
/// gone, or of an agent before this one, the map knows.
fn is_woken(flows: &Flows, maps: &Maps) -> Result<bool, weft_dataplane::Error> {
    if flows.is_followed() {
        want_all(maps)?;
        return Ok(false);
    }
    // A program may have read the clock just before its last tick ended.
    Ok(now_ticks() > maps.events_wanted().get(0)?.until.saturating_add(1))
}

/// Remembers what the ring holds.
async fn drain(events: &mut Events, shared: &Shared) {
    let mut ifnames = Ifnames::default();
    let mut boot = boot_time_ns();
    let mut count = 0_usize;
    while let Some(event) = events.next() {
        shared.flows.push(describe(&event, &shared.planner(), boot, &mut ifnames));
        count += 1;
        if count.is_multiple_of(256) {
            // A flood of events must not starve the rest of the agent.
            tokio::task::yield_now().await;
        }
        if count.is_multiple_of(REMEMBERED) {
            // Nobody could read so many: the ring drops what it cannot hold meanwhile, and counts it.
            tokio::time::sleep(FLOOD_PAUSE).await;
            boot = boot_time_ns();
            ifnames.0.clear();
        }
    }
}

/// Lets the programs tell of one flow of `one_in` that they let through, by chance, though nobody follows; 0: of none.
///
/// # Errors
/// The map cannot be written.
pub fn sample(maps: &Maps, one_in: u32) -> Result<(), weft_dataplane::Error> {
    let wanted = maps.events_wanted().get(0)?;
    if wanted.one_in == one_in {
        return Ok(());
    }
    maps.events_wanted().set(0, &EventsWanted { one_in, ..wanted })
}

/// Asks the programs to tell of every flow that is let through, for a while.
fn want_all(maps: &Maps) -> Result<(), weft_dataplane::Error> {
    let until = now_ticks().saturating_add(TOLD_AHEAD);
    let wanted = maps.events_wanted().get(0)?;
    if wanted.until >= until {
        return Ok(());
    }
    maps.events_wanted().set(0, &EventsWanted { until, ..wanted })
}

/// Names of interfaces by index, looked up once per batch.
#[derive(Debug, Default)]
pub struct Ifnames(BTreeMap<u32, String>);

impl Ifnames {
    pub(super) fn of(&mut self, ifindex: u32) -> String {
        let name = self.0.entry(ifindex).or_insert_with(|| {
            let name = nix::net::if_::if_indextoname(ifindex).ok().map(|name| name.to_string_lossy().into_owned());
            // Of a device that is gone some C libraries tell an empty name.
            name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("#{ifindex}"))
        });
        name.clone()
    }
}

/// Makes an event readable. `boot_ns`: Unix time of the monotonic clock's zero.
pub fn describe(event: &Event, planner: &Planner, boot_ns: u64, ifnames: &mut Ifnames) -> FlowEvent {
    let dropped = event.kind == EventKind::Drop as u8;
    let name = |addr: &Addr| planner.name(*addr);
    let key = FrontendKey::of_cluster(event.dst, event.dport, event.protocol);
    let has_backend = !event.backend.is_unspecified();
    FlowEvent {
        time_ns: boot_ns.saturating_add(event.time_ns),
        verdict: if dropped { FlowVerdict::Dropped } else { FlowVerdict::Forwarded },
        reason: if dropped { drop_reason(event.reason) } else { delivery(event.reason) },
        protocol: protocol(event.protocol),
        source: event.src.into(),
        source_port: u16::from_be(event.sport),
        destination: event.dst.into(),
        destination_port: u16::from_be(event.dport),
        backend: has_backend.then(|| (event.backend.into(), u16::from_be(event.backend_port))),
        source_name: name(&event.src),
        destination_name: if has_backend { name(&event.backend) } else { name(&event.dst) },
        service: planner.service_name(&key),
        ifname: ifnames.of(event.ifindex),
        rules: [event.egress_rule, event.ingress_rule].into_iter().filter_map(|rule| planner.rule_name(rule)).collect(),
    }
}

fn drop_reason(number: u8) -> String {
    DROP_REASONS.get(usize::from(number)).map_or_else(|| format!("reason-{number}"), |(name, _)| (*name).to_owned())
}

fn delivery(number: u8) -> String {
    let known = [
        (Deliver::Peer, "local"),
        (Deliver::Port, "local"),
        (Deliver::Host, "host"),
        (Deliver::Tunnel, "tunnel"),
        (Deliver::Neighbour, "routed"),
        (Deliver::Route, "outside"),
    ];
    let found = known.into_iter().find(|(deliver, _)| *deliver as u8 == number);
    found.map_or_else(|| format!("delivery-{number}"), |(_, name)| name.to_owned())
}

pub(super) fn protocol(number: u8) -> String {
    match number {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}

/// Unix time at which the monotonic clock began, in nanoseconds.
fn boot_time_ns() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(unix.saturating_sub(since_boot).as_nanos()).unwrap_or(u64::MAX)
}
