// SPDX-License-Identifier: Apache-2.0
//! STATUS and VERSION.

use std::process::Stdio;

use rstest::rstest;
use serde_json::json;
use weft_api::ErrorCode;

use crate::{
    fake_agent::Fault,
    node::{Call, Node},
};

#[test]
fn status_is_the_agents() {
    let node = Node::new();
    let call = Call::new("", json!({}));
    node.call("STATUS", &call).result();
    node.agent.fail(Fault::Refuse("ready", ErrorCode::NotReady));
    assert_eq!(node.call("STATUS", &call).error(), (50, "no ready today ".to_owned()));
    node.agent.die();
    let (code, text) = node.call("STATUS", &call).error();
    assert!(code == 50 && text.contains("is weft-agent running on this node?"), "{code} {text}");
}

#[rstest]
#[case("", "1.1.0")]
#[case(r#"{"cniVersion": "1.0.0"}"#, "1.0.0")]
#[case(r#"{"cniVersion": "7.0.0"}"#, "1.1.0")]
fn version_tells_all(#[case] stdin: &str, #[case] version: &str) {
    let node = Node::new();
    let answer = node.call_raw("VERSION", &Call::new("", json!({})), stdin, Stdio::piped()).result();
    let expected = json!({"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(answer, expected);
}

#[rstest]
#[case("CHECK", "0.3.1")]
#[case("GC", "1.0.0")]
#[case("STATUS", "0.4.0")]
fn verbs_of_later_versions_are_refused(#[case] verb: &str, #[case] version: &str) {
    let node = Node::new();
    let (code, text) = node.call(verb, &Call::new("", json!({"cniVersion": version}))).error();
    assert!(code == 1 && text.contains(verb) && text.contains(version), "{code} {text}");
}
