// SPDX-License-Identifier: Apache-2.0

//! NetworkPolicy on real connections: containers and a guest alike.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_api::Explanation;
use weft_testbed::{Bed, Container, Protocol, Shell, ingress_policy, namespace, until_ok};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(10);

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": name}, "spec": spec,
    })
}

/// Waits until `client` is let in: policies are applied within moments, not at once.
fn is_let_in(client: &dyn Shell, sockets: &[SocketAddr]) -> Result<()> {
    for to in sockets {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            until_ok("to be let in", SOON, || client.ask_within(protocol, *to, Duration::from_secs(1)))?;
        }
    }
    Ok(())
}

/// Waits until `client` is kept out.
fn is_kept_out(client: &dyn Shell, sockets: &[SocketAddr]) -> Result<()> {
    for to in sockets {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            until_ok("to be kept out", SOON, || client.is_kept_out(protocol, *to))?;
        }
    }
    Ok(())
}

fn server(bed: &Bed, number: usize, pod: &str, labels: &[(&str, &str)]) -> Result<Container> {
    let server = bed.container(number, pod, labels)?;
    server.serve(pod, PORT)?;
    Ok(server)
}

#[test]
fn ingress_by_namespace_and_pod() -> Result<()> {
    let bed = Bed::new()?;
    bed.apply(&namespace("team", &[("kind", "trusted")]))?;
    let server = server(&bed, 1, "default/server", &[("app", "server")])?;
    let team = bed.container(2, "team/client", &[("role", "client")])?;
    let team_other = bed.container(1, "team/other", &[])?;
    let stranger = bed.container(2, "default/client", &[("role", "client")])?;
    bed.apply(&policy(
        "from-team",
        json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [{
                "namespaceSelector": {"matchLabels": {"kind": "trusted"}},
                "podSelector": {"matchLabels": {"role": "client"}},
            }]}],
        }),
    ))?;
    is_kept_out(&stranger, &server.sockets(PORT))?;
    is_kept_out(&team_other, &server.sockets(PORT))?;
    is_let_in(&team, &server.sockets(PORT))
}

#[test]
fn egress_by_pod_and_port() -> Result<()> {
    let bed = Bed::new()?;
    let allowed = server(&bed, 2, "default/allowed", &[("app", "allowed")])?;
    allowed.serve("other-port", PORT + 1)?;
    let other = server(&bed, 1, "default/other", &[])?;
    let client = bed.container(1, "default/client", &[("role", "client")])?;
    bed.apply(&policy(
        "out",
        json!({
            "podSelector": {"matchLabels": {"role": "client"}},
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{"podSelector": {"matchLabels": {"app": "allowed"}}}],
                "ports": [{"protocol": "TCP", "port": PORT}, {"protocol": "UDP", "port": PORT}],
            }],
        }),
    ))?;
    is_kept_out(&client, &other.sockets(PORT))?;
    is_kept_out(&client, &allowed.sockets(PORT + 1))?;
    is_let_in(&client, &allowed.sockets(PORT))
}

/// What `weft explain` says of a packet on the node of its sender.
fn explained(bed: &Bed, from: &str, to: SocketAddr, source: &Container) -> Result<Explanation> {
    let own = source.addresses().iter().find(|own| own.is_ipv4() == to.is_ipv4());
    let own = own.with_context(|| format!("{from} has no address of the family of {to}"))?;
    let query = format!("weft explain --from {own} --to {} --port {} -o json || [ $? = 4 ]", to.ip(), to.port());
    let text = bed.node(1).sh(&query)?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("weft explain printed: {text}"))
}

#[test]
fn explain_says_of_a_packet_what_happens_to_it() -> Result<()> {
    let bed = Bed::new()?;
    let (near, far) = (server(&bed, 1, "default/near", &[("app", "server")])?, server(&bed, 2, "default/far", &[])?);
    let allowed = bed.container(1, "default/allowed", &[("role", "client")])?;
    let other = bed.container(1, "default/other", &[])?;
    bed.apply(&ingress_policy("default/near", &[("app", "server")], &[("role", "client")]))?;
    is_kept_out(&other, &near.sockets(PORT))?;
    is_let_in(&allowed, &near.sockets(PORT))?;
    for (client, name, server, passes, text) in [
        (&allowed, "default/allowed", &near, true, "delivered to"),
        (&other, "default/other", &near, false, "dropped, policy-ingress"),
        (&other, "default/other", &far, true, "encapsulated to node"),
    ] {
        for to in server.sockets(PORT) {
            let said = explained(&bed, name, to, client)?;
            ensure!(said.forwarded == passes && said.verdict.starts_with(text), "{name} to {to}: {said:#?}");
            ensure!(said.packet.contains(name) && said.hook == "from_workload" && !said.steps.is_empty(), "{said:#?}");
            ensure!(said.differences.is_empty(), "{said:#?}");
        }
    }
    let named = bed.node(1).weft("explain --from default/other --to default/near --port 8080 || [ $? = 4 ]")?;
    ensure!(named.contains("isolated by default/near") && named.contains("judge"), "{named}");
    let unknown = bed.node(1).sh("weft explain --from default/nobody --to 10.0.0.1 2>&1; [ $? = 1 ]")?.ok()?;
    ensure!(unknown.contains("from: default/nobody is neither an address nor known here"), "{unknown}");
    Ok(())
}

#[test]
fn ip_blocks_with_exceptions() -> Result<()> {
    let bed = Bed::new()?;
    let server = server(&bed, 1, "default/server", &[("app", "server")])?;
    let near = bed.container(1, "default/near", &[])?;
    let far = bed.container(2, "default/far", &[])?;
    bed.apply(&policy(
        "blocks",
        json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [
                {"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.1.0/24"]}},
                {"ipBlock": {"cidr": "fd00:244::/32", "except": ["fd00:244:0:1::/64"]}},
            ]}],
        }),
    ))?;
    is_kept_out(&near, &server.sockets(PORT))?;
    is_let_in(&far, &server.sockets(PORT))
}

#[test]
fn a_guest_is_policed_like_a_container() -> Result<()> {
    let bed = Bed::new()?;
    let guest = bed.vm(1, "default/guest", &[("app", "guest"), ("role", "friend")])?;
    guest.serve("guest", PORT)?;
    let server = server(&bed, 2, "default/server", &[("app", "server")])?;
    let friend = bed.container(1, "default/friend", &[("role", "friend")])?;
    let stranger = bed.container(2, "default/stranger", &[])?;
    bed.apply(&ingress_policy("default/guest", &[("app", "guest")], &[("role", "friend")]))?;
    is_kept_out(&stranger, &guest.sockets(PORT))?;
    is_let_in(&friend, &guest.sockets(PORT))?;
    is_let_in(&guest, &server.sockets(PORT))?;
    bed.apply(&ingress_policy("default/server", &[("app", "server")], &[("role", "nobody")]))?;
    is_kept_out(&guest, &server.sockets(PORT))
}

#[test]
fn probes_of_the_own_node_pass() -> Result<()> {
    let bed = Bed::new()?;
    let server = server(&bed, 1, "default/server", &[("app", "server")])?;
    let stranger = bed.container(1, "default/stranger", &[])?;
    bed.apply(&policy("nobody", json!({"podSelector": {}, "policyTypes": ["Ingress"]})))?;
    is_kept_out(&stranger, &server.sockets(PORT))?;
    for to in server.sockets(PORT) {
        bed.node(1).reaches(Protocol::Tcp, to, "default/server")?;
    }
    is_kept_out(bed.node(2).as_ref(), &server.sockets(PORT))
}

#[test]
fn a_new_policy_cuts_live_flows_and_its_end_lets_new_ones_in() -> Result<()> {
    let bed = Bed::new()?;
    let server = server(&bed, 1, "default/server", &[("app", "server")])?;
    let near = bed.container(1, "default/near", &[])?;
    let far = bed.container(2, "default/far", &[])?;
    let closed = ingress_policy("default/closed", &[("app", "server")], &[("role", "nobody")]);
    for (client, to) in [&near, &far].into_iter().zip(server.sockets(PORT)) {
        let stream =
            client.start("stream", &format!("weft-probe stream tcp {to} --rate 100 --seconds 600 --timeout 3000"))?;
        stream.prints(client, "STREAMING", SOON)?;
        bed.apply(&closed)?;
        let outcome = stream.finish(client, Duration::from_secs(60))?;
        assert_ne!(outcome.status, 0, "the stream went on: {}", outcome.output);
        bed.delete(&closed)?;
        is_let_in(client, &[to])?;
    }
    Ok(())
}

#[test]
fn a_policy_elsewhere_leaves_live_flows_alone() -> Result<()> {
    let bed = Bed::new()?;
    let server = server(&bed, 1, "default/server", &[("app", "server")])?;
    let client = bed.container(2, "default/client", &[])?;
    let to = server.sockets(PORT)[0];
    let stream = client.start("stream", &format!("weft-probe stream tcp {to} --rate 500 --seconds 4"))?;
    stream.prints(&client, "STREAMING", SOON)?;
    for number in 0..10 {
        bed.apply(&ingress_policy(&format!("default/p{number}"), &[("app", "other")], &[("role", "nobody")]))?;
    }
    stream.finish(&client, Duration::from_secs(60))?.ok().map(drop)
}

#[test]
fn a_refused_manifest_leaves_the_last_good_policy_in_force() -> Result<()> {
    let bed = Bed::new()?;
    let server = server(&bed, 1, "default/server", &[("app", "server")])?;
    let client = bed.container(1, "default/client", &[])?;
    bed.apply(&ingress_policy("default/closed", &[("app", "server")], &[("role", "nobody")]))?;
    is_kept_out(&client, &server.sockets(PORT))?;
    let mut broken = ingress_policy("default/closed", &[("app", "server")], &[("role", "nobody")]);
    broken["spec"]["ingress"] = json!("everybody");
    bed.apply(&broken)?;
    until_ok("the problem to be told", SOON, || {
        let status: weft_api::StatusReport = bed.node(1).weft_json("status")?;
        anyhow::ensure!(status.problems.iter().any(|problem| problem.contains("closed")), "{:?}", status.problems);
        Ok(())
    })?;
    is_kept_out(&client, &server.sockets(PORT))
}
