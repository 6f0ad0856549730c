// SPDX-License-Identifier: Apache-2.0

//! Probes are the node's alone.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use weft_testbed::{Bed, Options, Shell};

const ASK: &str = "busybox wget -q -O -";

#[test]
fn probes_work_in_either_family_and_pods_reach_neither_them_nor_metrics() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    let pod = bed.container(1, "default/pod", &[])?;
    for host in ["127.0.0.1", "[::1]"] {
        for page in ["healthz", "readyz"] {
            ensure!(node.sh(&format!("{ASK} http://{host}:9911/{page}"))?.ok()? == "ok\n", "{host} {page}");
        }
    }
    ensure!(node.metrics()?.contains("weft_ready 1"), "metrics where they were asked for");
    node.serve("open", 8080)?;
    for host in [node.v4().to_string(), format!("[{}]", node.v6()), "10.244.1.1".to_owned()] {
        let open: SocketAddr = format!("{host}:8080").parse()?;
        pod.ask_within(weft_testbed::Protocol::Tcp, open, Duration::from_secs(5))?;
        for port in [9911, 9912] {
            let outcome = pod.sh(&format!("weft-probe connect tcp {host}:{port} --timeout 5000"))?;
            ensure!(outcome.status != 0 && outcome.output.contains("refused"), "{host}:{port}: {}", outcome.output);
        }
    }
    Ok(())
}

#[test]
fn a_node_without_ipv6_has_probes_too() -> Result<()> {
    let bed = Bed::with(&Options { nodes: 1, ..Options::default() })?;
    let node = bed.node(1);
    node.stop_agent(Signal::SIGTERM)?;
    node.sh("sysctl -q -w net.ipv6.conf.lo.disable_ipv6=1")?.ok()?;
    node.start_agent()?;
    node.agent_ready()?;
    ensure!(node.sh(&format!("{ASK} http://127.0.0.1:9911/readyz"))?.ok()? == "ok\n", "ready");
    Ok(())
}
