// SPDX-License-Identifier: Apache-2.0
//! Metrics of vhost-user ports, out of what their devices say of themselves.
//!
//! A device serves a guest, and a guest may have taken it over: what it says becomes numbers of known names, never names.

use std::fs;

use prometheus_client::{encoding::DescriptorEncoder, registry::Unit};
use serde_json::Value;
use weft_api::VmReport;

use super::encode::{Encoded, Labels, counters, gauges};

/// Reasons of a device for dropping a frame, as it names them.
const REASONS: [&str; 10] = [
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
/// Directions as the device names them, and as the metrics do.
const DIRECTIONS: [(&str, &str); 2] = [("rx", "to_guest"), ("tx", "from_guest")];
/// Counters of a ring: their name in the device's answer and in the metrics, and what they count.
const COUNTERS: [(&str, &str, &str); 7] = [
    ("frames", "vhost_frames", "Frames moved between a guest and its tap"),
    ("bytes", "vhost_bytes", "Bytes of these frames"),
    ("kicks", "vhost_kicks", "Notifications by a guest"),
    ("interrupts", "vhost_interrupts", "Notifications to a guest"),
    ("batches", "vhost_batches", "Groups of frames that were moved at once"),
    ("starved", "vhost_starved", "Times a guest had no buffers for a waiting frame"),
    ("violations", "vhost_violations", "Rings stopped because a guest broke the rules"),
];

/// Writes all metrics of these ports.
///
/// # Errors
/// Never for a string; the library's signature says so.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, vms: &[VmReport]) -> Encoded {
    if vms.is_empty() {
        return Ok(());
    }
    let answered = vms.iter().map(|vm| (labels(vm), u64::from(vm.metrics.is_some())));
    gauges(encoder, "vhost_up", "Whether a port's device answers", None, answered)?;
    let metrics = || vms.iter().filter_map(|vm| Some((vm, vm.metrics.as_ref()?)));
    let connected = metrics().map(|(vm, metrics)| (labels(vm), u64::from(metrics["connected"] == true)));
    gauges(encoder, "vhost_connected", "Whether a VMM is connected", None, connected)?;
    let memory = vms.iter().filter_map(|vm| Some((labels(vm), own_memory(vm.pid?)?)));
    gauges(encoder, "vhost_resident_memory", "Memory of a device, guest memory aside", Some(Unit::Bytes), memory)?;
    let restarts = vms.iter().map(|vm| (labels(vm), vm.restarts));
    counters(encoder, "vhost_restarts", "Times the agent has started a device anew", restarts)?;
    for (key, name, help) in COUNTERS {
        let values = metrics().flat_map(|(vm, metrics)| {
            DIRECTIONS.map(|(direction, label)| (directed(vm, label), sum(metrics, direction, |ring| &ring[key])))
        });
        counters(encoder, name, help, values)?;
    }
    let drops = metrics().flat_map(|(vm, metrics)| DIRECTIONS.map(|direction| drops(vm, metrics, direction)));
    counters(encoder, "vhost_drops", "Frames that a device dropped", drops.flatten())
}

fn drops(
    vm: &VmReport,
    metrics: &Value,
    (direction, label): (&str, &'static str),
) -> impl Iterator<Item = (Labels, u64)> {
    REASONS.into_iter().map(move |reason| {
        let mut labels = directed(vm, label);
        labels.push(("reason", reason.to_owned()));
        (labels, sum(metrics, direction, |ring| &ring["drops"][reason]))
    })
}

fn labels(vm: &VmReport) -> Labels {
    let (namespace, pod) = match &vm.pod {
        Some(pod) => (pod.namespace.clone(), pod.name.clone()),
        None => (String::new(), String::new()),
    };
    vec![("namespace", namespace), ("pod", pod), ("interface", vm.ifname.clone())]
}

fn directed(vm: &VmReport, direction: &'static str) -> Labels {
    let mut labels = labels(vm);
    labels.push(("direction", direction.to_owned()));
    labels
}

/// Over all rings of a direction.
fn sum<'a>(metrics: &'a Value, direction: &str, count: impl Fn(&'a Value) -> &'a Value) -> u64 {
    let rings = metrics["rings"].as_array().into_iter().flatten();
    let counts = rings.filter(|ring| ring["direction"] == direction).filter_map(|ring| count(ring).as_u64());
    counts.fold(0, u64::saturating_add)
}

/// Guest memory is shared: what else a process has resident is anonymous or of files. Source: proc_pid_status(5).
fn own_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kilobytes("RssAnon:")? + kilobytes("RssFile:")?) << 10)
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text, registry::Registry};
    use serde_json::{Value, json};
    use weft_api::{AttachmentId, PodRef, VmReport};

    use super::{DescriptorEncoder, encode};

    /// Under a name that no device has; no other value, such as the memory of this process, begins so.
    const INVENTED: u64 = 987_654_321_987_654_321;

    #[derive(Debug)]
    struct Vms(Vec<VmReport>);

    impl Collector for Vms {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> super::Encoded {
            encode(&mut encoder, &self.0)
        }
    }

    fn vm(metrics: Option<Value>) -> VmReport {
        VmReport {
            id: AttachmentId { network: "weft".into(), container_id: "c".into(), ifname: "eth0".into() },
            pod: Some(PodRef { namespace: "demo".into(), name: "vm".into(), uid: None }),
            ifname: "weft1".into(),
            socket_path: String::new(),
            control_path: String::new(),
            log_path: String::new(),
            state: "ready".into(),
            pid: Some(std::process::id()),
            restarts: 3,
            metrics,
        }
    }

    fn encoded(vms: Vec<VmReport>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Vms(vms)));
        let mut output = String::new();
        text::encode(&mut output, &registry).unwrap();
        output
    }

    fn ring(direction: &str, frames: u64) -> Value {
        json!({"direction": direction, "frames": frames, "bytes": 100, "kicks": 1, "interrupts": 2, "starved": 4,
            "violations": 0, "drops": {"short": 5, "x\"} 1\n": INVENTED}})
    }

    #[test]
    fn rings_of_a_direction_are_added_up() {
        let rings = json!([ring("rx", 7), ring("tx", 8), ring("rx", 30), ring("tx", 40)]);
        let output = encoded(vec![vm(Some(json!({"connected": true, "rings": rings})))]);
        let port = r#"namespace="demo",pod="vm",interface="weft1""#;
        for line in [
            format!(r#"vhost_frames_total{{{port},direction="to_guest"}} 37"#),
            format!(r#"vhost_frames_total{{{port},direction="from_guest"}} 48"#),
            format!(r#"vhost_bytes_total{{{port},direction="to_guest"}} 200"#),
            format!(r#"vhost_drops_total{{{port},direction="to_guest",reason="short"}} 10"#),
            format!(r#"vhost_drops_total{{{port},direction="from_guest",reason="port"}} 0"#),
            format!("vhost_restarts_total{{{port}}} 3"),
            format!("vhost_connected{{{port}}} 1"),
            format!("vhost_up{{{port}}} 1"),
        ] {
            assert!(output.lines().any(|found| found == line), "{line} is missing in\n{output}");
        }
        let memory = output.lines().find(|line| line.starts_with("vhost_resident_memory_bytes{")).unwrap();
        assert!(memory.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn a_device_cannot_invent_names() {
        let nonsense = json!({"connected": "maybe", "rings": [ring("up", 1), ring("rx", 1), 7, {"direction": "tx", "frames": -1}]});
        let output = encoded(vec![vm(Some(nonsense))]);
        assert!(!output.contains(&INVENTED.to_string()) && !output.contains("\"up\""), "{output}");
        assert!(
            output.contains("vhost_connected{")
                && output.lines().all(|line| line.starts_with('#') || line.starts_with("vhost_"))
        );
    }

    #[test]
    fn a_device_that_does_not_answer_is_told_and_no_port_is_silent() {
        let output = encoded(vec![vm(None)]);
        assert!(output.contains(r#"interface="weft1"} 0"#) && !output.contains("vhost_frames_total{"), "{output}");
        assert_eq!(encoded(Vec::new()), "# EOF\n");
    }
}
