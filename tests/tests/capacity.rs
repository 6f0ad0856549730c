// SPDX-License-Identifier: Apache-2.0

//! A tenant that asks for more than a node's maps hold stops nobody but itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_testbed::{Bed, Options, Protocol, Shell, until_ok};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(20);
/// What is closed for how many pods there are is decided anew every 15 s.
const DECIDED_ANEW: Duration = Duration::from_secs(60);

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
    let problems = has_problem(bed, "workload tenant/web: its policies do not fit")?;
    ensure!(!problems.iter().any(|problem| problem.contains("other/")), "{problems:?}");
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

/// A policy for `tenant/web` that lets pods of all namespaces in at a port, whose labels are as the expression says.
fn meaning(name: &str, port: u16, expression: Value) -> Value {
    let peer = json!({"namespaceSelector": {}, "podSelector": {"matchExpressions": [expression]}});
    let rule = json!({"from": [peer], "ports": [{"port": port}]});
    policy(name, "tenant", json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]}))
}

/// Waits for a problem with this in it; all problems. The node goes on.
fn has_problem(bed: &Bed, what: &str) -> Result<Vec<String>> {
    until_ok(what, SOON, || {
        let status: weft_api::StatusReport = bed.node(1).weft_json("status")?;
        let is_there = status.problems.iter().any(|problem| problem.contains(what));
        ensure!(is_there && status.not_ready.is_none(), "{:?}", status.problems);
        Ok(status.problems)
    })
}

/// A pod has room for 22 selectors. Somebody else's do not take the places of those of its own namespace, and what is left out lets it in
/// nowhere.
#[test]
fn a_pod_that_a_tenant_means_by_many_selectors_is_let_in_by_its_own_namespace() -> Result<()> {
    const MANY: u16 = 30;
    let bed = Bed::new()?;
    let (tenant, other) =
        (bed.container(1, "tenant/web", &[("app", "web")])?, bed.container(1, "other/web", &[("app", "web")])?);
    let friend = bed.container(2, "other/friend", &[("role", "friend")])?;
    let stranger = bed.container(2, "other/stranger", &[])?;
    other.serve("web", PORT)?;
    for n in 0..MANY {
        tenant.serve("web", PORT + n)?;
        let values = json!(["friend", format!("other-{n}")]);
        let expression = json!({"key": "role", "operator": "In", "values": values});
        bed.apply(&meaning(&format!("many-{n:02}"), PORT + n, expression))?;
    }
    has_problem(&bed, "Namespace other: some of its pods are meant by more different selectors than fit")?;
    bed.apply(&weft_testbed::ingress_policy("other/own", &[("app", "web")], &[("role", "friend")]))?;
    for to in other.sockets(PORT) {
        until_ok("the stranger is kept out", SOON, || stranger.is_kept_out(Protocol::Tcp, to))?;
        friend.reaches(Protocol::Tcp, to, "web")?;
    }
    let second = Duration::from_secs(1);
    let open =
        |n: &u16| tenant.sockets(PORT + n).into_iter().all(|to| friend.ask_within(Protocol::Tcp, to, second).is_ok());
    assert_eq!((0..MANY).filter(open).count(), 21, "21 of the tenant's stay beside that of the pod's own namespace");
    for to in tenant.sockets(PORT) {
        stranger.is_kept_out(Protocol::Tcp, to)?;
    }
    for n in 10..MANY {
        bed.delete(&meaning(&format!("many-{n:02}"), PORT + n, Value::Null))?;
    }
    for to in tenant.sockets(PORT + 9) {
        until_ok("what fits again lets the pod in", SOON, || friend.ask_within(Protocol::Tcp, to, second))?;
    }
    Ok(())
}

/// A tenant that asks for labels which differ from pod to pod makes more classes of pods than fit: its own policies are closed, and others'
/// pods stay known.
#[test]
fn a_tenant_that_tells_every_pod_apart_closes_its_own_workloads_alone() -> Result<()> {
    const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
    let config = json!({"mapSizes": {"classes": 64}});
    let bed = Bed::with(&Options { config, ..Options::default() })?;
    let tenant = bed.container(1, "tenant/web", &[("app", "web")])?;
    let other = bed.container(1, "other/web", &[("app", "web")])?;
    let friend = bed.container(2, "other/friend", &[("role", "friend"), (POD_NAME, "friend-0")])?;
    let stranger = bed.container(2, "other/stranger", &[(POD_NAME, "stranger-0")])?;
    for server in [&tenant, &other] {
        server.serve("web", PORT)?;
    }
    for n in 0..40 {
        let mut pod = weft_testbed::pod(&format!("crowd/web-{n}"), "node2", &[(POD_NAME, &format!("web-{n}"))]);
        pod["status"] = json!({"phase": "Running", "podIP": format!("10.244.2.{}", 100 + n), "podIPs": [{"ip": format!("10.244.2.{}", 100 + n)}]});
        bed.apply(&pod)?;
    }
    bed.apply(&weft_testbed::ingress_policy("other/own", &[("app", "web")], &[("role", "friend")]))?;
    let expression = |operator: &str| json!({"key": POD_NAME, "operator": operator});
    bed.apply(&meaning("apart", PORT, expression("Exists")))?;
    has_problem(&bed, "workload tenant/web: its policies do not fit (tenant/apart)")?;
    for to in tenant.sockets(PORT) {
        friend.is_kept_out(Protocol::Tcp, to)?;
    }
    for to in other.sockets(PORT) {
        until_ok("the stranger is kept out", SOON, || stranger.is_kept_out(Protocol::Tcp, to))?;
        friend.reaches(Protocol::Tcp, to, "web")?;
    }
    bed.delete(&meaning("apart", PORT, Value::Null))?;
    for to in tenant.sockets(PORT) {
        until_ok("the tenant is open again", SOON, || friend.ask_within(Protocol::Tcp, to, Duration::from_secs(1)))?;
    }
    Ok(())
}

/// A namespace with more pods than fit is not known to policies. Once its pods are gone, without any other change, those that are left are.
#[test]
fn a_namespace_whose_pods_fit_again_is_known_again() -> Result<()> {
    let config = json!({"mapSizes": {"classes": 64}});
    let bed = Bed::with(&Options { config, ..Options::default() })?;
    let other = bed.container(1, "other/web", &[("app", "web")])?;
    let friend = bed.container(2, "crowd/friend", &[("role", "friend")])?;
    other.serve("web", PORT)?;
    let crowd = |n: u32| {
        let mut pod = weft_testbed::pod(&format!("crowd/web-{n}"), "node2", &[("role", &format!("web-{n}"))]);
        let address = format!("10.244.2.{}", 100 + n);
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        pod
    };
    for n in 0..40 {
        bed.apply(&crowd(n))?;
    }
    let peer =
        json!({"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "role", "operator": "Exists"}]}});
    bed.apply(&policy("known", "other", json!({"podSelector": {}, "ingress": [{"from": [peer]}]})))?;
    has_problem(&bed, "Namespace crowd: its pods do not fit")?;
    for to in other.sockets(PORT) {
        until_ok("the friend is kept out", SOON, || friend.is_kept_out(Protocol::Tcp, to))?;
    }
    for n in 0..40 {
        bed.delete(&crowd(n))?;
    }
    for to in other.sockets(PORT) {
        until_ok("the friend is let in", DECIDED_ANEW, || {
            friend.ask_within(Protocol::Tcp, to, Duration::from_secs(1))
        })?;
    }
    Ok(())
}
