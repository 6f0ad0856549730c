// SPDX-License-Identifier: Apache-2.0
//! Several attachments in one sandbox.

use serde_json::json;

use crate::node::{Call, Netns, Node};

#[test]
fn the_first_keeps_the_default_route_and_each_answers_from_its_own() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let empty = sandbox.snapshot();
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    let alone = sandbox.snapshot();
    let net1 = call.clone().named("c1", "net1");
    let net2 = call.clone().named("c1", "net2").with("name", json!("other"));
    let result = node.call("ADD", &net1).result();
    node.call("ADD", &net2).result();

    let table = result["routes"][1]["table"].as_u64().expect("a later attachment has a table of its own");
    assert_eq!(table, 30_000 + sandbox.link("net1").unwrap()["ifindex"].as_u64().unwrap());
    assert_eq!(sandbox.ip("route show default").lines().count(), 1);
    for (source, ifname) in [("10.244.1.2", "eth0"), ("10.244.1.3", "net1"), ("10.244.1.4", "net2")] {
        let route = sandbox.ip(&format!("route get 192.0.2.9 from {source}"));
        assert!(route.contains(&format!("via 10.244.1.1 dev {ifname}")), "{route}");
    }
    for (source, ifname) in [("::1", "eth0"), ("::2", "net1"), ("::3", "net2")] {
        let route = sandbox.ip(&format!("route get 2001:db8::9 from fd00:10:244:1{source}"));
        assert!(route.contains(&format!("via fe80::1 dev {ifname}")), "{route}");
    }
    node.call("CHECK", &net1.clone().with("prevResult", result)).result();
    for call in [&net2, &net1] {
        node.call("DEL", call).result();
    }
    assert_eq!(sandbox.snapshot(), alone);
    node.call("DEL", &call).result();
    assert_eq!(sandbox.snapshot(), empty);
}

#[test]
fn the_first_may_go_before_the_others() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let empty = sandbox.snapshot();
    let call = Call::new(sandbox.path(), json!({}));
    let net1 = call.clone().named("c1", "net1");
    node.call("ADD", &call).result();
    node.call("ADD", &net1).result();
    node.call("DEL", &call).result();
    assert!(sandbox.ip("route get 192.0.2.9 from 10.244.1.3").contains("dev net1"));
    // The namespace's path of the runtime may be lost: the record knows it.
    node.call("DEL", &Call { netns: String::new(), ..net1 }).result();
    assert_eq!(sandbox.snapshot(), empty);
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_asked_or_made() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    let before = (node.netns.snapshot(), sandbox.snapshot(), node.agent.heard());
    for again in [call.clone(), call.named("c2", "eth0")] {
        let (code, text) = node.call("ADD", &again).error();
        assert!(code == 4 && text.contains("'eth0'"), "{code} {text}");
        assert_eq!((node.netns.snapshot(), sandbox.snapshot(), node.agent.heard()), before);
    }
}
