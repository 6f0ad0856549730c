// SPDX-License-Identifier: Apache-2.0
//! CHECK.

use rstest::rstest;
use serde_json::json;
use weft_api::{ErrorCode, Request};

use crate::{
    fake_agent::Fault,
    node::{Call, Netns, Node},
};

#[rstest]
fn check_agrees_with_add(#[values("0.4.0", "1.0.0", "1.1.0")] version: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({"cniVersion": version}));
    let result = node.call("ADD", &call).result();
    node.call("CHECK", &call.with("prevResult", result)).result();
    let Request::Check { addresses, .. } = node.agent.latest("check") else { panic!() };
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.244.1.2/32", "fd00:10:244:1::1/128"]);
}

#[rstest]
#[case::v4("addr del 10.244.1.2/32 dev eth0", "lost the address 10.244.1.2/32")]
#[case::v6("addr del fd00:10:244:1::1/128 dev eth0", "lost the address fd00:10:244:1::1/128")]
#[case::route("route del default", "lost the route to 0.0.0.0/0")]
#[case::route6("-6 route del default", "lost the route to ::/0")]
#[case::down("link set eth0 down", "'eth0' in the sandbox is down")]
#[case::mac("link set eth0 address 02:00:00:00:00:ee", "not 02:00:00:00:01:01")]
#[case::mtu("link set eth0 mtu 1300", "mtu 1300, not 1450")]
#[case::gone("link set eth0 name other0", "'eth0' is missing in the sandbox")]
fn check_tells_what_changed_in_the_sandbox(#[case] change: &str, #[case] finding: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    let result = node.call("ADD", &call).result();
    sandbox.ip(change);
    let (code, text) = node.call("CHECK", &call.with("prevResult", result)).error();
    assert!(code == 100 && text.contains(finding), "{code} {text}");
}

#[rstest]
#[case::down("link set weft0000000001 down", "'weft0000000001' on the host is down")]
#[case::gone("link del weft0000000001", "'weft0000000001' is missing on the host")]
fn check_tells_what_changed_on_the_host(
    #[case] change: &str,
    #[case] finding: &str,
    #[values("veth", "tap")] port: &str,
) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({"port": port}));
    let result = node.call("ADD", &call).result();
    node.netns.ip(change);
    let (code, text) = node.call("CHECK", &call.with("prevResult", result)).error();
    assert!(code == 100 && text.contains(finding), "{code} {text}");
}

#[test]
fn check_asks_the_agent_too() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    let result = node.call("ADD", &call).result();
    node.agent.fail(Fault::Refuse("check", ErrorCode::Mismatch));
    assert_eq!(node.call("CHECK", &call.with("prevResult", result)).error().0, 100);
}

#[test]
fn check_needs_the_previous_result_and_an_attachment() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({}));
    let result = node.call("ADD", &call).result();
    let (code, text) = node.call("CHECK", &call).error();
    assert!(code == 7 && text.contains("'prevResult'"), "{code} {text}");
    let unknown = call.named("c9", "eth0").with("prevResult", result);
    assert_eq!(node.call("CHECK", &unknown).error().0, 3);
}
