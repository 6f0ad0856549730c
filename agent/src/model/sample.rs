// SPDX-License-Identifier: Apache-2.0
//! An attachment for the tests of other rooms.

use std::net::IpAddr;

use weft_api::{Allocation, AssignedAddress, AttachmentId, AttachmentSpec, DnsSettings, Mac, PodRef, PortKind};

use super::Attachment;

impl Attachment {
    /// A veth port for tests, on no link. `number` tells it from others; addresses with or without a prefix.
    pub(crate) fn sample(number: u8, pod: Option<(&str, &str)>, addresses: &[&str]) -> Self {
        let address = |text: &&str| text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
        let gateway = IpAddr::from([10, 0, 0, 1]);
        let assigned = addresses.iter().map(|text| AssignedAddress { address: address(text), gateway });
        Self {
            spec: AttachmentSpec {
                id: AttachmentId { network: "weft".into(), container_id: format!("c{number}"), ifname: "eth0".into() },
                netns: String::new(),
                port: PortKind::Veth,
                pod: pod.map(|(namespace, name)| PodRef { namespace: namespace.into(), name: name.into(), uid: None }),
                addresses: Vec::new(),
                mac: None,
                mtu: None,
                queues: 1,
                owner: None,
                group: None,
                host_ports: Vec::new(),
            },
            allocation: Allocation {
                addresses: assigned.collect(),
                mac: Mac([2, 0, 0, 0, 0, number]),
                gateway_mac: Mac::default(),
                host_ifname: format!("weft{number}"),
                mtu: 1450,
                routes: Vec::new(),
                dns: DnsSettings::default(),
                socket_path: None,
            },
            link: None,
        }
    }
}
