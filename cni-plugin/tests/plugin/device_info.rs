// SPDX-License-Identifier: Apache-2.0
//! The device-info file of a vhost-user port, from ADD to DEL and GC.

use std::fs;

use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    fake_agent::Fault,
    node::{Call, Node},
};

/// Multus' name for the file of an attachment.
const FILE: &str = "devinfo/cni/weft-c1-eth0";

fn call(node: &Node) -> Call {
    let capabilities = json!({"CNIDeviceInfoFile": true});
    let more = json!({"port": "vhost-user", "capabilities": capabilities});
    Call::new("", more).with("runtimeConfig", json!({"CNIDeviceInfoFile": node.path(FILE)}))
}

fn content(node: &Node) -> Value {
    serde_json::from_slice(&fs::read(node.path(FILE)).unwrap()).unwrap()
}

#[test]
fn add_writes_it_check_reads_it_del_removes_it() {
    let node = Node::new();
    let call = call(&node);
    let result = node.call("ADD", &call).result();
    let socket = &result["interfaces"][1]["socketPath"];
    let expected = json!({"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "client", "path": socket}});
    assert_eq!(content(&node), expected);
    let check = call.clone().with("prevResult", result);
    node.call("CHECK", &check).result();

    fs::write(node.path(FILE), r#"{"type": "vhost-user"}"#).unwrap();
    let (code, text) = node.call("CHECK", &check).error();
    assert!(code == 100 && text.contains("does not name the socket /run/weft/vhost/1.sock"), "{code} {text}");
    fs::remove_file(node.path(FILE)).unwrap();
    let (code, text) = node.call("CHECK", &check).error();
    assert!(code == 100 && text.contains(FILE) && text.contains("missing"), "{code} {text}");

    node.call("DEL", &call).result();
    node.call("ADD", &call).result();
    for _ in 0..2 {
        // A runtime may forget what it told: the plugin has its own record.
        node.call("DEL", &Call::new("", json!({"port": "vhost-user"}))).result();
        assert_eq!(node.files("devinfo/cni"), Vec::<String>::new());
    }
}

#[test]
fn without_the_capability_there_is_none() {
    let node = Node::new();
    node.call("ADD", &Call::new("", json!({"port": "vhost-user"}))).result();
    assert!(!node.path("devinfo").exists());
}

#[test]
fn gc_removes_it() {
    let node = Node::new();
    let call = call(&node);
    node.call("ADD", &call).result();
    let keep = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let gc = Call::new("", json!({}));
    node.call("GC", &gc.clone().with("cni.dev/valid-attachments", keep)).result();
    assert_eq!(node.files("devinfo/cni").len(), 1);
    node.call("GC", &gc.with("cni.dev/valid-attachments", json!([]))).result();
    assert_eq!(node.files("devinfo/cni"), Vec::<String>::new());
}

#[rstest]
#[case::a_folder_in_its_place(true)]
#[case::no_folder_can_be_made(false)]
fn a_file_that_cannot_be_written_undoes_the_add(#[case] folder: bool) {
    let node = Node::new();
    let blocked = if folder { node.path("devinfo/cni/.weft-c1-eth0.tmp") } else { node.path("devinfo") };
    fs::create_dir_all(blocked.parent().unwrap()).unwrap();
    if folder {
        fs::create_dir(&blocked).unwrap()
    } else {
        fs::write(&blocked, "").unwrap()
    }
    let (code, text) = node.call("ADD", &call(&node)).error();
    assert!(code == 5 && text.contains("cannot write the device-info file") && text.contains(FILE), "{code} {text}");
    assert_eq!(node.netns.link_names(), Vec::<String>::new());
    assert_eq!(node.files("attachments"), Vec::<String>::new());
    assert!(node.agent.held().is_empty() && !node.path(FILE).exists());
}

#[test]
fn a_later_failure_removes_it() {
    let node = Node::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let call = call(&node);
    // Nobody reads the result: the last step fails.
    assert!(!node.call_raw("ADD", &call, &node.config(&call), writer.into()).succeeded);
    assert_eq!(node.files("devinfo/cni"), Vec::<String>::new());
    assert!(node.agent.held().is_empty());
}

#[test]
fn a_device_plugins_file_is_refused_and_kept() {
    let node = Node::new();
    fs::create_dir_all(node.path("devinfo/cni")).unwrap();
    fs::write(node.path(FILE), r#"{"type": "pci", "version": "1.1.0"}"#).unwrap();
    let (code, text) = node.call("ADD", &call(&node)).error();
    assert!(code == 7 && text.contains(FILE) && text.contains("resourceName"), "{code} {text}");
    assert_eq!(node.agent.heard(), Vec::<String>::new(), "refused before anything is made");
    node.call("DEL", &call(&node)).result();
    assert_eq!(content(&node)["type"], "pci");
}

#[test]
fn an_add_that_was_killed_may_come_again() {
    let node = Node::new();
    let call = call(&node);
    node.agent.fail(Fault::Stall("attach"));
    node.add_killed_at(&call, "attach");
    node.agent.recover();
    // As if it had been killed right after the file was written.
    let file = json!({"type": "vhost-user", "version": "1.1.0",
        "vhost-user": {"mode": "client", "path": "/run/weft/vhost/1.sock"}});
    fs::create_dir_all(node.path("devinfo/cni")).unwrap();
    fs::write(node.path(FILE), file.to_string()).unwrap();
    node.call("DEL", &call).result();
    assert_eq!(node.files("devinfo/cni"), Vec::<String>::new());
    node.call("ADD", &call).result();
}
