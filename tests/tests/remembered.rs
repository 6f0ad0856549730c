// SPDX-License-Identifier: Apache-2.0

//! What a node goes on with: the last known state while the source is away, and the addresses of a pod CIDR that it had before.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_testbed::{Bed, Container, Node, Protocol, Shell, ingress_policy, until_ok};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(20);

fn server(bed: &Bed, number: usize, pod: &str, labels: &[(&str, &str)]) -> Result<Container> {
    let server = bed.container(number, pod, labels)?;
    server.serve(pod, PORT)?;
    Ok(server)
}

fn problems(node: &Node) -> Result<Vec<String>> {
    let status: weft_api::StatusReport = node.weft_json("status")?;
    Ok(status.problems)
}

#[test]
fn pods_start_with_the_last_known_policies_while_the_source_is_away() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    // Their pods are known before they are plugged in, as the kubelet knows a pod whose sandbox it makes anew.
    for (pod, labels) in [("default/server", [("app", "server")]), ("default/friend", [("role", "friend")])] {
        bed.apply(&weft_testbed::pod(pod, node.name(), &labels))?;
    }
    bed.apply(&ingress_policy("default/own", &[("app", "server")], &[("role", "friend")]))?;
    let stranger = bed.container(2, "default/stranger", &[])?;
    until_ok("the policy is known", SOON, || {
        let policies: Vec<weft_api::PolicyReport> = node.weft_json("policies")?;
        ensure!(policies.len() == 1, "{policies:?}");
        Ok(())
    })?;
    // The other agent would make the folder anew; its dataplane goes on.
    bed.node(2).stop_agent(Signal::SIGTERM)?;
    node.stop_agent(Signal::SIGTERM)?;
    bed.switch().sh(None, "mv /mnt/manifests /mnt/away")?.ok()?;
    node.start_agent()?;
    node.agent_ready()?;
    until_ok("the agent runs on what it remembers", SOON, || {
        let status: weft_api::StatusReport = node.weft_json("status")?;
        ensure!(status.source.remembered_since.is_some() && !status.source.synced, "{:?}", status.source);
        ensure!(status.not_ready.is_none(), "{:?}", status.not_ready);
        Ok(())
    })?;
    ensure!(node.weft("status")?.contains("runs on the state remembered"), "{}", node.weft("status")?);

    let server = Container::new(node, "default/server")?;
    server.serve("server", PORT)?;
    let friend = Container::new(node, "default/friend")?;
    let unknown = Container::new(node, "default/unknown")?;
    unknown.serve("unknown", PORT)?;
    for to in server.sockets(PORT) {
        friend.reaches(Protocol::Tcp, to, "server")?;
        stranger.is_kept_out(Protocol::Tcp, to)?;
    }
    friend.is_kept_out(Protocol::Tcp, unknown.sockets(PORT)[0])?;
    let found = problems(node)?;
    let named = |problem: &String| problem.contains("workload default/unknown: closed: its pod is not in the state");
    ensure!(found.iter().any(named), "{found:?}");

    bed.switch().sh(None, "mv /mnt/away /mnt/manifests")?.ok()?;
    until_ok("the source is back", SOON, || {
        let status: weft_api::StatusReport = node.weft_json("status")?;
        ensure!(status.source.remembered_since.is_none() && status.source.synced, "{:?}", status.source);
        Ok(())
    })?;
    for to in server.sockets(PORT) {
        friend.reaches(Protocol::Tcp, to, "server")?;
    }
    Ok(())
}

/// The node's configuration without pod CIDRs: the Node object says them.
fn leave_pod_cidrs_to_the_node_object(node: &Node) -> Result<()> {
    let file = format!("/mnt/{}/agent.yaml", node.name());
    let text = node.sh(&format!("cat {file}"))?.ok()?;
    let mut config: Value = serde_yaml::from_str(&text)?;
    config.as_object_mut().context("no configuration")?.remove("podCIDRs");
    node.sh(&format!("cat >{file} <<'END'\n{config}\nEND"))?.ok().map(drop)
}

fn node_object(node: &Node, third: u8) -> Value {
    let cidrs = [format!("10.244.{third}.0/24"), format!("fd00:244:0:{third}::/64")];
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}})
}

fn third(container: &Container) -> Result<u8> {
    match container.v4()? {
        IpAddr::V4(v4) => Ok(v4.octets()[2]),
        IpAddr::V6(v6) => anyhow::bail!("{v6} is no IPv4 address"),
    }
}

#[test]
fn a_new_pod_cidr_is_followed_and_who_has_old_addresses_goes_on() -> Result<()> {
    let bed = Bed::new()?;
    let node = bed.node(1);
    let far = server(&bed, 2, "default/far", &[])?;
    let mut all = vec![server(&bed, 1, "default/first", &[])?];
    for (number, name) in [(101, "default/second"), (102, "default/third")] {
        bed.apply(&node_object(node, number))?;
        if number == 101 {
            // Over a restart; the next change is while the agent runs.
            leave_pod_cidrs_to_the_node_object(node)?;
            node.stop_agent(Signal::SIGTERM)?;
            node.start_agent()?;
            node.agent_ready()?;
        }
        until_ok("the pod CIDR is the Node object's", SOON, || {
            let status: weft_api::StatusReport = node.weft_json("status")?;
            ensure!(status.pod_cidrs[0].to_string() == format!("10.244.{number}.0/24"), "{:?}", status.pod_cidrs);
            Ok(())
        })?;
        let new = server(&bed, 1, name, &[])?;
        ensure!(third(&new)? == number, "{:?}", new.addresses());
        all.push(new);
        for one in &all {
            for to in one.sockets(PORT) {
                until_ok("each is reached from the other node", SOON, || {
                    far.ask_within(Protocol::Tcp, to, Duration::from_secs(1))
                })?;
                node.reaches(Protocol::Tcp, to, &one.label())?;
                all[0].reaches(Protocol::Tcp, to, &one.label())?;
            }
            for to in far.sockets(PORT) {
                one.reaches(Protocol::Tcp, to, "default/far")?;
            }
        }
    }
    let found = problems(node)?;
    for (cidr, pod) in [("10.244.1.0/24", "default/first"), ("10.244.101.0/24", "default/second")] {
        let named =
            |problem: &String| problem.contains(cidr) && problem.contains(pod) && problem.contains("make them anew");
        ensure!(found.iter().any(named), "{found:?}");
    }
    for old in all.drain(..2) {
        old.attachment().call("DEL")?;
    }
    until_ok("nothing is left to tell", SOON, || {
        let found = problems(node)?;
        ensure!(!found.iter().any(|problem| problem.contains("pod CIDR")), "{found:?}");
        Ok(())
    })
}
