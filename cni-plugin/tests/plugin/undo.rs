// SPDX-License-Identifier: Apache-2.0
//! A failed ADD leaves nothing, whichever step fails.

use std::{fs, process::Stdio};

use rstest::rstest;
use serde_json::json;
use weft_api::{ErrorCode, Route};

use crate::{
    fake_agent::Fault,
    node::{Call, Netns, Node},
};

/// Runs an ADD that must fail and returns its error; asserts that both namespaces and the state folder are as before.
fn failed_add(node: &Node, sandbox: &Netns, more: serde_json::Value) -> (u64, String) {
    let before = (node.netns.snapshot(), sandbox.snapshot());
    let error = node.call("ADD", &Call::new(sandbox.path(), more)).error();
    assert_eq!((node.netns.snapshot(), sandbox.snapshot()), before);
    assert_eq!(node.files("attachments"), Vec::<String>::new());
    assert!(!error.1.contains("undo:"), "{}", error.1);
    error
}

#[rstest]
#[case(ErrorCode::Invalid, 7)]
#[case(ErrorCode::Exists, 4)]
#[case(ErrorCode::Exhausted, 11)]
#[case(ErrorCode::NotReady, 50)]
#[case(ErrorCode::Io, 5)]
fn a_refused_allocation(#[case] refusal: ErrorCode, #[case] code: u64) {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::Refuse("allocate", refusal));
    assert_eq!(failed_add(&node, &sandbox, json!({})).0, code);
    assert_eq!(node.agent.heard(), ["allocate"], "a refusal allocates nothing that could be released");
}

#[test]
fn a_refused_static_address_is_the_configurations_fault() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::Refuse("allocate", ErrorCode::Exists));
    assert_eq!(failed_add(&node, &sandbox, json!({"runtimeConfig": {"ips": ["10.244.1.9"]}})).0, 7);
}

#[test]
fn an_allocation_whose_answer_is_lost() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::HangUp("allocate"));
    assert_eq!(failed_add(&node, &sandbox, json!({})).0, 11);
    assert_eq!(node.agent.heard(), ["allocate", "release"]);
    assert!(node.agent.held().is_empty());
}

#[test]
fn an_answer_of_another_version() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::Garbage("allocate"));
    let (code, text) = failed_add(&node, &sandbox, json!({}));
    assert!(code == 101 && text.contains("another version"), "{code} {text}");
    assert!(node.agent.held().is_empty());
}

#[test]
fn an_allocation_that_breaks_the_contract() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.change(|allocation| allocation.host_ifname = "a/b".to_owned());
    let (code, text) = failed_add(&node, &sandbox, json!({}));
    assert!(code == 101 && text.contains("'a/b'"), "{code} {text}");
    assert!(node.agent.held().is_empty());
}

#[test]
fn a_state_folder_that_cannot_be_written() {
    let (node, sandbox) = (Node::new(), Netns::new());
    fs::write(node.path("file"), "").unwrap();
    let (code, text) = failed_add(&node, &sandbox, json!({"stateDir": node.path("file/below")}));
    assert!(code == 5 && text.contains("file/below"), "{code} {text}");
    assert!(node.agent.held().is_empty());
}

#[rstest]
fn a_host_interface_name_that_is_taken(#[values("veth", "tap")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.netns.ip("link add weft0000000001 type bridge");
    let (code, text) = failed_add(&node, &sandbox, json!({"port": port}));
    assert!(code == 4 && text.contains("weft0000000001"), "{code} {text}");
    assert!(node.agent.held().is_empty());
}

#[rstest]
fn a_refused_attach(#[values("veth", "tap", "vhost-user")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::Refuse("attach", ErrorCode::Io));
    assert_eq!(failed_add(&node, &sandbox, json!({"port": port})).0, 5);
    assert_eq!(node.agent.heard(), ["allocate", "attach", "release"]);
}

#[rstest]
fn an_attach_whose_answer_is_lost(#[values("veth", "tap")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::HangUp("attach"));
    assert_eq!(failed_add(&node, &sandbox, json!({"port": port})).0, 11);
    assert!(node.agent.held().is_empty());
}

#[rstest]
fn an_agent_that_dies_between_the_halves_is_left_a_note(#[values("veth", "tap")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::Die("attach"));
    assert_eq!(failed_add(&node, &sandbox, json!({"port": port})).0, 11);
    assert_eq!(node.files("pending-del"), ["weft.c1.eth0.json"]);

    // The same attachment may come again: the note must not release the new one.
    node.agent.recover();
    node.call("ADD", &Call::new(sandbox.path(), json!({"port": port}))).result();
    assert_eq!(node.files("pending-del"), Vec::<String>::new());
    assert_eq!(node.agent.heard(), ["allocate", "attach", "release", "allocate", "attach"]);
    assert_eq!(node.agent.held().len(), 1);
}

#[test]
fn an_address_that_the_kernel_refuses() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.change(|allocation| allocation.addresses.push(allocation.addresses[0].clone()));
    let (code, text) = failed_add(&node, &sandbox, json!({}));
    assert!(code == 5 && text.contains("add the address 10.244.1.2/32"), "{code} {text}");
    assert!(node.agent.held().is_empty());
}

#[test]
fn a_route_that_the_kernel_refuses() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.change(|allocation| {
        let (dst, gateway) = ("203.0.113.0/24".parse().unwrap(), Some("192.0.2.1".parse().unwrap()));
        allocation.routes.push(Route { dst, gateway });
    });
    let (code, text) = failed_add(&node, &sandbox, json!({}));
    assert!(code == 5 && text.contains("203.0.113.0/24 via 192.0.2.1"), "{code} {text}");
    assert!(text.contains("invalid gateway"), "the kernel's own words: {text}");
    assert!(node.agent.held().is_empty());
}

#[test]
fn a_result_that_nobody_reads() {
    let (node, sandbox) = (Node::new(), Netns::new());
    sandbox.ip("link add first0 type veth peer name first1");
    sandbox.ip("link set first0 up");
    sandbox.ip("route add default dev first0");
    let before = (node.netns.snapshot(), sandbox.snapshot());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let call = Call::new(sandbox.path(), json!({}));
    let outcome = node.call_raw("ADD", &call, &node.config(&call), Stdio::from(writer));
    assert!(!outcome.succeeded);
    // With a default route there before, a rule was added: it must be gone too.
    assert_eq!((node.netns.snapshot(), sandbox.snapshot()), before);
    assert_eq!(node.files("attachments"), Vec::<String>::new());
    assert!(node.agent.held().is_empty());
}

#[test]
fn an_undo_that_fails_stands_in_the_details() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.fail(Fault::Die("attach"));
    fs::write(node.path("file"), "").unwrap();
    let call = Call::new(sandbox.path(), json!({"pendingDir": node.path("file/below")}));
    let (code, text) = node.call("ADD", &call).error();
    assert!(code == 11 && text.contains("undo:") && text.contains("file/below"), "{code} {text}");
    assert_eq!(node.netns.link_names(), Vec::<String>::new());
}
