// SPDX-License-Identifier: Apache-2.0
//! GC.

use std::fs;

use serde_json::{Value, json};

use crate::node::{Call, Netns, Node};

fn valid(container: &str, ifname: &str) -> Value {
    json!([{"containerID": container, "ifname": ifname}])
}

#[test]
fn gc_removes_what_the_runtime_does_not_know() {
    let (node, one, two) = (Node::new(), Netns::new(), Netns::new());
    let call = Call::new(one.path(), json!({}));
    node.call("ADD", &call).result();
    let before = (node.netns.snapshot(), one.snapshot());
    node.call("ADD", &call.clone().named("c1", "net1")).result();
    node.call("ADD", &Call::new(two.path(), json!({"port": "tap"})).named("c2", "eth0")).result();
    // One whose record is lost: its link tells whose it is.
    node.call("ADD", &Call::new(two.path(), json!({})).named("c3", "eth0")).result();
    fs::remove_file(node.path("attachments/weft.c3.eth0.json")).unwrap();

    node.call("GC", &call.with("cni.dev/valid-attachments", valid("c1", "eth0"))).result();
    assert_eq!((node.netns.snapshot(), one.snapshot()), before);
    assert_eq!(node.files("attachments"), ["weft.c1.eth0.json"]);
    assert_eq!(node.agent.held().len(), 1);
    assert_eq!(two.link_names(), Vec::<String>::new());
}

#[test]
fn gc_leaves_other_networks() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    let gc = call.with("name", json!("other")).with("cni.dev/valid-attachments", json!([]));
    node.call("GC", &gc).result();
    assert_eq!((node.netns.link_names().len(), node.agent.held().len()), (1, 1));
}

#[test]
fn gc_while_the_agent_is_away_removes_links_and_says_so() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    node.agent.die();
    let (code, text) = node.call("GC", &call.with("cni.dev/valid-attachments", json!([]))).error();
    assert!(code == 11 && text.contains("is weft-agent running"), "{code} {text}");
    assert_eq!(node.netns.link_names(), Vec::<String>::new());
    assert_eq!(node.files("pending-del"), ["weft.c1.eth0.json"]);
}

/// As libcni gives it for a runtime that knows of no attachment.
#[test]
fn a_list_that_is_null_is_empty() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    node.call("GC", &call.with("cni.dev/valid-attachments", Value::Null)).result();
    assert_eq!((node.netns.link_names(), node.agent.held().len()), (Vec::new(), 0));
}

#[test]
fn gc_without_a_list_removes_nothing() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call("ADD", &call).result();
    let (code, text) = node.call("GC", &call).error();
    assert!(code == 7 && text.contains("cni.dev/valid-attachments"), "{code} {text}");
    assert_eq!(node.netns.link_names().len(), 1);
}

#[test]
fn a_plugin_that_is_killed_while_it_writes_leaves_nothing() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    node.call_killed_writing("ADD", &call);
    assert_eq!(node.files("attachments"), Vec::<String>::new());
    node.call("ADD", &call).result();
    node.agent.die();
    node.call_killed_writing("DEL", &call);
    assert_eq!(node.files("pending-del"), Vec::<String>::new());
    assert_eq!(node.files("attachments"), ["weft.c1.eth0.json"]);
}

#[test]
fn gc_removes_what_killed_plugins_have_half_written() {
    let node = Node::new();
    for folder in ["attachments", "pending-del"] {
        fs::create_dir_all(node.path(folder)).unwrap();
        fs::write(node.path(folder).join(".weft.c9.eth0.json.tmp"), b"{").unwrap();
    }
    node.call("GC", &Call::new("", json!({"cni.dev/valid-attachments": []}))).result();
    for folder in ["attachments", "pending-del"] {
        assert_eq!(node.files(folder), Vec::<String>::new());
    }
}
