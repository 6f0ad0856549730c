// SPDX-License-Identifier: Apache-2.0
//! Taps and vhost-user ports.

use rstest::rstest;
use serde_json::json;

use crate::{
    fake_agent::GATEWAY_MAC,
    node::{Call, Netns, Node},
};

#[rstest]
#[case(1, false)]
#[case(4, true)]
fn a_tap_is_persistent_in_the_hosts_namespace(#[case] queues: u16, #[case] multi_queue: bool) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let before = sandbox.snapshot();
    let more = json!({"port": "tap", "queues": queues, "mtu": 9000, "owner": 107, "group": 36});
    let call = Call::new(sandbox.path(), more);
    let result = node.call("ADD", &call).result();

    let tap = node.netns.link(result["interfaces"][0]["name"].as_str().unwrap()).unwrap();
    let info = &tap["linkinfo"];
    assert_eq!((&info["info_kind"], &info["info_data"]["type"]), (&json!("tun"), &json!("tap")));
    for (flag, expected) in [("persist", true), ("vnet_hdr", true), ("multi_queue", multi_queue), ("pi", false)] {
        assert_eq!(info["info_data"][flag].as_bool().unwrap_or(false), expected, "{flag}: {info}");
    }
    assert!(info.to_string().contains("107") && info.to_string().contains("36"), "{info}");
    assert_eq!((&tap["mtu"], &tap["address"]), (&json!(9000), &json!(GATEWAY_MAC)));
    assert!(tap["flags"].as_array().unwrap().contains(&json!("UP")));
    assert_eq!(tap["inet6_addr_gen_mode"], "none");
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:01:01");
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(node.agent.asked().queues, queues);
    assert_eq!(sandbox.snapshot(), before, "a tap leaves the sandbox alone");
    node.call("CHECK", &call.with("prevResult", result)).result();
}

#[test]
fn a_tap_needs_no_namespace() {
    let node = Node::new();
    let call = Call::new("", json!({"port": "tap"}));
    let result = node.call("ADD", &call).result();
    assert_eq!(result["interfaces"][1]["sandbox"], "c1");
    let again = node.call("ADD", &call).error();
    assert!(again.0 == 4 && again.1.contains("run DEL first"), "{again:?}");
    node.call("CHECK", &call.clone().with("prevResult", result)).result();
    node.call("DEL", &call).result();
    assert_eq!(node.netns.link_names(), Vec::<String>::new());
}

#[test]
fn a_vhost_user_port_tells_its_socket() {
    let node = Node::new();
    let call = Call::new("", json!({"port": "vhost-user", "queues": 2, "owner": 107, "group": 36}));
    let result = node.call("ADD", &call).result();
    let asked = node.agent.asked();
    assert_eq!((asked.owner, asked.group), (Some(107), Some(36)), "the socket belongs to the VMM's user");
    assert_eq!(result["interfaces"][1]["socketPath"], "/run/weft/vhost/1.sock");
    let old = call.clone().named("c2", "eth0").with("cniVersion", json!("1.0.0"));
    assert!(node.call("ADD", &old).result()["interfaces"][1].get("socketPath").is_none());

    node.agent.change(|allocation| allocation.socket_path = None);
    let (code, text) = node.call("ADD", &call.named("c3", "eth0")).error();
    assert!(code == 101 && text.contains("socket_path"), "{code} {text}");
    assert_eq!(node.agent.held().len(), 2);
}
