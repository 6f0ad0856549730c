// SPDX-License-Identifier: Apache-2.0
//! Ports of the host that lead to a workload (`hostPort` of a Pod, `portMappings` of CNI): frontends of their own beside those of
//! Services.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use weft_abi::{Addr, FrontendKey, Member};
use weft_api::{HostPort, HostPortProtocol};

use super::{
    Frontends, Lead, Planned, Taken,
    claim::{Claim, Rank},
    shape::NamedPort,
};
use crate::model::{Attachment, DesiredBalancer, ObjectKey};

/// Namespace of what stands for a workload among Services. No object has one of this name.
const NAMESPACE: &str = "~workload";

/// Who has ports of the host.
pub(crate) type HostPorts = BTreeMap<ObjectKey, Arc<Attachment>>;

/// Those of these attachments that have any.
pub(crate) fn of(attachments: &[Arc<Attachment>]) -> HostPorts {
    let all = attachments.iter().filter(|attachment| attachment.link.is_some());
    let having = all.filter(|attachment| !attachment.spec.host_ports.is_empty());
    having.map(|attachment| (key_of(attachment), Arc::clone(attachment))).collect()
}

fn key_of(attachment: &Attachment) -> ObjectKey {
    let id = &attachment.spec.id;
    let pod = attachment.spec.pod.as_ref();
    let name = pod.map_or_else(|| id.to_string(), |pod| format!("{}/{} ({id})", pod.namespace, pod.name));
    ObjectKey::new(NAMESPACE, &name)
}

/// A Service, or what stands for a workload, for people.
pub(crate) fn name_of(key: &ObjectKey) -> String {
    if &*key.namespace == NAMESPACE { format!("workload {}", key.name) } else { format!("Service {key}") }
}

/// `namespace/name` of a Service, else the workload.
pub(crate) fn shown(key: &ObjectKey) -> String {
    if &*key.namespace == NAMESPACE { name_of(key) } else { key.to_string() }
}

/// Plans the ports of one workload. `taken` tells who has a frontend rather than it.
pub(crate) fn plan_one(
    key: &ObjectKey,
    attachment: &Attachment,
    taken: impl Fn(Claim, &FrontendKey) -> Option<ObjectKey>,
) -> Planned {
    let mut frontends = Frontends::default();
    frontends.add_host_ports(key, attachment, &taken);
    frontends.into()
}

/// The rank of a workload: of several that ask for one port the first by name has it.
pub(crate) fn rank_of(key: &ObjectKey) -> Rank {
    Rank { claim: Claim::HostPort, created: None, object: key.clone() }
}

/// What a workload asks for.
pub(super) fn asked(attachment: &Attachment) -> impl Iterator<Item = FrontendKey> {
    of_families(attachment).map(|(address, port)| frontend_of(port, address.is_ipv4()))
}

impl<'a> Frontends<'a> {
    pub(super) fn add_host_ports(&mut self, key: &'a ObjectKey, attachment: &Attachment, taken: Taken<'_>) {
        for (address, port) in of_families(attachment) {
            let (protocol, number) = (protocol_of(port.protocol), port.protocol.number());
            let named = NamedPort { name: "", protocol, number, port: port.port, node_port: 0 };
            let member = Member::new(Addr::from(address), port.target.to_be());
            let lead = Lead::HostPort(DesiredBalancer::of([member], []));
            self.add_frontend(key, &named, (Claim::HostPort, frontend_of(port, address.is_ipv4()), lead), taken);
        }
    }
}

/// Its ports by families, and the address that each leads to: of several of one family the first, as from the portmap plugin.
fn of_families(attachment: &Attachment) -> impl Iterator<Item = (IpAddr, &HostPort)> {
    let assigned = attachment.allocation.addresses.iter().map(|assigned| assigned.address.addr());
    let first = [true, false].map(|family| assigned.clone().find(|address| address.is_ipv4() == family));
    let of_family = |address: IpAddr| {
        let ports = attachment.spec.host_ports.iter().filter(move |port| is_of(port, address.is_ipv4()));
        ports.map(move |port| (address, port))
    };
    first.into_iter().flatten().flat_map(of_family)
}

fn is_of(port: &HostPort, ipv4: bool) -> bool {
    port.address.is_none_or(|address| address.is_ipv4() == ipv4)
}

/// Without an address, or with the unspecified one: any of the host's.
fn frontend_of(port: &HostPort, ipv4: bool) -> FrontendKey {
    let any = if ipv4 { Addr::v4(0) } else { Addr::UNSPECIFIED };
    let address =
        port.address.filter(|address| !address.is_unspecified()).map_or(any, |address: IpAddr| address.into());
    FrontendKey::of_cluster(address, port.port.to_be(), port.protocol.number())
}

const fn protocol_of(protocol: HostPortProtocol) -> &'static str {
    match protocol {
        HostPortProtocol::Tcp => "TCP",
        HostPortProtocol::Udp => "UDP",
        HostPortProtocol::Sctp => "SCTP",
    }
}
