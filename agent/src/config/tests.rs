// SPDX-License-Identifier: Apache-2.0
use std::fs;

use rstest::rstest;

use super::{Config, ConfigError, ConnectionTimeouts, Overrides, PortLimits, PortRange, Source};
use crate::model::Mode;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    fs::write(&file, text).unwrap();
    Config::load(&Overrides { config: Some(file), ..Overrides::default() })
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = load("# nothing\nnodeName: n1\n").unwrap();
    assert_eq!(config.mode, Mode::Vxlan);
    assert_eq!(config.masquerade_ports, None);
    assert!(config.check_neighbours);
    assert_eq!(config.socket.to_str(), Some("/run/weft/agent.sock"));
}

#[test]
fn health_is_on_loopback_of_both_families_and_metrics_nowhere() {
    let texts = |config: &Config| config.health_addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let config = load("nodeName: n1\n").unwrap();
    assert_eq!((texts(&config), config.metrics_address), (vec!["127.0.0.1:9911".into(), "[::1]:9911".into()], None));
    let old = load("nodeName: n1\nhealthAddress: 0.0.0.0:9911\n").unwrap();
    assert_eq!(texts(&old), ["0.0.0.0:9911"]);
}

#[test]
fn load_balancers_ask_at_kube_proxys_port_where_there_is_a_cluster() {
    let ports = |text: &str| {
        let config = load(&format!("nodeName: n1\n{text}")).unwrap();
        [config.healthz_port(), config.metrics_port()].map(|port| port.map(u16::from))
    };
    assert_eq!(ports(""), [Some(10_256), Some(10_249)]);
    assert_eq!(ports("source: dir:/m"), [None, None]);
    assert_eq!(ports("source: dir:/m\nservices: {healthzPort: 10256}"), [Some(10_256), None]);
    assert_eq!(ports("services: {healthzPort: 0}"), [None, Some(10_249)]);
    assert_eq!(ports("services: {metricsPort: 0}"), [Some(10_256), None]);
}

#[test]
fn every_field_is_read() {
    let text = "
nodeName: n1
source: dir:/etc/weft/manifests
apiServer: https://10.0.0.1:6443
kubeconfig: /etc/kubernetes/weft.conf
mode: native
podCIDRs: [10.1.0.0/24, 'fd00:1::/64']
serviceCIDRs: [10.96.0.0/16, 'fd00:96::/112']
uplink: eth1
nodeAddresses: [192.0.2.1, '2001:db8::1']
vni: 12
vxlanPort: 4789
mtu: 1400
masquerade: {ipv4: true, ipv6: false}
masqueradePorts: 50000-50999
masqueradeAddresses: [192.0.2.20, 192.0.2.32/29]
checkNeighbours: false
mssClamp: 1360
portLimits: {flowsPerSecond: 5}
connectionTimeouts: {establishedSeconds: 7440}
socket: /run/a.sock
runDir: /run/a
stateDir: /var/lib/a
pinDir: /sys/fs/bpf/a
vhostBinary: /opt/weft-vhost
cni: {binDir: /b, confDir: /c, install: false, name: lab}
healthAddresses: ['127.0.0.1:1', '[::1]:1']
metricsAddress: '192.0.2.1:9912'
flowSample: 64
dns: {nameservers: [10.96.0.10], search: [cluster.local]}
mapSizes: {flows4: 1024}
";
    let config = load(text).unwrap();
    let again: Config = serde_yaml::from_str(&serde_yaml::to_string(&config).unwrap()).unwrap();
    assert_eq!(serde_yaml::to_string(&config).unwrap(), serde_yaml::to_string(&again).unwrap());
    assert_eq!(config.source, Source::Dir("/etc/weft/manifests".into()));
    assert_eq!(config.masquerade_ports, Some(PortRange { first: 50_000, last: 50_999 }));
    assert!(!config.check_neighbours);
    assert_eq!(
        config.masquerade_addresses.iter().map(|own| own.0.to_string()).collect::<Vec<_>>(),
        ["192.0.2.20/32", "192.0.2.32/29"]
    );
    assert_eq!(config.mss_clamp.value(), 1360);
    assert_eq!(config.flow_sample, 64);
    assert_eq!(config.port_limits, PortLimits { flows_per_second: 5, ..PortLimits::default() });
    let timeouts = ConnectionTimeouts { established_seconds: 7440, ..ConnectionTimeouts::default() };
    assert_eq!(config.connection_timeouts, timeouts);
    assert_eq!(config.map_sizes.flows4, 1024);
}

#[test]
fn flags_go_above_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.yaml");
    fs::write(&file, "nodeName: n1\nsource: kubernetes\n").unwrap();
    let flags = Overrides {
        config: Some(file),
        node_name: Some("n2".to_owned()),
        source: Some(Source::Dir("/m".into())),
        metrics_address: Some("any:9913".parse().unwrap()),
        ..Overrides::default()
    };
    let config = Config::load(&flags).unwrap();
    assert_eq!((config.node_name.as_str(), config.source), ("n2", Source::Dir("/m".into())));
    assert_eq!(config.metrics_address.unwrap().to_string(), "any:9913");
}

#[rstest]
#[case::unknown_field("nodeNam: a", &["unknown field `nodeNam`", "expected one of"])]
#[case::unknown_in_section("cni: {binDirr: /a}", &["cni", "unknown field `binDirr`"])]
#[case::wrong_type("vni: many", &["vni", "invalid type"])]
#[case::mode("mode: geneve", &["mode", "unknown variant `geneve`"])]
#[case::source("source: dir:relative", &["source", "'dir:relative' is not a source"])]
#[case::cidr_text("podCIDRs: [10.0.0.0]", &["podCIDRs"])]
#[case::host_bits("nodeName: n\npodCIDRs: [10.0.0.1/24]", &["podCIDRs", "write 10.0.0.0/24"])]
#[case::two_of_a_family("nodeName: n\npodCIDRs: [10.0.0.0/24, 10.0.1.0/24]", &["podCIDRs", "one IPv4"])]
#[case::tiny_pool("nodeName: n\npodCIDRs: [10.0.0.0/31]", &["podCIDRs", "/30"])]
#[case::overlap("nodeName: n\npodCIDRs: [10.0.0.0/24]\nserviceCIDRs: [10.0.0.0/16]", &["serviceCIDRs", "overlaps"])]
#[case::plain_bits("nodeName: n\nnonMasqueradeCIDRs: [10.0.0.1/8]", &["nonMasqueradeCIDRs", "write 10.0.0.0/8"])]
#[case::plain_text("nodeName: n\nnonMasqueradeCIDRs: [ten]", &["nonMasqueradeCIDRs"])]
#[case::plain_all("nodeName: n\nnonMasqueradeCIDRs: ['::/0']", &["nonMasqueradeCIDRs", "::/0", "masquerade: {ipv6: false}"])]
#[case::vni("nodeName: n\nvni: 16777216", &["vni", "16777215"])]
#[case::mtu("nodeName: n\nmtu: 500", &["mtu", "576"])]
#[case::own_text("nodeName: n\nmasqueradeAddresses: [eth0]", &["masqueradeAddresses", "'eth0' is neither"])]
#[case::own_bits("nodeName: n\nmasqueradeAddresses: [192.0.2.1/24]", &["masqueradeAddresses", "write 192.0.2.0/24"])]
#[case::own_pods("nodeName: n\npodCIDRs: [10.244.1.0/24]\nmasqueradeAddresses: [10.244.1.7]", &["masqueradeAddresses", "10.244.1.0/24 of podCIDRs", "beyond it"])]
#[case::own_services("nodeName: n\nserviceCIDRs: [10.96.0.0/16]\nmasqueradeAddresses: [10.0.0.0/8]", &["masqueradeAddresses", "10.96.0.0/16 of serviceCIDRs", "beyond it"])]
#[case::own_family("nodeName: n\nmasquerade: {ipv6: false}\nmasqueradeAddresses: ['2001:db8::1']", &["masqueradeAddresses", "leaves alone"])]
#[case::mss("nodeName: n\nmssClamp: 100", &["mssClamp", "536"])]
#[case::mss_text("nodeName: n\nmssClamp: much", &["mssClamp", "true, false"])]
#[case::mss_large("nodeName: n\nmssClamp: 70000", &["mssClamp", "1360"])]
#[case::ports("masqueradePorts: 65535-61000", &["masqueradePorts", "65535-61000"])]
#[case::percent("nodeName: n\nportLimits: {flowTablePercent: 101}", &["portLimits.flowTablePercent", "0 to 100"])]
#[case::timeout("nodeName: n\nconnectionTimeouts: {briefSeconds: 0}", &["connectionTimeouts.briefSeconds", "4 to 2592000"])]
#[case::timeout_below("nodeName: n\nconnectionTimeouts: {unansweredSeconds: 9}", &["connectionTimeouts.unansweredSeconds", "10 to 2592000", "briefSeconds"])]
#[case::timeout_name("nodeName: n\nconnectionTimeouts: {tcp: 9}", &["connectionTimeouts", "`tcp`", "establishedSeconds"])]
#[case::node_name("nodeName: Not_A_Node", &["nodeName", "metadata.name"])]
#[case::relative("nodeName: n\nrunDir: run", &["runDir", "absolute"])]
#[case::socket(&format!("nodeName: n\nsocket: /{}", "s".repeat(107)), &["socket", "107 bytes"])]
#[case::network("nodeName: n\ncni: {name: 'a/b'}", &["cni.name", "'a/b'"])]
#[case::health("nodeName: n\nhealthAddress: localhost", &["healthAddresses", "'localhost'", "127.0.0.1:9911"])]
#[case::no_health("nodeName: n\nhealthAddresses: []", &["healthAddresses", "leave the key out"])]
#[case::metrics("nodeName: n\nmetricsAddress: '9912'", &["metricsAddress", "'9912'", "any:9912"])]
#[case::open_metrics("nodeName: n\nmetricsAddress: '0.0.0.0:9912'", &["metricsAddress", "for its pods too", "any:9912"])]
#[case::open_metrics_v6("nodeName: n\nmetricsAddress: '[::]:9912'", &["metricsAddress", "any:9912"])]
#[case::map("nodeName: n\nmapSizes: {flow: 1}", &["mapSizes", "`flow`", "flows4"])]
#[case::map_size("nodeName: n\nmapSizes: {flows4: 0}", &["mapSizes", "flows4"])]
fn what_cannot_be_right_is_named_with_file_and_field(#[case] text: &str, #[case] parts: &[&str]) {
    let error = load(text).unwrap_err().to_string();
    assert!(error.contains("agent.yaml"), "{error}");
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn a_file_that_was_asked_for_must_exist() {
    let flags = Overrides { config: Some("/nonexistent/agent.yaml".into()), ..Overrides::default() };
    let error = Config::load(&flags).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/agent.yaml"), "{error}");
}
