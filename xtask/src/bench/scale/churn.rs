// SPDX-License-Identifier: Apache-2.0

//! What changes in a cluster all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use weft_testbed::{
    Random,
    apiserver::{ApiServer, Kind, Population},
};

use super::{change, site::Site};

/// From one change to the next.
const INTERVAL: Duration = Duration::from_millis(10);

/// What is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mix {
    /// The status of pods of other nodes, as their kubelets do.
    Pods,
    /// Of ten, eight of these, and two Services' endpoints that become ready or not.
    PodsAndSlices,
}

/// A hundred changes a second, until it is stopped.
pub(super) struct Churn {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Churn {
    pub(super) fn start(site: &Site, mix: Mix) -> Self {
        let (server, population) = (site.server.clone(), site.population.clone());
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        Self { ended, thread: thread::spawn(move || change_all(&server, &population, mix, &until)) }
    }

    pub(super) fn stop(self) -> Result<()> {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the changing thread panicked"))?
    }
}

fn change_all(server: &ApiServer, population: &Population, mix: Mix, ended: &AtomicBool) -> Result<()> {
    let mut random = Random::new(1);
    let mut due = Instant::now();
    for number in 0_usize.. {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        if mix == Mix::PodsAndSlices && number % 5 == 4 {
            slice(server, population, &mut random)?;
        } else {
            pod(server, population, &mut random, number)?;
        }
        due += INTERVAL;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn pod(server: &ApiServer, population: &Population, random: &mut Random, number: usize) -> Result<()> {
    // Not the first, whose label is measured.
    let key = population.remote_pod(1 + random.below(population.remote_pods() - 1));
    let mut pod = server.get(Kind::Pods, &key).context("no pod")?;
    pod["status"]["conditions"][1]["message"] = json!(format!("probe {number}"));
    pod["status"]["containerStatuses"][0]["restartCount"] = json!(number);
    server.put(Kind::Pods, pod).map(drop)
}

fn slice(server: &ApiServer, population: &Population, random: &mut Random) -> Result<()> {
    let service = random.below(population.services);
    if service == change::SERVICE {
        return Ok(());
    }
    let mut slice = server.get(Kind::EndpointSlices, &population.slice(service)).context("no slice")?;
    let conditions = &mut slice["endpoints"][1]["conditions"];
    let ready = conditions["ready"] == json!(true);
    conditions["ready"] = json!(!ready);
    conditions["serving"] = json!(!ready);
    server.put(Kind::EndpointSlices, slice).map(drop)
}

/// Bytes a second that go to the agent under a hundred changes of pods a second.
pub(super) fn bytes(site: &Site, duration: Duration) -> Result<f64> {
    let churn = Churn::start(site, Mix::Pods);
    let (before, start) = (site.bytes(), Instant::now());
    thread::sleep(duration);
    let told = (site.bytes() - before) as f64 / start.elapsed().as_secs_f64();
    churn.stop()?;
    Ok(told)
}
