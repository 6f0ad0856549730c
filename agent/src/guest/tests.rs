// SPDX-License-Identifier: Apache-2.0
//! What the tests of this room share.

use weft_api::{AssignedAddress, DnsSettings, Mac};

use super::{GuestPort, LINK_LOCAL_GATEWAY};

/// A dual-stack port.
pub(super) fn port() -> GuestPort {
    GuestPort {
        ifindex: 0,
        mac: Mac([2, 0, 0, 0, 0, 5]),
        addresses: vec![
            AssignedAddress { address: "10.1.1.5/24".parse().unwrap(), gateway: "10.1.1.1".parse().unwrap() },
            AssignedAddress { address: "fd00:1::5/128".parse().unwrap(), gateway: LINK_LOCAL_GATEWAY.into() },
        ],
        mtu: 1450,
        dns: DnsSettings {
            nameservers: vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()],
            search: vec!["default.svc.cluster.local".to_owned()],
        },
        hostname: Some("vm-a".to_owned()),
    }
}
