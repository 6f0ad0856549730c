// SPDX-License-Identifier: Apache-2.0

//! Starts of the agent: from nothing, and over what an earlier one has left.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use weft_testbed::{
    Container, Shell as _,
    apiserver::{Key, Kind},
};

use super::site::{OUTSIDE, Site};

/// Everything that an agent could go on with, but for the attachments.
const FORGET: &str = "rm -rf /sys/fs/bpf/weft /mnt/node1/state/cluster.json /mnt/node1/state/policies.json";
/// An agent that uses no CPU for so long has nothing to do: it loads programs without a pause.
const QUIET: Duration = Duration::from_millis(700);
/// Records of the stream that runs over a restart, a second.
const RATE: u32 = 1000;

/// What a start has cost.
pub(super) struct Cold {
    /// Seconds of CPU from the last byte of the last list to the last map.
    after: f64,
    cpu: f64,
    wall: f64,
    megabytes: f64,
    /// Megabytes.
    pub(super) rss: f64,
}

impl Cold {
    pub(super) fn figures(&self) -> [f64; 5] {
        [self.after, self.cpu, self.wall, self.megabytes, self.rss]
    }
}

/// Kills the agent, takes its maps away, and starts it.
pub(super) fn cold(site: &Site) -> Result<Cold> {
    let node = site.bed.node(1);
    node.stop_agent(Signal::SIGKILL)?;
    node.sh(FORGET)?.ok()?;
    // Programs are loaded before anything is listed: that is no part of the sync.
    site.server.hold_lists(true);
    let started = node.start_agent().and_then(|()| quiet(site));
    site.server.hold_lists(false);
    let idle = started?;
    let (bytes, start) = (site.bytes(), Instant::now());
    let mut lists = site.server.lists();
    let mut at_last_byte = idle;
    let mut tables = None;
    let end = site.wait("everything is in the maps", || {
        let now = site.server.lists();
        if now != lists {
            (lists, at_last_byte) = (now, site.cpu()?);
        }
        // They are made in the course of the start.
        let Some(known) = tables.take().or_else(|| site.tables().ok()) else { return Ok(false) };
        let complete = site.is_complete(&known)?;
        tables = Some(known);
        if !complete {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(complete)
    })?;
    let cpu = site.cpu()?;
    let megabytes = (site.bytes() - bytes) as f64 / 1e6;
    // It frees when it has time.
    quiet(site)?;
    Ok(Cold {
        after: cpu - at_last_byte,
        cpu: cpu - idle,
        wall: (end - start).as_secs_f64(),
        megabytes,
        rss: site.rss()?,
    })
}

/// Waits until the agent has nothing more to do, and gives the seconds of CPU that it has used.
fn quiet(site: &Site) -> Result<f64> {
    let mut used = -1.0;
    loop {
        let now = site.cpu()?;
        if now > 0.0 && now == used {
            return Ok(now);
        }
        used = now;
        thread::sleep(QUIET);
    }
}

/// Kills the agent under a stream of a pod and starts it over what it has left: seconds until it is ready, and until it has served
/// the ADD of a new pod that is asked for then; and records that were lost.
pub(super) fn adoption(site: &Site) -> Result<[f64; 3]> {
    let node = site.bed.node(1);
    let (client, outside) = (site.pods.first().context("no pod")?, site.bed.outside());
    let server = outside.address_for(client.v4()?);
    let script = format!("weft-probe stream tcp {server}:{OUTSIDE} --rate {RATE} --seconds 20 --timeout 10000");
    let job = client.start("adoption", &script)?;
    job.prints(client, "STREAMING", Duration::from_secs(10))?;
    node.stop_agent(Signal::SIGKILL)?;
    let start = Instant::now();
    node.start_agent()?;
    let end = site.wait("the agent is ready", || Ok(node.weft("status").is_ok()))?;
    let served = add(site).with_context(|| node.agent_log())?;
    let outcome = job.finish(client, Duration::from_secs(90))?;
    let lost = outcome.output.split_whitespace().skip_while(|word| *word != "lost").nth(1);
    let lost: f64 =
        lost.and_then(|word| word.parse().ok()).with_context(|| format!("no count in {}", outcome.output))?;
    Ok([(end - start).as_secs_f64(), (served - start).as_secs_f64(), lost])
}

/// When the ADD of a new pod has ended, that policies select.
fn add(site: &Site) -> Result<Instant> {
    let like = site.population.local_pod(0);
    let mut pod = site.server.get(Kind::Pods, &like).context("no pod")?;
    let key = Key { name: "adopted".to_owned(), ..like };
    pod["metadata"]["name"] = json!(key.name);
    pod["metadata"]["uid"] = json!(key.name);
    site.server.put(Kind::Pods, pod)?;
    let added = Container::new(site.bed.node(1), &format!("{}/{}", key.namespace, key.name))?;
    let served = Instant::now();
    drop(added);
    site.server.delete(Kind::Pods, &key)?;
    Ok(served)
}
