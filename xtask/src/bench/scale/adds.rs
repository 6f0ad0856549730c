// SPDX-License-Identifier: Apache-2.0

//! CNI ADD, twenty a second.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use weft_testbed::{
    Attachment, Plug,
    apiserver::{Key, Kind},
    load::{Call, Caller, Pace, percentile},
};

use super::site::Site;

/// ADDs of a run.
const CALLS: usize = 20;
const PACE: Pace = Pace { interval: Duration::from_millis(50), delay: Duration::ZERO };

/// Milliseconds of ADD: median and p99 of a run. The pods are of local applications, so that policies select them.
pub(super) fn run(site: &Site) -> Result<[f64; 2]> {
    let node = site.bed.node(1);
    let caller = Caller::weft(node)?;
    let mut keys = Vec::new();
    for number in 0..CALLS {
        let like = site.population.local_pod(number % site.population.pods_per_node);
        let mut pod = site.server.get(Kind::Pods, &like).context("no pod")?;
        let key = Key { name: format!("add-{number}"), ..like };
        pod["metadata"]["name"] = json!(key.name);
        pod["metadata"]["uid"] = json!(key.name);
        site.server.put(Kind::Pods, pod)?;
        keys.push(key);
    }
    let mut sandboxes = Vec::new();
    for key in &keys {
        sandboxes.push(Attachment::new(node, &format!("{}/{}", key.namespace, key.name), Plug::Veth)?);
    }
    let calls: Vec<Call> = sandboxes
        .iter()
        .map(|sandbox| Call {
            verb: "ADD",
            container_id: sandbox.container_id.clone(),
            netns: sandbox.netns.clone(),
            args: sandbox.args.clone(),
            config: sandbox.config.clone(),
        })
        .collect();
    let answers = caller.all(&calls, PACE).with_context(|| node.agent_log())?;
    let (times, results): (Vec<f64>, Vec<_>) = answers.into_iter().unzip();
    for (sandbox, result) in sandboxes.iter_mut().zip(results) {
        sandbox.result = Some(result);
    }
    drop(sandboxes);
    for key in &keys {
        site.server.delete(Kind::Pods, key)?;
    }
    Ok([percentile(&times, 50), percentile(&times, 99)])
}
