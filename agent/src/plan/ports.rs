// SPDX-License-Identifier: Apache-2.0
//! Ports of this node's workloads, and whose each local address is.

use std::{collections::BTreeSet, hash::Hasher, sync::Arc};

use weft_abi::{AddressKey, CLUSTER_NET, Owner, Port, PortKind};
use weft_api::PodRef;

use crate::{
    model::{Attachment, Desired, NodeFacts, Numbers, ObjectKey, Refusal, RefusedKind, Snapshot, address::address_key},
    plan::{
        digest::Digest,
        pods,
        policy::{Judges, JudgesByWorkload},
    },
};

/// The texts of the workloads that need a generation slot.
pub(crate) fn number_keys(attachments: &[Arc<Attachment>]) -> BTreeSet<String> {
    attachments.iter().filter(|attachment| attachment.link.is_some()).map(|a| a.spec.id.to_string()).collect()
}

/// Plans `PORTS` and `ADDRESSES`.
pub(crate) fn describe(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    attachments: &[Arc<Attachment>],
    judges: &JudgesByWorkload,
    numbers: &Numbers,
    desired: &mut Desired,
) {
    for address in &facts.host_addresses {
        let of = if facts.serves_node_ports(*address) { Owner::node_ports } else { Owner::host };
        let owner = of(facts.config.host_ifindex);
        desired.addresses.insert(address_key(*address), owner);
    }
    let is_remembered = snapshot.remembered.is_some();
    let knows_pod = |pod: &PodRef| pods::find(snapshot, pod).is_some();
    for attachment in pods::in_order(attachments) {
        let id = attachment.spec.id.to_string();
        let Some(link) = &attachment.link else { continue };
        let Some(&slot) = numbers.workloads.get(&id) else {
            let why = "no number left: this node has more Services and workloads than it can hold";
            desired.problems.push(format!("workload {id}: {why}"));
            continue;
        };
        if let Some(pod) = attachment.spec.pod.as_ref().filter(|pod| is_remembered && !knows_pod(pod)) {
            desired.problems.push(format!(
                "workload {}/{}: closed: its pod is not in the state that is remembered from before, and the source does not \
                 answer",
                pod.namespace, pod.name
            ));
        }
        if let (Some(pod), Some(why)) = (&attachment.spec.pod, desired.closed.get(&id)) {
            let key = ObjectKey::new(&pod.namespace, &pod.name);
            desired.problems.push(format!("workload {key}: {why}"));
            desired.refusals.insert(Refusal { kind: RefusedKind::Pod, key, uid: pod.uid.clone(), why: why.clone() });
        }
        let judges = judges.get(&id).copied().unwrap_or_default();
        let port = port_of(attachment, slot, judges);
        let addresses = give_addresses(&id, link.ifindex, attachment, desired);
        desired.workload_digests.insert(slot, digest(&id, link.ifindex, &port, &addresses, judges));
        if desired.ports.insert(link.ifindex, port).is_some() {
            desired
                .problems
                .push(format!("workload {id}: interface index {} belongs to another one too", link.ifindex));
        }
    }
}

fn port_of(attachment: &Attachment, slot: u32, judges: Judges) -> Port {
    Port {
        net: CLUSTER_NET,
        workload: slot,
        ingress_list: judges.ingress.0,
        egress_list: judges.egress.0,
        mac: attachment.allocation.mac.0,
        kind: match attachment.spec.port {
            weft_api::PortKind::Veth => PortKind::Veth,
            weft_api::PortKind::Tap | weft_api::PortKind::VhostUser => PortKind::Tap,
        } as u8,
        pad: 0,
    }
}

/// Lets a workload's addresses lead to its port, and tells which do. One that somebody else has does not, and the workload may not send
/// with it either.
fn give_addresses(id: &str, ifindex: u32, attachment: &Attachment, desired: &mut Desired) -> BTreeSet<AddressKey> {
    let owner = Owner::workload(ifindex);
    let mut given = BTreeSet::new();
    for address in attachment.allocation.addresses.iter().map(|assigned| assigned.address.addr()) {
        let key = address_key(address);
        if *desired.addresses.entry(key).or_insert(owner) == owner {
            given.insert(key);
        } else {
            desired.problems.push(format!(
                "workload {id}: its address {address} is the host's or another workload's: it has no traffic with it"
            ));
        }
    }
    given
}

fn digest(id: &str, ifindex: u32, port: &Port, addresses: &BTreeSet<AddressKey>, judges: Judges) -> u64 {
    let mut digest = Digest::default();
    digest.write(id.as_bytes());
    digest.write_u32(ifindex.to_le());
    digest.write_u32(port.net.to_le());
    digest.write_u64((addresses.len() as u64).to_le());
    for word in addresses.iter().flat_map(|address| address.addr.0) {
        digest.write(&word.to_ne_bytes());
    }
    digest.write(&port.mac);
    digest.write_u8(port.kind);
    for (list, said) in [judges.ingress, judges.egress] {
        digest.write_u64(list.to_le());
        digest.write_u64(said.to_le());
    }
    digest.finish()
}
