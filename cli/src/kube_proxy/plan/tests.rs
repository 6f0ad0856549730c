// SPDX-License-Identifier: Apache-2.0
use crate::kube_proxy::{
    iptables::{Backend, Variant},
    kernel::Family,
    observe::Observation,
    rules,
};

use super::{Step, plan};

const NFT_V4: Variant = Variant { backend: Backend::Nft, family: Family::V4 };

fn observation(saved: &str) -> Observation {
    Observation {
        rules: rules::parse(saved).into_iter().map(|table| (NFT_V4, table)).collect(),
        servers: vec!["TCP 10.96.0.1:443".into()],
        has_device: true,
        sets: vec!["KUBE-CLUSTER-IP".into()],
        tables: Family::BOTH.into(),
    }
}

#[test]
fn rules_go_before_the_sets_that_they_name_and_servers_before_the_device() {
    let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
    let (steps, left) = plan(observation(saved));
    assert!(left.is_empty());
    let things: Vec<String> = steps.iter().flat_map(Step::things).collect();
    let expected = [
        "rule of nat (IPv4, iptables-nft): PREROUTING -j KUBE-SERVICES",
        "chain KUBE-SERVICES of nat (IPv4, iptables-nft)",
        "ipvs virtual server TCP 10.96.0.1:443",
        "device kube-ipvs0",
        "ipset KUBE-CLUSTER-IP",
        "nftables table ip kube-proxy",
        "nftables table ip6 kube-proxy",
    ];
    assert_eq!(things, expected);
}

#[test]
fn virtual_servers_are_somebodys_where_the_device_is_not() {
    let (steps, _) = plan(Observation { has_device: false, ..observation("") });
    assert!(!steps.iter().any(|step| matches!(step, Step::Servers(_) | Step::Device)), "{steps:?}");
    assert!(plan(Observation { servers: vec!["TCP 192.0.2.1:80".into()], ..Observation::default() }).0.is_empty());
}

#[test]
fn a_chain_that_has_to_stay_is_told_with_the_rule_that_holds_it() {
    let saved = "*nat\n:KUBE-MARK-MASQ - [0:0]\n:THEIRS - [0:0]\n-A THEIRS -g KUBE-MARK-MASQ\nCOMMIT\n";
    let (steps, left) = plan(Observation { servers: Vec::new(), has_device: false, ..observation(saved) });
    assert!(!steps.iter().any(|step| matches!(step, Step::Rules { .. })), "{steps:?}");
    let expected = "failed to remove chain KUBE-MARK-MASQ of nat (IPv4, iptables-nft): a rule leads to it that stays: \
                    THEIRS -g KUBE-MARK-MASQ";
    assert_eq!(left.iter().map(super::Event::line).collect::<Vec<_>>(), [expected]);
}
