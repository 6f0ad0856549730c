// SPDX-License-Identifier: Apache-2.0
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
};

use serde_json::json;
use weft_api::{AttachmentId, PodRef, VmReport};

use crate::print::Output;

use super::{details, find, overview, trace};

fn vm(namespace: &str, tap: &str) -> VmReport {
    let ring = |index: u64, direction: &str, frames: u64| {
        json!({"index": index, "direction": direction, "frames": frames, "bytes": 10, "kicks": 3, "state": "running",
            "size": 256, "batch_sizes": [5, 0, 7], "drops": {"short": 0, "too_long": index}})
    };
    VmReport {
        id: AttachmentId { network: "weft".into(), container_id: "c".into(), ifname: "eth0".into() },
        pod: Some(PodRef { namespace: namespace.into(), name: "vm".into(), uid: None }),
        ifname: tap.into(),
        socket_path: format!("/run/weft/vhost/{tap}/vhost.sock"),
        control_path: format!("/run/weft/vhost/{tap}/control.sock"),
        log_path: format!("/run/weft/vhost/{tap}/device.log"),
        state: "ready".into(),
        pid: Some(7),
        restarts: 2,
        metrics: Some(
            json!({"connected": true, "connections": 4, "rss_bytes": 3_000_000, "features": ["version_1", "mq"],
            "rings": [ring(0, "rx", 11), ring(1, "tx", 22), ring(2, "rx", 33), ring(3, "tx", 44)]}),
        ),
    }
}

#[test]
fn a_port_is_found_by_its_pod_or_tap_and_doubts_are_told() {
    let vms = [vm("a", "tap1"), vm("b", "tap2")];
    assert_eq!(find(&vms, "b/vm").unwrap().ifname, "tap2");
    assert_eq!(find(&vms, "tap1").unwrap().ifname, "tap1");
    assert_eq!(find(&vms[..1], "vm").unwrap().ifname, "tap1");
    let error = find(&vms, "vm").unwrap_err().to_string();
    assert!(error.contains("tap1") && error.contains("tap2"), "{error}");
    assert!(find(&vms, "c/vm").unwrap_err().to_string().contains("'c/vm'"));
}

#[test]
fn the_overview_adds_up_the_rings() {
    let mut gone = vm("b", "tap2");
    (gone.metrics, gone.state) = (None, "device restarting: signal SIGKILL".into());
    let text = overview(&[vm("a", "tap1"), gone]).render();
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    assert_eq!(
        lines[1],
        ["a/vm", "tap1", "/run/weft/vhost/tap1/vhost.sock", "ready", "2", "connected", "44", "66", "6"]
    );
    assert_eq!(lines[2][3..], ["device restarting: signal SIGKILL", "2", "-", "-", "-", "-"]);
    assert!(overview(&[]).is_empty());
}

#[test]
fn details_name_features_rings_and_reasons() {
    let text = details(&vm("a", "tap1"));
    for part in [
        "a/vm",
        "device.log",
        "connected, 4 connections",
        "version_1 mq",
        "3 from guest",
        "too_long: 3",
        "1: 5",
        "4: 7",
        "2.8 MiB",
    ] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    assert!(!text.contains("short"), "reasons that dropped nothing are left out: {text}");
    assert!(details(&VmReport { metrics: None, ..vm("a", "tap1") }).ends_with("control.sock\n"));
}

#[test]
fn a_trace_is_passed_on_and_a_refusal_told() {
    let path = std::env::temp_dir().join(format!("weft-cli-trace-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let device = std::thread::spawn(move || {
        ["{\"frame\":1}\n{\"direction\":\"to_guest\",\"error\":\"EIO\"}\n", "{\"error\":\"no\"}\n"].map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 8];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        })
    });
    let mut output = Vec::new();
    trace(&path, 2, &mut Output::new(true, &mut output)).unwrap();
    assert_eq!(output, b"{\"frame\":1}\n{\"direction\":\"to_guest\",\"error\":\"EIO\"}\n");
    let error = trace(&path, 2, &mut Output::new(false, Vec::new())).unwrap_err().to_string();
    assert!(error.ends_with("no"), "{error}");
    assert_eq!(device.join().unwrap(), [*b"trace 2\n"; 2]);
    std::fs::remove_file(path).unwrap();
}
