// SPDX-License-Identifier: Apache-2.0

//! Small changes under others: from the last byte of the event to the last map.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_testbed::{
    Frontend, Tables,
    apiserver::{Change, Kind},
    load::percentile,
};

use super::{
    churn::{Churn, Mix},
    site::{Site, ifindex},
};

/// Changes of each kind in a run.
const EACH: usize = 34;
/// A run ends after this, where changes take long.
const LONGEST: Duration = Duration::from_secs(20);
/// Between a change and the next.
const PAUSE: Duration = Duration::from_millis(15);
/// The Service that is changed; the churn leaves it alone.
pub(super) const SERVICE: usize = 1;
/// The pod whose label is changed: of application 0, which policy 0 lets in.
const POD: usize = 0;

/// Milliseconds of every change, by kind.
#[derive(Default)]
pub(super) struct Delays {
    endpoint: Vec<f64>,
    label: Vec<f64>,
    policy: Vec<f64>,
}

impl Delays {
    fn all(&self) -> Vec<f64> {
        [&self.endpoint[..], &self.label, &self.policy].concat()
    }

    pub(super) fn p99(&self) -> f64 {
        percentile(&self.all(), 99)
    }

    pub(super) fn figures(&self) -> [f64; 5] {
        let of = |delays: &[f64]| percentile(delays, 50);
        [of(&self.all()), self.p99(), of(&self.endpoint), of(&self.label), of(&self.policy)]
    }
}

/// Milliseconds from the moment that `change` went out to `end`.
fn delay(change: &Change, end: Instant) -> Result<f64> {
    let written = change.written().context("no watch was told of the change")?;
    Ok(end.saturating_duration_since(written).as_secs_f64() * 1000.0)
}

/// One run: changes of all kinds in turn, under a hundred others a second.
pub(super) fn run(site: &Site) -> Result<Delays> {
    ensure!(!site.pods.is_empty() && site.population.policies > 0, "a pod and a policy are needed");
    let tables = site.tables()?;
    let churn = Churn::start(site, Mix::PodsAndSlices);
    let (start, mut delays) = (Instant::now(), Delays::default());
    for number in 0..EACH {
        delays.endpoint.push(endpoint(site, &tables, number)?);
        std::thread::sleep(PAUSE);
        delays.label.push(label(site, &tables)?);
        std::thread::sleep(PAUSE);
        delays.policy.push(policy(site, &tables, number)?);
        std::thread::sleep(PAUSE);
        if start.elapsed() > LONGEST {
            break;
        }
    }
    churn.stop()?;
    Ok(delays)
}

/// A change of a Service's backends that goes on.
pub(super) struct Moving {
    vip: SocketAddr,
    before: Frontend,
    change: Change,
    end: Option<Instant>,
}

impl Moving {
    /// Replaces `slice`, which is of the Service at `vip`.
    pub(super) fn begin(site: &Site, tables: &Tables, vip: SocketAddr, slice: Value) -> Result<Self> {
        let before = tables.frontend(vip)?.context("no frontend")?;
        let change = site.server.put(Kind::EndpointSlices, slice)?;
        Ok(Self { vip, before, change, end: None })
    }

    /// Gives the Service that is measured another first endpoint.
    pub(super) fn small(site: &Site, tables: &Tables, number: usize) -> Result<Self> {
        let mut slice = site.server.get(Kind::EndpointSlices, &site.population.slice(SERVICE)).context("no slice")?;
        let now = &slice["endpoints"][0]["addresses"][0];
        let choices = [0, 1].map(|side| json!(format!("10.99.{side}.{}", number % 250 + 1)));
        slice["endpoints"][0]["addresses"] = json!([choices.into_iter().find(|choice| choice != now)]);
        Self::begin(site, tables, site.vip(SERVICE), slice)
    }

    /// Whether it has ended.
    pub(super) fn look(&mut self, tables: &Tables) -> Result<bool> {
        if self.end.is_none() && tables.has_moved(self.vip, self.before)? {
            self.end = Some(Instant::now());
        }
        Ok(self.end.is_some())
    }

    /// Milliseconds that it took.
    pub(super) fn delay(&self) -> Result<f64> {
        delay(&self.change, self.end.context("it goes on")?)
    }
}

/// Gives the Service another first endpoint.
pub(super) fn endpoint(site: &Site, tables: &Tables, number: usize) -> Result<f64> {
    let mut moving = Moving::small(site, tables, number)?;
    site.wait("the endpoint", || moving.look(tables))?;
    moving.delay()
}

/// Takes the pod out of its application, or puts it back.
fn label(site: &Site, tables: &Tables) -> Result<f64> {
    let key = site.population.remote_pod(POD);
    let (v4, v6) = site.population.remote_addresses(POD);
    let known = || Ok::<_, anyhow::Error>([tables.class(v4.into())?, tables.class(v6.into())?]);
    let mut pod = site.server.get(Kind::Pods, &key).context("no pod")?;
    let now = &pod["metadata"]["labels"]["app"];
    pod["metadata"]["labels"]["app"] = json!(if now == "app-0" { "elsewhere" } else { "app-0" });
    let before = known()?;
    let change = site.server.put(Kind::Pods, pod)?;
    let end = site.wait("the label", || {
        let now = known()?;
        Ok(now[0] != before[0] && now[1] != before[1])
    })?;
    delay(&change, end)
}

/// Moves the port that a policy lets in.
fn policy(site: &Site, tables: &Tables, number: usize) -> Result<f64> {
    // Policy 1 is of pod 1 where there is more than one.
    let of = usize::from(site.pods.len() > 1 && site.population.policies > 1);
    let device = ifindex(site, &site.pods[of])?;
    let peer = site.peer(site.population.admitted(of).0);
    let mut policy = site.server.get(Kind::NetworkPolicies, &site.population.policy(of)).context("no policy")?;
    let choices = [0, 1].map(|side| json!(40_000 + side * 10_000 + number));
    let now = &policy["spec"]["ingress"][0]["ports"][0]["port"];
    let next = choices.into_iter().find(|choice| choice != now).context("no port")?;
    let port = u16::try_from(next.as_u64().unwrap_or_default())?;
    policy["spec"]["ingress"][0]["ports"][0]["port"] = next;
    let change = site.server.put(Kind::NetworkPolicies, policy)?;
    let end = site.wait("the policy", || tables.admits(device, peer, port))?;
    delay(&change, end)
}
