// SPDX-License-Identifier: Apache-2.0
//! DEL always succeeds and leaves nothing.

use std::fs;

use rstest::rstest;
use serde_json::{Value, json};
use weft_api::{AttachmentId, ErrorCode};

use crate::{
    fake_agent::Fault,
    node::{Call, Netns, Node},
};

fn assert_nothing_left(node: &Node) {
    assert_eq!(node.netns.link_names(), Vec::<String>::new());
    assert_eq!(node.files("attachments"), Vec::<String>::new());
}

#[rstest]
fn del_undoes_add_and_may_come_twice(
    #[values("0.3.1", "0.4.0", "1.0.0", "1.1.0")] version: &str,
    #[values("veth", "tap", "vhost-user")] port: &str,
) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let before = (node.netns.snapshot(), sandbox.snapshot());
    let call = Call::new(sandbox.path(), json!({"cniVersion": version, "port": port}));
    node.call("ADD", &call).result();
    assert_eq!(node.files("attachments"), ["weft.c1.eth0.json"]);
    for _ in 0..2 {
        assert_eq!(node.call("DEL", &call).result(), Value::Null);
        assert_eq!((node.netns.snapshot(), sandbox.snapshot()), before);
        assert_nothing_left(&node);
        assert!(node.agent.held().is_empty());
    }
}

#[test]
fn del_of_what_never_was_succeeds() {
    let node = Node::new();
    node.call("DEL", &Call::new("/run/netns/never-was", json!({}))).result();
    assert_eq!(node.agent.heard(), ["release"]);
}

#[rstest]
fn del_works_without_the_sandbox(#[values(true, false)] told: bool) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    let path = if told { sandbox.path() } else { String::new() };
    drop(sandbox);
    node.call("DEL", &Call { netns: path, ..call }).result();
    assert_nothing_left(&node);
}

#[rstest]
fn del_while_the_agent_is_away_leaves_it_a_note(#[values("veth", "tap")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({"port": port}));
    node.call("ADD", &call).result();
    node.agent.die();
    for _ in 0..2 {
        node.call("DEL", &call).result();
        assert_nothing_left(&node);
        assert_eq!(node.files("pending-del"), ["weft.c1.eth0.json"]);
    }
    let note = fs::read(node.path("pending-del/weft.c1.eth0.json")).unwrap();
    let id: AttachmentId = serde_json::from_slice(&note).unwrap();
    assert_eq!(id.to_string(), "weft/c1/eth0");

    // Heard by the agent after all, the note goes.
    node.agent.recover();
    node.call("DEL", &call).result();
    assert_eq!(node.files("pending-del"), Vec::<String>::new());
    assert!(node.agent.held().is_empty());
}

#[rstest]
#[case(Fault::Refuse("release", ErrorCode::Io))]
#[case(Fault::HangUp("release"))]
#[case(Fault::Garbage("release"))]
#[case(Fault::Stall("release"))]
fn del_with_an_agent_that_fails_leaves_it_a_note(#[case] fault: Fault) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    node.agent.fail(fault);
    node.call("DEL", &call).result();
    assert_nothing_left(&node);
    assert_eq!(node.files("pending-del"), ["weft.c1.eth0.json"]);
}

#[test]
fn del_with_neither_agent_nor_disk_says_so_and_works_later() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    node.agent.die();
    fs::write(node.path("file"), "").unwrap();
    let (code, text) = node.call("DEL", &call.clone().with("pendingDir", json!(node.path("file/below")))).error();
    assert!(code == 5 && text.contains("file/below"), "{code} {text}");
    node.call("DEL", &call).result();
    assert_nothing_left(&node);
}

#[rstest]
fn del_finds_the_link_without_its_record(#[values("veth", "tap")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({"port": port}));
    node.call("ADD", &call).result();
    fs::remove_dir_all(node.path("attachments")).unwrap();
    node.agent.die();
    node.call("DEL", &call).result();
    assert_nothing_left(&node);
}

#[test]
fn del_leaves_the_interfaces_of_others() {
    let (node, sandbox) = (Node::new(), Netns::new());
    sandbox.ip("link add eth0 type bridge");
    let call = Call::new(sandbox.path(), json!({}));
    assert_eq!(node.call("ADD", &call).error().0, 4);
    node.call("DEL", &call).result();
    assert_eq!(sandbox.link_names(), ["eth0"]);

    // A name on the host that was given to another attachment since.
    let (one, other) = (call.clone().named("c1", "net1"), call.named("c2", "net2"));
    node.call("ADD", &one).result();
    let name = &node.netns.link_names()[0];
    node.netns.ip(&format!("link del {name}"));
    node.agent.change(|allocation| allocation.host_ifname = "weft0000000001".to_owned());
    node.call("ADD", &other).result();
    node.call("DEL", &one).result();
    assert_eq!(node.netns.link_names(), ["weft0000000001"]);
}

#[test]
fn del_goes_on_with_a_configuration_that_add_would_refuse() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    let odd = json!({"cniVersion": "9.9.9", "prot": "tap", "mtu": "big", "queues": 4,
        "runtimeConfig": {"portMappings": [{"hostPort": "http"}]}});
    node.call("DEL", &Call { args: "what", ..Call::new(sandbox.path(), odd) }).result();
    assert_nothing_left(&node);
    assert!(node.agent.held().is_empty());
}

#[test]
fn del_needs_to_know_which_attachment() {
    let node = Node::new();
    let call = Call::new("", json!({}));
    let (code, text) = node.call("DEL", &call.clone().named("", "eth0")).error();
    assert!(code == 4 && text.contains("CNI_CONTAINERID"), "{code} {text}");
    assert_eq!(node.call_raw("DEL", &call, "{", std::process::Stdio::piped()).error().0, 6);
}

#[rstest]
fn del_cleans_up_after_an_add_that_was_killed(
    #[values("allocate", "attach")] op: &'static str,
    #[values("veth", "tap")] port: &str,
) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let before = (node.netns.snapshot(), sandbox.snapshot());
    let call = Call::new(sandbox.path(), json!({"port": port}));
    node.agent.fail(Fault::Stall(op));
    node.add_killed_at(&call, op);
    node.agent.recover();
    node.call("DEL", &call).result();
    assert_eq!((node.netns.snapshot(), sandbox.snapshot()), before);
    assert_nothing_left(&node);
    assert!(node.agent.held().is_empty());
}
