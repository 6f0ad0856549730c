// SPDX-License-Identifier: Apache-2.0

//! What is dropped is counted: under its reason, where an operator looks.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{node::Node, wait::until_ok};

/// How long a counter may take.
const SOON: Duration = Duration::from_secs(5);

/// That `node` counts a drop for `reason` while `attack` runs.
pub(super) fn counted(node: &Node, reason: &str, attack: impl FnOnce() -> Result<()>) -> Result<()> {
    rises(&format!("a drop for {reason} on {}", node.name()), || dropped(node, reason), attack)
}

/// That the device of a vhost-user port of `node` counts a drop for `reason` while `attack` runs.
pub(super) fn counted_by_device(node: &Node, reason: &str, attack: impl FnOnce() -> Result<()>) -> Result<()> {
    let count = || -> Result<Option<u64>> {
        let vms: Vec<weft_api::VmReport> = node.weft_json("vm")?;
        Ok(vms.iter().filter_map(|vm| of_device(vm.metrics.as_ref()?, reason)).reduce(|a, b| a + b))
    };
    rises(&format!("a drop for {reason} by a device on {}", node.name()), count, attack)
}

/// How many packets `node` has dropped for `reason`; none: the build has no such reason.
fn dropped(node: &Node, reason: &str) -> Result<Option<u64>> {
    let drops: Vec<weft_api::DropReport> = node.weft_json("drops --all")?;
    Ok(drops.iter().find(|drop| drop.reason == reason).map(|drop| drop.packets))
}

/// The sum of all counters of this name.
fn of_device(metrics: &Value, reason: &str) -> Option<u64> {
    match metrics {
        Value::Object(members) => {
            let own = members.get(reason).and_then(Value::as_u64);
            let inner = members.values().filter_map(|member| of_device(member, reason));
            own.into_iter().chain(inner).reduce(|a, b| a + b)
        }
        Value::Array(members) => members.iter().filter_map(|member| of_device(member, reason)).reduce(|a, b| a + b),
        _ => None,
    }
}

fn rises(what: &str, count: impl Fn() -> Result<Option<u64>>, attack: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = count()?;
    attack()?;
    let before = before.with_context(|| format!("this build does not count {what}"))?;
    until_ok(what, SOON, || {
        let after = count()?.unwrap_or(0);
        ensure!(after > before, "{before} before and {after} after");
        Ok(())
    })
}
