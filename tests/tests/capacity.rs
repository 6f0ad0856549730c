// SPDX-License-Identifier: Apache-2.0

//! A tenant that asks for more than a node's maps hold stops nobody but itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_testbed::{Bed, Options, Protocol, Shell, until_ok};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(20);

fn policy(name: &str, namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// Lets everybody in, by more blocks than fit: each of them stands in the map for itself.
fn huge(name: &str) -> Value {
    let blocks = (0..60).map(|n| json!({"ipBlock": {"cidr": format!("20.{}.{}.0/24", name.len(), 2 * n)}}));
    let everybody = [json!({"ipBlock": {"cidr": "0.0.0.0/0"}}), json!({"ipBlock": {"cidr": "::/0"}})];
    let holes = (0..60).map(|n| json!({"ipBlock": {"cidr": "30.0.0.0/8", "except": [format!("30.{n}.0.0/16")]}}));
    let from: Vec<Value> = blocks.chain(everybody).chain(holes).collect();
    let at_a_port = (0..60)
        .map(|n| json!({"from": [{"ipBlock": {"cidr": format!("40.{n}.0.0/16")}}], "ports": [{"port": 1000 + 2 * n}]}));
    let rules: Vec<Value> = at_a_port.chain([json!({"from": from})]).collect();
    policy(name, "tenant", json!({"podSelector": {}, "ingress": rules}))
}

#[test]
fn policies_that_do_not_fit_close_their_own_workloads_alone() -> Result<()> {
    let config = json!({"mapSizes": {"blocks": 64, "peers": 64, "rules": 64}});
    let bed = Bed::with(&Options { config, ..Options::default() })?;
    let tenant = bed.container(1, "tenant/web", &[])?;
    let other = bed.container(1, "other/web", &[("app", "web")])?;
    let friend = bed.container(2, "other/friend", &[("role", "friend")])?;
    let stranger = bed.container(2, "other/stranger", &[])?;
    for server in [&tenant, &other] {
        server.serve("web", PORT)?;
    }
    let mut own = weft_testbed::ingress_policy("other/own", &[("app", "web")], &[("role", "friend")]);
    bed.apply(&own)?;
    for to in other.sockets(PORT) {
        until_ok("the stranger is kept out", SOON, || stranger.is_kept_out(Protocol::Tcp, to))?;
        friend.reaches(Protocol::Tcp, to, "web")?;
    }
    for to in tenant.sockets(PORT) {
        until_ok("the tenant is open", SOON, || friend.ask_within(Protocol::Tcp, to, Duration::from_secs(1)))?;
    }

    for name in ["a", "bb", "ccc"] {
        bed.apply(&huge(name))?;
    }
    for to in tenant.sockets(PORT) {
        until_ok("the tenant is closed", SOON, || friend.is_kept_out(Protocol::Tcp, to))?;
    }
    is_named(&bed)?;

    // Everybody else goes on: what is decided anew is decided by their own policies, which may change, and pods come and go.
    own["spec"]["ingress"] = json!([{"from": [{"podSelector": {"matchLabels": {"role": "late"}}}]}]);
    bed.apply(&own)?;
    let late = bed.container(1, "other/late", &[("role", "late")])?;
    for to in other.sockets(PORT) {
        until_ok("the friend is kept out", SOON, || friend.is_kept_out(Protocol::Tcp, to))?;
        late.reaches(Protocol::Tcp, to, "web")?;
    }
    late.attachment().call("DEL")?;
    bed.node(1).sh("test -z \"$(ls /mnt/*/state/pending 2>/dev/null)\"")?.ok()?;

    for name in ["a", "bb", "ccc"] {
        bed.delete(&huge(name))?;
    }
    for to in tenant.sockets(PORT) {
        until_ok("the tenant is open again", SOON, || friend.ask_within(Protocol::Tcp, to, Duration::from_secs(1)))?;
    }
    Ok(())
}

/// In `weft status`, `weft policies`, `weft endpoints` and the metrics.
fn is_named(bed: &Bed) -> Result<()> {
    let node = bed.node(1);
    until_ok("the problem to be named", SOON, || {
        let status: weft_api::StatusReport = node.weft_json("status")?;
        let named =
            status.problems.iter().any(|problem| problem.contains("workload tenant/web: its policies do not fit"));
        ensure!(named && status.not_ready.is_none(), "{:?}", status.problems);
        ensure!(!status.problems.iter().any(|problem| problem.contains("other/")), "{:?}", status.problems);
        Ok(())
    })?;
    let policies: Vec<weft_api::PolicyReport> = node.weft_json("policies")?;
    let unfit: Vec<&str> =
        policies.iter().filter(|policy| policy.state.starts_with("does not fit")).map(|policy| &*policy.name).collect();
    ensure!(unfit == ["a", "bb", "ccc"], "{policies:?}");
    let endpoints: Vec<weft_api::EndpointReport> = node.weft_json("endpoints")?;
    let closed: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.state.starts_with("closed")).collect();
    ensure!(closed.len() == 1, "{endpoints:?}");
    let metrics = node.metrics()?;
    for line in
        ["weft_policies_not_fitting 3", "weft_workloads_closed 1", "weft_services_refused 0", "weft_broken_passes 0"]
    {
        ensure!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    Ok(())
}
