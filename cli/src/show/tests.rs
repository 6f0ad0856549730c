// SPDX-License-Identifier: Apache-2.0
use weft_api::{
    BackendReport, FlowEvent, FlowVerdict, RouteReport, ServicePortReport, ServiceReport, SourceState, StatusReport,
};

use super::{bytes, drops, duration, flow, flows, services, status, time_of_day};

fn event() -> FlowEvent {
    FlowEvent {
        time_ns: 1_000_000_000 * (3_600 + 61) + 7_000_000,
        verdict: FlowVerdict::Dropped,
        reason: "policy-ingress".into(),
        protocol: "TCP".into(),
        source: "10.0.0.2".parse().unwrap(),
        source_port: 40_000,
        destination: "fd00::1".parse().unwrap(),
        destination_port: 80,
        backend: Some(("fd00::9".parse().unwrap(), 8080)),
        source_name: Some("default/client".into()),
        destination_name: Some("default/server".into()),
        service: Some("default/web".into()),
        ifname: "weft0".into(),
        rules: vec!["NetworkPolicy default/web: ingress[0]".into()],
    }
}

#[test]
fn a_flow_names_everything_that_is_known() {
    let line = flow(&event(), false);
    let expected = "01:01:01.007 dropped policy-ingress TCP default/client (10.0.0.2:40000) -> [fd00::1]:80 \
                    service default/web backend [fd00::9]:8080 on weft0 (NetworkPolicy default/web: ingress[0])";
    assert_eq!(line, expected);
    let table = flows(&[event()]);
    assert!(table.starts_with("TIME (UTC)") && table.contains("default/web"), "{table}");
}

#[test]
fn a_service_without_backends_says_so() {
    let port = ServicePortReport {
        name: "http".into(),
        protocol: "TCP".into(),
        port: 80,
        node_port: Some(30_080),
        backends: Vec::new(),
    };
    let service = ServiceReport {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        external_ips: vec!["203.0.113.9".parse().unwrap()],
        ports: vec![port],
        affinity_seconds: None,
        algorithm: "random".into(),
    };
    let table = services(&[service]).render();
    let lines: Vec<&str> = table.lines().skip(1).map(str::trim_end).collect();
    let expected = [
        "default/web  10.96.0.7             -       http 80/TCP, nodePort 30080  -",
        "             203.0.113.9 external",
    ];
    assert_eq!(lines, expected, "{table}");
}

#[test]
fn a_service_tells_once_for_how_long_clients_keep_their_backend() {
    let port = |port| ServicePortReport {
        name: String::new(),
        protocol: "TCP".into(),
        port,
        node_port: None,
        backends: Vec::new(),
    };
    let service = ServiceReport {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        external_ips: Vec::new(),
        ports: vec![port(80), port(81)],
        affinity_seconds: Some(10_800),
        algorithm: String::new(),
    };
    let table = services(&[service]).render();
    let affine: Vec<bool> = table.lines().map(|line| line.contains("ClientIP 10800 s")).collect();
    assert_eq!(affine, [false, true, false], "{table}");
}

#[test]
fn a_service_tells_how_it_chooses_and_which_backends_are_unlike_others() {
    let backend = |last, state: &str, weight| BackendReport {
        address: format!("10.1.0.{last}").parse().unwrap(),
        port: 8080,
        node: Some("n1".into()),
        state: state.into(),
        weight,
    };
    let backends = vec![backend(1, "ready", 100), backend(2, "migrating", 25), backend(3, "ready", 300)];
    let port = ServicePortReport { name: String::new(), protocol: "TCP".into(), port: 80, node_port: None, backends };
    let service = ServiceReport {
        namespace: "default".into(),
        name: "web".into(),
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        external_ips: Vec::new(),
        ports: vec![port],
        affinity_seconds: Some(60),
        algorithm: "consistent".into(),
    };
    let table = services(&[service]).render();
    let lines: Vec<&str> = table.lines().skip(1).map(str::trim_end).collect();
    let expected = [
        "default/web  10.96.0.7  consistent     80/TCP  10.1.0.1:8080 on n1",
        "                        ClientIP 60 s          10.1.0.2:8080 on n1 (migrating, weight 25)",
        "                                               10.1.0.3:8080 on n1 (weight 300)",
    ];
    assert_eq!(lines, expected, "{table}");
}

#[test]
fn nothing_is_told_in_words() {
    assert_eq!(drops(&[]), "nothing was dropped\n");
}

#[test]
fn status_tells_why_the_agent_is_not_ready_and_every_problem() {
    let report = StatusReport {
        version: "0.1.0".into(),
        api_version: 1,
        node: "n1".into(),
        mode: "vxlan".into(),
        source: SourceState {
            name: "kubernetes".into(),
            synced: false,
            error: Some("refused".into()),
            remembered_since: Some(0),
        },
        pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
        addresses_used: vec![(3, 253)],
        uplink: "eth0".into(),
        devices: vec!["eth0".into(), "eth1".into()],
        stack_devices: vec!["wg0".into()],
        not_ready: Some("not synced yet".into()),
        applied: true,
        uptime_seconds: 61,
        maps: Vec::new(),
        routes: vec![RouteReport {
            node: "n2".into(),
            pod_cidr: "10.2.0.0/24".parse().unwrap(),
            via: "192.0.2.2".parse().unwrap(),
        }],
        problems: vec!["svc.yaml:3: no".into()],
        events_lost: 0,
    };
    let text = status(&report);
    for part in [
        "not ready: not synced yet",
        "does not answer: refused; runs on the state remembered ",
        "10.1.0.0/24: 3 of 253 used",
        "eth0, eth1\n             wg0: through the host's stack\n",
        "n2          10.2.0.0/24  192.0.2.2",
        "problem: svc.yaml:3: no\n",
    ] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn numbers_are_short() {
    assert_eq!([bytes(10), bytes(2048), bytes(3 << 19)], ["10 B", "2 KiB", "1.5 MiB"]);
    assert_eq!([duration(59), duration(3_661), duration(90_000)], ["59 s", "1 h 1 min", "1 d 1 h"]);
    assert_eq!(time_of_day(0), "00:00:00.000");
}
