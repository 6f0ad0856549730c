// SPDX-License-Identifier: Apache-2.0
//! ADD of a veth.

use std::thread;

use rstest::rstest;
use serde_json::{Value, json};
use weft_api::{HostPort, HostPortProtocol};

use crate::{
    fake_agent::GATEWAY_MAC,
    node::{Call, Netns, Node},
};

#[rstest]
fn add_makes_what_its_result_tells(#[values("0.3.1", "0.4.0", "1.0.0", "1.1.0")] version: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({"cniVersion": version, "mtu": 1400}));
    let result = node.call("ADD", &call).result();

    assert_eq!(result["cniVersion"], version);
    let (host, inner) = (&result["interfaces"][0], &result["interfaces"][1]);
    assert_eq!((&host["name"], &host["mac"]), (&json!("weft0000000001"), &json!(GATEWAY_MAC)));
    assert_eq!((&inner["name"], &inner["mac"]), (&json!("eth0"), &json!("02:00:00:00:01:01")));
    assert_eq!((host.get("sandbox"), &inner["sandbox"]), (None, &json!(sandbox.path())));
    let mtu = if version == "1.1.0" { json!(1400) } else { Value::Null };
    assert_eq!((&host["mtu"], &inner["mtu"]), (&mtu, &mtu));
    let families = if version < "1.0.0" { [json!("4"), json!("6")] } else { [Value::Null, Value::Null] };
    assert_eq!([&result["ips"][0]["version"], &result["ips"][1]["version"]], [&families[0], &families[1]]);
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
    assert_eq!(result["ips"][0]["gateway"], "10.244.1.1");
    assert_eq!(result["ips"][1]["address"], "fd00:10:244:1::1/128");
    assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(1), &json!(1)));
    assert_eq!(result["routes"].as_array().unwrap().len(), 4);
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["cluster.local"]}));

    let (outer, link) = (node.netns.link("weft0000000001").unwrap(), sandbox.link("eth0").unwrap());
    assert_eq!((&outer["mtu"], &link["mtu"]), (&json!(1400), &json!(1400)));
    assert_eq!((&outer["address"], &link["address"]), (&json!(GATEWAY_MAC), &json!("02:00:00:00:01:01")));
    assert_eq!(outer["ifalias"], "weft:weft/c1/eth0");
    assert_eq!(outer["inet6_addr_gen_mode"], "none");
    assert!(sandbox.ip("route show default").contains("default via 10.244.1.1 dev eth0"));
    assert!(sandbox.ip("-6 route show default").contains("default via fe80::1 dev eth0"));
}

#[test]
fn the_agent_hears_of_the_pod_and_of_the_link() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u;IP=10.244.1.77;\
                MAC=02:00:00:00:00:77";
    let call = Call { args, ..Call::new(sandbox.path(), json!({})) };
    node.call("ADD", &call).result();

    assert_eq!(node.agent.heard(), ["allocate", "attach"]);
    let spec = node.agent.asked();
    let pod = spec.pod.unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "web-0"));
    assert_eq!(spec.addresses, ["10.244.1.77".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(spec.netns, sandbox.path());
    let weft_api::Request::Attach { link, .. } = node.agent.latest("attach") else { panic!() };
    assert_eq!(node.netns.link(&link.ifname).unwrap()["ifindex"], link.ifindex);
    assert_eq!(sandbox.link("eth0").unwrap()["address"], "02:00:00:00:00:77");
}

/// Under containerd's names and CRI-O's, and whatever is plugged in.
#[rstest]
fn the_agent_is_asked_for_exactly_the_host_ports(#[values("veth", "tap", "vhost-user")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    let more = json!({"port": port, "capabilities": {"portMappings": true}});
    let call = Call::new(sandbox.path(), more).with(
        "runtimeConfig",
        json!({"portMappings": [
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
            {"hostPort": 0, "containerPort": 81, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.7"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "::"},
        ]}),
    );
    let result = node.call("ADD", &call).result();
    let (tcp, udp) = (HostPortProtocol::Tcp, HostPortProtocol::Udp);
    let (one, all) = ("192.0.2.7".parse().unwrap(), "::".parse().unwrap());
    let expected = [
        HostPort { address: None, port: 8080, target: 80, protocol: tcp },
        HostPort { address: Some(one), port: 53, target: 5353, protocol: udp },
        HostPort { address: Some(all), port: 53, target: 5353, protocol: udp },
    ];
    assert_eq!(node.agent.asked().host_ports, expected);

    node.call("CHECK", &call.clone().with("prevResult", result)).result();
    node.call("DEL", &call).result();
    assert!(node.agent.held().is_empty());
}

#[test]
fn packets_pass_both_ways_in_both_families() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.call("ADD", &Call::new(sandbox.path(), json!({}))).result();
    // The dataplane is not here to answer for the gateway: the host's end does.
    assert!(node.netns.succeeds(&["sysctl", "-q", "-w", "net.ipv6.conf.weft0000000001.disable_ipv6=0"]));
    node.netns.ip("addr add 10.244.1.1/32 dev weft0000000001");
    node.netns.ip("addr add fe80::1/64 dev weft0000000001 nodad");
    node.netns.ip("addr add fd00::99/128 dev weft0000000001 nodad");
    node.netns.ip("route add 10.244.1.2/32 dev weft0000000001");
    node.netns.ip("route add fd00:10:244:1::1/128 dev weft0000000001");
    assert!(sandbox.succeeds(&["ping", "-c", "1", "-W", "5", "10.244.1.1"]));
    assert!(sandbox.succeeds(&["ping", "-6", "-c", "1", "-W", "5", "fd00::99"]));
}

#[test]
fn ipv6_works_in_a_sandbox_that_has_it_switched_off() {
    let (node, sandbox) = (Node::new(), Netns::new());
    for which in ["all", "default"] {
        let setting = format!("net.ipv6.conf.{which}.disable_ipv6=1");
        assert!(sandbox.succeeds(&["sysctl", "-q", "-w", &setting]));
    }
    node.call("ADD", &Call::new(sandbox.path(), json!({}))).result();
    let addresses = sandbox.ip("-6 addr show dev eth0 scope global");
    assert!(addresses.contains("fd00:10:244:1::1/128") && !addresses.contains("tentative"), "{addresses}");
}

#[test]
fn the_hosts_end_leads_nowhere_without_the_programs() {
    let (node, sandbox) = (Node::new(), Netns::new());
    for family in ["ipv4", "ipv6"] {
        let setting = format!("net.{family}.conf.default.forwarding=1");
        assert!(node.netns.succeeds(&["sysctl", "-q", "-w", &setting]));
    }
    node.call("ADD", &Call::new(sandbox.path(), json!({}))).result();
    for (setting, value) in
        [("ipv4/rp_filter", "1"), ("ipv4/forwarding", "0"), ("ipv6/accept_ra", "0"), ("ipv6/disable_ipv6", "1")]
    {
        let (family, key) = setting.split_once('/').unwrap();
        let path = format!("/proc/sys/net/{family}/conf/weft0000000001/{key}");
        assert!(node.netns.succeeds(&["grep", "-qx", value, &path]), "{setting}");
    }
    let addresses = node.netns.ip_json("addr show dev weft0000000001")[0]["addr_info"].clone();
    assert_eq!(addresses, json!([]));
}

#[rstest]
fn the_agent_attaches_a_link_that_is_down(#[values("veth", "tap", "vhost-user")] port: &str) {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.call("ADD", &Call::new(sandbox.path(), json!({"port": port}))).result();
    assert_eq!(node.agent.early(), Vec::<String>::new(), "up before it had programs");
    assert!(node.netns.link("weft0000000001").unwrap()["flags"].as_array().unwrap().contains(&json!("UP")));
}

#[test]
fn both_ends_run_when_add_answers() {
    let (node, sandbox) = (Node::new(), Netns::new());
    for container in ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"] {
        let call = Call::new(sandbox.path(), json!({})).named(container, container);
        let result = node.call("ADD", &call).result();
        let outer = node.netns.link(result["interfaces"][0]["name"].as_str().unwrap()).unwrap();
        let inner = sandbox.link(container).unwrap();
        assert_eq!((&outer["operstate"], &inner["operstate"]), (&json!("UP"), &json!("UP")), "{container}");
        assert!(!sandbox.ip(&format!("-6 addr show dev {container}")).contains("tentative"));
    }
}

#[test]
fn an_end_that_does_not_run_is_named() {
    let (node, sandbox) = (Node::new(), Netns::new());
    node.agent.leave_down();
    let before = (node.netns.snapshot(), sandbox.snapshot());
    let (code, text) = node.call("ADD", &Call::new(sandbox.path(), json!({}))).error();
    assert!(code == 5 && text.contains("'weft0000000001' on the host is down"), "{code} {text}");
    assert_eq!((node.netns.snapshot(), sandbox.snapshot()), before);
    assert!(node.agent.held().is_empty());
}

#[test]
fn in_a_chain_the_earlier_plugins_result_is_passed_on() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let previous = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "other0"}],
                          "ips": [{"address": "192.0.2.7/24", "interface": 0}]});
    let call = Call::new(sandbox.path(), json!({"prevResult": previous}));
    let result = node.call("ADD", &call).result();
    assert_eq!(result["interfaces"][0]["name"], "other0");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][1]["interface"], 2);
}

#[test]
fn the_networks_dns_settings_win() {
    let (node, sandbox) = (Node::new(), Netns::new());
    let call = Call::new(sandbox.path(), json!({"dns": {"nameservers": ["192.0.2.53"], "domain": "lab"}}));
    let dns = node.call("ADD", &call).result()["dns"].clone();
    assert_eq!(dns, json!({"nameservers": ["192.0.2.53"], "domain": "lab"}));
}

#[test]
fn many_adds_at_once_do_not_disturb_each_other() {
    const CONTAINERS: [&str; 8] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];
    let node = Node::new();
    let sandboxes: Vec<_> = CONTAINERS.iter().map(|_| Netns::new()).collect();
    thread::scope(|scope| {
        for (sandbox, container) in sandboxes.iter().zip(CONTAINERS) {
            let (node, call) = (&node, Call::new(sandbox.path(), json!({})).named(container, "eth0"));
            scope.spawn(move || node.call("ADD", &call).result());
        }
    });
    assert_eq!(node.netns.link_names().len(), CONTAINERS.len());
    thread::scope(|scope| {
        for (sandbox, container) in sandboxes.iter().zip(CONTAINERS) {
            let (node, call) = (&node, Call::new(sandbox.path(), json!({})).named(container, "eth0"));
            scope.spawn(move || node.call("DEL", &call).result());
        }
    });
    assert_eq!((node.netns.link_names().len(), node.files("attachments").len()), (0, 0));
}
