// SPDX-License-Identifier: Apache-2.0
//! vhost-user ports: what their devices say of themselves, and their frames.

use std::{
    io::{BufRead as _, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use weft_api::VmReport;

use crate::{
    frame,
    print::Output,
    show::{bytes, duration, workload},
    table::Table,
};

/// The port that `name` means: its pod, with or without namespace, or its tap.
///
/// # Errors
/// None or several.
pub(crate) fn find<'a>(vms: &'a [VmReport], name: &str) -> Result<&'a VmReport> {
    let means = |vm: &&VmReport| {
        let pod = vm.pod.as_ref();
        vm.ifname == name || owner(vm) == name || pod.is_some_and(|pod| pod.name == name)
    };
    match vms.iter().filter(means).collect::<Vec<_>>()[..] {
        [vm] => Ok(vm),
        [] => bail!("no vhost-user port of this node is of '{name}'; see `weft vm`"),
        [first, second, ..] => {
            bail!("'{name}' is {} and {}; name one of these taps", first.ifname, second.ifname)
        }
    }
}

fn owner(vm: &VmReport) -> String {
    workload(&vm.id, vm.pod.as_ref())
}

pub(crate) fn overview(vms: &[VmReport]) -> Table {
    let mut table =
        Table::new(&["POD", "TAP", "SOCKET", "STATE", "RESTARTS", "VMM", "TO GUEST", "FROM GUEST", "DROPS"]);
    for vm in vms {
        let total = |direction: &str, count: fn(&Value) -> u64| match &vm.metrics {
            None => String::new(),
            Some(metrics) => {
                rings(metrics).filter(|ring| ring["direction"] == direction).map(count).sum::<u64>().to_string()
            }
        };
        let frames = |ring: &Value| number(&ring["frames"]);
        let drops: u64 = vm.metrics.iter().flat_map(rings).map(dropped).sum();
        table.row([
            owner(vm),
            vm.ifname.clone(),
            vm.socket_path.clone(),
            vm.state.clone(),
            vm.restarts.to_string(),
            vm.metrics.as_ref().map(connection).unwrap_or_default(),
            total("rx", frames),
            total("tx", frames),
            vm.metrics.as_ref().map(|_| drops.to_string()).unwrap_or_default(),
        ]);
    }
    table
}

pub(crate) fn details(vm: &VmReport) -> String {
    let mut table = Table::new(&["vm", &owner(vm)]);
    let mut row = |name: &str, value: String| table.row([name.into(), value]);
    row("tap", vm.ifname.clone());
    row("socket", vm.socket_path.clone());
    row("state", vm.state.clone());
    row("process", vm.pid.map(|pid| pid.to_string()).unwrap_or_default());
    row("restarts", vm.restarts.to_string());
    row("log", vm.log_path.clone());
    row("control", vm.control_path.clone());
    let Some(metrics) = &vm.metrics else { return table.render() };
    row("up", duration(number(&metrics["uptime_seconds"])));
    row("vmm", format!("{}, {} connections so far", connection(metrics), number(&metrics["connections"])));
    row(
        "guest memory",
        format!("{} MiB in {} regions", number(&metrics["memory_bytes"]) >> 20, number(&metrics["memory_regions"])),
    );
    row("own memory", metrics["rss_bytes"].as_u64().map(bytes).unwrap_or_default());
    row("migration", if metrics["logging"] == true { "pages written are logged".into() } else { "none".into() });
    row("features", names(&metrics["features"]));
    row("protocol", names(&metrics["protocol_features"]));
    row("last error", metrics["last_error"].as_str().unwrap_or_default().to_owned());
    format!("{}\n{}", table.render(), ring_table(metrics).render())
}

fn ring_table(metrics: &Value) -> Table {
    let mut table = Table::new(&[
        "RING",
        "STATE",
        "SIZE",
        "FRAMES",
        "BYTES",
        "KICKS",
        "INTERRUPTS",
        "BATCHES",
        "BATCH SIZES",
        "STARVED",
        "VIOLATIONS",
        "DROPS",
    ]);
    for ring in rings(metrics) {
        let count = |name: &str| number(&ring[name]).to_string();
        let reasons = ring["drops"].as_object().into_iter().flatten().filter(|(_, count)| number(count) > 0);
        let direction = if ring["direction"] == "rx" { "to guest" } else { "from guest" };
        table.row([
            format!("{} {direction}", count("index")),
            ring["state"].as_str().unwrap_or_default().to_owned(),
            count("size"),
            count("frames"),
            count("bytes"),
            count("kicks"),
            count("interrupts"),
            count("batches"),
            batch_sizes(&ring["batch_sizes"]),
            count("starved"),
            count("violations"),
            reasons.map(|(reason, count)| format!("{reason}: {}", number(count))).collect::<Vec<_>>().join("\n"),
        ]);
    }
    table
}

/// Shows what the device says of the next frames, one a line.
///
/// # Errors
/// The device cannot be asked.
pub(crate) fn trace(control: &Path, frames: u32, output: &mut Output<impl Write>) -> Result<()> {
    let named = || format!("the device's control socket {}", control.display());
    let mut stream = UnixStream::connect(control).with_context(named)?;
    writeln!(stream, "trace {frames}").with_context(named)?;
    let mut lines = BufReader::new(stream).lines();
    lines.try_for_each(|line| -> Result<()> {
        let line = line.with_context(named)?;
        let record: Value = serde_json::from_str(&line).with_context(named)?;
        // A frame that was refused has an error as well, but it went some way.
        if let (Some(error), None) = (record["error"].as_str(), record["direction"].as_str()) {
            bail!("{}: {error}", named());
        }
        output.print_lines(&[record], frame::line)
    })
}

/// How many batches had up to 1, 2, 4, ... frames; sizes that did not occur are left out.
fn batch_sizes(counts: &Value) -> String {
    let counts = counts.as_array().into_iter().flatten().map(number).enumerate().take(64);
    let sizes = counts.filter(|(_, count)| *count > 0).map(|(power, count)| format!("{}: {count}", 1u64 << power));
    sizes.collect::<Vec<_>>().join("\n")
}

fn rings(metrics: &Value) -> impl Iterator<Item = &Value> {
    metrics["rings"].as_array().into_iter().flatten()
}

fn dropped(ring: &Value) -> u64 {
    ring["drops"].as_object().into_iter().flatten().map(|(_, count)| number(count)).sum()
}

fn connection(metrics: &Value) -> String {
    if metrics["connected"] == true { "connected".to_owned() } else { "not connected".to_owned() }
}

fn names(list: &Value) -> String {
    let names = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    // Lines that fit a terminal.
    names.collect::<Vec<_>>().chunks(6).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests;
