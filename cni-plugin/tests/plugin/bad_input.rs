// SPDX-License-Identifier: Apache-2.0
//! Bad input is refused with the field's name, before the agent is asked or anything is made.

use std::process::Stdio;

use rstest::rstest;
use serde_json::{Value, json};

use crate::node::{Call, Netns, Node};

#[rstest]
#[case(json!({"prot": "tap"}), 7, "unknown field 'prot'")]
#[case(json!({"ipam": {"type": "host-local"}}), 7, "unknown field 'ipam'")]
#[case(json!({"queues": 4}), 7, "'queues' is for a tap and contradicts port 'veth'")]
#[case(json!({"mtu": 70000}), 7, "'mtu' is 70000")]
#[case(json!({"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.300"]}}), 7, "runtimeConfig.ips")]
#[case(json!({"capabilities": {"bandwidth": true}}), 7, "capabilities.bandwidth")]
#[case(json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}), 2, "runtimeConfig.bandwidth")]
#[case(json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 0}]}}), 7, "portMappings[0].containerPort")]
#[case(json!({"cniVersion": "0.2.0"}), 1, "'0.2.0'")]
#[case(json!({"prevResult": {"ips": [{"address": "10.0.0.1/8", "interface": 3}]}}), 7, "prevResult.ips")]
fn a_wrong_configuration(#[case] more: Value, #[case] code: u64, #[case] part: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let before = (node.netns.snapshot(), sandbox.snapshot());
    let (found, text) = node.call("ADD", &Call::new(sandbox.path(), more)).error();
    assert!(found == code && text.contains(part), "{found} {text}");
    assert_eq!((node.netns.snapshot(), sandbox.snapshot()), before);
    assert!(node.agent.heard().is_empty());
}

#[rstest]
#[case("", "CNI_NETNS is missing")]
#[case("/run/netns/not-there", "does not exist")]
#[case("/proc/self/exe", "is not a network namespace")]
fn a_wrong_namespace(#[case] netns: &str, #[case] part: &str) {
    let node = Node::new();
    let (code, text) = node.call("ADD", &Call::new(netns, json!({}))).error();
    assert!(code == 4 && text.contains(part), "{code} {text}");
    assert!(node.agent.heard().is_empty());
}

#[test]
fn a_namespace_that_is_a_fifo_or_a_socket_is_refused_at_once() {
    let node = Node::new();
    let (fifo, socket) = (node.path("fifo"), node.path("socket"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [fifo, socket] {
        let path = path.to_str().unwrap().to_owned();
        let (code, text) = node.call("ADD", &Call::new(path.clone(), json!({}))).error();
        assert!(code == 4 && text.contains(&format!("CNI_NETNS '{path}'")), "{code} {text}");
        assert!(node.agent.heard().is_empty());
        node.call("DEL", &Call::new(path, json!({}))).result();
        assert_eq!(node.agent.heard(), ["release"]);
        node.agent.forget();
    }
}

#[test]
fn the_hosts_own_namespace_is_no_sandbox() {
    let node = Node::new();
    let (code, text) = node.call("ADD", &Call::new(node.netns.path(), json!({}))).error();
    assert!(code == 4 && text.contains("the host's own namespace"), "{code} {text}");
}

#[rstest]
#[case("FOO=1", "'FOO'")]
#[case("IP=10.0.0.300", "'10.0.0.300'")]
#[case("MAC=xx", "'xx'")]
#[case("K8S_POD_NAME=web", "K8S_POD_NAMESPACE")]
fn wrong_arguments(#[case] args: &'static str, #[case] part: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call { args, ..Call::new(sandbox.path(), json!({})) };
    let (code, text) = node.call("ADD", &call).error();
    assert!(code == 4 && text.contains(part), "{code} {text}");
    assert!(node.agent.heard().is_empty());
}

#[rstest]
#[case("ADD", "", 6)]
#[case("ADD", "[1]", 6)]
#[case("DANCE", "{}", 4)]
#[case("", "{}", 4)]
fn no_configuration_and_no_verb(#[case] verb: &str, #[case] stdin: &str, #[case] code: u64) {
    let node = Node::new();
    let outcome = node.call_raw(verb, &Call::new("", json!({})), stdin, Stdio::piped());
    assert_eq!(outcome.error().0, code);
}

#[test]
fn an_agent_that_is_away() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.die();
    let (code, text) = node.call("ADD", &Call::new(sandbox.path(), json!({}))).error();
    assert!(code == 11 && text.contains("is weft-agent running on this node?"), "{code} {text}");
    assert_eq!(node.files("pending-del"), Vec::<String>::new(), "nothing was allocated");
}
