// SPDX-License-Identifier: Apache-2.0
//! The agent's answers for people.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use weft_api::{
    AttachmentId, DropReport, EndpointReport, ExplainStep, Explanation, FlowEvent, FlowVerdict, PodRef, PolicyReport,
    ServicePortReport, ServiceReport, StatusReport, USUAL_WEIGHT,
};

use crate::{print::printable, table::Table};

pub(crate) fn status(status: &StatusReport) -> String {
    let mut table = Table::new(&["node", &status.node]);
    table.row(["agent".into(), format!("{}, up {}", status.version, duration(status.uptime_seconds))]);
    table.row(["state".into(), status.not_ready.as_ref().map_or("ready".into(), |why| format!("not ready: {why}"))]);
    table.row(["source".into(), source(status)]);
    table.row(["mode".into(), status.mode.clone()]);
    table.row(["uplink".into(), status.uplink.clone()]);
    table.row(["devices".into(), devices(status)]);
    let pools = status.pod_cidrs.iter().zip(&status.addresses_used);
    table.row([
        "addresses".into(),
        joined(pools.map(|(cidr, (used, all))| format!("{cidr}: {used} of {} used", amount(*all))), "\n"),
    ]);
    table.row(["events lost".into(), status.events_lost.to_string()]);
    let mut text = table.render();
    if !status.routes.is_empty() {
        let mut routes = Table::new(&["OTHER NODE", "POD CIDR", "VIA"]);
        for route in &status.routes {
            routes.row([route.node.clone(), route.pod_cidr.to_string(), route.via.to_string()]);
        }
        text = format!("{text}\n{}", routes.render());
    }
    if !status.maps.is_empty() {
        let all: u64 = status.maps.iter().map(|map| map.bytes).sum();
        let mut maps = Table::new(&["MAP", "ENTRIES AT MOST", "MEMORY"]);
        for map in &status.maps {
            maps.row([map.name.clone(), map.max_entries.to_string(), bytes(map.bytes)]);
        }
        maps.row(["all".into(), String::new(), bytes(all)]);
        text = format!("{text}\n{}", maps.render());
    }
    for problem in &status.problems {
        text = format!("{text}\nproblem: {problem}");
    }
    if status.problems.is_empty() { text } else { format!("{text}\n") }
}

fn devices(status: &StatusReport) -> String {
    let stack = joined(&status.stack_devices, ", ");
    let heard = joined(&status.devices, ", ");
    if stack.is_empty() { heard } else { format!("{heard}\n{stack}: through the host's stack") }
}

pub(crate) fn endpoints(endpoints: &[EndpointReport]) -> Table {
    let mut table =
        Table::new(&["POD", "ADDRESSES", "PORT", "INTERFACE", "MAC", "INGRESS POLICIES", "EGRESS POLICIES", "STATE"]);
    for endpoint in endpoints {
        table.row([
            workload(&endpoint.id, endpoint.pod.as_ref()),
            joined(&endpoint.addresses, "\n"),
            endpoint.port.to_string(),
            format!("{} ({})", endpoint.ifname, endpoint.ifindex),
            endpoint.mac.to_string(),
            joined(&endpoint.ingress_policies, "\n"),
            joined(&endpoint.egress_policies, "\n"),
            endpoint.state.clone(),
        ]);
    }
    table
}

pub(crate) fn services(services: &[ServiceReport]) -> Table {
    let mut table = Table::new(&["SERVICE", "ADDRESSES", "CHOICE", "PORT", "BACKENDS"]);
    for service in services {
        let name = format!("{}/{}", service.namespace, service.name);
        let external = service.external_ips.iter().map(|address| format!("{address} external"));
        let addresses: Vec<_> = service.cluster_ips.iter().map(ToString::to_string).chain(external).collect();
        let addresses = addresses.join("\n");
        let choice = choice(service);
        for (position, port) in service.ports.iter().enumerate() {
            // The name stands once per Service.
            let [name, addresses, choice] =
                [&name, &addresses, &choice].map(|text| if position == 0 { text.clone() } else { " ".into() });
            table.row([name, addresses, choice, port_name(port), backends(port)]);
        }
    }
    table
}

pub(crate) fn policies(policies: &[PolicyReport]) -> Table {
    let mut table = Table::new(&["POLICY", "ISOLATES", "PODS OF THIS NODE", "RULES", "STATE"]);
    for policy in policies {
        table.row([
            format!("{}/{}", policy.namespace, policy.name),
            policy.directions.join(", "),
            joined(&policy.selected, "\n"),
            policy.rules.to_string(),
            policy.state.clone(),
        ]);
    }
    table
}

pub(crate) fn explanation(explanation: &Explanation) -> String {
    let Explanation { packet, hook, steps, verdict, differences, .. } = explanation;
    let mut table = Table::new(&["STEP", "MAP", "LOOKED UP", "FOUND"]);
    for ExplainStep { step, map, key, value } in steps {
        table.row([step.clone(), map.clone(), key.clone(), value.clone()]);
    }
    let mut text = format!(
        "{}\narrives at {}\n\n{}\n{}\n",
        printable(packet),
        printable(hook),
        table.render(),
        printable(verdict)
    );
    if !differences.is_empty() {
        text.push_str("\nThe maps differ from the plan:\n");
        for difference in differences {
            text.push_str(&format!("  {}\n", printable(difference)));
        }
    }
    text
}

pub(crate) fn drops(drops: &[DropReport]) -> String {
    let mut table = Table::new(&["REASON", "PACKETS", "BYTES", "MEANING"]);
    let mut drops: Vec<_> = drops.iter().collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    for drop in drops {
        table.row([drop.reason.clone(), drop.packets.to_string(), drop.bytes.to_string(), drop.help.clone()]);
    }
    or(&table, "nothing was dropped")
}

pub(crate) fn flows(flows: &[FlowEvent]) -> String {
    let mut table = Table::new(&[
        "TIME (UTC)",
        "VERDICT",
        "REASON",
        "PROTOCOL",
        "FROM",
        "TO",
        "SERVICE",
        "BACKEND",
        "INTERFACE",
        "RULES",
    ]);
    for flow in flows {
        let (from, to) = ends(flow);
        table.row([
            time_of_day(flow.time_ns),
            verdict(flow.verdict).into(),
            flow.reason.clone(),
            flow.protocol.clone(),
            from,
            to,
            flow.service.clone().unwrap_or_default(),
            flow.backend.map(|(address, port)| SocketAddr::new(address, port).to_string()).unwrap_or_default(),
            flow.ifname.clone(),
            flow.rules.join("; "),
        ]);
    }
    or(&table, "no flow was seen; flows that are let through are told while somebody follows them: weft flows --follow")
}

/// One event on one line; `aligned` for a terminal.
pub(crate) fn flow(flow: &FlowEvent, aligned: bool) -> String {
    let (from, to) = ends(flow);
    let service = flow.service.as_ref().map(|service| format!(" service {service}")).unwrap_or_default();
    let backend = flow.backend.map(|(address, port)| format!(" backend {}", SocketAddr::new(address, port)));
    let (verdict, reason) = (verdict(flow.verdict), &flow.reason);
    let head = if aligned { format!("{verdict:9} {reason:16}") } else { format!("{verdict} {reason}") };
    let (protocol, backend) = (&flow.protocol, backend.unwrap_or_default());
    let rules = if flow.rules.is_empty() { String::new() } else { format!(" ({})", printable(&flow.rules.join("; "))) };
    let time = time_of_day(flow.time_ns);
    format!("{time} {head} {protocol} {from} -> {to}{service}{backend} on {}{rules}", flow.ifname)
}

fn ends(flow: &FlowEvent) -> (String, String) {
    let end = |name: &Option<String>, address: IpAddr, port: u16| {
        let socket = if port == 0 { address.to_string() } else { SocketAddr::new(address, port).to_string() };
        name.as_ref().map_or(socket.clone(), |name| format!("{name} ({socket})"))
    };
    // The name belongs to the backend where there is one; the Service has a column of its own.
    let to_name = if flow.service.is_some() { &None } else { &flow.destination_name };
    (end(&flow.source_name, flow.source, flow.source_port), end(to_name, flow.destination, flow.destination_port))
}

const fn verdict(verdict: FlowVerdict) -> &'static str {
    match verdict {
        FlowVerdict::Forwarded => "forwarded",
        FlowVerdict::Dropped => "dropped",
    }
}

fn source(status: &StatusReport) -> String {
    let state = &status.source;
    let synced = if state.synced { "synced" } else { "not synced yet" };
    let error = state.error.as_ref().map(|error| format!("; does not answer: {error}")).unwrap_or_default();
    let remembered = state.remembered_since.map(|since| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("; runs on the state remembered {} ago", duration(now.saturating_sub(since)))
    });
    format!("{} ({synced}{error}{})", state.name, remembered.unwrap_or_default())
}

fn port_name(port: &ServicePortReport) -> String {
    let node_port = port.node_port.map(|number| format!(", nodePort {number}")).unwrap_or_default();
    let number = format!("{}/{}{node_port}", port.port, port.protocol);
    if port.name.is_empty() { number } else { format!("{} {number}", port.name) }
}

/// How its new connections get a backend, where that is not by chance alone.
fn choice(service: &ServiceReport) -> String {
    let algorithm = Some(service.algorithm.clone()).filter(|algorithm| !matches!(algorithm.as_str(), "" | "random"));
    let affinity = service.affinity_seconds.map(|seconds| format!("ClientIP {seconds} s"));
    algorithm.into_iter().chain(affinity).collect::<Vec<_>>().join("\n")
}

fn backends(port: &ServicePortReport) -> String {
    let backends = port.backends.iter().map(|backend| {
        let node = backend.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let weight = Some(format!("weight {}", backend.weight)).filter(|_| backend.weight != USUAL_WEIGHT);
        let state = Some(backend.state.clone()).filter(|state| state != "ready");
        let more = state.into_iter().chain(weight).collect::<Vec<_>>().join(", ");
        let more = if more.is_empty() { more } else { format!(" ({more})") };
        format!("{}{node}{more}", SocketAddr::new(backend.address, backend.port))
    });
    joined(backends, "\n")
}

/// What people call a workload: its pod, or its attachment where no runtime told of a pod.
pub(crate) fn workload(id: &AttachmentId, pod: Option<&PodRef>) -> String {
    pod.map_or_else(|| id.to_string(), |pod| format!("{}/{}", pod.namespace, pod.name))
}

pub(crate) fn or(table: &Table, nothing: &str) -> String {
    if table.is_empty() { format!("{nothing}\n") } else { table.render() }
}

fn joined(items: impl IntoIterator<Item = impl Display>, separator: &str) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(separator)
}

/// A pool of IPv6 has more addresses than anybody reads.
fn amount(number: u64) -> String {
    if number > 1 << 32 { "more than 2^32".to_owned() } else { number.to_string() }
}

pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..1024 => format!("{number} B"),
        1024..1_048_576 => format!("{} KiB", number.div_ceil(1024)),
        _ => format!("{}.{} MiB", number >> 20, ((number % (1 << 20)) * 10) >> 20),
    }
}

pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Of the Unix time in nanoseconds.
fn time_of_day(time_ns: u64) -> String {
    let (seconds, milliseconds) = (time_ns / 1_000_000_000, time_ns / 1_000_000 % 1000);
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{milliseconds:03}", seconds % 60)
}

#[cfg(test)]
mod tests;
