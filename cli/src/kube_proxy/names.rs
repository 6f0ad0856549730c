// SPDX-License-Identifier: Apache-2.0
//! Which names are kube-proxy's.

/// Chains of kube-proxy's that have one name everywhere, of its modes iptables and ipvs (Kubernetes 1.33 to 1.37).
///
/// Not here: `KUBE-IPTABLES-HINT`, `KUBE-KUBELET-CANARY` and `KUBE-FIREWALL`, which are kubelet's (kube-proxy writes the
/// last one too, and leaves it to kubelet when it cleans up), and `KUBE-MARK-DROP`, which was kubelet's.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // Mode ipvs.
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// What chains of one Service port or endpoint begin with; a hash follows. `XLB` was before 1.24.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-XLB-"];
/// Digits of the hash: base32, cut.
const HASH: usize = 16;

/// ipsets of mode ipvs, without the beginning `KUBE-`.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// The longest name that an ipset may have: kube-proxy cuts its names for IPv6 to it.
const SET_NAME: usize = 31;

/// The table of mode nftables, in the families `ip` and `ip6`.
pub(super) const TABLE: &str = "kube-proxy";
/// The device of mode ipvs, which has the addresses of Services.
pub(super) const DEVICE: &str = "kube-ipvs0";

/// Whether an iptables chain of this name is kube-proxy's.
pub(super) fn is_chain(name: &str) -> bool {
    let hash = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let is_hash = |hash: &str| hash.len() == HASH && hash.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7'));
    CHAINS.contains(&name) || hash.is_some_and(is_hash)
}

/// Whether an ipset of this name is kube-proxy's.
pub(super) fn is_set(name: &str) -> bool {
    SETS.iter().any(|set| {
        let v6 = format!("KUBE-6-{set}");
        name.strip_prefix("KUBE-") == Some(set) || name == &v6[..v6.len().min(SET_NAME)]
    })
}

#[cfg(test)]
mod tests {
    use super::{is_chain, is_set};

    #[test]
    fn chains_of_kubelet_and_of_policy_engines_are_not_kube_proxys() {
        for name in [
            "KUBE-SERVICES",
            "KUBE-PROXY-CANARY",
            "KUBE-SVC-XLXX5LDLIFZVCSR6",
            "KUBE-SEP-C7LVQD3F5C2KNROV",
            "KUBE-FW-3T6VTKFMEVWRKEPC",
        ] {
            assert!(is_chain(name), "{name}");
        }
        for name in [
            "KUBE-IPTABLES-HINT",
            "KUBE-KUBELET-CANARY",
            "KUBE-FIREWALL",
            "KUBE-ROUTER-INPUT",
            "KUBE-NWPLCY-XLXX5LDLIFZVCSR6",
            "KUBE-POD-FW-XLXX5LDLIFZVCSR6",
            "KUBE-SVC-mine",
            "KUBE-SVC-XLXX5LDLIFZVCSR61",
            "MY-KUBE-SERVICES",
            "INPUT",
        ] {
            assert!(!is_chain(name), "{name}");
        }
    }

    #[test]
    fn sets_of_both_families_are_known_as_far_as_their_names_go() {
        for name in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-IPVS-IPS"] {
            assert!(is_set(name), "{name}");
        }
        for name in ["KUBE-", "KUBE-6-", "KUBE-SRC-XLXX5LDLIFZVCSR6", "KUBE-6-LOAD-BALANCER-SOURCE-CIDR", "CLUSTER-IP"]
        {
            assert!(!is_set(name), "{name}");
        }
    }
}
