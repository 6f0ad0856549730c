// SPDX-License-Identifier: Apache-2.0

//! The oracle itself: what Kubernetes and Weft's own documentation promise for a packet. Pure, and written from their text; it
//! shares nothing with planner and programs, so that a mistake has to be made twice to stay unseen.

mod frontend;
mod policy;
mod route;
mod service;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use self::{frontend::Frontend, route::Place};
pub(super) use self::{
    frontend::{Taken, hairpin, is_contested, taken_from_holder, wanted_by_several},
    route::is_service,
};
use super::world::{From, Packet, Protocol, World};

/// What becomes of a packet.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Verdict {
    /// It arrives somewhere.
    Delivered {
        to: Target,
        /// Address and port that the receiver sees as its own.
        address: IpAddr,
        port: u16,
        source: Source,
    },
    /// It goes no further.
    Dropped(Reason),
    /// The dataplane leaves it to the node's own network stack.
    Kernel,
}

/// Where a packet arrives.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Target {
    /// A pod of this node, `namespace/name`.
    Pod(String),
    /// The node itself.
    Host,
    /// Another node, for its pods.
    Node(String),
    /// Whatever is beyond, other nodes' own addresses included.
    Outside,
}

/// Whom the receiver sees as the sender.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Source {
    /// Who it is.
    Kept,
    /// The node, under a port of those that it masquerades with.
    Masqueraded,
    /// What stands for clients from beyond, where the node itself serves: its answer has to come by.
    Hairpin,
    /// Somebody else than the receiver itself, who is the sender: its answer has to leave it.
    NotItself,
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) enum Reason {
    /// The sender may not have this source.
    Source,
    /// A policy of the sender.
    Egress,
    /// A policy of the receiver.
    Ingress,
    /// The Service has no endpoint to use.
    NoBackend,
    /// It has some, and none on this node, where its traffic policy wants one.
    NoLocalBackend,
    /// The client is in none of a load balancer's ranges.
    SourceRange,
    /// No Service has this address.
    NoService,
    /// It is a Service's ClusterIP, and the Service has no such port.
    NoServicePort,
    /// A node's pods, and none of them has this address.
    Unreachable,
}

/// Where a Service leads: address and port.
pub(super) type Backend = (IpAddr, u16);

/// Who keeps a backend (`sessionAffinity: ClientIP`).
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Client {
    /// The node that it sends from, which knows of no other's clients.
    pub(super) node: String,
    /// Namespace and name.
    pub(super) service: (String, String),
    /// Name and protocol of the Service's port.
    pub(super) port: (String, Protocol),
    /// Of whom the packets are.
    pub(super) address: IpAddr,
}

/// The client that sends `packet` to a Service that keeps clients, and for how long after its last new connection.
pub(super) fn client(world: &World, here: &str, packet: &Packet) -> Option<(Client, Duration)> {
    let frontend = frontend::find(world, here, packet)?;
    service::client(&frontend, here, packet.source)
}

/// Whether the packet is for a frontend of a Service or a pod.
pub(super) fn is_served(world: &World, here: &str, packet: &Packet) -> bool {
    frontend::find(world, here, packet).is_some()
}

/// Whether the client's Service port is there and keeps clients.
pub(super) fn keeps(world: &World, client: &Client) -> bool {
    service::keeps(world, client)
}

/// The backends that a new connection may have, whoever has had which.
pub(super) fn may_be_chosen(world: &World, here: &str, packet: &Packet) -> Vec<Backend> {
    let frontend = frontend::find(world, here, packet);
    frontend.map(|frontend| service::backends(world, here, &frontend, packet)).unwrap_or_default()
}

impl Quirks {
    /// What either has.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            leaves_gone_pod: self.leaves_gone_pod || other.leaves_gone_pod,
            pods_by_prefix: self.pods_by_prefix || other.pods_by_prefix,
        }
    }
}

/// What is known not to be as it should, each by its own name; see `known.rs`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Quirks {
    /// What went to a pod that is gone from this node chooses again.
    pub(super) leaves_gone_pod: bool,
    /// An address in another node's pod CIDR that no pod has counts as a pod's where all pods are meant.
    pub(super) pods_by_prefix: bool,
}

/// What may become of the first packet of a connection at node `here`: one of these, by the choice of a backend. `last`: the backend
/// that its client had, where the Service has it keep that; one that may not be chosen any more is no matter.
pub(super) fn answer(
    world: &World,
    here: &str,
    packet: &Packet,
    last: Option<Backend>,
    quirks: Quirks,
) -> Vec<Verdict> {
    if !route::may_speak(world, here, packet) {
        return vec![Verdict::Dropped(Reason::Source)];
    }
    match frontend::find(world, here, packet) {
        None => vec![onward(world, here, packet, (packet.destination, packet.dport), false, quirks)],
        Some(frontend) => served(world, here, packet, &frontend, last, quirks),
    }
}

/// The answers of a frontend. Where nobody serves, everybody hears that.
fn served(
    world: &World,
    here: &str,
    packet: &Packet,
    frontend: &Frontend<'_>,
    last: Option<Backend>,
    quirks: Quirks,
) -> Vec<Verdict> {
    let mut backends = service::backends(world, here, frontend, packet);
    let is_refused = service::refuses_source(frontend, packet.source);
    if backends.is_empty() {
        let reason = service::without_backend(world, here, frontend, packet.destination.is_ipv4());
        // Both are silence.
        let other = (is_refused && reason == Reason::NoLocalBackend).then_some(Reason::SourceRange);
        return [Some(reason), other].into_iter().flatten().map(Verdict::Dropped).collect();
    }
    if is_refused {
        return vec![Verdict::Dropped(Reason::SourceRange)];
    }
    if let Some(last) = last.filter(|last| backends.contains(last)) {
        backends = vec![last];
    }
    backends.iter().map(|backend| onward(world, here, packet, *backend, true, quirks)).collect()
}

/// What may become of the next packet of a connection that went to `backend` when it began, or was not translated. A
/// connection keeps a backend that serves, whatever the protocol; a TCP connection keeps it in any case, and goes on without one that
/// it had none. Others begin anew, for a client that had `last`.
pub(super) fn answer_standing(
    world: &World,
    here: &str,
    packet: &Packet,
    (backend, last): (Option<Backend>, Option<Backend>),
    quirks: Quirks,
) -> Vec<Verdict> {
    if !route::may_speak(world, here, packet) {
        return vec![Verdict::Dropped(Reason::Source)];
    }
    let Some(backend) = backend else {
        // What no Service led when it began is established somewhere else.
        if packet.protocol == Protocol::Tcp {
            return vec![onward(world, here, packet, (packet.destination, packet.dport), false, quirks)];
        }
        return answer(world, here, packet, last, quirks);
    };
    let gone = route::place(world, here, backend.0) == Place::OwnUnused;
    if stands(world, here, packet, backend) && !(quirks.leaves_gone_pod && gone) {
        return vec![onward(world, here, packet, backend, true, quirks)];
    }
    answer(world, here, packet, last, quirks)
}

/// Whether a connection keeps the backend that it went to when it began.
pub(super) fn stands(world: &World, here: &str, packet: &Packet, backend: Backend) -> bool {
    let frontend = frontend::find(world, here, packet);
    let serves = |frontend: Frontend<'_>| service::serves(world, &frontend, backend, packet.destination.is_ipv4());
    packet.protocol == Protocol::Tcp || frontend.is_some_and(serves)
}

/// What becomes of an answer: it arrives where the question came from, as if nothing had been translated.
pub(super) fn back(world: &World, here: &str, packet: &Packet) -> Target {
    match &packet.from {
        From::Pod(id) => Target::Pod(id.clone()),
        From::Host => Target::Host,
        From::Wire => match route::place(world, here, packet.source) {
            Place::OtherNode(node) => Target::Node(node),
            _ => Target::Outside,
        },
    }
}

/// Where a packet is seen in the end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Spot {
    /// A pod, `namespace/name`.
    Pod(String),
    /// The node of this name itself.
    Host(String),
    Outside,
}

/// What becomes of a packet on its whole way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Final {
    At {
        spot: Spot,
        address: IpAddr,
        port: u16,
        source: Source,
        /// The node whose address a masqueraded packet has.
        node: String,
    },
    Dropped(Reason),
    /// Wherever it ends, nobody of this world sees it.
    Nowhere,
}

/// Where packets with these verdicts at node `here` end: what goes to another node is judged there for its receiver.
pub(super) fn end_to_end(world: &World, here: &str, packet: &Packet, verdicts: Vec<Verdict>) -> Vec<Final> {
    verdicts.into_iter().map(|verdict| ends(world, here, packet, verdict)).collect()
}

fn ends(world: &World, here: &str, packet: &Packet, verdict: Verdict) -> Final {
    let Verdict::Delivered { to, address, port, source } = verdict else {
        return match verdict {
            Verdict::Dropped(reason) => Final::Dropped(reason),
            _ => Final::Nowhere,
        };
    };
    let at = |spot| Final::At { spot, address, port, source, node: here.to_owned() };
    match to {
        Target::Pod(id) => at(Spot::Pod(id)),
        Target::Host => at(Spot::Host(here.to_owned())),
        Target::Outside => match world.nodes.iter().find(|node| node.addresses.contains(&address)) {
            Some(node) if source == Source::Masqueraded && packet.from != From::Wire => {
                let arrived = Packet { from: From::Wire, destination: address, dport: port, ..packet.clone() };
                // Where that one serves, two nodes have a say.
                if is_served(world, &node.name, &arrived) { Final::Nowhere } else { at(Spot::Host(node.name.clone())) }
            }
            Some(_) => Final::Nowhere,
            None if is_outside(address) => at(Spot::Outside),
            None => Final::Nowhere,
        },
        Target::Node(there) => {
            let own =
                world.node(here).and_then(|node| node.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4()));
            let sender = own.filter(|_| source == Source::Masqueraded).copied().unwrap_or(packet.source);
            let arrived =
                Packet { from: From::Wire, source: sender, destination: address, dport: port, ..packet.clone() };
            match onward(world, &there, &arrived, (address, port), false, Quirks::default()) {
                Verdict::Delivered { to: Target::Pod(id), .. } => at(Spot::Pod(id)),
                Verdict::Dropped(reason) => Final::Dropped(reason),
                _ => Final::Nowhere,
            }
        }
    }
}

/// Whether an address is that of the outside of a simulated site.
pub(super) fn is_outside(address: IpAddr) -> bool {
    [IpAddr::V4(crate::OUTSIDE_V4), IpAddr::V6(crate::OUTSIDE_V6)].contains(&address)
}

/// After the choice of a backend: where it is, and whether both ends allow it.
fn onward(
    world: &World,
    here: &str,
    packet: &Packet,
    (address, port): (IpAddr, u16),
    translated: bool,
    quirks: Quirks,
) -> Verdict {
    let place = route::place(world, here, address);
    let from_pod = matches!(packet.from, From::Pod(_));
    let target = match place {
        Place::Pod(id) => Target::Pod(id),
        Place::Host if packet.from == From::Wire && !translated => return Verdict::Kernel,
        Place::Host => Target::Host,
        Place::OwnUnused if packet.from == From::Wire && !translated => return Verdict::Kernel,
        Place::OwnUnused => return Verdict::Dropped(Reason::Unreachable),
        // What comes from beyond goes where the host's routes say.
        Place::Service if packet.from == From::Wire => return Verdict::Kernel,
        // As kube-proxy has it (nftables): connections to other ports of ClusterIPs are rejected, other addresses of Service CIDRs lead
        // nowhere.
        Place::Service if packet.protocol != Protocol::Echo && service::is_cluster_ip(world, address) => {
            return Verdict::Dropped(Reason::NoServicePort);
        }
        Place::Service => return Verdict::Dropped(Reason::NoService),
        _ if packet.from == From::Wire && !translated => return Verdict::Kernel,
        Place::OtherNode(node) => Target::Node(node),
        Place::Outside => Target::Outside,
    };
    let itself = address == packet.source;
    if !itself && let Some(reason) = policy::refuses(world, here, packet, (address, port), quirks) {
        return Verdict::Dropped(reason);
    }
    // What somebody beyond the node asks of it is answered by it.
    let from_beyond = packet.from == From::Wire && translated;
    let source = match target {
        Target::Outside if from_pod => Source::Masqueraded,
        Target::Outside | Target::Node(_) if from_beyond => Source::Masqueraded,
        Target::Host if from_beyond => Source::Hairpin,
        _ if itself && translated => Source::NotItself,
        _ => Source::Kept,
    };
    Verdict::Delivered { to: target, address, port, source }
}
